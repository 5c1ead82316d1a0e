"""Find where an excerpt begins in a longer video, by the pictures themselves.

Both are reduced to small grey pictures. A few frames of the shorter video are laid over every place of the longer one,
at their times; the place with the least difference counts. Blur and its removal hardly change such small pictures.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy

from vdeblur.frame import Frame
from vdeblur.source.video import Source, VideoSource

SMALL = (32, 18)  # columns and lines
SAMPLES = 12  # frames of the shorter video that are laid over the longer one
SAMPLE_SECONDS = 4.0  # the part of the shorter video that they come from
EQUAL_SECONDS = Fraction(1, 2)  # lengths that differ by less are no excerpt
LARGEST = 12.0  # grey levels of 255; a mean difference above means that the excerpt is not found
NOISE = 0.5  # grey levels by which a place must be better than the beginning


@dataclass(frozen=True)
class FoundOffset:
    """The place of an excerpt. seconds: from A's first frame to B's; negative where A is the excerpt.

    is_certain: whether no other place, more than a second away, is nearly as good.
    """

    seconds: Fraction
    is_certain: bool = True


NO_OFFSET = FoundOffset(Fraction(0))


def find_offset(a: Source, b: Source) -> FoundOffset:
    """Return where one of two sources begins in the other; zero where they are equally long or unalike.

    It reads both, the longer one completely.
    """
    long, short = a.wanted_seconds, b.wanted_seconds
    if long is None or short is None or abs(long - short) < EQUAL_SECONDS:
        return NO_OFFSET
    if long >= short:
        return _place(a, b)
    found = _place(b, a)
    return FoundOffset(-found.seconds, found.is_certain)


def begin_of(source: Source) -> Fraction:
    """Return the time of a source's first frame, from which offsets count."""
    return source.first_frame_seconds if isinstance(source, VideoSource) else Fraction(0)


def _place(long: Source, short: Source) -> FoundOffset:
    wanted_times, wanted = _small_pictures(_beginning(short), short.info.rotation)
    times, pictures = _small_pictures(long.frames(), long.info.rotation)
    if len(times) < 2 or not len(wanted_times):
        return NO_OFFSET
    chosen = numpy.unique(numpy.linspace(0, len(wanted_times) - 1, SAMPLES).round().astype(int))
    total = numpy.zeros(len(times))
    for index in chosen:
        shown = times + (wanted_times[index] - wanted_times[0])
        nearest = _nearest(times, shown)
        difference = numpy.abs(pictures[nearest] - wanted[index]).mean(1)
        total += numpy.where(shown <= times[-1] + 0.5 / float(long.info.rate), difference, numpy.inf)
    scores = total / len(chosen)
    best = int(scores.argmin())
    if scores[best] > LARGEST or scores[best] > scores[0] - NOISE:
        return NO_OFFSET
    others = scores[numpy.abs(times - times[best]) > 1]
    certain = not len(others) or bool(others.min() > scores[best] + NOISE)
    return FoundOffset(Fraction(float(times[best] - times[0])).limit_denominator(1_000_000), certain)


def _nearest(times: numpy.ndarray, shown: numpy.ndarray) -> numpy.ndarray:
    """Return the index of the time nearest to each of others; both rise."""
    after = numpy.searchsorted(times, shown).clip(1, len(times) - 1)
    nearest: numpy.ndarray = numpy.where(shown - times[after - 1] <= times[after] - shown, after - 1, after)
    return nearest


def _beginning(source: Source) -> Iterator[Frame]:
    """Yield the frames of the first SAMPLE_SECONDS."""
    begin: Fraction | None = None
    for frame in source.frames():
        begin = frame.seconds if begin is None else begin
        if float(frame.seconds - begin) > SAMPLE_SECONDS:
            return
        yield frame


def _small_pictures(frames: Iterator[Frame], rotation: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return times in seconds, (N,), and upright grey pictures, (N, pixels) float32."""
    times, pictures = [], []
    size = SMALL[::-1] if rotation % 180 else SMALL
    for frame in frames:
        small = frame.picture.reformat(*size, format="gray", interpolation="AREA")
        times.append(float(frame.seconds))
        upright = numpy.rot90(small.to_ndarray(), rotation // 90)
        pictures.append(upright.reshape(-1).astype(numpy.float32))
    return numpy.array(times), numpy.array(pictures)
