"""The strength of a frame's restoration, 0 to 1, by measures of its blur: see only_blurred.py."""

from collections.abc import Iterable, Sequence

import numpy

from vdeblur.measure import blur

# Smoothing over time: the largest of a frame and its neighbours, then a triangle of five frames. So strengths change by
# at most a third from frame to frame, the triangle's largest step.
TRIANGLE = (1, 2, 3, 2, 1)
SMOOTHED = 3  # frames before and after a frame that its strength depends on
SHARPEST = 0.9  # the quantile of a scene's slopes that counts as its sharpest frames
MARGIN = 0.1  # below that, frames count as sharp
# Smaller strengths are 0, since slopes of sharp frames differ that much with their content. So no frame of the sharp
# clips of REDS (30 frames) and of four others (120 each) has a strength above 0; with 0.1, up to 120 of 120 had.
LEAST = 0.25
STILL = 1.0  # measured pixels a frame; defocus that moves less is no motion blur
# Slopes of sharp frames reach down to blur.SOFT, so above it a slope alone is no proof of blur. Proofs are:
SOFTER = 0.1  # below blur.SOFT, a slope is a full proof, and a partial one in between
# So far below what the scene's sharpest frames ask for, a frame may be blurred, and LEAST asks for 0.1 more: sharp
# frames reach 0.38 below.
CLEARLY = 0.3
# Or the slope is lower along the motion than across it by so much, partly and fully, in frames that move by FAST
# measured pixels. Frames of sharp clips that move so much and have slopes below -1.6 stayed below 0.12; most blurred
# frames of REDS with slopes above -2 have 0.15 to 0.46. So these clips lose 0.1 dB at most of the 1.7 to 2 that lite
# gains.
DIRECTED = (0.15, 0.2)
FAST = 2.5


def highest_slope(slopes: Iterable[float]) -> float:
    """Return the slope from which a scene's frames need no restoration.

    slopes: along the motion, of frames that move, all or some. Slopes of others are the least of four directions, so
    they are lower, and cannot be compared with these.
    """
    known = list(slopes)
    if not known:
        return blur.HIGHEST
    return max(float(numpy.quantile(known, SHARPEST)) - MARGIN, blur.HIGHEST)


def raw_strength(measure: blur.BlurMeasure, highest: float, has_neighbours: bool) -> float:
    """Return how much of its restoration a frame needs by itself, 0 to 1.

    Noise needs none, nor does defocus that hardly moves, nor a frame without a proof of blur. highest: of the scene,
    for frames that move. has_neighbours: whether the frame's motion is known.
    """
    kind = blur.kind_of(measure)
    if kind == "noise" or (kind == "defocus" and has_neighbours and measure.motion < STILL):
        return 0.0
    along, limit = measure.slope_along, highest if measure.motion >= blur.STILL else blur.HIGHEST
    strength = blur.strength_of(along, limit) * _proof(measure)
    if limit > blur.HIGHEST:
        strength = max(strength, blur.strength_of(along, limit - CLEARLY))
    return strength if strength >= LEAST else 0.0


def _proof(measure: blur.BlurMeasure) -> float:
    """Return how far a frame by itself shows that it is blurred, 0 to 1."""
    soft = (blur.SOFT - measure.slope_along) / SOFTER
    partly, fully = DIRECTED
    gap = measure.slope_across - measure.slope_along
    directed = (gap - partly) / (fully - partly) if measure.motion > FAST else 0.0
    return min(max(soft, directed, 0.0), 1.0)


def smoothed_strength(strengths: Sequence[float], place: int) -> float:
    """Return the strength of the frame at a place, smoothed over time.

    strengths: of the frames of its scene, or of those up to SMOOTHED frames away. Beyond the ends of the scene the
    last value is repeated.
    """
    last = len(strengths) - 1
    total = 0.0
    for offset, weight in enumerate(TRIANGLE, -(len(TRIANGLE) // 2)):
        near = min(max(place + offset, 0), last)
        total += weight * max(strengths[max(near - 1, 0) : near + 2])
    return total / sum(TRIANGLE)
