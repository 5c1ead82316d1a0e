"""The objectives of PVDNet, and of BIMNet, which estimates its motion and trains first.

Son, Lee, Lee, Cho, Lee, ACM Transactions on Graphics 2021 (see networks/pvdnet.py and networks/bimnet.py). First BIMNet
learns the motion between two frames however blurry each is: for blurry and sharp inputs alike, the flow must warp one
sharp frame onto the other. Then it is frozen, and PVDNet learns a clip frame by frame, each step from its restoration
of the frame before.

Where this differs from the paper, because the authors' code does:

1. The loss of PVDNet is a mean square, of pictures in [-1, 1] (paper: a mean absolute difference).
2. At the first frame of a clip, the blurry frame before stands in for a restored one. In the paper (Sec. 4.1) the
   current frame replaces both the restored and the blurry previous frame, so that there is no motion; inference does so
   at the start of a scene, too.
3. With `joint`, both train at once, the code's only way to train BIMNet; the paper has stages.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor, nn

from vdeblur.errors import UsageError
from vdeblur.networks.bimnet import BIMNet, Pyramid
from vdeblur.networks.pvdnet import PVDNet
from vdeblur.train import losses
from vdeblur.train.objectives.base import Batch, Clip, Objective, unit_range
from vdeblur.train.rules import FLAG, NOT_NEGATIVE, one_of

KINDS = {"bb": (0, 2), "bs": (1, 2), "sb": (0, 3), "ss": (1, 3)}
"""The four flow losses, by the kinds of the previous and the current frame (b: blurry, s: sharp): the positions of the
current and the previous frame in (blurry current, sharp current, blurry previous, sharp previous)."""


FLOW_RULES = {"blur_invariant": FLAG, "masked": FLAG}
FLOW_DEFAULTS = {"blur_invariant": True, "masked": True}


class BIMNetObjective(Objective):
    """Blur-invariant motion; trains only the network's BIMNet. Samples have two frames.

    numbers: blur_invariant, masked, see flow_losses.

    Raises: UsageError for a network without motion compensation.
    """

    network: PVDNet
    restores = False
    rules: ClassVar = FLOW_RULES
    defaults: ClassVar = FLOW_DEFAULTS
    margin = 0

    def __init__(self, network: PVDNet, numbers: Mapping[str, Any]) -> None:
        super().__init__(network, numbers)
        network.requires_grad_(False)
        _bimnet_of(network).requires_grad_(True)

    @classmethod
    def frames_of(cls, arguments: Mapping[str, Any], numbers: Mapping[str, Any]) -> int | None:
        """Return 2, a pair."""
        return 2

    @classmethod
    def check_variant(cls, arguments: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
        """Refuse a network without motion compensation.

        Raises: UsageError.
        """
        _refuse_no_motion(arguments["motion"])

    def parameters_of(self, optimiser: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Return BIMNet's parameters, with `bimnet.` before their names."""
        return _bimnet_of(self.network).named_parameters("bimnet")

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Return the flow losses of pairs, blurry and sharp (B, 2, 3, H, W), and their mean as "loss"."""
        blurry, sharp = unit_range(batch["blurry"]), unit_range(batch["sharp"])
        invariant, masked = self.numbers["blur_invariant"], self.numbers["masked"]
        found, _ = flow_losses(_bimnet_of(self.network), blurry, sharp, invariant, masked)
        return {"loss": mean_of(found), **found}, None


class PVDNetObjective(Objective):
    """Frames of a clip restored one after the other, with an update at each.

    numbers: frames, restored ones of a sample, which has one more at each end. distance: "mse" or "l1", of pictures in
    [-1, 1]. noise: standard deviation, for values in [0, 1], of noise on half of the blurry frames; 0 for none.
    begin_with: what stands in for the restored frame before the first: "previous", the blurry frame before it, or
    "current", the first frame itself, which then replaces the blurry frame before it, too. joint: train BIMNet as well,
    with blur_invariant and masked as flow_losses takes them.

    Raises: UsageError for `joint` without motion compensation.
    """

    network: PVDNet
    rules: ClassVar = {
        "distance": one_of(("mse", "l1")),
        "begin_with": one_of(("previous", "current")),
        "noise": NOT_NEGATIVE,
        "joint": FLAG,
        **FLOW_RULES,
    }
    defaults: ClassVar = FLOW_DEFAULTS
    margin = 1

    def __init__(self, network: PVDNet, numbers: Mapping[str, Any]) -> None:
        super().__init__(network, numbers)
        self.joint = bool(numbers["joint"])
        if self.joint or network.bimnet is not None:
            _bimnet_of(network).requires_grad_(self.joint)

    @classmethod
    def check_variant(cls, arguments: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
        """Refuse `joint` without motion compensation.

        Raises: UsageError.
        """
        if numbers["joint"]:
            _refuse_no_motion(arguments["motion"])

    @classmethod
    def updates_of(cls, numbers: Mapping[str, Any]) -> int:
        """Return the number of restored frames."""
        return int(numbers["frames"])

    def prepare(self, clip: Clip, rng: numpy.random.Generator) -> Batch:
        """Return the clip; with noise, of this objective or of [data], the blurry frames are float32 in [0, 1]."""
        noise = self.numbers["noise"]
        if not noise and not clip.blurry.is_floating_point():
            return super().prepare(clip, rng)
        blurry = unit_range(clip.blurry)
        if not noise:
            return {"blurry": blurry, "sharp": clip.sharp}
        for index in numpy.flatnonzero(rng.random(len(blurry)) < 0.5):
            drawn = rng.standard_normal(blurry[index].shape, numpy.float32)
            blurry[index] = (blurry[index] + noise * torch.from_numpy(drawn)).clamp(0, 1)
        return {"blurry": blurry, "sharp": clip.sharp}

    def turns(self, update: int) -> tuple[str, ...]:
        """Return a step for each restored frame."""
        return ("network",) * int(self.numbers["frames"])

    def parameters_of(self, optimiser: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the network's parameters, BIMNet's only with `joint`."""
        for name, parameter in self.network.named_parameters():
            if self.joint or not name.startswith("bimnet."):
                yield name, parameter

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> tuple[dict[str, Tensor], Any]:
        """Return the losses of the frame at turn + 1 of clips (B, T, 3, H, W), and the state for the next frame.

        Blurry frames may be float32 in [0, 1]. "image" is the restored frame's loss; with `joint` there are also the
        flow losses, and their mean, "flow", is added to "loss".
        """
        blurry, sharp = (pictures[:, turn : turn + 3] for pictures in (batch["blurry"], batch["sharp"]))
        blurry = blurry if blurry.is_floating_point() else unit_range(blurry)
        sharp = unit_range(sharp)
        previous, frame, following = blurry.unbind(1)
        # Without the blurry frame before, the current one would be displaced by the motion between them.
        is_still = carried is None and self.numbers["begin_with"] == "current"
        if is_still:
            previous = frame
        restored, pyramid = (previous, None) if carried is None else carried
        found: dict[str, Tensor] = {}
        if self.joint:
            bimnet = _bimnet_of(self.network)
            invariant, masked = self.numbers["blur_invariant"], self.numbers["masked"]
            found, flow = flow_losses(bimnet, blurry[:, :2], sharp[:, :2], invariant, masked)
            found["flow"] = mean_of(found)
            if is_still:
                pyramid = self.describe(frame)
                with torch.no_grad(), torch.autocast(frame.device.type, enabled=False):
                    flow = bimnet.match(pyramid, pyramid)
            volume = self.network.stack(restored, frame, flow.detach())
        else:
            if pyramid is None and self.network.bimnet is not None:  # the previous frame is not restored itself
                pyramid = self.describe(previous)
            volume, pyramid = self.network.align(restored, frame, pyramid)
        output = self.network(volume, previous, frame, following)
        found["image"] = self.distance(output, sharp[:, 1])
        found["loss"] = found["image"] + found["flow"] if self.joint else found["image"]
        return found, (output.detach(), pyramid)

    def describe(self, frame: Tensor) -> Pyramid:
        """Return BIMNet's features of a frame (B, 3, H, W), without gradient."""
        with torch.no_grad(), torch.autocast(frame.device.type, enabled=False):
            return _bimnet_of(self.network).describe(frame)

    def distance(self, restored: Tensor, sharp: Tensor) -> Tensor:
        """Return the distance of frames in [0, 1], scaled to [-1, 1]."""
        difference = 2 * (restored - sharp)
        return (difference.square() if self.numbers["distance"] == "mse" else difference.abs()).mean()


def _bimnet_of(network: PVDNet) -> BIMNet:
    """Return the part that estimates motion.

    Raises: UsageError where the network has none.
    """
    _refuse_no_motion(network.motion)
    assert network.bimnet is not None
    return network.bimnet


def _refuse_no_motion(motion: str) -> None:
    if motion == "none":
        raise UsageError("network.motion is 'none': there is no BIMNet to train", "choose volume or warp")


def flow_losses(
    bimnet: BIMNet, blurry: Tensor, sharp: Tensor, invariant: bool = True, masked: bool = True
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the four flow losses of pairs, and the flow (B, 2, H, W) from the current to the previous blurry frame.

    blurry, sharp: (B, 2, 3, H, W) in [0, 1], the previous frame first. A loss's name is "flow_" and the kinds of the
    previous and the current frame; all of them compare sharp frames. invariant: without it, the ablation: the flow of
    the blurry pair alone, which must warp one blurry frame onto the other. masked: see losses.motion_error.
    """
    batch = len(blurry)
    if not invariant:
        with torch.autocast(blurry.device.type, enabled=False):
            flow = bimnet.flow(blurry[:, 1], blurry[:, 0])
        return {"flow_bb": losses.motion_error(flow, blurry[:, 1], blurry[:, 0], masked)}, flow
    with torch.autocast(blurry.device.type, enabled=False):
        seen = bimnet.describe(torch.cat((blurry[:, 1], sharp[:, 1], blurry[:, 0], sharp[:, 0])))
        current, before = (_rows(seen, places, batch) for places in zip(*KINDS.values(), strict=True))
        flows = bimnet.match(current, before).split(batch)
    found = {
        f"flow_{kind}": losses.motion_error(flow, sharp[:, 1], sharp[:, 0], masked)
        for kind, flow in zip(KINDS, flows, strict=True)
    }
    return found, flows[0]


def mean_of(found: dict[str, Tensor]) -> Tensor:
    """Return the mean of losses."""
    return torch.stack(tuple(found.values())).mean()


def _rows(seen: Pyramid, places: Sequence[int], batch: int) -> Pyramid:
    """Return the batches at some positions of a pyramid of several concatenated batches."""
    size, *parts = seen
    return Pyramid(size, *([_picked(level, places, batch) for level in levels] for levels in parts))


def _picked(level: Tensor, places: Sequence[int], batch: int) -> Tensor:
    return torch.cat([level[place * batch : (place + 1) * batch] for place in places])
