"""Sample a few frames of each part of a video or folder: their sharpness, and what only decoded frames show.

Sharpness is measured without a reference (measure/temporal.py), so it also depends on the scene: cloth and sky count as
blurred, grain and noise as sharp. It is a rough guide.
"""

import contextlib
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice

import av
import av.error
import torch

from vdeblur.measure.temporal import sharpness
from vdeblur.source import demux
from vdeblur.source.demuxers import SAFE_INPUT
from vdeblur.source.pictures import PICTURE_RATE, PictureSource, read_picture
from vdeblur.source.side_data import side_data_of
from vdeblur.source.video import Source, VideoSource

PARTS = 8
GROUP = 3  # frames measured per part; the median counts
STEP = 75  # frames from group to group, at most, in files without an index
FEWEST = 6  # frames of a part
HEIGHT, WIDTH = 720, 1280  # of larger pictures only the middle is measured
# On the 30 real pairs of REDS at 320x180 sharp frames got 0.734 to 0.760, blurred ones 0.525 to 0.727, 0.65 in the
# middle; strongly shaken frames of GoPro at 1280x720 got 0.36 to 0.55.
SHARP, SLIGHT = 0.70, 0.60


@dataclass(frozen=True)
class SampledPart:
    """A part of a video. begin, end: seconds from the first frame. sharpness: 0 to 1; None for frames of one colour."""

    begin: Fraction
    end: Fraction
    sharpness: float | None

    @property
    def word(self) -> str:
        """The sharpness in words."""
        if self.sharpness is None:
            return "nothing to see"
        if self.sharpness >= SHARP:
            return "sharp"
        return "slightly blurred" if self.sharpness >= SLIGHT else "strongly blurred"


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


def sample_frames(source: Source) -> FrameSample:
    """Sample a source; its file is opened once more."""
    sample = FrameSample()
    groups = _of_pictures(source) if isinstance(source, PictureSource) else _of_video(source, sample)
    for begin, end, pictures in groups:
        values = [_sharpness(picture) for picture in pictures]
        seen = [value for value in values if value is not None]
        sample.parts.append(SampledPart(begin, end, statistics.median(seen) if seen else None))
        sample.interlaced |= any(picture.interlaced_frame for picture in pictures)
        sample.side_data |= {name for picture in pictures for name in side_data_of(picture)}
    return sample


def _sharpness(picture: av.VideoFrame) -> float | None:
    rgb = torch.from_numpy(picture.to_ndarray(format="rgb24"))
    top, left = max(rgb.shape[0] - HEIGHT, 0) // 2, max(rgb.shape[1] - WIDTH, 0) // 2
    middle = rgb[top : top + HEIGHT, left : left + WIDTH].permute(2, 0, 1).float() / 255
    return float(sharpness(middle[None])) or None


Group = tuple[Fraction, Fraction, list[av.VideoFrame]]  # begin and end of a part, frames of it


def _spans(frames: int | None, duration: Fraction) -> list[tuple[Fraction, Fraction]]:
    """Return begin and end of each part, in seconds: at most PARTS, each of at least FEWEST frames."""
    count = PARTS if frames is None else min(max(frames // FEWEST, 1), PARTS)
    return [(duration * index / count, duration * (index + 1) / count) for index in range(count)]


def _of_pictures(source: PictureSource) -> Iterator[Group]:
    files, duration = source.files, source.info.duration_seconds or Fraction(0)
    for begin, end in _spans(len(files), duration):
        first = round(begin * source.info.rate)
        yield begin, end, [read_picture(file)[0] for file in files[first : first + GROUP]]


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
            pictures = list(islice(inside, GROUP))
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
        pictures = list(islice(frames, GROUP))
        if not pictures:
            return
        rest = sum(1 for _ in islice(frames, step - GROUP))
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
