"""Turn pictures upright, by EXIF's orientation or a video's display matrix."""

import math
import struct
from fractions import Fraction

import av
from av.filter import Graph

from vdeblur.frame import layout_of, to_planar
from vdeblur.source.side_data import run_filter, side_data_of

# EXIF's orientation to FFmpeg's filters. 6: the camera was held so that the picture must be turned clockwise.
TURNS: dict[int, tuple[tuple[str, str], ...]] = {
    1: (),
    2: (("hflip", ""),),
    3: (("transpose", "clock"), ("transpose", "clock")),  # not vflip, which stores lines upwards: numpy cannot read it
    4: (("transpose", "cclock_flip"), ("transpose", "cclock")),
    5: (("transpose", "cclock_flip"),),  # along the main diagonal
    6: (("transpose", "clock"),),
    7: (("transpose", "clock_flip"),),
    8: (("transpose", "cclock"),),
}
# Signs of a display matrix's a, b, c, d, which move (x, y) to (a x + c y, b x + d y), to EXIF's orientation.
ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}
DISPLAY_MATRIX = 6  # AV_FRAME_DATA_DISPLAYMATRIX


def display_matrix(picture: av.VideoFrame) -> tuple[int, ...]:
    """Return a decoded frame's display matrix, nine integers; empty where it has none."""
    found = side_data_of(picture).get("DISPLAYMATRIX")
    return struct.unpack("=9i", found[0]) if found else ()


def matrix_orientation(matrix: tuple[int, ...]) -> int:
    """Return EXIF's orientation, 1 to 8, of a display matrix (see SourceInfo); 1 where it is empty or oblique."""
    if not matrix:
        return 1
    a, b, _, c, d = matrix[:5]
    scale = math.hypot(a, b) or 1
    return ORIENTATIONS.get((round(a / scale), round(b / scale), round(c / scale), round(d / scale)), 1)


def turn_upright(picture: av.VideoFrame, orientation: int) -> av.VideoFrame:
    """Return a picture turned by EXIF's orientation, and without a display matrix; its other side data stay.

    Samples are moved, not interpolated, except for chroma that is coarser along one axis only, or that does not fill
    whole blocks at the edges: it becomes 4:4:4.
    """
    if orientation == 1 and not picture.rotation:
        return picture
    layout = layout_of(picture.format.name)
    if orientation != 1 and layout is not None:
        is_uneven = layout.log2_width != layout.log2_height
        is_cut = picture.width % (1 << layout.log2_width) or picture.height % (1 << layout.log2_height)
        if is_uneven or is_cut:
            picture = _in_full_chroma(picture)
    graph = Graph()
    source = graph.add_buffer(
        width=picture.width, height=picture.height, format=picture.format, time_base=Fraction(1, 1000)
    )
    turns = [graph.add(name, arguments) for name, arguments in TURNS[orientation]]
    clean = graph.add("sidedata", f"mode=delete:type={DISPLAY_MATRIX}")
    graph.link_nodes(source, *turns, clean, graph.add("buffersink")).configure()
    turned = run_filter(graph, picture)
    assert turned.format.name == picture.format.name, "the filters take every format with equal subsampling"
    return turned


def _in_full_chroma(picture: av.VideoFrame) -> av.VideoFrame:
    name = picture.format.name
    for chroma in ("420", "422", "440", "411", "410"):
        name = name.replace(chroma, "444")
    return to_planar(picture, name)
