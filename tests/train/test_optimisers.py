"""Optimisers and schedules against their formulas, and what a recipe's tables do to them."""

import io
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from vdeblur.errors import DeviceError, UsageError
from vdeblur.networks.lite import Lite
from vdeblur.train import optimisers
from vdeblur.train.objectives.base import Batch, Objective
from vdeblur.train.optimisers import Optimiser
from vdeblur.train.schedules import Plateau, schedule_of

SCALER_STEPS = 6


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TwoParts(nn.Module):
    """Stands for a network: two parts, each of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
        self.flow_net = nn.Linear(4, 2)


class Lossless(Objective):
    """Has parameters, and no losses."""

    def forward(self, batch: Batch, turn: int, update: int, carried: Any) -> Any:
        raise AssertionError("gradients are given by hand here")


def built(objective: Objective, name: str, table: Mapping[str, Any]) -> Optimiser:
    return optimisers.build(objective, name, optimisers.settings_of(table, name))


def factor(table: Mapping[str, Any], update: int, iterations: int, rate: float) -> float:
    return schedule_of(table).multiplier(update, iterations, rate)


def two_parts() -> Objective:
    torch.manual_seed(1)
    return Lossless(TwoParts(), {})


def give_gradients(objective: Objective, seed: int) -> None:
    drawn = generator(seed)
    for parameter in objective.network.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=drawn)


def scale_gradients(objective: Objective, by: float) -> None:
    for parameter in objective.network.parameters():
        parameter.grad.mul_(by)


def length_of_gradients(parameters: Iterable[nn.Parameter]) -> float:
    return math.sqrt(math.fsum(p.grad.square().sum().item() for p in parameters))


def values(objective: Objective) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in objective.network.named_parameters()}


def changed(objective: Objective, before: Mapping[str, Tensor]) -> set[str]:
    return {name for name, p in objective.network.named_parameters() if not torch.equal(p, before[name])}


def run(objective: Objective, optimiser: Optimiser, steps: range) -> None:
    for step in steps:
        give_gradients(objective, step)
        optimiser.step(factor({"kind": "power", "power": 2}, step, 100, 1.0))
        optimiser.zero_grad()


def by_hand(kind: str, start: numpy.ndarray, gradients: list[numpy.ndarray], table: Mapping[str, Any]) -> numpy.ndarray:
    """Follow the papers' algorithms: Adam (Kingma, Ba), decoupled decay (Loshchilov, Hutter), RAdam (Liu et al.)."""
    (b1, b2), rate, decay, p = table["betas"], table["rate"], table["weight_decay"], start.astype(float)
    m = v = numpy.zeros_like(p)
    longest = 2 / (1 - b2) - 1
    for t, g in enumerate(gradients, 1):
        if kind == "adam":
            g = g + decay * p
        else:
            p = p - rate * decay * p
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        mean, spread = m / (1 - b1**t), numpy.sqrt(v / (1 - b2**t))
        if kind != "radam":
            p = p - rate * mean / (spread + 1e-8)
            continue
        length = longest - 2 * t * b2**t / (1 - b2**t)
        if length > 5:  # the paper has 4; its authors' code, and torch-optimizer, 5
            squared = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            p = p - rate * math.sqrt(squared) * mean / (spread + 1e-8)
        else:
            p = p - rate * mean
    return p


@pytest.mark.parametrize("kind", ["adam", "adamw", "radam"])
def test_against_the_formulas(kind: str) -> None:
    table = {"kind": kind, "rate": 1e-2, "betas": [0.9, 0.99], "weight_decay": 0.01}
    objective = two_parts()
    weight = objective.network.flow_net.weight
    start, gradients = weight.detach().numpy().copy(), []
    optimiser = built(objective, "network", table)
    for step in range(30):
        give_gradients(objective, step)
        gradients.append(weight.grad.double().numpy().copy())
        optimiser.step()
    numpy.testing.assert_allclose(weight.detach(), by_hand(kind, start, gradients, table), rtol=1e-4, atol=1e-6)
    assert abs(weight.detach().numpy() - start).max() > 0.02


def test_rates_by_prefix() -> None:
    """Adam's first step is as long as the rate, whatever the gradient. The longest prefix counts."""
    rates = {"flow": 1e-3, "flow.1": 1e-4, "flow.0.bias": 0}
    objective = two_parts()
    table = {"kind": "adam", "rate": 1e-2, "rates": rates, "frozen": {"flow_net.bias": 2}}
    optimiser = built(objective, "network", table)
    assert {name for name, p in objective.network.named_parameters() if not p.requires_grad} == {"flow.0.bias"}
    before = values(objective)
    give_gradients(objective, 0)
    optimiser.step(0.5)
    steps = {name: (p.detach() - before[name]).abs().mean().item() for name, p in objective.network.named_parameters()}
    assert steps["flow.0.weight"] == pytest.approx(0.5e-3, rel=1e-3)
    assert [steps["flow.1.weight"], steps["flow.1.bias"]] == pytest.approx([0.5e-4] * 2, rel=1e-3)
    assert steps["flow.0.bias"] == steps["flow_net.bias"] == 0
    assert steps["flow_net.weight"] == pytest.approx(0.5e-2, rel=1e-3)


def test_what_begins_later_begins_afresh() -> None:
    """Moments of a part that is frozen at first know nothing of the time before, and neither does the norm."""
    table = {"kind": "adam", "rate": 1e-2, "rates": {"flow_net": 2.5e-3}, "frozen": {"flow_net": 3}}
    objective = two_parts()
    optimiser = built(objective, "network", table)
    for step in range(4):
        before = values(objective)
        give_gradients(objective, step)
        trained = [p for name, p in objective.network.named_parameters() if step == 3 or "flow_net" not in name]
        norm = length_of_gradients(trained)
        assert optimiser.step().item() == pytest.approx(norm, rel=1e-5)
        assert ("flow_net.weight" in changed(objective, before)) == (step == 3)
    moved = (objective.network.flow_net.weight.detach() - before["flow_net.weight"]).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 2.5e-3), rtol=1e-3, atol=0)


def test_clipping_limits_the_norm_of_all_gradients_together() -> None:
    clipped, plain = two_parts(), two_parts()
    table = {"kind": "adam", "rate": 1e-2, "epsilon": 1.0}  # so that the step knows of the gradients' length
    one = built(clipped, "network", {**table, "clip": 0.1})
    other = built(plain, "network", table)
    give_gradients(clipped, 0)
    give_gradients(plain, 0)
    norm = length_of_gradients(plain.network.parameters())
    scale_gradients(plain, 0.1 / norm)
    assert one.step().item() == pytest.approx(norm, rel=1e-5)
    assert other.step().item() == pytest.approx(0.1, rel=1e-5)
    for a, b in zip(clipped.network.parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(a, b)


TABLES: dict[str, dict[str, Any]] = {
    "adam": {"kind": "adam", "rate": 1e-2, "rates": {"flow.0": 1e-3}, "frozen": {"flow.0": 4}},
    "adamw": {"kind": "adamw", "rate": 1e-2, "weight_decay": 0.1, "clip": 1.0},
    "radam": {"kind": "radam", "rate": 1e-2, "weight_decay": 0.01},
    "muon": {"kind": "muon", "rate": 1e-2, "matrix_rate": 2e-2, "matrices": ".conv_", "clip": 1.0},
}


def build(kind: str) -> tuple[Objective, Optimiser]:
    torch.manual_seed(1)
    objective = Lossless(Lite(8, 1), {}) if kind == "muon" else two_parts()
    return objective, built(objective, "network", TABLES[kind])


@pytest.mark.parametrize("kind", TABLES)
def test_going_on_from_a_state_is_exact(kind: str) -> None:
    straight, optimiser = build(kind)
    run(straight, optimiser, range(12))

    interrupted, optimiser = build(kind)
    run(interrupted, optimiser, range(7))
    file = io.BytesIO()
    torch.save({"network": interrupted.network.state_dict(), "optimiser": optimiser.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    going_on, optimiser = build(kind)
    going_on.network.load_state_dict(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    run(going_on, optimiser, range(7, 12))
    assert not changed(going_on, values(straight))
    assert changed(interrupted, values(straight))


@pytest.mark.parametrize("kind", TABLES)
def test_going_on_is_by_the_present_recipe(kind: str) -> None:
    """Moments are those that were kept; betas and decay are not."""
    objective, optimiser = build(kind)
    run(objective, optimiser, range(3))
    state = optimiser.state_dict()
    table = TABLES[kind] | {"betas": [0.8, 0.95], "weight_decay": 0.3}
    again = built(objective, "network", table)
    again.load_state_dict(state)
    for (part, _), saved in zip(again.parts, state["parts"], strict=True):
        assert all(group["weight_decay"] == 0.3 for group in part.param_groups)
        assert all(group.get("betas", (0.8, 0.95)) == (0.8, 0.95) for group in part.param_groups)
        assert all(group["weight_decay"] != 0.3 for group in saved["param_groups"]), "what was kept stays as it is"
        kept, moments = saved["state"], part.state_dict()["state"]
        assert moments.keys() == kept.keys()
        assert all(torch.equal(moments[key][name], kept[key][name]) for key in kept for name in kept[key])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", TABLES)
def test_gradients_that_are_no_numbers_change_nothing(kind: str, wrong: float) -> None:
    objective, optimiser = build(kind)
    before = values(objective)
    give_gradients(objective, 0)
    next(objective.network.parameters()).grad.flatten()[0] = wrong
    optimiser.update = 9  # nothing is frozen any more
    with pytest.raises(DeviceError, match="the gradients of optimiser network are NaN or infinite"):
        optimiser.step()
    assert not changed(objective, before)
    assert optimiser.update == 9


class FlowOnly(Lossless):
    """Keeps a part of its network from training, as PVDNet's does."""

    def parameters_of(self, optimiser: str) -> Iterator[tuple[str, nn.Parameter]]:
        return self.network.flow.named_parameters("flow")


def test_what_is_frozen_already_may_be_frozen_once_more() -> None:
    objective = FlowOnly(TwoParts(), {})
    table = {"kind": "adam", "rate": 1e-2}
    optimiser = built(objective, "network", {**table, "rates": {"flow_net": 0, "flow.1": 0}})
    assert [len(group.parameters) for _, groups in optimiser.parts for group in groups] == [2]
    with pytest.raises(UsageError, match="flow_net"):
        built(objective, "network", {**table, "rates": {"flow_net": 1e-3}})


def test_muon_takes_the_inner_kernels_and_adamw_the_rest() -> None:
    """Muon's steps are nearly orthogonal: all singular values alike. AdamW's first has the length of its rate."""
    objective, optimiser = build("muon")
    before = values(objective)
    give_gradients(objective, 0)
    optimiser.clip = None
    optimiser.step()
    steps = {name: p.detach() - before[name] for name, p in objective.network.named_parameters()}
    for name, step in steps.items():
        if ".conv_" in name and step.ndim == 4:
            singular = torch.linalg.svdvals(step.flatten(1))
            assert singular.min() > 0.5 * singular.max(), name
            # An orthogonal matrix (8, 72) times 0.2 sqrt(72): the RMS is the rate times 0.2, as AdamW's is.
            assert step.square().mean().sqrt().item() == pytest.approx(2e-2 * 0.2, rel=0.2)
        else:
            torch.testing.assert_close(step.abs(), torch.full_like(step, 1e-2), rtol=1e-3, atol=0)
    optimiser.zero_grad()
    assert all(p.grad is None for p in objective.network.parameters())


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_a_scaler_only_scales(kind: str) -> None:
    """Scaled gradients give the very steps of unscaled ones (scales are powers of 2); overflow gives none."""
    (plain, one), (scaled, other) = build(kind), build(kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    for step in range(SCALER_STEPS):
        give_gradients(plain, step)
        give_gradients(scaled, step)
        scale_gradients(scaled, 1024)
        one.step()
        assert other.step(1.0, scaler).isfinite()
    assert not changed(scaled, values(plain))

    before = values(scaled)
    give_gradients(scaled, 0)
    next(scaled.network.parameters()).grad.fill_(float("inf"))
    assert not other.step(1.0, scaler).isfinite()
    assert not changed(scaled, before)
    assert scaler.get_scale() == 512
    assert other.update == SCALER_STEPS + 1


def test_a_second_optimiser_takes_what_it_lacks_from_the_first() -> None:
    table = {
        "kind": "adam",
        "rate": 1e-5,
        "betas": [0.5, 0.999],
        "rates": {"flow": 0},
        "frozen": {"flow_net": 5},
        "discriminator": {"rate": 2e-5, "clip": 1.0},
    }
    own = optimisers.settings_of(table, "discriminator")
    assert (own.kind, own.rate, own.betas, own.clip) == ("adam", 2e-5, [0.5, 0.999], 1.0)
    assert own.rates == own.frozen == {}
    first = optimisers.settings_of(table, "network")
    assert (first.rate, first.rates, first.clip) == (1e-5, {"flow": 0}, None)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"kind": "sgd", "rate": 1}, "no known kind"),
        ({"kind": "adam"}, "lacks rate"),
        ({"kind": "adam", "rate": 1, "momentum": 0.9}, "momentum"),
        ({"kind": "muon", "rate": 1, "matrices": "flow"}, "lacks matrix_rate"),
        ({"kind": "adam", "rate": 1, "rates": {"flow_ne": 0}}, "flow_ne"),
        ({"kind": "adam", "rate": 1, "frozen": {"flow.2": 9}}, "flow.2"),
        ({"kind": "adam", "rate": 1, "rates": {"flow": 0, "flow_net": 0}}, "nothing to train"),
    ],
)
def test_mistakes_in_a_recipe_are_told(table: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        built(two_parts(), "network", table)


def test_a_missing_optimiser_or_schedule_is_told() -> None:
    with pytest.raises(UsageError, match="discriminator"):
        built(two_parts(), "discriminator", {"kind": "adam", "rate": 1})
    with pytest.raises(UsageError, match="falling"):
        factor({"kind": "falling"}, 0, 10, 1.0)
    with pytest.raises(UsageError, match="every"):
        factor({"kind": "halve"}, 0, 10, 1.0)
    with pytest.raises(UsageError, match="cosine, has a key flor"):
        factor({"kind": "cosine", "floor": 0, "flor": 1e-7}, 0, 10, 1.0)


def test_halving() -> None:
    """CDVD-TSP: halved after 200 epochs of 732 updates, and again."""
    table = {"kind": "halve", "every": 200 * 732}
    places = (0, 146_399, 146_400, 292_799, 292_800)
    assert [factor(table, update, 366_000, 1e-4) for update in places] == [1, 1, 0.5, 0.5, 0.25]


def test_steps() -> None:
    """PVDNet's plain recipe: a quarter after 400,000."""
    table = {"kind": "steps", "at": [400_000], "factor": 0.25}
    assert [factor(table, update, 600_000, 1e-4) for update in (0, 399_999, 400_000, 599_999)] == [1, 1, 0.25, 0.25]
    twice = {"kind": "steps", "at": [100, 200], "factor": 0.1}
    assert factor(twice, 250, 300, 1.0) == pytest.approx(0.01)


def test_cosine() -> None:
    """DSTNet: 2e-4 to 1e-7 over 300,000; PyTorch's own schedule says the same."""
    table = {"kind": "cosine", "floor": 1e-7}
    rates = [2e-4 * factor(table, update, 300_000, 2e-4) for update in (0, 75_000, 150_000, 300_000)]
    assert rates == pytest.approx([2e-4, 1.70725323e-4, 1.0005e-4, 1e-7], rel=1e-6)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 2e-4)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300, 1e-7)
    for update in range(300):
        assert 2e-4 * factor(table, update, 300, 2e-4) == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        theirs.step()


def test_restarts() -> None:
    """PVDNet: down to 1e-7 five times, over 50, 100, and three times 150 thousand updates."""
    thousand = 1000
    table = {"kind": "restarts", "periods": [50_000, 100_000, 150_000, 150_000, 150_000], "floor": 1e-7}
    for begin in (0, 50, 150, 300, 450):
        assert factor(table, begin * thousand, 600_000, 1e-4) == 1
    for middle in (25, 100, 225, 375, 525):
        assert factor(table, middle * thousand, 600_000, 1e-4) == pytest.approx((1 + 1e-3) / 2)
    for end in (50, 150, 300, 450, 600):
        assert factor(table, end * thousand - 1, 600_000, 1e-4) == pytest.approx(1e-3, rel=1e-3)
    assert factor(table, 600_000, 600_000, 1e-4) == pytest.approx(1e-3)
    weighted = {**table, "weights": [1, 0.5, 0.5, 0.5, 0.25]}
    assert factor(weighted, 50_000, 600_000, 1e-4) == pytest.approx(1e-3 + 0.5 * (1 - 1e-3))


def test_power_and_linear() -> None:
    assert factor({"kind": "power", "power": 2}, 200_000, 800_000, 1.0) == 0.5625
    table = {"kind": "linear", "warm_up": 100}
    places = (0, 49, 99, 100, 4500, 8999)
    expected = [0.01, 0.5, 1 - 99 / 9000, 1 - 100 / 9000, 0.5, 1 / 9000]
    assert [factor(table, update, 9000, 1.0) for update in places] == pytest.approx(expected)
    assert factor({"kind": "constant"}, 7, 9, 1.0) == 1


def test_plateaus_reduce_the_rate_and_then_end_it() -> None:
    """SPN's: twice a tenth, each after ten validations without a better one."""
    table = {"kind": "plateau", "patience": 3, "factor": 0.1, "reductions": 2}
    plateau = Plateau(schedule_of(table))
    seen = []
    for score in (30, 31, 31, 30, 30, 32, 31, 31, 31, 32, 32):
        plateau.observe(score)
        seen.append(plateau.factor)
    assert seen == pytest.approx([1] * 4 + [0.1] * 4 + [0.01] * 3)
    assert not plateau.finished

    again = Plateau(schedule_of(table))
    again.load_state_dict(plateau.state_dict())
    again.observe(31)
    assert again.finished
    assert again.best == 32
    assert factor(table, 5, 10, 1.0) == 1


def test_training_stops_after_validations_below_the_best() -> None:
    """SPGAN's: five in a row, at a fixed rate."""
    plateau = Plateau(schedule_of({"kind": "plateau", "patience": 5, "reductions": 0}))
    for score in (31.0, 30.9, 30.9, 30.9, 30.9, 31.1, 31, 31, 31, 31):
        plateau.observe(score)
    assert not plateau.finished
    plateau.observe(31.1)
    assert plateau.finished
    assert plateau.factor == 1


def test_other_schedules_are_never_finished() -> None:
    plateau = Plateau(schedule_of({"kind": "constant"}))
    for _ in range(50):
        plateau.observe(1.0)
    assert (plateau.finished, plateau.factor) == (False, 1.0)
