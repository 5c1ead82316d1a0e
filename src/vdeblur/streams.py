"""Frames of one scene through a network, in the way the network wants them.

Each function here takes a network and an iterator of stacks of tiles, (B, 3, h, w) RGB in [0, 1] float32, one per
frame, and gives an iterator of as many restored stacks, in order. How far it reads ahead is its own business.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vdeblur.networks.layers import Network

CHUNK = 12  # frames restored at a time by a clip network; more cost memory, fewer repeat more of the look-ahead
LOOKAHEAD = 4  # frames beyond the chunk that it may see; what lies further ahead changes the result by noise only


def stream(network: Network, stacks: Iterator[Tensor], tiles_at_once: int) -> Iterator[Tensor]:
    """Feed a scene to a network by its own kind of feeding, at most `tiles_at_once` of each stack in one call."""
    feeding = {"frame": stream_frames, "clip": stream_clip}[network.feeding]
    return feeding(network, stacks, tiles_at_once)


def stream_frames(network: Network, stacks: Iterator[Tensor], tiles_at_once: int) -> Iterator[Tensor]:
    """Feed a network that looks at one frame at a time."""
    for stack in stacks:
        yield torch.cat([network(part) for part in stack.split(tiles_at_once)])


def stream_clip(network: Any, stacks: Iterator[Tensor], tiles_at_once: int) -> Iterator[Tensor]:
    """Feed a bidirectional network chunk by chunk; the state of its forward propagation is carried on exactly.

    Only the backward propagation is cut short: it begins LOOKAHEAD frames after the chunk instead of at the end.
    """
    window: list[Tensor] = []
    states: list[Any] = []  # per part of the stack; what it is, is the network's business
    over = False
    while not over:
        while len(window) < CHUNK + LOOKAHEAD:
            stack = next(stacks, None)
            if stack is None:
                over = True
                break
            window.append(stack)
        if not window:
            return
        keep = len(window) if over else CHUNK
        parts = zip(*(stack.split(tiles_at_once) for stack in window), strict=True)
        restored: list[Tensor] = []
        for index, part in enumerate(parts):
            if len(states) == index:
                states.append(None)
            result, states[index] = network.restore(torch.stack(part, 1), keep, states[index])
            restored.append(result)
        del window[:keep]
        for index in range(keep):
            yield torch.cat([part[:, index] for part in restored]) if len(restored) > 1 else restored[0][:, index]
