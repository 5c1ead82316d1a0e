"""Read frame times and damage from a video's packets, which tell more than its header, without decoding.

Small files are read completely; larger ones at the beginning, at two places in between, and at the end.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice, pairwise

import av
import av.error

from vdeblur.source import demux, video
from vdeblur.source.demuxers import SAFE_INPUT

WHOLE_BYTES = 64_000_000  # files up to this size are read completely, in about a second
WINDOW_PACKETS = 400  # of video, read at each place
PLACES = (0.35, 0.7)  # places in between, as shares of the duration
END_SECONDS = 3  # read at the end
REORDERED = 16  # frames; codecs reorder across no more, so earlier times of a window are complete
EVEN = Fraction(1, 50)  # intervals that differ by less, or by up to two ticks of the clock, are equal
LEAST_MISSING = Fraction(1, 2)  # seconds; less is normal, since sound and picture seldom end together


@dataclass
class PacketTimes:
    """Frame times and damage.

    frames: the number of video packets, None where not all were read. intervals: seconds between consecutive frames.
    tick: the clock's resolution in seconds. damaged: corrupt packets and unreadable places. untimed: video packets
    without a timestamp. packets, packet_bytes: of video, those that were read. missing_seconds: between the last packet
    of any stream and the end in the header.
    """

    frames: int | None = None
    intervals: list[Fraction] = field(default_factory=list)
    tick: Fraction = Fraction(0)
    damaged: int = 0
    untimed: int = 0
    packets: int = 0
    packet_bytes: int = 0
    missing_seconds: Fraction = Fraction(0)

    @property
    def usual(self) -> Fraction | None:
        """The median interval, in seconds."""
        return sorted(self.intervals)[len(self.intervals) // 2] if self.intervals else None

    @property
    def rate(self) -> Fraction | None:
        """Frames per second, from the mean of the intervals near the usual one; at a variable rate, of all."""
        counted = self.intervals if self.variable else [i for i in self.intervals if self._near(i, self.usual or i)]
        return len(counted) / sum(counted, Fraction(0)) if counted else None

    @property
    def gaps(self) -> int:
        """The number of places where frames are missing."""
        return sum(1 for interval in self._uneven() if interval > (self.usual or 0))

    @property
    def variable(self) -> bool:
        """Return whether intervals differ; those of an even rate with a few missing frames count as even."""
        uneven = self._uneven()
        usual = self.usual or Fraction(0)
        is_gap = [interval > usual and self._near(interval, round(interval / usual) * usual) for interval in uneven]
        return bool(uneven) and not (all(is_gap) and len(uneven) * 20 <= len(self.intervals))

    def _uneven(self) -> list[Fraction]:
        usual = self.usual
        return [] if not usual else [interval for interval in self.intervals if not self._near(interval, usual)]

    def _near(self, a: Fraction, b: Fraction) -> bool:
        return abs(a - b) <= max(2 * self.tick, EVEN * b)


def read(source: video.VideoSource) -> PacketTimes:
    """Read a video's packets, through a container of its own."""
    size = source.path.stat().st_size
    with av.open(str(source.path.absolute()), metadata_errors="replace", options=SAFE_INPUT) as container:
        reader = _Reader(container, source.video.index)
        times = reader.times
        indexed = container.format.name in demux.SEEKABLE and bool(container.duration)
        seconds = Fraction(container.duration or 0, av.time_base)
        begin = Fraction(container.start_time or 0, av.time_base)
        if size <= WHOLE_BYTES:
            times.frames = reader.read_stretch(None)
        else:
            reader.read_stretch(WINDOW_PACKETS)
            if indexed:
                for share in PLACES:
                    reader.read_stretch(WINDOW_PACKETS, begin + Fraction(share) * seconds)
                reader.read_stretch(None, begin + max(seconds - END_SECONDS, Fraction(0)))
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

    def read_stretch(self, limit: int | None, begin: Fraction | None = None) -> int:
        """Read up to `limit` packets of video, None for all; return their number.

        begin: seconds; start at a keyframe before this, None: go on from the last packet.
        """
        if begin is not None:
            try:
                self.container.seek(int(begin * av.time_base))
            except (av.error.FFmpegError, OSError):
                self.times.damaged += 1
                return 0
        stamps = []
        for packet in islice(self._video_packets(), limit):
            stamps.append(packet.pts)
            self.times.packet_bytes += packet.size
        self.times.packets += len(stamps)
        known = [stamp for stamp in stamps if stamp is not None]
        self.times.untimed += len(stamps) - len(known)
        if begin is not None and known:  # frames shown before the keyframe may be incomplete
            known = [stamp for stamp in known if stamp >= known[0]]
        ordered = sorted(known) if self.reached_end else sorted(known)[:-REORDERED]
        steps = [after - before for before, after in pairwise(ordered) if after > before]
        self.times.intervals += [step * self.times.tick for step in steps]
        return len(stamps)

    def _video_packets(self) -> Iterator[av.Packet]:
        """Yield the video's packets; note where those of all streams end."""
        for packet in demux.demux(self.container):
            if packet is None:
                self.times.damaged += 1
                break
            if not packet.size:
                continue
            self.times.damaged += packet.is_corrupt
            self.last_end = max(self.last_end, demux.packet_end(packet) or self.last_end)
            if packet.stream.index == self.index:
                yield packet
        self.reached_end = True
