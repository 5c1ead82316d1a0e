"""The properties of a source."""

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from vdeblur.source.hdr import Hdr


@dataclass
class SourceInfo:
    """The properties of a source, from its header and first frame.

    picture_format: planar, as the frames will have it. rate: frames per second. frames_estimate, duration_seconds: None
    if unknown. rotation: degrees, counterclockwise. display_matrix: FFmpeg's nine numbers of rotation and mirroring, or
    empty. variable_rate: as far as the header tells. streams: "type:codec" of each stream. color: FFmpeg's numbers of
    primaries, transfer, matrix and range. interlaced: whether the first frame is. field_order: AV_FIELD_*.
    chroma_location: a key of frame.CHROMA_LOCATIONS, or empty. cropping: columns at the left and right, lines at the
    top and bottom that the container hides, so that frames come without them. captions: whether the first frame has
    closed captions. stereo, spherical: see StreamProperties.
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
    variable_rate: bool = False
    streams: list[str] = field(default_factory=list)
    color: dict[str, int] = field(default_factory=dict)
    hdr: Hdr = field(default_factory=Hdr)
    interlaced: bool = False
    field_order: int = 0
    chroma_location: str = ""
    cropping: tuple[int, int, int, int] = (0, 0, 0, 0)
    captions: bool = False
    stereo: str = ""
    spherical: str = ""
