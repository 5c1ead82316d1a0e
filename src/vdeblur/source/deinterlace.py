"""Interlaced frames to progressive ones: a frame for a frame, each with its own time.

The filter is FFmpeg's bwdif (Bob Weaver): the lines of one field are kept, the other's are made from their neighbours
in space and time.
"""

from collections import deque
from collections.abc import Iterator
from typing import overload

import av
import av.error
from av.filter import Graph

from vdeblur.errors import InputError
from vdeblur.events import Warn
from vdeblur.frame import Frame
from vdeblur.source.info import SourceInfo


class Deinterlacer:
    """Frames through bwdif, which holds one back to look ahead."""

    def __init__(self, first: Frame, every: bool) -> None:
        """Make a filter for frames like the first; every: not only those that are flagged as interlaced."""
        picture = first.picture
        self.format = picture.format.name
        self.waiting: deque[Frame] = deque()
        self.graph = Graph()
        source = self.graph.add_buffer(
            width=picture.width, height=picture.height, format=picture.format, time_base=first.time_base
        )
        which = "all" if every else "interlaced"
        bwdif = self.graph.add("bwdif", f"mode=send_frame:parity=auto:deint={which}")
        self.graph.link_nodes(source, bwdif, self.graph.add("buffersink")).configure()

    def feed(self, frame: Frame | None) -> Iterator[Frame]:
        """Take a frame, or None at the end; give those that are ready."""
        if frame is not None:
            self.waiting.append(frame)
            frame.picture.pts, frame.picture.time_base = frame.pts, frame.time_base
        self.graph.push(frame.picture if frame is not None else None)
        while True:
            try:
                picture = self.graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            assert isinstance(picture, av.VideoFrame)
            if picture.format.name != self.format:
                raise InputError(f"{self.format} cannot be deinterlaced here", "use --deinterlace off")
            frame = self.waiting.popleft()  # the filter doubles the time base; a frame's own time is better
            yield Frame(picture, frame.pts, frame.time_base, frame.name)


def warn_of_interlacing(info: SourceInfo, mode: str, warn: Warn) -> None:
    """Say before the work what becomes of an interlaced video."""
    if info.interlaced and mode == "auto":
        warn("W_INTERLACED", f"{info.path} is interlaced; it is deinterlaced (--deinterlace off keeps it as it is)")
    elif info.interlaced and mode == "off":
        warn("W_INTERLACED", f"{info.path} is interlaced and stays so; motion is restored worse across its fields")


@overload
def deinterlaced(items: Iterator[Frame], mode: str) -> Iterator[Frame]: ...
@overload
def deinterlaced(items: Iterator[Frame | av.Packet], mode: str) -> Iterator[Frame | av.Packet]: ...
def deinterlaced(items: Iterator[Frame] | Iterator[Frame | av.Packet], mode: str) -> Iterator[Frame | av.Packet]:
    """Give frames without interlacing, and packets between them as they come.

    mode: `auto` works on frames that are flagged as interlaced, from the first such frame on; `on` on every frame;
    `off` gives everything back as it is.
    """
    filtering: Deinterlacer | None = None
    for item in items:
        if mode == "off" or isinstance(item, av.Packet):
            yield item
            continue
        if filtering is None and (mode == "on" or item.picture.interlaced_frame):
            filtering = Deinterlacer(item, mode == "on")
        if filtering is None:
            yield item
        else:
            yield from filtering.feed(item)
    if filtering is not None:
        yield from filtering.feed(None)
