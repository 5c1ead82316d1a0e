"""CDVD-TSP's objective: every output of its cascade, with extra weight on hard pixels.

Pan, Bai, Tang, CVPR 2020 (see networks/cdvd_tsp.py). Of a window of five frames the first stage restores three, and the
second stage one from these. All four are compared with their sharp frames; gradients flow through the second stage, its
flow and its warped frames into the first.

Where this differs from the paper, because the authors' code does: both stages are trained together from the first step
(algorithm 1 reads as stage after stage). With `stagewise` they are not: the training is cut into as many equal parts as
there are stages; the first trains the first stage alone, each later one adds a stage, and no gradient passes from one
stage to another. The stages still share their weights, as the paper's text and its number of parameters say.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.networks.cdvd_tsp import CDVDTSP
from vdeblur.train import losses
from vdeblur.train.objectives.base import Batch, Objective, unit_range
from vdeblur.train.rules import BELOW_ONE, FLAG, NOT_NEGATIVE, SHARE, one_of


class CDVDTSPObjective(Objective):
    """Absolute differences at all stages, and again those of hard pixels.

    numbers: hard_weight, the factor of the hard pixels' loss; hard_share and chance_share, see
    losses.hard_examples. stages: the outputs that are compared, those of "all" stages or of the "last" only.
    stagewise: train stage after stage. iterations: updates of the complete training. Samples have one frame, and two
    more for each stage.
    """

    network: CDVDTSP
    rules: ClassVar = {
        "hard_weight": NOT_NEGATIVE,
        "hard_share": BELOW_ONE,
        "chance_share": SHARE,
        "stages": one_of(("all", "last")),
        "stagewise": FLAG,
    }
    defaults: ClassVar = {"stages": "all", "stagewise": False, "iterations": 1}
    margin = 0

    @classmethod
    def frames_of(cls, arguments: Mapping[str, Any], numbers: Mapping[str, Any]) -> int | None:
        """Return one frame, and two more for each stage."""
        return 2 * int(arguments["stages"]) + 1

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Return "l1" and "hard" of a batch of windows, blurry and sharp (B, T, 3, H, W), and their sum as "loss"."""
        outputs = self.cascade(unit_range(batch["blurry"]), self.stages_at(update))
        sharp = unit_range(batch["sharp"])
        last = sharp.shape[1]
        expected = [sharp[:, stage : last - stage] for stage in range(1, len(outputs) + 1)]
        first = len(outputs) - 1 if self.numbers["stages"] == "last" else 0
        # Of five frames and both stages (B, 4, 3, H, W)
        restored, targets = torch.cat(outputs[first:], 1), torch.cat(expected[first:], 1)
        joined, target = restored.flatten(1, 2), targets.flatten(1, 2)  # outputs side by side on channels
        l1 = F.l1_loss(joined, target)
        hard, _ = losses.hard_examples(joined, target, self.numbers["hard_share"], self.numbers["chance_share"])
        return {"loss": l1 + self.numbers["hard_weight"] * hard, "l1": l1, "hard": hard}, None

    def stages_at(self, update: int) -> int:
        """Return how many stages are trained at this update."""
        stages = self.network.stages
        if not self.numbers["stagewise"]:
            return stages
        return min(update * stages // max(int(self.numbers["iterations"]), 1) + 1, stages)

    def cascade(self, frames: Tensor, stages: int | None = None) -> list[Tensor]:
        """Return each stage's output for windows (B, T, 3, H, W): (B, T - 2, 3, H, W), (B, T - 4, 3, H, W), ...

        stages: how many; None for all of the network.
        """
        outputs = []
        for _ in range(stages or self.network.stages):
            frames = self.stage(frames)
            outputs.append(frames)
            if self.numbers["stagewise"]:
                frames = frames.detach()
        return outputs

    def stage(self, frames: Tensor) -> Tensor:
        """Restore all but the first and the last of frames (B, T, 3, H, W), in one batch."""
        batch, count = frames.shape[0], frames.shape[1] - 2
        in_turn = frames.transpose(0, 1).flatten(0, 1)  # (T B, 3, H, W): neighbours in time are B apart
        parts = [slice(start * batch, (start + count) * batch) for start in range(3)]
        with torch.autocast(frames.device.type, enabled=False):  # flow in half precision is off by a third of a pixel
            pyramid = self.network.pyramid(in_turn)
            pyramids = tuple({level: x[part] for level, x in pyramid.items()} for part in parts)
            aligned = self.network.align(tuple(in_turn[part] for part in parts), pyramids)
        restored = self.network.restore(aligned)  # (count B, 3, H, W)
        return restored.reshape(count, batch, *restored.shape[1:]).transpose(0, 1)
