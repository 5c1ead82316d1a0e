"""What PVDNet is trained for, and before it BIMNet, which estimates its motion.

Son, Lee, Lee, Cho, Lee, ACM Transactions on Graphics 2021 (see networks/pvdnet.py and networks/bimnet.py). First BIMNet
learns to find the motion between two frames however blurry either is: whichever of the blurry and the sharp frames it
is shown, the flow must carry one sharp frame onto the other. Then it is frozen, and PVDNet learns frame after frame of
a clip, each step beginning with what it made of the frame before.

Where this differs from the paper, because the authors' code does:

1. The loss of PVDNet is a mean square, of pictures in [-1, 1] (paper: a mean absolute difference).
2. What stands in for a restored frame at the beginning is the blurry frame before (paper: the current frame).
3. With `joint`, both learn at once, as the code's only way of training BIMNet does; the paper has stages.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor, nn

from vdeblur.networks.bimnet import BIMNet, Pyramid
from vdeblur.networks.pvdnet import PVDNet, gray_of, pixel_volume
from vdeblur.train import losses
from vdeblur.train.objectives.base import Batch, Clip, Objective, unit_range
from vdeblur.train.rules import FLAG, NOT_NEGATIVE, one_of

KINDS = {"bb": (0, 2), "bs": (1, 2), "sb": (0, 3), "ss": (1, 3)}
"""The four flow losses, by the kind of the frame before and of the current one (b: blurry, s: sharp): where the current
one and the one before stand among the blurry and the sharp current frame, the blurry and the sharp one before."""


class BIMNetObjective(Objective):
    """Motion that blur does not lead astray; trains the network's BIMNet and nothing else. Samples have two frames."""

    network: PVDNet
    restores = False

    def __init__(self, network: PVDNet, numbers: Mapping[str, Any]) -> None:
        super().__init__(network, numbers)
        network.requires_grad_(False)
        network.bimnet.requires_grad_(True)

    def parameters_of(self, optimiser: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Give BIMNet's parameters, with `bimnet.` before their names."""
        return self.network.bimnet.named_parameters("bimnet")

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Give the flow losses of pairs, blurry and sharp (B, 2, 3, H, W), and their mean as "loss"."""
        blurry, sharp = unit_range(batch["blurry"]), unit_range(batch["sharp"])
        found, _ = flow_losses(self.network.bimnet, blurry, sharp)
        return {"loss": mean_of(found), **found}, None


class PVDNetObjective(Objective):
    """Restore the frames of a clip one after the other, an update at each.

    numbers: frames, how many of a sample are restored; it has one more at each end. distance: "mse" or "l1", of
    pictures in [-1, 1]. noise: standard deviation in [0, 1] of what is added to half of the blurry frames; 0 for none.
    begin_with: which blurry frame stands in for the restored one before the first, "previous" or "current". joint:
    BIMNet is trained as well.
    """

    network: PVDNet
    rules: ClassVar = {
        "distance": one_of(("mse", "l1")),
        "begin_with": one_of(("previous", "current")),
        "noise": NOT_NEGATIVE,
        "joint": FLAG,
    }

    def __init__(self, network: PVDNet, numbers: Mapping[str, Any]) -> None:
        super().__init__(network, numbers)
        self.joint = bool(numbers["joint"])
        network.bimnet.requires_grad_(self.joint)

    def prepare(self, clip: Clip, rng: numpy.random.Generator) -> Batch:
        """Give the clip; where there is to be noise, the blurry frames are float32 in [0, 1]."""
        noise = self.numbers["noise"]
        if not noise:
            return super().prepare(clip, rng)
        blurry = unit_range(clip.blurry)
        for index in numpy.flatnonzero(rng.random(len(blurry)) < 0.5):
            drawn = rng.standard_normal(blurry[index].shape, numpy.float32)
            blurry[index] = (blurry[index] + noise * torch.from_numpy(drawn)).clamp(0, 1)
        return {"blurry": blurry, "sharp": clip.sharp}

    def turns(self, update: int) -> tuple[str, ...]:
        """Give a step for each frame that is restored."""
        return ("network",) * int(self.numbers["frames"])

    def parameters_of(self, optimiser: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Give the network's parameters, BIMNet's only where it is trained as well."""
        for name, parameter in self.network.named_parameters():
            if self.joint or not name.startswith("bimnet."):
                yield name, parameter

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Give the losses of the frame at turn + 1 of clips (B, T, 3, H, W), and what the next frame needs.

        Blurry frames may be float32 in [0, 1]. "image" is that of the restored frame; with `joint`, the flow losses
        come beside it, and "flow", their mean, is added.
        """
        blurry, sharp = (pictures[:, turn : turn + 3] for pictures in (batch["blurry"], batch["sharp"]))
        blurry = blurry if blurry.is_floating_point() else unit_range(blurry)
        sharp = unit_range(sharp)
        previous, frame, following = blurry.unbind(1)
        first = previous if self.numbers["begin_with"] == "previous" else frame
        restored, pyramid = (first, None) if carried is None else carried
        found: dict[str, Tensor] = {}
        if self.joint:
            found, flow = flow_losses(self.network.bimnet, blurry[:, :2], sharp[:, :2])
            found["flow"] = mean_of(found)
            volume = pixel_volume(gray_of(restored), gray_of(frame), flow.detach())
        else:
            if pyramid is None:  # of a frame before that is not restored itself
                pyramid = self.seen(previous)
            volume, pyramid = self.network.align(restored, frame, pyramid)
        output = self.network(volume, previous, frame, following)
        found["image"] = self.distance(output, sharp[:, 1])
        found["loss"] = found["image"] + found["flow"] if self.joint else found["image"]
        return found, (output.detach(), pyramid)

    def seen(self, frame: Tensor) -> Pyramid:
        """Give what BIMNet wants of a frame (B, 3, H, W), without gradient."""
        with torch.no_grad(), torch.autocast(frame.device.type, enabled=False):
            return self.network.bimnet.describe(frame)

    def distance(self, restored: Tensor, sharp: Tensor) -> Tensor:
        """Give how far frames in [0, 1] are apart once they are in [-1, 1]."""
        difference = 2 * (restored - sharp)
        return (difference.square() if self.numbers["distance"] == "mse" else difference.abs()).mean()


def flow_losses(bimnet: BIMNet, blurry: Tensor, sharp: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Give the four flow losses of pairs, and the flow (B, 2, H, W) from the current blurry frame to the one before.

    blurry, sharp: (B, 2, 3, H, W) in [0, 1], the frame before first. Losses: "flow_" and the kinds of both frames, that
    of the frame before first; all of them are about the sharp frames.
    """
    batch = len(blurry)
    with torch.autocast(blurry.device.type, enabled=False):
        seen = bimnet.describe(torch.cat((blurry[:, 1], sharp[:, 1], blurry[:, 0], sharp[:, 0])))
        current, before = (_rows(seen, places, batch) for places in zip(*KINDS.values(), strict=True))
        flows = bimnet.match(current, before).split(batch)
    found = {
        f"flow_{kind}": losses.motion_error(flow, sharp[:, 1], sharp[:, 0])
        for kind, flow in zip(KINDS, flows, strict=True)
    }
    return found, flows[0]


def mean_of(found: dict[str, Tensor]) -> Tensor:
    """Give the mean of losses."""
    return torch.stack(tuple(found.values())).mean()


def _rows(seen: Pyramid, places: Sequence[int], batch: int) -> Pyramid:
    """Give those of several batches, one after the other, that stand at some places."""
    size, *parts = seen
    return Pyramid(size, *([_picked(level, places, batch) for level in levels] for levels in parts))


def _picked(level: Tensor, places: Sequence[int], batch: int) -> Tensor:
    return torch.cat([level[place * batch : (place + 1) * batch] for place in places])
