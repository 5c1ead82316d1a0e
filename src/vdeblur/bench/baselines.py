"""FFmpeg's sharpening filters, the baselines in every table of a bench.

Neither knows about motion. Their parameters are what people type: unsharp with its defaults (luma over 5x5 pixels by an
amount of 1, chroma unchanged), cas (contrast adaptive sharpening, after AMD's FidelityFX) at half strength, since its
default of 0 is hardly visible.

cas works on RGB. unsharp works on Y'CbCr, so FFmpeg converts RGB to 8-bit Y'CbCr and back, which alone moves samples by
up to 2 codes. That is what users of FFmpeg get, so it stays.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from itertools import pairwise

import av
import av.filter

UNSHARP = ("unsharp", "luma_msize_x=5:luma_msize_y=5:luma_amount=1:chroma_amount=0")
CAS = ("cas", "strength=0.5")

Filter = tuple[str, str]  # a filter's name and its options
Baseline = Callable[[Iterator[av.VideoFrame]], Iterator[av.VideoFrame]]


def filtered(frames: Iterator[av.VideoFrame], sharpening: Filter, deep: str | None = None) -> Iterator[av.VideoFrame]:
    """Yield every frame filtered, with its own time, format and colour tags.

    deep: the format that frames of more than 8 bits get before the filter; None keeps theirs.
    """
    graph: av.filter.Graph | None = None
    shape: tuple[object, ...] = ()
    for frame in frames:
        if graph is None or shape != (frame.width, frame.height, frame.format.name):
            shape = (frame.width, frame.height, frame.format.name)
            graph = _make_graph(frame, sharpening, deep)
        graph.push(frame)
        result = graph.pull()  # both filters return one frame per frame
        assert isinstance(result, av.VideoFrame)
        result.pts, result.duration = frame.pts, frame.duration
        if frame.time_base:
            result.time_base = frame.time_base
        result.colorspace, result.color_range = frame.colorspace, frame.color_range
        result.color_primaries, result.color_trc = frame.color_primaries, frame.color_trc
        yield result


def _make_graph(frame: av.VideoFrame, sharpening: Filter, deep: str | None) -> av.filter.Graph:
    graph = av.filter.Graph()
    time_base = frame.time_base or Fraction(1, 25)
    links = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=time_base)]
    if deep and max(part.bits for part in frame.format.components) > 8:
        links.append(graph.add("format", deep))
    links += [graph.add(*sharpening), graph.add("format", frame.format.name), graph.add("buffersink")]
    for before, after in pairwise(links):
        before.link_to(after)
    graph.configure()
    return graph


BASELINES: dict[str, Baseline] = {
    # Above 8 bits FFmpeg 8.1 sharpens by a 256th of the amount (measured at 10 and 16 bits; 9.0 is right).
    "unsharp": partial(filtered, sharpening=UNSHARP, deep="yuv444p"),
    "cas": partial(filtered, sharpening=CAS),
}
