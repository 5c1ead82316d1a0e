"""SPN learns luma by its mean squared error; SPGAN goes on against a discriminator of gradient images.

Video Deblurring via Spatiotemporal Pyramid Network and Adversarial Gradient Prior, see networks/spn.py. The paper says
nothing of how the discriminator is trained: two-class cross-entropy, in a step of its own before each of the generator,
is a choice, as are its first steps alone, without which an untrained one would lead a trained generator.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.layers import Network
from vdeblur.networks.spn import Discriminator, luma
from vdeblur.train import losses
from vdeblur.train.objectives.base import Batch, Clip, Objective, unit_range
from vdeblur.train.rules import COUNT, NOT_NEGATIVE, WHOLE, one_of


class SPNObjective(Objective):
    """The mean squared error of the middle frame's luma in [0, 1], never clamped. It has no numbers."""

    def prepare(self, clip: Clip, rng: numpy.random.Generator) -> Batch:
        """Give the window blurry (5, 3, H, W), and its middle frame sharp (3, H, W), both uint8."""
        return {"blurry": clip.blurry, "sharp": clip.sharp[len(clip.sharp) // 2]}

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Give the content loss."""
        restored, sharp = self.restore(batch)
        return {"loss": F.mse_loss(restored, sharp)}, None

    def restore(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Give the luma of restored and sharp frames, (B, 1, H, W) float32."""
        restored = self.network(unit_range(batch["blurry"]))
        # A sum of products would be rounded to half precision.
        with torch.autocast(restored.device.type, enabled=False):
            return luma(restored)[:, None], luma(unit_range(batch["sharp"]))[:, None]


class SPGANObjective(SPNObjective):
    """The content loss and `lambda` times the adversarial one; for the discriminator, its cross-entropy.

    numbers: lambda; adversarial: "saturating", log(1 - D), which is the paper's, or "nonsaturating", -log D;
    discriminator_first: updates, a batch each, in which the discriminator is trained alone; discriminator_width, 64 in
    the paper.
    The statistics of the generator's batch normalisation stay as they are: batches of 4 would move them at once.
    """

    reaches_all = False  # a turn is for one of the two
    rules: ClassVar = {
        "lambda": NOT_NEGATIVE,
        "adversarial": one_of(("saturating", "nonsaturating")),
        "discriminator_first": WHOLE,
        "discriminator_width": COUNT,
    }

    def __init__(self, network: Network, numbers: Mapping[str, Any]) -> None:
        super().__init__(network, numbers)
        self.discriminator = Discriminator(numbers["discriminator_width"])
        self.train()  # modules begin in this mode, but without having been told

    def turns(self, update: int) -> tuple[str, ...]:
        """Tell that the discriminator begins alone, and precedes the generator ("network") from then on."""
        return ("discriminator",) if update < self.numbers["discriminator_first"] else ("discriminator", "network")

    def parameters_of(self, optimiser: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Give the generator's or the discriminator's."""
        return (self.network if optimiser == "network" else self.discriminator).named_parameters()

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Give the discriminator's loss in turn 0, the generator's in turn 1."""
        if turn == 0:
            with torch.no_grad():
                restored, sharp = self.restore(batch)
            loss = losses.telling_apart(self.discriminator, restored, sharp)
            return {"loss": loss, "discriminator": loss}, None

        restored, sharp = self.restore(batch)
        content = F.mse_loss(restored, sharp)
        saturating = self.numbers["adversarial"] == "saturating"
        adversarial = losses.fooling(self.discriminator, restored, saturating)
        loss = content + self.numbers["lambda"] * adversarial
        return {"loss": loss, "content": content, "adversarial": adversarial}, None

    def train(self, mode: bool = True) -> Self:
        """Change the mode of all but the generator's batch normalisation."""
        super().train(mode)
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self
