"""Read a video file or a folder of pictures as frames in presentation order, and the packets to copy.

`open_source` returns a Source: its properties (`info`), then one pass of `items()`, which yields frames in a planar
format with their own times, and between them the packets of the other streams. `threads.threaded` runs such an
iterator in a thread, so that decoding goes on while the device works.
"""

import contextlib
import math
import stat
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.error

from vdeblur.errors import InputError
from vdeblur.events import Warn
from vdeblur.frame import USUAL_CHROMA, Frame, layout_of, planar_name, to_planar
from vdeblur.settings import Cut
from vdeblur.source.captions import CaptionDetector
from vdeblur.source.clock import FrameClock, TimestampRepair, clock_origin
from vdeblur.source.crop import Cropper
from vdeblur.source.decoders import choose_video, decoder_of, refuse_encrypted
from vdeblur.source.demux import (
    PIPE,
    SEEKABLE,
    demux,
    ffmpeg_reason,
    open_container,
    packet_end,
    packet_seconds,
)
from vdeblur.source.dolby_vision import refuse_dolby_vision
from vdeblur.source.excerpt import Excerpt
from vdeblur.source.hdr import read_hdr
from vdeblur.source.info import SourceInfo
from vdeblur.source.pictures import PICTURE_RATE, PictureSource, is_picture
from vdeblur.source.properties import NOTHING, read_properties
from vdeblur.source.upright import display_matrix
from vdeblur.source.urls import check_no_url

STEPS_BACK = (0, 1, 10, 60)  # seconds to seek before a time, if no keyframe that is shown before it follows
MISSING_SECONDS = Fraction(1, 4)  # how much earlier than announced a file may end without a warning


def open_source(path: Path, cut: Cut, warn: Warn) -> "VideoSource | PictureSource":
    """Open a video file, a picture, or a folder of pictures.

    Raises: InputError where it is missing, empty, unreadable, or has no video.
    """
    if path == PIPE:
        return VideoSource(path, cut, warn)
    try:
        if path.is_dir():
            return PictureSource(path, cut, warn)
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # opened several times, and a pipe can be read only once
            hint = "give a file, or pipe the video in: ... | vdeblur run - OUTPUT"
            raise InputError(f"{path} is a pipe or a device, not a file", hint)
        if facts.st_size == 0:
            raise InputError(f"{path} is empty (0 bytes)", "copy or download it again")
        if is_picture(path):
            return PictureSource(path, cut, warn)
        return VideoSource(path, cut, warn)
    except FileNotFoundError as error:
        check_no_url(str(path))
        raise InputError(f"{path}: no such file or folder", "check the path") from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {ffmpeg_reason(error)}", "check the path and its permissions"
        ) from error


class VideoSource:
    """A video file: decodes its first video stream that is no cover, and passes on the packets of the other streams.

    Its times are in seconds on a clock of its own, which never shows a negative time:

        origin               zero of this clock on the container's, which may begin at any time (MPEG-TS)
        start_seconds        the video's start in the header; -ss, --to and -t count from here
        first_frame_seconds  the first frame that can be decoded; often equal, later if the beginning is damaged
        cut_begin, cut_end   the part asked for; None where -ss, or --to and -t, is not given
        first_seconds        cut_begin, or without -ss first_frame_seconds; segments count from here

    damaged: number of packets that could not be decoded, or only in part. buffered: read from a pipe to find the first
    frame, but not yielded yet.
    """

    pictures = False

    def __init__(self, path: Path, cut: Cut, warn: Warn) -> None:
        self.path, self.cut, self.warn = path, cut, warn
        self.damaged = 0
        self.was_read = False
        self.buffered: list[av.VideoFrame | av.Packet] = []
        self.container = open_container(path)
        try:
            self.video = choose_video(self.container, self.path)
            self.decoder = decoder_of(self.video)
            first = self._first_picture()  # rotation and colour are on frames, and not always on the stream
            self.info = self._describe(first)
            refuse_dolby_vision(self.path, first, self.properties)
            first_pts = first.dts if self._in_decoding_order else first.pts
            first_seconds = (first_pts or 0) * self.info.time_base
            # The header's start may be later than a first frame that is shown before the one stored first.
            self.origin = min(clock_origin(self.container), first_seconds)
            self.first_frame_seconds = first_seconds - self._ticks(self.origin) * self.info.time_base
        except BaseException:
            self.container.close()
            raise

    def _first_picture(self) -> av.VideoFrame:
        """Decode the first picture; of a pipe, keep everything read so far in `buffered`."""
        container = self.container if self.is_pipe else open_container(self.path)
        video = choose_video(container, self.path)
        decoder = self.decoder if self.is_pipe else decoder_of(video)
        read: list[av.VideoFrame | av.Packet] = []
        try:
            for packet in demux(container):
                if packet is None or packet.stream.index != video.index:
                    read += [] if packet is None else [packet]
                    continue
                if not packet.size:
                    continue
                refuse_encrypted(packet, self.path)
                with contextlib.suppress(av.error.FFmpegError):
                    pictures = decoder.decode(packet)
                    if pictures:
                        self.buffered = [*read, *pictures] if self.is_pipe else []
                        return pictures[0]
            with contextlib.suppress(av.error.FFmpegError):
                pictures = decoder.decode(None)  # a short video may still be in the decoder
                if pictures:
                    self.buffered = [*read, *pictures] if self.is_pipe else []
                    return pictures[0]
        finally:
            if not self.is_pipe:
                container.close()
        raise InputError(f"{self.path}: not one frame can be decoded", "the file is damaged")

    def _describe(self, first: av.VideoFrame) -> SourceInfo:
        known = not self.is_pipe
        self.properties = read_properties(self.path, self.container.format.name, self.video.index) if known else NOTHING
        self.cropper = Cropper(first, self.properties.cropping, is_3d=bool(self.properties.stereo))
        first = self.cropper.crop(first)
        name = planar_name(first.format.name)
        if layout_of(name) is None:
            raise InputError(
                f"{self.path}: pixel format {first.format.name} is not supported", "convert it: ffmpeg -pix_fmt"
            )
        time_base = self.video.time_base or Fraction(1, 90000)
        rate = self._rate()
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
            display_matrix=display_matrix(first),
            sample_aspect_ratio=self.video.sample_aspect_ratio or None,
            variable_rate=bool(self.video.base_rate) and self.video.base_rate != rate,
        )
        info.hdr, info.interlaced = read_hdr(first), first.interlaced_frame
        info.captions, info.cropping = CaptionDetector().finds(first), self.cropper.cropping
        info.chroma_location = self.properties.chroma_location
        info.stereo, info.spherical = self.properties.stereo, self.properties.spherical
        info.field_order = self.video.codec_context.field_order
        info.streams = [_describe_stream(stream) for stream in self.container.streams]
        info.color = {
            "primaries": int(first.color_primaries),
            "transfer": int(first.color_trc),
            "matrix": int(first.colorspace),
            "range": int(first.color_range),
        }
        return info

    def _rate(self) -> Fraction:
        """Return the mean rate, frames per second. FFmpeg takes it from durations, which it gets wrong in raw DV."""
        mean, guessed = self.video.average_rate or None, self.video.guessed_rate or None
        if mean and guessed and mean > 2 * guessed:
            return guessed
        return mean or guessed or PICTURE_RATE

    def _estimate_frames(self, duration: Fraction | None, rate: Fraction) -> int | None:
        if self.cut.whole and self.video.frames:
            return self.video.frames
        estimate = self.cut.frames
        if duration is not None:
            wanted = max(min(self.cut.stop or duration, duration) - (self.cut.start or 0), Fraction(0))
            estimate = min(estimate or round(wanted * rate), round(wanted * rate))
        return estimate

    @property
    def _in_decoding_order(self) -> bool:
        """Return whether the format stores decoding times alone; see FrameClock."""
        return self.container.format.name == "avi"

    def _ticks(self, seconds: Fraction) -> int:
        """Return a time as the nearest whole number of units of the video's clock."""
        return round(seconds / self.info.time_base)

    @property
    def extras(self) -> list[av.stream.Stream]:
        """All streams but the video."""
        return [stream for stream in self.container.streams if stream.index != self.video.index]

    @property
    def start_seconds(self) -> Fraction:
        """The video's start time in its header, on the source's clock."""
        return ((self.video.start_time or 0) - self._ticks(self.origin)) * self.info.time_base

    @property
    def first_seconds(self) -> Fraction:
        """The time from which segments count: the begin of the part asked for, without -ss the first frame."""
        begin = self.cut_begin
        return self.first_frame_seconds if begin is None else begin

    def _rewind(self) -> None:
        """Open the file again if it was read before: not every format can seek to its beginning."""
        if self.was_read:
            assert not self.is_pipe, "a pipe is read once"
            self._reopen()
        self.was_read = True

    def _reopen(self) -> None:
        self.container.close()
        self.container = open_container(self.path)
        self.video = choose_video(self.container, self.path)
        self.decoder = decoder_of(self.video)

    @property
    def is_pipe(self) -> bool:
        """Return whether the input is standard input, which can be read only once."""
        return self.path == PIPE

    @property
    def seekable(self) -> bool:
        """Return whether the format has an index, so that reading can begin in the middle.

        Frames whose order in AVI is not that of their packets have the right times only if all before them are read.
        """
        if self._in_decoding_order and self.video.codec_context.has_b_frames:
            return False
        return self.container.format.name in SEEKABLE and not self.is_pipe

    def frames(self, seek: Fraction | None = None) -> Iterator[Frame]:
        """Yield the frames alone.

        seek: begin at some frame not after this time, on the source's clock; the cut's number of frames is then
        ignored.

        Raises: InputError where the part asked for holds no frame, or the picture's size or format changes.
        """
        for item in self.items(seek, with_packets=False):
            assert isinstance(item, Frame)
            yield item

    @property
    def wanted_seconds(self) -> Fraction | None:
        """The duration of the part asked for; None if unknown."""
        begin, end = self.cut.start or Fraction(0), self.cut.stop
        length = self.info.duration_seconds
        ends = [each for each in (length, end) if each is not None]
        seconds = max(min(ends) - begin, Fraction(0)) if length is not None else None
        if self.cut.frames is None or seconds is None:
            return seconds
        return min(seconds, self.cut.frames / self.info.rate)

    @property
    def cut_begin(self) -> Fraction | None:
        """The begin of the part asked for, on the source's clock; None: the first frame."""
        return self._on_clock(self.cut.start)

    @property
    def cut_end(self) -> Fraction | None:
        """The end of the part asked for, on the source's clock; None: the file's end."""
        return self._on_clock(self.cut.stop)

    def _on_clock(self, seconds: Fraction | None) -> Fraction | None:
        """Return a time of the cut on the source's clock: as in ffmpeg, the nearest that a frame can have."""
        if seconds is None:
            return None
        return self._ticks(self.start_seconds + seconds) * self.info.time_base

    def items(self, seek: Fraction | None = None, with_packets: bool = True) -> Iterator[Frame | av.Packet]:
        """Yield frames and, if asked, between them the packets of the other streams; see `frames`."""
        self._rewind()
        self._seek(seek)
        self.last_seconds = Fraction(0)
        self.begins_without_keyframe: Fraction | None = None  # when, in seconds
        excerpt = Excerpt(self.cut_begin, self.cut_end, self.cut.frames if seek is None else None)
        clock = FrameClock(self.info, self.warn, self._in_decoding_order)
        for item in self._decoded(with_packets):
            if isinstance(item, av.Packet):
                if excerpt.is_beyond(packet_seconds(item)):
                    break
                yield from excerpt.packets(item)
            elif excerpt.is_over:
                if not with_packets or excerpt.is_beyond((item.pts or 0) * self.info.time_base):
                    break
            else:
                frame = self._frame(item, clock)
                if clock.count == 1 and seek is None:
                    self._check_begin(frame)
                if excerpt.takes(frame):
                    yield frame
                    yield from excerpt.passed(frame)
        yield from excerpt.rest()
        if self.cut.whole:
            self._check_end()
        if excerpt.count == 0 and seek is None:
            if self.cut.whole:
                raise InputError(f"{self.path}: not one frame could be decoded", "the file is damaged")
            known = self.info.duration_seconds
            length = self.last_seconds - self.start_seconds if known is None else known  # read to its end
            message = f"there is no frame in the part asked for; the video is {float(length):.3f} s long"
            raise InputError(f"{self.path}: {message}", "check -ss, -t and --to")

    def _seek(self, seek: Fraction | None) -> None:
        """Move to a keyframe that is shown no later than the part asked for, or than `seek` in it.

        Without an index, or where there is no such keyframe, reading begins at the file's beginning.
        """
        begin = self.cut_begin
        target = begin if seek is None else max(seek, begin or seek)
        if target is None or not self.seekable:
            return
        # Indexes know decoding times. A keyframe that is decoded before the target may be shown after it, and what is
        # shown between them belongs to the keyframe before (open GOP).
        for back in STEPS_BACK:
            place = math.floor((target - back + self.origin) / self.info.time_base)
            if target - back <= self.first_frame_seconds:
                break
            self.container.seek(place, stream=self.video)
            if self._keyframe_is_shown_by(target):
                self._reopen()
                self.container.seek(place, stream=self.video)
                return
        self._reopen()

    def _keyframe_is_shown_by(self, target: Fraction) -> bool:
        """Return whether a keyframe that is shown no later than this time is the next one to be decoded."""
        ticks = self._ticks(target + self.origin)
        for packet in demux(self.container):
            if packet is None or packet.stream.index != self.video.index or not packet.size:
                continue
            with contextlib.suppress(av.error.FFmpegError):
                for picture in self.decoder.decode(packet):
                    time = picture.dts if self._in_decoding_order else picture.pts
                    if picture.key_frame or time is None or time > ticks:
                        return time is not None and time <= ticks
        return False

    def _decoded(self, with_packets: bool) -> Iterator[av.VideoFrame | av.Packet]:
        """Yield pictures and, if asked, packets; first those that `_first_picture` read from a pipe."""
        repair = TimestampRepair(self.origin, self.warn)
        for item in self.buffered:
            if isinstance(item, av.Packet):
                repair.shift(item)
            elif item.pts is not None:
                item.pts -= self._ticks(self.origin)
            yield item
        self.buffered = []
        is_first = True
        for packet in demux(self.container):  # all streams: TimestampRepair needs them together
            if packet is None:
                self.damaged += 1
                continue
            repair.shift(packet)
            self.last_seconds = max(self.last_seconds, packet_end(packet) or self.last_seconds)
            if packet.stream.index != self.video.index:  # packet.stream_index is 0 on the empty packets at the end
                if with_packets:
                    yield packet
                continue
            if (
                not packet.size
            ):  # repeats the last picture (Theora), or is PyAV's at the end; to a decoder, it is the end
                continue
            if is_first and not packet.is_keyframe:
                self.begins_without_keyframe = packet_seconds(packet)
            is_first = False
            try:
                pictures = self.decoder.decode(packet)
            except av.error.FFmpegError:
                self.damaged += 1
                continue
            self.damaged += packet.is_corrupt or any(picture.is_corrupt for picture in pictures)
            yield from pictures
        with contextlib.suppress(av.error.FFmpegError, EOFError):
            yield from self.decoder.decode(None)  # after an error, pictures may still be in the decoder

    def _check_begin(self, first: Frame) -> None:
        """Warn if the part begins before the first keyframe: decoders drop such pictures, and report nothing.

        Pictures that are shown before a keyframe at the very beginning belong to an earlier recording (open GOP).
        """
        begin = self.begins_without_keyframe
        if begin is None:
            return
        lost = first.seconds - max(begin, self.cut_begin or begin)
        if lost > 1 / (2 * self.info.rate):
            message = f"the first {float(lost):.2f} s cannot be decoded, because no keyframe comes before"
            self.warn("W_INPUT_DAMAGED", f"{self.path}: {message}")

    def _check_end(self) -> None:
        """Warn if the file ends before the time in its header; demuxers do not report this."""
        if not self.container.duration:
            return
        last = self.last_seconds + self.origin
        start = Fraction(self.container.start_time or 0, av.time_base)
        announced = Fraction(self.container.duration, av.time_base)
        if not self.container.format.name.startswith("matroska"):  # Matroska's header stores the end time
            announced += start
        if announced - last > max(MISSING_SECONDS, 3 / self.info.rate):
            read, length = float(last - start), float(announced - start)
            message = f"{self.path} is incomplete: it ends after {read:.2f} s of {length:.2f} s"
            self.warn("W_INPUT_TRUNCATED", message)

    def _frame(self, decoded: av.VideoFrame, clock: FrameClock) -> Frame:
        picture = self.cropper.crop(decoded)
        if (picture.width, picture.height) != (self.info.width, self.info.height):
            found = f"{picture.width}x{picture.height}"
            raise InputError(
                f"{self.path}: the picture size changes from {self.info.width}x{self.info.height} to {found} "
                f"at frame {clock.count}",
                "split the file there",
            )
        if planar_name(picture.format.name) != self.info.picture_format:
            found = picture.format.name
            raise InputError(f"{self.path}: the pixel format changes to {found} at frame {clock.count}", "split it")
        pts, duration = clock.next_pts(decoded), decoded.duration or 0
        if picture.format.name != self.info.picture_format:
            picture = to_planar(picture, self.info.picture_format)
        location = self.info.chroma_location or USUAL_CHROMA
        return Frame(picture, pts, self.info.time_base, chroma_location=location, duration=duration)

    def close(self) -> None:
        """Close the file."""
        self.container.close()


def _describe_stream(stream: av.stream.Stream) -> str:
    context = getattr(stream, "codec_context", None)
    codec = getattr(context, "name", None) or "?"
    return f"{stream.type}:{codec}"


Source = VideoSource | PictureSource
