"""`--model best`: the strongest model that is available and fast enough."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests import clips
from vdeblur.events import Talk
from vdeblur.models import choice, registry

CPU = torch.device("cpu")


def best(rate: float, monkeypatch: pytest.MonkeyPatch, frames: int | None = 300, **talk: bool) -> choice.Choice:
    monkeypatch.setattr(choice, "multiply_adds_per_second", lambda chosen, precision: rate)
    return choice.strongest(CPU, "auto", 720, 1280, frames, Talk(**talk))


def test_the_faster_the_machine_the_stronger_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    strongest, *_, weakest = choice.ranking()
    assert best(1e15, monkeypatch, yes=True).model == strongest.name
    assert best(1e6, monkeypatch, yes=True).model == "lite"
    scores = [choice.published_psnr(entry) or 0 for entry in choice.ranking()]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] == choice.published_psnr(weakest)
    chosen = [best(10**exponent, monkeypatch, yes=True).model for exponent in (10.5, 11, 11.5, 12, 12.5)]
    strength = [choice.published_psnr(registry.find_entry(name)) or 0 for name in chosen]
    assert strength == sorted(strength), "more speed never gives a weaker model"
    assert len(set(chosen)) > 1


def test_longer_videos_take_lighter_models(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = (best(3e11, monkeypatch, frames, yes=True).model for frames in (30, 100_000))
    assert short != "lite"
    assert long == "lite"
    assert (
        best(3e11, monkeypatch, None, yes=True).model == best(3e11, monkeypatch, choice.UNKNOWN_FRAMES, yes=True).model
    )


def test_models_that_ask_before_their_download_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    unasked = best(1e15, monkeypatch)
    entry = registry.find_entry(unasked.model)
    assert entry.weights[entry.default or ""].verification == "pinned"
    assert "--yes" in unasked.reason, "a stronger one is named"
    assert best(1e15, monkeypatch, offline=True).model == "lite"


def test_a_rate_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rounds take 100, 4, 2 and 3 s here; the second fastest counts."""
    readings = iter([0, 100, 200, 204, 300, 302, 400, 403])
    monkeypatch.setattr(choice, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    with FlopCounterMode(display=False) as counter:
        rate = choice.multiply_adds_per_second(CPU, "fp32")
    assert rate == pytest.approx(counter.get_total_flops() / 4 / 2 / 3), "two operations are a multiply-add"


def test_run_says_what_it_chose_and_why(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=2)
    result = vdeblur("run", source, tmp_path / "out.mkv", "-m", "best", "--offline")
    assert result.exit_code == 0, result.output
    assert "best here: lite, " in result.output
    result = vdeblur("run", source, tmp_path / "other.mkv", "-m", "best", "--weights", tmp_path / "x.pt")
    assert result.exit_code == 2
    assert "needs the model it is for" in result.output
