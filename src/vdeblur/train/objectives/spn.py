"""SPN's objective, the mean squared error of luma; and SPGAN's, against a discriminator of gradient images.

Video Deblurring via Spatiotemporal Pyramid Network and Adversarial Gradient Prior, see networks/spn.py. The paper says
nothing about the discriminator's training. Our choice: two-class cross-entropy, a step before each of the generator's,
and first steps alone, since an untrained discriminator would mislead the trained generator.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.layers import Network
from vdeblur.networks.spn import Discriminator, gradient_magnitude, luma
from vdeblur.train import losses
from vdeblur.train.objectives.base import Batch, Clip, Objective, unit_range
from vdeblur.train.rules import COUNT, NOT_NEGATIVE, WHOLE, one_of


class SPNObjective(Objective):
    """The mean squared error of the middle frame's luma in [0, 1], never clamped. It has no numbers."""

    margin = 0

    @classmethod
    def frames_of(cls, arguments: Mapping[str, Any], numbers: Mapping[str, Any]) -> int | None:
        """Return the longest window of the network's scales."""
        return int(max(arguments["scales"]))

    def prepare(self, clip: Clip, rng: numpy.random.Generator) -> Batch:
        """Return the blurry window (5, 3, H, W), and its sharp middle frame (3, H, W), both uint8."""
        return {"blurry": clip.blurry, "sharp": clip.sharp[len(clip.sharp) // 2]}

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Return the content loss."""
        restored, sharp = self.restore(batch)
        return {"loss": F.mse_loss(restored, sharp)}, None

    def restore(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the luma of restored and sharp frames, (B, 1, H, W) float32."""
        restored = self.network(unit_range(batch["blurry"]))
        # Autocast would round the sum of products to half precision.
        with torch.autocast(restored.device.type, enabled=False):
            return luma(restored)[:, None], luma(unit_range(batch["sharp"]))[:, None]


class SPGANObjective(SPNObjective):
    """The content loss plus `lambda` times the adversarial one; for the discriminator, its cross-entropy.

    numbers: lambda; adversarial: "saturating", log(1 - D), as in the paper, or "nonsaturating", -log D;
    discriminator_first: the first updates, a batch each, which train the discriminator alone; discriminator_width, 64
    in the paper; prior: what the discriminator sees, "gradient" or, in an ablation, the "image" itself.
    The generator's batch normalisation keeps its statistics: batches of 4 would spoil them.
    """

    reaches_all = False  # a turn is for one of the two
    rules: ClassVar = {
        "lambda": NOT_NEGATIVE,
        "adversarial": one_of(("saturating", "nonsaturating")),
        "discriminator_first": WHOLE,
        "discriminator_width": COUNT,
        "prior": one_of(("gradient", "image")),
    }
    defaults: ClassVar = {"prior": "gradient"}
    smallest_crop = 16  # the discriminator halves it four times

    def __init__(self, network: Network, numbers: Mapping[str, Any]) -> None:
        super().__init__(network, numbers)
        self.discriminator = Discriminator(numbers["discriminator_width"])
        self.train()  # the initial mode, but without a call of the method below

    def turns(self, update: int) -> tuple[str, ...]:
        """Return the discriminator's step, and after its first steps alone the generator's ("network") too."""
        return ("discriminator",) if update < self.numbers["discriminator_first"] else ("discriminator", "network")

    def is_preparing(self, update: int) -> bool:
        """Return whether the discriminator is still trained alone."""
        return update < int(self.numbers["discriminator_first"])

    def parameters_of(self, optimiser: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the generator's or the discriminator's parameters."""
        return (self.network if optimiser == "network" else self.discriminator).named_parameters()

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Return the discriminator's loss in turn 0, the generator's in turn 1."""
        if turn == 0:
            with torch.no_grad():
                restored, sharp = self.restore(batch)
            loss = losses.telling_apart(self.discriminator, restored, sharp, self.view)
            return {"loss": loss, "discriminator": loss}, None

        restored, sharp = self.restore(batch)
        content = F.mse_loss(restored, sharp)
        saturating = self.numbers["adversarial"] == "saturating"
        adversarial = losses.fooling(self.discriminator, restored, saturating, self.view)
        loss = content + self.numbers["lambda"] * adversarial
        return {"loss": loss, "content": content, "adversarial": adversarial}, None

    def view(self, picture: Tensor) -> Tensor:
        """Return what the discriminator sees of luma (B, 1, H, W), in the same shape."""
        return gradient_magnitude(picture) if self.numbers["prior"] == "gradient" else picture.float()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of everything except the generator's batch normalisation."""
        super().train(mode)
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self
