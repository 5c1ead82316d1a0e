"""The user's own networks: `-m FILE.py:CLASS`, and entry points of installed packages."""

import json
import sys
from importlib import metadata
from pathlib import Path

import numpy
import pytest
import torch

from tests import clips
from tests.conftest import ROOT
from vdeblur.errors import ExitStatus, ModelError
from vdeblur.models import own, registry, weights

NETWORKS = '''
"""Networks of a user."""

from dataclasses import dataclass

import torch
from torch import nn

from vdeblur.networks.layers import Network


@dataclass
class Share:
    """Dataclasses look up their module."""

    of: float = 3.0


class Average(Network):
    """Average a frame and its neighbours.

    And more.
    """

    feeding = "neighbours"

    def forward(self, previous, current, following):
        previous = current if previous is None else previous
        following = current if following is None else following
        return (previous + current + following) / Share().of


class Learned(Network):
    """Add a learned constant."""

    feeding = "frame"

    def __init__(self):
        super().__init__()
        self.constant = nn.Parameter(torch.zeros(3, 1, 1))

    def forward(self, blurry):
        return blurry + self.constant


class Finished(Learned):
    """Has its parameters from its constructor."""

    trained = True


class NoFeeding(Network):
    pass


class OddFeeding(Network):
    feeding = "all"


class NoForward(Network):
    feeding = "frame"


class NoRestore(Network):
    feeding = "clip"

    def analyse(self, frames):
        return frames


class Greedy(Network):
    feeding = "frame"

    def __init__(self, width):
        super().__init__()

    def forward(self, blurry):
        return blurry


class NotANetwork(nn.Module):
    pass


number = 3
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my@nets" / "net.py"
    path.parent.mkdir()
    path.write_text(NETWORKS)
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return clips.make(tmp_path / "in.mkv", frames=4)


def last_line(result) -> str:
    lines = [line for line in result.stderr.splitlines() if line.startswith("vdeblur: ")]
    assert len(lines) == 1, result.output
    return lines[0]


def offer(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    point = metadata.EntryPoint("my-net", value, own.GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == own.GROUP else [])


def test_a_network_in_a_file_restores_a_video(vdeblur, file: Path, clip: Path, tmp_path: Path) -> None:
    options = ("--crf", "0", "-p", "fp32", "-d", "cpu", "--no-scene-detect")
    result = vdeblur("run", clip, tmp_path / "out.mkv", "-m", f"{file}:Average", *options)
    assert result.exit_code == 0, result.output
    before, after = clips.rgb(clip).astype(float), clips.rgb(tmp_path / "out.mkv").astype(float)
    assert len(after) == 4
    expected = (before[:-2] + before[1:-1] + before[2:]) / 3
    assert numpy.abs(after[1:-1] - expected).mean() < numpy.abs(before[1:-1] - expected).mean() / 2


def test_parameters_need_weights(vdeblur, file: Path, clip: Path, tmp_path: Path) -> None:
    result = vdeblur("run", clip, tmp_path / "out.mkv", "-m", f"{file}:Learned")
    assert result.exit_code == ExitStatus.MODEL
    assert "add --weights FILE, or set trained = True in the class" in last_line(result)
    checkpoint = tmp_path / "learned.pth"
    torch.save({"constant": torch.full((3, 1, 1), 0.25)}, checkpoint)
    assert weights.load_model(f"{file}:Learned", checkpoint).constant.flatten().tolist() == [0.25] * 3
    options = ("-m", f"{file}:Learned", "--weights", checkpoint)
    assert vdeblur("run", clip, tmp_path / "out.mkv", *options).exit_code == 0
    torch.save({"other": torch.zeros(3)}, checkpoint)
    assert "does not fit" in last_line(vdeblur("run", clip, tmp_path / "other.mkv", *options))
    assert weights.load_model(f"{file}:Finished").constant.sum() == 0, "trained, it says"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Averge", "has no class 'Averge' (choose from "),
        ("NoFeeding", "has no feeding (set feeding to one of frame, neighbours, "),
        ("OddFeeding", "has the unknown feeding 'all'"),
        ("NoForward", "has no method forward"),
        ("NoRestore", "has no method restore"),
        ("Greedy", "the constructor of "),
        ("NotANetwork", "is not a subclass of vdeblur.networks.layers.Network"),
        ("number", "is not a subclass of vdeblur.networks.layers.Network"),
    ],
)
def test_a_class_that_cannot_run_says_what_is_missing(vdeblur, file: Path, name: str, words: str) -> None:
    result = vdeblur("models", "show", f"{file}:{name}")
    assert result.exit_code == ExitStatus.MODEL
    assert words in last_line(result)


@pytest.mark.parametrize("result", ["None", "blurry[..., 1:]", "blurry[:, :1]"])
def test_frames_of_another_shape_are_one_clear_error(vdeblur, clip: Path, tmp_path: Path, result: str) -> None:
    path = tmp_path / "odd.py"
    path.write_text(
        "from vdeblur.networks.layers import Network\n\n\nclass Odd(Network):\n"
        f'    feeding = "frame"\n\n    def forward(self, blurry):\n        return {result}\n'
    )
    restored = vdeblur("run", clip, tmp_path / "out.mkv", "-m", f"{path}:Odd")
    assert restored.exit_code == ExitStatus.MODEL
    assert "Odd returned " in last_line(restored)
    assert not (tmp_path / "out.mkv").exists()


def test_a_file_that_is_missing_or_fails(vdeblur, clip: Path, tmp_path: Path) -> None:
    missing = vdeblur("run", clip, tmp_path / "out.mkv", "-m", f"{tmp_path}/none.py:Average")
    assert missing.exit_code == ExitStatus.MODEL
    assert "none.py cannot be read: No such file or directory" in last_line(missing)
    (tmp_path / "faulty.py").write_text("import a_module_that_is_missing\n")
    with pytest.raises(ModelError, match=r"faulty.py fails: ModuleNotFoundError: No module named 'a_module_that_is"):
        registry.find_entry(f"{tmp_path}/faulty.py:Average")
    assert "vdeblur_own_faulty" not in sys.modules


def test_a_changed_file_is_read_again(file: Path) -> None:
    first = registry.find_entry(f"{file}:Average").network_class
    assert registry.find_entry(f"{file}:Average").network_class is first, "a file runs once"
    before = own.code_checksum(first())
    file.write_text(NETWORKS.replace("/ Share().of", "/ Share(3.5).of"))
    second = registry.find_entry(f"{file}:Average").network_class
    assert second is not first
    assert own.code_checksum(second()) != before, "no run resumes with other code"
    assert own.code_checksum(weights.load_model("identity")) == 0


def test_showing_and_importing(vdeblur, file: Path, tmp_path: Path) -> None:
    shown = vdeblur("models", "show", f"{file}:Average")
    assert shown.exit_code == 0, shown.output
    assert "description: Average a frame and its neighbours.\n" in shown.stdout
    assert json.loads(vdeblur("models", "show", f"{file}:Learned", "--json").stdout)["weights"] == []
    result = vdeblur("models", "import", tmp_path / "x.pth", "--as", f"{file}:Learned")
    assert result.exit_code == ExitStatus.MODEL
    assert f"use the file directly: -m {file}:Learned --weights FILE" in last_line(result)
    assert registry.find_entry("lite").own is None


def test_an_entry_point(vdeblur, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "offered_networks.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    offer(monkeypatch, "offered_networks:Learned")
    checkpoint = tmp_path / "learned.pth"
    torch.save({"constant": torch.zeros(3, 1, 1)}, checkpoint)
    result = vdeblur("run", clip, tmp_path / "out.mkv", "-m", "my-net", "--weights", checkpoint)
    assert result.exit_code == 0, result.output
    assert vdeblur("models", "import", checkpoint, "--as", "my-net@mine").exit_code == 0
    assert vdeblur("run", clip, tmp_path / "out2.mkv", "-m", "my-net@mine").exit_code == 0
    hint = last_line(vdeblur("models", "show", "my-nt"))
    assert "did you mean my-net?" in hint
    assert "my-net, or best" in hint


def test_an_entry_point_that_fails(vdeblur, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "a_module_that_is_missing:Net")
    assert vdeblur("models", "show", "lite").exit_code == 0, "others are not affected"
    line = last_line(vdeblur("models", "show", "my-net"))
    assert "my-net (a_module_that_is_missing:Net) cannot be loaded: ModuleNotFoundError" in line


def test_the_example_in_the_documentation_is_a_network(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "python.md").read_text().split("# my_net.py\n")[1].split("```")[0]
    (tmp_path / "my_net.py").write_text(text)
    network = registry.find_entry(f"{tmp_path}/my_net.py:MyNet").build()
    assert network(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8, 8)
