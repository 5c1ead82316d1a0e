"""A video file or a folder of pictures to frames, and to the packets that are copied, in presentation order.

`open_source` gives a Source: what is known beforehand (`info`), then one pass of `items()`: frames in a planar format
with their own times, and between them the packets of the other streams. `threaded` moves any such iterator into a
thread of its own, with a bounded queue, so that decoding runs while the device works.
"""

import contextlib
import math
import queue
import re
import threading
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Protocol, TypeVar

import av
import av.error
from av.stream import Disposition

from vdeblur.errors import InputError
from vdeblur.frame import Frame, layout_of, planar_name

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"}
PICTURE_RATE = Fraction(25)  # frames a second of a folder of pictures, which has none of its own
SECONDS_BEYOND = 10  # how far past the end of a cut-out part the other streams are read
SEEKABLE = {
    "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska,webm",
    "avi",
}  # formats with an index; others are read from their start
BACKWARD_SLACK = Fraction(1, 1000)

PIPE = Path("-")  # standard input, or output

T = TypeVar("T")


@dataclass(frozen=True)
class Cut:
    """The part of a video that is wanted: seconds from its first frame, and at most so many frames."""

    start: Fraction | None = None
    stop: Fraction | None = None
    frames: int | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing is cut off."""
        return self.start is None and self.stop is None and self.frames is None


@dataclass
class SourceInfo:
    """What is known of a source before its first frame is decoded.

    frames_estimate: None where nothing is known. picture_format: planar, as the frames will have it.
    """

    path: Path
    width: int
    height: int
    picture_format: str
    codec: str
    time_base: Fraction
    rate: Fraction
    frames_estimate: int | None
    duration_seconds: Fraction | None
    rotation: int = 0
    sample_aspect_ratio: Fraction | None = None
    variable_rate: bool = False  # as far as the container tells
    streams: list[str] = field(default_factory=list)
    color: dict[str, int] = field(default_factory=dict)


class Warn(Protocol):
    """Takes a warning: a stable code and a sentence."""

    def __call__(self, code: str, message: str) -> None:
        """Take a warning."""


def open_source(path: Path, cut: Cut, warn: Warn) -> "VideoSource | PictureSource":
    """Open a video file or a folder of pictures.

    Raises: InputError where it is missing, empty, unreadable, or has no video.
    """
    if path == PIPE:
        return VideoSource(path, cut, warn)
    try:
        if path.is_dir():
            return PictureSource(path, cut)
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes)", "copy or download it again")
        return VideoSource(path, cut, warn)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file or folder", "check the path") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {_reason(error)}", "check the path and its permissions") from error


class VideoSource:
    """A video file: its first real video stream decoded, the packets of the other streams passed on."""

    def __init__(self, path: Path, cut: Cut, warn: Warn) -> None:
        self.path, self.cut, self.warn = path, cut, warn
        self.damaged = 0  # packets that could not be decoded
        self.was_read = False
        self.held: list[av.VideoFrame | av.Packet] = []  # read of a pipe, but not given yet
        self.container = self._open()
        try:
            self.video = self._choose_video(self.container)
            first = self._peek()  # rotation and colour stand on frames, and not always on the stream
            self.info = self._describe(first)
            self.first_frame_seconds = (first.pts or 0) * self.info.time_base
        except BaseException:
            self.container.close()
            raise

    def _open(self) -> av.container.InputContainer:
        try:
            file = "pipe:0" if self.is_pipe else str(self.path.absolute())
            return av.open(file, metadata_errors="replace")
        except (av.error.FFmpegError, OSError) as error:
            if self.is_pipe:
                raise InputError(f"standard input is not a video: {_reason(error)}", "pipe in y4m or nut") from error
            raise InputError(
                f"{self.path} cannot be read as video: {_reason(error)}", _hint(self.path, error)
            ) from error

    def _peek(self) -> av.VideoFrame:
        """Decode one frame; what was read of a pipe on the way to it is kept."""
        container = self.container if self.is_pipe else self._open()
        video = self._choose_video(container)
        held: list[av.VideoFrame | av.Packet] = []
        try:
            for packet in _demux(container, None if self.is_pipe else [video]):
                if packet is None or packet.stream.index != video.index:
                    held += [] if packet is None else [packet]
                    continue
                with contextlib.suppress(av.error.FFmpegError):
                    pictures = packet.decode()
                    if pictures:
                        self.held = [*held, *pictures] if self.is_pipe else []
                        return pictures[0]
        finally:
            if not self.is_pipe:
                container.close()
        raise InputError(f"{self.path}: not one frame can be decoded", "the file is damaged")

    def _choose_video(self, container: av.container.InputContainer) -> av.VideoStream:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise InputError(f"{self.path} has no video stream (only {kinds})", "give a file that holds video")
        video = streams[0]
        try:
            video.codec_context  # noqa: B018 - absent where FFmpeg knows no decoder
            known = video.codec_context is not None and video.codec_context.pix_fmt is not None
        except (AttributeError, av.error.FFmpegError):
            known = False
        if not known:
            raise InputError(f"{self.path}: its video cannot be decoded here", "convert it with another tool first")
        video.thread_type = "AUTO"
        return video

    def _describe(self, first: av.VideoFrame) -> SourceInfo:
        name = planar_name(first.format.name)
        if layout_of(name) is None:
            raise InputError(
                f"{self.path}: pixel format {first.format.name} is not supported", "convert it: ffmpeg -pix_fmt"
            )
        time_base = self.video.time_base or Fraction(1, 90000)
        rate = self.video.average_rate or self.video.guessed_rate or PICTURE_RATE
        duration = None
        if self.video.duration:
            duration = self.video.duration * time_base
        elif self.container.duration:
            duration = Fraction(self.container.duration, av.time_base)
        info = SourceInfo(
            path=self.path,
            width=first.width,
            height=first.height,
            picture_format=name,
            codec=self.video.codec_context.name,
            time_base=time_base,
            rate=rate,
            frames_estimate=self._estimate_frames(duration, rate),
            duration_seconds=duration,
            rotation=first.rotation,
            sample_aspect_ratio=self.video.sample_aspect_ratio or None,
            variable_rate=bool(self.video.base_rate) and self.video.base_rate != self.video.average_rate,
        )
        info.streams = [_describe_stream(stream) for stream in self.container.streams]
        info.color = {
            "primaries": int(first.color_primaries),
            "transfer": int(first.color_trc),
            "matrix": int(first.colorspace),
            "range": int(first.color_range),
        }
        return info

    def _estimate_frames(self, duration: Fraction | None, rate: Fraction) -> int | None:
        if self.cut.whole and self.video.frames:
            return self.video.frames
        estimate = self.cut.frames
        if duration is not None:
            wanted = max(min(self.cut.stop or duration, duration) - (self.cut.start or 0), Fraction(0))
            estimate = min(estimate or round(wanted * rate), round(wanted * rate))
        return estimate

    @property
    def extras(self) -> list[av.stream.Stream]:
        """The streams that are not decoded."""
        return [stream for stream in self.container.streams if stream.index != self.video.index]

    @property
    def start_seconds(self) -> Fraction:
        """When the video's first frame is shown, on the container's clock."""
        return (self.video.start_time or 0) * self.info.time_base

    @property
    def first_seconds(self) -> Fraction:
        """From when on segments are counted: the first frame's time, or where the part asked for begins."""
        begin = self.cut_begin
        return self.first_frame_seconds if begin is None else begin

    def _rewind(self) -> None:
        """Open the file again if it was read before: not every format finds back to its beginning."""
        if self.was_read:
            assert not self.is_pipe, "a pipe is read once"
            self.container.close()
            self.container = self._open()
            self.video = self._choose_video(self.container)
        self.was_read = True

    @property
    def is_pipe(self) -> bool:
        """Whether it can be read only once."""
        return self.path == PIPE

    @property
    def seekable(self) -> bool:
        """Whether reading can begin in the middle, because the format has an index."""
        return self.container.format.name in SEEKABLE and not self.is_pipe

    def frames(self, seek: Fraction | None = None) -> Iterator[Frame]:
        """Give the frames alone.

        seek: begin at any frame not after this time, on the container's clock, where the format allows; the number of
        frames is not limited then.

        Raises: InputError where the part asked for holds no frame, or the picture changes its size or format.
        """
        for item in self.items(seek, others=False):
            assert isinstance(item, Frame)
            yield item

    def packets(self, end: Fraction | None = None) -> Iterator[av.Packet]:
        """Give the packets of the other streams alone: those that begin within the part asked for, and before `end`."""
        with self._open() as container:
            others = [stream for stream in container.streams if stream.index != self.video.index]
            begin = self.cut_begin
            ends = [time for time in (end, self.cut_end) if time is not None]
            if begin is not None and self.seekable:
                container.seek(int(begin * av.time_base))
            for packet in _demux(container, others) if others else ():
                if packet is None or packet.dts is None:
                    continue
                seconds = packet_seconds(packet)
                if seconds is not None and ends and seconds > min(ends) + SECONDS_BEYOND:
                    return
                if seconds is None or ((begin is None or seconds >= begin) and all(seconds < time for time in ends)):
                    yield packet

    @property
    def cut_begin(self) -> Fraction | None:
        """Where the part asked for begins, on the container's clock."""
        return None if self.cut.start is None else self.start_seconds + self.cut.start

    @property
    def cut_end(self) -> Fraction | None:
        """Where it ends."""
        return None if self.cut.stop is None else self.start_seconds + self.cut.stop

    def items(self, seek: Fraction | None = None, others: bool = True) -> Iterator[Frame | av.Packet]:
        """Give frames and, with others, between them the packets of the other streams; see `frames`."""
        self._rewind()
        begin, end = self.cut_begin, self.cut_end
        target = begin if seek is None else max(seek, begin or seek)
        if target is not None and self.seekable:
            self.container.seek(math.floor(target / self.info.time_base), stream=self.video)
        limit = self.cut.frames if seek is None else None
        count, over = 0, False
        early: deque[av.Packet] = (
            deque()
        )  # with a number of frames the end is only known there: nothing may overtake it
        stamper = _Stamper(self.info, self.warn)
        for item in self._decoded(others):
            if isinstance(item, av.Packet):
                seconds = packet_seconds(item)
                if over and (seconds is None or seconds > (end or 0) + SECONDS_BEYOND):
                    break
                inside = seconds is None or ((begin is None or seconds >= begin) and (end is None or seconds < end))
                if inside and item.dts is not None:
                    if limit is None:
                        yield item
                    else:
                        early.append(item)
                continue
            if over:
                if not others or (item.pts or 0) * self.info.time_base > (end or 0) + SECONDS_BEYOND:
                    break
                continue
            frame = self._frame(item, stamper)
            if begin is not None and frame.seconds < begin - BACKWARD_SLACK:
                continue
            past = end is not None and frame.seconds >= end - BACKWARD_SLACK
            if past or (limit is not None and count >= limit):
                over = True
                end = frame.seconds if end is None else min(end, frame.seconds)
                continue
            count += 1
            yield frame
            while early and (packet_seconds(early[0]) or 0) <= frame.seconds:
                yield early.popleft()
        yield from (packet for packet in early if end is None or (packet_seconds(packet) or 0) < end)
        if count == 0 and seek is None:
            if self.cut.whole:
                raise InputError(f"{self.path}: not one frame could be decoded", "the file is damaged")
            raise InputError(f"{self.path}: there is no frame in the part asked for", "check -ss, -t and --to")

    def _decoded(self, others: bool) -> Iterator[av.VideoFrame | av.Packet]:
        """Give pictures as they are decoded and, with others, packets; what was read to look at comes first."""
        yield from self.held
        self.held = []
        for packet in _demux(self.container, None if others else [self.video]):
            if packet is None:
                self.damaged += 1
            elif packet.stream.index != self.video.index:  # packet.stream_index is 0 on the empty ones at the end
                yield packet
            else:
                try:
                    yield from packet.decode()
                except av.error.FFmpegError:
                    self.damaged += 1
        with contextlib.suppress(av.error.FFmpegError, EOFError):
            yield from self.video.codec_context.decode(None)  # after an error, pictures may still be in the decoder

    def _frame(self, picture: av.VideoFrame, stamper: "_Stamper") -> Frame:
        if (picture.width, picture.height) != (self.info.width, self.info.height):
            found = f"{picture.width}x{picture.height}"
            raise InputError(
                f"{self.path}: the picture size changes from {self.info.width}x{self.info.height} to {found} "
                f"at frame {stamper.count}",
                "split the file there",
            )
        if planar_name(picture.format.name) != self.info.picture_format:
            found = picture.format.name
            raise InputError(f"{self.path}: the pixel format changes to {found} at frame {stamper.count}", "split it")
        pts = stamper.stamp(picture.pts)
        if picture.format.name != self.info.picture_format:
            picture = _to_planar(picture, self.info.picture_format)
        return Frame(picture, pts, self.info.time_base)

    def close(self) -> None:
        """Close the file."""
        self.container.close()


class _Stamper:
    """Give every frame a time: its own, or for streams that carry none the next one at the nominal rate."""

    def __init__(self, info: SourceInfo, warn: Warn) -> None:
        self.step = max(round(1 / (info.rate * info.time_base)), 1)
        self.warn = warn
        self.last: int | None = None
        self.count = 0
        self.warned = False

    def stamp(self, pts: int | None) -> int:
        """Give the time of the next frame; times that do not advance are moved on by one frame."""
        wrong = pts is None or (self.last is not None and pts <= self.last)
        if wrong and not self.warned:
            self.warned = True
            what = "no time" if pts is None else "a time before its predecessor's"
            self.warn("W_TIMESTAMPS", f"frame {self.count} has {what}; such frames are spaced at the nominal rate")
        if pts is None or wrong:
            pts = 0 if self.last is None else self.last + self.step
        self.last = pts
        self.count += 1
        return pts


class PictureSource:
    """A folder of numbered pictures, in natural order of their names."""

    def __init__(self, path: Path, cut: Cut) -> None:
        self.path = path
        files = [file for file in path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file()]
        files.sort(key=natural_key)
        if not files:
            kinds = ", ".join(sorted(PICTURE_SUFFIXES))
            raise InputError(f"{path}: no pictures in this folder", f"expected files ending in {kinds}")
        self.first = math.ceil((cut.start or 0) * PICTURE_RATE)
        stop = len(files) if cut.stop is None else math.ceil(cut.stop * PICTURE_RATE)
        files = files[self.first : stop][: cut.frames]
        if not files:
            raise InputError(f"{path}: there is no picture in the part asked for", "check -ss, -t and --to")
        self.files = files
        picture, codec = read_picture(files[0])
        form = planar_name(picture.format.name)
        if layout_of(form) is None:
            raise InputError(f"{files[0]}: pixel format {picture.format.name} is not supported")
        self.info = SourceInfo(
            path=path,
            width=picture.width,
            height=picture.height,
            picture_format=form,
            codec=codec,
            time_base=1 / PICTURE_RATE,
            rate=PICTURE_RATE,
            frames_estimate=len(files),
            duration_seconds=len(files) / PICTURE_RATE,
            rotation=picture.rotation,
            streams=[f"{len(files)} pictures"],
            color={"primaries": 2, "transfer": 2, "matrix": int(picture.colorspace), "range": int(picture.color_range)},
        )

    extras: tuple[av.stream.Stream, ...] = ()
    start_seconds = Fraction(0)
    cut_begin: Fraction | None = None
    damaged = 0

    @property
    def first_seconds(self) -> Fraction:
        """From when on segments are counted."""
        return self.first / PICTURE_RATE

    seekable = True
    is_pipe = False

    def packets(self, end: Fraction | None = None) -> Iterator[av.Packet]:
        """Give nothing: there is nothing beside the pictures."""
        return iter(())

    def items(self) -> Iterator[Frame | av.Packet]:
        """Give a frame per picture."""
        return self.frames()

    def frames(self, seek: Fraction | None = None) -> Iterator[Frame]:
        """Give a frame per picture; see VideoSource.frames."""
        skipped = 0 if seek is None else max(math.floor(seek * PICTURE_RATE) - self.first, 0)
        for index, file in enumerate(self.files[skipped:], self.first + skipped):
            picture, _ = read_picture(file)
            if (picture.width, picture.height) != (self.info.width, self.info.height):
                raise InputError(
                    f"{file} is {picture.width}x{picture.height}, the first picture {self.info.width}x"
                    f"{self.info.height}",
                    "all pictures of a folder must have one size",
                )
            if planar_name(picture.format.name) != self.info.picture_format:
                raise InputError(
                    f"{file} has the pixel format {picture.format.name}, the first picture another one",
                    "all pictures of a folder must have one format; convert them to PNG of one kind",
                )
            if picture.format.name != self.info.picture_format:
                picture = _to_planar(picture, self.info.picture_format)
            yield Frame(picture, index, self.info.time_base, file.name)

    def close(self) -> None:
        """Nothing is open between pictures."""


def natural_key(path: Path) -> list[tuple[int, str]]:
    """Order names as people do: frame2 before frame10."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def read_picture(path: Path) -> tuple[av.VideoFrame, str]:
    """Decode one picture file; gives it with the name of its codec."""
    try:
        with av.open(str(path.absolute())) as container:
            picture = next(container.decode(video=0))
            return picture, container.streams.video[0].codec_context.name
    except (av.error.FFmpegError, OSError, StopIteration, IndexError) as error:
        raise InputError(f"{path} cannot be read as a picture: {_reason(error)}", "remove or replace it") from error


def _to_planar(picture: av.VideoFrame, name: str) -> av.VideoFrame:
    """Lay the samples out in planes, without touching their values."""
    planar = picture.reformat(format=name)
    planar.colorspace, planar.color_range = picture.colorspace, picture.color_range
    planar.color_primaries, planar.color_trc = picture.color_primaries, picture.color_trc
    return planar


def _demux(
    container: av.container.InputContainer, streams: list[av.stream.Stream] | None
) -> Iterator[av.Packet | None]:
    """Demux some streams, or all; None for a place that cannot be read. Ends at the end of what can."""
    packets = container.demux() if streams is None else container.demux(streams)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError:
            yield None  # FFmpeg's demuxers do not go on after an error
            return
        yield packet


def packet_seconds(packet: av.Packet) -> Fraction | None:
    """Give when a packet is shown or, where that is unknown, decoded."""
    time = packet.pts if packet.pts is not None else packet.dts
    return None if time is None or packet.time_base is None else time * packet.time_base


def _describe_stream(stream: av.stream.Stream) -> str:
    context = getattr(stream, "codec_context", None)
    codec = getattr(context, "name", None) or "?"
    return f"{stream.type}:{codec}"


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def _hint(path: Path, error: BaseException) -> str:
    if isinstance(error, PermissionError):
        return "check its permissions"
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp":
        return "the file is incomplete: it has no index (moov); copy it again, or repair it"
    return "is it a video file? it may be damaged or incomplete"


_END = object()


@dataclass
class _Failure:
    error: BaseException


def threaded(items: Iterator[T], depth: int) -> Generator[T]:
    """Run an iterator in a thread of its own, at most `depth` items ahead; its errors arrive where they occurred.

    Closing the generator stops the thread and waits for it.
    """
    ready: queue.Queue[object] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:
            put(_Failure(error))

    thread = threading.Thread(target=work, name="decode", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
