"""Trainings that meet another one in their folder, or files there that are not theirs."""

from pathlib import Path

import filelock
import pytest
import torch

from vdeblur.errors import OutputError
from vdeblur.train.distributed import ProcessGroup
from vdeblur.train.folder import LOCK, writing_alone
from vdeblur.train.log import Log


def test_two_trainings_with_one_folder(vdeblur, tmp_path: Path) -> None:
    """C medium: two trainings with one --out overwrote each other's state."""
    out = tmp_path / "out"
    out.mkdir()
    words = ("train", "-m", "lite", "--dataset", tmp_path, "--out", out)
    with filelock.FileLock(out / LOCK):
        result = vdeblur(*words)
        assert result.exit_code == 4
        assert f"another training is writing to {out}" in result.stderr
    result = vdeblur(*words)
    assert "another training" not in result.stderr, "the lock is free again"
    assert not out.exists() or not list(out.iterdir())


def test_the_lock_is_held_and_leaves_nothing(tmp_path: Path) -> None:
    """C medium: while one training runs, a second one is refused; the first removes its lock."""
    group = ProcessGroup(0, 1, torch.device("cpu"))
    out = tmp_path / "a" / "out"
    with writing_alone(out, group):
        assert (out / LOCK).exists()
        with pytest.raises(OutputError, match="another training"), writing_alone(out, group):
            raise AssertionError
        assert (out / LOCK).exists()
    assert not out.exists()
    with writing_alone(out, group):
        (out / "state.pt").touch()
    assert [path.name for path in out.iterdir()] == ["state.pt"]


def test_a_link_in_place_of_the_lock(tmp_path: Path) -> None:
    """C high 1: a lock is never written through a link."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / LOCK).symlink_to(victim)
    group = ProcessGroup(0, 1, torch.device("cpu"))
    with pytest.raises(OutputError, match="symbolic link"), writing_alone(tmp_path, group):
        raise AssertionError
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(
    "text",
    ["junk", "a,b\n1,2\n", "update,loss\nx,1\n", "update,loss\n1\n2,3\n", "update\n1,2,3\n", "\xff\xfe"],
)
def test_junk_as_log(tmp_path: Path, text: str) -> None:
    """C low: junk in log.csv was an internal error."""
    path = tmp_path / "log.csv"
    path.write_bytes(text.encode("latin-1"))
    if text == "junk":
        Log(path, 5, active=True, tensorboard=False)
        return
    with pytest.raises(OutputError, match=r"log.csv is not a log of vdeblur train"):
        Log(path, 5, active=True, tensorboard=False)
    assert path.read_bytes() == text.encode("latin-1")
