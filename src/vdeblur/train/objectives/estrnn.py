"""The objective of ESTRNN: a smooth distance of pixels, without the first and last frames of a clip.

Zhong, Gao, Zheng, Zheng, Sato, IJCV 2023 (see networks/estrnn.py). The numbers are from the authors' code
(github.com/zzh-tech/ESTRNN). The state starts from zeros, and gradients pass through all steps of a clip.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from vdeblur.errors import UsageError
from vdeblur.networks.estrnn import ESTRNN, RADIUS
from vdeblur.train import losses
from vdeblur.train.objectives.base import Batch, Objective, unit_range
from vdeblur.train.rules import NOT_NEGATIVE


class ESTRNNObjective(Objective):
    """A smooth distance of each pixel's colour from the sharp one, in the frames that the network restores.

    numbers: epsilon, the distance below which it counts as a square.

    Raises: UsageError for samples so short that the network restores none of their frames.
    """

    network: ESTRNN
    rules: ClassVar = {"epsilon": NOT_NEGATIVE}
    margin = 0

    def __init__(self, network: ESTRNN, numbers: Mapping[str, Any]) -> None:
        super().__init__(network, numbers)
        least = 2 * RADIUS + 1
        if numbers.get("frames", least) < least:
            fault = f"data.frames is {numbers['frames']}, but estrnn restores none of the {RADIUS} frames at each end"
            raise UsageError(fault, f"set data.frames to {least} or more")

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Return the "loss" of clips, blurry and sharp (B, T, 3, H, W)."""
        restored = self.network(unit_range(batch["blurry"])).float()  # (B, T - 4, 3, H, W)
        sharp = unit_range(batch["sharp"][:, RADIUS:-RADIUS])
        return {"loss": losses.colour_distance(restored, sharp, self.numbers["epsilon"])}, None
