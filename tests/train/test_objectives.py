"""Objectives: against the references' own numbers, other computations, and clips learnt by heart."""

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import parity, recipe
from vdeblur.errors import UsageError
from vdeblur.models import registry
from vdeblur.networks.basicvsrpp import BasicVSRPP
from vdeblur.networks.cdvd_tsp import CDVDTSP
from vdeblur.networks.dstnet import DSTNet
from vdeblur.networks.dstnet_plus import DSTNetPlus
from vdeblur.networks.estrnn import ESTRNN
from vdeblur.networks.layers import Network
from vdeblur.networks.nafnet import NAFNet
from vdeblur.networks.pvdnet import PVDNet
from vdeblur.train import losses
from vdeblur.train.objectives import OBJECTIVES
from vdeblur.train.objectives.base import Batch, Clip, Objective
from vdeblur.train.recipes import load_recipe
from vdeblur.train.schedules import in_updates

HARD = {"hard_weight": 2.0, "hard_share": 0.5, "chance_share": 0.1}
CLIPS = {"epsilon": 1e-6, "spectral_weight": 0.1}
RECURRENT = {"distance": "mse", "begin_with": "previous", "frames": 2, "noise": 0.0, "joint": False}


def moving_clip(frames: int, side: int, seed: int = 0) -> Batch:
    """One sample: a texture that pans by two pixels a frame, and the same as an open shutter sees it."""
    torch.manual_seed(seed)
    texture = F.interpolate(torch.rand(1, 3, 24, 24), (2 * side, 2 * side), mode="bilinear")[0]
    places = [texture[:, 4 : 4 + side, x : x + side] for x in range(2 * frames + 4)]
    sharp = torch.stack([places[2 * t + 2] for t in range(frames)])
    blurry = torch.stack([torch.stack(places[2 * t : 2 * t + 5]).mean(0) for t in range(frames)])
    return {kind: (255 * clip).round().byte()[None] for kind, clip in (("blurry", blurry), ("sharp", sharp))}


def take_turns(objective: Objective, batch: Batch, optimiser: torch.optim.Optimizer | None = None) -> list[float]:
    """Do what a loop does with a batch; gives the loss of each turn, and leaves the last one's gradients."""
    carried: Any = None
    values = []
    for turn, _ in enumerate(objective.turns(0)):
        objective.zero_grad()
        found, carried = objective(batch, turn, 0, carried)
        found["loss"].backward()
        assert all(loss.dtype == torch.float32 and not loss.shape for loss in found.values())
        if optimiser is not None:
            optimiser.step()
        values.append(found["loss"].item())
    return values


def gradient_norm(*modules: nn.Module) -> float:
    gradients = [p.grad for module in modules for p in module.parameters() if p.grad is not None]
    return float(torch.stack([gradient.norm() for gradient in gradients]).norm())


@dataclass(frozen=True)
class Lesson:
    """An objective, a network that is as small as its constructor allows, and a clip that it can learn."""

    objective: str
    network: type[Network]
    arguments: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    frames: int = 4
    side: int = 32
    rate: float = 1e-3
    trains: Callable[[str], bool] = bool  # whether a parameter of that name is trained

    def __str__(self) -> str:
        return f"{self.objective}-{self.network.__name__}{'-joint' * self.numbers.get('joint', False)}"

    def begin(self) -> tuple[Objective, Batch]:
        torch.manual_seed(0)
        network = self.network(**self.arguments)
        objective = OBJECTIVES[self.objective](network, self.numbers)
        objective.initialise()
        return objective.train(), moving_clip(self.frames, self.side)


LESSONS = (
    Lesson("cdvd-tsp", CDVDTSP, {"channels": 4, "blocks": 1}, HARD, frames=5, side=64),
    Lesson("pvdnet", PVDNet, {"channels": 8, "blocks": 1}, RECURRENT, trains=lambda name: "bimnet" not in name),
    Lesson("pvdnet", PVDNet, {"channels": 8, "blocks": 1}, RECURRENT | {"joint": True}, rate=1e-4),
    Lesson("bimnet", PVDNet, {"channels": 8, "blocks": 1}, frames=2, rate=1e-4, trains=lambda name: "bimnet" in name),
    Lesson("clip", DSTNet, {"channels": 8, "width": 12, "blocks": 1}, CLIPS),
    Lesson("clip", DSTNetPlus, {"width": 8, "blocks": 1, "filter_blocks": 1}, CLIPS),
    Lesson("clip", BasicVSRPP, {"width": 16, "blocks": 1}, CLIPS | {"spectral_weight": 0.0}),
    Lesson("estrnn", ESTRNN, {"features": 4, "blocks": 2}, {"epsilon": 1e-3}, frames=6),
    Lesson("nafnet", NAFNet, {"width": 8, "encoder": (1, 1, 1, 1)}, frames=2),
)


@pytest.mark.parametrize("lesson", LESSONS, ids=str)
def test_training_lowers_the_loss_of_a_clip(lesson: Lesson) -> None:
    """And gradients reach all that is to be trained, once what begins with zeros is none any more, and nothing else."""
    objective, batch = lesson.begin()
    named = dict(objective.parameters_of("network"))
    before = {name: parameter.clone() for name, parameter in objective.network.named_parameters()}
    optimiser = torch.optim.Adam(named.values(), lesson.rate)
    first = take_turns(objective, batch, optimiser)
    last = take_turns(objective, batch, optimiser)
    assert sum(last) < sum(first) - 0.01 * abs(sum(first))
    assert named.keys() == {name for name in before if lesson.trains(name)}
    assert not [name for name, parameter in named.items() if parameter.grad is None or not parameter.grad.any()]
    for name, parameter in objective.network.named_parameters():
        if not lesson.trains(name):
            assert parameter.grad is None
            assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("lesson", [lesson for lesson in LESSONS if "joint" not in str(lesson)], ids=str)
def test_losses_are_exact_under_autocast(lesson: Lesson) -> None:
    """And near those of float32: only convolutions are in half precision, flow and what is compared are not."""
    objective, batch = lesson.begin()
    torch.manual_seed(1)
    exact = objective(batch, 0, 0, None)[0]["loss"]
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(batch, 0, 0, None)[0]
    assert all(loss.dtype == torch.float32 for loss in found.values())
    tolerance = 1e-6 if lesson.objective == "bimnet" else 0.02
    assert found["loss"].item() == pytest.approx(exact.item(), rel=tolerance)


# Standard deviations of uniform numbers within a are a / sqrt 3; Xavier's a is sqrt(6 / (ins + outs)), that of what
# PyTorch gives convolutions anyway 1 / sqrt(ins).
INITIAL: dict[str, tuple[type[Network], dict[str, float]]] = {
    "cdvd-tsp": (CDVDTSP, {"restoration.encode_2.1.conv1": (3 * 128 * 25) ** -0.5}),
    "pvdnet": (PVDNet, {"blocks.3.2": (2 / (2 * 128 * 9)) ** 0.5, "upsample_2": (2 / (128 * 16 + 64 * 16)) ** 0.5}),
    "clip": (
        BasicVSRPP,
        {
            "propagation.forward_2.trunk.blocks.3.conv_1": 0.1 * (2 / (64 * 9)) ** 0.5,
            "upsample_2": (2 / (64 * 9)) ** 0.5,
            "propagation.forward_2.alignment.offsets.6": 0.0,
            "reconstruction.begin": (3 * 320 * 9) ** -0.5,
        },
    ),
    "clip, DSTNet": (
        DSTNet,
        {
            "forward_propagation.blocks.7.conv_2": 0.1 * (2 / (64 * 9)) ** 0.5,
            "forward_propagation.filter.near.0.conv_1": (3 * 64 * 9) ** -0.5,
        },
    ),
    "clip, DSTNet+": (
        DSTNetPlus,
        {
            "backward_propagation.blocks.7.conv_2": 0.1 * (2 / (64 * 9)) ** 0.5,
            "backward_propagation.filter.to_kernel": (3 * 192) ** -0.5,
        },
    ),
    "nafnet": (NAFNet, {"encoder.3.5.expand_2": (3 * 256) ** -0.5}),
}


@pytest.mark.parametrize("case", INITIAL)
def test_initial_weights_are_the_papers(case: str) -> None:
    """As specified: Kaiming's and Xavier's with biases of zero, and what PyTorch gives convolutions anyway."""
    torch.manual_seed(0)
    network, expected = INITIAL[case]
    begun = OBJECTIVES[case.split(",")[0]](network(), RECURRENT)
    begun.initialise()
    for name, std in expected.items():
        weight, bias = begun.network.get_parameter(f"{name}.weight"), begun.network.get_parameter(f"{name}.bias")
        assert weight.std().item() == pytest.approx(std, rel=0.05), name
        assert bool(bias.any()) == (std == pytest.approx((3 * weight[0].numel()) ** -0.5)), name


# ESTRNN


@pytest.mark.slow
def test_steps_of_estrnn_meet_the_reference() -> None:
    """Three updates on one sample: losses, and the gradients of each part."""
    case = json.loads((parity.PARITY / "estrnn" / "case-train.json").read_text())
    drawn = recipe.state_dict(recipe.load_manifest(parity.PARITY / "estrnn" / case["manifest"]), case["weights_seed"])
    network = ESTRNN()
    names = {name: f"module.model.{network.official_name(name)}" for name in network.state_dict()}
    network.load_state_dict({name: torch.from_numpy(drawn[official]) for name, official in names.items()})
    objective = OBJECTIVES["estrnn"](network, load_recipe(registry.find_entry("estrnn")).numbers).train()
    frames = torch.from_numpy(recipe.frames(**case["frames"])).permute(0, 3, 1, 2)
    blurry = torch.stack([frames[t - 1 : t + 2].double().mean(0).round().byte() for t in range(1, 9)])
    batch = {"blurry": blurry[None], "sharp": frames[None, 1:9]}
    near = {"rel": case["tolerance"]["relative"]}
    optimiser = torch.optim.Adam(network.parameters(), 5e-4)
    for expected in case["expected"]:
        optimiser.zero_grad()
        loss = objective(batch, 0, 0, None)[0]["loss"]
        loss.backward()
        assert loss.item() == pytest.approx(expected["loss"], **near)
        assert gradient_norm(network) == pytest.approx(expected["grad_norm_before_clip"], **near)
        for part, norm in expected["grad_norms"].items():
            found = [
                p.grad for name, p in network.named_parameters() if names[name].startswith(f"module.model.{part}.")
            ]
            assert torch.stack([gradient.norm() for gradient in found]).norm().item() == pytest.approx(norm, **near), (
                part
            )
        optimiser.step()


def test_estrnn_refuses_samples_without_a_result() -> None:
    with pytest.raises(UsageError, match=r"data\.frames is 4"):
        OBJECTIVES["estrnn"](ESTRNN(4, 1), {"epsilon": 1e-3, "frames": 4})


# CDVD-TSP


def test_hard_examples_against_numpy() -> None:
    torch.manual_seed(0)
    restored, sharp = torch.rand(2, 3, 12, 10, 14)
    loss, mask = losses.hard_examples(restored, sharp, hard=0.5, chance=0.0)
    difference = abs(restored.double() - sharp.double()).numpy()
    expected = numpy.zeros((3, 1, 10, 14))
    for sample, error in enumerate(difference.sum(1)):
        limit = numpy.sort(error, axis=None)[::-1][int(0.5 * error.size)]
        expected[sample, 0] = error > limit
    assert numpy.array_equal(mask.numpy(), expected)
    assert loss.item() == pytest.approx((difference * expected).mean(), rel=1e-5)


def test_pixels_drawn_by_chance_count_too() -> None:
    restored, sharp = torch.rand(2, 4, 12, 20, 20, generator=torch.Generator().manual_seed(0))
    hard = losses.hard_examples(restored, sharp, 0.5, 0.0)[1].bool()
    masks = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        masks.append(losses.hard_examples(restored, sharp, 0.5, 0.1)[1].bool())
    assert torch.equal(masks[0], masks[2]), "the same again from the same state of torch's generator"
    assert not torch.equal(masks[0], masks[1])
    for mask in masks:
        assert (mask | ~hard).all(), "all that is hard"
        # 40 of 400 anywhere, so 20.05 on average of those 200.5 that are not hard; 5 standard deviations are 15.
        assert ((mask & ~hard).sum((1, 2, 3)) - 20).abs().max() <= 15
    torch.manual_seed(0)
    assert losses.hard_examples(restored, sharp, 0.0, 0.1)[1].sum((1, 2, 3)).tolist() == [40] * 4, "none twice"


def test_hard_examples_as_the_reference_counts_them() -> None:
    stored = json.loads((parity.PARITY / "cdvd-tsp" / "metrics-and-loss.json").read_text())["loss"]
    frames = parity.as_tensor(recipe.frames(**stored["frames"]))
    joined, target = frames[[0, 1, 2, 3]].flatten(0, 1)[None], frames[[1, 2, 3, 2]].flatten(0, 1)[None]
    loss, mask = losses.hard_examples(joined, target, 0.5, 0.0)
    assert mask.float().mean().item() == pytest.approx(stored["hard_fraction"], rel=1e-6)
    assert loss.item() == pytest.approx(stored["hem_without_random_part"], rel=1e-5)
    assert F.l1_loss(joined, target).item() == pytest.approx(stored["l1"], rel=1e-5)
    torch.manual_seed(0)
    drawn = torch.stack([losses.hard_examples(joined, target, 0.5, 0.1)[0] for _ in range(50)])
    error = 5 * stored["hem_with_random_part_std"] / 50**0.5  # of the mean of as many drawings as there
    assert abs(drawn.mean().item() - stored["hem_with_random_part_mean_of_50"]) < 2 * error
    assert 0.5 < drawn.std().item() / stored["hem_with_random_part_std"] < 2


def test_the_cascade_is_the_networks_own_stage_after_stage() -> None:
    objective, batch = LESSONS[0].begin()
    network = objective.network
    blurry, sharp = (torch.cat((batch[kind], batch[kind].flip(4))) / 255 for kind in ("blurry", "sharp"))
    with torch.no_grad():
        found = objective.cascade(blurry)
        first = [network(*blurry[:, k - 1 : k + 2].unbind(1)) for k in (1, 2, 3)]
        outputs = torch.stack([*first, network(*first)], 1)
        assert [tuple(stage.shape[:2]) for stage in found] == [(2, 3), (2, 1)]
        torch.testing.assert_close(torch.cat(found, 1), outputs, rtol=0, atol=1e-5)  # float32, other batches
        torch.manual_seed(5)
        values, _ = objective({"blurry": (blurry * 255).byte(), "sharp": (sharp * 255).byte()}, 0, 0, None)
    error = abs(outputs - sharp[:, [1, 2, 3, 2]])
    torch.manual_seed(5)
    hard, _ = losses.hard_examples(outputs.flatten(1, 2), sharp[:, [1, 2, 3, 2]].flatten(1, 2), 0.5, 0.1)
    assert values["l1"].item() == pytest.approx(error.mean().item(), rel=1e-4)
    assert values["loss"].item() == pytest.approx((error.mean() + 2 * hard).item(), rel=1e-4)


def test_the_second_stage_teaches_the_first() -> None:
    objective, batch = LESSONS[0].begin()
    first = objective.stage(batch["blurry"] / 255).detach().requires_grad_()
    objective.stage(first).sum().backward()
    assert (first.grad.abs().amax((0, 2, 3, 4)) > 0).all(), "through all three frames that it sees"


# PVDNet and BIMNet


@pytest.fixture(scope="module")
def pvdnet_case() -> tuple[dict[str, Any], PVDNet, Tensor, Tensor]:
    """The stored training step: what is expected, the network with its weights, blurry and sharp frames as uint8."""
    case = json.loads((parity.PARITY / "pvdnet" / "case-train.json").read_text())
    network = PVDNet()
    drawn = recipe.state_dict(recipe.load_manifest(parity.PARITY / "pvdnet" / case["manifest"]), case["weights_seed"])
    names = {name: f"module.{network.official_name(name)}" for name in network.state_dict()}
    network.load_state_dict({name: torch.from_numpy(drawn[official]) for name, official in names.items()})
    frames = torch.from_numpy(recipe.frames(**case["frames"])).permute(0, 3, 1, 2)
    blurry = torch.stack([frames[t - 1 : t + 2].double().mean(0).round().byte() for t in range(1, 5)])
    return case, network, blurry, frames[1:5]


def test_steps_of_pvdnet_meet_the_reference(pvdnet_case: tuple[dict[str, Any], PVDNet, Tensor, Tensor]) -> None:
    """Three turns from the beginning of a clip, where the first frame is its own neighbour."""
    case, network, blurry, sharp = pvdnet_case
    near = {"rel": case["tolerance"]["relative"]}
    padded = [0, 0, 1, 2, 3]
    batch = {"blurry": blurry[padded][None], "sharp": sharp[padded][None]}
    square = OBJECTIVES["pvdnet"](network, RECURRENT | {"frames": 3}).train()
    absolute = OBJECTIVES["pvdnet"](network, RECURRENT | {"frames": 3, "distance": "l1"})
    assert square.turns(7) == ("network",) * 3
    carried: Any = None
    for turn, expected in enumerate(case["expected"]["fixed_bimnet_sequence"]):
        network.zero_grad()
        with torch.no_grad():
            l1 = absolute(batch, turn, 0, carried)[0]["loss"]
        found, carried = square(batch, turn, 0, carried)
        found["loss"].backward()
        assert found["loss"].item() == pytest.approx(expected["mse_loss"], **near)
        assert l1.item() == pytest.approx(expected["l1_loss"], **near)
        assert gradient_norm(network) == pytest.approx(expected["grad_norm_before_clip"], **near)
        assert not carried[0].requires_grad


def test_a_joint_step_meets_the_reference(pvdnet_case: tuple[dict[str, Any], PVDNet, Tensor, Tensor]) -> None:
    case, network, blurry, sharp = pvdnet_case
    near = {"rel": case["tolerance"]["relative"]}
    expected = case["expected"]["joint_step"]
    objective = OBJECTIVES["pvdnet"](network, RECURRENT | {"joint": True}).train()
    network.zero_grad()
    found, _ = objective({"blurry": blurry[None, :3], "sharp": sharp[None, :3]}, 0, 0, None)
    found["loss"].backward()
    values = {key: value.item() for key, value in found.items()}
    assert values == pytest.approx(
        {"loss" if key == "total" else key: x for key, x in expected["losses"].items()}, **near
    )
    parts = {f"module{part}": network.bimnet.get_submodule(part.lower()) for part in ("Features", "Matching")}
    parts |= {f"module{part}": network.bimnet.get_submodule(part.lower()) for part in ("Subpixel", "Regularization")}
    norms = {part: gradient_norm(module) for part, module in parts.items()}
    norms["PVDNet"] = gradient_norm(*(module for name, module in network.named_children() if name != "bimnet"))
    norms["all"] = gradient_norm(network)
    assert norms == pytest.approx(expected["grad_norms"], **near)
    assert dict(objective.parameters_of("network")).keys() == dict(network.named_parameters()).keys()

    # BIMNet's own stage is the same but for the image.
    alone = OBJECTIVES["bimnet"](network, {}).train()
    network.zero_grad()
    found, _ = alone({"blurry": blurry[None, :2], "sharp": sharp[None, :2]}, 0, 0, None)
    found["loss"].backward()
    assert found.pop("loss").item() == pytest.approx(expected["losses"]["flow"], **near)
    assert {key: value.item() for key, value in found.items()}.items() <= pytest.approx(values).expected.items()
    assert gradient_norm(network) == pytest.approx(gradient_norm(network.bimnet), rel=1e-6)
    assert gradient_norm(parts["moduleMatching"]) == pytest.approx(expected["grad_norms"]["moduleMatching"], **near)


def test_the_paper_begins_with_the_current_frame() -> None:
    lesson = LESSONS[1]
    objective, batch = lesson.begin()
    paper = OBJECTIVES["pvdnet"](objective.network, RECURRENT | {"begin_with": "current"})
    still = {kind: clip[:, [1, 1, 2, 3]] for kind, clip in batch.items()}
    with torch.no_grad():
        loss, other_loss = (o(batch, 0, 0, None)[0]["loss"].item() for o in (objective, paper))
        assert loss != other_loss
        loss, other_loss = (o(still, 0, 0, None)[0]["loss"].item() for o in (objective, paper))
        assert loss == other_loss, "at the beginning of a video they are the same frame"


@pytest.mark.parametrize("key", ["distance", "begin_with"])
def test_words_that_mean_nothing_are_refused(key: str) -> None:
    with pytest.raises(UsageError, match=f"loss.{key} is 'l3'"):
        OBJECTIVES["pvdnet"](PVDNet(8, 1), RECURRENT | {key: "l3"})


def test_noise_is_on_every_other_frame_by_chance() -> None:
    objective = OBJECTIVES["pvdnet"](PVDNet(8, 1), RECURRENT | {"noise": 0.01})
    grey = torch.full((400, 3, 16, 16), 128, dtype=torch.uint8)
    grey[0], grey[1] = 0, 255
    clip = Clip(grey, grey)
    batch = objective.prepare(clip, numpy.random.default_rng(1))
    again = objective.prepare(clip, numpy.random.default_rng(1))
    assert torch.equal(batch["blurry"], again["blurry"])
    assert torch.equal(batch["sharp"], grey)
    noise = batch["blurry"] - grey / 255
    noisy = noise.flatten(1).any(1)
    assert 150 < noisy.sum() < 250  # 5 standard deviations
    assert noise[noisy][2:].std().item() == pytest.approx(0.01, rel=0.02)
    assert batch["blurry"].min() >= 0
    assert batch["blurry"].max() <= 1
    quiet = OBJECTIVES["pvdnet"](objective.network, RECURRENT).prepare(clip, numpy.random.default_rng(1))
    assert quiet["blurry"] is grey, "without noise 8 bits are enough"


# Clips and frames


def test_charbonnier_and_spectra_against_numpy() -> None:
    objective, batch = LESSONS[5].begin()
    nn.init.zeros_(objective.network.reconstruction.weight)  # what is restored is the blurry clip
    nn.init.zeros_(objective.network.reconstruction.bias)
    found, _ = objective(batch, 0, 0, None)
    difference = (batch["blurry"].double() - batch["sharp"].double()).numpy() / 255
    charbonnier = numpy.sqrt(difference**2 + 1e-12).mean()
    spectral = abs(numpy.fft.fft2(difference)[..., :17]).mean()  # 32 columns: the others are the same again
    assert found["charbonnier"].item() == pytest.approx(charbonnier, rel=1e-5)
    assert found["spectral"].item() == pytest.approx(spectral, rel=1e-5)
    assert found["loss"].item() == pytest.approx(charbonnier + 0.1 * spectral, rel=1e-5)
    plain = OBJECTIVES["clip"](objective.network, CLIPS | {"spectral_weight": 0.0})
    assert plain(batch, 0, 0, None)[0]["loss"].item() == pytest.approx(charbonnier, rel=1e-5)


def test_the_multi_scale_loss_against_numpy() -> None:
    """DSTNet's paper: L1 and a tenth of the spectra, at the full size, of 2x2 and of 4x4 means."""
    paper = load_recipe(registry.find_entry("dstnet"), paper=True).numbers
    assert (paper["epsilon"], paper["spectral_weight"], paper["scales"]) == (0, 0.1, [1, 2, 4])
    first, batch = LESSONS[5].begin()
    objective = OBJECTIVES["clip"](first.network, paper)
    nn.init.zeros_(objective.network.reconstruction.weight)  # what is restored is the blurry clip
    nn.init.zeros_(objective.network.reconstruction.bias)
    found, _ = objective(batch, 0, 0, None)
    difference = (batch["blurry"].double() - batch["sharp"].double()).numpy() / 255
    height, width = difference.shape[-2:]
    expected = 0.0
    for scale in (1, 2, 4):
        cells = difference.reshape(*difference.shape[:-2], height // scale, scale, width // scale, scale)
        small = cells.mean((-3, -1))
        spectrum = numpy.fft.fft2(small)[..., : width // scale // 2 + 1]
        expected += abs(small).mean() + 0.1 * abs(spectrum).mean()
    assert found["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_a_clip_that_is_restored_exactly_has_a_finite_gradient() -> None:
    """Roots and moduli have no slope at zero."""
    restored = torch.zeros(1, 2, 3, 8, 8, requires_grad=True)
    sharp = torch.zeros_like(restored)
    (
        sum(losses.charbonnier(restored, sharp, e) for e in (0, 1e-6)) + losses.spectral_modulus(restored, sharp)
    ).backward()
    assert not restored.grad.any()


def test_the_loss_of_nafnet_is_the_references() -> None:
    objective, _ = LESSONS[-1].begin()
    nn.init.zeros_(objective.network.ending.weight)  # what is restored is the blurry frame
    nn.init.zeros_(objective.network.ending.bias)
    frames = torch.from_numpy(recipe.frames(2, 32, 32, 7, 1.0)).permute(0, 3, 1, 2)
    found, _ = objective({"blurry": frames[:, None], "sharp": frames.flip(3)[:, None]}, 0, 0, None)
    assert found["loss"].item() == pytest.approx(-11.474508, abs=2e-6)


# Recipes


def recipes() -> dict[str, dict[str, Any]]:
    folder = resources.files("vdeblur.train") / "recipes"
    found = {file.name.removesuffix(".toml"): file for file in folder.iterdir() if file.name.endswith(".toml")}
    return {name: tomllib.loads(file.read_text("utf-8")) for name, file in sorted(found.items())}


def merged(table: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: merged(table[key], over[key]) for key in over if isinstance(over[key], dict) and key in table}
    return {**table, **over, **both}


@pytest.mark.parametrize("name", recipes())
def test_recipes_fit_their_models_and_objectives(name: str) -> None:
    recipe = recipes()[name]
    paper = recipe.pop("paper", {})
    assert name.split(".")[0] == recipe["model"]
    assert paper.keys() <= recipe.keys()
    for table in (recipe, merged(recipe, paper)):
        entry = registry.find_entry(table["model"])
        with torch.device("meta"):
            objective = OBJECTIVES[table["objective"]](entry.build(), table["loss"])
        names = [parameter for parameter, _ in objective.parameters_of("network")]
        parts = {**table["optimiser"].get("rates", {}), **table["optimiser"].get("frozen", {})}
        assert all(any(f"{name}.".startswith(f"{part}.") for name in names) for part in parts)
        for part, start in table.get("start", {}).items():
            assert registry.find_entry(start).start_of == entry.network
            assert hasattr(objective.network, part)
        length, every = (in_updates(table["training"][key], 100) for key in ("iterations", "validate_every"))
        assert length > every
