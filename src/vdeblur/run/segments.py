"""Divide a run into segments, so that an interrupted run can resume.

    frames -> Divider -> segments -> (restored, encoded) -> Store -> assemble.py

Segments are stretches of time, counted from the first frame, the same in every run. Each is restored and encoded
independently: the network sees some frames before and after it, and the encoder starts over. So it does not matter in
which run, in which order or on which machine a segment is made; after any interruption the same command continues with
the first missing one. Each segment stores digests of the last decoded frames before it and of its own last ones;
neighbours belong together only if these agree.
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
from vdeblur.restore.only_blurred import StrengthSum

CHECKED = 2  # frames before a boundary whose digests both sides store

Mark = tuple[int, int]  # pts and CRC-32 of a decoded frame


@dataclass(frozen=True)
class Division:
    """The division of time into segments.

    first: when the first segment begins, in seconds on the source's clock. length: of each, in seconds; None: one
    segment holds everything.
    """

    first: Fraction
    length: Fraction | None

    def index_of(self, seconds: Fraction) -> int:
        """Return the segment of a frame that is shown at this time."""
        return 0 if self.length is None else max(math.floor((seconds - self.first) / self.length), 0)

    def begin_of(self, index: int) -> Fraction:
        """Return when a segment begins, in seconds on the source's clock."""
        return self.first if self.length is None else self.first + index * self.length

    def count(self, duration: Fraction | None) -> int | None:
        """Return the number of segments in so many seconds; None if the duration is unknown."""
        if self.length is None:
            return 1
        return None if duration is None else max(math.ceil(duration / self.length), 1)


@dataclass
class Segment:
    """A segment's frames, with those that the network sees before and after; the other fields fill as they are read.

    lead: how many of the frames come before its own. before: marks of the last frames before it; tail: of its own last
    frames. own_frames: number of its own frames so far; closed: whether these are all. last: whether no frame follows.
    last_duration: of its last frame by the source, in units of its clock; 0: unknown. strengths: of its own frames that
    are restored.
    """

    index: int
    frames: Iterator[Frame]
    lead: int
    before: list[Mark]
    own_frames: int = 0
    closed: bool = False
    last: bool = False
    tail: list[Mark] = field(default_factory=list)
    last_duration: int = 0
    strengths: StrengthSum = field(default_factory=StrengthSum)


class Divider:
    """Divide a stream of frames into segments, each with so many frames before and after it."""

    def __init__(self, frames: Iterator[Frame], division: Division, before: int, after: int) -> None:
        self.source, self.division, self.before, self.after = frames, division, before, after
        self.recent: deque[Frame] = deque(maxlen=max(before, CHECKED))
        self.ahead: deque[Frame] = deque()

    def skip_to(self, index: int) -> bool:
        """Skip the frames before this segment; return whether a frame is left."""
        while frame := self._peek():
            if self.division.index_of(frame.seconds) >= index:
                return True
            self.recent.append(self.ahead.popleft())
        return False

    def upcoming(self) -> int:
        """Return the segment of the next frame, which must exist."""
        first = self._peek()
        assert first is not None, "skip_to says whether there is one"
        return self.division.index_of(first.seconds)

    def segment(self) -> Segment:
        """Return the next segment that has frames; read it to its end before asking for another."""
        index = self.upcoming()
        lead = list(self.recent)[len(self.recent) - min(self.before, len(self.recent)) :]
        segment = Segment(index, iter(()), len(lead), self.marks())
        segment.frames = self._frames(segment, lead)
        return segment

    def marks(self) -> list[Mark]:
        """Return the marks of the last frames that were read."""
        return [(frame.pts, digest(frame)) for frame in list(self.recent)[-CHECKED:]]

    def _frames(self, segment: Segment, lead: list[Frame]) -> Iterator[Frame]:
        yield from lead
        while (frame := self._peek()) and self.division.index_of(frame.seconds) <= segment.index:
            self.recent.append(self.ahead.popleft())
            segment.own_frames += 1
            segment.last_duration = frame.duration
            yield frame
        segment.tail = self.marks()[-segment.own_frames :]
        segment.last = frame is None
        segment.closed = True
        self._peek(self.after)
        yield from list(islice(self.ahead, self.after))

    def _peek(self, count: int = 1) -> Frame | None:
        while len(self.ahead) < count and (frame := next(self.source, None)) is not None:
            self.ahead.append(frame)
        return self.ahead[0] if self.ahead else None


def digest(frame: Frame) -> int:
    """Return the CRC-32 of a frame's samples."""
    layout = layout_of(frame.picture.format.name)
    assert layout is not None
    crc = 0
    for plane in layout.colors:
        crc = zlib.crc32(numpy.ascontiguousarray(plane_array(frame.picture, plane)).data, crc)
    return crc
