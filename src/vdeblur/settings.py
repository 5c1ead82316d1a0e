"""What a run is told."""

from dataclasses import dataclass, field
from pathlib import Path

from vdeblur.decode import Cut
from vdeblur.encode import EncodeOptions


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
    strict: bool = False  # a frame that cannot be restored is an error
    deterministic: bool = False  # the same plan in every run on a machine, whatever else is going on there
    pictures: bool = False  # write a folder of pictures, whatever the output's name looks like
    cut: Cut = field(default_factory=Cut)
    encoding: EncodeOptions = field(default_factory=EncodeOptions)
