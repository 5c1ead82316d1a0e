"""Lite's objective: the difference that its convolutions add to a frame; see networks/lite.py."""

from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.networks.lite import Lite, look_along_motion, luma_of
from vdeblur.train.objectives.base import Batch, Clip, Objective, unit_range
from vdeblur.train.rules import NOT_NEGATIVE, POSITIVE, SHARE

AREA = 16  # side of the blocks in which detail is compared
DETAIL_FLOOR = 1e-5  # mean squared gradient; below, a block misses nothing that is seen


class LiteObjective(Objective):
    """The mean over frames of log(mean squared error + floor), and the detail that is still missing.

    numbers: floor, a squared error: frames that are nearly sharp, with smaller errors, count less. ends, the share of
    batches in which one neighbour is left out, as at the end of a scene. detail, the weight of detail_error.
    """

    network: Lite
    rules: ClassVar = {"ends": SHARE, "floor": POSITIVE, "detail": NOT_NEGATIVE}

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
        if self.numbers["detail"]:
            with torch.autocast(restored.device.type, enabled=False):  # half precision would round the gradients away
                losses["detail"] = detail_error(*(luma_of(each.float()) for each in (restored, frame, sharp)))
            losses["loss"] = losses["loss"] + self.numbers["detail"] * losses["detail"]
        return losses, None


def detail_error(restored: Tensor, blurry: Tensor, sharp: Tensor) -> Tensor:
    """Return how much of the missing detail has not returned: 0 where all has, 1 where a frame is as blurry as before.

    All are luma (B, 1, H, W). Missing detail is the difference of the sharp frame's and the blurry one's gradients. In
    each block of AREA x AREA, the change is projected on it: squared errors alone return only what is certain, a
    third or less. A pattern that has nothing to do with the sharp frame returns nothing, so it cannot satisfy this.
    """
    before = _gradients(blurry)
    missing, change = _gradients(sharp) - before, _gradients(restored) - before
    wanted, returned = (F.avg_pool2d((missing * other).sum(1, keepdim=True), AREA) for other in (missing, change))
    lacking = (wanted - returned).square() / (wanted + DETAIL_FLOOR)
    return (lacking.mean((1, 2, 3)) / (wanted.mean((1, 2, 3)) + DETAIL_FLOOR)).mean()


def _gradients(luma: Tensor) -> Tensor:
    """Return (B, 2, H - 1, W - 1), luma's differences across and down."""
    across = luma[..., :-1, 1:] - luma[..., :-1, :-1]
    down = luma[..., 1:, :-1] - luma[..., :-1, :-1]
    return torch.cat((across, down), 1)
