"""Judge a part of a video by a few consecutive frames: motion blur, defocus, noise, compression or sharp."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from vdeblur.measure.blur import BlurMeasure, Kind, block_edges, blur_of, kind_of, reduced_luma
from vdeblur.measure.shutter import fit_shutter

FRAMES = 5  # consecutive ones per part
COUNTS = 1  # from 0: the second most blurred of them counts; in handheld footage others may be sharp
SHARP_SLOPE = -1.75  # of a frame that may explain a blurred one
LEAST_RISE = 0.3  # of the slope, from the blurred frame to the sharp one
REACH = 2  # frames between the two, at most
# What deblurring does for a kind of footage, and what else would. "sharp" needs nothing.
ADVICE: dict[Kind, str] = {
    "motion blur": "motion blur: deblurring helps",
    "soft": "slightly soft: deblurring changes little; restore a few seconds first and compare",
    "defocus": "out of focus: removing motion blur does not help; a sharpening filter does a little",
    "noise": "noise: deblurring may sharpen it; remove the noise first, with ffmpeg's hqdn3d or nlmeans for example",
    "compression": "perhaps soft by compression: deblurring may sharpen block edges; look for a better copy",
}


@dataclass(frozen=True)
class PartVerdict:
    """The verdict on a part.

    measure: of the second most blurred of its frames, but median noise and alikeness. edges: of block_edges(). shutter:
    how long the exposure lasted, as a share of the interval between frames; None where it could not be fitted.
    """

    kind: Kind
    measure: BlurMeasure
    edges: float
    shutter: float | None = None


def judge(frames: Sequence[Tensor], bits_per_pixel: float | None = None) -> PartVerdict | None:
    """Judge consecutive frames, each luma (1, 1, H, W) in [0, 1] in its full size; None if they are of one colour.

    bits_per_pixel: see kind_of().
    """
    if all(float(frame.amax() - frame.amin()) == 0 for frame in frames):
        return None
    edges = statistics.median(block_edges(frame) for frame in frames)
    small = [reduced_luma(frame) for frame in frames]
    found = [
        blur_of(before, now, after)
        for before, now, after in zip([None, *small[:-1]], small, [*small[1:], None], strict=True)
    ]
    chosen = sorted(found, key=lambda each: each.slope_along)[min(COUNTS, len(found) - 1)]
    noise, alikeness = (statistics.median(getattr(each, name) for each in found) for name in ("noise", "alikeness"))
    measure = replace(chosen, noise=noise, alikeness=alikeness)
    slopes = [each.slope_along for each in found]
    return PartVerdict(kind_of(measure, bits_per_pixel, edges), measure, edges, _shutter(small, slopes))


def _shutter(frames: Sequence[Tensor], slopes: Sequence[float]) -> float | None:
    """Fit the exposure of the most blurred frame that has two neighbours and a sharp frame near."""
    for index in sorted(range(1, len(frames) - 1), key=slopes.__getitem__):
        near = range(max(index - REACH, 0), min(index + REACH + 1, len(frames)))
        best = max(near, key=slopes.__getitem__)
        if slopes[best] >= SHARP_SLOPE and slopes[best] - slopes[index] >= LEAST_RISE:
            fit = fit_shutter(frames[index - 1], frames[index], frames[index + 1], frames[best])
            return None if fit is None else fit.share
    return None
