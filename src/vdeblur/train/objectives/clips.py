"""Objectives of networks that restore a complete clip or frame: DSTNet, DSTNet+, BasicVSR++ and NAFNet.

Their files in networks/ name the papers. The first three compare each frame with its sharp one, DSTNet and DSTNet+ also
in the frequency domain; NAFNet maximises the PSNR.

Where this differs from the papers, because the authors' code does: DSTNet's loss is at one scale, the paper refers to a
multi-scale one.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from vdeblur.networks.nafnet import NAFNet
from vdeblur.train import losses
from vdeblur.train.objectives.base import Batch, Objective, unit_range
from vdeblur.train.rules import NOT_NEGATIVE, POSITIVE


class ClipObjective(Objective):
    """A smooth absolute difference of all frames of a clip, and of their spectra.

    numbers: epsilon, below which differences count as squares; spectral_weight, the factor of the spectral loss, 0 for
    none.
    """

    rules: ClassVar = {"epsilon": POSITIVE, "spectral_weight": NOT_NEGATIVE}

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Return "charbonnier" and "spectral" of clips, blurry and sharp (B, T, 3, H, W), and their sum as "loss"."""
        restored = self.network(unit_range(batch["blurry"])).float()
        sharp = unit_range(batch["sharp"])
        charbonnier = losses.charbonnier(restored, sharp, self.numbers["epsilon"])
        weight = self.numbers["spectral_weight"]
        if not weight:
            return {"loss": charbonnier}, None
        spectral = losses.spectral_modulus(restored, sharp)
        return {"loss": charbonnier + weight * spectral, "charbonnier": charbonnier, "spectral": spectral}, None


class NAFNetObjective(Objective):
    """The PSNR of each frame on its own."""

    network: NAFNet

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Return minus the mean PSNR, in dB, of the frames of clips, blurry and sharp (B, T, 3, H, W), as "loss"."""
        blurry, sharp = (unit_range(torch.flatten(batch[kind], 0, 1)) for kind in ("blurry", "sharp"))
        return {"loss": losses.negative_psnr(self.network(blurry).float(), sharp)}, None
