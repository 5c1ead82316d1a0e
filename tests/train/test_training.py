"""`vdeblur train`: the loop, its states and files, several processes; by the command line on small real clips."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest
import safetensors
import safetensors.torch
import torch

from tests import clips
from tests.conftest import ROOT
from vdeblur.datasets import pictures
from vdeblur.errors import ExitStatus
from vdeblur.events import Talk
from vdeblur.models import registry, weights
from vdeblur.networks import NETWORKS
from vdeblur.train import distributed, loop, recipes
from vdeblur.train.objectives import OBJECTIVES

TINY = """
[lite-tiny]
network = "lite"
arguments = { channels = 8, blocks = 1 }
description = "lite, for tests"
license = "MIT"
no_weights = "it is for tests"

[dstnet-tiny]
network = "dstnet"
arguments = { channels = 8, width = 8, blocks = 1 }
description = "DSTNet, for tests"
license = "MIT"
no_weights = "it is for tests"
"""
SMALL = ("--crop", 32, "--batch", 4, "--workers", 0, "--device", "cpu", "--validate-every", 4)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model small enough to be trained in a second."""
    registry = tmp_path / "registry.toml"
    registry.write_text(TINY)
    monkeypatch.setenv("VDEBLUR_REGISTRY", str(registry))
    return "lite-tiny"


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sequences to train on and one to test, in GoPro's layout: a moving pattern, and the mean of three of it."""
    root = tmp_path_factory.mktemp("pairs")
    for number, name in enumerate(("train/a", "train/b", "test/c")):
        source = f"mandelbrot=size=64x48:start_x=-0.74:start_y=0.1{number}:start_scale=0.02:end_scale=0.002:end_pts=40"
        film = root / f"{number}.mkv"
        clips.ffmpeg("-f", "lavfi", "-i", source, "-frames:v", 20, "-pix_fmt", "bgr0", "-c:v", "ffv1", film)
        frames = clips.rgb(film)
        for index in range(6):
            three = frames[3 * index : 3 * index + 3].astype(float)
            for kind, frame in (("blur", three.mean(0)), ("sharp", three[1])):
                picture = torch.from_numpy(frame.round().astype(numpy.uint8)).permute(2, 0, 1)
                pictures.write_png(root / name / kind / f"{index:06}.png", picture)
        film.unlink()
    return root


def state_of(out: Path) -> dict:
    return torch.load(out / "state.pt", weights_only=True)


def same(a: Any, b: Any) -> bool:
    """Compare nested states bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_interrupted_training_equals_uninterrupted(vdeblur, tmp_path: Path, tiny: str, pairs: Path) -> None:
    command = ("train", "-m", tiny, "--dataset", pairs, *SMALL, "--iterations", 8, "--ema", 0.9)
    assert vdeblur(*command, "--out", tmp_path / "a").exit_code == 0
    assert vdeblur(*command, "--out", tmp_path / "b", "--stop-at", 3).exit_code == 0
    assert vdeblur(*command, "--out", tmp_path / "b", "--resume", "--workers", 2).exit_code == 0
    a, b = (state_of(tmp_path / name) for name in "ab")
    for part in ("objective", "optimisers", "average", "update", "number"):
        assert same(a[part], b[part]), part
    assert [row["update"] for row in rows(tmp_path / "a")] == ["4", "8"]
    assert [row["update"] for row in rows(tmp_path / "b")] == ["3", "4", "8"]
    # The last update's weights, averaged: what is validated is what is kept.
    for name in ("last", "best"):
        assert (tmp_path / "a" / f"{name}.safetensors").is_file()


def test_accumulated_parts_equal_the_whole_batch(vdeblur, tmp_path: Path, tiny: str, pairs: Path) -> None:
    command = ("train", "-m", tiny, "--dataset", pairs, *SMALL, "--iterations", 2, "--set", "training.precision=fp32")
    assert vdeblur(*command, "--out", tmp_path / "whole").exit_code == 0
    assert vdeblur(*command, "--out", tmp_path / "parts", "--accumulate", 2).exit_code == 0
    [undivided, parts] = (rows(tmp_path / name)[-1] for name in ("whole", "parts"))
    assert float(undivided["loss"]) == pytest.approx(float(parts["loss"]), rel=1e-4)


def test_a_training_is_not_replaced_unasked(vdeblur, tmp_path: Path, tiny: str, pairs: Path) -> None:
    command = ("train", "-m", tiny, "--dataset", pairs, *SMALL, "--iterations", 1, "--out", tmp_path / "out")
    assert vdeblur(*command).exit_code == 0
    before = (tmp_path / "out" / "state.pt").read_bytes()
    result = vdeblur(*command)
    assert result.exit_code == ExitStatus.OUTPUT
    assert "--resume" in result.output
    assert (tmp_path / "out" / "state.pt").read_bytes() == before


def test_a_changed_recipe_is_said(vdeblur, tmp_path: Path, tiny: str, pairs: Path) -> None:
    command = ("train", "-m", tiny, "--dataset", pairs, *SMALL, "--out", tmp_path / "out")
    assert vdeblur(*command, "--iterations", 1).exit_code == 0
    result = vdeblur(*command, "--iterations", 2, "--resume", "--rate", 1e-5)
    assert result.exit_code == 0
    assert "optimiser.rate, optimiser.matrix_rate, training.iterations" in result.output
    other = vdeblur(*command, "--iterations", 2, "--resume", "--rate", 1e-5, "--limit", 5)
    assert "--limit was not given before" in other.output
    assert tomllib.loads((tmp_path / "out" / "recipe.toml").read_text())["training"]["iterations"] == 2


def test_weights_say_how_they_came_about_and_run(vdeblur, tmp_path: Path, tiny: str, pairs: Path) -> None:
    out = tmp_path / "out"
    whole = ("--set", "training.validation_frames=6")  # as bench measures
    result = vdeblur("train", "-m", tiny, "--dataset", pairs, *SMALL, *whole, "--iterations", 4, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.stdout.splitlines()]
    [validation] = [event for event in events if event["event"] == "validation"]
    with safetensors.safe_open(out / "best.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["training"])
        recipe = file.metadata()["recipe"]
    assert facts["model"] == tiny
    assert facts["update"] == 4
    assert facts["score"]["psnr"] == pytest.approx(validation["psnr"])
    assert recipe == (out / "recipe.toml").read_text()
    [sample] = (out / "samples" / "0000004").iterdir()
    assert pictures.read_rgb(sample).shape == (3, 48, 3 * 64), "blurry, restored and sharp beside each other"
    clip = clips.make(tmp_path / "in.mp4", frames=5, size="64x48")
    command = ("run", clip, tmp_path / "out.mp4", "-m", tiny, "--weights", out / "best.safetensors", "--device", "cpu")
    assert vdeblur(*command).exit_code == 0
    # The validation's figure is that of bench.
    assert vdeblur("models", "import", out / "best.safetensors", "--as", f"{tiny}@mine").exit_code == 0
    report = tmp_path / "bench.json"
    bench = ("bench", "--dataset", pairs, "--split", "test", "-m", f"{tiny}@mine", "--report", report, "-p", "fp32")
    assert vdeblur(*bench, "--device", "cpu").exit_code == 0
    measured = {model["model"]: model for model in json.loads(report.read_text())["models"]}
    half_steps = 0.02  # dB: weights are kept in half precision
    assert measured[tiny]["psnr"] == pytest.approx(validation["psnr"], abs=half_steps)
    assert measured["identity"]["psnr"] == pytest.approx(validation["blurry"], abs=1e-3)


def test_what_is_frozen_stays(vdeblur, tmp_path: Path, tiny: str, pairs: Path) -> None:
    names = [name for name, _ in NETWORKS["lite"](8, 1).named_parameters()]
    part = names[0].partition(".")[0]
    command = ("train", "-m", tiny, "--dataset", pairs, *SMALL, "--out", tmp_path / "out", "--freeze", part)
    assert vdeblur(*command, "--iterations", 1).exit_code == 0
    first = state_of(tmp_path / "out")["objective"]
    assert vdeblur(*command, "--iterations", 4, "--resume").exit_code == 0
    second = state_of(tmp_path / "out")["objective"]
    for name in names:
        assert torch.equal(first[f"network.{name}"], second[f"network.{name}"]) == name.startswith(part), name
    result = vdeblur(*command[:-1], "nowhere", "--iterations", 4, "--resume")
    assert result.exit_code == ExitStatus.USAGE
    assert part in result.output


def test_fine_tuning_begins_with_the_weights_of_a_model(vdeblur, tmp_path: Path, pairs: Path) -> None:
    command = ("train", "-m", "lite", "--dataset", pairs, *SMALL, "--iterations", 1, "--rate", 1e-12, "--init", "lite")
    result = vdeblur(*command, "--set", "optimiser.matrix_rate=1e-12", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    ours = safetensors.torch.load_file(tmp_path / "out" / "last.safetensors")
    theirs = weights.load_model("lite").state_dict()
    assert all(torch.allclose(ours[name].float(), value, atol=2e-3) for name, value in theirs.items())
    result = vdeblur(*command[:-1], "spn", "--out", tmp_path / "other")
    assert result.exit_code == ExitStatus.MODEL
    assert "another network" in result.output


def test_a_loss_that_is_no_number_is_named_at_once(
    vdeblur, tmp_path: Path, tiny: str, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = OBJECTIVES["lite"]
    honest = objective.forward

    def spoilt(self, batch, turn, update, carried):
        losses, carried = honest(self, batch, turn, update, carried)
        return {name: loss * (float("nan") if update == 2 else 1) for name, loss in losses.items()}, carried

    monkeypatch.setattr(objective, "forward", spoilt)
    command = ("train", "-m", tiny, "--dataset", pairs, *SMALL, "--iterations", 4, "--out", tmp_path / "out")
    result = vdeblur(*command, "--set", "training.keep_minutes=1e-9")
    assert result.exit_code == ExitStatus.DEVICE
    assert "at update 3" in result.output
    assert "loss = nan" in result.output
    assert state_of(tmp_path / "out")["update"] == 2, "kept by the clock, before any validation"


def test_a_signal_keeps_all(tmp_path: Path, tiny: str, pairs: Path) -> None:
    """SIGTERM after the first validation; --resume then gives what an undisturbed training gives."""
    command = [sys.executable, "-m", "vdeblur", "train", "-m", tiny, "--dataset", str(pairs), *map(str, SMALL)]
    command += ["--set", "schedule.warm_up=2", "--iterations", "400", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "out" / "state.pt", process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == ExitStatus.TERMINATED, said
    assert "--resume" in said
    assert 4 <= state_of(tmp_path / "out")["update"] < 400


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else "ended"
        time.sleep(0.05)


def torchrun(*arguments: object, processes: int = 2) -> list[str]:
    engine = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    return [*engine, "--standalone", *map(str, arguments)]


GRADIENTS = """
import sys, torch
from pathlib import Path
from vdeblur.events import Talk
from vdeblur.models.registry import find_entry
from vdeblur.train import loop, recipes
from vdeblur.train.distributed import joined

model, dataset, out = sys.argv[1:4]
values = [tuple(value.split("=")) for value in sys.argv[4:]]
recipe = recipes.load_recipe(find_entry(model), values=values)
with joined("cpu") as group:
    task = loop.TrainingTask(recipe, dataset, Path(out), device="cpu", workers=0)
    trainer = loop.Trainer(task, group, Talk())
    parts = next(trainer._batches())
    trainer.learner.backward(parts, 0, [None] * len(parts))
    gradients = {name: p.grad for name, p in trainer.learner.objective.named_parameters() if p.grad is not None}
    if group.is_main:
        torch.save(gradients, Path(out) / "gradients.pt")
"""


@pytest.mark.parametrize(
    ("model", "frames"), [("lite-tiny", 3), pytest.param("dstnet-tiny", 2, marks=pytest.mark.slow)]
)
def test_two_processes_give_the_gradients_of_the_double_batch(
    tmp_path: Path, tiny: str, pairs: Path, model: str, frames: int
) -> None:
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    values = [
        ("training.batch", "8"),
        ("data.crop", "32"),
        ("training.precision", "fp32"),
        ("data.frames", str(frames)),
    ]
    options = (model, pairs, tmp_path / "two", *(f"{key}={value}" for key, value in values))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    two_processes = subprocess.run(torchrun(script, *options), env=environment, capture_output=True, text=True)
    assert two_processes.returncode == 0, two_processes.stderr
    recipe = recipes.load_recipe(registry.find_entry(model), values=values)
    with distributed.joined("cpu") as group:
        trainer = trainer_of(recipe, pairs, tmp_path / "one", group)
        parts = next(trainer._batches())
        assert len(parts[0]["blurry"]) == 8
        trainer.learner.backward(parts, 0, [None])
    two = torch.load(tmp_path / "two" / "gradients.pt", weights_only=True)
    alone = {name: p.grad for name, p in trainer.learner.objective.named_parameters()}
    assert alone.keys() == two.keys()
    largest = max(float(gradient.abs().max()) for gradient in alone.values())
    for name, gradient in alone.items():
        # Sums in float32 in another order
        assert (gradient - two[name]).abs().max() < 1e-5 * largest, name


def trainer_of(recipe: recipes.Recipe, dataset: Path, out: Path, group: distributed.ProcessGroup) -> loop.Trainer:
    task = loop.TrainingTask(recipe, str(dataset), out, device="cpu", workers=0)
    return loop.Trainer(task, group, Talk())


# Turns of the first three batches, and what of the network changes in them.
LESSONS = {
    "bimnet": ("pvdnet", "bimnet", ("network",), "bimnet."),
    "clip": ("dstnet", None, ("network",), ""),
    "estrnn": ("estrnn", None, ("network",), ""),
    "flow-rnn": ("flow-rnn", None, ("network",), ""),
    "lite": ("lite", None, ("network",), ""),
    "nafnet": ("nafnet-32", None, ("network",), ""),
    "pvdnet": ("pvdnet", None, ("network", "network"), ""),
    "spn": ("spn", None, ("network",), ""),
    "spgan": ("spgan", None, ("discriminator", "network"), ""),
    "cdvd-tsp": ("cdvd-tsp", None, ("network",), ""),
}


@pytest.mark.parametrize("objective", LESSONS)
def test_every_objective_goes_through_the_loop(tmp_path: Path, pairs64: Path, objective: str) -> None:
    """Two batches: turns, counts, what changes and what must not, statistics of batch normalisation among it."""
    model, stage, turns, prefix = LESSONS[objective]
    entry = registry.find_entry(model)
    original = recipes.load_recipe(entry, stage)
    values = [("data.crop", "64"), ("training.batch", "1"), ("training.accumulate", "1"), ("data.augment", "[]")]
    values += [("data.frames", str(min(original.data.frames, 2)))] if objective in ("clip", "pvdnet") else []
    values += [("data.frames", "5"), ("network.features", "4")] if objective == "estrnn" else []
    values += [(f"start.{part}", '""') for part in original.starts]
    values += [("loss.discriminator_width", "4"), ("loss.discriminator_first", "1")] if objective == "spgan" else []
    values += [("loss.flow_warm_up", "1")] if objective == "flow-rnn" else []
    recipe = recipes.load_recipe(entry, stage, values=values)
    if objective == "spgan":
        recipe.tables.pop("init_required")
    with distributed.joined("cpu") as group:
        trainer = trainer_of(recipe, pairs64, tmp_path / "out", group)
        learner = trainer.learner
        before = {name: value.clone() for name, value in learner.objective.network.state_dict().items()}
        batches = trainer._batches()
        first = learner.objective.turns(0)
        learner.step(next(batches))
        losses = learner.step(next(batches))
        assert learner.objective.turns(learner.before) == turns
        assert first == (("discriminator",) if objective == "spgan" else turns)
        assert learner.update == (1 + turns.count("network") if objective == "spgan" else 2 * len(turns))
    assert all(math.isfinite(value) for value in losses.values())
    after = learner.objective.network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {name for name, p in learner.objective.network.named_parameters() if p.requires_grad}
    assert all(name.startswith(prefix) for name in changed)
    assert changed & trained
    statistics = {name for name in before if "running" in name}
    assert changed - trained == (statistics | {n for n in before if "batches" in n} if objective == "spn" else set())


@pytest.fixture(scope="session")
def pairs64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sequence of five frames of 64x64 to train on, one to test, which is sharp already."""
    root = tmp_path_factory.mktemp("pairs64")
    generator = torch.Generator().manual_seed(0)
    for index in range(5):
        noise = (torch.rand(2, 3, 64, 64, generator=generator) * 255).to(torch.uint8)
        for name, blurry in (("train/a", noise[1]), ("test/b", noise[0])):
            pictures.write_png(root / name / "blur" / f"{index}.png", blurry)
            pictures.write_png(root / name / "sharp" / f"{index}.png", noise[0])
    return root


def test_what_was_sharp_already_can_be_all_there_is(vdeblur, tmp_path: Path, tiny: str, pairs64: Path) -> None:
    command = ("train", "-m", tiny, "--dataset", pairs64, *SMALL, "--iterations", 1, "--out", tmp_path / "out")
    assert vdeblur(*command).exit_code == 0
    [row] = rows(tmp_path / "out")
    assert row["psnr"] == row["untouched"]


def test_weights_that_are_there_are_never_replaced(vdeblur, tmp_path: Path, tiny: str, pairs: Path) -> None:
    out = tmp_path / "out"
    command = ("train", "-m", tiny, "--dataset", pairs, *SMALL, "--iterations", 1, "--out", out)
    assert vdeblur(*command).exit_code == 0
    (out / "state.pt").unlink()
    kept = (out / "best.safetensors").read_bytes()
    for options in ((), ("--resume",)):
        result = vdeblur(*command, *options)
        assert result.exit_code == ExitStatus.OUTPUT
        assert "best.safetensors exists" in result.output
    assert (out / "best.safetensors").read_bytes() == kept


def test_another_model_does_not_go_on(vdeblur, tmp_path: Path, tiny: str, pairs: Path) -> None:
    command = ("train", "--dataset", pairs, *SMALL, "--out", tmp_path / "out")
    assert vdeblur(*command, "-m", tiny, "--iterations", 1).exit_code == 0
    recipe = (tmp_path / "out" / "recipe.toml").read_text()
    result = vdeblur(*command, "-m", "dstnet-tiny", "--resume")
    assert result.exit_code == ExitStatus.USAGE
    assert f"holds a training of {tiny}" in result.output
    assert (tmp_path / "out" / "recipe.toml").read_text() == recipe


def test_what_fails_at_once_leaves_nothing(vdeblur, tmp_path: Path, tiny: str, pairs: Path) -> None:
    command = ("train", "-m", tiny, *SMALL, "--out", tmp_path / "out")
    assert vdeblur(*command, "--dataset", tmp_path / "nowhere").exit_code == ExitStatus.INPUT
    assert vdeblur(*command, "--dataset", pairs, "--crop", 500).exit_code == ExitStatus.INPUT
    assert vdeblur(*command, "--dataset", pairs, "--init", "nosuch.safetensors").exit_code == ExitStatus.MODEL
    assert not (tmp_path / "out").exists()


def test_the_best_is_never_worse_than_the_start(vdeblur, tmp_path: Path, tiny: str, pairs: Path) -> None:
    command = ("train", "-m", tiny, "--dataset", pairs, *SMALL, "--set", "schedule.warm_up=1")
    assert vdeblur(*command, "--iterations", 1, "--out", tmp_path / "first").exit_code == 0
    start = tmp_path / "first" / "best.safetensors"
    spoilt = ("--rate", 0.5, "--iterations", 3, "--init", start, "--out", tmp_path / "second")
    result = vdeblur(*command, *spoilt)
    assert result.exit_code == 0, result.output
    assert "the initial ones" in result.output
    first, second = (safetensors.torch.load_file(path) for path in (start, tmp_path / "second" / "best.safetensors"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_signal_to_the_whole_group_loses_nothing(tmp_path: Path, tiny: str, pairs: Path) -> None:
    """A signal to the process group, as when a service is stopped, ends the training with its state kept."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vdeblur", "train", "-m", tiny, "--dataset", str(pairs), *map(str, SMALL)]
    command += ["--workers", "2", "--iterations", "4000", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(out / "state.pt", process)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == ExitStatus.TERMINATED, said
    assert "its state is kept" in said


@pytest.mark.slow
def test_only_one_process_speaks_and_writes(tmp_path: Path, tiny: str, pairs: Path) -> None:
    command = ("-m", "vdeblur", "train", "-m", tiny, "--dataset", pairs, *SMALL, "--iterations", 1, "--json")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        torchrun(*command, "--out", tmp_path / "out"), env=environment, capture_output=True, text=True, check=True
    )
    events = [json.loads(line)["event"] for line in run.stdout.splitlines()]
    assert events.count("start") == events.count("done") == events.count("validation") == 1


@pytest.mark.slow
def test_torchrun_starts_again_where_a_process_was_killed(tmp_path: Path, tiny: str, pairs: Path) -> None:
    out = tmp_path / "out"
    command = ("-m", "vdeblur", "train", "-m", tiny, "--dataset", pairs, *SMALL, "--iterations", 24, "--out", out)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    engine = torchrun(*command)
    engine[3:3] = ["--max-restarts", "1"]
    process = subprocess.Popen(engine, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(out / "state.pt", process)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "continuing from update" in said
    assert state_of(out)["update"] == 24
    assert [int(row["update"]) for row in rows(out)] == list(range(4, 25, 4)), "each once, as if nothing had happened"


def workers_of(parent: int) -> list[int]:
    return [child.pid for child in psutil.Process(parent).children(recursive=True) if "train" in child.cmdline()]


def test_a_group_of_one_needs_no_engine() -> None:
    with distributed.joined("cpu") as group:
        assert group.is_main
        assert group.gather(3) == [3]
        assert group.agree("x") == "x"
        assert group.any(True)


# Recipes


@pytest.mark.parametrize("name", recipes.trainable())
def test_every_recipe_is_whole(name: str) -> None:
    entry = registry.find_entry(name)
    for stage in recipes.stages_of(entry):
        recipe = recipes.load_recipe(entry, stage)
        assert recipe.objective in OBJECTIVES
        assert recipe.data.frames == recipe.numbers["frames"]
        assert recipe.in_updates(5000).training.iterations >= 1000
        again = recipes.load_recipe(entry, stage, values=[("training.seed", "7")])
        assert again.training.seed == 7
        if "paper" in tomllib.loads(_text(name, stage)):
            assert recipes.load_recipe(entry, stage, paper=True).text != recipe.text


def _text(name: str, stage: str) -> str:
    file = f"{name}.{stage}.toml" if stage else f"{name}.toml"
    return (ROOT / "src/vdeblur/train/recipes" / file).read_text()


def test_every_network_that_can_be_trained_has_a_recipe() -> None:
    wanted = {entry.name for entry in registry.known_models().values() if entry.network and entry.network != "identity"}
    for entry in map(registry.find_entry, wanted):
        assert recipes.stages_of(entry), entry.name


def test_what_is_printed_can_be_given_back(vdeblur, tmp_path: Path) -> None:
    command = ("train", "-m", "dstnet", "--print-config")
    printed = vdeblur(*command, "--rate", 1e-5, "--iterations", 7)
    assert printed.exit_code == 0
    assert "# " in printed.stdout, "the sources of the numbers"
    (tmp_path / "mine.toml").write_text(printed.stdout)
    assert vdeblur(*command, "--config", tmp_path / "mine.toml").stdout == printed.stdout
    assert re.search(r"^rate = 1e-0?5", printed.stdout, re.MULTILINE)
    assert re.search(r"^iterations = 7", printed.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-m", "identity", "--print-config"), "there is no recipe for identity"),
        (("-m", "dstnet", "--stage", "second", "--print-config"), "no stage 'second'"),
        (("-m", "dstnet", "--set", "optimiser.speed=3", "--print-config"), "there is no 'optimiser.speed'"),
        (("-m", "dstnet", "--batch", "7", "--accumulate", "2", "--print-config"), "cannot be cut into 2"),
        (("-m", "dstnet", "--set", "training.batch=some", "--print-config"), "training.batch is 'some'"),
        (("-m", "dstnet"), "nothing to train on"),
        (("-m", "lite", "--paper", "--print-config"), "leave out --paper"),
    ],
)
def test_what_makes_no_sense_is_refused(vdeblur, options: tuple[str, ...], said: str) -> None:
    result = vdeblur("train", *options)
    assert result.exit_code == ExitStatus.USAGE
    assert said in result.output


def test_half_precision_with_scaled_gradients_learns_alike(vdeblur, tmp_path: Path, tiny: str, pairs: Path) -> None:
    faster = ("--set", "schedule.warm_up=1", "--rate", 0.015)  # or the output is still the input in every precision
    command = ("train", "-m", tiny, "--dataset", pairs, *SMALL, "--iterations", 6, *faster)
    losses = {}
    for precision in ("fp32", "bf16", "fp16"):
        result = vdeblur(*command, "--precision", precision, "--out", tmp_path / precision)
        assert result.exit_code == 0, result.output
        losses[precision] = float(rows(tmp_path / precision)[-1]["loss"])
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.01)
    assert len(set(losses.values())) == 3
    scale = state_of(tmp_path / "fp16")["scaler"]["scale"]
    assert scale >= 1


def test_tensorboard_gets_what_the_log_has(vdeblur, tmp_path: Path, tiny: str, pairs: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="TensorBoard is not installed: pip install 'vdeblur[tensorboard]'",
    )
    command = ("train", "-m", tiny, "--dataset", pairs, *SMALL, "--iterations", 4, "--out", tmp_path / "out")
    assert vdeblur(*command, "--tensorboard").exit_code == 0
    events = accumulator.EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    [row] = rows(tmp_path / "out")
    assert events.Scalars("psnr")[0].value == pytest.approx(float(row["psnr"]), rel=1e-5)
    assert events.Images("c")[0].width == 3 * 64


def test_a_part_of_a_set_can_be_trained_on(vdeblur, tmp_path: Path, tiny: str, pairs: Path) -> None:
    """--limit takes the first frames, --validation pairs of its own, --json tells of both."""
    command = ("train", "-m", tiny, "--dataset", pairs / "train", *SMALL, "--iterations", 1, "--limit", 4, "--json")
    result = vdeblur(*command, "--validation", pairs / "test", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.stdout.splitlines()]
    [begun] = [event for event in events if event["event"] == "training"]
    assert begun["frames"] == 4 * 2
    assert events[-1]["event"] == "done"


@pytest.mark.slow
def test_from_sharp_footage_to_a_restored_clip(vdeblur, tmp_path: Path, tiny: str) -> None:
    """synth, train, bench, run: what a user with a camera does; the loss falls, and bench agrees with validation."""
    films = []
    for number, place in enumerate(("-0.7435:start_y=0.1314", "-1.25:start_y=0.02", "0.28:start_y=0.008")):
        films.append(tmp_path / f"take{number}.mkv")
        still = f"mandelbrot=size=320x128:start_x={place}:start_scale=0.01:maxiter=300,trim=end_frame=1"
        pan = f"loop=49:1,setpts=N/25/TB,crop=96:64:x='10+{number + 3}*0.25*n':y='30+8*sin(n/9)'"
        clips.ffmpeg("-f", "lavfi", "-i", f"{still},{pan}", "-pix_fmt", "bgr0", "-c:v", "ffv1", films[-1])
    made = tmp_path / "pairs"
    result = vdeblur("synth", *films, made, "--average", 9, "--test-share", 0.34, "--blur", "blur")
    assert result.exit_code == 0, result.output

    out = tmp_path / "out"
    command = ("train", "-m", tiny, "--dataset", made, "--crop", 64, "--batch", 8, "--workers", 0, "--device", "cpu")
    rates = ("--rate", 1e-3, "--set", "schedule.warm_up=5", "--ema", 0.9, "--set", "training.validation_frames=1000")
    result = vdeblur(*command, *rates, "--iterations", 120, "--validate-every", 20, "--out", out)
    assert result.exit_code == 0, result.output
    scores = [float(row["psnr"]) for row in rows(out) if row["psnr"]]
    losses = [float(row["loss"]) for row in rows(out)]
    assert losses[-1] < losses[0] - 0.05

    assert vdeblur("models", "import", out / "best.safetensors", "--as", f"{tiny}@mine").exit_code == 0
    report = tmp_path / "bench.json"
    bench = ("bench", "--dataset", made, "--split", "test", "-m", f"{tiny}@mine", "--report", report)
    assert vdeblur(*bench, "--device", "cpu", "-p", "fp32").exit_code == 0
    measured = {model["model"]: model["psnr"] for model in json.loads(report.read_text())["models"]}
    assert measured[tiny] == pytest.approx(max(scores), abs=0.05)  # weights are kept in half precision

    blurry = sorted((made / "test").glob("*/blur"))[0]
    assert vdeblur("run", blurry, tmp_path / "sharp", "-m", f"{tiny}@mine", "--device", "cpu").exit_code == 0
    assert len(list((tmp_path / "sharp").iterdir())) == len(list(blurry.iterdir()))
