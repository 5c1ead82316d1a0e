"""`vdeblur bench --flow`: the sharp previous frame, warped, against the sharp frame."""

import itertools
import json
import math
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor, nn

from tests import clips
from tests.clocks import Clock
from vdeblur.bench import flow
from vdeblur.datasets import pictures
from vdeblur.errors import ExitStatus
from vdeblur.events import Talk
from vdeblur.models import registry, weights
from vdeblur.networks import NETWORKS, PARTS
from vdeblur.networks.layers import warp
from vdeblur.restore import watch

FRAMES, HEIGHT, WIDTH = 3, 80, 112
SPEED = 3  # pixels from frame to frame: the upper half moves right, the lower half left


def texture(cell: int = 6) -> Tensor:
    coarse = torch.rand(1, 3, 30, 40, generator=torch.Generator().manual_seed(2))
    return nn.functional.interpolate(coarse, scale_factor=cell, mode="bicubic")[0].clamp(0, 1) * 255


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A texture in two halves that move apart, which Koehler's shift cannot undo; blurry frames average the motion."""
    wide = texture()

    def at(time: float) -> Tensor:
        motion = torch.zeros(1, 2, *wide.shape[1:])
        motion[:, 0, : 40 + HEIGHT // 2] = -time * SPEED
        motion[:, 0, 40 + HEIGHT // 2 :] = time * SPEED
        return warp(wide[None], motion)[0, :, 40 : 40 + HEIGHT, 60 : 60 + WIDTH]

    for index in range(FRAMES):
        blurry = torch.stack([at(index + step / 4) for step in range(-4, 5)]).mean(0)
        for kind, picture in (("sharp", at(index)), ("blur", blurry)):
            pictures.write_png(tmp_path / "set" / "scene" / kind / f"{index:05}.png", picture.round().byte())
    return tmp_path / "set"


def rows(path: Path) -> dict[str, dict]:
    return {row["model"]: row for row in json.loads(path.read_text())["models"]}


def test_the_true_flow_scores_best(vdeblur, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a frame to the previous one, what moves right lies to the left."""

    def true(current: Tensor, previous: Tensor) -> Tensor:
        assert current.shape == previous.shape == (1, 3, HEIGHT, WIDTH)
        assert 0 <= current.min() <= current.max() <= 1
        motion = current.new_zeros(1, 2, HEIGHT, WIDTH)
        motion[:, 0, : HEIGHT // 2], motion[:, 0, HEIGHT // 2 :] = -SPEED, SPEED
        return motion

    monkeypatch.setattr(flow, "_estimator", lambda name, device, talk: true)
    options = ("--dataset", pairs, "-m", "bimnet", "-d", "cpu", "--report", tmp_path / "flow.json")
    result = vdeblur("bench", "--flow", *options, "--report", tmp_path / "flow.md")
    assert result.exit_code == 0, result.output
    found = rows(tmp_path / "flow.json")
    assert list(found) == ["bimnet", "none", "lucas-kanade"]
    for kind in flow.KINDS:
        exact, none, estimated = (found[name]["flows"][kind]["psnr"] or math.inf for name in found)  # equal: null
        assert exact > 50  # rounding alone
        assert none < estimated < exact
    assert found["bimnet"]["pairs"] == FRAMES - 1
    sharp = found["lucas-kanade"]["flows"]
    assert sharp["sharp to sharp"]["psnr"] > sharp["blurry to sharp"]["psnr"]
    assert "| bimnet | dvd |" in (tmp_path / "flow.md").read_text()
    assert "BLURRY TO BLURRY" in result.stdout
    assert vdeblur("bench", "--flow", *options).exit_code == 0, "an earlier report is replaced"


def test_nothing_warped_is_the_previous_frame(pairs: Path, vdeblur, tmp_path: Path, monkeypatch) -> None:
    """Without Koehler's shift, which would undo a global motion: against an independent computation."""
    from vdeblur.measure import metrics

    monkeypatch.setattr(metrics, "align", lambda z, x: metrics.Aligned(z.double(), x.double(), 1.0, (0, 0)))
    options = ("--dataset", pairs, "-m", "bimnet", "-d", "cpu", "--report", tmp_path / "flow.json")
    monkeypatch.setattr(flow, "_estimator", lambda name, device, talk: flow._none)
    assert vdeblur("bench", "--flow", *options).exit_code == 0
    frames = [clips.rgb(file)[0, 16:-16, 16:-16] for file in sorted((pairs / "scene" / "sharp").iterdir())]
    luma = [frame @ numpy.array((0.299, 0.587, 0.114)) for frame in frames]
    expected = [10 * numpy.log10(255**2 / ((a - b) ** 2).mean()) for a, b in itertools.pairwise(luma)]
    assert rows(tmp_path / "flow.json")["none"]["flows"]["sharp to sharp"]["psnr"] == pytest.approx(
        numpy.mean(expected), abs=1e-6
    )


def test_a_flow_takes_until_the_device_has_finished_it(vdeblur, pairs: Path, tmp_path: Path, monkeypatch) -> None:
    """A device works on while the host's clock is read; its first pair also loads kernels, which takes 100 seconds."""
    clock, queued, asked = Clock(), [0.0], []

    def synchronize(device: torch.device) -> None:
        clock.advance(queued.pop())
        queued.append(0.0)

    def estimate(current: Tensor, previous: Tensor) -> Tensor:
        asked.append(queued[0])
        queued[0] += 100.0 if len(asked) <= len(flow.KINDS) else 2.0
        return flow._none(current, previous)

    def slowly(frame: Tensor, motion: Tensor) -> Tensor:
        queued[0] += 7.0  # of a score, none of the network's
        return warp(frame, motion)

    monkeypatch.setattr(flow, "_estimator", lambda name, device, talk: estimate)
    monkeypatch.setattr(flow, "time", clock)
    monkeypatch.setattr(flow, "warp", slowly)
    monkeypatch.setattr(watch, "synchronize", synchronize)
    options = ("--dataset", pairs, "-m", "bimnet", "-d", "cpu", "--report", tmp_path / "flow.json")
    assert vdeblur("bench", "--flow", *options).exit_code == 0
    assert rows(tmp_path / "flow.json")["bimnet"]["seconds_per_pair"] == pytest.approx(2.0)
    assert asked == [0.0] * len(flow.KINDS) * (FRAMES - 1)
    result = vdeblur("bench", "--flow", *options, "--limit", 2)
    assert result.exit_code == 0
    assert rows(tmp_path / "flow.json")["bimnet"]["seconds_per_pair"] is None, "the only pair is the first"


def drawn(name: str) -> nn.Module:
    entry, _ = registry.choose_weights(name)
    torch.manual_seed(0)
    return (NETWORKS[entry.network](**entry.arguments) if entry.network else PARTS[entry.part]()).eval()


@pytest.mark.parametrize("name", ["basicvsrpp", "cdvd-tsp", "flow-rnn", "pvdnet", "bimnet", "pwc-net", "spynet"])
def test_every_flow_network_estimates_at_full_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = drawn(name)
    part = registry.find_entry(name).part
    monkeypatch.setattr(weights, "load_model", lambda name, talk: network)
    monkeypatch.setattr(
        weights,
        "load_start",
        lambda name, talk: {network.official_name(key): value for key, value in network.state_dict().items()},
    )
    assert name in flow.flow_models()
    estimate = flow._estimator(name, torch.device("cpu"), Talk())
    frames = torch.rand(2, 1, 3, 70, 100, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = estimate(*frames)
    assert found.shape == (1, 2, 70, 100)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    if part == "bimnet":
        with torch.inference_mode():
            assert torch.equal(found, network.flow(*frames))


def test_a_flow_grows_with_its_size() -> None:
    small = torch.stack((torch.full((5, 6), 2.0), torch.full((5, 6), -1.0)))[None]
    large = flow._enlarged(small, 20, 24)
    assert torch.equal(large[0, 0], torch.full((20, 24), 8.0))
    assert torch.equal(large[0, 1], torch.full((20, 24), -4.0))


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("-m", "lite"), ExitStatus.MODEL, "lite estimates no optical flow (choose from cdvd-tsp, pvdnet, "),
        (("--protocol", "plain"), ExitStatus.USAGE, "--protocol does not go with --flow"),
        (("--save", "x"), ExitStatus.USAGE, "--save does not go with --flow"),
        (("-p", "bf16"), ExitStatus.USAGE, "--flow computes in fp32"),
        (("--limit", "1"), ExitStatus.INPUT, "too short"),
        (("--report", "x.html"), ExitStatus.USAGE, "a report of flow cannot be of the kind '.html'"),
        (("-m", "flow-rnn", "--offline"), ExitStatus.MODEL, "has no automatic download"),
    ],
)
def test_what_users_do_wrong(vdeblur, pairs: Path, arguments: tuple[str, ...], status: int, words: str) -> None:
    result = vdeblur("bench", "--flow", "--dataset", pairs, "-d", "cpu", *arguments)
    assert result.exit_code == status, result.output
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_flow_needs_a_data_set(vdeblur) -> None:
    result = vdeblur("bench", "--flow", "--speed")
    assert result.exit_code == ExitStatus.USAGE
    assert "--flow goes with --dataset" in result.stderr


def test_without_a_name_the_models_at_hand_are_measured(vdeblur, pairs: Path) -> None:
    result = vdeblur("bench", "--flow", "--dataset", pairs, "-d", "cpu", "--json")
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.stdout.splitlines()]
    report = next(event for event in events if event["event"] == "report")
    assert [row["model"] for row in report["models"]] == ["none", "lucas-kanade"]
