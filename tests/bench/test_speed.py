"""`vdeblur bench --speed`: every part is measured, the numbers are combined rightly, bad requests are refused."""

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest
import torch

from tests import clips
from tests.clocks import Clock
from vdeblur.bench import moving_clip, network_speed, run_speed, speed, speed_report, stages
from vdeblur.bench.speed_results import NetworkSeconds, NetworkSpeed, SpeedReport, SpeedTask
from vdeblur.cli.speed import run_speed as speed_command
from vdeblur.errors import DeviceError, ExitStatus, InterruptedRunError, ModelError, OutputError, UsageError
from vdeblur.restore import color, scenes, streams, tiles
from vdeblur.restore import watch as restore_watch

CPU = torch.device("cpu")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return moving_clip.make_clip(tmp_path / "clip.mp4", 64, 48, 6)


def in_this_process(task: dict[str, Any], stop: object = None) -> dict[str, Any]:
    facts = dict(task)
    return json.loads(json.dumps(asdict(stages.PARTS[facts.pop("part")](**facts))))


def test_the_clip_is_the_same_every_time_and_moves(tmp_path: Path) -> None:
    first, again = (moving_clip.make_clip(tmp_path / f"{name}.mp4", 96, 64, 8) for name in ("a", "b"))
    assert clips.facts(first).size == (96, 64)
    pictures = clips.rgb(first).astype(float)
    assert clips.psnr(pictures, clips.rgb(again) + 1e-3) > 40, "but for what the encoder makes of it"
    assert len(pictures) == 8
    assert pictures.std() > 15, "there is something to see"
    assert (abs(pictures[1:] - pictures[:-1]).mean((1, 2, 3)) > 2).all(), "it moves"


def test_parts_of_lite(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(restore_watch, "time", clock)
    for place, name, seconds in (
        (color, "to_rgb", 1.0), (scenes.SceneDetector, "is_cut", 2.0), (tiles.TilePlan, "crop", 3.0),
        (color, "add_difference", 5.0),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, clock.calls(getattr(place, name), seconds))
    monkeypatch.setattr(streams, "stream", clock.items(streams.stream, lambda: 4.0))
    network = network_speed.time_network("lite", "cpu", "fp32", 64, 48, 5, str(clip))
    assert (network.trained, network.precision, network.params) == (True, "fp32", 325_570)
    assert network.stages == {"color": 1.0, "scenes": 2.0, "tiles": 3.0, "network": 4.0, "difference": 5.0}
    assert 0 < network.network_seconds.median <= network.network_seconds.p95
    assert network.network_fps < 5 / network.network_seconds.p95
    assert network.network_memory_bytes > 1e8, "torch alone takes more"


def test_untrained_networks_run_as_a_whole_without_changing_anything(clip: Path, tmp_path: Path) -> None:
    """So the encoder gets what it would get from a real model, not noise, though all is computed."""
    for model in ("flow-rnn", "spn"):
        output = tmp_path / f"{model}.mp4"
        assert not network_speed.load_network(model)[1]
        assert run_speed.time_pipeline(model, "cpu", "fp32", str(clip), str(output)).pipeline_fps > 0
        assert clips.psnr(clips.rgb(output), clips.rgb(clip)) > 40
    assert network_speed.load_network("lite")[1]


def test_ffmpegs_filters_have_a_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "run_part", in_this_process)
    results = speed.measure_speed(SpeedTask(["identity", "unsharp", "cas"], ["fp32"], "64x48", 6, "cpu"))
    identity, *filters = results.to_json()["models"]
    for row in filters:
        assert row.keys() == identity.keys()
        assert row["stages"].keys() == identity["stages"].keys()
        assert (row["precision"], row["flops"], row["params"]) == ("8 bit", None, 0)
        assert row["stages"]["network"] == pytest.approx(1 / row["network_fps"])
        assert row["allowed_fps"] == pytest.approx(
            1 / sum(1 / row[f"{part}_fps"] for part in ("network", "encoder", "decoder"))
        )
    assert "| unsharp | 8 bit |" in speed_report.speed_as_markdown(results)


def test_filtering_makes_a_whole_video(clip: Path, tmp_path: Path) -> None:
    found = run_speed.time_filtering("unsharp", "cpu", "fp32", str(clip), str(tmp_path / "out.mp4"))
    assert found.pipeline_fps > 0
    before, after = clips.rgb(clip).astype(float), clips.rgb(tmp_path / "out.mp4").astype(float)
    assert before.shape == after.shape
    assert abs(numpy.diff(after, axis=2)).mean() > 1.1 * abs(numpy.diff(before, axis=2)).mean(), "it is sharpened"


def test_flops_are_those_of_the_paper_and_grow_with_the_area() -> None:
    """SPN: 37.8 billion multiply-adds for 256x256, counted from its layers."""
    assert network_speed.count_flops(network_speed.load_network("spn")[0], CPU, 64, 64) == pytest.approx(
        2 * 37.8e9 / 16, rel=0.01
    )
    network = network_speed.load_network("flow-rnn")[0]
    small, large = (network_speed.count_flops(network, CPU, side, side) for side in (128, 512))
    assert large == pytest.approx(16 * small)
    assert network_speed.count_flops(network_speed.load_network("identity")[0], CPU, 64, 64) == 0


def test_a_stage_within_another_stops_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(restore_watch, "time", clock)
    watch = restore_watch.Stopwatch(CPU)
    clock.advance(64)
    with watch.stage("outer"):
        clock.advance(1)
        with watch.stage("inner"):
            clock.advance(8)
        clock.advance(2)
    clock.advance(64)
    with watch.stage("inner"):
        clock.advance(16)
    assert watch.totals == {"outer": 3, "inner": 24}


def test_percentiles() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert network_speed.percentile(values, 0.95) == 95
    assert network_speed.percentile([3.0], 0.95) == 3


def test_a_part_in_a_process_of_its_own(clip: Path) -> None:
    found = speed.run_part({"part": "codecs", "clip": str(clip), "restored": str(clip)})
    assert found["decoder_fps"] > 0
    assert found["encoder_fps"] > 0


def test_errors_come_out_of_the_process(clip: Path) -> None:
    task = {"part": "pipeline", "device_name": "cpu", "precision": "fp32", "clip": str(clip), "output": "x.mp4"}
    with pytest.raises(ModelError, match="unknown model 'nobody'"):
        speed.run_part({**task, "model": "nobody"})


def test_a_signal_ends_the_process(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text("import time\nwhile True:\n    time.sleep(60)\n")
    with pytest.raises(InterruptedRunError):
        speed.time_reference(script, "64x48", 4, "cpu", lambda: ExitStatus.INTERRUPTED)
    assert not [child for child in psutil.Process().children() if str(script) in child.cmdline()]


def test_references_are_told_what_to_measure(tmp_path: Path) -> None:
    script = tmp_path / "reference.py"
    script.write_text("import sys\nassert sys.argv[1:] == ['64x48', '4', 'cpu']\nprint('warming up')\nprint(0.25)\n")
    assert speed.time_reference(script, "64x48", 4, "cpu") == 0.25


@pytest.mark.parametrize(
    ("code", "fault"),
    [("print('fast')", "did not say"), ("", "did not say"), ("print(0)", "did not say"), ("1/0", "ZeroDivision")],
)
def test_references_that_measure_nothing_are_refused(tmp_path: Path, code: str, fault: str) -> None:
    script = tmp_path / "reference.py"
    script.write_text(code)
    with pytest.raises(UsageError, match=fault):
        speed.time_reference(script, "64x48", 4, "cpu")


def test_a_process_that_the_system_ends(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(DeviceError, match="memory"):
        speed.time_reference(script, "64x48", 4, "cpu")


def test_the_command_shows_and_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(speed, "run_part", in_this_process)  # processes of their own are tested above
    reference = tmp_path / "slow.py"
    reference.write_text("print(2.0)")
    models, report = ["identity", "flow-rnn"], tmp_path / "speed.json"
    measured: list[SpeedReport] = []
    measure = speed.measure_speed

    def measure_and_record(*arguments: Any) -> SpeedReport:
        measured.append(measure(*arguments))
        return measured[0]

    monkeypatch.setattr(speed, "measure_speed", measure_and_record)
    speed_command(SpeedTask(models, ["fp32"], "64x48", 4, "cpu", [reference]), report, False, lambda: None)
    table, messages = capsys.readouterr()
    assert "flow-rnn (untrained weights)" in table
    assert "identity (untrained weights)" not in table
    assert "4 frames of 64x48 on cpu" in table
    assert "slow (2 s)" in table
    assert messages.splitlines() == [
        *(f"{model} fp32 {part}" for model in models for part in ("network", "pipeline", "codecs")),
        "slow reference",
    ]

    results = json.loads(report.read_text())
    assert (results["v"], results["size"], results["frames"], results["warm_up_frames"]) == (1, "64x48", 4, 4)
    for row in results["models"]:
        assert list(row["stages"]) == ["decode", "color", "scenes", "tiles", "network", "difference", "encode"]
        rates = [row[f"{part}_fps"] for part in ("network", "encoder", "decoder")]
        assert row["allowed_fps"] == pytest.approx(1 / sum(1 / rate for rate in rates))
        assert row["share"] == pytest.approx(row["pipeline_fps"] / row["allowed_fps"])
        assert row["ratio"] == pytest.approx(row["network_fps"] / results["models"][0]["network_fps"])
        assert row["reference_ratios"] == {"slow": pytest.approx(2 * row["network_fps"])}
        assert row["peak_memory_bytes"] > 1e8
    assert [row["trained"] for row in results["models"]] == [True, False]

    speed_report.write_speed_report(measured[0], tmp_path / "speed.md")
    text = (tmp_path / "speed.md").read_text()
    assert "| flow-rnn (untrained weights) | fp32 |" in text
    assert all(cell in text for line in table.splitlines() for cell in line.split()), "what is table stands there, too"


def test_repeats_take_turns_and_give_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, str]] = []

    def stub(task: dict[str, Any], stop: object) -> dict[str, Any]:
        if task["part"] == "network":
            order.append((task["model"], task["precision"]))
            seconds = NetworkSeconds(0.1, 0.2)
            rate = float(len(order))
            return asdict(NetworkSpeed(task["precision"], True, 10, None, rate, seconds, 0.1, None, None, {}))
        if task["part"] == "pipeline":
            return {"pipeline_fps": 1.0, "memory_bytes": 10 * len(order), "device_memory_bytes": None}
        return {"decoder_fps": 100.0, "encoder_fps": 10.0}

    monkeypatch.setattr(speed, "run_part", stub)
    results = speed.measure_speed(SpeedTask(["lite", "identity"], ["fp32", "bf16"], "64x48", 4, "cpu", repeats=3))
    round_once = [("lite", "fp32"), ("lite", "bf16"), ("identity", "fp32"), ("identity", "bf16")]
    assert order == round_once * 3
    for index, row in enumerate(results.models, 1):
        taken = [index, index + 4, index + 8]
        assert row.network_fps == statistics.median(taken)
        assert row.peak_memory_bytes == 10 * statistics.median(taken)
        assert row.peak_device_memory_bytes is None


def test_json_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(speed, "run_part", in_this_process)
    speed_command(SpeedTask(["identity"], ["fp32"], "64x48", 4, "cpu"), None, True, lambda: None)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["models"][0]["model"] == "identity"


@pytest.mark.parametrize("size", ["large", "64", "64x48x3", "0x48", "65x48", "-64x48"])
def test_sizes_that_make_no_sense(size: str) -> None:
    with pytest.raises(UsageError, match=size):
        speed.parse_size(size)


def test_reports_that_cannot_be_written_are_refused_beforehand(tmp_path: Path) -> None:
    def call(report: Path) -> None:
        speed_command(SpeedTask(["lite"], ["fp32"], "64x48", 5, "cpu"), report, False, lambda: None)

    with pytest.raises(UsageError, match=r"'\.html'"):
        call(tmp_path / "speed.html")
    with pytest.raises(OutputError, match="does not exist"):
        call(tmp_path / "nowhere" / "speed.json")
    with pytest.raises(ModelError, match="unknown model"):
        speed.measure_speed(SpeedTask(["nobody"], size="64x48"))
