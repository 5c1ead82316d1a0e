"""Flow-RNN learns to restore a frame, and that its flow carries the neighbour onto it: Eq. (14).

Deep Dynamic Scene Deblurring from Optical Flow, see networks/flow_rnn.py. The paper begins with a pretrained FlowNetS.
Nothing is pretrained here, so the flow terms are trained alone at first: passes that are led by a flow that means
nothing would learn to do without.
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

    numbers: flow_warm_up, updates on the flow loss alone, before all others.
    """

    network: FlowRNN
    rules: ClassVar = {"flow_warm_up": WHOLE}
    reaches_all = False  # not during the flow warm-up

    def prepare(self, clip: Clip, rng: numpy.random.Generator) -> Batch:
        """Give one of two frames, blurry and sharp, with the other blurry, its neighbour: (3, H, W) uint8 each.

        Which of the two has equal chances, so that the next and the previous frame are neighbours alike: the last frame
        of a scene has no other than the previous.
        """
        index = int(rng.integers(2))
        return {"blurry": clip.blurry[index], "neighbour": clip.blurry[1 - index], "sharp": clip.sharp[index]}

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Give the losses."""
        blurry, neighbour = unit_range(batch["blurry"]), unit_range(batch["neighbour"])
        if update < self.numbers["flow_warm_up"]:
            flow = losses.carrying_over(self.network.flows(blurry, neighbour), blurry, neighbour)
            return {"loss": flow, "flow": flow}, None
        restored, flows = self.network.restore_with_flows(blurry, neighbour)
        image = F.mse_loss(restored.float(), unit_range(batch["sharp"]))
        flow = losses.carrying_over(flows, blurry, neighbour)
        return {"loss": image + flow, "image": image, "flow": flow}, None
