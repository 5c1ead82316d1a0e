"""What is known of a source before its first frame is decoded."""

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from vdeblur.source.hdr import Hdr


@dataclass
class SourceInfo:
    """What is known of a source before its first frame is decoded.

    frames_estimate: None where nothing is known. picture_format: planar, as the frames will have it. hdr: what there is
    beyond the colour tags. display_matrix: FFmpeg's nine numbers of rotation and mirroring, or nothing. interlaced:
    whether the first frame is. field_order: FFmpeg's number (AV_FIELD_*).
    """

    path: Path
    width: int
    height: int
    picture_format: str
    codec: str
    time_base: Fraction
    rate: Fraction
    frames_estimate: int | None
    duration_seconds: Fraction | None
    rotation: int = 0
    display_matrix: tuple[int, ...] = ()
    sample_aspect_ratio: Fraction | None = None
    variable_rate: bool = False  # as far as the container tells
    streams: list[str] = field(default_factory=list)
    color: dict[str, int] = field(default_factory=dict)
    hdr: Hdr = field(default_factory=Hdr)
    interlaced: bool = False
    field_order: int = 0
