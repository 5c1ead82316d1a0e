"""`-m auto`: the footage and the machine choose model, weights and strength; and the page of candidates."""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import safetensors.torch
import torch
from click.testing import Result

from vdeblur.datasets.pictures import write_png
from vdeblur.errors import DeviceError, ModelError
from vdeblur.models import cache, choice, registry
from vdeblur.networks.lite import Lite
from vdeblur.run.context import Context, RunResult
from vdeblur.run.file_run import run_file
from vdeblur.run.jobs import RunJob
from vdeblur.settings import Settings

ENTRY = """
[{name}]
network = "lite"
description = "drawn"
arguments = {{ channels = 8, blocks = 1 }}
license = "MIT"
gmacs = {gmacs}
"""
WEIGHTS = """
[{name}.weights.{weights}]
file = "{weights}.safetensors"
sources = [{source}]
trained_on = "{data}"
suits = "{suits}"
scores = [{{ data = "{scored}", psnr = {psnr} }}]
"""
BY_HAND = '{ kind = "manual", page = "https://toys.example/page" }'
ASKS = f'{{ kind = "https", url = "https://toys.example/x" }}, {BY_HAND}'


def weights(name: str, label: str, data: str, suits: str, psnr: float, source: str = BY_HAND) -> str:
    return WEIGHTS.format(
        name=name, weights=label, data=data, scored=data, suits=suits, psnr=psnr, source=source
    )  # fmt: skip


# quick is cached and restores a frame in no time, slow is cached, far has to be asked for.
REGISTRY = (
    ENTRY.format(name="quick", gmacs=1)
    + weights("quick", "bsd-2ms16ms", "BSD 2ms16ms", "real", 31)
    + weights("quick", "bsd-1ms8ms", "BSD 1ms8ms", "real", 33)
    + weights("quick", "gopro", "GoPro", "strong", 40)
    + ENTRY.format(name="slow", gmacs=50_000)
    + weights("slow", "gopro", "GoPro", "strong", 41)
    + ENTRY.format(name="far", gmacs=1)
    + weights("far", "handheld", "phones", "real", 35, ASKS)
)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vdeblur) -> None:
    """Models with drawn weights in the cache, on a machine of a certain speed; those of the package are not cached."""
    (tmp_path / "registry.toml").write_text(REGISTRY)
    monkeypatch.setenv("VDEBLUR_REGISTRY", str(tmp_path / "registry.toml"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(choice, "multiply_adds_per_second", lambda chosen, precision: 1e10)
    torch.manual_seed(1)
    file = tmp_path / "drawn.safetensors"
    safetensors.torch.save_file(Lite(channels=8, blocks=1).state_dict(), file)
    for name in ("quick@bsd-2ms16ms", "quick@bsd-1ms8ms", "quick@gopro", "slow@gopro"):
        assert vdeblur("models", "import", file, "--as", name).exit_code == 0


def make_clip(folder: Path, step: int, blur: int, frames: int = 8) -> Path:
    """Write a texture that moves by `step` pixels a frame, averaged over `blur` pixels of its way."""
    generator = numpy.random.default_rng(1)
    height, width = 96, 128 + step * frames + blur
    texture = numpy.full((height, width), 128.0)
    for side in (3, 5, 9, 15):  # odd: the measure looks at every second pixel
        blocks = generator.uniform(-30, 30, (height // side + 1, width // side + 1))
        texture += blocks.repeat(side, 0).repeat(side, 1)[:height, :width]
    for index in range(frames):
        at = step * (frames - 1 - index)
        moved = numpy.mean([texture[:, at + shift : at + shift + 128] for shift in range(blur + 1)], 0)
        picture = torch.from_numpy(moved.clip(0, 255).round().astype(numpy.uint8))
        write_png(folder / f"{index}.png", picture.expand(3, -1, -1))
    return folder


FOOTAGE = {"sharp": (4, 0), "mild": (4, 2), "real": (4, 3), "strong": (8, 6)}


def chosen(result: Result) -> dict[str, object]:
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.stdout.splitlines()]
    [found] = [event for event in events if event["event"] == "choice"]
    assert found["asked"] == "auto"
    return found


@pytest.mark.parametrize(
    ("footage", "kind", "model", "strength"),
    [
        ("sharp", "sharp", "lite", 0.5),
        ("mild", "real", "quick@bsd-1ms8ms", 1.0),
        ("real", "real", "quick", 1.0),
        ("strong", "strong", "quick@gopro", 1.0),
    ],
)
def test_the_footage_chooses(
    vdeblur, tmp_path: Path, models: None, footage: str, kind: str, model: str, strength: float
) -> None:
    """Weights trained on GoPro, whatever they score, are never taken for mild real blur."""
    clip = make_clip(tmp_path / "in", *FOOTAGE[footage])
    result = vdeblur("run", clip, tmp_path / "out.mkv", "-m", "auto", "--json")
    found = chosen(result)
    assert (found["footage"], found["model"], found["strength"]) == (kind, model, strength)
    plan = next(event for event in map(json.loads, result.stdout.splitlines()) if event["event"] == "plan")
    assert plan["model"] == model
    assert plan["reasons"]["model"] == "it suits the footage and this machine"


def test_what_is_passed_over_is_named_in_one_line(vdeblur, tmp_path: Path, models: None) -> None:
    clip = make_clip(tmp_path / "in", *FOOTAGE["strong"])
    result = vdeblur("run", clip, tmp_path / "out.mkv", "-m", "auto", "--strength", "0.8")
    assert result.exit_code == 0, result.output
    [line] = [line for line in result.stderr.splitlines() if line.startswith("auto: ")]
    assert line.startswith("auto: quick@gopro: strong shake in ")
    assert "it learned from GoPro" in line
    assert re.search(r"; passed over: slow \(would take 4\.2 hours\)$", line)


def test_sharp_footage_is_left_nearly_as_it_is(vdeblur, tmp_path: Path, models: None) -> None:
    clip = make_clip(tmp_path / "in", *FOOTAGE["sharp"], frames=4)
    result = vdeblur("run", clip, tmp_path / "out", "-m", "auto", "--pictures")
    assert "sharp already, so deblurring will not help" in result.stderr
    result = vdeblur("compare", clip, tmp_path / "out", "--metrics", "--json")
    assert json.loads(result.stdout)["psnr"] > 40


def test_a_small_part_of_the_picture_takes_less_time(vdeblur, tmp_path: Path, models: None) -> None:
    """`-m auto` passed models over that were quick enough for the region."""
    clip = make_clip(tmp_path / "in", *FOOTAGE["strong"], frames=4)
    run = ("run", clip, tmp_path / "out.mkv", "-m", "auto", "--json", "--dry-run")
    assert chosen(vdeblur(*run))["model"] == "quick@gopro"
    assert chosen(vdeblur(*run, "--region", "64x24+8+8"))["model"] == "slow"


def test_auto_never_asks_and_obeys_limits(vdeblur, tmp_path: Path, models: None, monkeypatch) -> None:
    clip = make_clip(tmp_path / "in", *FOOTAGE["strong"], frames=4)
    monkeypatch.setattr(choice, "multiply_adds_per_second", lambda chosen, precision: 1e4)
    found = chosen(vdeblur("run", clip, tmp_path / "out.mkv", "-m", "auto", "--json", "--dry-run"))
    assert found["model"] == "lite"
    assert any("would take" in text for text in found["passed_over"])  # type: ignore[attr-defined]
    result = vdeblur("run", clip, tmp_path / "x.mkv", "-m", "auto", "--weights", tmp_path / "drawn.safetensors")
    assert result.exit_code == 2
    assert "auto uses published weights only" in result.stderr
    for command in (("inspect", clip, "-m", "auto", "-o", tmp_path / "dir"), ("models", "show", "auto")):
        assert vdeblur(*command).exit_code in (2, 5)


def test_what_cannot_be_downloaded_is_passed_over(vdeblur, tmp_path: Path, models: None, monkeypatch) -> None:
    def fail(entry: registry.ModelEntry, weights: registry.Weights, talk: object) -> Path:
        if entry.name == "quick":
            raise ModelError("no network", "try again")
        return real(entry, weights, talk)

    real = cache.obtain_weights
    monkeypatch.setattr(cache, "obtain_weights", fail)
    clip = make_clip(tmp_path / "in", *FOOTAGE["strong"])
    found = chosen(vdeblur("run", clip, tmp_path / "out.mkv", "-m", "auto", "--json"))
    assert found["model"] == "lite"
    passed_over = found["passed_over"]
    assert isinstance(passed_over, list)
    assert any("quick" in each and "cannot be downloaded now" in each for each in passed_over)


def test_a_resumed_run_keeps_its_choice(vdeblur, tmp_path: Path, models: None, monkeypatch) -> None:
    """A busier machine, or weights that came meanwhile, would void all finished segments."""
    clip = make_clip(tmp_path / "in", *FOOTAGE["strong"])
    run = ("run", clip, tmp_path / "out.mkv", "-m", "auto", "--json", "--segment", "0.08")
    assert chosen(vdeblur(*run, "--share", "1/2"))["model"] == "quick@gopro"
    monkeypatch.setattr(choice, "multiply_adds_per_second", lambda chosen, precision: 1e4)
    assert chosen(vdeblur(*run, "--dry-run", "--no-resume"))["model"] == "lite"
    result = vdeblur(*run, "--dry-run")
    assert chosen(result)["model"] == "quick@gopro"
    plan = next(event for event in map(json.loads, result.stdout.splitlines()) if event["event"] == "plan")
    assert plan["frames_done"], "its segments are of use"
    assert vdeblur("models", "remove", "quick@gopro").exit_code == 0
    assert chosen(vdeblur(*run, "--dry-run"))["model"] == "lite", "weights that are gone are not asked for"


@pytest.mark.parametrize("asked", ["identity", "auto"])
def test_a_run_of_another_kind_or_input_chooses_nothing(vdeblur, tmp_path: Path, models: None, asked: str) -> None:
    """`-m auto` took any model that a run for the same output had used before."""
    sharp, strong = (make_clip(tmp_path / name, *FOOTAGE[name], frames=4) for name in ("sharp", "strong"))
    out, first = tmp_path / "out.mkv", strong if asked == "identity" else sharp
    options = ("--json", "--segment", "0.08")
    assert vdeblur("run", first, out, "-m", asked, *options, "--share", "1/2").exit_code == 0
    found = chosen(vdeblur("run", strong, out, "-m", "auto", *options, "--dry-run"))
    assert (found["model"], found["strength"]) == ("quick@gopro", 1.0)


class InOneProcess:
    """A cluster that does its tasks here, one after the other."""

    exceptions = SimpleNamespace(RayTaskError=KeyError, RayError=KeyError)

    def __init__(self) -> None:
        self.models: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., dict[str, float]]:
        return lambda *given, **options: {"CPU": 2.0}

    def remote(self, **resources: float) -> Callable[[Callable[..., RunResult]], SimpleNamespace]:
        def submit(work: Callable[..., RunResult], job: RunJob, settings: Settings, *given: object) -> object:
            self.models.append(settings.model)
            return partial(work, job, settings, *given)

        return lambda work: SimpleNamespace(remote=partial(submit, work))

    def wait(self, tasks: list[object], **options: float) -> tuple[list[object], list[object]]:
        return tasks[:1], tasks[1:]

    def get(self, task: Callable[[], RunResult]) -> RunResult:
        return task()


def test_a_cluster_chooses_once(vdeblur, tmp_path: Path, models: None, monkeypatch) -> None:
    """Each task chose for itself: machines of two speeds cleared each other's segments."""
    ray = InOneProcess()
    monkeypatch.setitem(sys.modules, "ray", ray)
    clip = make_clip(tmp_path / "in", *FOOTAGE["strong"])
    run = ("run", clip, tmp_path / "out.mkv", "-m", "auto", "--segment", "0.08", "--json", "--engine", "ray")
    assert chosen(vdeblur(*run))["model"] == "quick@gopro"
    assert ray.models == ["quick@gopro"] * 3
    assert (tmp_path / "out.mkv").is_file()


def test_a_moment_is_restored_by_the_chosen_model(vdeblur, tmp_path: Path, models: None) -> None:
    clip = make_clip(tmp_path / "in", *FOOTAGE["strong"], frames=5)
    result = vdeblur("still", clip, "--at", "0.08", "-m", "auto", "-o", tmp_path / "x.png", "--json")
    assert chosen(result)["model"] == "quick@gopro"
    assert '"model": "quick@gopro"' in result.stdout.splitlines()[-2]


def test_a_page_of_candidates(vdeblur, tmp_path: Path, models: None) -> None:
    clip = make_clip(tmp_path / "in", *FOOTAGE["real"])
    page = tmp_path / "page.html"
    result = vdeblur("run", clip, page, "-m", "auto", "--sample", "--json")
    assert result.exit_code == 0, result.output
    sample = next(event for event in map(json.loads, result.stdout.splitlines()) if event["event"] == "sample")
    rows = {row["model"]: row for row in sample["candidates"]}
    assert list(rows) == ["quick", "quick@bsd-1ms8ms", "lite"]
    assert [row["is_chosen"] for row in rows.values()] == [True, False, False]
    assert all(row["seconds_estimate"] > 0 and row["bytes_estimate"] > 0 for row in rows.values())
    text = page.read_text("utf-8")
    assert text.count("<img ") == 4 * 4  # four frames of the input and of three candidates
    assert "far@handheld" not in text.split("<h2>")[1]
    assert "quick (chosen)" in text
    assert "Passed over: " in text
    assert "about 1 second<" in text
    assert [path.name for path in tmp_path.iterdir() if "sample" in path.name] == []


def test_a_candidate_that_the_memory_cannot_hold_is_left_out(
    vdeblur, tmp_path: Path, models: None, monkeypatch
) -> None:
    """One lack of memory ended the whole page."""
    clip, page = make_clip(tmp_path / "in", *FOOTAGE["strong"], frames=4), tmp_path / "page.html"

    def fail(context: Context) -> RunResult:
        if context.settings.model == "quick@gopro":
            raise DeviceError("the device is out of memory", "use --tile 512")
        return run_file(context)

    monkeypatch.setattr("vdeblur.run.sample.run_file", fail)
    result = vdeblur("run", clip, page, "-m", "auto", "--sample", "--json")
    assert result.exit_code == 0, result.output
    assert "there is no sample of quick@gopro: the device is out of memory" in result.output
    assert "quick@gopro (the device is out of memory)" in page.read_text("utf-8")


@pytest.mark.parametrize("options", [(), ("-m", "lite"), ("-m", "best")])
def test_a_page_needs_auto(vdeblur, tmp_path: Path, options: tuple[str, ...]) -> None:
    clip = make_clip(tmp_path / "in", 4, 0, 3)
    result = vdeblur("run", clip, tmp_path / "page.html", "--sample", *options)
    assert result.exit_code == 2
    assert f"a page of samples needs -m auto, not {' '.join(options) or '-m lite'} (add -m auto" in result.stderr


def test_names_that_choose_are_no_models(vdeblur) -> None:
    """`models show best` was answered with a list that ended in "or best"."""
    for name in registry.CHOSEN_NAMES:
        result = vdeblur("models", "show", name)
        assert result.exit_code == 5
        assert f"`run -m {name}` chooses a model for each video" in result.stderr


def test_all_published_weights_name_their_footage(vdeblur, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "multiply_adds_per_second", lambda chosen, precision: 1e10)
    for entry in registry.known_models().values():
        for found in entry.weights.values():
            assert bool(found.suits) == bool(entry.network), f"{entry.name}@{found.name}"
    assert "suits: real blur" in vdeblur("models", "show", "dstnet@bsd-1ms8ms").stdout
    row = next(line for line in vdeblur("models", "list").stdout.splitlines() if "dstnet@bsd" in line)
    assert " real " in row


@pytest.mark.slow
def test_the_cost_of_lite_is_what_bench_counts(vdeblur) -> None:
    """`models show lite` named 3 as its multiply-adds, which only estimates of time use."""
    from vdeblur.bench.network_speed import count_flops

    entry = registry.find_entry("lite")
    flops = count_flops(entry.build().eval(), torch.device("cpu"), 64, 64)
    assert entry.gmacs == pytest.approx(flops * (256 / 64) ** 2 / 2e9, rel=0.01)
    assert entry.time_gmacs == 3
