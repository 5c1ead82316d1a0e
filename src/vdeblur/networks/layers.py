"""What networks share."""

from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Network(nn.Module):
    """A network with what a caller must know of it.

    feeding: how streams.py feeds it; radius: frames on either side of a window, where it is fed windows. multiple:
    what height and width must be divisible by, smallest: the least they may be, padding: how a frame is continued to
    the right and the bottom to get there ("reflect", "replicate" or "zeros").
    half_precision: which of fp16 and bf16 give the same picture as fp32, to 50 dB with the weights of its parity cases.
    float32_parts: its parts that stay in float32 even so.
    constant_buffers: tensors that are saved, but never anything else than what the constructor gives.
    overlap: pixels that neighbouring tiles should share; reach: how far away a pixel may be that still matters to
    another, where that is known. whole_pixels: up to which size frames are better not cut up.
    """

    feeding: ClassVar[str]
    radius: int = 0
    multiple: ClassVar[int] = 1
    smallest: ClassVar[int] = 1
    padding: ClassVar[str] = "reflect"
    half_precision: ClassVar[tuple[str, ...]] = ()
    float32_parts: ClassVar[tuple[str, ...]] = ()
    constant_buffers: ClassVar[tuple[str, ...]] = ()
    overlap: ClassVar[int] = 32
    reach: ClassVar[int | None] = None
    whole_pixels: ClassVar[int] = 3_000_000

    @staticmethod
    def official_name(name: str) -> str:
        """Give the name that a tensor of this network has in its authors' checkpoints, without a leading `module.`."""
        return name

    def to_precision(self, dtype: torch.dtype) -> Self:
        """Convert all but the parts that stay in float32."""
        self.to(dtype)
        for part in self.float32_parts:
            self.get_submodule(part).float()
        return self


def dtype_of(module: nn.Module) -> torch.dtype:
    """Give the precision in which a module computes."""
    return next(module.parameters()).dtype


def in_channels_last(x: Tensor) -> Tensor:
    """Lay out (B, C, H, W) as convolutions like it best."""
    return x.contiguous(memory_format=torch.channels_last)


def sampling_grid(flow: Tensor) -> Tensor:
    """Give where flow points, for grid_sample with aligned corners: (B, H, W, 2) float32, -1 to 1 from edge to edge.

    flow: (B, 2, H, W), pixels of its own resolution, horizontal first. In half precision the grid would be off by a
    third of a pixel at a width of 1280, so it is float32 whatever flow is.
    """
    height, width = flow.shape[2:]
    flow = flow.float()
    x = torch.arange(width, device=flow.device) + flow[:, 0]
    y = torch.arange(height, device=flow.device)[:, None] + flow[:, 1]
    return torch.stack((x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1), 3)


def warp(x: Tensor, flow: Tensor, border: str = "zeros") -> Tensor:
    """Sample x where flow points (backward warping), bilinearly: (B, C, H, W), of x's type.

    x: (B, C, H, W). flow: (B, 2, H, W), see sampling_grid. border: "zeros" or "border", what lies outside.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    grid = sampling_grid(flow).to(exact)
    return F.grid_sample(x.to(exact), grid, "bilinear", border, align_corners=True).to(x.dtype)


def is_inside(flow: Tensor) -> Tensor:
    """Give 1 where all that warp samples lies inside the picture, else 0: (B, 1, H, W) float32, without gradient."""
    with torch.no_grad():
        ones = flow.new_ones(flow.shape[0], 1, *flow.shape[2:], dtype=torch.float32)
        return (warp(ones, flow) > 0.999).float()


def correlate(first: Tensor, second: Tensor, radius: int, stride: int = 1) -> Tensor:
    """Compare each pixel of first with a neighbourhood in second: the mean over channels of their products.

    first, second: (B, C, H, W). Result: (B, (2 radius + 1)^2, ceil(H / stride), ceil(W / stride)), float32, channel
    (2 radius + 1) (dy + radius) + dx + radius for first(p) second(p + stride (dx, dy)), zeros outside.
    """
    height, width = first.shape[2:]
    second = F.pad(second, (radius * stride,) * 4)
    first = first[..., ::stride, ::stride]
    products = [
        (first * second[..., y : y + height : stride, x : x + width : stride]).mean(1, dtype=torch.float32)
        for y in range(0, (2 * radius + 1) * stride, stride)
        for x in range(0, (2 * radius + 1) * stride, stride)
    ]
    return torch.stack(products, 1)
