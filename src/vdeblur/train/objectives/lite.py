"""Lite learns what its convolutions add to a frame; see networks/lite.py.

What it sees along the motion needs no weights, so that is computed by the loader's workers, once for each sample.
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

    numbers: ends, the share of clips of which the first and last frame may be chosen too, as if a scene ended there.
    """

    network: Lite
    rules: ClassVar = {"ends": SHARE}

    def prepare(self, clip: Clip, rng: numpy.random.Generator) -> Batch:
        """Give one of the frames, blurry and sharp (3, H, W) uint8, and what is seen (INPUTS, H/4, W/4) float16."""
        length = len(clip.blurry)
        first, last = (0, length) if rng.random() < self.numbers["ends"] else (1, length - 1)
        index = int(rng.integers(first, last))
        near = unit_range(clip.blurry[max(index - 1, 0) : index + 2])
        here = min(index, 1)
        previous = near[:1] if index else None
        following = near[here + 1 : here + 2] if index + 1 < length else None
        seen = look_along_motion(previous, near[here : here + 1], following, torch.float16)
        return {"seen": seen[0], "blurry": clip.blurry[index], "sharp": clip.sharp[index]}

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Give the loss."""
        restored = unit_range(batch["blurry"]) + self.network.difference(batch["seen"].float())
        return {"loss": losses.log_error(restored, unit_range(batch["sharp"]))}, None
