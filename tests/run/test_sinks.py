"""A run to a pipe keeps what a run to a file keeps: dry runs and damage."""

from pathlib import Path
from typing import Any

import av
import pytest

from tests import clips
from vdeblur.errors import DamageError, ExitStatus
from vdeblur.run.pipeline import restore_file
from vdeblur.settings import EncodeOptions, Settings
from vdeblur.source import demux


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A clip of which three packets are zeros."""
    source = clips.make(tmp_path / "in.mkv", frames=30, codec=("-c:v", "libx264", "-preset", "ultrafast"))
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]
    for position, size in packets[22:25]:
        data[position + 20 : position + size - 2] = bytes(size - 22)
    source.write_bytes(data)
    return source


def test_a_dry_run_writes_nothing_to_a_pipe(vdeblur, tmp_path: Path, capfdbinary: pytest.CaptureFixture) -> None:
    """B: a dry run to a pipe wrote the video."""
    source = clips.make(tmp_path / "in.mkv")
    result = vdeblur("run", source, "-", "-m", "identity", "--dry-run")
    assert result.exit_code == 0, result.output
    assert capfdbinary.readouterr().out == b""
    assert result.stdout == ""
    events: list[tuple[str, dict[str, Any]]] = []
    restore_file(source, "-", Settings(model="identity", dry_run=True), notify=lambda *event: events.append(event))
    assert [event for event, _ in events] == ["probe", "plan"]
    assert events[1][1]["dry_run"] is True
    assert capfdbinary.readouterr().out == b""


def test_damage_is_an_error_for_a_pipe_too(vdeblur, damaged: Path, capfdbinary: pytest.CaptureFixture) -> None:
    """B: --on-damage fail to a pipe ended with exit code 0."""
    result = vdeblur("run", damaged, "-", "-m", "identity", "--on-damage", "fail")
    assert result.exit_code == ExitStatus.DAMAGE, result.output
    assert "W_INPUT_DAMAGED" in result.output
    written = capfdbinary.readouterr().out
    assert written.startswith(b"YUV4MPEG2"), "all frames are written all the same"
    assert written.count(b"FRAME\n") >= 20
    assert vdeblur("run", damaged, "-", "-m", "identity").exit_code == 0


@pytest.fixture
def piped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that what goes to standard output is written to."""
    real, path = av.open, tmp_path / "piped"
    monkeypatch.setattr(
        av, "open", lambda file, *rest, **given: real(path if file == "pipe:1" else file, *rest, **given)
    )
    return path


def test_a_file_and_a_pipe_report_the_same_damage(damaged: Path, piped: Path, tmp_path: Path) -> None:
    settings = Settings(model="identity", fail_on_damage=True, encoding=EncodeOptions(codec="ffv1", format="nut"))
    warnings = []
    for output in (tmp_path / "out.nut", demux.PIPE):
        seen: list[tuple[str, dict[str, Any]]] = []
        with pytest.raises(DamageError, match="W_INPUT_DAMAGED"):
            restore_file(damaged, output, settings, notify=lambda *event, seen=seen: seen.append(event))
        warnings.append([facts["message"] for _, facts in seen if facts.get("code") == "W_INPUT_DAMAGED"])
    assert warnings[0] == warnings[1] != []
    assert clips.frame_hashes(piped) == clips.frame_hashes(tmp_path / "out.nut")


def test_a_file_and_a_pipe_report_the_same_misplaced_packets(piped: Path, tmp_path: Path) -> None:
    """Two recordings in one file, too short for a jump in time: the second one's sound goes back."""
    part = clips.make(tmp_path / "part.ts", frames=20, codec=("-c:v", "libx264"), audio=("-c:a", "aac"))
    source = tmp_path / "in.ts"
    source.write_bytes(part.read_bytes() * 2)
    settings = Settings(model="identity", encoding=EncodeOptions(codec="ffv1", format="nut"))
    warnings = []
    for output in (tmp_path / "out.nut", demux.PIPE):
        seen: list[tuple[str, dict[str, Any]]] = []
        restore_file(source, output, settings, notify=lambda *event, seen=seen: seen.append(event))
        warnings.append([facts["message"] for _, facts in seen if facts.get("code") == "W_STREAM_DAMAGED"])
    assert warnings[0] == warnings[1] != []
    assert "went back in time" in warnings[0][0]
