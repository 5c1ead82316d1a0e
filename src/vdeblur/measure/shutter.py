"""Fit the exposure of a blurred frame: how much of the frame interval the shutter was open.

A sharp frame nearby is moved onto the blurred one and blurred along the motion of that frame, x + a t + b t^2, over
exposures of different lengths, in linear light. The one that resembles the blurred frame most is the answer, if it
explains the blur at all. On real pairs of REDS, from neighbours, it finds 0.5 to 0.7 for frames with much
blur, with a gain of 2.5 to 5 dB, and less for mild blur.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.measure.temporal import is_seen
from vdeblur.networks import lucas_kanade

GAMMA = 2.2
ROWS = 270  # of the pictures between which motion is estimated, at least
STEP = 0.1  # between the exposures tried, as a share of the interval; they end at 1
LEAST_GAIN = 1.0  # dB over no exposure; below, motion explains too little of the blur
LEAST_SEEN = 0.3  # share of the pixels that both frames show
DETAIL = 9  # side of the average that is subtracted: light may change between frames


@dataclass(frozen=True)
class ShutterFit:
    """A fit. share: of the frame interval, 0 to 1. gain: dB by which it explains the blurred frame better than 0."""

    share: float
    gain: float


@torch.no_grad()
def fit_shutter(previous: Tensor, blurred: Tensor, following: Tensor, sharp: Tensor) -> ShutterFit | None:
    """Fit the exposure of a blurred frame; None if its motion does not explain the blur.

    previous, blurred, following: consecutive frames. sharp: one near them, perhaps one of the neighbours. All are luma
    (1, 1, H, W) in [0, 1] at the measured size, see reduced_luma().
    """
    there, back = _flow(blurred, sharp), _flow(sharp, blurred)
    seen = is_seen(there, back)
    if float(seen.mean()) < LEAST_SEEN:
        return None
    after, before = _flow(blurred, following), _flow(blurred, previous)
    speed, bend = (after - before) / 2, (after + before) / 2
    light = lucas_kanade.sample(sharp, there) ** GAMMA
    total, target = light.clone(), _detail(blurred)
    errors = [_error(light, target, seen)]
    for step in range(1, round(1 / STEP) + 1):
        for t in (-step * STEP / 2, step * STEP / 2):
            total += lucas_kanade.sample(light, speed * t + bend * (t * t))
        errors.append(_error(total / (2 * step + 1), target, seen))
    best = min(range(len(errors)), key=errors.__getitem__)
    gain = 10 * math.log10((errors[0] + 1e-12) / (errors[best] + 1e-12))
    return ShutterFit(best * STEP, gain) if gain >= LEAST_GAIN else None


def _flow(a: Tensor, b: Tensor) -> Tensor:
    """Estimate motion at half size, if that leaves enough rows; return it at the size of a, in its pixels."""
    factor = 2 if min(a.shape[-2:]) >= 2 * ROWS else 1
    flow = lucas_kanade.flow(F.avg_pool2d(a, factor, ceil_mode=True), F.avg_pool2d(b, factor, ceil_mode=True)) * factor
    return flow if factor == 1 else F.interpolate(flow, a.shape[-2:], mode="bilinear", align_corners=False)


def _detail(picture: Tensor) -> Tensor:
    return picture - lucas_kanade.window_mean(picture, DETAIL)


def _error(light: Tensor, target: Tensor, seen: Tensor) -> float:
    difference = _detail(light.clamp(min=0) ** (1 / GAMMA)) - target
    return float((difference.square() * seen).sum() / seen.sum())
