"""What networks share."""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 32  # pixels of a row that correlate compares at once


@dataclass(frozen=True)
class Memory:
    """What a network takes beside its weights, at the most, in bytes per pixel.

    Measured by benchmarks.network_memory. tile: for each pixel of the tiles that are computed together; frame: for each
    pixel of a frame, however it is cut up. tile_held, frame_held: the same, for each frame that is held in a window.
    """

    tile: int = 0
    frame: int = 0
    tile_held: int = 0
    frame_held: int = 0


class Network(nn.Module):
    """A network with what a caller must know of it.

    feeding: how streams.py feeds it; radius: frames on either side of a window, where it is fed windows. multiple:
    what height and width must be divisible by, smallest: the least they may be, padding: how a frame is continued to
    the right and the bottom to get there ("reflect", "replicate" or "zeros").
    half_precision: which of fp16 and bf16 give the same picture as fp32, to 50 dB with the weights of its parity cases.
    float32_parts: its parts that stay in float32 even so. tile_multiple: what tiles must be aligned to, if to more.
    constant_buffers: tensors that are saved, but never anything else than what the constructor gives.
    overlap: pixels that neighbouring tiles should share; reach: how far away a pixel may be that still matters to
    another, where that is known. whole_pixels: up to which size frames are better not cut up.
    memory, half_memory: what it takes in float32 and in half precision.
    exact_weights: its weights in float32, where it was placed in half precision.
    """

    feeding: ClassVar[str]
    radius: int = 0
    multiple: ClassVar[int] = 1
    tile_multiple: ClassVar[int | None] = None
    smallest: ClassVar[int] = 1
    padding: ClassVar[str] = "reflect"
    half_precision: ClassVar[tuple[str, ...]] = ()
    float32_parts: ClassVar[tuple[str, ...]] = ()
    constant_buffers: ClassVar[tuple[str, ...]] = ()
    overlap: ClassVar[int] = 32
    reach: ClassVar[int | None] = None
    whole_pixels: ClassVar[int] = 3_000_000
    memory: Memory = Memory()
    half_memory: Memory = Memory()
    exact_weights: dict[str, Tensor] | None = None

    @staticmethod
    def official_name(name: str) -> str:
        """Give the name that a tensor of this network has in its authors' checkpoints, without a leading `module.`."""
        return name

    def to_precision(self, dtype: torch.dtype) -> Self:
        """Convert all but the parts that stay in float32."""
        exact = tuple(f"{part}." for part in self.float32_parts)
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(torch.float32 if name.startswith(exact) else dtype)
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
    # Positions and displacements are multiples of the stride, so nothing else of second is needed either.
    first, second = (x[..., ::stride, ::stride].permute(0, 2, 3, 1).float() for x in (first, second))  # channels last
    batch, height, width, channels = first.shape
    side = 2 * radius + 1
    # A matrix product compares each of a block of pixels in a row with every pixel near the block, in all channels at
    # once. What is wanted of it is a band; the rest costs less than it would to go displacement by displacement.
    count = -(-width // BLOCK)
    block = -(-width // count)
    beyond = count * block - width
    first = F.pad(first, (0, 0, 0, beyond)).reshape(-1, block, channels)
    second = F.pad(second, (0, 0, radius, radius + beyond, radius, radius)).unfold(2, block + 2 * radius, block)
    bands = []
    for y in range(side):
        row = second[:, y : y + height].reshape(-1, channels, block + 2 * radius)
        products = torch.bmm(first, row)  # (B height count, block, block + 2 radius)
        steps = products.stride()
        bands.append(products.as_strided((len(first), block, side), (steps[0], steps[1] + 1, steps[2])))
    compared = torch.stack(bands, 2).view(batch, height, count * block, side**2) / channels
    return compared[:, :, :width].permute(0, 3, 1, 2)


class FewChannelsConv2d(nn.Conv2d):
    """A convolution with stride 1, an odd kernel and few output channels, the same as nn.Conv2d but faster on CPUs.

    They compute 16 channels at least. So each block of 2x2 pixels is made channels of one, with the kernel at four
    places in one that is larger by one (64 to 3 channels, 5x5, in float32: 0.4 of the time).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Give (B, out, H, W) from (B, in, H, W)."""
        if x.shape[2] % 2 or x.shape[3] % 2 or x.device.type != "cpu":
            return super().forward(x)
        kernels = torch.stack([F.pad(self.weight, (i, 1 - i, j, 1 - j)) for j in (0, 1) for i in (0, 1)], 1)
        bias = None if self.bias is None else self.bias.repeat_interleave(4)
        blocks = F.conv2d(x, in_channels_last(kernels.flatten(0, 1)), bias, 2, self.padding)
        return F.pixel_shuffle(blocks, 2)
