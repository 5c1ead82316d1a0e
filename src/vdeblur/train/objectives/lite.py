"""Lite's objective: the difference that its convolutions add to a frame; see networks/lite.py.

Its view along the motion needs no weights, so the loader's workers compute it, once for each sample.
"""

from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor

from vdeblur.networks.lite import Lite, look_along_motion
from vdeblur.train import losses
from vdeblur.train.objectives.base import Batch, Clip, Objective, unit_range
from vdeblur.train.rules import SHARE


class LiteObjective(Objective):
    """The mean over frames of log(mean squared error).

    numbers: ends, the share of clips whose first and last frame may be chosen too, as if the scene ended there.
    """

    network: Lite
    rules: ClassVar = {"ends": SHARE}

    def prepare(self, clip: Clip, rng: numpy.random.Generator) -> Batch:
        """Return one of the frames, blurry and sharp (3, H, W) uint8, and the view (INPUTS, H/4, W/4) float16."""
        length = len(clip.blurry)
        first, last = (0, length) if rng.random() < self.numbers["ends"] else (1, length - 1)
        index = int(rng.integers(first, last))
        near = unit_range(clip.blurry[max(index - 1, 0) : index + 2])
        place = min(index, 1)  # of the frame among those near
        previous = near[:1] if index else None
        following = near[place + 1 : place + 2] if index + 1 < length else None
        seen = look_along_motion(previous, near[place : place + 1], following, torch.float16)
        return {"seen": seen[0], "blurry": clip.blurry[index], "sharp": clip.sharp[index]}

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Return the loss."""
        restored = unit_range(batch["blurry"]) + self.network.difference(batch["seen"].float())
        return {"loss": losses.log_error(restored, unit_range(batch["sharp"]))}, None
