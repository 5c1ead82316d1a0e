"""Frames of one scene through a network, in the way the network wants them.

Each function here takes a network, an iterator of padded frames, (1, 3, H, W) RGB in [0, 1] float32, and the plan by
which they are cut up, and gives an iterator of as many restored frames, in order, not clamped. How far it reads ahead
is its own business, and which of the network's steps see whole frames and which see tiles. With a plan of one tile,
several clips of one length can go through together, along B.
"""

from collections.abc import Callable, Iterator

from torch import Tensor

from vdeblur.networks.layers import Network
from vdeblur.networks.pvdnet import PVDNet
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


def stream_recurrent(network: Network, frames: Iterator[Tensor], plan: TilePlan) -> Iterator[Tensor]:
    """Feed a network that also looks at what it made of the frame before, moved by the motion of whole frames."""
    assert isinstance(network, PVDNet)
    current = next(frames, None)
    previous, restored, seen = current, current, None
    while current is not None:
        following = next(frames, None)
        assert restored is not None
        volume, seen = network.align(restored, current, seen)
        restored = plan.apply(network, volume, previous, current, current if following is None else following)
        yield restored
        previous, current = current, following


Feeding = Callable[[Network, Iterator[Tensor], TilePlan], Iterator[Tensor]]
FEEDINGS: dict[str, Feeding] = {"frame": stream_frames, "neighbours": stream_neighbours, "recurrent": stream_recurrent}
