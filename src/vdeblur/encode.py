"""How frames are encoded, as a video or as pictures, and the container that a video and all else goes into.

What the container cannot hold is found out beforehand, by a trial: a header with just that stream, written to memory.
"""

import contextlib
import dataclasses
import errno
import io
import math
import os
import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import BinaryIO

import av
import av.error
from av.stream import Disposition

from vdeblur.decode import PictureSource, SourceInfo, VideoSource, Warn
from vdeblur.errors import OutputError
from vdeblur.frame import Frame, Layout, layout_of, planar_name

QUICKTIME = {"mp4", "mov", "ipod", "3gp", "3g2", "psp", "f4v"}  # formats that FFmpeg's movenc writes
PICTURE_CODECS = {"png", "mjpeg", "tiff", "webp"}  # of folders of pictures; nobody expects a video in these
CONTAINER_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder"}  # say how the input was written


@dataclass(frozen=True)
class Encoder:
    """How one of FFmpeg's encoders is spoken to.

    odd_sizes: whether it takes odd sizes in subsampled formats. presets: our word for speed to its option's value,
    None where it takes ours. quality: its option for the quality, and what goes with it.
    """

    name: str
    odd_sizes: bool = False
    quality: str = "crf"
    speed: str = "preset"
    presets: dict[str, str] | None = None
    options: dict[str, str] = field(default_factory=dict)


PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
SVT_PRESETS = dict(zip(PRESETS, ("12", "11", "10", "9", "8", "7", "5", "4", "3"), strict=True))
VPX_PRESETS = dict(zip(PRESETS, ("8", "7", "6", "5", "4", "3", "2", "1", "0"), strict=True))

ENCODERS = {
    "libx264": Encoder("libx264"),
    "libx264rgb": Encoder("libx264rgb", odd_sizes=True),
    "libx265": Encoder("libx265", options={"x265-params": "log-level=error"}),
    "libsvtav1": Encoder("libsvtav1", presets=SVT_PRESETS),
    "libvpx-vp9": Encoder("libvpx-vp9", True, "crf", "cpu-used", VPX_PRESETS, {"b": "0", "row-mt": "1"}),
    "libvpx": Encoder("libvpx", True, "crf", "cpu-used", VPX_PRESETS, {"b": "20M"}),
    "rawvideo": Encoder("rawvideo", True, "", ""),
    "ffv1": Encoder("ffv1", True, "", "", None, {"level": "3", "slicecrc": "1"}),
}
Y4M = "yuv4mpegpipe"
CONTAINERS = {"y4m": Y4M, "mkv": "matroska", "ts": "mpegts"}  # FFmpeg's names of what people call otherwise
# What y4m can say; more than 8 bits are an extension of FFmpeg's, which wants to be asked for.
Y4M_DEPTHS = ("", "9le", "10le", "12le", "14le", "16le")
Y4M_FORMATS = (
    *(f"yuv{chroma}p{depth}" for depth in Y4M_DEPTHS for chroma in ("420", "422", "444")),
    *("yuv411p", "gray", "gray9le", "gray10le", "gray12le", "gray16le"),
)
# The encoder for an input's family, and for the family as a user may name it.
FAMILIES = {
    "h264": "libx264",
    "hevc": "libx265",
    "h265": "libx265",
    "av1": "libsvtav1",
    "libdav1d": "libsvtav1",
    "vp9": "libvpx-vp9",
    "libvpx-vp9": "libvpx-vp9",
    "vp8": "libvpx",
    "ffv1": "ffv1",
}
# Containers in which few codecs are at home; the first is the default. Another one can still be asked for.
NEEDS = {
    ".webm": ("libvpx-vp9", "libvpx", "libsvtav1"),
    ".mp4": ("libx264", "libx265", "libsvtav1", "libvpx-vp9"),
    ".m4v": ("libx264", "libx265"),
}


@dataclass(frozen=True)
class EncodeOptions:
    """What a user may ask of the encoder; see `vdeblur run --help`."""

    codec: str | None = None
    crf: float = 16
    preset: str = "medium"
    options: tuple[tuple[str, str], ...] = ()
    pix_fmt: str = "keep"
    lossless: bool = False
    overwrite: bool = False
    format: str | None = None  # of the container; None: by the output's name


def check_output(path: Path, source: Path, overwrite: bool) -> None:
    """Refuse an output that must not or cannot be written, before anything else is done.

    Raises: OutputError.
    """
    try:
        _check_output(path, source, overwrite)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}", "check the path") from error


def _check_output(path: Path, source: Path, overwrite: bool) -> None:
    folder = path.parent
    if source.exists() and path.exists() and path.samefile(source):
        raise OutputError(f"{path} is the input itself", "choose another name for the output")
    if not folder.is_dir():
        raise OutputError(f"the folder {folder} does not exist", f"make it: mkdir -p '{folder}'")
    if path.exists() and not path.is_dir() and not overwrite:
        raise OutputError(f"{path} exists already", "choose another name, or replace it with -y")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise OutputError(f"the folder {path} exists already and is not empty", "choose another, or add -y")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"the folder {folder} is not writable", "check its permissions")


def choose_encoder(info: SourceInfo, suffix: str, options: EncodeOptions, warn: Warn) -> Encoder:
    """Choose the encoder: the one asked for, else that of the input's family, as far as the container takes it.

    Raises: OutputError where it does not exist.
    """
    if options.lossless:
        if suffix.lower() != ".mkv":
            raise OutputError(f"--lossless writes FFV1 in Matroska, not {suffix}", "name the output *.mkv")
        return ENCODERS["ffv1"]
    name = FAMILIES.get(options.codec, options.codec) if options.codec else FAMILIES.get(info.codec, "libx264")
    if not options.codec and suffix.lower() in NEEDS and name not in NEEDS[suffix.lower()]:
        name = NEEDS[suffix.lower()][0]
    if not options.codec and info.codec not in FAMILIES and info.codec not in PICTURE_CODECS:
        warn("W_CODEC", f"{info.codec} is not written by itself; using {name} (--codec chooses another)")
    layout = layout_of(info.picture_format)
    if name == "libx264" and layout is not None and layout.rgb and options.pix_fmt == "keep":
        name = "libx264rgb"
    if name not in ENCODERS:
        try:
            av.Codec(name, "w")
        except ValueError as error:
            known = ", ".join(sorted({*ENCODERS, *FAMILIES}))
            raise OutputError(f"there is no encoder {name!r} here", f"some that there are: {known}") from error
    if name not in ENCODERS:
        warn("W_CODEC", f"--crf and --preset mean nothing to {name} here; use its own options with -e")
    return ENCODERS.get(name, Encoder(name, quality="", speed=""))


def choose_format(info: SourceInfo, encoder: Encoder, wanted: str, warn: Warn, container: str = "") -> str:
    """Choose the pixel format: the input's where the encoder takes it, else the nearest, with a warning.

    Raises: OutputError where the encoder does not take the format asked for, or the size in it.
    """
    if encoder.name == "rawvideo":
        names = list(Y4M_FORMATS) if container == Y4M else [info.picture_format, *Y4M_FORMATS]
    else:
        names = [form.name for form in av.Codec(encoder.name, "w").video_formats or []]
    source = info.picture_format
    chosen = next((name for name in names if name == source.replace("yuvj", "yuv")), None)
    chosen = chosen or next((name for name in names if planar_name(name) == source), None)
    if wanted != "keep":
        if wanted not in names:
            raise OutputError(f"{encoder.name} does not take {wanted}", f"it takes {', '.join(names)}")
        chosen = wanted
    elif chosen is None:
        have = layout_of(source)
        assert have is not None
        options = {name: layout_of(planar_name(name)) for name in names}
        usable = {name: layout for name, layout in options.items() if layout is not None and "j" not in name}
        if not usable:
            raise OutputError(f"{encoder.name} takes no pixel format that is known here", "choose another with -c")
        chosen = min(usable, key=lambda name: _distance(have, usable[name]))
        warn("W_PIX_FMT", f"{encoder.name} cannot hold {source}; writing {chosen}")
    layout = layout_of(planar_name(chosen))
    if layout is not None and not encoder.odd_sizes:
        odd_width, odd_height = info.width % (1 << layout.log2_width), info.height % (1 << layout.log2_height)
        if odd_width or odd_height:
            raise OutputError(
                f"{encoder.name} cannot write {info.width}x{info.height} in {chosen}",
                "use --pix-fmt yuv444p, --codec vp9, or --lossless with an .mkv",
            )
    return chosen


def _distance(have: Layout, layout: Layout) -> tuple[int, ...]:
    """Tell how far a format is from the one at hand: less depth, less chroma, another kind first; then more."""
    coarser = max(layout.log2_width - have.log2_width, 0) + max(layout.log2_height - have.log2_height, 0)
    size = layout.bits + 8 * (4 - layout.log2_width - layout.log2_height)
    return (have.gray < layout.gray, max(have.bits - layout.bits, 0), coarser, have.rgb != layout.rgb, size)


class VideoEncoding:
    """How a video is encoded: decided once, used for each of its parts.

    Raises: OutputError where there is no such encoder, or it does not take the size or the pixel format.
    """

    def __init__(
        self, info: SourceInfo, suffix: str, options: EncodeOptions, warn: Warn, deterministic: bool = False
    ) -> None:
        self.info, self.suffix, self.options, self.deterministic = info, suffix, options, deterministic
        self.container_format = CONTAINERS.get(options.format, options.format) if options.format else _format_of(suffix)
        if self.container_format == Y4M and options.codec is None:
            options = dataclasses.replace(options, codec="rawvideo")
            if info.variable_rate:
                warn("W_TIMING", "y4m knows one frame rate only, so uneven times are lost; -f nut keeps them")
        self.encoder = choose_encoder(info, suffix, options, warn)
        self.format = choose_format(info, self.encoder, options.pix_fmt, warn, self.container_format)

    def add_to(self, container: av.container.OutputContainer) -> av.VideoStream:
        """Add the video's stream to a container; its encoder is opened at the first frame, or with the header."""
        encoder, info = self.encoder, self.info
        options = dict(encoder.options)
        if encoder.quality and not self.options.lossless:
            options[encoder.quality] = f"{self.options.crf:g}"
        if encoder.speed and self.options.preset:
            presets = encoder.presets
            if presets is not None and self.options.preset not in presets and not self.options.preset.isdigit():
                raise OutputError(f"unknown preset {self.options.preset!r}", f"choose from {', '.join(PRESETS)}")
            options[encoder.speed] = (presets or {}).get(self.options.preset, self.options.preset)
        if self.deterministic:
            options["threads"] = (
                "1"  # libx264 in PyAV 18.1 gives other bytes now and then with several, on a busy machine
            )
        options.update(self.options.options)
        stream = container.add_stream(encoder.name, rate=info.rate, options=options)
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = info.width, info.height, self.format
        context.time_base = stream.time_base = info.time_base
        context.thread_type = "AUTO"
        if info.sample_aspect_ratio:
            context.sample_aspect_ratio = info.sample_aspect_ratio
        if info.rotation:
            stream.set_display_rotation(info.rotation)
        context.color_primaries, context.color_trc = info.color["primaries"], info.color["transfer"]
        context.colorspace, context.color_range = info.color["matrix"], info.color["range"]
        if encoder.name == "libx265" and self.suffix.lower() in (".mp4", ".mov", ".m4v"):
            context.codec_tag = "hvc1"  # without it Apple's players refuse the file
        return stream

    def prepare(self, frame: Frame) -> av.VideoFrame:
        """Give a frame's picture as the encoder takes it, with the frame's time."""
        picture = frame.picture
        if picture.format.name != self.format:
            picture = _convert(picture, self.format)
        picture.pts, picture.time_base = frame.pts, frame.time_base
        return picture


class Muxer:
    """An output container: the encoded video, and beside it what is copied from the input."""

    def __init__(
        self,
        target: str | BinaryIO,
        encoding: VideoEncoding,
        source: VideoSource | PictureSource,
        warn: Warn,
    ) -> None:
        self.encoding, self.warn = encoding, warn
        suffix = self.suffix = encoding.suffix
        self.kept: list[str] = []
        self.dropped: list[str] = []
        self.last_dts: dict[int, int] = {}
        self.misplaced = 0
        self.encodes = False  # whether frames are encoded here, and not packets added
        self.offset = source.cut_begin or Fraction(0)
        options = {"avoid_negative_ts": "disabled"} if suffix.lower() in (".mkv", ".webm", ".mka") else {}
        if encoding.container_format == Y4M:
            options["strict"] = "unofficial"
        if encoding.deterministic:
            options["fflags"] = "+bitexact"
        if encoding.container_format in QUICKTIME:
            options["movie_timescale"] = str(_common_clock([encoding.info.time_base, *map(_clock_of, source.extras)]))
        try:
            self.container = av.open(target, "w", format=encoding.container_format, container_options=options)
        except (ValueError, av.error.FFmpegError, OSError) as error:
            hint = "name it *.mp4, *.mkv, *.mov or *.webm" if isinstance(error, ValueError) else "check the path"
            raise OutputError(f"{target} cannot be written: {error}", hint) from error
        try:
            self.video = encoding.add_to(self.container)
            self.copies = self._add_copies(source.extras)
            self._copy_tags(source)
            self.container.start_encoding()
            self._check_options()
        except (ValueError, av.error.FFmpegError, OSError) as error:
            self.abort()
            hint = "try another container (.mkv takes nearly everything) or another --codec"
            raise OutputError(f"{suffix} with {encoding.encoder.name} refused: {error}", hint) from error
        except BaseException:
            self.abort()
            raise

    def _check_options(self) -> None:
        """Refuse options that the encoder did not take; FFmpeg leaves them behind without a word."""
        left = self.video.codec_context.options
        unknown = [key for key, _ in self.encoding.options.options if key in left]
        if unknown:
            name = self.video.codec_context.name
            raise OutputError(f"{name} has no option {unknown[0]!r}", f"ffmpeg -h encoder={name} lists them")

    def _add_copies(self, streams: Iterable[av.stream.Stream]) -> dict[int, av.stream.Stream]:
        """Give the output's stream for the index of each input stream that the container takes."""
        copies = {}
        for stream in streams:
            name = describe(stream)
            if not _container_takes(self.container.format.name, stream):
                self.dropped.append(name)
                why = "is not copied yet" if _is_attachment(stream) else f"cannot be held by {self.suffix}"
                self.warn("W_STREAM_DROPPED", f"{name} {why}; left out")
                continue
            self.kept.append(name)
            copy = self.container.add_stream_from_template(stream, opaque=True)
            copy.metadata.update(stream.metadata)
            copy.disposition = stream.disposition
            copies[stream.index] = copy
        return copies

    def _copy_tags(self, source: VideoSource | PictureSource) -> None:
        if not isinstance(source, VideoSource):
            return
        tags = source.container.metadata.items()
        self.container.metadata.update({key: value for key, value in tags if key.lower() not in CONTAINER_TAGS})
        self.video.metadata.update({k: v for k, v in source.video.metadata.items() if k.lower() != "encoder"})
        self.video.disposition = source.video.disposition
        if source.cut.whole and source.container.chapters():
            self.container.set_chapters(source.container.chapters())

    def mux(self, packet: av.Packet) -> None:
        """Add an encoded packet of the video."""
        packet.stream = self.video
        self.container.mux(packet)

    def encode(self, frame: Frame) -> None:
        """Encode a frame right into the container."""
        picture = self.encoding.prepare(frame)
        picture.pts = frame.pts - round(self.offset / frame.time_base)
        self.encodes = True
        self.container.mux(self.video.encode(picture))

    def copy(self, packet: av.Packet) -> None:
        """Add a packet of one of the input's other streams."""
        index = packet.stream.index
        if index not in self.copies or not packet.time_base:
            return
        shift = round(self.offset / packet.time_base)
        if packet.dts is not None and packet.dts <= self.last_dts.get(index, packet.dts - 1):
            self.misplaced += 1  # a jump back, as where two files were joined: no container takes it
            return
        self.last_dts[index] = packet.dts if packet.dts is not None else self.last_dts.get(index, 0)
        packet.stream = self.copies[index]
        packet.pts = None if packet.pts is None else packet.pts - shift
        packet.dts = None if packet.dts is None else packet.dts - shift
        self.container.mux(packet)

    def close(self) -> None:
        """Complete the container."""
        if self.encodes:
            self.container.mux(self.video.encode(None))
        self.container.close()
        if self.misplaced:
            self.warn("W_STREAM_DAMAGED", f"{self.misplaced} packets of copied streams went back in time; left out")

    def abort(self) -> None:
        """Close it as it is."""
        with contextlib.suppress(av.error.FFmpegError, OSError, ValueError):
            self.container.close()


class PictureEncoding:
    """How frames become numbered pictures: TIFF where they came from TIFF, else PNG; both without loss."""

    def __init__(self, info: SourceInfo) -> None:
        self.codec = "tiff" if info.codec == "tiff" else "png"
        self.suffix = ".tiff" if self.codec == "tiff" else ".png"
        layout = layout_of(info.picture_format)
        assert layout is not None
        deep, alpha = layout.bits > 8, info.picture_format.startswith(("gbrap", "yuva"))
        end = "le" if self.codec == "tiff" else "be"
        if layout.gray:
            self.format = f"gray16{end}" if deep else "gray"
        else:
            self.format = f"{'rgba64' if alpha else 'rgb48'}{end}" if deep else "rgba" if alpha else "rgb24"

    def name_of(self, frame: Frame, number: int) -> str:
        """Give a frame's file name: that of the picture it was, else its number, counted from 1."""
        return Path(frame.name).with_suffix(self.suffix).name if frame.name else f"{number:06}{self.suffix}"

    def encode(self, frame: Frame) -> bytes:
        """Give a frame as a picture file."""
        picture = _convert(frame.picture, self.format)
        encoder = av.CodecContext.create(self.codec, "w")
        assert isinstance(encoder, av.VideoCodecContext)
        encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, self.format
        encoder.time_base = Fraction(1, 25)
        picture.pts, picture.time_base = None, Fraction(1, 25)
        return b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode(None)])


class Worker:
    """Do what it is told in a thread of its own, one thing after the other, behind a bounded queue.

    What fails there comes out at the next call here, and nothing more is done.
    """

    def __init__(self, depth: int) -> None:
        self.queue: queue.Queue[Callable[[], object] | None] = queue.Queue(depth)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._work, name="encode", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while (task := self.queue.get()) is not None:
            if self.error is None:
                try:
                    task()
                except BaseException as error:
                    self.error = error  # the queue is emptied all the same, so that nobody waits for room

    def do(self, function: Callable[..., object], *arguments: object) -> None:
        """Hand over something to do; waits while the queue is full."""
        if self.error is not None:
            raise self.error
        self.queue.put(partial(function, *arguments))

    def finish(self) -> None:
        """Wait until everything handed over is done."""
        self._join()
        if self.error is not None:
            raise self.error

    def drain(self) -> None:
        """Wait as `finish` does, but tell of nothing: something else went wrong before."""
        self._join()

    def _join(self) -> None:
        if self.thread.is_alive():
            self.queue.put(None)
            self.thread.join()


def _clock_of(stream: av.stream.Stream) -> Fraction:
    return stream.time_base or Fraction(1, 1000)


def _common_clock(bases: list[Fraction]) -> int:
    """Give ticks a second in which every stream's first time is a whole number: edit lists count in these."""
    denominators = [base.denominator for base in bases]
    common = math.lcm(*denominators)
    return common if common < 1 << 31 else denominators[0]


def is_container(suffix: str) -> bool:
    """Tell whether a suffix stands for a container that can be written."""
    try:
        return bool(_format_of(suffix))
    except OutputError:
        return False


def _format_of(suffix: str) -> str:
    """Give FFmpeg's name of the container that a suffix stands for.

    Raises: OutputError where it stands for none.
    """
    try:
        return str(av.open(f"trial{suffix}", "w").format.name)  # no file is made before there is a header
    except ValueError as error:
        raise OutputError(
            f"a video cannot be written as {suffix or 'a file without a suffix'}",
            "name it *.mp4, *.mkv, *.mov or *.webm",
        ) from error


def describe(stream: av.stream.Stream) -> str:
    """Name a stream in messages."""
    codec = getattr(getattr(stream, "codec_context", None), "name", None) or "unknown codec"
    return f"stream {stream.index} ({stream.type}, {codec})"


def _is_attachment(stream: av.stream.Stream) -> bool:
    """Whether it is a file in the file: cover art, a font."""
    return bool(stream.disposition & Disposition.attached_pic) or stream.type == "attachment"


def _container_takes(container_format: str, stream: av.stream.Stream) -> bool:
    """Try: write a header with this stream alone, to memory."""
    if _is_attachment(stream):
        return False
    try:
        with av.open(io.BytesIO(), "w", format=container_format) as trial:
            trial.add_stream_from_template(stream, opaque=True)
            trial.start_encoding()
    except (ValueError, av.error.FFmpegError, OSError):
        return False
    return True


def _convert(picture: av.VideoFrame, name: str) -> av.VideoFrame:
    """Give the picture in another pixel format, by its own matrix and range; samples are kept where both hold them."""
    if planar_name(name) == picture.format.name.replace("yuvj", "yuv"):
        converted = picture.reformat(format=name)
    else:
        untagged = int(picture.colorspace) == 2
        matrix = (1 if picture.width >= 1280 or picture.height > 576 else 5) if untagged else int(picture.colorspace)
        converted = picture.reformat(format=name, src_colorspace=matrix, dst_colorspace=matrix)
    converted.colorspace, converted.color_range = picture.colorspace, picture.color_range
    return converted


def write_error(path: Path, error: BaseException) -> OutputError:
    """Say why a path cannot be written."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
    hint = "free some space and run the same command again; what is finished is kept" if full else ""
    return OutputError(f"{path} cannot be written: {what}", hint)
