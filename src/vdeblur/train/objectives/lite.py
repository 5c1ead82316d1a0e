"""Lite's objective: the difference that its convolutions add to a frame; see networks/lite.py."""

from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.networks.lite import Lite, look_along_motion, luma_of
from vdeblur.train.objectives.base import Batch, Clip, Objective, unit_range
from vdeblur.train.rules import NOT_NEGATIVE, POSITIVE, SHARE

AREA = 8  # side of the blocks in which contrast is compared


class LiteObjective(Objective):
    """The mean over frames of log(mean squared error + floor), and the difference in local contrast.

    numbers: floor, a squared error: frames that are nearly sharp, with smaller errors, count less. ends, the share of
    batches in which one neighbour is left out, as at the end of a scene. contrast, the weight of contrast_error.
    """

    network: Lite
    rules: ClassVar = {"ends": SHARE, "floor": POSITIVE, "contrast": NOT_NEGATIVE}

    def prepare(self, clip: Clip, rng: numpy.random.Generator) -> Batch:
        """Return three frames, blurry (3, 3, H, W) uint8, and the sharp one in their middle (3, H, W)."""
        return {"blurry": clip.blurry, "sharp": clip.sharp[1]}

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Return the losses."""
        previous, frame, following = unit_range(batch["blurry"]).unbind(1)
        sharp = unit_range(batch["sharp"])
        chance, side = numpy.random.default_rng(update).random(2)  # alike in all processes
        if chance < self.numbers["ends"]:
            view = look_along_motion(*((None, frame, following) if side < 0.5 else (previous, frame, None)))
        else:
            view = look_along_motion(previous, frame, following)
        restored = frame + self.network.difference(*view)
        error = (restored - sharp).square().mean((1, 2, 3))
        losses = {"log_error": torch.log(error + self.numbers["floor"]).mean()}
        losses["loss"] = losses["log_error"]
        if self.numbers["contrast"]:
            losses["contrast"] = contrast_error(luma_of(restored), luma_of(sharp))
            losses["loss"] = losses["loss"] + self.numbers["contrast"] * losses["contrast"]
        return losses, None


def contrast_error(restored: Tensor, sharp: Tensor) -> Tensor:
    """Return the difference in local contrast, relative to the sharp frame's: a scalar.

    restored, sharp: luma (B, 1, H, W). Contrast is the mean absolute difference of neighbouring pixels in a block of
    AREA x AREA. Squared errors alone favour soft pictures, which lack contrast wherever details are uncertain.
    """
    ours, truth = (_contrast(luma) for luma in (restored, sharp))
    missing = (ours - truth).abs().mean((1, 2, 3))
    return (missing / (truth.mean((1, 2, 3)) + 0.01)).mean()


def _contrast(luma: Tensor) -> Tensor:
    """Return (B, 2, H', W'), the local contrast across and down."""
    across = luma[..., :-1, 1:] - luma[..., :-1, :-1]
    down = luma[..., 1:, :-1] - luma[..., :-1, :-1]
    return F.avg_pool2d(torch.cat((across, down), 1).abs(), AREA)
