"""Frames, and copied packets, to a video file or a folder of pictures that appears whole or not at all.

Everything is written under another name beside the output and renamed at the end. What the container cannot hold is
found out beforehand, by a trial: a header with just that stream, written to memory.
"""

import contextlib
import io
import os
import queue
import shutil
import threading
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import av.error
from av.stream import Disposition

from vdeblur.decode import Cut, PictureSource, SourceInfo, VideoSource, Warn, read_picture
from vdeblur.errors import OutputError, VerificationError
from vdeblur.frame import Frame, Layout, layout_of, planar_name

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
    "ffv1": Encoder("ffv1", True, "", "", None, {"level": "3", "slicecrc": "1"}),
}
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


class Writer(Protocol):
    """Something that takes frames and packets and makes an output of them.

    kept, dropped: the input's other streams that it copies, and those that it cannot hold.
    """

    kept: list[str]
    dropped: list[str]

    def write(self, item: Frame | av.Packet) -> None:
        """Add a frame or a copied packet."""
        ...

    def finish(self) -> None:
        """Complete, check and rename the output."""
        ...

    def abort(self) -> None:
        """Remove what was written."""
        ...


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


def choose_format(info: SourceInfo, encoder: Encoder, wanted: str, warn: Warn) -> str:
    """Choose the pixel format: the input's where the encoder takes it, else the nearest, with a warning.

    Raises: OutputError where the encoder does not take the format asked for, or the size in it.
    """
    video_formats = av.Codec(encoder.name, "w").video_formats or []
    names = [form.name for form in video_formats]
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


class VideoWriter:
    """Encode frames and copy packets into a video file."""

    def __init__(
        self, path: Path, source: VideoSource | PictureSource, cut: Cut, options: EncodeOptions, warn: Warn
    ) -> None:
        self.path, self.options, self.warn = path, options, warn
        info = source.info
        encoder = choose_encoder(info, path.suffix, options, warn)
        self.format = choose_format(info, encoder, options.pix_fmt, warn)
        self.frames = 0
        self.kept: list[str] = []
        self.dropped: list[str] = []
        self.last_dts: dict[int, int] = {}
        self.misplaced = 0
        self.draft = path.absolute().with_name(f".vdeblur-{os.getpid()}-{uuid.uuid4().hex[:8]}{path.suffix}")
        self.offset = Fraction(0) if cut.start is None else source.start_seconds + cut.start
        try:
            self.container = av.open(str(self.draft), "w", container_options=self._container_options())
        except (ValueError, av.error.FFmpegError, OSError) as error:
            hint = "name it *.mp4, *.mkv, *.mov or *.webm" if isinstance(error, ValueError) else "check the path"
            raise OutputError(f"{path} cannot be written: {error}", hint) from error
        try:
            self.video = self._add_video(encoder, info)
            self.copies = self._add_copies(source.extras)
            self._copy_tags(source)
            self.container.start_encoding()
            self._check_options()
        except (ValueError, av.error.FFmpegError, OSError) as error:
            self.abort()
            hint = "try another container (.mkv takes nearly everything) or another --codec"
            raise OutputError(f"{path.suffix} with {encoder.name} refused: {error}", hint) from error
        except BaseException:
            self.abort()
            raise

    def _container_options(self) -> dict[str, str]:
        """Matroska needs no decoding times; let FFmpeg not move late streams because of negative ones."""
        return {"avoid_negative_ts": "disabled"} if self.path.suffix.lower() in (".mkv", ".webm", ".mka") else {}

    def _add_video(self, encoder: Encoder, info: SourceInfo) -> av.VideoStream:
        options = dict(encoder.options)
        if encoder.quality and not self.options.lossless:
            options[encoder.quality] = f"{self.options.crf:g}"
        if encoder.speed and self.options.preset:
            presets = encoder.presets
            if presets is not None and self.options.preset not in presets and not self.options.preset.isdigit():
                raise OutputError(f"unknown preset {self.options.preset!r}", f"choose from {', '.join(PRESETS)}")
            options[encoder.speed] = (presets or {}).get(self.options.preset, self.options.preset)
        options.update(self.options.options)
        stream = self.container.add_stream(encoder.name, rate=info.rate, options=options)
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
        if encoder.name == "libx265" and self.path.suffix.lower() in (".mp4", ".mov", ".m4v"):
            context.codec_tag = "hvc1"  # without it Apple's players refuse the file
        return stream

    def _check_options(self) -> None:
        """Refuse options that the encoder did not take; FFmpeg leaves them behind without a word."""
        left = self.video.codec_context.options
        unknown = [key for key, _ in self.options.options if key in left]
        if unknown:
            name = self.video.codec_context.name
            raise OutputError(f"{name} has no option {unknown[0]!r}", f"ffmpeg -h encoder={name} lists them")

    def _add_copies(self, streams: Iterable[av.stream.Stream]) -> dict[int, av.stream.Stream]:
        """Give the output's stream for the index of each input stream that the container takes."""
        copies = {}
        for stream in streams:
            name = _describe(stream)
            if not _container_takes(self.container.format.name, stream):
                self.dropped.append(name)
                why = "is not copied yet" if _is_attachment(stream) else f"cannot be held by {self.path.suffix}"
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

    def write(self, item: Frame | av.Packet) -> None:
        """Add a frame or a copied packet; see Writer."""
        try:
            if isinstance(item, Frame):
                picture = item.picture
                if picture.format.name != self.format:
                    picture = _convert(picture, self.format)
                picture.pts = item.pts - round(self.offset / item.time_base)
                picture.time_base = item.time_base
                self.container.mux(self.video.encode(picture))
                self.frames += 1
            elif item.stream.index in self.copies and item.time_base:
                index, shift = item.stream.index, round(self.offset / item.time_base)
                if item.dts is not None and item.dts <= self.last_dts.get(index, item.dts - 1):
                    self.misplaced += 1  # a jump back, as where two files were joined: no container takes it
                    return
                self.last_dts[index] = item.dts if item.dts is not None else self.last_dts.get(index, 0)
                item.stream = self.copies[index]
                item.pts = None if item.pts is None else item.pts - shift
                item.dts = None if item.dts is None else item.dts - shift
                self.container.mux(item)
        except (av.error.FFmpegError, OSError) as error:
            raise _write_error(self.path, error) from error

    def finish(self) -> None:
        """Flush, close, count what stands in the file, and give it its name."""
        try:
            self.container.mux(self.video.encode(None))
            self.container.close()
            if self.misplaced:
                self.warn("W_STREAM_DAMAGED", f"{self.misplaced} packets of copied streams went back in time; left out")
            written = _count_frames(self.draft)
            if written != self.frames:
                raise VerificationError(
                    f"{self.path}: {written} frames stand in the file, {self.frames} were written",
                    "try another container or --codec; the input is untouched",
                )
            _sync(self.draft)
            if self.path.exists() and not self.options.overwrite:
                raise OutputError(f"{self.path} has appeared meanwhile", "choose another name, or replace it with -y")
            os.replace(self.draft, self.path)
        except (av.error.FFmpegError, OSError) as error:
            raise _write_error(self.path, error) from error
        finally:
            self.draft.unlink(missing_ok=True)

    def abort(self) -> None:
        """Remove the unfinished file; see Writer."""
        with contextlib.suppress(av.error.FFmpegError, OSError, ValueError):
            self.container.close()
        self.draft.unlink(missing_ok=True)


class PictureWriter:
    """Write frames as numbered pictures: TIFF where they came from TIFF, else PNG; both without loss."""

    def __init__(self, path: Path, source: VideoSource | PictureSource, options: EncodeOptions, warn: Warn) -> None:
        self.path, self.options = path, options
        self.kept: list[str] = []
        self.dropped = [_describe(stream) for stream in source.extras]
        for name in self.dropped:
            warn("W_STREAM_DROPPED", f"{name} has no place in a folder of pictures; left out")
        info = source.info
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
        self.frames = 0
        self.draft = path.absolute().with_name(f".vdeblur-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        try:
            self.draft.mkdir()
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}", "check the folder") from error

    def write(self, item: Frame | av.Packet) -> None:
        """Write a frame; packets of other streams have no place here."""
        if not isinstance(item, Frame):
            return
        self.frames += 1
        name = Path(item.name).with_suffix(self.suffix).name if item.name else f"{self.frames:06}{self.suffix}"
        picture = _convert(item.picture, self.format)
        data = picture_bytes(picture, self.codec)
        try:
            with (self.draft / name).open("xb") as file:
                file.write(data)
        except FileExistsError as error:
            raise OutputError(f"two pictures would be written as {name}", "rename the inputs") from error
        except OSError as error:
            raise _write_error(self.path, error) from error

    def finish(self) -> None:
        """Give the folder its name, or move the pictures into the one that stands there."""
        files = sorted(self.draft.iterdir())
        if len(files) != self.frames:
            raise VerificationError(f"{self.path}: {len(files)} pictures of {self.frames} were written")
        read_picture(files[-1])
        try:
            if not self.path.exists():
                os.replace(self.draft, self.path)
                return
            for file in files:
                os.replace(file, self.path / file.name)
            self.draft.rmdir()
        except OSError as error:
            raise _write_error(self.path, error) from error

    def abort(self) -> None:
        """Remove the unfinished folder; see Writer."""
        shutil.rmtree(self.draft, ignore_errors=True)


def picture_bytes(picture: av.VideoFrame, codec: str = "png") -> bytes:
    """Encode one picture, in the pixel format that it has, as a file's content; codec: png or tiff."""
    encoder = av.CodecContext.create(codec, "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, picture.format.name
    encoder.time_base = Fraction(1, 25)
    picture.pts, picture.time_base = None, Fraction(1, 25)
    return b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode(None)])


class WriterThread:
    """Run a writer in a thread of its own, behind a bounded queue; its errors come out at the next call."""

    def __init__(self, writer: Writer, depth: int) -> None:
        self.writer = writer
        self.queue: queue.Queue[Frame | av.Packet | None] = queue.Queue(depth)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._work, name="encode", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while (item := self.queue.get()) is not None:
            if self.error is None:
                try:
                    self.writer.write(item)
                except BaseException as error:
                    self.error = error  # the queue is emptied all the same, so that nobody waits for room

    def put(self, item: Frame | av.Packet) -> None:
        """Hand over a frame or packet; waits while the queue is full."""
        if self.error is not None:
            raise self.error
        self.queue.put(item)

    def finish(self) -> None:
        """Wait for everything handed over, then finish the output."""
        self._join()
        if self.error is not None:
            raise self.error
        self.writer.finish()

    def abort(self) -> None:
        """Stop, and remove what was written."""
        if self.error is None:
            self.error = RuntimeError("aborted")
        self._join()
        self.writer.abort()

    def _join(self) -> None:
        if self.thread.is_alive():
            self.queue.put(None)
            self.thread.join()


def _describe(stream: av.stream.Stream) -> str:
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


def _count_frames(path: Path) -> int:
    with av.open(str(path.absolute())) as container:
        video = container.streams.video[0]
        return sum(1 for packet in container.demux(video) if packet.size)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_error(path: Path, error: BaseException) -> OutputError:
    full = getattr(error, "errno", None) == 28
    what = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
    return OutputError(f"{path} cannot be written: {what}", "free some space and run it again" if full else "")
