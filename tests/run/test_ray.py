"""The work shared out by Ray, on this machine with two workers: what comes of it is what comes of it without."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import clips
from vdeblur.errors import ExitStatus
from vdeblur.run import ray_engine

H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-bf", "2")


@pytest.fixture
def ray():
    """Ray, which is an extra."""
    return pytest.importorskip("ray", reason="Ray is not installed: pip install 'vdeblur[ray]'")


def one_line(result, status: int) -> str:
    lines = result.output.splitlines()
    assert (result.exit_code, len(lines)) == (status, 1), result.output
    assert lines[0].startswith("vdeblur: ")
    assert lines[0].endswith(")"), "there is a hint"
    return lines[0]


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_the_same_bytes_as_without(vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = []
    resources = ray_engine._resources

    def look(*arguments: Any) -> tuple[dict[str, float], int]:
        handlers.append(getattr(signal.getsignal(signal.SIGTERM), "__module__", ""))
        return resources(*arguments)

    monkeypatch.setattr(ray_engine, "_resources", look)
    source = clips.make(tmp_path / "in.mp4", frames=150, codec=H264, audio=("-c:a", "aac"))
    options = ("-m", "identity", "--deterministic", "--segment", "1", "--json")
    assert vdeblur("run", source, tmp_path / "alone.mp4", *options).exit_code == 0
    result = vdeblur("run", source, tmp_path / "shared.mp4", *options, "--engine", "ray", "-j", "2")
    assert result.exit_code == 0, result.output
    told = [json.loads(line) for line in result.stdout.splitlines()]
    engine = next(event for event in told if event["event"] == "engine")
    assert (engine["workers"], engine["tasks"]) == (2, 6)
    assert not [event for event in told if event["event"] == "warning"]
    assert "progress" not in [event["event"] for event in told], "the workers have made everything"
    assert handlers == ["vdeblur.cli.report"], "a signal is ours to handle, not Ray's"
    assert (tmp_path / "shared.mp4").read_bytes() == (tmp_path / "alone.mp4").read_bytes()
    assert {path.name for path in tmp_path.glob("*mp4*")} == {"in.mp4", "alone.mp4", "shared.mp4"}


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_two_files_and_one_that_fails(vdeblur, tmp_path: Path) -> None:
    """By lite, whose segments need the frames around them: equal frames; the failure is no matter to the others."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in (1, 2):
        clips.make(folder / f"{number}.mkv", frames=30)
    (folder / "bad.mkv").write_bytes(b"no video")
    options = ("-p", "fp32", "--lossless", "--segment", "0.4")
    result = vdeblur("run", folder, tmp_path / "shared", *options, "--json", "--engine", "ray", "-j", "2")
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert (told[-1]["exit"], told[-1]["files_ok"], told[-1]["files_failed"]) == (ExitStatus.BATCH, 2, 1)
    errors = [event for event in told if event["event"] == "error"]
    assert [(event["code"], event["exit"]) for event in errors] == [("E_INPUT", 3), ("E_BATCH", 8)]
    assert errors[0]["input"] == str(folder / "bad.mkv")
    for number in (1, 2):
        alone = tmp_path / f"alone{number}.mkv"
        assert vdeblur("run", folder / f"{number}.mkv", alone, *options).exit_code == 0
        assert clips.frame_hashes(tmp_path / "shared" / f"{number}.mkv") == clips.frame_hashes(alone)
        assert clips.frame_hashes(alone) != clips.frame_hashes(folder / f"{number}.mkv")
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {"1.mkv", "2.mkv"}


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_a_cluster_that_is_not_there(vdeblur, tmp_path: Path, address: str) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=2)
    result = vdeblur("run", source, tmp_path / "out.mkv", "--engine", "ray", "--ray-address", address)
    assert "the Ray cluster cannot be reached" in one_line(result, ExitStatus.USAGE)
    assert {path.name for path in tmp_path.glob("*.mkv")} == {"in.mkv"}


def test_ray_is_not_installed(vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=2)
    monkeypatch.setitem(sys.modules, "ray", None)  # so that importing it fails
    line = one_line(vdeblur("run", source, tmp_path / "out.mkv", "--engine", "ray"), ExitStatus.USAGE)
    assert "is not installed" in line
    assert "pip install 'vdeblur[ray]'" in line


def test_shares_and_ray_exclude_each_other(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=2)
    result = vdeblur("run", source, tmp_path / "out.mkv", "--engine", "ray", "--share", "1/2")
    assert "leave out --share" in one_line(result, ExitStatus.USAGE)
