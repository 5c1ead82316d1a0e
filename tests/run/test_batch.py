"""Several inputs in one command: which output each has, what one failure does to the others, what is left over."""

import gc
import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from tests import clips
from tests.conftest import ROOT
from vdeblur.errors import BatchError, ExitStatus
from vdeblur.run import batch, jobs, pipeline
from vdeblur.settings import Settings

H264 = ("-c:v", "libx264", "-preset", "ultrafast")


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Three short videos in a folder."""
    folder = tmp_path / "in"
    folder.mkdir()
    first = clips.make(folder / "1.mp4", codec=H264, frames=4)
    for name in ("2.mp4", "10.mp4"):
        (folder / name).write_bytes(first.read_bytes())
    return [folder / name for name in ("1.mp4", "2.mp4", "10.mp4")]


def told_of(result) -> list[dict]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def named(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_several_inputs_go_into_a_folder(vdeblur, three: list[Path], tmp_path: Path, jobs: str) -> None:
    output = tmp_path / "out"
    result = vdeblur("run", *three, output, "-m", "identity", "--json", "-j", jobs)
    told = told_of(result)
    assert result.exit_code == 0, result.output
    done = [event for event in told if event["event"] == "file_done"]
    assert sorted(event["input"] for event in done) == sorted(str(path) for path in three)
    assert all(event["frames"] == 4 for event in done)
    assert (told[0]["event"], told[0]["inputs"]) == ("start", [str(path) for path in three])
    assert told[-1] | {"seconds": 0} == {
        "v": 1, "event": "done", "exit": 0, "files_ok": 3, "files_failed": 0, "seconds": 0
    }  # fmt: skip
    assert named(output) == {"1.mp4", "2.mp4", "10.mp4"}
    for path in three:
        assert clips.facts(output / path.name).seconds == clips.facts(path).seconds


def test_a_folder_in_is_its_videos_in_the_order_of_their_numbers(vdeblur, three: list[Path], tmp_path: Path) -> None:
    (three[0].parent / ".hidden.mp4").write_bytes(b"x")
    (three[0].parent / "notes.txt").write_bytes(b"x")
    told = told_of(vdeblur("run", three[0].parent, tmp_path / "out", "-m", "identity", "--json"))
    order = [Path(event["input"]).name for event in told if event["event"] == "file_done"]
    assert order == ["1.mp4", "2.mp4", "10.mp4"]
    assert named(tmp_path / "out") == set(order)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_one_failure_leaves_the_others_unharmed(vdeblur, three: list[Path], tmp_path: Path, jobs: str) -> None:
    three[1].write_bytes(b"no video")
    told = told_of(vdeblur("run", *three, f"{tmp_path}/out/", "-m", "identity", "--json", "-j", jobs))
    errors = [event for event in told if event["event"] == "error"]
    assert [(event["code"], event["exit"]) for event in errors] == [("E_INPUT", 3), ("E_BATCH", 8)]
    assert errors[0]["input"] == str(three[1])
    assert (told[-1]["exit"], told[-1]["files_ok"], told[-1]["files_failed"]) == (ExitStatus.BATCH, 2, 1)
    rows = next(event["files"] for event in told if event["event"] == "batch")
    assert [row["result"].split(":")[0] for row in rows] == ["restored", "failed", "restored"]
    assert named(tmp_path / "out") == {"1.mp4", "10.mp4"}


def test_suffix_writes_beside_the_inputs(vdeblur, three: list[Path]) -> None:
    odd = clips.make(three[0].with_name("odd.y4m"), frames=2, codec=())
    result = vdeblur("run", *three, odd, "--suffix", "_sharp", "-m", "identity")
    assert result.exit_code == 0, result.output
    names = {"1_sharp.mp4", "2_sharp.mp4", "10_sharp.mp4", "odd_sharp.y4m"}
    assert named(three[0].parent) == names | {"1.mp4", "2.mp4", "10.mp4", "odd.y4m"}
    for wrong in ("", "a/b"):
        assert vdeblur("run", *three, "--suffix", wrong).exit_code == ExitStatus.USAGE


def test_skip_existing_leaves_them_as_they_are(vdeblur, three: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "2.mp4").write_bytes(b"precious")
    result = vdeblur("run", *three, output, "-m", "identity")
    assert result.exit_code == ExitStatus.BATCH, "an existing output is never replaced unasked"
    told = told_of(vdeblur("run", *three, output, "-m", "identity", "--skip-existing", "--json"))
    assert sum(event["event"] == "file_skipped" for event in told) == 3
    assert (told[-1]["exit"], told[-1]["files_ok"]) == (0, 0)
    (output / "10.mp4").unlink()
    result = vdeblur("run", *three, output, "-m", "identity", "--skip-existing")
    assert result.exit_code == 0
    assert result.output.count("exists already, skipped") == 2
    assert (output / "2.mp4").read_bytes() == b"precious"
    assert len(clips.facts(output / "10.mp4").seconds) == 4


def test_what_cannot_go_together_is_refused_before_any_work(vdeblur, three: list[Path], tmp_path: Path) -> None:
    folder, other = three[0].parent, tmp_path / "other"
    other.mkdir()
    (other / "1.mp4").write_bytes(three[0].read_bytes())
    (other / "still.png").write_bytes(b"x")
    for arguments, status, words in (
        ((*three, other / "1.mp4", tmp_path / "out"), ExitStatus.USAGE, "would both become"),
        ((*three, folder), ExitStatus.USAGE, "is one of the inputs"),
        ((*three, tmp_path / "one.mp4"), ExitStatus.USAGE, "is one file, but there are several inputs"),
        ((*three, "-"), ExitStatus.USAGE, "several inputs cannot go to one pipe"),
        ((other, tmp_path / "out"), ExitStatus.INPUT, "holds both videos and pictures"),
        ((*three, tmp_path / "no" / "out"), ExitStatus.OUTPUT, "cannot be made"),
    ):
        result = vdeblur("run", *arguments, "-m", "identity")
        assert (result.exit_code, len(result.output.splitlines())) == (status, 1), result.output
        assert words in result.output
    assert named(folder) == {"1.mp4", "2.mp4", "10.mp4"}
    assert not any((tmp_path / "out").glob("*"))


def test_a_signal_in_a_batch_keeps_what_is_finished(vdeblur, tmp_path: Path) -> None:
    """Ctrl-C in the second file: the first stays, and the same command with --skip-existing goes on."""
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    clips.make(folder / "1.mp4", codec=H264, frames=4)
    long = clips.make(folder / "2.mp4", codec=H264, frames=150)
    (folder / "3.mp4").write_bytes(long.read_bytes())
    arguments = ["run", str(folder), str(output), "-m", "identity", "--json", "--segment", "1"]
    command = [sys.executable, "-m", "tests.signalled", str(int(signal.SIGINT)), "segment", "3", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert done.returncode == ExitStatus.INTERRUPTED
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in told[-3:]] == ["batch", "error", "done"]
    assert [row["result"] for row in told[-3]["files"]] == ["restored", "stopped", "stopped"]
    assert "1 of 3 files are done" in told[-2]["message"]
    assert "--skip-existing" in told[-2]["hint"]
    assert (told[-1]["exit"], told[-1]["files_ok"], told[-1]["files_failed"]) == (130, 1, 2)
    assert {name for name in named(output) if not name.startswith(".")} == {"1.mp4"}
    told = told_of(vdeblur(*arguments, "--skip-existing"))
    assert (told[-1]["exit"], told[-1]["files_ok"]) == (0, 2)
    assert sum(event["event"] == "segment" for event in told) <= 6 + 6 - 2, "what was finished is not made again"
    assert [len(clips.facts(output / f"{number}.mp4").seconds) for number in (1, 2, 3)] == [4, 150, 150]
    assert named(output) == {"1.mp4", "2.mp4", "3.mp4"}


def test_one_bad_file_of_twenty(vdeblur, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    first = clips.make(folder / "0.mp4", codec=H264, frames=2)
    for number in range(1, 20):
        (folder / f"{number}.mp4").write_bytes(first.read_bytes())
    (folder / "7.mp4").write_bytes(first.read_bytes()[:600])
    result = vdeblur("run", folder, output, "-m", "identity", "-j", "2")
    assert result.exit_code == ExitStatus.BATCH
    assert named(output) == {f"{number}.mp4" for number in range(20) if number != 7}
    table = [line for line in result.output.splitlines() if re.search(r"\d+\.mp4 +(restored|failed)", line)]
    assert len(table) == 20
    assert [line.split()[0] for line in table] == [str(folder / f"{number}.mp4") for number in range(20)]
    assert "failed" in table[7]
    last = result.output.splitlines()[-1]
    assert last.startswith("vdeblur: 1 of 20 files failed: ")
    assert "--skip-existing" in last


@pytest.mark.parametrize("at_once", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_fifty_files_leave_no_threads_and_no_handles(tmp_path: Path, at_once: int) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    first = clips.make(folder / "0.mp4", codec=H264, frames=2, audio=("-c:a", "aac"))
    for number in range(1, 50):
        (folder / f"{number}.mp4").write_bytes(first.read_bytes())
    (folder / "25.mp4").write_bytes(b"bad")
    settings = Settings(model="identity")
    planned = jobs.plan_jobs([str(folder)], str(tmp_path / "out"), None, settings)
    batch.run_jobs(planned[:2], settings, at_once)  # libraries start what they keep
    ours = psutil.Process()
    before = ours.num_fds(), threading.active_count(), ours.num_threads()
    outcomes = batch.run_jobs(planned[2:], settings, at_once)
    with pytest.raises(BatchError, match="1 of 48 files failed"):
        batch.check_outcomes(outcomes)
    assert sum(isinstance(outcome.result, pipeline.RunResult) for outcome in outcomes) == 47
    gc.collect()  # what one file's end has not yet collected of the other's
    assert (ours.num_fds(), threading.active_count()) == before[:2]
    assert ours.num_threads() <= before[2] + 2, "torch may add to its own, once"
