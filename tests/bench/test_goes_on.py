"""A bench keeps what it can measure: without a model whose weights are missing, and when it is stopped."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests import clips
from vdeblur.bench import speed
from vdeblur.bench.speed_results import NetworkSeconds, NetworkSpeed, SpeedTask
from vdeblur.cli.speed import run_speed
from vdeblur.errors import ExitStatus, InterruptedRunError


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two sequences of two pairs, made here."""
    for place in ("one/blur", "one/sharp", "two/blur", "two/sharp"):
        folder = tmp_path / "pairs" / place
        folder.mkdir(parents=True)
        clips.make(folder / "%03d.png", pix_fmt="rgb24", frames=2, codec=("-c:v", "png"))
    return tmp_path / "pairs"


def test_a_missing_model_does_not_stop_the_others(vdeblur, pairs: Path, tmp_path: Path) -> None:
    """D7: one model whose weights are not available ended the bench before anything was measured."""
    report = tmp_path / "report.json"
    arguments = ("bench", "--dataset", pairs, "--model", "dstnet,lite", "--offline", "--report", report)
    result = vdeblur(*arguments)
    assert result.exit_code == 0, result.output
    assert "warning: dstnet is not measured: " in result.output
    assert "dstnet was not measured: " in result.output
    found = json.loads(report.read_text())
    assert [model["model"] for model in found["models"]] == ["lite", "identity", "unsharp", "cas"]
    assert [row["model"] for row in found["missing"]] == ["dstnet"]
    assert "not in the cache" in found["missing"][0]["reason"]


def test_without_any_model_there_is_nothing_to_measure(vdeblur, pairs: Path) -> None:
    """D7: if no model is left, the error is the first one's."""
    result = vdeblur("bench", "--dataset", pairs, "--model", "dstnet", "--offline")
    assert result.exit_code == ExitStatus.MODEL
    assert "not in the cache" in result.output


def stub(task: dict[str, Any], stop: Any) -> dict[str, Any]:
    """Measure nothing; stop in the second model, after a long time in its first part."""
    if task.get("model") == "identity":
        stop()
        raise InterruptedRunError(ExitStatus.INTERRUPTED)
    if task["part"] == "network":
        return asdict(NetworkSpeed("fp32", True, 10, None, 2.0, NetworkSeconds(0.5, 0.5), 0.1, None, None, {}))
    if task["part"] == "pipeline":
        return {"pipeline_fps": 1.0, "memory_bytes": 10, "device_memory_bytes": None}
    return {"decoder_fps": 100.0, "encoder_fps": 10.0}


def test_a_stopped_measurement_of_speed_keeps_what_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """D7: Ctrl-C lost everything, and nothing moved for minutes."""
    monkeypatch.setattr(speed, "run_part", stub)
    monkeypatch.setattr(speed, "BEAT_SECONDS", 0.0)
    report = tmp_path / "speed.json"
    with pytest.raises(InterruptedRunError, match="1 of 2 models"):
        run_speed(SpeedTask(["lite", "identity"], ["fp32"], "64x48", 4, "cpu"), report, False, lambda: None)
    table, messages = capsys.readouterr()
    assert "lite" in table
    assert [row["model"] for row in json.loads(report.read_text())["models"]] == ["lite"]
    assert "identity fp32 network: 0:00 so far (part 4 of 6)" in messages


def test_training_offline_points_to_the_stage_before(vdeblur, pairs: Path, tmp_path: Path) -> None:
    """D7: `train --model pvdnet` without a network did not name the stage that makes its start."""
    result = vdeblur("train", "-m", "pvdnet", "--dataset", pairs, "--offline", "--out", tmp_path / "out")
    assert result.exit_code == ExitStatus.MODEL, result.output
    assert "vdeblur train -m pvdnet --stage bimnet" in result.output
    assert "--set start.bimnet=runs/pvdnet-bimnet/last.safetensors" in result.output


def test_an_unknown_part_ends_a_training_before_its_data_are_opened(vdeblur, pairs: Path, tmp_path: Path) -> None:
    """The pairs are too short for the recipe: a complaint about them would come first."""
    command = ("train", "-m", "dstnet", "--dataset", pairs, "--freeze", "gates", "--device", "cpu")
    result = vdeblur(*command, "--out", tmp_path / "out")
    assert result.exit_code == ExitStatus.USAGE, result.output
    assert "no part of the network is called 'gates'" in result.output
