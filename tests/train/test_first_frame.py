"""The first frame of a clip in PVDNet's training, in the paper's form: no motion, and the same as at inference."""

from itertools import pairwise
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.models.registry import find_entry
from vdeblur.networks.bimnet import Pyramid
from vdeblur.networks.pvdnet import CANDIDATES, PVDNet, gray_of
from vdeblur.restore.streams import stream_recurrent
from vdeblur.restore.tiles import TileNeeds, cut_tiles
from vdeblur.train.augment import Augmentation
from vdeblur.train.objectives import OBJECTIVES
from vdeblur.train.objectives.base import unit_range
from vdeblur.train.recipes import load_recipe

PAPER = {**load_recipe(find_entry("pvdnet"), paper=True).numbers, "frames": 3}
PAN = 6  # pixels a frame


def panning(frames: int, side: int = 64) -> Tensor:
    """Return a texture that moves by PAN pixels a frame: (1, T, 3, H, W) uint8."""
    torch.manual_seed(3)
    texture = F.interpolate(torch.rand(1, 3, 20, 40), (side, 4 * side), mode="bilinear")[0]
    clip = torch.stack([texture[:, :, PAN * t : PAN * t + side] for t in range(frames)])
    return (255 * clip).round().byte()[None]


def true_motion(current: Pyramid, previous: Pyramid) -> Tensor:
    """Return what a perfect network finds in a panning clip: PAN to the right, or nothing between equal frames."""
    batch, (height, width) = len(current.images[0]), current.size
    flow = torch.zeros(batch, 2, height, width)
    flow[:, 0] = 0.0 if torch.equal(current.images[0], previous.images[0]) else PAN
    return flow


def begin(monkeypatch: pytest.MonkeyPatch) -> tuple[PVDNet, list[tuple[Tensor, ...]]]:
    """Return a network whose motion is exact, and the list to which its inputs are added."""
    torch.manual_seed(1)
    network = PVDNet(channels=8, blocks=1)
    monkeypatch.setattr(network.bimnet, "match", true_motion)
    seen: list[tuple[Tensor, ...]] = []
    network.register_forward_pre_hook(lambda module, given: seen.append(given))
    return network, seen


@pytest.mark.parametrize("joint", [False, True])
def test_nothing_moves_in_the_first_frame(monkeypatch: pytest.MonkeyPatch, joint: bool) -> None:
    network, seen = begin(monkeypatch)
    clip = panning(5)
    if joint:  # its losses need gradients, which exact motion has not
        monkeypatch.setattr("vdeblur.train.losses.motion_error", lambda *of: network.reconstruct.weight.sum() * 0)
    objective = OBJECTIVES["pvdnet"](network, PAPER | {"joint": joint})
    carried: Any = None
    for turn in range(3):
        _, carried = objective({"blurry": clip, "sharp": clip}, turn, 0, carried)
    volume, previous, frame, following = seen[0]
    inner = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(volume[:, CANDIDATES // 2][inner], gray_of(frame)[:, 0][inner], rtol=0, atol=0)
    assert torch.equal(previous, frame)
    assert not torch.equal(following, frame)
    # The later frames move, and are aligned, each from the restoration before it.
    for (_, _, before, _), (volume, previous, frame, _) in pairwise(seen):
        assert torch.equal(previous, before)
        assert not torch.equal(previous, frame)
        assert volume.shape[1] == CANDIDATES


@pytest.mark.parametrize("noise", [0.0, 5e-5])
def test_noise_of_the_data_keeps_the_range(monkeypatch: pytest.MonkeyPatch, noise: float) -> None:
    """With data.noise, frames of 0 to 255 were taken for frames in [0, 1], unless the recipe had noise of its own."""
    network, seen = begin(monkeypatch)
    objective = OBJECTIVES["pvdnet"](network, PAPER | {"noise": noise})
    both = panning(5).expand(2, -1, -1, -1, -1).numpy()
    clip = Augmentation(64, noise=2.0, noise_drawn=False).clip(both, numpy.random.default_rng(1))
    batch = {name: value[None] for name, value in objective.prepare(clip, numpy.random.default_rng(2)).items()}
    objective(batch, 0, 0, None)
    _, previous, frame, _ = seen[0]
    assert torch.equal(previous, frame)
    difference = frame - unit_range(clip.sharp[1])
    assert 1.8 / 255 < float(difference.std()) < 2.2 / 255


def test_training_restores_a_clip_as_inference_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """From its first frame on, and beyond: the frame before the clip makes no difference."""
    network, _ = begin(monkeypatch)
    objective = OBJECTIVES["pvdnet"](network, PAPER).eval()
    clip = panning(5)
    carried: Any = None
    trained: list[Tensor] = []
    with torch.no_grad():
        for turn in range(3):
            _, carried = objective({"blurry": clip, "sharp": clip}, turn, 0, carried)
            trained.append(carried[0])
        frames = (clip[:, t] / 255 for t in range(1, 5))
        plan = cut_tiles(64, 64, None, 0, TileNeeds.of(network))
        run = list(stream_recurrent(network, frames, plan))[:3]
    for ours, theirs in zip(trained, run, strict=True):
        torch.testing.assert_close(ours, theirs)
