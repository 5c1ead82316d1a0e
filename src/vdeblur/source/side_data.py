"""Read the side data of a decoded frame: what a file stores beside its samples."""

from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction
from typing import cast

import av
from av.filter import Graph
from av.sidedata.sidedata import SideData, Type

# What vdeblur reads, in PyAV's names for AV_FRAME_DATA_*.
READ = ("DISPLAYMATRIX", "MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL", "DYNAMIC_HDR_PLUS", "DYNAMIC_HDR_VIVID",
        "DOVI_METADATA", "DOVI_RPU_BUFFER", "A53_CC", "STEREO3D", "SPHERICAL")  # fmt: skip
KINDS = 64  # more than FFmpeg has, 32 in version 8.1


def side_data_of(picture: av.VideoFrame) -> dict[str, list[bytes]]:
    """Return a frame's side data of the kinds in READ, by their names.

    PyAV's own `side_data` raises ValueError where one kind is newer than its list of names (EXIF, and the view of 3D
    video), and ends the process where one has metadata (ICC profiles: PyAV frees it twice). So a filter first removes
    all kinds that are not read here, from a copy that shares the samples.
    """
    known = {int(cast(int, Type[name].value)) for name in READ}
    graph = Graph()
    nodes = [
        graph.add_buffer(width=picture.width, height=picture.height, format=picture.format, time_base=Fraction(1, 1000))
    ]
    nodes += [graph.add("sidedata", f"mode=delete:type={kind}") for kind in range(KINDS) if kind not in known]
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()
    found = defaultdict(list)
    reduced = run_filter(graph, picture)
    for data in cast(Iterable[SideData], reduced.side_data):  # iterates over values, though it calls itself a mapping
        found[data.type.name].append(bytes(data))
    return dict(found)


def run_filter(graph: Graph, picture: av.VideoFrame) -> av.VideoFrame:
    """Return a frame as a graph without delay makes it; both keep the frame's time."""
    pts, time_base = picture.pts, picture.time_base
    picture.pts, picture.time_base = 0, Fraction(1, 1000)
    graph.push(picture)
    result = graph.pull()
    assert isinstance(result, av.VideoFrame)
    for each in (picture, result):
        each.pts = pts
        if time_base:  # decoded frames have none, and it cannot be unset
            each.time_base = time_base
    return result
