"""Flow-RNN's objective: the restored frame, and the neighbour warped onto it by the flow, Eq. (14).

Deep Dynamic Scene Deblurring from Optical Flow, see networks/flow_rnn.py. The paper starts from a pretrained FlowNetS.
Nothing is pretrained here, so the flow terms train alone at first: passes that follow a meaningless flow would learn to
ignore it.
"""

from typing import Any, ClassVar

import numpy
from torch import Tensor
from torch.nn import functional as F

from vdeblur.networks.flow_rnn import FlowRNN
from vdeblur.train import losses
from vdeblur.train.objectives.base import Batch, Clip, Objective, unit_range
from vdeblur.train.rules import WHOLE


class FlowRNNObjective(Objective):
    """The mean squared error, and the flow loss of all levels.

    numbers: flow_warm_up, the first updates, on the flow loss alone.
    """

    network: FlowRNN
    rules: ClassVar = {"flow_warm_up": WHOLE}
    reaches_all = False  # not during the flow warm-up

    def prepare(self, clip: Clip, rng: numpy.random.Generator) -> Batch:
        """Return one of two frames, blurry and sharp, with the other one blurry as its neighbour: (3, H, W) uint8 each.

        Either is chosen with equal probability, so the neighbour may be the next or the previous frame; the last frame
        of a scene has only the previous.
        """
        index = int(rng.integers(2))
        return {"blurry": clip.blurry[index], "neighbour": clip.blurry[1 - index], "sharp": clip.sharp[index]}

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Return the image loss and the flow loss, and their sum."""
        blurry, neighbour = unit_range(batch["blurry"]), unit_range(batch["neighbour"])
        if update < self.numbers["flow_warm_up"]:
            flow = losses.carrying_over(self.network.flows(blurry, neighbour), blurry, neighbour)
            return {"loss": flow, "flow": flow}, None
        restored, flows = self.network.restore_with_flows(blurry, neighbour)
        image = F.mse_loss(restored.float(), unit_range(batch["sharp"]))
        flow = losses.carrying_over(flows, blurry, neighbour)
        return {"loss": image + flow, "image": image, "flow": flow}, None
