"""What a run is told."""

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path


@dataclass(frozen=True)
class EncodeOptions:
    """What a user may ask of the encoder and the container; see `vdeblur run --help`."""

    codec: str | None = None
    crf: float = 16.0
    preset: str = "medium"
    options: tuple[tuple[str, str], ...] = ()
    pix_fmt: str = "keep"
    lossless: bool = False
    overwrite: bool = False
    format: str | None = None  # of the container; None: by the output's name
    audio: bool = True
    subtitles: bool = True
    deinterlace: str = "auto"


@dataclass(frozen=True)
class Cut:
    """The part of a video that is wanted: seconds from its first frame, and at most so many frames."""

    start: Fraction | None = None
    stop: Fraction | None = None
    frames: int | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing is cut off."""
        return self.start is None and self.stop is None and self.frames is None


@dataclass(frozen=True)
class Settings:
    """What `vdeblur run` is told; the defaults are the command line's."""

    model: str = "lite"
    checkpoint: Path | None = None
    yes: bool = False  # take weights whose authors published no digest
    offline: bool = False
    device: str = "auto"
    precision: str = "auto"
    tile: str = "auto"
    tile_overlap: int | None = None  # None: the network's own
    scene_detect: bool = True
    strength: float = 1.0
    pictures: bool = False  # write a folder of pictures, whatever the output's name looks like
    cut: Cut = field(default_factory=Cut)
    encoding: EncodeOptions = field(default_factory=EncodeOptions)
    resume: bool = True  # go on with what an interrupted run has finished
    segment: Fraction | None = Fraction(10)  # seconds that are finished and kept as a whole; None: all of it
    share: tuple[int, int] | None = None  # make only every n-th segment, from the k-th on (k, n), and no output
    deterministic: bool = False  # the same bytes from the same input on the same machine
    strict: bool = False  # warnings are errors
    fail_on_damage: bool = False  # a damaged or cut off input is an error in the end
    dry_run: bool = False  # plan only
    profile: bool = False  # measure seconds per stage and peak memory
    compare: str | None = None  # beside the output, put the input and it together: one of compare.py's modes, or html
    sample: bool = False  # restore three short samples, and show them beside the input
