"""Frames and a copy of another file's sound into a video file, encoded as `vdeblur run` would."""

import contextlib
import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.error

from vdeblur import encode
from vdeblur.decode import SourceInfo, Warn
from vdeblur.errors import OutputError
from vdeblur.frame import Frame


class VideoFile:
    """A video file in the making.

    info: of the frames that will be written. sound: the file whose sound is copied, as far as the container takes it.

    Raises: OutputError where there is no such container, or the encoder refuses.
    """

    def __init__(self, path: Path, info: SourceInfo, sound: Path | None, warn: Warn) -> None:
        self.encoding = encode.VideoEncoding(info, path.suffix, encode.EncodeOptions(), warn)
        try:
            self.container = av.open(str(path), "w", format=self.encoding.container_format)
        except (av.error.FFmpegError, OSError) as error:
            raise OutputError(f"a video in {path.parent} cannot be written: {error}", "check the path") from error
        self.sound: _SoundCopy | None = None
        try:
            self.video = self.encoding.add_to(self.container)
            self.sound = None if sound is None else _SoundCopy(sound, self.container)
            self.container.start_encoding()
        except (ValueError, av.error.FFmpegError, OSError) as error:
            self.abort()
            hint = "choose another container; .mkv takes nearly everything"
            raise OutputError(f"{self.encoding.encoder.name} in *{path.suffix} was refused: {error}", hint) from error

    def write(self, frame: Frame) -> None:
        """Add a frame, and the sound up to it."""
        if self.sound is not None:
            self.sound.copy_until(frame.seconds)
        self.container.mux(self.video.encode(self.encoding.prepare(frame)))

    def finish(self) -> None:
        """Add what is left, and close the file."""
        self.container.mux(self.video.encode(None))
        if self.sound is not None:
            self.sound.copy_until(None)
            self.sound.close()
        self.container.close()

    def abort(self) -> None:
        """Close the file as it is."""
        with contextlib.suppress(av.error.FFmpegError, OSError, ValueError):
            if self.sound is not None:
                self.sound.close()
            self.container.close()


class _SoundCopy:
    """The packets of a file's sound, into a container that is being set up."""

    def __init__(self, path: Path, target: av.container.OutputContainer) -> None:
        self.source = av.open(str(path.absolute()), metadata_errors="replace")
        self.target = target
        taken = [stream for stream in self.source.streams.audio if container_takes(target.format.name, stream)]
        self.copies = {stream.index: target.add_stream_from_template(stream, opaque=True) for stream in taken}
        self.packets = self._readable(taken)
        self.next = next(self.packets, None)

    def _readable(self, streams: list[av.AudioStream]) -> Iterator[av.Packet]:
        if not streams:
            return
        with contextlib.suppress(av.error.FFmpegError):  # what cannot be read is missing
            yield from (packet for packet in self.source.demux(streams) if packet.dts is not None)

    def copy_until(self, seconds: Fraction | None) -> None:
        """Copy what comes before a time, None for everything."""
        while self.next is not None:
            packet = self.next
            assert packet.dts is not None
            if seconds is not None and packet.time_base and packet.dts * packet.time_base > seconds:
                return
            packet.stream = self.copies[packet.stream.index]
            self.target.mux(packet)
            self.next = next(self.packets, None)

    def close(self) -> None:
        """Close the file that was read."""
        self.source.close()


def container_takes(form: str, stream: av.stream.Stream) -> bool:
    """Tell whether a container holds a stream, by writing a header with this stream alone to memory."""
    try:
        with av.open(io.BytesIO(), "w", format=form) as trial:
            trial.add_stream_from_template(stream, opaque=True)
            trial.start_encoding()
    except (ValueError, av.error.FFmpegError, OSError):
        return False
    return True
