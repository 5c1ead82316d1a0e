"""Frames and a copy of another file's sound into a video file, encoded as `vdeblur run` would."""

import contextlib
from fractions import Fraction
from pathlib import Path

import av
import av.error

from vdeblur import encode, mux
from vdeblur.decode import PictureSource, SourceInfo, VideoSource, Warn
from vdeblur.errors import OutputError
from vdeblur.frame import Frame


class VideoFile:
    """A video file in the making.

    info: of the frames that will be written. beside: whose other streams are copied, if the container takes them.

    Raises: OutputError where there is no such container, or the encoder refuses.
    """

    def __init__(self, path: Path, info: SourceInfo, beside: VideoSource | PictureSource, warn: Warn) -> None:
        options = encode.EncodeOptions()
        self.encoding = encode.VideoEncoding(info, path.suffix, options, warn)
        self.encoder = self.encoding.open()
        self.offset = beside.cut_begin or Fraction(0)
        try:
            self.muxer = mux.Muxer(
                str(path),
                self.encoding.form,
                beside,
                self.encoder.add_to,
                self.encoding.muxing,
                offset=self.offset,
                end=beside.cut_end,
            )
        except (ValueError, av.error.FFmpegError, OSError) as error:
            self.encoder.close()
            hint = "choose another container; .mkv takes nearly everything"
            name = self.encoding.coding.encoder.name
            raise OutputError(f"{name} in *{path.suffix} was refused: {error}", hint) from error
        encode.warn_of_plans(self.muxer.plans, options, warn)
        if isinstance(beside, VideoSource):
            self.muxer.take_others(mux.other_packets(beside, beside.cut_begin, beside.cut_end))

    def write(self, frame: Frame) -> None:
        """Add a frame, and the sound up to it."""
        self.muxer.mux_video(self.encoder.encode(self.encoding.prepare(frame, self.offset)))

    def finish(self) -> None:
        """Add what is left, and close the file."""
        self.muxer.mux_video(self.encoder.encode(None))
        self.muxer.close()
        self.encoder.close()

    def abort(self) -> None:
        """Close the file as it is."""
        with contextlib.suppress(av.error.FFmpegError, OSError, ValueError):
            self.muxer.abort()
        self.encoder.close()
