"""Processor threads: `--threads`, what a resumed run makes of them, and how OpenMP's threads wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import long_run
from benchmarks import threads as busy

from tests import clips
from vdeblur.bench import evaluate, speed
from vdeblur.cli import bench as cli_bench
from vdeblur.errors import ExitStatus, InputError, InterruptedRunError, UsageError
from vdeblur.networks.identity import Identity
from vdeblur.restore import processor
from vdeblur.run.pipeline import restore_file
from vdeblur.settings import EncodeOptions, Settings
from vdeblur.threads import SPINNING


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of threads at each frame that the network identity passes through."""
    counts: list[int] = []
    forward = Identity.forward

    def watched(self: Identity, *frames: torch.Tensor) -> torch.Tensor:
        counts.append(torch.get_num_threads())
        return forward(self, *frames)

    monkeypatch.setattr(Identity, "forward", watched)
    return counts


@pytest.mark.parametrize(("options", "threads"), [(("--threads", "3"), 3), (("--threads", "1000000"), 8), ((), None)])
def test_the_network_gets_so_many_threads(
    vdeblur, tmp_path: Path, seen: list[int], options: tuple[str, ...], threads: int | None
) -> None:
    before = torch.get_num_threads()
    source = clips.make(tmp_path / "in.mkv", frames=2)
    result = vdeblur("run", source, tmp_path / "out.mkv", "-m", "identity", *options)
    assert result.exit_code == 0, result.output
    assert seen == [threads or before] * 2
    assert torch.get_num_threads() == before, "it is the caller's again"


def test_files_at_once_get_so_many_each(vdeblur, tmp_path: Path, seen: list[int]) -> None:
    before = torch.get_num_threads()
    sources = [clips.make(tmp_path / f"{name}.mkv", frames=2) for name in "ab"]
    result = vdeblur("run", *sources, f"{tmp_path}/out/", "-m", "identity", "-j", "2", "--threads", "3")
    assert result.exit_code == 0, result.output
    assert seen == [3] * 4
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("value", ["0", "-1", "two"])
@pytest.mark.parametrize("command", [("run", "in.mkv", "out.mkv"), ("bench", "--speed")], ids=lambda words: words[0])
def test_a_wrong_number_is_an_error(vdeblur, command: tuple[str, ...], value: str) -> None:
    result = vdeblur(*command, "--threads", value)
    assert result.exit_code == ExitStatus.USAGE
    assert "--threads" in result.stderr


def test_errors_leave_the_callers_threads(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with pytest.raises(UsageError, match="threads 0 is less than 1"):
        Settings(threads=0)
    (tmp_path / "in.mkv").write_bytes(b"no video")
    with pytest.raises(InputError):
        restore_file(tmp_path / "in.mkv", tmp_path / "out.mkv", Settings(model="identity", threads=5))
    assert torch.get_num_threads() == before


def test_a_run_resumes_with_other_threads(tmp_path: Path, seen: list[int]) -> None:
    """Segments that were made with other threads stay valid, as if OMP_NUM_THREADS had changed."""
    source, output = clips.make(tmp_path / "in.mkv", frames=10), tmp_path / "out.mkv"
    options = {"model": "identity", "segment": 0.16, "encoding": EncodeOptions(lossless=True)}
    with pytest.raises(InterruptedRunError):
        restore_file(
            source, output, Settings(**options, threads=2),
            stop=lambda: ExitStatus.INTERRUPTED if len(seen) > 5 else None,
        )  # fmt: skip
    made = len(seen)
    restore_file(source, output, Settings(**options, threads=3))
    again = seen[made:]
    assert set(again) == {3}
    assert len(again) < 10, "the finished segment is kept"
    assert clips.facts(output).seconds == clips.facts(source).seconds


@pytest.mark.parametrize("speed_too", [True, False])
def test_bench_measures_with_so_many(vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speed_too: bool) -> None:
    seen: list[int] = []

    def stop_here(*arguments: object, **more: object) -> None:
        seen.append(torch.get_num_threads())
        raise UsageError("enough")

    monkeypatch.setattr(cli_bench, "run_speed", stop_here)
    monkeypatch.setattr(evaluate, "run_bench", stop_here)
    what = ("--speed",) if speed_too else ("--dataset", tmp_path)
    assert vdeblur("bench", *what, "--threads", "3").exit_code == ExitStatus.USAGE
    assert seen == [3]


def test_parts_of_a_bench_compute_with_the_threads_of_their_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """References, too; ratios would mean nothing otherwise."""
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    part = f"import os, sys; print([os.environ[name] for name in {names}], sys.stdin.read())"
    with processor.with_threads(3):
        output = speed._run([sys.executable, "-c", part], "x", lambda: None)
    assert output.strip() == "['3', '3'] x"


def test_the_benchmark_of_busy_machines(tmp_path: Path) -> None:
    clip = long_run.make_clip(tmp_path / "clip.mp4", "64x48", 2)
    rate = busy.time_run(clip, busy.SETTINGS["one-thread"], "identity", "fp32")
    assert rate.frames_per_second > 0
    assert rate.processor_seconds > 0
    rates = {(0, "a"): busy.Rate(8, 1), (0, "b"): busy.Rate(6, 1), (2, "a"): busy.Rate(2, 4), (2, "b"): busy.Rate(3, 1)}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in busy.table(rates).splitlines()[2:]]
    assert rows == [
        ["nothing", "a", "8", "1.00", "1.00", "1"],
        ["nothing", "b", "6", "0.75", "1.00", "1"],
        ["2 busy", "a", "2", "1.00", "0.25", "4"],
        ["2 busy", "b", "3", "1.50", "0.50", "1"],
    ]


PROGRAM = "import os, sys; from vdeblur.cli.main import main\ntry: main(['{word}'])\nexcept SystemExit: pass\n"
PRINTED = "print(sorted((n, v) for n, v in os.environ.items() if n in {names}))"


@pytest.mark.parametrize("own", [{}, {"GOMP_SPINCOUNT": "5"}, {"OMP_WAIT_POLICY": "active"}, {"KMP_BLOCKTIME": "1"}])
def test_waiting_threads_sleep_unless_the_user_chooses(own: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in SPINNING} | own
    code = PROGRAM.format(word="--version") + PRINTED.format(names=SPINNING)
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.splitlines()[-1] == str(sorted((own or {"OMP_WAIT_POLICY": "passive"}).items()))


def test_the_library_leaves_the_environment_alone() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in SPINNING}
    code = "import os, vdeblur, vdeblur.threads, vdeblur.cli.main, vdeblur.run.pipeline\n" + PRINTED.format(
        names=SPINNING
    )
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
