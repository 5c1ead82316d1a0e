"""Frames, and copied packets, to a video file or a folder of pictures that appears whole or not at all.

Everything is written under another name beside the output and renamed at the end. What the container cannot hold is
found out beforehand, by a trial: a header with just that stream, written to memory.
"""

import contextlib
import os
import queue
import shutil
import threading
import uuid
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import av.error

from vdeblur.codecs import Coding, choose_encoder, choose_format, open_encoder
from vdeblur.decode import Cut, PictureSource, VideoSource, Warn, read_picture
from vdeblur.errors import OutputError, VerificationError
from vdeblur.frame import Frame, layout_of, planar_name
from vdeblur.mux import CONVERT, DROP, Muxer, MuxOptions, StreamPlan, codec_name, container_format


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
    audio: bool = True
    subtitles: bool = True
    deterministic: bool = False
    deinterlace: str = "auto"

    @property
    def muxing(self) -> MuxOptions:
        """What of it concerns the container."""
        return MuxOptions(self.audio, self.subtitles, self.deterministic)


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


class VideoWriter:
    """Encode frames and copy packets into a video file."""

    def __init__(
        self, path: Path, source: VideoSource | PictureSource, cut: Cut, options: EncodeOptions, warn: Warn
    ) -> None:
        self.path, self.options, self.warn = path, options, warn
        self.frames = 0
        form = container_format(path)
        coding = choose_coding(source, path.suffix, options, warn)
        self.format = coding.format
        self.encoder = open_encoder(source.info, coding, warn)
        self.draft = path.absolute().with_name(f".vdeblur-{os.getpid()}-{uuid.uuid4().hex[:8]}{path.suffix}")
        offset = Fraction(0) if cut.start is None else source.start_seconds + cut.start
        end = None if cut.stop is None else source.start_seconds + cut.stop
        try:
            self.muxer = Muxer(self.draft, form, source, self.encoder.add_to, options.muxing, offset=offset, end=end)
        except (ValueError, av.error.FFmpegError, OSError) as error:
            self._discard()
            hint = "try another container (.mkv takes nearly everything) or another --codec"
            raise OutputError(f"{path.suffix} with {coding.encoder.name} refused: {error}", hint) from error
        except BaseException:
            self._discard()
            raise
        try:
            self.encoder.check_options()
        except BaseException:
            self.abort()
            raise
        self.offset = offset
        self.kept = [plan.name for plan in self.muxer.plans if plan.action != DROP]
        self.dropped = [plan.name for plan in self.muxer.plans if plan.action == DROP]
        warn_of_plans(self.muxer.plans, options.muxing, warn)

    def write(self, item: Frame | av.Packet) -> None:
        """Add a frame or a copied packet; see Writer."""
        try:
            if isinstance(item, av.Packet):
                self.muxer.copy(item)
                return
            picture = item.picture
            if picture.format.name != self.format:
                picture = _convert(picture, self.format)
            picture.pts = item.pts - round(self.offset / item.time_base)
            picture.time_base = item.time_base
            self.muxer.mux_video(self.encoder.encode(picture))
            self.frames += 1
        except (av.error.FFmpegError, OSError) as error:
            raise _write_error(self.path, error) from error

    def finish(self) -> None:
        """Flush, close, count what stands in the file, and give it its name."""
        try:
            self.muxer.mux_video(self.encoder.encode(None))
            self.muxer.close()
            self.encoder.close()
            if self.muxer.misplaced:
                self.warn("W_STREAM_DAMAGED", f"{self.muxer.misplaced} damaged packets of copied streams left out")
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
            self.muxer.abort()
        self._discard()

    def _discard(self) -> None:
        self.encoder.close()
        self.draft.unlink(missing_ok=True)


def choose_coding(source: VideoSource | PictureSource, suffix: str, options: EncodeOptions, warn: Warn) -> Coding:
    """Choose encoder and pixel format for a source, and say what they lose.

    Raises: OutputError where there is no such encoder, or it does not take the format or size.
    """
    info = source.info
    encoder = choose_encoder(
        info,
        suffix,
        options.codec,
        lossless=options.lossless,
        pictures=source.pictures,
        keep=options.pix_fmt == "keep",
        warn=warn,
    )
    encoder, form = choose_format(info, encoder, suffix, options.pix_fmt, warn)
    fields = info.interlaced and options.deinterlace == "off"
    return Coding(encoder, form, options.crf, options.preset, options.options, options.lossless, fields)


def warn_of_plans(plans: list[StreamPlan], options: MuxOptions, warn: Warn) -> None:
    """Say which streams are not kept as they are; what was left out as asked goes without saying."""
    for plan in plans:
        asked = (plan.type == "audio" and not options.audio) or (plan.type == "subtitle" and not options.subtitles)
        if plan.action == DROP and not asked:
            warn("W_STREAM_DROPPED", f"{plan.name} {plan.reason}; left out")
        elif plan.action == CONVERT:
            warn("W_STREAM_CONVERTED", f"{plan.name} {plan.reason}")


class PictureWriter:
    """Write frames as numbered pictures: TIFF where they came from TIFF, else PNG; both without loss."""

    def __init__(self, path: Path, source: VideoSource | PictureSource, options: EncodeOptions, warn: Warn) -> None:
        self.path, self.options = path, options
        self.kept: list[str] = []
        self.dropped = [f"stream {stream.index} ({stream.type}, {codec_name(stream)})" for stream in source.extras]
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
        encoder = av.CodecContext.create(self.codec, "w")
        assert isinstance(encoder, av.VideoCodecContext)
        encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, self.format
        encoder.time_base = Fraction(1, 25)
        picture.pts, picture.time_base = None, Fraction(1, 25)
        data = b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode(None)])
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
