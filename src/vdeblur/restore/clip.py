"""A clip of RGB pictures restored as a stream, without a file."""

from collections import deque
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor

from vdeblur.networks.layers import Network
from vdeblur.restore import streams
from vdeblur.restore.plan import plan_tiles
from vdeblur.settings import Settings


@torch.inference_mode()
def restored_pictures(
    network: Network, chosen: torch.device, blurry: Iterator[Tensor], feed: streams.Feeding = streams.stream
) -> Iterator[Tensor]:
    """Give each picture of a scene restored, on the device: (3, H, W) float32, 0 to 255, neither rounded nor clamped.

    network: placed on the device, for evaluation. blurry: (3, H, W) uint8.
    """
    first = next(blurry, None)
    if first is None:
        return
    plan = plan_tiles(Settings(), first.shape[1], first.shape[2], network, chosen)
    waiting: deque[Tensor] = deque()

    def padded() -> Iterator[Tensor]:
        for picture in chain([first], blurry):
            waiting.append(picture.to(chosen))
            yield plan.pad(waiting[-1][None].float() / 255)

    for restored in feed(network, padded(), plan):
        before = waiting.popleft().float()
        # As in restore.py: what the network changed is added to the picture, so that both round alike.
        difference = plan.crop(restored)[0].float() - before / 255
        yield before + difference * 255
