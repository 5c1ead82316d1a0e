"""`vdeblur run --sample`: restore short samples as the whole would be, show them beside the input, predict the cost.

    spans -> each cut out and restored by run_file -> input left, sample right -> time and size of the whole

The samples' own files are in a folder beside the output, which is removed at the end.
"""

import math
import tempfile
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from vdeblur import files
from vdeblur.errors import DamageError, ExitStatus, InputError, UsageError
from vdeblur.events import Ask, Notify, Stop, Talk, ignore, never
from vdeblur.frame import Frame
from vdeblur.look import compare, compose
from vdeblur.look.labels import labelled
from vdeblur.models.registry import CHOSEN_NAMES
from vdeblur.output.video_file import VideoFile, write_frames
from vdeblur.restore import device
from vdeblur.run import auto
from vdeblur.run.context import Context, RunResult
from vdeblur.run.file_run import run_file
from vdeblur.run.loading import check_model, choose_model
from vdeblur.run.segments import Division
from vdeblur.run.sinks import writes_pictures
from vdeblur.settings import Cut, Settings
from vdeblur.source import counting, demux
from vdeblur.source.info import SourceInfo
from vdeblur.source.video import Source, open_source

PLACES = 3  # samples, each in the middle of its third
LONGEST_RUN = 250  # frames from key frame to key frame at most: the default of x264 and x265
# Events of single samples that are of no use, or about a file that is removed.
HIDDEN = {"segment", "file_done", "first_pass", "first_pass_progress"}


def run_sample(
    source_path: Path,
    output: Path,
    settings: Settings,
    *,
    notify: Notify = ignore,
    ask: Ask | None = None,
    stop: Stop = never,
) -> RunResult:
    """Restore samples of a video or folder of pictures, and show them beside the input, one after the other.

    The output is one video without sound, encoded as the restored one would be; it appears complete or not at all.
    notify: takes the events of restore_file except segment and file_done, and sample.

    Raises: UsageError for pipes and for pictures as the output; what restore_file raises.
    """
    if demux.PIPE in (source_path, output):
        raise UsageError("--sample takes no pipes: parts of the input are read twice", "save it to a file first")
    if writes_pictures(output, settings):
        raise UsageError(f"--sample makes a video, and {output} is a folder of pictures", "name it *.mp4")
    return Sampling(source_path, output, settings, notify, ask, stop).run()


def spans(length: Fraction | None, seconds: Fraction = Fraction(2)) -> list[tuple[Fraction, Fraction]]:
    """Return begin and end of each sample, in seconds from the beginning of the part to restore.

    length: of that part; None if unknown. seconds: of a sample. Three samples if the part is longer than all three,
    else one in the middle.
    """
    if length is None:
        return [(Fraction(0), seconds)]
    places = PLACES if length > PLACES * seconds else 1
    half = min(seconds, length) / 2
    middles = [length * (2 * place + 1) / (2 * places) for place in range(places)]
    return [(middle - half, middle + half) for middle in middles]


@dataclass(frozen=True)
class Restored:
    """A restored sample.

    seconds: of restoring, from the first frame on. first_bytes: of its first encoded frame. strengths: of its frames,
    by their times in the input; empty without --only-blurred.
    """

    cut: Cut
    path: Path
    frames: int
    seconds: float
    first_bytes: int
    bytes: int
    strengths: dict[int, float]


class Sampling:
    """The samples of one video, see run_sample; the functions in the order in which they are used."""

    def __init__(
        self,
        source_path: Path,
        output: Path,
        settings: Settings,
        notify: Notify,
        ask: Ask | None,
        stop: Stop,
    ) -> None:
        self.source_path, self.output, self.settings = source_path, output, settings
        self.notify, self.ask, self.stop = notify, ask, stop
        self.suffix = output.suffix  # of the samples
        self.begun = time.monotonic()
        self.warnings: dict[tuple[object, object], None] = {}
        self.done = self.expected = 0  # frames

    def run(self) -> RunResult:
        """Restore, compose and write the samples."""
        check_model(self.settings)
        files.check_output(self.output, self.source_path, self.settings.encoding.overwrite)
        source = open_source(self.source_path, self.settings.cut, self._warn)
        if counting.has_index(source):  # elsewhere the header tells how long the file was meant to be
            counting.settle_frames(source)
        source.close()
        info = source.info
        known = info.duration_seconds is not None and info.frames_estimate is not None
        length = (info.frames_estimate or 0) / info.rate if known else None
        try:
            files.remove_leftovers(self.output.absolute().parent)
            prefix = f".vdeblur-sample-{files.process_tag()}-"
            folder = tempfile.TemporaryDirectory(".draft", prefix, self.output.parent)
        except OSError as error:
            raise files.write_error(self.output, error) from error
        with folder:
            frames, facts = self._make(Path(folder.name), source, info.frames_estimate if known else None, length)
        about: dict[str, object] = {"input": str(self.source_path), "output": str(self.output), "frames": frames}
        self.notify("sample", {**about, **facts})
        codes = tuple(str(code) for code, _ in self.warnings)
        return RunResult(self.output, frames, time.monotonic() - self.begun, codes)

    def _make(
        self, folder: Path, source: Source, total: int | None, length: Fraction | None
    ) -> tuple[int, dict[str, object]]:
        """Restore samples into a folder, and write the output; return its number of frames, and the estimates.

        total, length: frames and seconds of the part to restore; None if unknown.
        """
        samples = self._restore_all(folder, spans(length, self.settings.sample_seconds), source.info)
        return self._write(samples, source), self._estimates(samples, total, length)

    def _warn(self, code: str, message: str) -> None:
        self._pass_on("warning", {"code": code, "message": message})

    def _pass_on(self, event: str, facts: dict[str, Any]) -> None:
        """Pass on an event of one sample as an event of all samples together."""
        if event == "warning":
            key = (facts["code"], facts["message"])
            if key in self.warnings:
                return
            self.warnings[key] = None
        elif event in ("probe", "plan") and self.done:
            return
        elif event in ("probe", "plan"):
            facts = {**facts, "frames_estimate": self.expected}
        elif event == "progress":
            frame = self.done + facts["frame"]
            left = max(self.expected - frame, 0) / max(facts["fps"], 1e-6)
            facts = {**facts, "frame": frame, "frames_estimate": self.expected, "eta_seconds": round(left, 1)}
        if event not in HIDDEN:
            self.notify(event, facts)

    def _restore_all(self, folder: Path, places: list[tuple[Fraction, Fraction]], info: SourceInfo) -> list[Restored]:
        """Restore every sample that has frames.

        Raises: InputError if none has.
        """
        settings = self._settled(info)
        self.expected = sum(math.ceil((end - begin) * info.rate) for begin, end in places)
        samples: list[Restored] = []
        for index, (begin, end) in enumerate(places):
            try:
                samples.append(self._restore(folder / f"{index}{self.suffix}", begin, end, settings))
            except InputError as error:  # the file may be shorter than it says
                if settings.strict or (index + 1 == len(places) and not samples):
                    raise
                self._warn("W_SAMPLE", f"there is no sample from {float(begin):.1f} s on: {error.message}")
        return samples

    def _settled(self, info: SourceInfo) -> Settings:
        """Return the settings of every sample: those of the whole, with the model chosen for the whole."""
        settings = replace(self.settings, sample=False, compare=None, resume=False)
        if settings.model not in CHOSEN_NAMES:
            return settings
        talk = Talk(settings.offline, settings.yes, self.notify, self.ask, self.stop)
        if settings.model == auto.AUTO:
            return auto.announced(auto.choose(self.source_path, settings, info, talk), settings, talk)
        chosen = device.choose_device(settings.device, lambda fault: None)  # every sample reports the fault
        return replace(settings, model=choose_model(settings, info, chosen, talk))

    def _restore(self, path: Path, begin: Fraction, end: Fraction, settings: Settings) -> Restored:
        """Restore the frames from begin to end, in seconds of the part to restore, to a file."""
        whole = settings.cut
        start = (whole.start or 0) + begin
        stop = start + (end - begin)
        cut = Cut(start, stop if whole.stop is None else min(stop, whole.stop), whole.frames)
        clock = _Clock(self._pass_on, self.stop)
        cut_settings = replace(settings, cut=cut)
        strengths: dict[int, float] = {}
        context = Context(self.source_path, path, cut_settings, clock.notify, self.ask, clock.stop)
        context.note_strength = strengths.__setitem__
        try:
            result = run_file(context)
        except DamageError as error:
            message = error.message.replace(str(path), f"a sample of {self.source_path}")
            raise DamageError(message, error.hint) from error
        seconds = clock.seconds()
        self.done += result.frames
        shown = strengths if context.settings.only_blurred else {}
        return Restored(cut, path, result.frames, seconds, *_sizes(path), shown)

    def _write(self, samples: list[Restored], source: Source) -> int:
        """Write the composed video; return the number of frames."""
        encoding, same = self.settings.encoding, self.settings.deterministic
        with files.drafted_output(self.output, encoding.overwrite) as draft, closing(self._shown(samples)) as shown:

            def open_file(first: Frame) -> VideoFile:
                info = compose.composed_info(source.info, first)
                return VideoFile(draft, info, self._warn, encoding, pictures=source.pictures, deterministic=same)

            return write_frames(shown, open_file)

    def _shown(self, samples: list[Restored]) -> Generator[Frame]:
        """Yield the frames of all samples, one sample after the other, each frame beside the input's."""
        next_pts = 0
        for sample in samples:
            with compare.opened(self.source_path, sample.path, self._pass_on, sample.cut) as couple:
                info, turns = couple.a.info, (couple.a.info.rotation, couple.b.info.rotation)
                step = max(round(1 / (info.rate * info.time_base)), 1)
                shift: int | None = None
                for left, right in compare.watched(couple, ignore, self.stop):
                    shift = next_pts - left.pts if shift is None else shift
                    moved = replace(left, pts=left.pts + shift)
                    strength = sample.strengths.get(left.pts)
                    label = "" if strength is None else f"strength {strength:.2f}"
                    composer = labelled(compose.MODES["side"], ("", label))
                    yield compose.compose(moved, right, composer, *turns, 0.0)
                    next_pts = moved.pts + step

    def _estimates(self, samples: list[Restored], total: int | None, length: Fraction | None) -> dict[str, object]:
        """Estimate how long the whole takes, without its start, and how large it becomes; None for unknown lengths.

        A sample begins with a key frame, which is larger than others; the whole has one in every segment.
        """
        if total is None:
            return {"seconds_estimate": None, "bytes_estimate": None}
        timed = samples[1:] or samples  # the first one includes the warm-up
        per_frame = sum(sample.seconds for sample in timed) / sum(sample.frames for sample in timed)
        begun = Division(Fraction(0), self.settings.segment).count(length) or 1
        keys = min(max(begun, math.ceil(total / LONGEST_RUN)), total)
        frames, count = sum(sample.frames for sample in samples), len(samples)
        key_bytes = sum(sample.first_bytes for sample in samples) / count
        rest_bytes = sum(sample.bytes - sample.first_bytes for sample in samples) / max(frames - count, 1)
        size = round(keys * key_bytes + (total - keys) * rest_bytes)
        return {"seconds_estimate": round(per_frame * total, 1), "bytes_estimate": size}


class _Clock:
    """Measure a run's time from the first frame on that enters the network.

    A run calls stop before every frame, and after the event plan only for frames.
    """

    def __init__(self, notify: Notify, stop: Stop) -> None:
        self._notify, self._stop = notify, stop
        self.is_planned = False
        self.begun: float | None = None

    def notify(self, event: str, facts: dict[str, object]) -> None:
        """Pass on an event."""
        self.is_planned |= event == "plan"
        self._notify(event, facts)

    def stop(self) -> ExitStatus | None:
        """Ask whether a signal arrived."""
        if self.is_planned and self.begun is None:
            self.begun = time.monotonic()
        return self._stop()

    def seconds(self) -> float:
        """Return the time until now."""
        assert self.begun is not None, "a run has frames"
        return time.monotonic() - self.begun


def _sizes(path: Path) -> tuple[int, int]:
    """Return the bytes of a file's first encoded frame, and of all packets except covers."""
    first, total = 0, 0
    with demux.open_container(path) as container:
        video = container.streams.video[0]
        for packet in container.demux():
            if not demux.is_cover(packet.stream):
                first = first or (packet.size if packet.stream.index == video.index else 0)
                total += packet.size
    return first, total
