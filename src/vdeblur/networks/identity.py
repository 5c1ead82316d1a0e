"""Identity: gives back what it gets, to try settings and to measure everything around a network."""

from torch import Tensor

from vdeblur.networks.layers import Network


class Identity(Network):
    """Return the frame as it is."""

    feeding = "frame"
    multiple = 1
    half_precision = ("fp16", "bf16")

    def forward(self, blurry: Tensor) -> Tensor:
        """Give (B, 3, H, W) back."""
        return blurry
