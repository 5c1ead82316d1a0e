"""Deinterlace: one progressive frame for each interlaced frame, with the same time.

The filter is FFmpeg's bwdif (Bob Weaver): it keeps the lines of one field and interpolates those of the other in space
and time.
"""

import dataclasses
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
    """The filter bwdif, which delays frames by one to look ahead."""

    def __init__(self, first: Frame, every: bool) -> None:
        """Set the filter up for frames like the first. every: filter frames without the flag for interlacing, too."""
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
        """Filter a frame, or None at the end; yield the frames that are ready."""
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
            frame = self.waiting.popleft()  # has the exact time; the filter doubles the time base
            yield dataclasses.replace(frame, picture=picture)


def warn_of_interlacing(info: SourceInfo, mode: str, warn: Warn) -> None:
    """Warn of an interlaced video, and say whether it will be deinterlaced."""
    if info.interlaced and mode == "auto":
        warn("W_INTERLACED", f"{info.path} is interlaced; it is deinterlaced (--deinterlace off keeps it as it is)")
    elif info.interlaced and mode == "off":
        warn("W_INTERLACED", f"{info.path} is interlaced and stays so; motion is restored worse across its fields")


@overload
def deinterlaced(items: Iterator[Frame], mode: str) -> Iterator[Frame]: ...
@overload
def deinterlaced(items: Iterator[Frame | av.Packet], mode: str) -> Iterator[Frame | av.Packet]: ...
def deinterlaced(items: Iterator[Frame] | Iterator[Frame | av.Packet], mode: str) -> Iterator[Frame | av.Packet]:
    """Yield deinterlaced frames; packets between them pass through.

    mode: `auto` filters the frames that are flagged as interlaced; `on` filters every frame; `off` filters none.
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
