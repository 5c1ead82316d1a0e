"""Turtle's objective: the absolute difference of every frame of a clip, restored one after the other.

networks/turtle.py names the paper. Gradients pass through what the network keeps of earlier frames.
"""

from typing import Any, ClassVar

import torch

from vdeblur.networks.turtle import State, Turtle
from vdeblur.train import losses
from vdeblur.train.objectives.base import Batch, Objective, unit_range
from vdeblur.train.rules import FLAG


class TurtleObjective(Objective):
    """The mean absolute difference over all frames of a clip; the first frame has no history.

    numbers: half_input, round the blurry frames to float16 first, as the authors' loader does: by 0.06 grey levels at
    most.
    """

    network: Turtle
    rules: ClassVar = {"half_input": FLAG}

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, torch.Tensor], Any]:
        """Return the "loss" of clips, blurry and sharp (B, T, 3, H, W)."""
        blurry, sharp = unit_range(batch["blurry"]), unit_range(batch["sharp"])
        if self.numbers["half_input"]:
            blurry = blurry.half().float()
        state: State | None = None
        differences = []
        for frame, truth in zip(blurry.unbind(1), sharp.unbind(1), strict=True):
            restored, state = self.network(frame, state)
            differences.append(losses.charbonnier(restored.float(), truth, 0))
        return {"loss": torch.stack(differences).mean()}, None
