"""Flow-RNN's objective: the restored frame, and the neighbour warped onto it by the flow, Eq. (14).

Deep Dynamic Scene Deblurring from Optical Flow, see networks/flow_rnn.py. The paper starts from a pretrained FlowNetS.
Nothing is pretrained here, so the flow terms train alone at first: passes that follow a meaningless flow would learn to
ignore it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.flow_rnn import FlowRNN
from vdeblur.train import losses
from vdeblur.train.objectives.base import Batch, Clip, Objective, unit_range
from vdeblur.train.rules import NOT_NEGATIVE, WHOLE, one_of


class FlowRNNObjective(Objective):
    """The mean squared error, and the flow loss of all levels.

    numbers: flow_warm_up, the first updates, on the flow loss alone; flow_weight, the factor of the flow loss, 0 for
    none; neighbour: "either" the next or the previous frame by chance, or the "next" only; upsampling: the initial
    weights of the decoder's transposed convolutions, "he" as the network draws them, or "xavier". With two-way
    flow a sample has three frames, and the middle one has both neighbours.
    """

    network: FlowRNN
    rules: ClassVar = {
        "flow_warm_up": WHOLE,
        "flow_weight": NOT_NEGATIVE,
        "neighbour": one_of(("either", "next")),
        "upsampling": one_of(("he", "xavier")),
    }
    defaults: ClassVar = {"flow_weight": 1.0, "neighbour": "either", "upsampling": "he"}
    margin = 0
    reaches_all = False  # not during the flow warm-up

    @classmethod
    def frames_of(cls, arguments: Mapping[str, Any], numbers: Mapping[str, Any]) -> int | None:
        """Return 2, or 3 with two-way flow."""
        return 3 if arguments["flow"] == "two-way" and arguments["rnn"] != "none" else 2

    def initialise(self) -> None:
        """Draw the decoder's d_deconv layers by Xavier, where `upsampling` asks for it."""
        if self.numbers["upsampling"] == "xavier":
            for name, layer in self.network.named_children():
                if name.startswith("d_deconv") and isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                    nn.init.xavier_uniform_(layer.weight)

    def prepare(self, clip: Clip, rng: numpy.random.Generator) -> Batch:
        """Return one of two frames, blurry and sharp, with the other one blurry as its neighbour: (3, H, W) uint8 each.

        Unless only the next frame may be the neighbour, either is chosen with equal probability, because the last frame
        of a scene has only the previous. With two-way flow: the middle one, with "previous" as well.
        """
        if self.network.two_way:
            previous, blurry, neighbour = clip.blurry
            return {"blurry": blurry, "neighbour": neighbour, "previous": previous, "sharp": clip.sharp[1]}
        index = int(rng.integers(2)) if self.numbers["neighbour"] == "either" else 0
        return {"blurry": clip.blurry[index], "neighbour": clip.blurry[1 - index], "sharp": clip.sharp[index]}

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Return the image loss and the flow loss, and their weighted sum; without flow the image loss alone."""
        blurry = unit_range(batch["blurry"])
        neighbours = [unit_range(batch[name]) for name in ("neighbour", "previous") if name in batch]
        if self.learns_flow and update < self.numbers["flow_warm_up"]:
            flow = self.flow_loss(self.network.flows(blurry, *neighbours), blurry, neighbours)
            return {"loss": flow, "flow": flow}, None
        restored, flows = self.network.restore_with_flows(blurry, *neighbours)
        image = F.mse_loss(restored.float(), unit_range(batch["sharp"]))
        if not self.learns_flow:
            return {"loss": image}, None
        flow = self.flow_loss(flows, blurry, neighbours)
        return {"loss": image + flow, "image": image, "flow": flow}, None

    @property
    def learns_flow(self) -> bool:
        """Return whether there is a flow loss: the network estimates flow, and the loss has a weight."""
        network = self.network
        return network.rnn != "none" and network.flow != "none" and self.numbers["flow_weight"] > 0

    def flow_loss(self, flows: Sequence[Tensor], blurry: Tensor, neighbours: Sequence[Tensor]) -> Tensor:
        """Return the weighted mean over neighbours of losses.carrying_over; flows: five for each neighbour."""
        if self.network.pairing == "itself":
            neighbours = [blurry] * len(neighbours)
        each = len(flows) // len(neighbours)
        found = [
            losses.carrying_over(flows[each * index : each * (index + 1)], blurry, neighbour)
            for index, neighbour in enumerate(neighbours)
        ]
        weighted: Tensor = torch.stack(found).mean() * self.numbers["flow_weight"]
        return weighted
