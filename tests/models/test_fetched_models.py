"""Models that download automatically, from their authors' file on a server to a restored clip."""

import hashlib
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import clips, parity
from tests.conftest import ROOT
from tests.servers import Place, Server, serving

MODELS = ["dstnet", "dstnet-plus", "dstnet-plus-l", "basicvsrpp", "nafnet-32"]
CASES = {case.model: case for case in reversed(parity.cases()) if not case.arguments}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def register(model: str, server: Server, folder: Path, digest: str | None = None) -> dict[str, str]:
    """Serve a model's random weights under another name; return the environment that registers it."""
    file = CASES[model].checkpoint(folder)
    server.places["/weights.pth"] = Place(file.read_bytes())
    entry = tomllib.loads((ROOT / "weights.toml").read_text())[model]
    arguments = ", ".join(f"{key} = {value}" for key, value in entry.get("arguments", {}).items())
    (folder / "registry.toml").write_text(f"""
[drawn]
network = "{entry["network"]}"
arguments = {{ {arguments} }}
prefix = "{entry.get("prefix", "")}"
ignored = {list(entry.get("ignored", []))}
description = "drawn weights"
license = "MIT"
[drawn.weights.drawn]
file = "weights.pth"
sources = [{{ kind = "https", url = "{server.url}/weights.pth" }}]
sha256 = "{digest or hashlib.sha256(file.read_bytes()).hexdigest()}"
""")
    return {"VDEBLUR_REGISTRY": str(folder / "registry.toml")}


@pytest.mark.parametrize("model", MODELS)
def test_from_a_server_to_a_restored_clip(
    model: str, vdeblur, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "clip.mp4"
    clips.ffmpeg("-i", ROOT / "examples" / "square.mp4", "-vf", "scale=-2:66,crop=98:66", "-frames:v", 3, source)
    for key, value in register(model, server, tmp_path).items():
        monkeypatch.setenv(key, value)
    result = vdeblur("run", source, tmp_path / "out.mkv", "-m", "drawn", "--lossless", "--no-guard")
    assert result.exit_code == 0, result.output
    restored, blurry = clips.rgb(tmp_path / "out.mkv"), clips.rgb(source)
    assert restored.shape == blurry.shape
    assert (restored != blurry).any()
    assert clips.facts(tmp_path / "out.mkv").seconds == pytest.approx(clips.facts(source).seconds, abs=6e-4)
    server.places.clear()  # cached weights are not fetched again
    assert vdeblur("run", source, tmp_path / "again.mkv", "-m", "drawn", "--frames", 1).exit_code == 0


def test_a_wrong_digest_ends_it(vdeblur, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=2)
    for key, value in register("nafnet-32", server, tmp_path, "0" * 64).items():
        monkeypatch.setenv(key, value)
    result = vdeblur("run", source, tmp_path / "out.mkv", "-m", "drawn")
    assert result.exit_code == 5
    assert "sha256" in result.output.lower().replace("-", "")
    assert not (tmp_path / "out.mkv").exists()
