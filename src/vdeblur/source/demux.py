"""Open containers, and read their packets with corrected times."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.stream import Disposition, Stream

from vdeblur.errors import InputError
from vdeblur.events import Warn
from vdeblur.source.formats import SAFE_INPUT, check_leads_nowhere
from vdeblur.source.info import SourceInfo

SEEKABLE = {
    "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska,webm",
    "avi",
}  # formats with an index; others are read from the start
JUMP_SECONDS = 1  # a larger step back in decoding times means that another file was appended
PIPE = Path("-")  # standard input or output


class TimestampRepair:
    """Shift packets where timestamps jump back, as in a file that was joined from two recordings.

    All streams of the second recording shift by the same time, so they stay in sync. One object serves all streams of
    a file; packets must come in the file's order.
    """

    def __init__(self, warn: Warn | None = None) -> None:
        self.warn = warn
        self.offsets = [Fraction(0)]  # one per recording, to add to its times
        self.recording: dict[int, int] = {}  # each stream's current recording
        self.last: dict[int, Fraction] = {}  # each stream's last decoding time, before the shift
        self.end = Fraction(0)  # of all packets so far, shifted

    def shift(self, packet: av.Packet) -> None:
        """Shift a packet by its recording's offset."""
        if packet.dts is None or packet.time_base is None:
            return
        index, seconds = packet.stream.index, packet.dts * packet.time_base
        if seconds < self.last.get(index, seconds) - JUMP_SECONDS:
            self.recording[index] = self.recording.get(index, 0) + 1
            if self.recording[index] == len(self.offsets):
                self.offsets.append(self.end - seconds)
                if self.warn is not None:
                    message = f"times jump back from {float(self.last[index]):.2f} to {float(seconds):.2f} s"
                    self.warn("W_TIMESTAMPS", f"{message}; what follows is shifted")
        self.last[index] = seconds
        offset = round(self.offsets[self.recording.get(index, 0)] / packet.time_base)
        if offset:
            packet.dts += offset
            packet.pts = None if packet.pts is None else packet.pts + offset
        self.end = max(self.end, (packet.dts + (packet.duration or 0)) * packet.time_base)


class FrameClock:
    """Assign every frame a time: its timestamp, else the last frame's time plus one interval of the nominal rate."""

    def __init__(self, info: SourceInfo, warn: Warn) -> None:
        self.step = max(round(1 / (info.rate * info.time_base)), 1)
        self.warn = warn
        self.last: int | None = None
        self.count = 0
        self.warned = False

    def next_pts(self, pts: int | None) -> int:
        """Return the next frame's pts; a missing one, or one that does not advance, becomes the last plus a frame."""
        wrong = pts is None or (self.last is not None and pts <= self.last)
        if wrong and not self.warned:
            self.warned = True
            what = "no time" if pts is None else "a time that is not after its predecessor's"
            self.warn("W_TIMESTAMPS", f"frame {self.count} has {what}; such frames are spaced at the nominal rate")
        if pts is None or wrong:
            pts = 0 if self.last is None else self.last + self.step
        self.last = pts
        self.count += 1
        return pts


def open_container(path: Path) -> av.container.InputContainer:
    """Open a file for reading.

    Raises: InputError.
    """
    try:
        if path.is_file():
            check_leads_nowhere(path)
        name = "pipe:0" if path == PIPE else str(path.absolute())
        return av.open(name, metadata_errors="replace", options=SAFE_INPUT)
    except (av.error.FFmpegError, OSError) as error:
        if path == PIPE:
            raise InputError(f"standard input is not a video: {ffmpeg_reason(error)}", "pipe in y4m or nut") from error
        raise InputError(f"{path} cannot be read as video: {ffmpeg_reason(error)}", _hint(path, error)) from error


def demux(container: av.container.InputContainer) -> Iterator[av.Packet | None]:
    """Yield the packets of all streams, up to the first place that cannot be read; that yields None."""
    packets = container.demux()
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError:
            yield None  # FFmpeg's demuxers cannot go on after an error
            return
        yield packet


def is_cover(stream: Stream) -> bool:
    """Return whether a video stream is only a cover picture."""
    return bool(stream.disposition & Disposition.attached_pic)


def packet_end(packet: av.Packet) -> Fraction | None:
    """Return when a packet ends, in seconds; None without a timestamp."""
    seconds = packet_seconds(packet)
    return None if seconds is None else seconds + (packet.duration or 0) * packet.time_base


def packet_seconds(packet: av.Packet) -> Fraction | None:
    """Return a packet's presentation time, else its decoding time, in seconds; None without a timestamp."""
    time = packet.pts if packet.pts is not None else packet.dts
    return None if time is None or packet.time_base is None else time * packet.time_base


def ffmpeg_reason(error: BaseException) -> str:
    """Return the system's or FFmpeg's words for an error."""
    if isinstance(error, av.error.ArgumentError):  # what av.open raises for formats outside of SAFE_INPUT
        return "it is damaged, or of a kind that vdeblur does not read"
    return getattr(error, "strerror", None) or str(error)


def _hint(path: Path, error: BaseException) -> str:
    if isinstance(error, PermissionError):
        return "check its permissions"
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return "was it moved or removed meanwhile?"
    if head[4:8] == b"ftyp":
        return "the file is incomplete: it has no index (moov); copy it again, or repair it"
    return "is it a video file? it may be damaged or incomplete"
