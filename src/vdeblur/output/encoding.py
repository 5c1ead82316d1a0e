"""Choose how a video is encoded, and try the output's container before the work.

From what a user asks for to packets:

    settings.EncodeOptions    the user's options: --codec, --crf, ...
    codecs.Encoder, Coding    one of FFmpeg's encoders with its limits; this encoder with the settings chosen for a run
    VideoEncoding (here)      the Coding and the container of one output; opens as many encoders as there are segments
    encoders.VideoEncoder     an open encoder: pictures in, packets out

A folder of pictures has pictures.PictureEncoding instead of VideoEncoding; run/parts.py calls either an Encoding.
"""

import contextlib
import dataclasses
from fractions import Fraction
from pathlib import Path

import av

from vdeblur.errors import OutputError
from vdeblur.events import Warn, ignore
from vdeblur.frame import Frame, convert_picture
from vdeblur.output.carry import container_format, plan_streams
from vdeblur.output.codecs import Coding, carries_captions, choose_encoder, without_reordering
from vdeblur.output.complete import warn_of_views
from vdeblur.output.encoders import VideoEncoder, open_encoder, warn_of_captions
from vdeblur.output.formats import choose_format, tags_for
from vdeblur.output.muxer import Muxer
from vdeblur.output.shape import KEEPERS, keeps_shape, upright_for
from vdeblur.output.tracks import CONVERT, DROP, MuxOptions, StreamPlan
from vdeblur.output.trials import REFUSALS, refusal_words, trial
from vdeblur.output.y4m import Y4mFile
from vdeblur.settings import EncodeOptions
from vdeblur.source.captions import CaptionDetector
from vdeblur.source.info import SourceInfo
from vdeblur.source.upright import turn_upright
from vdeblur.source.video import Source

Y4M = "yuv4mpegpipe"
WRITES_FILES = 0x1  # FFmpeg's AVFMT_NOFILE: the muxer opens files by itself, as hls, dash, segment and tee do
BLU_RAY = {".m2ts", ".mts", ".m2t"}  # suffixes of MPEG-TS as Blu-ray discs and cameras hold it
CONTAINERS = {"y4m": Y4M, "mkv": "matroska", "ts": "mpegts"}  # common name to FFmpeg's


class VideoEncoding:
    """The encoding and container of a video; one object serves all its parts.

    info: of the pictures as they are written. orientation: EXIF's, by which they are turned before; 1 where the output
    holds how players turn them. container_name: FFmpeg's name of the container. suffix: the output's, in messages.
    format: the pixel format. stream_plans: of the input's other streams, after try_container. is_pipe: whether the
    output cannot be completed after the muxer has written it.

    Raises: OutputError where there is no such encoder, or it does not take the size or the pixel format.
    """

    def __init__(
        self,
        info: SourceInfo,
        suffix: str,
        options: EncodeOptions,
        warn: Warn,
        *,
        pictures: bool = False,
        deterministic: bool = False,
        is_pipe: bool = False,
    ) -> None:
        """Choose encoder and pixel format. pictures: the input is a folder of pictures, whose codec does not count."""
        self.info, self.warn, self.is_pipe = info, warn, is_pipe
        named = options.format and CONTAINERS.get(options.format, options.format)
        self.container_name = named or container_format(Path(f"output{suffix}"))
        _check_writes_one_file(self.container_name)
        self.muxing = MuxOptions(
            options.audio, options.subtitles, deterministic, suffix.lower() in BLU_RAY, "" if named else suffix
        )
        if self.container_name == Y4M:
            options, suffix = dataclasses.replace(options, codec=options.codec or "rawvideo"), ".y4m"
            if self.info.variable_rate:
                warn("W_TIMING", "y4m has one constant frame rate, so uneven frame times are lost; -f nut keeps them")
        self.suffix = f"-f {options.format}" if named else suffix
        self.info, self.orientation = upright_for(info, self.container_name, self.suffix, warn)
        if info.interlaced and not self.info.interlaced and options.deinterlace == "off":
            warn("W_INTERLACED", "turned pictures have no fields, so the output is marked as progressive")
        encoder = choose_encoder(
            self.info,
            suffix,
            self.container_name,
            options.codec,
            lossless=options.lossless,
            pictures=pictures,
            keep=options.pix_fmt == "keep",
            warn=warn,
        )
        encoder, self.format = choose_format(self.info, encoder, suffix, options.pix_fmt, warn)
        if self.container_name == "avi":
            encoder = without_reordering(encoder, options.options, warn)
        self.info = tags_for(self.info, self.format)
        fields = self.info.interlaced and options.deinterlace == "off"
        self.coding = Coding(
            encoder,
            self.format,
            options.crf,
            options.preset,
            options.options,
            options.lossless,
            fields,
            options.bitrate,
        )
        warn_of_views(info, self.container_name, warn)
        self.stream_plans: list[StreamPlan] | None = None
        self.captions = None if info.captions or carries_captions(encoder) else CaptionDetector()

    def open(self) -> VideoEncoder:
        """Open a new encoder.

        Raises: OutputError where an option is unknown.
        """
        return open_encoder(self.info, self.coding, self.warn)

    def prepare(self, frame: Frame, offset: Fraction = Fraction(0)) -> av.VideoFrame:
        """Return a frame's picture in the encoder's pixel format, with the frame's time, `offset` seconds earlier."""
        picture = turn_upright(frame.picture, self.orientation) if self.orientation != 1 else frame.picture
        if self.captions is not None and self.captions.finds(picture):  # they begin later than the video
            warn_of_captions(self.coding.encoder.name, self.warn)
            self.captions = None
        if picture.format.name != self.format:
            picture = convert_picture(picture, self.format)
        picture.pts, picture.time_base = frame.pts - round(offset / frame.time_base), frame.time_base
        return picture

    def try_container(self, source: Source, encoder: VideoEncoder | None = None) -> list[StreamPlan]:
        """Write the header with everything in it to memory; return, and keep, the plan of each other stream.

        encoder: the one to try; None opens one for the trial.

        Raises: OutputError where the container or the encoder refuses.
        """
        tried = encoder or self.open()
        name = self.coding.encoder.name
        try:
            self.stream_plans = plan_streams(source, self.container_name, self.muxing, tried.add_to)
            with trial(self.container_name) as file:
                tried.add_to(file)
                file.start_encoding()
                tried.check_options()
        except REFUSALS as error:
            if self.coding.options:
                given = " and ".join(f"-e {key}" for key, _ in self.coding.options)
                hint = f"check {given}: ffmpeg -h encoder={name} lists what it takes"
            else:
                hint = "try another container (.mkv takes nearly everything) or another --codec"
            reason = refusal_words(error)
            raise OutputError(f"{name} cannot write {self.container_name}: {reason}", hint) from error
        finally:
            if encoder is None:
                tried.close()
        self._warn_of_shape()
        return self.stream_plans

    def _warn_of_shape(self) -> None:
        """Warn where the output would lose the shape of pixels.

        Where no second encoder opens, as hardware has few of them, there is no warning.
        """
        aspect = self.info.sample_aspect_ratio
        if not aspect or aspect == 1 or self.container_name == Y4M:
            return
        is_kept = True
        with (
            contextlib.suppress(OutputError, *REFUSALS),
            contextlib.closing(open_encoder(self.info, self.coding, ignore)) as encoder,
        ):
            is_kept = keeps_shape(self.info, self.container_name, self.format, encoder, is_pipe=self.is_pipe)
        if not is_kept:
            shape = f"{aspect.numerator}:{aspect.denominator}"
            message = f"{self.suffix} holds no shape of pixels for {self.coding.encoder.name}"
            self.warn("W_PIXEL_SHAPE", f"{message}, so players show square ones, not {shape} ({KEEPERS})")

    def open_muxer(self, target: str, source: Source, encoder: VideoEncoder, *, end: Fraction | None = None) -> Muxer:
        """Open the container and write its header, as try_container planned it.

        end: where the part ends, in seconds on the source's clock.
        """
        assert self.stream_plans is not None, "try_container comes first"
        offset = source.cut_begin or Fraction(0)
        aspect = self.info.sample_aspect_ratio
        is_shaped = self.container_name == Y4M and aspect and aspect != 1
        file = Y4mFile(target, aspect) if is_shaped and aspect else target
        plans, add_video = self.stream_plans, encoder.add_to
        try:
            return Muxer(file, self.container_name, source, plans, add_video, self.muxing, offset=offset, end=end)
        except BaseException:
            if isinstance(file, Y4mFile):
                file.close()
            raise


def warn_of_plans(plans: list[StreamPlan], options: EncodeOptions, warn: Warn) -> None:
    """Warn of streams that are dropped or converted, but not of those that the user left out."""
    for plan in plans:
        is_requested = (plan.type == "audio" and not options.audio) or (
            plan.type == "subtitle" and not options.subtitles
        )
        if plan.action == DROP and not is_requested:
            warn("W_STREAM_DROPPED", f"{plan.name} {plan.reason}; left out")
        elif plan.action == CONVERT:
            warn("W_STREAM_CONVERTED", f"{plan.name} {plan.reason}")


def is_container(suffix: str) -> bool:
    """Return whether a suffix stands for a container that FFmpeg can write as one file."""
    try:
        _check_writes_one_file(container_format(Path(f"output{suffix}")))
    except OutputError:
        return False
    return True


def _check_writes_one_file(container_name: str) -> None:
    """Refuse a container whose muxer writes further files, of which none would be complete or refused as a whole.

    Raises: OutputError.
    """
    with contextlib.suppress(ValueError):  # there is no such container, which is reported later
        if av.ContainerFormat(container_name, "w").flags & WRITES_FILES:
            message = f"{container_name} opens files or connections by itself, and an output is one file"
            raise OutputError(message, f"write an .mkv, then: ffmpeg -i OUTPUT.mkv -c copy -f {container_name} ...")
