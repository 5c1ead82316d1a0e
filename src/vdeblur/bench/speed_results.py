"""Results of `vdeblur bench --speed`; `SpeedReport.to_json` makes the object that docs/json.md describes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SpeedTask:
    """The measurements that bench --speed makes: each model in each precision, on a clip made for them.

    models: unsharp and cas may be among them. size: WIDTHxHEIGHT, even. frames: of the clip. references: scripts to
    compare with, see speed.time_reference. repeats: measurements of each, of which the median counts.
    """

    models: Sequence[str]
    precisions: Sequence[str] = ("auto",)
    size: str = "1280x720"
    frames: int = 60
    device: str = "auto"
    references: Sequence[Path] = ()
    repeats: int = 1


@dataclass(frozen=True)
class NetworkSeconds:
    """The time from one restored frame to the next. p95: the 95th percentile."""

    median: float
    p95: float


@dataclass(frozen=True)
class NetworkSpeed:
    """A network alone, or a filter.

    flops: per frame, None if not counted. network_fps: frames over the seconds of the whole clip (networks that restore
    windows return many frames at once). network_cpu_seconds: processor time per frame. network_memory_bytes: the
    process's peak. stages: seconds per frame between decoder and encoder.
    """

    precision: str
    trained: bool
    params: int
    flops: float | None
    network_fps: float
    network_seconds: NetworkSeconds
    network_cpu_seconds: float
    network_memory_bytes: int | None
    network_device_memory_bytes: int | None
    stages: dict[str, float]


@dataclass(frozen=True)
class PipelineSpeed:
    """A whole run. memory_bytes, device_memory_bytes: the process's peaks, None without a CUDA device."""

    pipeline_fps: float
    memory_bytes: int | None
    device_memory_bytes: int | None


@dataclass(frozen=True)
class CodecSpeed:
    """Decoder and encoder, each alone."""

    decoder_fps: float
    encoder_fps: float


@dataclass(frozen=True)
class ModelSpeed:
    """One model in one precision.

    allowed_fps: what network, decoder and encoder allow together. share: how much of it the run reaches. ratio: the
    network's rate over the first model's. reference_ratios: over each reference, by its name.
    """

    model: str
    precision: str
    network_fps: float
    pipeline_fps: float
    decoder_fps: float
    encoder_fps: float
    stages: dict[str, float]
    peak_memory_bytes: int | None
    peak_device_memory_bytes: int | None
    trained: bool
    params: int
    flops: float | None
    network_seconds: NetworkSeconds
    network_cpu_seconds: float
    network_memory_bytes: int | None
    network_device_memory_bytes: int | None
    allowed_fps: float
    share: float
    ratio: float = 1.0
    reference_ratios: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ReferenceSpeed:
    """Something else that a script measured."""

    name: str
    seconds_per_frame: float


@dataclass(frozen=True)
class SpeedReport:
    """Everything that `vdeblur bench --speed` measured; every number is the median of `repeats` measurements."""

    device: str
    device_name: str
    threads: int
    versions: dict[str, str]
    size: str
    frames: int
    warm_up_frames: int
    repeats: int
    models: list[ModelSpeed]
    references: list[ReferenceSpeed]

    def to_json(self) -> dict[str, Any]:
        """Return the report as docs/json.md describes it."""
        return {"v": 1, **asdict(self)}
