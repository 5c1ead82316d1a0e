"""A clip of RGB tensors restored as a stream, without a file.

Bench, training and the Python API restore their clips here; `run` restores the frames of a file in restorer.py.
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import Tensor

from vdeblur.networks.layers import Network
from vdeblur.restore import streams
from vdeblur.restore.plan import plan_tiles
from vdeblur.restore.tiles import TilePlan
from vdeblur.settings import Settings


@torch.inference_mode()
def restored_pictures(
    network: Network,
    chosen: torch.device,
    blurry: Iterator[Tensor],
    feed: streams.Feeding = streams.stream,
    settings: Settings | None = None,
    cut: Callable[[int, int], TilePlan] | None = None,
) -> Iterator[Tensor]:
    """Yield each picture of a scene restored, on the device: (3, H, W) float32, neither rounded nor clamped.

    network: on the device, for evaluation. blurry: RGB pictures of one size, (3, H, W), uint8 or float in [0, 1];
    results have their scale, 0 to 255 or 0 to 1. settings: choose tiles and strength. Reads ahead only as far as the
    network needs. cut: plans tiles for frames of a height and a width instead.
    """
    settings = settings or Settings()
    first = next(blurry, None)
    if first is None:
        return
    scale = 1.0 if first.is_floating_point() else 255.0
    height, width = first.shape[1:]
    plan = plan_tiles(settings, height, width, network, chosen) if cut is None else cut(height, width)
    waiting: deque[Tensor] = deque()

    def padded() -> Iterator[Tensor]:
        for picture in chain([first], blurry):
            waiting.append(picture.to(chosen))
            yield plan.pad(waiting[-1][None].float() / scale)

    for restored in feed(network, padded(), plan):
        before = waiting.popleft().float()
        # As in restorer.py, the network's change is added to the picture, so that both round alike.
        change = plan.crop(restored)[0].float() - before / scale
        yield before + change * (settings.strength * scale)
