"""What networks share."""

from typing import ClassVar, Self

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """A network with what a caller must know of it.

    feeding: how streams.py feeds it. multiple: what height and width must be divisible by, smallest: the least they
    may be, padding: how a frame is continued to the right and the bottom to get there ("reflect" or "replicate").
    half_precision: whether it may be computed in bf16 and fp16; float32_parts: its parts that stay in float32 even so.
    overlap: pixels that neighbouring tiles should share. whole_pixels: up to which size frames are better not cut up.
    """

    feeding: ClassVar[str]
    multiple: ClassVar[int] = 1
    smallest: ClassVar[int] = 1
    padding: ClassVar[str] = "reflect"
    half_precision: ClassVar[bool] = False
    float32_parts: ClassVar[tuple[str, ...]] = ()
    overlap: ClassVar[int] = 32
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
