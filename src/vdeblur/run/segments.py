"""What is finished is kept: a run goes in segments, and each that is done is a closed file beside the output.

    frames -> Divider -> segments -> (restored, encoded) -> Store -> assemble.py

Segments are stretches of time, counted from the first frame, the same in every run. Each is restored and encoded by
itself: the network sees some frames before and after it, the encoder begins anew. So it does not matter in which run,
in which order or on which machine a segment is made, and after any stop the same command goes on with the first one
that is missing. Neighbours vouch for each other: each notes digests of the last frames before it and of its own last
frames, as they were decoded, and these must agree.
"""

import math
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice

import numpy

from vdeblur.frame import Frame, layout_of, plane_array

CHECKED = 2  # frames before a boundary whose digests both sides note

Mark = tuple[int, int]  # pts and CRC-32 of a decoded frame


@dataclass(frozen=True)
class Division:
    """How time is divided.

    first: when the first segment begins, in seconds on the source's clock. length: seconds of each; None: all is one.
    """

    first: Fraction
    length: Fraction | None

    def index_of(self, seconds: Fraction) -> int:
        """Give the segment that a frame shown at this time is in."""
        return 0 if self.length is None else max(math.floor((seconds - self.first) / self.length), 0)

    def begin_of(self, index: int) -> Fraction:
        """Give when a segment begins."""
        return self.first if self.length is None else self.first + index * self.length

    def count(self, duration: Fraction | None) -> int | None:
        """Give the number of segments that so many seconds take; None where nothing is known."""
        if self.length is None:
            return 1
        return None if duration is None else max(math.ceil(duration / self.length), 1)


@dataclass
class Segment:
    """A stretch of frames with those around it; `frames` is read once, then the rest is known.

    lead: how many frames come before its own. own: its own frames so far; closed: whether these are all.
    last: whether no frame follows.
    """

    index: int
    frames: Iterator[Frame]
    lead: int
    before: list[Mark]
    own: int = 0
    closed: bool = False
    last: bool = False
    tail: list[Mark] = field(default_factory=list)


class Divider:
    """Give the segments of a stream of frames, one after the other, each with so many frames before and after it."""

    def __init__(self, frames: Iterator[Frame], division: Division, before: int, after: int) -> None:
        self.source, self.division, self.before, self.after = frames, division, before, after
        self.recent: deque[Frame] = deque(maxlen=max(before, CHECKED))
        self.ahead: deque[Frame] = deque()

    def skip_to(self, index: int) -> bool:
        """Pass over what comes before this segment; tells whether a frame is left."""
        while frame := self._peek():
            if self.division.index_of(frame.seconds) >= index:
                return True
            self.recent.append(self.ahead.popleft())
        return False

    def upcoming(self) -> int:
        """Give which segment the next frame is in; there must be one."""
        first = self._peek()
        assert first is not None, "skip_to tells whether there is one"
        return self.division.index_of(first.seconds)

    def segment(self) -> Segment:
        """Give the next segment that has frames; it must be read to its end before the next one."""
        index = self.upcoming()
        lead = list(self.recent)[len(self.recent) - min(self.before, len(self.recent)) :]
        segment = Segment(index, iter(()), len(lead), self.marks())
        segment.frames = self._frames(segment, lead)
        return segment

    def marks(self) -> list[Mark]:
        """Give what is to be remembered of the last frames that were read."""
        return [(frame.pts, digest(frame)) for frame in list(self.recent)[-CHECKED:]]

    def _frames(self, segment: Segment, lead: list[Frame]) -> Iterator[Frame]:
        yield from lead
        while (frame := self._peek()) and self.division.index_of(frame.seconds) <= segment.index:
            self.recent.append(self.ahead.popleft())
            segment.own += 1
            yield frame
        segment.tail = self.marks()[-segment.own :]
        segment.last = frame is None
        segment.closed = True
        self._peek(self.after)
        yield from list(islice(self.ahead, self.after))

    def _peek(self, count: int = 1) -> Frame | None:
        while len(self.ahead) < count and (frame := next(self.source, None)) is not None:
            self.ahead.append(frame)
        return self.ahead[0] if self.ahead else None


def digest(frame: Frame) -> int:
    """Give the CRC-32 of a frame's samples."""
    layout = layout_of(frame.picture.format.name)
    assert layout is not None
    crc = 0
    for plane in layout.colors:
        crc = zlib.crc32(numpy.ascontiguousarray(plane_array(frame.picture, plane)).data, crc)
    return crc
