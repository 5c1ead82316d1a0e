"""Times of packets and frames: where a file's clock begins, and the repair of missing, doubled and joined times."""

from fractions import Fraction

import av

from vdeblur.events import Warn
from vdeblur.source.info import SourceInfo

JUMP_SECONDS = 1  # a larger step back in decoding times means that another file was appended
TS_DISCONT = (
    0x0200  # FFmpeg's AVFMT_TS_DISCONT: a format whose clock runs on, so a file may begin at any time (MPEG-TS)
)
# A start up to here is meant, and kept: muxers of MPEG-TS begin at 1.4 s, and delayed streams are seconds late. A later
# one is the reading of a clock. Such clocks begin anywhere, in other formats where a stream was copied with its times.
LATE_SECONDS = {True: 5, False: 60}  # with and without TS_DISCONT


def clock_origin(container: av.container.InputContainer) -> Fraction:
    """Return the time on a container's clock that counts as zero, in seconds.

    It is 0, but the first time of all video and audio where that is late (see LATE_SECONDS), or negative because the
    clock wraps around.
    """
    starts = [
        stream.start_time * stream.time_base
        for stream in container.streams
        if stream.type in ("video", "audio") and stream.start_time is not None and stream.time_base
    ]
    start = min(starts, default=Fraction(0))
    free_running = bool(container.format.flags & TS_DISCONT)
    return start if start > LATE_SECONDS[free_running] or (free_running and start < 0) else Fraction(0)


class TimestampRepair:
    """Shift packets to a clock that begins at `origin`, and where timestamps jump back, as in a file that was joined.

    All streams shift by the same time, so they stay in sync; the second recording of a joined file follows the first.
    One object serves all streams of a file; packets must come in the file's order.
    """

    def __init__(self, origin: Fraction, warn: Warn | None = None) -> None:
        """Begin with the first recording. origin: the time on the container's clock that becomes zero, in seconds."""
        self.warn = warn
        self.offsets = [-origin]  # one per recording, to add to its times
        self.recording: dict[int, int] = {}  # each stream's current recording
        self.last: dict[int, Fraction] = {}  # each stream's last decoding time, before the shift
        self.end = Fraction(0)  # of all packets so far, shifted

    def shift(self, packet: av.Packet) -> None:
        """Shift a packet by its recording's offset."""
        if packet.dts is None or packet.time_base is None:
            if packet.pts is not None and packet.time_base is not None:
                packet.pts += self._offset(packet)
            return
        if not packet.is_discard:  # what an edit list hides may repeat earlier times, and is no second recording
            self._notice_jump(packet, packet.dts * packet.time_base)
        offset = self._offset(packet)
        packet.dts += offset
        packet.pts = None if packet.pts is None else packet.pts + offset
        if not packet.is_discard:
            self.end = max(self.end, (packet.dts + (packet.duration or 0)) * packet.time_base)

    def _notice_jump(self, packet: av.Packet, seconds: Fraction) -> None:
        """Let a new recording begin with this packet if its decoding time jumps back."""
        index = packet.stream.index
        if seconds < self.last.get(index, seconds) - JUMP_SECONDS:
            self.recording[index] = self.recording.get(index, 0) + 1
            if self.recording[index] == len(self.offsets):
                self.offsets.append(self.end - seconds)
                if self.warn is not None:
                    message = f"times jump back from {float(self.last[index]):.2f} to {float(seconds):.2f} s"
                    self.warn("W_TIMESTAMPS", f"{message}; what follows is shifted")
        self.last[index] = seconds

    def _offset(self, packet: av.Packet) -> int:
        """Return what the packet's recording adds to its times, in its units."""
        assert packet.time_base is not None
        return round(self.offsets[self.recording.get(packet.stream.index, 0)] / packet.time_base)


class FrameClock:
    """Assign every frame a time that is later than its predecessor's.

    That is the frame's timestamp; where it is missing, one interval of the nominal rate after the last frame; where it
    does not advance, a time between its neighbours, so that the frames after it keep theirs. Packets of AVI have no
    presentation times, and FFmpeg's guesses fail for B-frames: there, frames take the decoding times in their order.
    """

    def __init__(self, info: SourceInfo, warn: Warn, in_decoding_order: bool = False) -> None:
        self.step = max(round(1 / (info.rate * info.time_base)), 1)
        self.warn, self.in_decoding_order = warn, in_decoding_order
        self.last: int | None = None
        self.due = 0  # when the next frame is expected, counted from the last one whose own time was right
        self.count = 0
        self.warned = False

    def next_pts(self, picture: av.VideoFrame) -> int:
        """Return the next frame's pts, in units of the video's clock."""
        pts = picture.dts if self.in_decoding_order else picture.pts
        if pts is None:
            if not self.in_decoding_order:  # there, the last frames have none, since no packet follows them
                self._warn_once("no time", "are spaced at the nominal rate")
            pts = self.due
        elif self.last is not None and pts <= self.last:
            self._warn_once("a time that is not after its predecessor's", "are moved between their neighbours")
            pts = self.last + max((self.due - self.last) // 2, 1)
            self.due = max(self.due, pts + 1)
            return self._take(pts)
        self.due = pts + self.step
        return self._take(pts)

    def _take(self, pts: int) -> int:
        self.last = pts
        self.count += 1
        return pts

    def _warn_once(self, fault: str, cure: str) -> None:
        if not self.warned:
            self.warned = True
            self.warn("W_TIMESTAMPS", f"frame {self.count} has {fault}; such frames {cure}")
