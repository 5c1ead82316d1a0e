"""Context, which the steps of one run share: the paths, the settings, and the way to the caller."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from vdeblur.errors import ExitStatus, InterruptedRunError
from vdeblur.events import Ask, Notify, Stop, Talk, ignore, never
from vdeblur.restore.area import Area
from vdeblur.restore.changes import ChangeMeter, ChangeSummary
from vdeblur.restore.only_blurred import StrengthSum
from vdeblur.restore.watch import Profile
from vdeblur.run.segments import Segment
from vdeblur.run.store import ModelChoice
from vdeblur.settings import Settings
from vdeblur.source import demux
from vdeblur.source.info import SourceInfo

QUEUE_FRAMES = 6  # in each queue between two threads
GRACE_SECONDS = 10  # a signal waits so long for the current segment; some systems kill a process after this time


@dataclass(frozen=True)
class RunResult:
    """The result of one run.

    frames: in the output. seconds: duration of this run. warnings: their codes. is_planned: whether this was a dry run,
    which writes nothing. frames_estimate: of the input; None if unknown. model, weights_sha256, device, precision: what
    restored; the digest is of the weights' file, or empty if the model needs none. change: how much changed; None where
    nothing was restored. strengths: of all frames in the output, with --only-blurred; else None.
    """

    output: Path
    frames: int
    seconds: float
    warnings: tuple[str, ...]
    is_planned: bool = False
    frames_estimate: int | None = None
    model: str = ""
    weights_sha256: str = ""
    device: str = ""
    precision: str = ""
    change: ChangeSummary | None = None
    strengths: StrengthSum | None = None


@dataclass
class Context:
    """One file's run: what it reads and writes, how, and whom it reports to.

    makes_folder: whether the output's folder is made if it is missing. talk: the same callbacks for downloads. profile:
    the stopwatches. changes: measures how much frames change. note_strength: gets the time and the strength of each
    restored frame. strengths: of all frames in the output; None before they are known, and without --only-blurred.
    warnings: code and message of each so far. guarded: the number of frames in which the guard kept parts of the input,
    known at the end. area: the part of frames to restore; None: all. chosen: the model that `-m auto` or `best` chose.
    """

    source_path: Path
    output: Path
    settings: Settings
    notify: Notify = ignore
    ask: Ask | None = None
    stop: Stop = never
    makes_folder: bool = False
    warnings: list[tuple[str, str]] = field(default_factory=list)
    changes: ChangeMeter = field(default_factory=ChangeMeter)
    guarded: int = 0
    area: Area | None = None
    chosen: ModelChoice | None = None
    note_strength: Callable[[int, float], None] = ignore
    strengths: StrengthSum | None = None

    def __post_init__(self) -> None:
        self.talk = Talk(self.settings.offline, self.settings.yes, self.notify, self.ask, self.stop)
        self.profile = Profile(self.settings.profile)
        self.begun = self.restoring_since = time.monotonic()  # the latter moves to the end of a first pass

    @property
    def writes_pipe(self) -> bool:
        """Return whether the output is standard output."""
        return self.output == demux.PIPE

    def restored_size(self, info: SourceInfo) -> tuple[int, int]:
        """Return height and width of what the network gets of each frame."""
        return (info.height, info.width) if self.area is None else self.area.size

    def seconds(self) -> float:
        """Return the time since the run began."""
        return time.monotonic() - self.begun

    def warn(self, code: str, message: str) -> None:
        """Report a warning, each only once."""
        if (code, message) not in self.warnings:
            self.warnings.append((code, message))
            self.notify("warning", {"code": code, "message": message, "input": str(self.source_path)})

    def warn_of_guarded(self, times: Sequence[Fraction]) -> None:
        """Note and report the frames in which the guard kept parts of the input. times: of these, in seconds."""
        self.guarded = len(times)
        if times:
            frames = "1 frame" if len(times) == 1 else f"{len(times)} frames"
            when = f"{'at' if len(times) == 1 else 'first at'} {float(min(times)):.3f} s"
            message = f"the network failed in parts of {frames}, {when}: these parts stay as they were"
            self.warn("W_GLITCH", f"{message} (without the guard, they are restored all the same)")

    def notify_progress(self, info: SourceInfo, done: int, restored: int) -> None:
        """Report the progress. done: finished frames; restored: those of them that this run has restored."""
        rate = restored / max(time.monotonic() - self.restoring_since, 1e-6)
        left = None if info.frames_estimate is None else max(info.frames_estimate - done, 0) / rate
        facts = {"input": str(self.source_path), "frame": done, "frames_estimate": info.frames_estimate}
        self.notify(
            "progress", {**facts, "fps": round(rate, 3), "eta_seconds": None if left is None else round(left, 1)}
        )


class GracefulStop:
    """A Stop that lets the current segment finish first, if that takes at most GRACE_SECONDS.

    length: seconds of a segment; None: the video is not divided, so nothing is worth waiting for. rate: frames a second
    of the video. segment: the one being restored, if any. restored_frames: frames that this run has restored.
    """

    def __init__(self, stop: Stop, length: Fraction | None, rate: Fraction) -> None:
        self.stop, self.length, self.rate = stop, length, rate
        self.segment: Segment | None = None
        self.restored_frames = 0
        self.begun = time.monotonic()
        self.deadline: float | None = None

    def __call__(self) -> ExitStatus | None:
        """Return the exit status of a signal once the run must stop."""
        status = self.stop()
        if status is None or self.segment is None or self.length is None:
            return status
        now = time.monotonic()
        if self.deadline is None:
            self.deadline = now + GRACE_SECONDS
            left = self.length * self.rate - self.segment.own_frames
            speed = self.restored_frames / max(now - self.begun, 1e-6)
            if left > GRACE_SECONDS * speed:
                self.deadline = now
        return status if now >= self.deadline else None

    @contextlib.contextmanager
    def finishing(self, segment: Segment) -> Iterator[None]:
        """Let this segment finish first, as long as the block runs."""
        self.segment = segment
        try:
            yield
        finally:
            self.segment = None

    def check(self) -> None:
        """Raise InterruptedRunError once the run must stop."""
        status = self()
        if status is not None:
            raise InterruptedRunError(status)
