"""Files that appear complete or not at all, and the folder of the cache."""

import os
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

from vdeblur import files
from vdeblur.errors import OutputError


def test_write_whole_takes_bytes_or_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.json"
    files.write_whole(path, b"first")
    assert path.read_bytes() == b"first"
    files.write_whole(path, lambda file: file.write(b"second"))
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_keeps_the_file_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"first")
    with pytest.raises(ZeroDivisionError):
        files.write_whole(path, lambda file: file.write(b"sec") / 0)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_draft_is_not_found_under_the_suffix_of_its_file(tmp_path: Path) -> None:
    with files.drafted(tmp_path / "a.json") as draft:
        draft.write_bytes(b"{}")
        assert not list(tmp_path.glob("*.json"))


def test_an_output_keeps_its_suffix_and_replaces_only_what_it_may(tmp_path: Path) -> None:
    output = tmp_path / "a.mp4"
    with files.drafted_output(output, overwrite=False) as draft:
        assert draft.suffix == ".mp4"
        draft.write_bytes(b"first")
    with pytest.raises(OutputError, match="has appeared"), files.drafted_output(output, overwrite=False) as draft:
        draft.write_bytes(b"second")
    with pytest.raises(OutputError, match="is a test"), files.drafted_output(output, overwrite=True) as draft:
        raise OSError(28, "is a test")
    assert output.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [output]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without a cache, on macOS."""
    for name in ("VDEBLUR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name, appauthor: tmp_path / "Library" / "Caches" / name)
    return tmp_path


def test_cache_folder_follows_the_system(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.cache_folder() == home / "Library" / "Caches" / "vdeblur"
    monkeypatch.setattr(sys, "platform", "linux")
    assert files.cache_folder() == home / ".cache" / "vdeblur"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
    assert files.cache_folder() == home / "xdg" / "vdeblur"
    monkeypatch.setenv("VDEBLUR_CACHE", "~/mine")
    assert files.cache_folder() == home / "mine"


def test_an_earlier_cache_stays_in_use(home: Path) -> None:
    earlier, usual = home / ".cache" / "vdeblur", home / "Library" / "Caches" / "vdeblur"
    earlier.mkdir(parents=True)
    assert files.cache_folder() == earlier
    usual.mkdir(parents=True)
    assert files.cache_folder() == usual


def test_drafts_of_killed_processes_go_and_those_of_others_stay(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    abandoned, alive, foreign = (tmp_path / f"state.pt.{name}.draft" for name in (ended.pid, os.getppid(), "mine"))
    for draft in (abandoned, alive, foreign):
        draft.touch()
    files.write_whole(tmp_path / "state.pt", b"complete")
    assert abandoned.exists()  # a process of another machine may be writing it
    for draft in (abandoned, alive, foreign):
        os.utime(draft, (0, 0))
    files.write_whole(tmp_path / "state.pt", b"complete")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["state.pt", alive.name, foreign.name])
