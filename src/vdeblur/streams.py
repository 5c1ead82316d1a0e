"""Frames of one scene through a network, in the way the network wants them.

Each function here takes a network, an iterator of padded frames, (1, 3, H, W) RGB in [0, 1] float32, and the plan by
which they are cut up, and gives an iterator of as many restored frames, in order, not clamped. How far it reads ahead
is its own business, and which of the network's steps see whole frames and which see tiles. With a plan of one tile,
several clips of one length can go through together, along B.
"""

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vdeblur.networks.layers import Network
from vdeblur.tiles import TilePlan


def stream(network: Network, frames: Iterator[Tensor], plan: TilePlan) -> Iterator[Tensor]:
    """Feed a scene to a network by its own kind of feeding."""
    return FEEDINGS[network.feeding](network, frames, plan)


def stream_frames(network: Network, frames: Iterator[Tensor], plan: TilePlan) -> Iterator[Tensor]:
    """Feed a network that looks at one frame at a time."""
    for frame in frames:
        yield plan.apply(network, frame)


def stream_neighbours(network: Network, frames: Iterator[Tensor], plan: TilePlan) -> Iterator[Tensor]:
    """Feed a network that looks at a frame and its two neighbours; it gets None for those beyond the scene's ends."""
    previous: Tensor | None = None
    current = next(frames, None)
    while current is not None:
        following = next(frames, None)
        yield plan.apply(network, previous, current, following)
        previous, current = current, following


def stream_windows(network: Network, frames: Iterator[Tensor], plan: TilePlan) -> Iterator[Tensor]:
    """Feed a network that restores the middle frame of a window (B, T, 3, H, W); edge frames are repeated."""
    length = 2 * network.radius + 1
    window: deque[Tensor] = deque(maxlen=length)

    def restored() -> Iterator[Tensor]:
        if len(window) == length:
            yield plan.apply(lambda *tiles: network(torch.stack(tiles, 1)), *window)

    for frame in frames:
        window.extend([frame] * (1 if window else network.radius + 1))
        yield from restored()
    for _ in range(network.radius if window else 0):
        window.append(window[-1])
        yield from restored()


def stream_pairs(network: Network, frames: Iterator[Tensor], plan: TilePlan) -> Iterator[Tensor]:
    """Feed a network that looks at a frame and the next; the last one is paired with the one before it, if any."""
    previous: Tensor | None = None
    current = next(frames, None)
    while current is not None:
        following = next(frames, None)
        neighbour = following if following is not None else previous if previous is not None else current
        yield plan.apply(network, current, neighbour)
        previous, current = current, following


Feeding = Callable[[Network, Iterator[Tensor], TilePlan], Iterator[Tensor]]
FEEDINGS: dict[str, Feeding] = {
    "frame": stream_frames,
    "neighbours": stream_neighbours,
    "window": stream_windows,
    "pair": stream_pairs,
}
