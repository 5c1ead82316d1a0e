"""Open containers, and read their packets."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.stream import Disposition, Stream

from vdeblur.errors import InputError
from vdeblur.source.demuxers import SAFE_INPUT, check_leads_nowhere

SEEKABLE = {
    "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska,webm",
    "avi",
}  # formats with an index; others are read from the start
LATE_STREAMS = {"mpeg"}  # formats whose header does not list the streams: each shows with its first packet (VOB)
# How far to look for streams: 60 s, or 50 MB, which take about 0.1 s to read. FFmpeg's default is 5 s, or 5 MB.
FAR = {"analyzeduration": "60000000", "probesize": "50000000"}
PIPE = Path("-")  # standard input or output


def open_container(path: Path) -> av.container.InputContainer:
    """Open a file for reading.

    Raises: InputError.
    """
    try:
        if path == PIPE:
            return av.open("pipe:0", metadata_errors="replace", options=SAFE_INPUT)
        if path.is_file():
            check_leads_nowhere(path)
        container = av.open(str(path.absolute()), metadata_errors="replace", options=SAFE_INPUT)
        if container.format.name in LATE_STREAMS or any(_is_unknown(stream) for stream in container.streams):
            container.close()
            container = av.open(str(path.absolute()), metadata_errors="replace", options={**SAFE_INPUT, **FAR})
        return container
    except (av.error.FFmpegError, OSError) as error:
        if path == PIPE:
            raise InputError(f"standard input is not a video: {ffmpeg_reason(error)}", "pipe in y4m or nut") from error
        raise InputError(f"{path} cannot be read as video: {ffmpeg_reason(error)}", _hint(path, error)) from error


def _is_unknown(stream: Stream) -> bool:
    """Return whether FFmpeg found no packet that tells how an audio stream is coded: it begins late."""
    context = getattr(stream, "codec_context", None)
    return isinstance(context, av.AudioCodecContext) and not (context.sample_rate and context.layout.nb_channels)


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
