"""Results of a bench: by frame, by sequence, by model, and the report of all.

A report stays a dataclass until it is written; `BenchReport.to_json` makes the object that docs/json.md describes.
"""

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vdeblur.events import without_infinities
from vdeblur.measure import protocols
from vdeblur.measure.protocols import Protocol, Quality
from vdeblur.models.registry import PublishedScore, PublishedTime


@dataclass(frozen=True)
class BenchTask:
    """The options of `vdeblur bench`; the defaults are the command line's.

    restored: folders of restored pictures to measure, see existing.py.
    """

    dataset: str
    models: tuple[str, ...] = ("lite",)
    protocol: str = "plain"
    split: str | None = None
    limit: int | None = None
    data: Path | None = None
    save: Path | None = None
    vmaf: bool = False
    device: str = "auto"
    precision: str = "auto"
    yes: bool = False
    offline: bool = False
    restored: tuple[Path, ...] = ()


@dataclass(frozen=True)
class FrameResult:
    """The scores of one frame.

    psnr: dB, NaN without a sharp frame. seconds: since the model returned the frame before, None if nothing was
    restored. sharpness: 0 to 1, without a reference.
    """

    name: str
    psnr: float
    ssim_2d: float | None
    ssim_3d: float | None
    seconds: float | None
    sharpness: float

    @property
    def rank(self) -> float:
        """The number that the best and the worst frames have most and least of."""
        return self.sharpness if math.isnan(self.psnr) else self.psnr


@dataclass(frozen=True)
class SequenceResult:
    """The scores of one sequence.

    frames: those that the protocol counts. restored: number of all restored frames. seconds: for all restored frames,
    None for pictures that existed already.
    memory_bytes: the peak, None if unknown. vmaf: the mean over frames, None unless asked for. saved: the folder of the
    restored frames.
    """

    name: str
    frames: tuple[FrameResult, ...]
    restored: int
    seconds: float | None
    memory_bytes: int | None
    warping_error: float | None
    vmaf: float | None = None
    saved: str | None = None

    @cached_property
    def quality(self) -> Quality:
        """The mean over the frames."""
        return _mean_quality(self.frames)

    @property
    def seconds_per_frame(self) -> float | None:
        """The mean over all restored frames."""
        return None if self.seconds is None else self.seconds / self.restored


@dataclass(frozen=True)
class ModelResult:
    """The scores of one model on all sequences.

    weights, weights_sha256: empty for models without weights. flops: for one frame of the first sequence's size.
    published: the score that was published for this data set and this protocol, of the weights published_of: these, or
    for imported ones those of the paper. published_time: the time that was published. other_protocols: the names of the
    protocols by which scores were published, if not by this one.
    """

    model: str
    weights: str
    weights_sha256: str
    precision: str
    params: int
    flops: float | None
    published: PublishedScore | None
    other_protocols: tuple[str, ...]
    sequences: tuple[SequenceResult, ...]
    published_of: str = ""
    published_time: PublishedTime | None = None

    @property
    def frames(self) -> int:
        """The number of frames that count."""
        return sum(len(sequence.frames) for sequence in self.sequences)

    @cached_property
    def quality(self) -> Quality:
        """The mean over the frames of all sequences, as the papers' tables have it."""
        return _mean_quality([frame for sequence in self.sequences for frame in sequence.frames])

    @property
    def mean_of_videos(self) -> Quality:
        """The mean over the sequences, however long each is."""
        return protocols.mean([sequence.quality for sequence in self.sequences])

    @property
    def vmaf(self) -> float | None:
        """The mean over the frames; None unless asked for."""
        return _weighted_mean([(sequence.vmaf, len(sequence.frames)) for sequence in self.sequences])

    @property
    def warping_error(self) -> float | None:
        """The mean over the sequences, weighted by their frames; None if no two neighbours were measured."""
        return _weighted_mean([(sequence.warping_error, len(sequence.frames)) for sequence in self.sequences])

    @property
    def sharpness(self) -> float:
        """The mean over the frames."""
        return math.fsum(frame.sharpness for sequence in self.sequences for frame in sequence.frames) / self.frames

    @property
    def seconds_per_frame(self) -> float | None:
        """The mean over all restored frames; None for pictures that existed already."""
        return _weighted_mean([(sequence.seconds_per_frame, sequence.restored) for sequence in self.sequences])

    @property
    def peak_memory_bytes(self) -> int | None:
        """The largest peak of a sequence; None if no peak is known."""
        known = [sequence.memory_bytes for sequence in self.sequences if sequence.memory_bytes is not None]
        return max(known, default=None)


@dataclass(frozen=True)
class DatasetFacts:
    """The measured data set, as reports and the event `bench` describe it.

    known: it is a set of datasets.toml. complete: it has every frame of its split. decoder: how its pictures are
    decoded.
    """

    title: str
    known: bool
    layout: str
    split: str
    blur: str
    complete: bool
    sequences: int
    frames: int
    decoder: str


@dataclass(frozen=True)
class ExampleFrame:
    """One of a model's worst or best frames, and the files of its pictures. kind: "worst" or "best"."""

    model: str
    weights: str
    sequence: str
    frame: str
    kind: str
    blurry: Path
    restored: Path
    sharp: Path


@dataclass(frozen=True)
class ProfilePictures:
    """The temporal profile of a model on a sequence, and the sharp frames' profile, as files; see profiles.py."""

    model: str
    weights: str
    sequence: str
    restored: Path
    sharp: Path


@dataclass(frozen=True)
class BenchReport:
    """Everything that a bench measured.

    precision: of the models that the user named. examples, profiles: for the HTML page; their restored pictures exist
    only until the bench ends. missing: models that could not be measured, each with the reason.
    """

    dataset: DatasetFacts
    protocol: Protocol
    device: str
    device_name: str
    precision: str
    versions: dict[str, str]
    models: tuple[ModelResult, ...]
    examples: tuple[ExampleFrame, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    profiles: tuple[ProfilePictures, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the report as docs/json.md describes it; infinite numbers (PSNR of equal frames) become None."""
        report: dict[str, Any] = without_infinities(
            {
                "v": 1,
                "dataset": self.dataset.title,
                "dataset_details": asdict(self.dataset),
                "protocol": self.protocol.name,
                "protocol_details": {"description": self.protocol.description, **asdict(self.protocol)},
                "device": self.device,
                "device_name": self.device_name,
                "precision": self.precision,
                "versions": self.versions,
                "models": [_model_to_json(model) for model in self.models],
                "missing": [{"model": name, "reason": reason} for name, reason in self.missing],
            }
        )
        return report


def _model_to_json(model: ModelResult) -> dict[str, Any]:
    return {
        "model": model.model,
        "weights": model.weights,
        "weights_sha256": model.weights_sha256,
        "precision": model.precision,
        "frames": model.frames,
        **asdict(model.quality),
        "mean_of_videos": asdict(model.mean_of_videos),
        "vmaf": model.vmaf,
        "warping_error": model.warping_error,
        "sharpness": model.sharpness,
        "seconds_per_frame": model.seconds_per_frame,
        "peak_memory_bytes": model.peak_memory_bytes,
        "params": model.params,
        "flops": model.flops,
        "published": None if model.published is None else _published_to_json(model.published, model.published_of),
        "published_time": None if model.published_time is None else asdict(model.published_time),
        "other_protocols": list(model.other_protocols),
        "sequences": [_sequence_to_json(sequence) for sequence in model.sequences],
    }


def _published_to_json(score: PublishedScore, weights: str) -> dict[str, Any]:
    facts = {name: getattr(score, name) for name in ("psnr", "ssim", "ssim_kind", "protocol", "data")}
    return {**facts, "weights": weights}


def _sequence_to_json(sequence: SequenceResult) -> dict[str, Any]:
    return {
        "name": sequence.name,
        "frames": len(sequence.frames),
        **asdict(sequence.quality),
        "seconds_per_frame": sequence.seconds_per_frame,
        "warping_error": sequence.warping_error,
        "vmaf": sequence.vmaf,
        "per_frame": [asdict(frame) for frame in sequence.frames],
        **({"saved": sequence.saved} if sequence.saved else {}),
    }


def _mean_quality(frames: list[FrameResult] | tuple[FrameResult, ...]) -> Quality:
    return protocols.mean([Quality(frame.psnr, frame.ssim_2d, frame.ssim_3d) for frame in frames])


def _weighted_mean(values: list[tuple[float | None, int]]) -> float | None:
    """Return the mean of values weighted by their numbers of frames; None if there is no value."""
    known = [(value, frames) for value, frames in values if value is not None]
    return math.fsum(value * frames for value, frames in known) / sum(frames for _, frames in known) if known else None
