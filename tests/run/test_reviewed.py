"""What people saw in runs: an encoder's own log, animations that became one picture, names of containers."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import clips
from tests.conftest import ROOT
from vdeblur.errors import ExitStatus

AV1 = ("-c:v", "libaom-av1", "-cpu-used", "8")


@pytest.mark.parametrize("options", [(), pytest.param(("-q",), marks=pytest.mark.slow)])
def test_svt_av1_writes_no_log(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Its library reads SVT_LOG when the first encoder is opened, which a trial does."""
    source = clips.make(tmp_path / "in.mp4", frames=2, codec=AV1)
    environment = {key: value for key, value in os.environ.items() if key != "SVT_LOG"}
    command = [sys.executable, "-m", "vdeblur", "run", str(source), str(tmp_path / "out.mp4"), "-m", "identity"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True, env=environment)
    assert "Svt" not in done.stderr + done.stdout
    assert clips.facts(tmp_path / "out.mp4").streams == [("video", "libdav1d")]


def test_the_log_of_svt_av1_can_be_asked_for(tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mp4", frames=2, codec=AV1)
    command = [sys.executable, "-m", "vdeblur", "run", str(source), str(tmp_path / "out.mp4"), "-m", "identity"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "SVT_LOG": "3"})
    assert "Svt[info]" in done.stderr


def test_an_animated_avif_is_refused_with_a_way_out(vdeblur, tmp_path: Path) -> None:
    """Its first video is a still picture, which alone was restored; the hint's command makes a file that works."""
    source = clips.make(tmp_path / "in.avif", frames=5, codec=AV1)
    result = vdeblur("run", source, tmp_path / "out.mkv", "-m", "identity")
    assert result.exit_code == ExitStatus.INPUT
    assert "is an animated AVIF" in result.stderr
    assert "ffmpeg -i in.avif -map 0:v:1 -c copy in.mp4" in result.stderr
    assert not (tmp_path / "out.mkv").exists()
    clips.ffmpeg("-i", source, "-map", "0:v:1", "-c", "copy", tmp_path / "in.mp4")
    assert vdeblur("run", tmp_path / "in.mp4", tmp_path / "out.mkv", "-m", "identity").exit_code == 0
    assert len(clips.facts(tmp_path / "out.mkv").seconds) == 5


def test_a_still_avif_is_restored(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.avif", frames=1, codec=(*AV1, "-still-picture", "1"))
    assert vdeblur("run", source, tmp_path / "out.mkv", "-m", "identity").exit_code == 0
    assert len(clips.facts(tmp_path / "out.mkv").seconds) == 1


def test_an_animated_avif_among_pictures_is_named(vdeblur, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    clips.make(folder / "a.png", frames=1, codec=())
    clips.make(folder / "b.avif", frames=5, codec=AV1)
    result = vdeblur("run", folder, tmp_path / "out", "-m", "identity", "--json")
    assert result.exit_code == 0
    warnings = [json.loads(line) for line in result.stdout.splitlines() if '"warning"' in line]
    assert [each["code"] for each in warnings] == ["W_SKIPPED"]
    assert "b.avif" in warnings[0]["message"]


@pytest.mark.parametrize("suffix", [".mpg", ".vob", ".flv", ".wmv", ".m2ts", ".ts"])
def test_dropped_streams_name_the_suffix(vdeblur, tmp_path: Path, suffix: str) -> None:
    """FFmpeg's names of these containers are mpeg, svcd, flv, asf and mpegts."""
    text = tmp_path / "text.srt"
    text.write_text("1\n00:00:00,000 --> 00:00:00,200\nword\n")
    source = clips.make(
        tmp_path / "in.mkv", codec=("-c:v", "libx264"), inputs=("-i", text), extra=("-map", "0", "-map", "1")
    )
    result = vdeblur("run", source, tmp_path / f"out{suffix}", "-m", "identity", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.stdout.splitlines()]
    reasons = next(event["drop_reasons"] for event in events if event["event"] == "plan")
    assert reasons == [f"cannot be held by {suffix}; .mkv can"]


def test_ray_has_tokens() -> None:
    """A cluster that listens beyond this machine needs tokens, which Ray has from 2.52 on."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    minimum = next(need.removeprefix("ray>=") for need in extras["ray"] if need.startswith("ray>="))
    assert tuple(int(part) for part in minimum.split(".")[:2]) >= (2, 52)
