"""When a video's frames are shown, as its packets say, which is more than its header knows: without decoding any.

A file that is small is read as a whole; of a larger one a stretch at the beginning, two in between, and the end.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice, pairwise

import av
import av.error

from vdeblur.source import demux, video

WHOLE_BYTES = 64_000_000  # read in a second or so
WINDOW_PACKETS = 400  # of video, of a stretch
WINDOWS = (0.35, 0.7)  # where in the duration they begin
END_SECONDS = 3  # before the end, from where on the rest is read
REORDERED = 16  # frames; no codec moves one past more, so the last of a stretch that is cut off may be incomplete
EVEN = Fraction(1, 50)  # intervals that differ by less are equal; and so are those within two ticks of the clock
LEAST_MISSING = Fraction(1, 2)  # seconds; sound and picture seldom end together


@dataclass
class PacketTimes:
    """What the packets say.

    frames: how many of video there are, None where not all were read. intervals: seconds between frames that follow
    each other. damaged: packets that are marked so, and places that cannot be read. untimed: video packets without a
    time. missing_seconds: between the last packet of any stream and where the header says that the file ends.
    """

    frames: int | None = None
    intervals: list[Fraction] = field(default_factory=list)
    tick: Fraction = Fraction(0)
    damaged: int = 0
    untimed: int = 0
    missing_seconds: Fraction = Fraction(0)

    @property
    def usual(self) -> Fraction | None:
        """Give the interval in the middle of all, in seconds."""
        return sorted(self.intervals)[len(self.intervals) // 2] if self.intervals else None

    @property
    def rate(self) -> Fraction | None:
        """Give frames a second: the rhythm's, or where there is none, the average."""
        counted = self.intervals if self.variable else [i for i in self.intervals if self._near(i, self.usual or i)]
        return len(counted) / sum(counted, Fraction(0)) if counted else None

    @property
    def gaps(self) -> int:
        """Count the places where one or more frames are left out of an even rhythm."""
        return sum(1 for interval in self._uneven() if interval > (self.usual or 0))

    @property
    def variable(self) -> bool:
        """Whether frames are not evenly spaced; a rhythm that is even but for a few gaps counts as even."""
        uneven = self._uneven()
        usual = self.usual or Fraction(0)
        whole = all(interval > usual and self._near(interval, round(interval / usual) * usual) for interval in uneven)
        return bool(uneven) and not (whole and len(uneven) * 20 <= len(self.intervals))

    def _uneven(self) -> list[Fraction]:
        usual = self.usual
        return [] if not usual else [interval for interval in self.intervals if not self._near(interval, usual)]

    def _near(self, a: Fraction, b: Fraction) -> bool:
        return abs(a - b) <= max(2 * self.tick, EVEN * b)


def read(source: video.VideoSource) -> PacketTimes:
    """Read a video's packets; the file is opened once more for this."""
    size = source.path.stat().st_size
    with av.open(str(source.path.absolute()), metadata_errors="replace") as container:
        reader = _Reader(container, source.video.index)
        times = reader.times
        indexed = container.format.name in demux.SEEKABLE and bool(container.duration)
        seconds = Fraction(container.duration or 0, av.time_base)
        begin = Fraction(container.start_time or 0, av.time_base)
        if size <= WHOLE_BYTES:
            times.frames = reader.stretch(None)
        else:
            reader.stretch(WINDOW_PACKETS)
            if indexed:
                for share in WINDOWS:
                    reader.stretch(WINDOW_PACKETS, begin + Fraction(share) * seconds)
                reader.stretch(None, begin + max(seconds - END_SECONDS, Fraction(0)))
        if indexed and reader.reached_end:
            missing = begin + seconds - reader.last_end
            times.missing_seconds = missing if missing > max(LEAST_MISSING, seconds / 100) else Fraction(0)
        return times


class _Reader:
    def __init__(self, container: av.container.InputContainer, index: int) -> None:
        self.container, self.index = container, index
        self.times = PacketTimes(tick=container.streams[index].time_base or Fraction(0))
        self.last_end = Fraction(0)
        self.reached_end = False

    def stretch(self, limit: int | None, begin: Fraction | None = None) -> int:
        """Read so many packets of video, None for all, from the beginning or from a keyframe before `begin`.

        Gives how many there were.
        """
        if begin is not None:
            try:
                self.container.seek(int(begin * av.time_base))
            except (av.error.FFmpegError, OSError):
                self.times.damaged += 1
                return 0
        stamps = [packet.pts for packet in islice(self._video_packets(), limit)]
        known = [stamp for stamp in stamps if stamp is not None]
        self.times.untimed += len(stamps) - len(known)
        if begin is not None and known:  # frames shown before the keyframe may be incomplete
            known = [stamp for stamp in known if stamp >= known[0]]
        ordered = sorted(known) if self.reached_end else sorted(known)[:-REORDERED]
        steps = [after - before for before, after in pairwise(ordered) if after > before]
        self.times.intervals += [step * self.times.tick for step in steps]
        return len(stamps)

    def _video_packets(self) -> Iterator[av.Packet]:
        """Give the video's packets; those of all streams tell where the file ends."""
        packets = self.container.demux()
        while True:
            try:
                packet = next(packets)
            except (StopIteration, av.error.FFmpegError) as end:
                self.reached_end = True
                self.times.damaged += not isinstance(end, StopIteration)
                return
            if not packet.size:
                continue
            self.times.damaged += packet.is_corrupt
            time = packet.pts if packet.pts is not None else packet.dts
            if time is not None and packet.time_base:
                self.last_end = max(self.last_end, (time + (packet.duration or 0)) * packet.time_base)
            if packet.stream.index == self.index:
                yield packet
