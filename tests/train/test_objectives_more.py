"""The objectives of SPN, SPGAN, Flow-RNN and lite against their definitions; and whether recipes fit them."""

import copy
import inspect
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import oracles
from tests.conftest import ROOT
from vdeblur.errors import UsageError
from vdeblur.models import registry
from vdeblur.networks import NETWORKS
from vdeblur.networks.flow_rnn import FlowRNN
from vdeblur.networks.lite import Lite
from vdeblur.networks.spn import LUMA, SPN
from vdeblur.train import optimisers, recipes
from vdeblur.train.objectives import OBJECTIVES
from vdeblur.train.objectives.base import Batch, Clip, Objective, unit_range
from vdeblur.train.objectives.flow_rnn import FlowRNNObjective
from vdeblur.train.objectives.lite import LiteObjective, detail_error
from vdeblur.train.objectives.spn import SPGANObjective, SPNObjective
from vdeblur.train.schedules import Plateau

RECIPES = sorted((ROOT / "src" / "vdeblur" / "train" / "recipes").glob("*.toml"))
ADVERSARY = {"lambda": 1e-5, "adversarial": "saturating", "discriminator_first": 3, "discriminator_width": 4}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moving_clip(frames: int, side: int, seed: int = 0) -> Clip:
    """A texture that moves by two pixels a frame, and its blur over five pixels along the motion."""
    coarse = torch.rand(1, 3, side // 4 + 2, (side + 2 * frames) // 4 + 4, generator=generator(seed))
    wide = nn.functional.interpolate(coarse, scale_factor=4, mode="bicubic").clamp(0, 1)[0, :, :side]
    blurry = nn.functional.avg_pool2d(wide, (1, 5), 1, (0, 2), count_include_pad=False)
    return Clip(*(as_bytes(torch.stack([x[..., 2 * t : 2 * t + side] for t in range(frames)])) for x in (blurry, wide)))


def as_bytes(frames: Tensor) -> Tensor:
    return (frames * 255).round().to(torch.uint8)


def batch_of(objective: Objective, frames: int, side: int, count: int = 2) -> Batch:
    """A batch as the loader stacks it."""
    rng = numpy.random.default_rng(0)
    samples = [objective.prepare(moving_clip(frames, side, seed), rng) for seed in range(count)]
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def spn() -> SPN:
    torch.manual_seed(0)
    return SPN(pyramid_channels=4, channels=8, blocks=2)


def spgan(network: SPN | None = None, **numbers: Any) -> SPGANObjective:
    return SPGANObjective(network or spn(), {**ADVERSARY, **numbers})


def flow_rnn(warm_up: int = 0, width: int = 8) -> FlowRNNObjective:
    torch.manual_seed(0)
    return FlowRNNObjective(FlowRNN(width), {"flow_warm_up": warm_up}).train()


def lite(ends: float = 0.0, detail: float = 0.0) -> LiteObjective:
    torch.manual_seed(0)
    return LiteObjective(Lite(16, 1), {"ends": ends, "floor": 1e-4, "detail": detail}).train()


def reached(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.grad is not None and bool(p.grad.any())}


def names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters()}


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def same(module: nn.Module, before: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())


def lumas(frames: Tensor) -> numpy.ndarray:
    """Return the luma of uint8 or float RGB (B, 3, H, W) in [0, 1], float64."""
    pictures = frames.double().numpy() / (255 if frames.dtype == torch.uint8 else 1)
    return numpy.einsum("bchw,c->bhw", pictures, LUMA)


def test_spn_learns_the_luma_of_the_middle_frame() -> None:
    objective = SPNObjective(spn(), {}).eval()
    batch = batch_of(objective, 5, 16)
    assert torch.equal(batch["sharp"][1], moving_clip(5, 16, 1).sharp[2])
    found, _ = objective(batch, 0, 0, None)
    with torch.no_grad():
        restored = objective.network(batch["blurry"].float() / 255)
    expected = ((lumas(restored) - lumas(batch["sharp"])) ** 2).mean()
    assert found["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_initial_weights() -> None:
    """SPN, and the discriminator: N(0, 0.01). Flow-RNN: Xavier's for its encoder, He's for flow and decoder."""
    objective = spgan(discriminator_width=8)
    objective.initialise()
    for name, p in objective.named_parameters():
        if p.ndim > 1 and p.numel() > 2000:
            assert p.std().item() == pytest.approx(0.01, rel=0.1), name
        elif p.ndim == 1:
            # Gains of batch normalisation are the only vectors that are weights.
            assert p.unique().tolist() == [1.0 if name.endswith("weight") else 0.0], name

    flow = flow_rnn()
    flow.initialise()
    xavier = flow.network.d_conv3_2.weight  # 5x5, 128 to 32
    assert xavier.abs().max().item() == pytest.approx((6 / (25 * (128 + 32))) ** 0.5, rel=0.01)
    he = flow.network.d_deconv3_1.weight  # 5x5, 16 to 16
    assert he.std().item() == pytest.approx((2 / 1.01 / (25 * 16)) ** 0.5, rel=0.05)
    assert not any(p.any() for name, p in flow.network.named_parameters() if name.endswith("bias"))


def gray(objective: Objective, difference: int) -> Batch:
    """Windows that differ from their sharp frames by so many codes everywhere; the network leaves them as they are."""
    nn.init.zeros_(objective.network.get_submodule("decoder.4").weight)
    flat = torch.full((5, 3, 16, 16), 100, dtype=torch.uint8)
    return {
        key: value[None]
        for key, value in objective.prepare(Clip(flat + difference, flat), numpy.random.default_rng()).items()
    }


@pytest.mark.parametrize(("form", "sign"), [("saturating", -1), ("nonsaturating", 1)])
def test_what_the_adversary_weighs(form: str, sign: int) -> None:
    """One per cent at 32 dB, where the discriminator cannot tell: 1e-5 log 2 = 6.9e-6 beside 6e-4."""
    objective = spgan(adversarial=form)
    batch = gray(objective, 6)
    nn.init.zeros_(objective.discriminator.classifier[-1].weight)
    assert objective(batch, 0, 1, None)[0]["loss"].item() == pytest.approx(numpy.log(2), rel=1e-5)
    found, _ = objective(batch, 1, 1, None)
    assert found["content"].item() == pytest.approx((6 / 255) ** 2, rel=1e-4)
    assert found["adversarial"].item() == pytest.approx(sign * numpy.log(2), rel=1e-5)
    assert (found["loss"] - found["content"]).item() == pytest.approx(sign * 6.93e-6, rel=1e-2)


def test_spgan_losses_against_their_definitions() -> None:
    objective = spgan(**{"lambda": 0.5})
    enliven(objective.discriminator)
    batch = batch_of(objective, 5, 16)
    with torch.no_grad():
        restored, sharp = lumas(objective.network(batch["blurry"].float() / 255)), lumas(batch["sharp"])
        drawn = [torch.from_numpy(gradients(luma)[:, None]).float() for luma in (restored, sharp)]
        made, real = (copy.deepcopy(objective.discriminator)(image).double().softmax(1).numpy() for image in drawn)
    cross_entropy = -(numpy.log(made[:, 0]) + numpy.log(real[:, 1])).mean() / 2
    assert objective(batch, 0, 1, None)[0]["loss"].item() == pytest.approx(cross_entropy, rel=1e-3)
    expected = ((restored - sharp) ** 2).mean() + 0.5 * numpy.log(1 - made[:, 1]).mean()
    assert objective(batch, 1, 1, None)[0]["loss"].item() == pytest.approx(expected, rel=1e-3)


def enliven(discriminator: nn.Module) -> None:
    """Draw weights so large that what comes out depends on what goes in, in fewer steps than the paper's take."""
    for module in discriminator.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)


def gradients(luma: numpy.ndarray) -> numpy.ndarray:
    dx, dy = numpy.diff(luma, axis=2), numpy.diff(luma, axis=1)
    return numpy.hypot(numpy.pad(dx, ((0, 0), (0, 0), (0, 1))), numpy.pad(dy, ((0, 0), (0, 1), (0, 0))))


def test_the_discriminator_begins_alone() -> None:
    """For so many updates, of which each is a batch."""
    objective = spgan(discriminator_first=3)
    turns = [objective.turns(update) for update in range(5)]
    assert turns == [("discriminator",)] * 3 + [("discriminator", "network")] * 2
    found, _ = objective(batch_of(objective, 5, 16), 0, 0, None)
    assert found["discriminator"] is found["loss"], "shown by its own name, too"


def test_words_that_mean_nothing_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"loss.adversarial is 'satturating' \(it must be one of saturating, nonsaturating"
    ):
        spgan(adversarial="satturating")


def test_each_turn_of_spgan_trains_one_of_both() -> None:
    objective = spgan()
    batch = batch_of(objective, 5, 16)
    network, discriminator = objective.network, objective.discriminator
    assert dict(objective.parameters_of("network")).keys() == names(network)
    assert dict(objective.parameters_of("discriminator")).keys() == names(discriminator)

    statistics, adversary = snapshot(network), snapshot(discriminator)
    objective(batch, 0, 1, None)[0]["loss"].backward()
    assert reached(network) == set()
    assert "classifier.4.weight" in reached(discriminator)
    assert not same(discriminator, adversary)
    objective.zero_grad()

    adversary = snapshot(discriminator)
    objective(batch, 1, 1, None)[0]["loss"].backward()
    assert reached(network) == names(network), "gains of batch normalisation among them"
    assert reached(discriminator) == set()
    assert same(discriminator, adversary)
    assert same(network, statistics), "the generator's statistics stay"
    assert objective.discriminator.training
    assert not any(module.training for module in network.modules() if isinstance(module, nn.BatchNorm2d))


def test_spn_trains_all_and_moves_its_statistics() -> None:
    objective = SPNObjective(spn(), {}).train()
    before = snapshot(objective.network)
    objective(batch_of(objective, 5, 16), 0, 0, None)[0]["loss"].backward()
    assert reached(objective.network) == names(objective.network)
    assert not same(objective.network, before)


def test_the_next_frame_or_the_one_before() -> None:
    objective, clip, rng = flow_rnn(), moving_clip(2, 64), numpy.random.default_rng(0)
    count = [0, 0]
    for _ in range(200):
        sample = objective.prepare(clip, rng)
        index = 0 if torch.equal(sample["blurry"], clip.blurry[0]) else 1
        assert torch.equal(sample["blurry"], clip.blurry[index])
        assert torch.equal(sample["neighbour"], clip.blurry[1 - index])
        assert torch.equal(sample["sharp"], clip.sharp[index])
        count[index] += 1
    assert min(count) > 70, "200 throws of a coin: 4 standard deviations"


def test_flow_rnn_loss_against_its_definition() -> None:
    """L = MSE + sum of 4^-s MSE_s, where levels are averages over 2^s pixels and are carried over by the oracle."""
    objective = flow_rnn()
    batch = batch_of(objective, 2, 128, 1)
    found, _ = objective(batch, 0, 0, None)
    blurry, neighbour, sharp = (batch[key].float() / 255 for key in ("blurry", "neighbour", "sharp"))
    with torch.no_grad():
        restored, flows = objective.network.restore_with_flows(blurry, neighbour)
    image, flow = ((restored - sharp).double() ** 2).mean().item(), 0.0
    for s, field in enumerate(flows, 2):
        small, small_neighbour = (averaged(frame[0].numpy(), 2**s) for frame in (blurry, neighbour))
        flow += 4.0**-s * ((oracles.backward_warp(small_neighbour, field[0].numpy()) - small) ** 2).mean()
    assert len(flows) == 5
    assert found["image"].item() == pytest.approx(image, rel=1e-4)
    assert found["flow"].item() == pytest.approx(flow, rel=1e-3)
    assert found["loss"].item() == pytest.approx(image + flow, rel=1e-4)


def averaged(frame: numpy.ndarray, side: int) -> numpy.ndarray:
    channels, height, width = frame.shape
    return frame.reshape(channels, height // side, side, width // side, side).mean((2, 4))


def test_flow_rnn_trains_the_flow_alone_at_first() -> None:
    objective = flow_rnn(warm_up=10)
    batch = batch_of(objective, 2, 64)
    alone, _ = objective(batch, 0, 9, None)
    alone["loss"].backward()
    # What the finest flow does not depend on is there for the restoration alone.
    for_restoring = {f"flow_part.refine2.{part}.{kind}" for part in ("deconv", "up") for kind in ("weight", "bias")}
    trained = {name for name in names(objective.network) if name.startswith("flow_part.")} - for_restoring
    assert reached(objective.network) == trained
    objective.zero_grad()
    both, _ = objective(batch, 0, 10, None)
    both["loss"].backward()
    assert reached(objective.network) == names(objective.network)
    assert both["flow"].item() == pytest.approx(alone["loss"].item(), rel=1e-5)


@pytest.mark.parametrize("ends", [0.0, 1.0])
def test_lite_trains_on_what_it_sees_when_it_runs(ends: float) -> None:
    """Its loss is that of its own output: with both neighbours, or without one as at the end of a scene."""
    objective = lite(ends=ends)
    nn.init.normal_(objective.network.reconstruct.weight, std=0.01)
    batch = batch_of(objective, 3, 32)
    previous, frame, following = unit_range(batch["blurry"]).unbind(1)
    seen = {(previous, frame, following)} if not ends else {(None, frame, following), (previous, frame, None)}
    sharp, losses = unit_range(batch["sharp"]), set()
    with torch.no_grad():
        for frames in seen:
            error = (objective.network(*frames) - sharp).square().mean((1, 2, 3))
            losses.add(round(torch.log(error + 1e-4).mean().item(), 3))
        found = {round(objective(batch, 0, update, None)[0]["loss"].item(), 3) for update in range(8)}
    assert found == losses


def test_lite_loss_against_its_definition() -> None:
    """An untrained network changes nothing, so the loss is the blurry frames'."""
    objective = lite(detail=0.5)
    batch = batch_of(objective, 3, 48)
    blurry, sharp = batch["blurry"][:, 1], batch["sharp"]
    difference = (blurry.double() - sharp.double()).numpy() / 255
    expected = numpy.log((difference**2).mean((1, 2, 3)) + 1e-4).mean()
    losses, _ = objective(batch, 0, 0, None)
    assert losses["log_error"].item() == pytest.approx(expected, rel=1e-4)

    def gradients(frames: Tensor) -> numpy.ndarray:
        luma = lumas(frames)
        return numpy.stack((luma[:, :-1, 1:] - luma[:, :-1, :-1], luma[:, 1:, :-1] - luma[:, :-1, :-1]), 1)

    # Nothing has returned, so each block lacks all that it misses.
    missing = ((gradients(sharp) - gradients(blurry)) ** 2).sum(1)
    wanted = missing[:, :32, :32].reshape(len(missing), 2, 16, 2, 16).mean((2, 4))  # whole blocks only
    lacking = (wanted**2 / (wanted + 1e-5)).mean((1, 2)) / (wanted.mean((1, 2)) + 1e-5)
    assert 0.9 < lacking.mean() < 1
    assert losses["detail"].item() == pytest.approx(lacking.mean(), rel=1e-3)
    assert losses["loss"].item() == pytest.approx(expected + 0.5 * lacking.mean(), rel=1e-3)


def test_detail_error_counts_what_returns_and_nothing_else() -> None:
    noise = torch.Generator().manual_seed(0)
    sharp = torch.rand(2, 1, 65, 65, generator=noise)
    soft = F.avg_pool2d(sharp, 3, 1, 1)
    assert detail_error(sharp, soft, sharp) < 1e-6
    assert detail_error(soft, soft, sharp) == pytest.approx(1, abs=0.01)
    assert detail_error(soft + 0.5 * (sharp - soft), soft, sharp) == pytest.approx(0.25, abs=0.01)
    assert detail_error(soft - 0.5 * (sharp - soft), soft, sharp) > 2, "the wrong way"
    pattern = (torch.arange(65)[:, None] + torch.arange(65)) % 2 - 0.5
    assert detail_error(soft + 0.2 * pattern, soft, sharp) > 0.98, "a checkerboard has nothing to do with the picture"


CASES = {"spn": (5, 16), "spgan": (5, 16), "flow-rnn": (2, 64), "lite": (3, 32)}


def small(name: str) -> Objective:
    return {
        "spn": lambda: SPNObjective(spn(), {}),
        "spgan": spgan,
        "flow-rnn": flow_rnn,
        "lite": lambda: lite(detail=0.3),
    }[name]()


@pytest.mark.parametrize("name", CASES)
def test_losses_stay_exact_in_half_precision(name: str) -> None:
    objective = small(name).train()
    batch = batch_of(objective, *CASES[name])
    last = len(objective.turns(3)) - 1
    exact, _ = copy.deepcopy(objective)(batch, last, 3, None)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = objective(batch, last, 3, None)
    for key, loss in half.items():
        assert loss.dtype == torch.float32
        assert loss.shape == ()
        assert loss.item() == pytest.approx(exact[key].item(), rel=0.03), key


def test_flow_rnn_learns_a_clip_by_heart() -> None:
    objective = flow_rnn(width=4)
    history = learn(objective, batch_of(objective, 2, 64), {"kind": "adam", "rate": 2e-3, "clip": 0.05}, 25)
    assert history[-1] < 0.5 * history[0]


def learn(objective: Objective, batch: Batch, table: Mapping[str, Any], steps: int) -> list[float]:
    optimiser, history = optimisers.build(objective, "network", optimisers.settings_of(table, "network")), []
    for update in range(steps):
        losses, _ = objective(batch, 0, update, None)
        losses["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
        history.append(losses["loss"].item())
    return history


def test_lite_learns_a_clip_by_heart() -> None:
    """Its loss is a logarithm: 0.5 less is 2.2 dB more."""
    objective = lite()
    table = {"kind": "muon", "rate": 2e-3, "betas": [0.9, 0.99], "matrix_rate": 1e-3, "matrices": ".conv_", "clip": 1.0}
    history = learn(objective, batch_of(objective, 3, 32), table, 60)
    assert history[-1] < history[0] - 0.5


def test_the_weighing_of_lite_learns_alone() -> None:
    objective = lite()
    frozen = {"extract": 0, "extract_coarse": 0, "refine": 0, "reconstruct": 0}
    table = {"kind": "adamw", "rate": 4e-3, "rates": frozen, "betas": [0.9, 0.99]}
    before = {name: p.detach().clone() for name, p in objective.network.named_parameters()}
    history = learn(objective, batch_of(objective, 3, 32), table, 30)
    assert history[-1] < history[0] - 0.1
    changed = {name for name, p in objective.network.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if name.startswith("weigh.")}


def test_spn_learns_a_clip_by_heart_and_spgan_goes_on() -> None:
    """The discriminator comes to tell restored from sharp, while the generator, its statistics frozen, learns on."""
    table = {"kind": "adam", "rate": 3e-3, "betas": [0.5, 0.999], "discriminator": {"rate": 1e-3}}
    first = SPNObjective(spn(), {}).train()
    batch = batch_of(first, 5, 32)
    learnt = learn(first, batch, table, 40)
    assert learnt[-1] < 0.8 * learnt[0]

    objective = spgan(first.network, discriminator_first=0)
    enliven(objective.discriminator)
    table = {**table, "rate": 1e-4}
    names = ("network", "discriminator")
    both = {name: optimisers.build(objective, name, optimisers.settings_of(table, name)) for name in names}
    telling: list[float] = []
    content: list[float] = []
    for update in range(25):
        for turn, name in enumerate(objective.turns(update)):
            losses, _ = objective(batch, turn, update, None)
            losses["loss"].backward()
            both[name].step()
            both[name].zero_grad()
            (content if turn else telling).append(losses["content" if turn else "loss"].item())
    assert telling[-1] < 0.1 < 1 < telling[0]
    assert content[-1] < 0.95 * content[0]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("of_paper", [False, True], ids=["ours", "paper's"])
def test_recipes_fit_what_they_name(path: Path, of_paper: bool) -> None:
    """Their networks, objectives, optimisers and schedules are there and take the numbers."""
    if of_paper and "paper" not in tomllib.loads(path.read_text()):
        pytest.skip("the recipe has no [paper] table: the paper does not differ from its code")
    name, _, stage = path.stem.partition(".")
    model = registry.read_registry(NETWORKS)[name]
    recipe = recipes.load_recipe(model, stage, paper=of_paper)
    with torch.device("meta"):
        objective = OBJECTIVES[recipe.objective](NETWORKS[model.network](**model.arguments), recipe.numbers)
    iterations = recipe.training.iterations
    for name in set(objective.turns(iterations)):
        settings = recipe.optimisers[name]
        assert len(optimisers.build(objective, name, settings).parts) == (2 if settings.kind == "muon" else 1)
    for update in (0, iterations // 3, iterations - 1):
        assert 0 < recipe.schedule.multiplier(update, iterations, recipe.optimisers["network"].rate) <= 1
    assert not Plateau(recipe.schedule).finished


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_have_the_numbers_that_objectives_read(path: Path) -> None:
    """And no others; "frames" comes from [data], "iterations" from [training]."""
    recipe = tomllib.loads(path.read_text())
    ours = [kind for kind in OBJECTIVES[recipe["objective"]].__mro__ if issubclass(kind, Objective)]
    sources = "".join(inspect.getsource(kind) for kind in ours if kind is not Objective)
    assert recipe["loss"].keys() == set(re.findall(r'numbers\["(\w+)"\]', sources)) - {"frames", "iterations"}
