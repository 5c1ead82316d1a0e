"""Escape sequences in names and replies, bars of several things at once, signals that are ignored, a full stdout."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from tests import clips
from tests.conftest import ROOT
from vdeblur.cli import terminal
from vdeblur.cli.lines import lines_of
from vdeblur.cli.printable import printable
from vdeblur.cli.report import HumanReporter

H264 = ("-c:v", "libx264", "-preset", "ultrafast")
EVIL = "\x1b]0;owned\x07\x1b[2J\u202egnp\x9b31m\nvdeblur: forged"
RUN = ("-m", "identity", "--preset", "ultrafast")


def _is_clean(text: str) -> bool:
    return not any(sign in text for sign in "\x1b\x07\u202e\x9b") and "\nvdeblur: forged" not in text


def test_printable_shows_controls_as_escapes() -> None:
    """C medium: everything that could control a terminal is shown, and nothing else is changed."""
    assert printable(EVIL) == "\\x1b]0;owned\\x07\\x1b[2J\\u202egnp\\x9b31m\\nvdeblur: forged"
    assert printable("Ünïcode 日本 👩‍👧 -%'") == "Ünïcode 日本 👩‍👧 -%'"


def test_names_of_files(vdeblur, tmp_path: Path) -> None:
    """C medium: the names of files went to the terminal as they are."""
    folder = tmp_path / f"clips{EVIL}"
    folder.mkdir()
    for name in ("a", f"b{EVIL}"):
        clips.make(folder / f"{name}.mp4", frames=3, codec=H264)
    (folder / f"bad{EVIL}.mp4").write_bytes(b"no video")
    (folder / f".vdeblur-0123abcd-4194305-0123abcd.draft.{EVIL[:9]}").write_bytes(b"draft")
    out = tmp_path / f"out{EVIL}"
    one, bad = folder / f"b{EVIL}.mp4", folder / f"bad{EVIL}.mp4"
    new = tmp_path / "z.mp4"
    for words in (
        ("run", folder, f"{out}/", *RUN), ("run", one, tmp_path / f"{EVIL}.mp4", *RUN), ("run", bad, new, *RUN),
        ("run", one, one, *RUN), ("run", one, tmp_path / "none" / EVIL / "x.mp4", *RUN), ("probe", one),
        ("probe", bad), ("compare", one, bad, "--metrics"), ("run", one, new, "-m", EVIL),
        ("run", one, new, "--weights", bad), ("models", "import", bad, "--as", "lite@x"), ("models", "show", EVIL),
        ("run", one, new, "-e", EVIL), ("train", "-m", "lite", "--dataset", EVIL, "--out", tmp_path / EVIL),
        ("synth", bad, out / "s"), (EVIL,), ("run", f"--{EVIL}"), ("run", one, new, "-c", EVIL),
        ("run", one, new, "-f", EVIL), ("run", one, new, "--preset", EVIL), ("run", one, new, "--pix-fmt", EVIL),
        ("clean", folder), ("clean", folder, "--yes"), ("run", "--files-from", f"{folder}/{EVIL}", out),
        ("run", folder, f"{out}/", "--dry-run", *RUN),
        ("compare", one, folder / "a.mp4", "--metrics", "--labels", f"{EVIL},b"),
    ):  # fmt: skip
        result = vdeblur(*words)
        assert _is_clean(result.output), (words, result.output)
        assert "internal error" not in result.output


def test_tags_of_streams(vdeblur, tmp_path: Path) -> None:
    """C medium: so did the languages and titles of streams."""
    tags = (
        "-metadata:s:a:0",
        f"language={EVIL[:20]}",
        "-metadata:s:a:0",
        f"title={EVIL}",
        "-metadata",
        f"title={EVIL}",
    )
    source = clips.make(tmp_path / "in.mkv", frames=3, codec=H264, audio=("-c:a", "pcm_s16le"), extra=tags)
    for words in (
        ("probe", source),
        ("run", source, tmp_path / "out.avi", *RUN),
        ("run", source, tmp_path / "p/", *RUN),
    ):
        assert _is_clean(vdeblur(*words).output)


def test_tables_and_questions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """C medium: on a terminal, too, in tables and in questions."""
    asked: list[str] = []
    terminal.show_table(("a", "b"), [(EVIL, "x")])
    monkeypatch.setattr(terminal, "is_terminal", lambda stream: True)
    monkeypatch.setattr(click, "confirm", lambda text, err: asked.append(text))
    terminal.show_table(("a", "b"), [(EVIL, "x")])
    question = terminal.question()
    assert question is not None
    question(f"Download from {EVIL}?")
    output = capsys.readouterr()
    assert printable(EVIL)[:20] in output.out
    assert _is_clean(output.out + output.err + asked[0])


# Bars ----------------------------------------------------------------------------------------------------------------


def _plan(name: str) -> dict[str, Any]:
    facts = {"input": name, "model": "lite", "device": "cpu", "precision": "fp32", "tile": "none", "segments": 1}
    more = {"frames_done": 0, "keep": [], "convert": [], "drop": [], "frames_estimate": 10, "dry_run": False}
    return {**facts, **more, "output": "out.mp4", "reasons": [], "streams": []}


def _drawn(reporter: HumanReporter) -> list[str]:
    """Draw the bars, and return what describes each."""
    progress = reporter.bars.progress
    if progress is None:
        return []
    progress.refresh()
    progress.make_tasks_table(progress.tasks)
    return [task.description for task in progress.tasks]


def test_bars_of_files_and_downloads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """B: two downloads at once, or a download beside a file, ended with a KeyError."""
    monkeypatch.setattr(terminal, "draws_bars", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    reporter = HumanReporter()

    def download(name: str, done: int) -> None:
        reporter.notify("download_progress", {"file": name, "bytes": done, "bytes_total": 100})

    try:
        download("a.pth", 10)
        download("b.pth", 10)
        reporter.notify("plan", _plan("one.mp4"))
        assert _drawn(reporter) == ["a.pth", "b.pth", "one.mp4"]
        download("b.pth", 20)
        reporter.notify(
            "progress", {"input": "one.mp4", "frame": 3, "frames_estimate": 10, "fps": 2.0, "eta_seconds": 1}
        )
        facts = {"model": "m", "weights": "w", "file": "a.pth", "sha256": "0", "verification": "pinned", "path": "p"}
        reporter.notify("download_done", facts)
        assert _drawn(reporter) == ["one.mp4"], "the file keeps its bar"
        download("b.pth", 100)
        assert _drawn(reporter) == ["one.mp4", "b.pth"]
        reporter.notify("download_done", {**facts, "file": "b.pth"})
        reporter.notify("error", {"code": "E_INPUT", "exit": 3, "message": "x", "hint": "", "input": "one.mp4"})
        assert _drawn(reporter) == []
        reporter.notify("plan", _plan("two.mp4"))
        download("c.pth", 1)
        assert _drawn(reporter) == ["two.mp4", "c.pth"]
    finally:
        reporter.close()


# Signals, stdout, hints ---------------------------------------------------------------------------------------------


def _started(*arguments: object, ignore: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
    def prepare() -> None:
        if ignore:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/src"}
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        preexec_fn=prepare,
        **options,
    )


def test_an_interrupt_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """C low: nohup, and scripts that start vdeblur in the background, ignore SIGINT for it."""
    source = clips.make(tmp_path / "in.mp4", frames=10, codec=H264)
    words = ("tests.signalled", "2,2", "progress", "3", "run", source, tmp_path / "out.mp4", *RUN)
    done = _started(*words, ignore=True)
    assert done.returncode == 0, done.stderr
    assert len(clips.frame_hashes(tmp_path / "out.mp4")) == 10
    assert _started(*words[:-2], "-y").returncode == 130


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device of Linux that is always full")
@pytest.mark.parametrize(
    "words", [("models", "list"), ("models", "list", "--json"), ("probe", "IN"), ("run", "IN", "OUT", *RUN, "--json")],
    ids=" ".join,
)  # fmt: skip
def test_a_full_stdout_is_blamed_itself(tmp_path: Path, words: tuple[str, ...]) -> None:
    """C low: where stdout was full, an internal error or the output file was blamed."""
    source = clips.make(tmp_path / "in.mp4", frames=5, codec=H264)
    names = {"IN": str(source), "OUT": str(tmp_path / "out.mp4")}
    with Path("/dev/full").open("w") as full:
        done = _started("vdeblur", *(names.get(word, word) for word in words), stdout=full)
    assert done.returncode == 4, done.stderr
    assert "standard output cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "out.mp4 cannot" not in done.stderr


def test_an_input_that_was_moved_meanwhile_is_blamed_itself(vdeblur, tmp_path: Path, monkeypatch) -> None:
    """C low: the output was blamed: "out.mp4 cannot be written: No such file or directory"."""
    source = clips.make(tmp_path / "in.mp4", frames=5, codec=H264, audio=("-c:a", "aac"))
    notify = HumanReporter.notify

    def moving(self: HumanReporter, event: str, facts: Any) -> None:
        notify(self, event, facts)
        if event == "segment":
            source.rename(tmp_path / "moved.mp4")

    monkeypatch.setattr(HumanReporter, "notify", moving)
    result = vdeblur("run", source, tmp_path / "out.mp4", *RUN)
    assert result.exit_code == 3, result.output
    assert "in.mp4 cannot be read as video: No such file" in result.stderr
    assert "was it moved or removed meanwhile?" in result.stderr


def test_commands_in_hints_can_be_pasted(vdeblur, tmp_path: Path) -> None:
    """C low: a name such as $(rm -rf ~) in a hint was a command for whoever pasted it."""
    evil = "it's $(touch owned); `touch owned`"
    source = clips.make(tmp_path / "in.mp4", frames=3, codec=H264)
    result = vdeblur("run", source, tmp_path / evil / "out.mp4", *RUN)
    command = result.stderr.split("(make it: ")[1].strip().removesuffix(")")
    assert shlex.split(command) == ["mkdir", "-p", str(tmp_path / evil)]
    playlist = tmp_path / f"{evil}.m3u8"
    playlist.write_text("#EXTM3U\n")
    result = vdeblur("run", playlist, tmp_path / "out.mp4", *RUN)
    command = result.stderr.split("leads to: ")[1].strip().removesuffix(")")
    assert shlex.split(command)[:3] == ["ffmpeg", "-i", playlist.name]
    facts = {"best": 1.0, "out": f"/x/{evil}", "best_update": 1, "measure": "psnr", "model": "lite"}
    command = lines_of("trained", facts)[1].removeprefix("use them: ")
    assert shlex.split(command)[-1] == f"/x/{evil}/best.safetensors"
