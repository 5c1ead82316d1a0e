"""Glance at a video: is it blurred by motion, how strongly, and where most.

A few frames, spread over the part to restore, are measured as in measure/blur.py, each with its two neighbours.
"""

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

import torch
from torch import Tensor

from vdeblur.events import Stop, never
from vdeblur.frame import Frame
from vdeblur.measure.blur import SHORT_SIDE, BlurMeasure, blur_of, kind_of, luma_from_rgb, reduced_luma
from vdeblur.restore import color
from vdeblur.source.deinterlace import deinterlaced
from vdeblur.source.video import Source

PLACES = 16  # where frames are measured, at most
READ_FRAMES = 300  # videos up to this length are read once; in longer ones, with an index, each place is sought
MOST_READ = 1200  # frames that are read of a video without an index
SKIPPED = 24  # frames from a keyframe towards a place, at most: decoding a whole group of pictures takes seconds
BLURRED_SHARE = 0.1  # of the frames; with fewer blurred by motion, the video counts as not blurred
LEAST_MOTION = 1.0  # measured pixels from frame to frame; below, blur is not the motion's
GAP = 0.1  # by which the slope across the motion exceeds the one along it in frames that are slightly blurred
# Medians of the blurred frames. Public samples of real handheld video had slopes of -2.26 to -2.04, the pairs of REDS
# -2.13 to -1.98, the strongly shaken GoPro clip in the tests' footage -2.36, with a motion of 1.3 % of its height.
STRONG_SLOPE, STRONG_MOTION = -2.3, 0.01


@dataclass(frozen=True)
class Spot:
    """A measured frame. seconds: its time from the begin of the part to restore."""

    seconds: Fraction
    measure: BlurMeasure

    @property
    def is_blurred(self) -> bool:
        """Return whether its motion blurs it."""
        kind, measure = kind_of(self.measure), self.measure
        is_soft_along = kind == "soft" and measure.slope_across - measure.slope_along > GAP
        return kind == "motion blur" or (is_soft_along and measure.motion > LEAST_MOTION)


@dataclass(frozen=True)
class GlanceResult:
    """The findings of a glance.

    kind: "real" or "strong" (blurred by motion; keys of registry.SUITS), else "sharp", "soft", "defocus" or "noise".
    share: of the frames that motion blurs. slope: median along the motion, of the blurred frames if kind is real or
    strong, else of all. blurriest: the time, in seconds from the begin of the part to restore, where blur is strongest.
    """

    kind: str
    share: float
    slope: float
    blurriest: Fraction

    @property
    def is_blurred(self) -> bool:
        """Return whether motion blurs it."""
        return self.kind in ("real", "strong")


def glance_at(source: Source, deinterlace: str = "auto", stop: Stop = never) -> GlanceResult | None:
    """Measure a source, which is read from its begin or several places; None if no three frames follow one another.

    deinterlace: a mode as for `run`. stop: ends the reading early.
    """
    height = min(source.info.height, source.info.width)
    spots: list[Spot] = []
    for triple in _triples(source, deinterlace):
        if stop() is not None:
            break
        before, now, after = (_luma(frame) for frame in triple)
        spots.append(Spot(triple[1].seconds - source.first_seconds, blur_of(before, now, after)))
    if not spots:
        return None
    blurred = [spot for spot in spots if spot.is_blurred]
    worst = min(blurred or spots, key=lambda spot: spot.measure.slope_along)
    share = len(blurred) / len(spots)
    counted = blurred if share >= BLURRED_SHARE else spots
    slope = statistics.median(spot.measure.slope_along for spot in counted)
    if counted is spots:
        found, count = Counter(kind_of(spot.measure) for spot in spots).most_common(1)[0]
        is_telling = found in ("soft", "defocus", "noise") and count > len(spots) / 2
        return GlanceResult(found if is_telling else "sharp", share, slope, worst.seconds)
    motion = statistics.median(spot.measure.motion for spot in counted) / min(height, SHORT_SIDE)
    kind = "strong" if slope <= STRONG_SLOPE and motion >= STRONG_MOTION else "real"
    return GlanceResult(kind, share, slope, worst.seconds)


def _triples(source: Source, deinterlace: str) -> Iterator[list[Frame]]:
    """Yield three consecutive frames of each place."""
    length, estimate = source.wanted_seconds, source.info.frames_estimate
    if length and source.seekable and (estimate is None or estimate > READ_FRAMES):
        yield from _sought(source, length, deinterlace)
        return
    step = max(-(-(estimate or MOST_READ) // PLACES), 1)
    held: list[Frame] = []
    for number, frame in enumerate(islice(deinterlaced(source.frames(), deinterlace), MOST_READ)):
        held = [*held[-2:], frame]
        if len(held) == 3 and (number - 2) % step == 0:
            yield held


def _sought(source: Source, length: Fraction, deinterlace: str) -> Iterator[list[Frame]]:
    read_to = Fraction(-1)
    for place in range(PLACES):
        begin = source.first_seconds + length * (2 * place + 1) / (2 * PLACES)
        frames = deinterlaced(source.frames(begin), deinterlace)
        triple: list[Frame] = []
        for number, frame in enumerate(frames):
            if frame.seconds < begin and number < SKIPPED:
                continue
            triple.append(frame)
            if len(triple) == 3:
                break
        if len(triple) == 3 and triple[0].seconds > read_to:
            read_to = triple[-1].seconds
            yield triple


@torch.no_grad()
def _luma(frame: Frame) -> Tensor:
    """Return the luma, (1, 1, H, W) in [0, 1], at the measured size."""
    space = color.ColorSpace.of(frame.picture, frame.chroma_location)
    planes = color.planes_of(frame, space, torch.device("cpu"))
    if space.layout.rgb or space.ycgco:
        return reduced_luma(luma_from_rgb(color.to_rgb(planes, space)[None]))
    black, extent = space.luma
    return reduced_luma(((planes[0].float() - black) / extent).clamp_(0, 1)[None, None])
