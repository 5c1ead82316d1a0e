"""Measure how blurred a frame is, and find the kind: motion blur, defocus, noise or compression.

The measure is the slope of the luma's structure function, D(l) = mean of (Y(x + l u) - Y(x))^2, between distances of
1 and 4 pixels: ln(D(1) / D(4)). White noise has the slope 0, a smooth picture 2 ln(1/4) = -2.77; brightness and
contrast cancel. Motion blur lowers the slope along the motion, but hardly across it; defocus lowers both. Unlike the
variance of the Laplacian it depends little on the scene: on the 30 real pairs of REDS at 320x180 all sharp frames got
-1.53 to -1.32, all blurred ones -2.33 to -1.59.

Pictures are measured with a short side of at most 540 pixels: larger ones are soft in their finest detail even where
they are sharp, because of lenses, demosaicing and encoders. A frame of 1280x720 takes 15 to 18 ms of one core, a third
of that for its motion; its reduction 2 to 3 ms more.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.networks import lucas_kanade

SHORT_SIDE = 540
LUMA = (0.299, 0.587, 0.114)  # BT.601
NEAR, FAR = 1, 4  # distances in pixels; slopes depend on them
FLOOR = 1e-7  # added to D: a picture of one colour has the slope 0
BLOCK = 64  # side of the blocks of a map, in measured pixels
LEAST_DETAIL = 1e-4  # D(4) of a block whose slope means anything
STILL = 0.5  # pixels; below, the direction of motion is unknown
FLOW_ROWS = 120  # motion is estimated at a quarter of the measured size, or less reduced where rows were fewer
NOISE_STEP = 3  # noise is measured at every third position: no divisor of the 8 pixels between edges of blocks
HIGHEST = -1.6  # slope from which a frame is not blurred, unless its scene shows a better one
SPAN = 0.4  # from the slope that needs no restoration to the one that needs all of it
# Slopes. Sharp footage got -1.91 to -1.18, all but a few parts above -1.85.
SOFT, BLURRED = -1.9, -2.05
# Motion of so many pixels blurs no more than REST - PER_PIXEL * pixels: real frames of REDS and GoPro and moved
# photographs stayed above; photographs out of focus whose directions differ were below.
REST, PER_PIXEL = -1.75, 0.15
# Fine texture in flat places is as strong as noise of up to 2.4, but alike in neighbours.
MUCH_NOISE = 3.2
# Differences at the edges of blocks: sharp footage 0.89 to 1.14, a video soft by compression 1.07 to 1.66.
BLOCKY = 1.2
# Bits per pixel of H.264. Made clips: CRF 33 to 42 0.005 to 0.019; CRF 24 0.018 to 0.106, out of focus 0.021 to 0.028.
# Sharp films come close: one at 60 frames a second has 0.038.
FEW_BITS = 0.017

Kind = Literal["motion blur", "defocus", "noise", "compression", "soft", "sharp"]


@dataclass(frozen=True)
class BlurMeasure:
    """The measures of a frame, at the measured size.

    slope_along, slope_across: of the structure function along and across the motion, -2.77 (smooth) to 0 (white noise).
    Where the frame hardly moves they are the least of four directions, and the direction across that one. motion:
    median pixels from frame to frame; 0 without neighbours. noise: what is left of the picture in its flattest places,
    in codes of 8 bits; 0.4 times the standard deviation of white noise. alikeness: correlation, -1 to 1, of the fine
    detail with that of a neighbour moved onto the frame; NaN without neighbours. blocks: slope along the motion of
    each block of 64x64 measured pixels, (1, 1, rows, columns), NaN where there is no detail; None unless asked for.
    """

    slope_along: float
    slope_across: float
    motion: float
    noise: float
    alikeness: float
    blocks: Tensor | None = None


def luma_from_rgb(frames: Tensor) -> Tensor:
    """Return the luma, (B, 1, H, W), of frames (B, 3, H, W), RGB in [0, 1]."""
    return torch.einsum("bchw,c->bhw", frames, frames.new_tensor(LUMA))[:, None]


def reduced_luma(luma: Tensor) -> Tensor:
    """Reduce luma (B, 1, H, W) in [0, 1] to a short side of at most 540 pixels, averaging areas; never enlarge."""
    short = min(luma.shape[-2:])
    if short <= SHORT_SIDE:
        return luma
    height, width = (round(side * SHORT_SIDE / short) for side in luma.shape[-2:])
    return _averaged(_averaged(luma, height, -2), width, -1)


def motion_between(a: Tensor, b: Tensor) -> Tensor:
    """Estimate where each position of a lies in b: (B, 2, h, w) measured pixels, horizontal first.

    a, b: luma (B, 1, H, W) at the measured size. The motion is estimated at a smaller one: h is H/4 or at least 80.
    """
    small_a, small_b = _small(a), _small(b)
    return lucas_kanade.flow(small_a, small_b) * (a.shape[-1] / small_a.shape[-1])


@torch.no_grad()
def blur_of(
    previous: Tensor | None, current: Tensor, following: Tensor | None, *, per_block: bool = False
) -> BlurMeasure:
    """Measure a frame between its neighbours.

    previous, current, following: luma (1, 1, H, W) in [0, 1], float32, as reduced_luma() returns it. A neighbour is
    None at the ends of a scene. per_block: also return the map of slopes.
    """
    small = _small(current)
    factor = current.shape[-1] / small.shape[-1]
    neighbours = [None if picture is None else _small(picture) for picture in (previous, following)]
    seen = [picture for picture in neighbours if picture is not None]
    alike, motion, speed = math.nan, None, 0.0
    if seen:
        others = torch.cat(seen)  # both flows at once take three quarters of the time
        flows = lucas_kanade.flow(small.expand(len(seen), -1, -1, -1), others)
        alike = _alikeness(small, others, flows)
        signs = flows.new_tensor(
            [sign for sign, picture in zip((-1, 1), neighbours, strict=True) if picture is not None]
        )
        motion = (flows * signs[:, None, None, None]).mean(0, keepdim=True) * factor
        speed = float(motion.square().sum(1).sqrt().median())
    slopes = _slopes(current, motion if speed >= STILL else None)
    return BlurMeasure(
        *slopes, speed, _noise(current), alike, blocks=_block_map(current, motion) if per_block else None
    )


def strength_of(slope: float, highest: float = HIGHEST) -> float:
    """Return how much of a restoration a frame needs, 0 to 1, from its slope along the motion.

    highest: the slope from which it needs none; of a scene, the 90th percentile of its slopes - 0.1 if that is higher.
    """
    return min(max((highest - slope) / SPAN, 0.0), 1.0)


def kind_of(measure: BlurMeasure, bits_per_pixel: float | None = None, edges: float = 1.0) -> Kind:
    """Classify a frame by its measures, in this order of causes.

    bits_per_pixel: of the packets, as H.264 needs them; None if unknown. edges: of block_edges(). "compression" is a
    guess. The thresholds were set with 22 photographs, moved and degraded on purpose, and real footage; results for
    others are in docs/run.md.
    """
    along, gap = measure.slope_along, measure.slope_across - measure.slope_along
    if measure.noise > MUCH_NOISE or (measure.noise > 1.2 and measure.alikeness < 0.75):
        return "noise"
    is_directed = (along < BLURRED and gap > 0.1) or (along < SOFT and gap > 0.15)
    if is_directed and measure.motion > 1 and (gap > 0.3 or along > REST - PER_PIXEL * measure.motion):
        return "motion blur"
    if (edges > BLOCKY and along < SOFT) or (bits_per_pixel is not None and bits_per_pixel < FEW_BITS):
        return "compression"
    # A frame that hardly moves has no motion blur, so its directions need not be alike.
    if along < BLURRED and measure.slope_across < (BLURRED if measure.motion > 1 else SOFT):
        return "defocus"
    return "soft" if along < SOFT else "sharp"


def block_edges(luma: Tensor) -> float:
    """Return how much stronger differences are at multiples of 8 pixels than elsewhere: 1 without blocks.

    luma: (B, 1, H, W) at its full size, as it was encoded.
    """
    ratios = []
    for dim, others in ((-1, (0, 1, 2)), (-2, (0, 1, 3))):
        steps = luma.diff(dim=dim).abs().mean(others)
        at = steps[7::8]
        if len(at) and float(steps.sum()):
            elsewhere = (steps.sum() - at.sum()) / (len(steps) - len(at))
            ratios.append(float(at.mean() / (elsewhere + 1e-6)))
    return sum(ratios) / len(ratios) if ratios else 1.0


def _averaged(picture: Tensor, length: int, dim: int) -> Tensor:
    """Average areas along a dimension, which becomes `length` long. Areas may begin and end within pixels."""
    old = picture.shape[dim]
    scale = old / length
    edges = torch.arange(length + 1, device=picture.device, dtype=torch.float64) * scale
    first = edges[:-1].floor()
    total = None
    for tap in range(math.ceil(scale) + 1):
        place = first + tap
        share = ((place + 1).minimum(edges[1:]) - place.maximum(edges[:-1])).clamp(min=0) / scale
        if not bool((share > 1e-9).any()):
            continue
        values = picture.index_select(dim, place.long().clamp(max=old - 1))
        values = values.mul_(share.to(picture.dtype) if dim == -1 else share.to(picture.dtype)[:, None])
        total = values if total is None else total.add_(values)
    assert total is not None
    return total


def _small(luma: Tensor) -> Tensor:
    """Reduce luma to a quarter, or less where that left too few rows: blur and its motion are larger than a pixel."""
    factor = min(max(round(min(luma.shape[-2:]) / FLOW_ROWS), 1), 4)
    return F.avg_pool2d(luma, factor, ceil_mode=True)


def _slopes(luma: Tensor, motion: Tensor | None) -> tuple[float, float]:
    """Return the slopes along and across the motion; without motion, of the direction with the least slope."""
    if motion is None:
        four = [_slope(luma, direction) for direction in _four_directions(luma)]
        least = min(range(4), key=four.__getitem__)
        return four[least], four[(least + 2) % 4]
    along = _directions(luma, motion)
    return _slope(luma, along), _slope(luma, torch.stack((-along[:, 1], along[:, 0]), 1))


def _four_directions(luma: Tensor) -> Iterator[Tensor]:
    """Yield unit vectors at 0, 45, 90 and 135 degrees, each (1, 2, 1, 1)."""
    for quarter in range(4):
        angle = quarter * math.pi / 4
        yield luma.new_tensor([math.cos(angle), math.sin(angle)])[None, :, None, None]


def _directions(luma: Tensor, motion: Tensor) -> Tensor:
    """Return the unit vector of the motion at every second pixel of every second row."""
    wide = F.interpolate(motion, [-(-side // 2) for side in luma.shape[-2:]], mode="bilinear", align_corners=False)
    return wide / (wide.square().sum(1, keepdim=True) + 1e-12).sqrt()


def _slope(luma: Tensor, direction: Tensor) -> float:
    near, far = (float(_squares(luma, direction, distance).mean()) for distance in (NEAR, FAR))
    return math.log((near + FLOOR) / (far + FLOOR))


def _squares(luma: Tensor, direction: Tensor, distance: float) -> Tensor:
    """Return (Y(x + distance u) - Y(x))^2 at every second pixel of every second row: a quarter is enough for a mean."""
    height, width = luma.shape[-2:]
    x = direction[:, 0] * (2 * distance / width)
    y = direction[:, 1] * (2 * distance / height)
    grid = lucas_kanade.pixel_grid(luma)[:, ::2, ::2] + torch.stack((x, y), -1)
    return (lucas_kanade.sample_at(luma, grid) - luma[..., ::2, ::2]).square_()


def _block_map(luma: Tensor, motion: Tensor | None) -> Tensor:
    """Return the slope of each block: along the motion where the block moves, else the least of four directions."""
    four = [_block_slopes(luma, direction) for direction in _four_directions(luma)]
    least = reduce(torch.fmin, four)  # ignores NaN
    if motion is None:
        return least
    along = _block_slopes(luma, _directions(luma, motion))
    speed = F.interpolate(motion.square().sum(1, keepdim=True).sqrt(), along.shape[-2:], mode="area")
    return torch.where(speed >= STILL, along, least)


def _block_slopes(luma: Tensor, direction: Tensor) -> Tensor:
    near, far = (
        F.avg_pool2d(_squares(luma, direction, distance), BLOCK // 2, ceil_mode=True) for distance in (NEAR, FAR)
    )
    return torch.where(far >= LEAST_DETAIL, ((near + FLOOR) / (far + FLOOR)).log(), torch.nan)


def _noise(luma: Tensor) -> float:
    """Return the noise in flat places: J. Immerkaer, "Fast Noise Variance Estimation", 1996, but the first quartile."""
    if min(luma.shape[-2:]) < 3:
        return 0.0
    columns = (luma[..., 2:] - 2 * luma[..., 1:-1] + luma[..., :-2])[..., ::NOISE_STEP]
    found = (columns[..., 2:, :] - 2 * columns[..., 1:-1, :] + columns[..., :-2, :])[..., ::NOISE_STEP, :].flatten()
    return 255 * math.sqrt(math.pi / 2) / 6 * float(found.abs().kthvalue(max(len(found) // 4, 1)).values)


def _alikeness(picture: Tensor, others: Tensor, motion: Tensor) -> float:
    """Return the greatest correlation of a picture's finest detail with that of others (B, 1, h, w) moved onto it."""
    detail, found = (
        each - lucas_kanade.window_mean(each, 3) for each in (picture, lucas_kanade.sample(others, motion))
    )
    scale = (detail.square().mean() * found.square().mean((1, 2, 3))).sqrt()
    return float(((detail * found).mean((1, 2, 3)) / (scale + 1e-12)).max())
