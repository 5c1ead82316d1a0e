"""Write frames to a video file, encoded as by `vdeblur run`, optionally with another file's audio and other streams."""

import contextlib
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import av.error

from vdeblur import settings
from vdeblur.errors import OutputError
from vdeblur.events import Warn
from vdeblur.frame import Frame
from vdeblur.output import carry, encoding
from vdeblur.output.muxer import Muxer, other_packets
from vdeblur.output.shape import write_shape
from vdeblur.output.trials import refusal_words
from vdeblur.source.info import SourceInfo
from vdeblur.source.video import Source, VideoSource

DEFAULT = settings.EncodeOptions()


class VideoFile:
    """A video file being written.

    info: of the frames to write. beside: the source whose other streams are copied if the container takes them.
    pictures: whether the frames come from a folder of pictures, whose codec does not count.

    Raises: OutputError where there is no such container, or the encoder refuses.
    """

    def __init__(
        self,
        path: Path,
        info: SourceInfo,
        warn: Warn,
        options: settings.EncodeOptions = DEFAULT,
        *,
        beside: Source | None = None,
        pictures: bool = False,
        deterministic: bool = False,
    ) -> None:
        self.path = path
        self.encoding = encoding.VideoEncoding(
            info, path.suffix, options, warn, pictures=pictures, deterministic=deterministic
        )
        self.encoder = self.encoding.open()
        self.offset = (beside.cut_begin if beside is not None else None) or Fraction(0)
        try:
            if beside is None:
                self.muxer: Muxer | _Alone = _Alone(path, self)
            else:
                encoding.warn_of_plans(self.encoding.try_container(beside, self.encoder), options, warn)
                self.muxer = self._muxer_beside(path, beside)
        except (ValueError, av.error.FFmpegError, OSError) as error:
            self.encoder.close()
            hint = "choose another container; .mkv takes nearly everything"
            name = self.encoding.coding.encoder.name
            raise OutputError(f"{name} cannot write *{path.suffix}: {refusal_words(error)}", hint) from error
        except OutputError:
            self.encoder.close()
            raise

    def _muxer_beside(self, path: Path, beside: Source) -> Muxer:
        muxer = self.encoding.open_muxer(str(path), beside, self.encoder, end=beside.cut_end)
        if isinstance(beside, VideoSource):
            muxer.take_others(other_packets(beside, beside.cut_begin, beside.cut_end))
        return muxer

    def write(self, frame: Frame) -> None:
        """Add a frame, and the other streams up to it."""
        self.muxer.mux_video(self.encoder.encode(self.encoding.prepare(frame, self.offset)))

    def finish(self) -> None:
        """Add the rest, and close the file."""
        self.muxer.mux_video(self.encoder.encode(None))
        self.muxer.close()
        self.encoder.close()
        write_shape(self.path, self.encoding.container_name, self.encoding.info)

    def abort(self) -> None:
        """Close the unfinished file."""
        with contextlib.suppress(av.error.FFmpegError, OSError, ValueError):
            self.muxer.abort()
        self.encoder.close()


def write_frames(frames: Iterable[Frame], open_file: Callable[[Frame], VideoFile]) -> int:
    """Write frames to a file; return their number, which is at least one. open_file: takes the first.

    Raises: OSError where FFmpeg fails, also where PyAV's error is of another builtin class.
    """
    file: VideoFile | None = None
    count = 0
    try:
        for frame in frames:
            file = file or open_file(frame)
            file.write(frame)
            count += 1
        assert file is not None, "there is at least one frame"
        file.finish()
    except BaseException as error:
        if file is not None:
            file.abort()
        if isinstance(error, av.error.FFmpegError):
            raise OSError(error.errno, error.strerror) from error
        raise
    return count


class _Alone:
    """A container of the video alone, with the methods of Muxer."""

    def __init__(self, path: Path, file: VideoFile) -> None:
        container_name, muxing = file.encoding.container_name, file.encoding.muxing
        options = carry.container_options(container_name, muxing, [file.encoding.info.time_base])
        self.container = av.open(str(path), "w", format=container_name, container_options=options)
        try:
            self.video = file.encoder.add_to(self.container)
            self.container.start_encoding()
        except BaseException:
            self.container.close()
            raise

    def mux_video(self, packets: Iterable[av.Packet]) -> None:
        """Add encoded video."""
        for packet in packets:
            packet.stream = self.video
            self.container.mux(packet)

    def close(self) -> None:
        """Finish the file."""
        self.container.close()

    abort = close
