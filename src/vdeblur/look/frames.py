"""Sample a few consecutive frames of each part of a video or folder: their blur, and what only decoded frames show."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice

import av
import av.error
import torch
from torch import Tensor

from vdeblur.look.verdicts import FRAMES, PartVerdict, judge
from vdeblur.source import demux
from vdeblur.source.demuxers import SAFE_INPUT
from vdeblur.source.pictures import PICTURE_RATE, PictureSource, read_picture
from vdeblur.source.side_data import side_data_of
from vdeblur.source.times import PacketTimes
from vdeblur.source.video import Source, VideoSource

PARTS = 8
STEP = 75  # frames from group to group, at most, in files without an index
FEWEST = 6  # frames of a part
# Bits that other codecs need, as a share of those of H.264 for the same quality.
BITS_OF_H264 = {"h264": 1.0, "hevc": 0.6, "av1": 0.6, "vp9": 0.6}


@dataclass(frozen=True)
class SampledPart:
    """A part of a video. begin, end: seconds from the first frame. verdict: None for frames of one colour."""

    begin: Fraction
    end: Fraction
    verdict: PartVerdict | None


@dataclass
class FrameSample:
    """The findings in the sampled frames.

    is_complete: all parts were reached. side_data: the kinds of side data that vdeblur reads, in FFmpeg's names.
    damaged: the number of packets that could not be decoded.
    """

    parts: list[SampledPart] = field(default_factory=list)
    is_complete: bool = True
    interlaced: bool = False
    side_data: set[str] = field(default_factory=set)
    damaged: int = 0


def sample_frames(source: Source, times: PacketTimes | None = None) -> FrameSample:
    """Sample a source; its file is opened once more. times: of its packets, None for pictures."""
    sample = FrameSample()
    bits = _bits_per_pixel(source, times)
    groups = _of_pictures(source) if isinstance(source, PictureSource) else _of_video(source, sample)
    for begin, end, pictures in groups:
        sample.parts.append(SampledPart(begin, end, judge([_luma(picture) for picture in pictures], bits)))
        sample.interlaced |= any(picture.interlaced_frame for picture in pictures)
        sample.side_data |= {name for picture in pictures for name in side_data_of(picture)}
    return sample


def _bits_per_pixel(source: Source, times: PacketTimes | None) -> float | None:
    """Return the mean bits per pixel that H.264 would need; None for pictures and codecs that are hard to compare."""
    info = source.info
    share = BITS_OF_H264.get(info.codec)
    if times is None or not times.packets or share is None:
        return None
    return 8 * times.packet_bytes / times.packets / info.width / info.height / share


def _luma(picture: av.VideoFrame) -> Tensor:
    return torch.from_numpy(picture.to_ndarray(format="gray"))[None, None].float() / 255


Group = tuple[Fraction, Fraction, list[av.VideoFrame]]  # begin and end of a part, frames of it


def _spans(frames: int | None, duration: Fraction) -> list[tuple[Fraction, Fraction]]:
    """Return begin and end of each part, in seconds: at most PARTS, each of at least FEWEST frames."""
    count = PARTS if frames is None else min(max(frames // FEWEST, 1), PARTS)
    return [(duration * index / count, duration * (index + 1) / count) for index in range(count)]


def _of_pictures(source: PictureSource) -> Iterator[Group]:
    files, duration = source.files, source.info.duration_seconds or Fraction(0)
    for begin, end in _spans(len(files), duration):
        first = round(begin * source.info.rate)
        yield begin, end, [read_picture(file)[0] for file in files[first : first + FRAMES]]


def _of_video(source: VideoSource, sample: FrameSample) -> Iterator[Group]:
    info = source.info
    with av.open(str(source.path.absolute()), metadata_errors="replace", options=SAFE_INPUT) as container:
        video = container.streams[source.video.index]
        assert isinstance(video, av.VideoStream)
        video.thread_type = "AUTO"
        if container.format.name not in demux.SEEKABLE or not info.duration_seconds:
            yield from _of_stream(container, video, sample, info.frames_estimate)
            return
        for begin, end in _spans(info.frames_estimate, info.duration_seconds):
            # From the last keyframe in the first half of the part, if there is one; else from the part's first frame.
            first = source.origin + source.start_seconds + begin
            with contextlib.suppress(av.error.FFmpegError, OSError):
                container.seek(int((first + (end - begin) / 2) / info.time_base), stream=video)
            frames = _decoded(container, video, sample)
            inside = (f for f in frames if f.pts is None or f.pts * info.time_base >= first - info.time_base)
            pictures = list(islice(inside, FRAMES))
            if pictures:
                yield begin, end, pictures


def _of_stream(
    container: av.container.InputContainer, video: av.VideoStream, sample: FrameSample, estimate: int | None
) -> Iterator[Group]:
    """Yield groups, read from the beginning, with a step between them."""
    step = STEP if estimate is None else min(max(-(-estimate // PARTS), FEWEST), STEP)
    frames = _decoded(container, video, sample)
    rate = video.average_rate or video.guessed_rate or PICTURE_RATE
    for index in range(PARTS):
        pictures = list(islice(frames, FRAMES))
        if not pictures:
            return
        rest = sum(1 for _ in islice(frames, step - FRAMES))
        yield index * step / rate, (index * step + len(pictures) + rest) / rate, pictures
    sample.is_complete = next(frames, None) is None


def _decoded(
    container: av.container.InputContainer, video: av.VideoStream, sample: FrameSample
) -> Iterator[av.VideoFrame]:
    packets = container.demux(video)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            break
        if not packet.size:  # to a decoder, an empty packet is the end
            continue
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            sample.damaged += 1
    with contextlib.suppress(av.error.FFmpegError, EOFError):
        yield from video.decode(None)
