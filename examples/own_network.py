"""Restore a file with a network of your own:  python examples/own_network.py IN OUT.

The command line takes it, too:  vdeblur run IN OUT -m examples/own_network.py:UnsharpMask
"""

import sys

from torch import Tensor
from torch.nn import functional as F

import vdeblur
from vdeblur.networks.layers import Network


class UnsharpMask(Network):
    """Add to each frame what distinguishes it from its own blur: the classic sharpening, without any weights."""

    feeding = "frame"  # forward gets one frame at a time
    half_precision = ("fp16", "bf16")  # as good as float32
    reach = 2  # pixels: half the window of the blur
    overlap = 8  # pixels that neighbouring tiles share; with more than twice the reach, tiles are exact

    def forward(self, blurry: Tensor) -> Tensor:
        """Return sharpened frames: (B, 3, H, W) RGB in [0, 1], the shape of blurry."""
        blurrier = F.avg_pool2d(F.pad(blurry, (2, 2, 2, 2), "replicate"), 5, stride=1)
        return blurry + (blurry - blurrier)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/own_network.py IN OUT")
    result = vdeblur.deblur(sys.argv[1], sys.argv[2], model=f"{__file__}:UnsharpMask")
    print(f"{result.frames} frames in {result.seconds:.1f} s")
