"""The callbacks that report and stop a run, and the payload of every event.

Events are an API (`--json`, docs/json.md): keys may be added, never renamed.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from vdeblur.errors import ExitStatus, InterruptedRunError

Warn = Callable[[str, str], None]  # takes a warning: a stable code and a sentence
Notify = Callable[[str, dict[str, object]], None]  # takes an event: its name and its payload, see EVENTS
Stop = Callable[[], ExitStatus | None]  # called before every frame; a status means that a signal arrived
Ask = Callable[[str], bool]  # asks the user a yes-or-no question
TRUE = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads its variables


def ignore(*_: object) -> None:
    """Ignore an event or a warning."""


def without_infinities(value: Any) -> Any:
    """Replace infinities and NaN, which JSON does not know, by None."""
    if isinstance(value, dict):
        return {key: without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def never() -> ExitStatus | None:
    """Never ask to stop."""
    return None


@dataclass(frozen=True)
class Talk:
    """The permissions of a download, and the callbacks by which it talks to the user.

    Functions that may download, or wait for another process's download, take one as `talk`.

    offline: do not use the network. yes: accept files without a published digest without asking. notify: takes events.
    ask: None if no user can answer. stop: called while bytes arrive.
    """

    offline: bool = False
    yes: bool = False
    notify: Notify = ignore
    ask: Ask | None = None
    stop: Stop = never

    @property
    def is_offline(self) -> bool:
        """Return whether the option or HF_HUB_OFFLINE switches the network off."""
        return self.offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in TRUE

    def check_stop(self) -> None:
        """Raise InterruptedRunError if a signal arrived."""
        status = self.stop()
        if status is not None:
            raise InterruptedRunError(status)

    def show_progress(self, name: str, done: int, total: int | None) -> None:
        """Report how many bytes of a file have arrived.

        Raises: InterruptedRunError if a signal arrived.
        """
        self.check_stop()
        self.notify("download_progress", {"file": name, "bytes": done, "bytes_total": total})


# Events of every command


class StartEvent(TypedDict):
    """A command starts. Always first."""

    version: str
    inputs: list[str]


class WarningEvent(TypedDict):
    """Something is not as expected; the command continues."""

    code: str  # stable, W_...; docs/troubleshooting.md lists them
    message: str
    input: NotRequired[str]  # from `run`


class ErrorEvent(TypedDict):
    """A file or the command failed."""

    code: str
    exit: int
    message: str
    hint: str  # what to do; may be empty
    input: str


class ProgressEvent(TypedDict):
    """Frames are done; --json shows at most two per second and file."""

    input: str
    frame: int
    frames_estimate: int | None
    fps: float
    eta_seconds: float | None


class DownloadEvent(TypedDict):
    """A download of weights starts."""

    model: str
    weights: str
    file: str
    source: str
    megabytes: float | None
    license: str
    notice: str
    verification: str  # pinned, partly or unpinned


class DownloadProgressEvent(TypedDict):
    """Bytes of a download have arrived."""

    file: str
    bytes: int
    bytes_total: int | None


class DownloadDoneEvent(TypedDict):
    """Downloaded weights are in the cache."""

    model: str
    weights: str
    file: str
    sha256: str
    verification: str
    path: str


class DoneEvent(TypedDict):
    """The command ends. Always last."""

    exit: int
    files_ok: int
    files_failed: int
    seconds: float


# Events of `run`


class ProbeEvent(TypedDict):
    """An input is open."""

    input: str
    width: int
    height: int
    frames_estimate: int | None
    duration: float | None  # seconds
    vfr: bool  # variable frame rate
    streams: list[str]  # such as audio:aac
    color: dict[str, int]  # numbers of ITU-T H.273: primaries, transfer, matrix, range


class FirstPassEvent(TypedDict):
    """`--only-blurred` reads the input once before it is restored."""

    input: str
    frames_estimate: int | None


class FirstPassProgressEvent(ProgressEvent):
    """Frames are measured in the first pass; --json shows at most two per second and file."""


class ChoiceEvent(TypedDict):
    """`-m best` or `-m auto` has chosen a model.

    Of auto alone: asked; strength; footage: real, strong, sharp, soft, defocus, noise or unknown; passed_over: better
    models, each with the reason.
    """

    model: str
    reason: str
    asked: NotRequired[str]
    strength: NotRequired[float]
    footage: NotRequired[str]
    passed_over: NotRequired[list[str]]


class PlanEvent(TypedDict):
    """The plan for a file; sent before the work."""

    input: str
    model: str
    device: str
    precision: str
    tile: str
    only_blurred: bool
    guard: bool
    segments: int | None
    frames_done: int  # by an earlier run
    keep: list[str]
    convert: list[str]
    drop: list[str]
    drop_reasons: list[str]  # one for each stream of drop
    frames_estimate: int | None
    frames_counted: bool  # whether frames_estimate is a count
    dry_run: bool
    output: str
    container: str  # FFmpeg's name, or pictures
    encoder: str
    pixel_format: str
    quality: str  # such as "crf 16, preset medium"
    restored_share: NotRequired[float | None]  # of the picture, by --region and --mask; None: all of it
    seconds_estimate: float | None  # for the whole run, and bytes_estimate of its output; only in a dry run
    bytes_estimate: int | None
    input_bytes: int | None
    download_megabytes: float | None  # of weights that only the run downloads; 0: nothing, None: unknown
    reasons: dict[str, str]  # why a decision is as it is, by its key


class SegmentEvent(TypedDict):
    """A segment is finished; a later run will not repeat it."""

    input: str
    index: int
    first: int  # number of its first frame
    last: int


class FileDoneEvent(TypedDict):
    """The output is in place."""

    input: str
    output: str
    frames: int
    seconds: float
    fps: float
    warnings: NotRequired[list[str]]  # codes; this and the following not from `compare`
    status: NotRequired[str]  # restored
    change: NotRequired[dict[str, object] | None]  # how much frames changed; restore/changes.py has its keys
    guarded: NotRequired[int]  # frames in which the network failed, so that parts of them stay as they were
    only_blurred: NotRequired[dict[str, object] | None]  # frames, restored, mean_strength; None without --only-blurred


class FileSkippedEvent(TypedDict):
    """`--skip-existing` skipped a file."""

    input: str
    output: str
    status: str  # skipped


class OffsetEvent(TypedDict):
    """A comparison has found that one video is an excerpt of the other."""

    a: str
    b: str
    seconds: float  # from a's first frame to b's; negative where a is the excerpt
    certain: bool  # whether no other place fits nearly as well


class ComparisonEvent(TypedDict):
    """`--compare` has written its file."""

    input: str
    output: str
    mode: str


class SampleEvent(TypedDict):
    """`--sample` is done. The estimates are for the complete input."""

    input: str
    output: str
    frames: int
    seconds_estimate: float | None
    bytes_estimate: int | None
    candidates: NotRequired[list["CandidateRow"]]  # on a page, with -m auto


class CandidateRow(TypedDict):
    """A model on the page of candidates, with estimates for the complete input."""

    model: str
    strength: float
    is_chosen: bool
    seconds_estimate: float | None
    bytes_estimate: int | None


class StillEvent(TypedDict):
    """`still` is done. at: when its frame is shown, in seconds from the video's start.

    neighbours: frames that were combined with it. share: of the picture that comes from them, 0 to 1.
    """

    input: str
    output: str
    at: float
    model: str
    neighbours: int
    share: float
    seconds: float
    warnings: list[str]


class ProfileEvent(TypedDict):
    """The results of `--profile`."""

    input: str
    seconds: dict[str, float]  # by stage
    peak_memory_bytes: int | None
    peak_device_bytes: int | None


class EngineEvent(TypedDict):
    """Ray has started."""

    engine: str
    workers: int
    tasks: int


class FileEvent(TypedDict):
    """The next one of several files is at work."""

    input: str
    output: str
    number: int  # from 1
    files: int  # in all


class BatchRow(TypedDict):
    """One file of a BatchEvent."""

    input: str
    output: str
    result: str  # the status, or failed: REASON
    status: str  # restored, planned, skipped, stopped or failed
    frames: int
    seconds: float
    warnings: int


class BatchEvent(TypedDict):
    """A run of several files ends."""

    files: list[BatchRow]
    total: dict[str, object]  # the number of files, in all and by status; frames; seconds


# Events of `bench`


class DatasetDownloadEvent(TypedDict):
    """A download of a data set starts."""

    dataset: str
    split: str
    file: str
    source: str
    license: str
    megabytes: float | None
    verification: str


class DatasetDoneEvent(TypedDict):
    """The pictures of a data set are in the cache."""

    dataset: str
    split: str
    path: str


class BenchEvent(TypedDict):
    """The data set is open."""

    title: str
    known: bool
    layout: str
    split: str
    blur: str
    complete: bool
    sequences: int
    frames: int
    decoder: str
    protocol: str
    models: list[str]


class BenchModelEvent(TypedDict):
    """The measurement of a model starts."""

    model: str
    precision: str
    device: str
    finished: int  # sequences that an earlier run measured
    sequences: int


class SequenceDoneEvent(TypedDict):
    """A model was measured on a sequence."""

    model: str
    sequence: str
    psnr: float | None  # dB; None if the frames are equal
    ssim_2d: float | None
    ssim_3d: float | None


class BenchKeptEvent(TypedDict):
    """The bench was interrupted; the same command continues after these sequences."""

    sequences: int


class MeasuringEvent(TypedDict):
    """`bench --speed` starts a measurement. Never in --json, which prints the report alone."""

    model: str
    precision: str
    part: str
    number: NotRequired[int]  # of this part, from 1
    parts: NotRequired[int]  # in all
    seconds: NotRequired[float]  # since it began, while it takes long


# Events of `train`


class TrainingEvent(TypedDict):
    """A training starts."""

    model: str
    stage: str | None
    dataset: str
    sequences: int
    frames: int
    validation_sequences: int
    device: str
    precision: str
    processes: int
    update: int  # where it continues
    iterations: int
    parameters: int


class CacheProgressEvent(TypedDict):
    """`--cache` writes the memory map of a sequence."""

    sequence: str
    sequences: int
    sequences_total: int


class TrainProgressEvent(TypedDict):
    """Means since the last event. Further keys are the losses by name."""

    update: int
    iterations: int
    seconds: float
    loss: NotRequired[float]  # missing in a validation before the first update
    rate: float
    clips_per_second: float
    step_clips_per_second: float
    loader_clips_per_second: float
    updates_per_second: float
    waited_share: float
    eta_seconds: float | None


class ValidationEvent(TrainProgressEvent, total=False):
    """A validation, with either a score or a loss.

    untouched: PSNR of frames that were sharp already, in dB; None if there are none. mild_gain: gain of frames with
    little blur, in dB, where the recipe leaves them out of the score.
    """

    blurry: float
    psnr: float  # dB; in --json null if all frames are equal
    ssim: float
    untouched: float | None
    mild_gain: float | None
    frames: int
    validation_loss: float  # of a network that does not restore yet, instead of the score


class TrainedEvent(TypedDict):
    """The training ends."""

    update: int
    best: float
    best_update: int
    out: str
    model: str
    measure: str  # psnr or loss


# Events of `synth`


class SynthPlanEvent(TypedDict):
    """The plan; sent before the work. train, test: sources."""

    output: str
    way: str
    sources: list[dict[str, object]]
    train: int
    test: int


class SequenceMadeEvent(TypedDict):
    """A sequence is in place."""

    sequence: str
    split: str
    frames: int


class SynthDoneEvent(TypedDict):
    """The data set is complete. train, test: sequences."""

    output: str
    frames: int
    seconds: float
    train: int
    test: int


EVENTS: dict[str, type] = {
    "start": StartEvent,
    "warning": WarningEvent,
    "error": ErrorEvent,
    "progress": ProgressEvent,
    "download": DownloadEvent,
    "download_progress": DownloadProgressEvent,
    "download_done": DownloadDoneEvent,
    "done": DoneEvent,
    "probe": ProbeEvent,
    "choice": ChoiceEvent,
    "first_pass": FirstPassEvent,
    "first_pass_progress": FirstPassProgressEvent,
    "plan": PlanEvent,
    "segment": SegmentEvent,
    "file_done": FileDoneEvent,
    "file_skipped": FileSkippedEvent,
    "comparison": ComparisonEvent,
    "offset": OffsetEvent,
    "sample": SampleEvent,
    "still": StillEvent,
    "profile": ProfileEvent,
    "engine": EngineEvent,
    "file": FileEvent,
    "batch": BatchEvent,
    "dataset_download": DatasetDownloadEvent,
    "dataset_done": DatasetDoneEvent,
    "bench": BenchEvent,
    "bench_model": BenchModelEvent,
    "sequence_done": SequenceDoneEvent,
    "bench_kept": BenchKeptEvent,
    "report": dict,  # the report of `bench`; bench/results.py defines it
    "measuring": MeasuringEvent,
    "training": TrainingEvent,
    "cache_progress": CacheProgressEvent,
    "train_progress": TrainProgressEvent,
    "validation": ValidationEvent,
    "trained": TrainedEvent,
    "synth_plan": SynthPlanEvent,
    "sequence_made": SequenceMadeEvent,
    "synth_done": SynthDoneEvent,
}
