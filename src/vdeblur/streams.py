"""Frames of one scene through a network, in the way the network wants them.

Each function here takes a network and an iterator of stacks of tiles, (B, 3, h, w) RGB in [0, 1] float32, one per
frame, and gives an iterator of as many restored stacks, in order. How far it reads ahead is its own business.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vdeblur.networks.layers import Network


def stream(network: Network, stacks: Iterator[Tensor], tiles_at_once: int) -> Iterator[Tensor]:
    """Feed a scene to a network by its own kind of feeding, at most `tiles_at_once` of each stack in one call."""
    return FEEDINGS[network.feeding](network, stacks, tiles_at_once)


def stream_frames(network: Network, stacks: Iterator[Tensor], tiles_at_once: int) -> Iterator[Tensor]:
    """Feed a network that looks at one frame at a time."""
    for stack in stacks:
        yield torch.cat([network(part) for part in stack.split(tiles_at_once)])


def stream_neighbours(network: Network, stacks: Iterator[Tensor], tiles_at_once: int) -> Iterator[Tensor]:
    """Feed a network that looks at a frame and its two neighbours; it gets None for those beyond the scene's ends."""
    previous: Tensor | None = None
    current = next(stacks, None)
    while current is not None:
        following = next(stacks, None)
        parts = []
        for first in range(0, len(current), tiles_at_once):
            part = slice(first, first + tiles_at_once)
            window = (None if frame is None else frame[part] for frame in (previous, current, following))
            parts.append(network(*window))
        yield torch.cat(parts)
        previous, current = current, following


Feeding = Callable[[Network, Iterator[Tensor], int], Iterator[Tensor]]
FEEDINGS: dict[str, Feeding] = {"frame": stream_frames, "neighbours": stream_neighbours}
