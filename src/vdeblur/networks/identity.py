"""Identity: returns each frame unchanged, to try settings and to measure everything around a network."""

from torch import Tensor

from vdeblur.networks.layers import Network


class Identity(Network):
    """Return each frame unchanged."""

    feeding = "frame"
    multiple = 1
    half_precision = ("fp16", "bf16")

    def forward(self, blurry: Tensor) -> Tensor:
        """Return blurry, (B, 3, H, W), unchanged."""
        return blurry
