"""The part of a video that -ss, -t, --to and --frames ask for.

settings.Cut holds these options, in seconds from the video's start. Excerpt applies them while a file is read once: it
knows the times on the source's clock, and counts the frames. The bounds are exact: VideoSource gives them as whole
units of the video's clock, so no frame of the part has a time before its begin.
"""

import math
from collections import deque
from collections.abc import Iterator
from fractions import Fraction

import av

from vdeblur.frame import Frame
from vdeblur.source.demux import packet_seconds

SECONDS_BEYOND = 10  # how far past the end of a part the other streams are read


class Excerpt:
    """Choose the frames and packets of a part, in the order in which they are read.

    begin, end: seconds on the source's clock, None for no bound. limit: number of frames, None for all. With a
    limit only the last frame shows where the part ends, so packets wait until a frame at their time was read.
    """

    def __init__(self, begin: Fraction | None, end: Fraction | None, limit: int | None) -> None:
        self.begin, self.end, self.limit = begin, end, limit
        self.count = 0  # of frames
        self.is_over = False  # all frames were read; packets of this time may still come
        self.waiting: deque[av.Packet] = deque()

    def takes(self, frame: Frame) -> bool:
        """Count a frame and return True if it belongs to the part; the first frame past the end ends the part."""
        if self.begin is not None and frame.seconds < self.begin:
            return False
        is_past = self.end is not None and frame.seconds >= self.end
        if is_past or (self.limit is not None and self.count >= self.limit):
            self.is_over = True
            self.end = frame.seconds if self.end is None else min(self.end, frame.seconds)
            return False
        self.count += 1
        if self.end is not None:  # the last frame ends with the part
            frame.duration = min(frame.duration, math.ceil((self.end - frame.seconds) / frame.time_base))
        return True

    def is_beyond(self, seconds: Fraction | None) -> bool:
        """Return whether reading can stop at a packet or picture of this time: nothing of the part can follow."""
        return self.is_over and (seconds is None or seconds > (self.end or 0) + SECONDS_BEYOND)

    def packets(self, packet: av.Packet) -> Iterator[av.Packet]:
        """Yield a packet that belongs to the part, or let it wait for its frames."""
        seconds = packet_seconds(packet)
        if packet.dts is None or not is_within(seconds, self.begin, self.end):
            return
        if self.limit is None:
            yield packet
        else:
            self.waiting.append(packet)

    def passed(self, frame: Frame) -> Iterator[av.Packet]:
        """Yield the waiting packets up to a frame's time."""
        while self.waiting and (packet_seconds(self.waiting[0]) or 0) <= frame.seconds:
            yield self.waiting.popleft()

    def rest(self) -> Iterator[av.Packet]:
        """Yield the waiting packets up to the end of the part."""
        for packet in self.waiting:
            if self.end is None or (packet_seconds(packet) or 0) < self.end:
                yield packet


def is_within(seconds: Fraction | None, begin: Fraction | None, end: Fraction | None) -> bool:
    """Return whether a time lies in [begin, end), as an unknown one does. None: no bound."""
    return seconds is None or ((begin is None or seconds >= begin) and (end is None or seconds < end))
