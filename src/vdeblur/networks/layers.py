"""What networks share."""

from typing import ClassVar

from torch import nn


class Network(nn.Module):
    """A network with what a caller must know of it.

    feeding: how streams.py feeds it. multiple: what height and width must be divisible by. half_precision: whether it
    may be computed in bf16 and fp16.
    """

    feeding: ClassVar[str]
    multiple: ClassVar[int] = 1
    half_precision: ClassVar[bool] = False
