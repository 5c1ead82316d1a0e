"""What a bench measures: by frame, sequence and model."""

from dataclasses import dataclass, field
from pathlib import Path

from vdeblur.bench.contenders import Contender
from vdeblur.measure import protocols
from vdeblur.measure.protocols import Quality


@dataclass(frozen=True)
class BenchTask:
    """What `vdeblur bench` is told; the defaults are the command line's."""

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


@dataclass(frozen=True)
class FrameResult:
    """One frame: its name, its figures, the seconds since the one before was given, how sharp it is by itself."""

    name: str
    psnr: float
    ssim_2d: float | None
    ssim_3d: float | None
    seconds: float
    sharpness: float


@dataclass(frozen=True)
class SequenceResult:
    """One sequence: the frames that count; seconds for all that were restored, peak memory in bytes (None: not known).

    vmaf: the mean over frames, None unless asked for. saved: the folder of the restored frames.
    """

    name: str
    frames: tuple[FrameResult, ...]
    restored: int
    seconds: float
    memory_bytes: int | None
    warping_error: float | None
    vmaf: float | None = None
    saved: str | None = None

    @property
    def quality(self) -> Quality:
        """Average over the frames."""
        return protocols.mean([Quality(one.psnr, one.ssim_2d, one.ssim_3d) for one in self.frames])


@dataclass
class ModelResult:
    """One contender on all sequences; flops: for a frame of the first one's size."""

    contender: Contender
    flops: float | None
    sequences: list[SequenceResult] = field(default_factory=list)
