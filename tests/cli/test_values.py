"""Odd values of options, names and files: one clear line each, never a traceback."""

import json
import sys
import types
from pathlib import Path

import numpy
import pytest
import safetensors.torch
import torch

from tests import clips
from vdeblur.datasets import pictures
from vdeblur.errors import ExitStatus
from vdeblur.models import registry
from vdeblur.run import doctor

TINY = """
[lite-tiny]
network = "lite"
arguments = { channels = 8, blocks = 1 }
description = "lite, for tests"
license = "MIT"
no_weights = "it is for tests"

[lite-twin]
network = "lite"
arguments = { channels = 8, blocks = 1 }
description = "the same network, for tests"
license = "MIT"
no_weights = "it is for tests"

[pvdnet-tiny]
network = "pvdnet"
arguments = { channels = 8, blocks = 1 }
description = "PVDNet, for tests"
license = "MIT"
no_weights = "it is for tests"
"""
TRAIN = ("--crop", 32, "--batch", 1, "--workers", 0, "--device", "cpu", "--validate-every", 1, "--iterations", 1)


def refused(result, status: int, words: str) -> None:
    """Check that a command ended with this status and one line with these words."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("vdeblur: ")]
    assert (result.exit_code, len(lines)) == (status, 1), result.output
    assert words in lines[0]
    assert "Traceback" not in result.output
    assert "internal error" not in result.output


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return clips.make(tmp_path / "in.mkv", frames=3)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "registry.toml").write_text(TINY)
    monkeypatch.setenv("VDEBLUR_REGISTRY", str(tmp_path / "registry.toml"))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A sequence to train on and one to validate, of three frames each, in GoPro's layout."""
    rng = numpy.random.default_rng(0)
    for name in ("train/a", "test/b"):
        for kind in ("blur", "sharp"):
            for index in range(6):
                picture = torch.from_numpy(rng.integers(0, 256, (3, 40, 48), dtype=numpy.uint8))
                pictures.write_png(tmp_path / "pairs" / name / kind / f"{index:06}.png", picture)
    return tmp_path / "pairs"


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-nan"])
@pytest.mark.parametrize("option", ["--strength", "--crf", "--segment"])
def test_numbers_of_run_are_finite(vdeblur, clip: Path, option: str, value: str) -> None:
    """B: --strength nan made a black video with exit 0, --segment nan an internal error."""
    output = clip.with_name("out.mkv")
    refused(vdeblur("run", clip, output, "-m", "identity", f"{option}={value}"), ExitStatus.USAGE, value.lstrip("-"))
    assert not output.exists()


@pytest.mark.parametrize(
    "words",
    [("synth", "in", "out", "--scale"), ("synth", "in", "out", "--test-share"), ("train", "-m", "lite", "--rate"),
     ("train", "-m", "lite", "--ema"), ("synth", "in", "out", "--duty"), ("synth", "in", "out", "--noise")],
)  # fmt: skip
def test_numbers_of_other_commands_are_finite(vdeblur, words: tuple[str, ...]) -> None:
    """B: NaN lies in no range."""
    refused(vdeblur(*words, "nan"), ExitStatus.USAGE, "nan")


@pytest.mark.parametrize(
    "options", [("--share", "²/3"), ("--share", "1/²"), ("--tile", "²"), ("--tile", "64x²"), ("--tile", "9" * 5000)]
)
def test_digits_of_run(vdeblur, clip: Path, options: tuple[str, str]) -> None:
    """B: str.isdigit takes a superscript for a digit, int() does not."""
    refused(
        vdeblur("run", clip, clip.with_name("out.mkv"), "-m", "identity", *options), ExitStatus.USAGE, options[1][:9]
    )


def test_digits_of_sizes_and_presets(vdeblur, clip: Path) -> None:
    """B: --size 64x² and a preset of ² were internal errors, or FFmpeg's own words."""
    refused(vdeblur("synth", clip, "out", "--size", "64x²"), ExitStatus.USAGE, "'64x²' is not WIDTHxHEIGHT")
    refused(vdeblur("synth", clip, "out", "--size", "1" * 5000), ExitStatus.USAGE, "is not WIDTHxHEIGHT")
    result = vdeblur("run", clip, clip.with_name("out.webm"), "-m", "identity", "--preset", "²")
    refused(result, ExitStatus.USAGE, "no preset '²'")


def test_digits_of_file_names(vdeblur, tmp_path: Path) -> None:
    """B: a picture named a².png was an internal error."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a².png", "a10.png", "a٣.png", "a2.png"):
        pictures.write_png(folder / name, torch.zeros(3, 16, 16, dtype=torch.uint8))
    result = vdeblur("run", folder, tmp_path / "out", "-m", "identity")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out").iterdir())) == 4


@pytest.mark.parametrize("value", ["1:-30", "1/3", "1e3", "1_0", "1:2:3:4", "٣", ":5", "5:", "nan", "1:90"])
def test_times_are_ffmpegs(vdeblur, clip: Path, value: str) -> None:
    """B: -ss 1:-30 was 30 seconds."""
    refused(vdeblur("run", clip, clip.with_name("out.mkv"), "-ss", value), ExitStatus.USAGE, f"{value!r} is not a time")


def weights_of(path: Path, model: str, **training: str) -> Path:
    """Write random weights of a model, as training writes them."""
    torch.manual_seed(0)
    state = registry.find_entry(model).build().state_dict()
    metadata = {"training": json.dumps({"model": model, "stage": "", **training})}
    safetensors.torch.save_file({key: value.contiguous() for key, value in state.items()}, path, metadata)
    return path


@pytest.mark.usefixtures("tiny")
def test_weights_of_another_variant_are_refused(vdeblur, clip: Path, tmp_path: Path) -> None:
    """B: weights that fit, but were trained as another model, ran without a word."""
    own, twin = (
        weights_of(tmp_path / "own.safetensors", "lite-tiny"),
        weights_of(tmp_path / "twin.safetensors", "lite-twin"),
    )
    output = tmp_path / "out.mkv"
    refused(
        vdeblur("run", clip, output, "-m", "lite-tiny", "--weights", twin), ExitStatus.MODEL, "trained as lite-twin"
    )
    refused(vdeblur("models", "import", twin, "--as", "lite-tiny@mine"), ExitStatus.MODEL, "trained as lite-twin")
    assert not output.exists()
    assert vdeblur("run", clip, output, "-m", "lite-tiny", "--weights", own).exit_code == 0


@pytest.mark.usefixtures("tiny")
def test_weights_of_a_partial_stage_are_refused(vdeblur, clip: Path, tmp_path: Path) -> None:
    """B: after `train --stage bimnet` only BIMNet is trained; the untrained rest made noise of the video."""
    path = weights_of(tmp_path / "bimnet.safetensors", "pvdnet-tiny", stage="bimnet")
    result = vdeblur("run", clip, tmp_path / "out.mkv", "-m", "pvdnet-tiny", "--weights", path)
    refused(result, ExitStatus.MODEL, "is of the stage bimnet")


@pytest.mark.usefixtures("tiny")
def test_a_training_starts_from_named_weights(vdeblur, pairs: Path, tmp_path: Path) -> None:
    """B: --init lite@v1.0 was taken for a path; weights of another model of the same network may start a training."""
    command = ("train", "-m", "lite-tiny", "--dataset", pairs, *TRAIN)
    path = weights_of(tmp_path / "w.safetensors", "lite-tiny")
    assert vdeblur("models", "import", path, "--as", "lite-tiny@v1.0").exit_code == 0
    result = vdeblur(*command, "--init", "lite-tiny@v1.0", "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    refused(
        vdeblur(*command, "--init", "lite-tiny@v2.0", "--out", tmp_path / "b"), ExitStatus.MODEL, "no weights 'v2.0'"
    )
    missing = vdeblur(*command, "--init", "lite-tiny.pth", "--out", tmp_path / "c")
    refused(missing, ExitStatus.MODEL, "lite-tiny.pth: no such file")
    twin = weights_of(tmp_path / "twin.safetensors", "lite-twin")
    assert vdeblur(*command, "--init", twin, "--out", tmp_path / "d").exit_code == 0


@pytest.mark.usefixtures("tiny")
def test_junk_in_a_training(vdeblur, pairs: Path, tmp_path: Path) -> None:
    """C low: a log.csv or state.pt of other content was an internal error."""
    out = tmp_path / "out"
    command = ("train", "-m", "lite-tiny", "--dataset", pairs, "--out", out, *TRAIN[:-1])
    assert vdeblur(*command, 1).exit_code == 0
    right = (out / "log.csv").read_bytes()
    for junk in (
        b"update,loss\nmany,2\n",
        b"a,b\n1,2\n",
        bytes(range(256)),
        b"update\n1,2,3\n",
        "update\n²\n".encode(),
    ):
        (out / "log.csv").write_bytes(junk)
        refused(vdeblur(*command, 2, "--resume"), ExitStatus.OUTPUT, "log.csv is not a log of vdeblur train")
        assert (out / "log.csv").read_bytes() == junk
    (out / "log.csv").write_bytes(right + right.splitlines()[-1][:3])  # killed while it wrote a row
    assert vdeblur(*command, 2, "--resume").exit_code == 0
    assert (out / "log.csv").read_bytes().startswith(right)
    state = torch.load(out / "state.pt", weights_only=True)
    for junk_state in ([1, 2], {"x": 1}, {key: value for key, value in state.items() if key != "recipe"}):
        torch.save(junk_state, out / "state.pt")
        refused(vdeblur(*command, 3, "--resume"), ExitStatus.INPUT, "state.pt cannot be read")
    torch.save({**state, "plateau": 5}, out / "state.pt")
    refused(vdeblur(*command, 3, "--resume"), ExitStatus.USAGE, "has other options")


GOOD = '[x]\nnetwork = "lite"\ndescription = "x"\nlicense = "MIT"\n'


@pytest.mark.parametrize(
    "text",
    ["x = 3", "[[x]]", "x = []", GOOD.replace('"lite"', '["lite"]'), GOOD + "arguments = 3", GOOD + 'gmacs = "many"',
     GOOD + "gmacs = true", GOOD + "prefix = 5", GOOD + "weights = 1", GOOD + "[x.weights]\na = 1",
     GOOD + "ignored = 1",
     GOOD + 'scores = [{ data = 1, psnr = "x" }]', GOOD + 'scores = ["x"]', GOOD + "default = []",
     GOOD + '[x.weights.a]\nfile = 3\nsources = []', GOOD + '[x.weights.a]\nfile = "f"\nsources = ["x"]',
     GOOD + '[x.weights.a]\nfile = "f"\nsources = [{ kind = "https", url = 5 }]',
     GOOD + '[x.weights.a]\nfile = "f"\nsize = "big"\nsources = []', "x = " + "[" * 5000 + "]" * 5000],
    ids=lambda text: text[-30:],
)  # fmt: skip
def test_junk_in_a_registry(vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """C low: values of other kinds in VDEBLUR_REGISTRY were internal errors."""
    (tmp_path / "more.toml").write_text(text)
    monkeypatch.setenv("VDEBLUR_REGISTRY", str(tmp_path / "more.toml"))
    refused(vdeblur("models", "list"), ExitStatus.MODEL, "more.toml")


@pytest.mark.parametrize("names", [("stdin",), ("stdout",), ("stdin", "stderr")])
def test_doctor_without_standard_streams(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    """B: `vdeblur doctor <&-` was an internal error."""
    for name in names:
        monkeypatch.setattr(sys, name, None)
    checks = list(doctor._settings([]))
    monkeypatch.undo()
    assert checks[-1].name == "terminal"


def test_ray_plans_a_dry_run_here(vdeblur, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B: a dry run started a cluster, and said that it had restored the video."""
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))  # without `init`
    result = vdeblur("run", clip, clip.with_name("out.mkv"), "-m", "identity", "--engine", "ray", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    events = [json.loads(line)["event"] for line in result.stdout.splitlines()]
    assert "plan" in events
    assert "file_done" not in events
    assert "engine" not in events
    assert not clip.with_name("out.mkv").exists()


@pytest.mark.parametrize("device", ["cuda:1", "cuda:0"])
def test_ray_chooses_the_gpu(vdeblur, clip: Path, device: str) -> None:
    """B: each task sees only the GPU that Ray gives it, so cuda:1 failed in every one."""
    result = vdeblur("run", clip, clip.with_name("out.mkv"), "-m", "identity", "--engine", "ray", "-d", device)
    refused(result, ExitStatus.USAGE, f"{device} names none")
    assert "use -d cuda)" in result.stderr


def test_pairs_of_odd_sizes(vdeblur, tmp_path: Path) -> None:
    """B: at odd sizes, the four clips in ten that are compressed failed."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = numpy.random.default_rng(0)
    for index in range(2):
        picture = torch.from_numpy(rng.integers(0, 256, (3, 240, 320), dtype=numpy.uint8))
        pictures.write_png(folder / f"{index}.png", picture)
    options = ("--way", "random", "--clips", 8, "--size", "33x33", "--frames", 2)
    result = vdeblur("synth", folder, tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    made = list((tmp_path / "out").glob("*/*/blur*/*.png"))
    assert len(made) == 16
    assert {tuple(pictures.read_rgb(path).shape) for path in made} == {(3, 33, 33)}
