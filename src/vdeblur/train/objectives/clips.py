"""Objectives of networks that restore a complete clip or frame: DSTNet, DSTNet+, BasicVSR++ and NAFNet.

Their files in networks/ name the papers. The first three compare each frame with its sharp one, DSTNet and DSTNet+ also
in the frequency domain; NAFNet maximises the PSNR.

Where this differs from the papers, because the authors' code does: DSTNet's loss is a smooth absolute difference at one
scale. The paper takes that of MIMO-UNet, L1 and spectra at several scales; `scales` and epsilon 0 give it. DSTNet has a
single output, so here the smaller scales are 2x2 means of output and sharp frame; the paper does not say.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.networks.nafnet import NAFNet
from vdeblur.train import losses
from vdeblur.train.objectives.base import Batch, Objective, unit_range
from vdeblur.train.rules import NOT_NEGATIVE, Rule, list_of

SCALE = Rule(lambda value: type(value) is int and value in (1, 2, 4, 8, 16), "1, 2, 4, 8 or 16")


class ClipObjective(Objective):
    """A smooth absolute difference of all frames of a clip, and of their spectra.

    numbers: epsilon, below which differences count as squares, 0 for the plain absolute difference; spectral_weight,
    the factor of the spectral loss, 0 for none; scales, the parts of the size at which both are computed, and added:
    1, 2 and 4 for all, a half and a quarter of it.
    """

    rules: ClassVar = {
        "epsilon": NOT_NEGATIVE,
        "spectral_weight": NOT_NEGATIVE,
        "scales": list_of(SCALE),
    }
    defaults: ClassVar = {"scales": (1,)}

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Return "charbonnier" and "spectral" of clips, blurry and sharp (B, T, 3, H, W), and their sum as "loss"."""
        restored = self.network(unit_range(batch["blurry"])).float()
        sharp = unit_range(batch["sharp"])
        weight = self.numbers["spectral_weight"]
        charbonnier, spectral = restored.new_zeros(()), restored.new_zeros(())
        for scale in self.numbers["scales"]:
            ours, truth = (_reduced(clip, scale) for clip in (restored, sharp))
            charbonnier = charbonnier + losses.charbonnier(ours, truth, self.numbers["epsilon"])
            if weight:
                spectral = spectral + losses.spectral_modulus(ours, truth)
        if not weight:
            return {"loss": charbonnier}, None
        return {"loss": charbonnier + weight * spectral, "charbonnier": charbonnier, "spectral": spectral}, None


def _reduced(clip: Tensor, scale: int) -> Tensor:
    """Return a clip (B, T, 3, H, W) at a part of its size, of means."""
    return clip if scale == 1 else F.avg_pool2d(clip.flatten(0, 1), scale).unflatten(0, clip.shape[:2])


class NAFNetObjective(Objective):
    """The PSNR of each frame on its own."""

    network: NAFNet

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Return minus the mean PSNR, in dB, of the frames of clips, blurry and sharp (B, T, 3, H, W), as "loss"."""
        blurry, sharp = (unit_range(torch.flatten(batch[kind], 0, 1)) for kind in ("blurry", "sharp"))
        return {"loss": losses.negative_psnr(self.network(blurry).float(), sharp)}, None
