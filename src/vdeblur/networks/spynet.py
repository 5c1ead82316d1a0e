"""SPyNet: Optical Flow Estimation using a Spatial Pyramid Network.

Ranjan, Black, CVPR 2017, arXiv 1611.00850. This is the variant inside BasicVSR++, which fine-tuned it.

Flow is estimated from coarse to fine on plain pictures: at every level of an image pyramid, the flow so far warps the
second picture, and five convolutions predict the residual flow from both pictures and that flow.

Parts: the image pyramid and the loop over its levels (Sec. 3.1 and 3.2), a small network for each level (Sec. 3.2).

Where this differs from the paper, because the weights that BasicVSR++ ships do:
1. Six levels, the finest at the full size of the input.
2. Pictures are averaged over 2x2 cells from level to level; before, their sides are resized to multiples of 32.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.layers import FewChannelsConv2d, dtype_of, in_channels_last, warp

LEVELS = 6
MULTIPLE = 2 ** (LEVELS - 1)  # five halvings
WIDTHS = (8, 32, 64, 32, 16, 2)  # input (two pictures and a flow), four layers, output (the residual flow)


class SPyNet(nn.Module):
    """Estimate optical flow between two pictures."""

    constant_buffers = ("mean", "std")
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).reshape(1, 3, 1, 1))  # of ImageNet, RGB
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225)).reshape(1, 3, 1, 1))
        self.levels = nn.ModuleList(_level() for _ in range(LEVELS))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Estimate the flow from first to second, (B, 2, H, W) float32, in pixels, horizontal first.

        first, second: (B, 3, H, W), RGB in [0, 1].
        """
        flow: Tensor | None = None
        for level, first_small, second_small in zip(
            self.levels, self._pyramid(first), self._pyramid(second), strict=True
        ):
            flow = _refined(level, first_small, second_small, flow)
        assert flow is not None
        height, width = first.shape[2:]
        inner_height, inner_width = flow.shape[2:]
        if (height, width) != (inner_height, inner_width):
            flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)
            flow = flow * flow.new_tensor((width / inner_width, height / inner_height))[:, None, None]
        return flow

    def _pyramid(self, picture: Tensor) -> list[Tensor]:
        """Return the normalised picture at all sizes, (B, 3, h, w) float32, the smallest first."""
        size = [-(-side // MULTIPLE) * MULTIPLE for side in picture.shape[2:]]
        if list(picture.shape[2:]) != size:
            picture = F.interpolate(picture, size, mode="bilinear", align_corners=False)
        levels = [(picture - self.mean) / self.std]
        while len(levels) < LEVELS:
            levels.insert(0, F.avg_pool2d(levels[0], 2))
        return levels

    @staticmethod
    def official_name(name: str) -> str:
        """Return the key of a tensor in BasicVSR++'s checkpoints, after `spynet.`."""
        part, *rest = name.split(".")
        if part != "levels":  # mean, std
            return name
        level, layer, kind = rest
        return f"basic_module.{level}.basic_module.{int(layer) // 2}.conv.{kind}"


def _level() -> nn.Sequential:
    """Return the network of a level: five 7x7 convolutions, with a ReLU after all but the last."""
    layers: list[nn.Module] = []
    for channels, width in pairwise(WIDTHS):
        convolution = FewChannelsConv2d if width == WIDTHS[-1] else nn.Conv2d
        layers += (convolution(channels, width, 7, padding=3), nn.ReLU(inplace=True))
    return nn.Sequential(*layers[:-1])


def _refined(level: nn.Module, first: Tensor, second: Tensor, flow: Tensor | None) -> Tensor:
    """Return a level's flow (B, 2, h, w) float32; flow: that of the level above, at half the size, None at the top."""
    if flow is None:
        flow = first.new_zeros(first.shape[0], 2, *first.shape[2:])
    else:
        flow = F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True) * 2
    x = torch.cat((first, warp(second, flow, "border"), flow), 1)  # (B, 8, h, w)
    residual: Tensor = level(in_channels_last(x.to(dtype_of(level)))).float()
    return flow + residual
