"""`vdeblur clean`: what interrupted runs left is listed and removed, and nothing else."""

import json
from pathlib import Path

import filelock
import pytest

from tests import clips
from vdeblur.errors import ExitStatus, InterruptedRunError
from vdeblur.files import process_tag
from vdeblur.run.pipeline import restore_file
from vdeblur.run.store import folder_of
from vdeblur.settings import Settings

H264 = ("-c:v", "libx264", "-preset", "ultrafast")


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """An output of which one segment is finished."""
    source, output = clips.make(tmp_path / "in.mp4", codec=H264, frames=50), tmp_path / "out" / "sharp.mp4"
    output.parent.mkdir()
    reached: list[int] = []

    def notify(event: str, facts: dict) -> None:
        if event == "segment":
            reached.append(facts["last"])

    settings = Settings(model="identity", segment=0.4)
    with pytest.raises(InterruptedRunError):
        restore_file(source, output, settings, notify=notify, stop=lambda: ExitStatus.INTERRUPTED if reached else None)
    assert folder_of(output).is_dir()
    return output


def test_leftovers_are_listed_and_removed(vdeblur, interrupted: Path) -> None:
    """D6: clean."""
    folder = folder_of(interrupted)
    result = vdeblur("clean", interrupted.parent)
    assert result.exit_code == 0, result.output
    assert "sharp.mp4" in result.stdout
    assert " kB" in result.stdout
    assert "--yes removes it" in result.output
    assert folder.is_dir(), "it only lists"
    result = vdeblur("clean", interrupted.parent, "--yes")
    assert result.exit_code == 0, result.output
    assert list(interrupted.parent.iterdir()) == []
    assert "left nothing" in vdeblur("clean", interrupted.parent).output


def test_what_is_in_use_stays(vdeblur, interrupted: Path) -> None:
    """D6: a run that works now is left alone."""
    lock = filelock.FileLock(folder_of(interrupted) / "lock")
    with lock:
        result = vdeblur("clean", interrupted.parent, "--yes")
        assert "in use now" in result.stdout
        assert (folder_of(interrupted) / "state.json").exists()


def test_drafts_of_killed_processes(vdeblur, tmp_path: Path) -> None:
    """D6: of compare and sample; those of processes that live stay."""
    own = process_tag()
    gone = f"{own.partition('-')[0]}-{2**22 + 1}"  # above the largest number of a process on Linux
    kept = {f".vdeblur-{own}-0123abcd.draft.mp4", ".vdeblur-12345-0123abcd", ".vdeblur-sample-0123abcd", "mine.mp4"}
    for name in (*kept, f".vdeblur-{gone}-0123abcd.draft.mp4"):
        (tmp_path / name).write_bytes(b"draft")
    samples = tmp_path / f".vdeblur-sample-{gone}-0123abcd.draft"
    samples.mkdir()
    (samples / "0.mp4").write_bytes(b"sample")
    result = vdeblur("clean", tmp_path, "--yes")
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_nothing_of_others_is_removed(vdeblur, interrupted: Path, tmp_path: Path) -> None:
    """D6: links are not followed, folders of other things stay, unknown files keep their folder."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "state.json").write_text(json.dumps({"output": "x"}))
    place = interrupted.parent
    (place / ".vdeblur-x-01234567").symlink_to(precious)
    (place / ".vdeblur-notes-01234567").mkdir()
    (place / ".vdeblur-notes-01234567" / "state.json").write_text('{"output": "other"}')
    (folder_of(interrupted) / "letter.txt").write_text("mine")
    result = vdeblur("clean", place, "--yes")
    assert result.exit_code == ExitStatus.OUTPUT
    assert "not removed" in result.output
    assert (precious / "state.json").exists()
    assert (place / ".vdeblur-notes-01234567" / "state.json").exists()
    assert [path.name for path in folder_of(interrupted).iterdir()] == ["letter.txt"]


def test_folders_within_folders(vdeblur, interrupted: Path, tmp_path: Path) -> None:
    """D6: --recursive."""
    assert "left nothing" in vdeblur("clean", tmp_path).output
    assert "sharp.mp4" in vdeblur("clean", tmp_path, "--recursive").stdout
    result = vdeblur("clean", tmp_path / "none")
    assert result.exit_code == ExitStatus.INPUT
