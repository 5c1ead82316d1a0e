"""Measure `vdeblur run` on an idle and on a busy machine, with several ways for its threads to wait for each other.

    python -m benchmarks.threads             # some minutes on an idle machine; prints a table for benchmarks/README.md
    python -m benchmarks.threads --frames 4 --busy 0,4 --settings passive,short --rounds 3

Busy means: beside so many other processes that compute all the time. All settings are measured in turn, as often as
--rounds says, and the table has the medians, so that ratios hold on a machine whose speed varies. The ffmpeg of
imageio-ffmpeg makes the clip. Rates are those of the run's own report, without the seconds that Python takes to start.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.long_run import make_clip
from vdeblur.threads import SPINNING


@dataclass(frozen=True)
class Setting:
    """environment: variables of OpenMP. options: of `vdeblur run`."""

    environment: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()


SETTINGS = {
    "default": Setting(),  # what vdeblur chooses itself
    "spinning": Setting({"GOMP_SPINCOUNT": "300000"}),  # GCC's own default, about 3 ms
    "short": Setting({"GOMP_SPINCOUNT": "10000"}),
    "passive": Setting({"OMP_WAIT_POLICY": "passive"}),
    "one-thread": Setting(options=("--threads", "1")),
    "one-thread-encoder": Setting(options=("-e", "threads=1")),
}
MEASURED = "spinning,passive,one-thread"  # without --settings; the first is what ratios refer to


@dataclass(frozen=True)
class Rate:
    """frames_per_second: of the run. processor_seconds: of all its threads, for each frame, Python's start included."""

    frames_per_second: float
    processor_seconds: float


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep so many processes computing."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def time_run(clip: Path, setting: Setting, model: str, precision: str) -> Rate:
    """Restore a clip in a process of its own, as the command line does."""
    environment = {name: value for name, value in os.environ.items() if name not in SPINNING} | setting.environment
    output = clip.with_name("restored.mp4")
    words = ["run", clip, output, "-m", model, "-p", precision, "-d", "cpu", "-y", "--no-resume", "--json"]
    command = [sys.executable, "-m", "vdeblur", *map(str, words), *setting.options]
    before = _processor_seconds()
    lines = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    spent = _processor_seconds() - before
    done = next(event for event in map(json.loads, lines) if event["event"] == "file_done")
    return Rate(done["frames"] / done["seconds"], spent / done["frames"])


def _processor_seconds() -> float:
    """Return the processor time of all child processes that have ended, the busy ones not among them."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(
    clip: Path, names: Sequence[str], loads: Sequence[int], rounds: int, model: str, precision: str
) -> dict[tuple[int, str], Rate]:
    """Measure all settings beside each number of busy processes; return the medians."""
    rates: dict[tuple[int, str], list[Rate]] = {(load, name): [] for load in loads for name in names}
    time_run(clip, SETTINGS[names[0]], model, precision)  # measures bf16 and fills the disk's cache
    for _ in range(rounds):
        for load in loads:
            with busy_processes(load):
                for name in names:
                    rates[load, name].append(time_run(clip, SETTINGS[name], model, precision))
    return {
        key: Rate(
            statistics.median(rate.frames_per_second for rate in found),
            statistics.median(rate.processor_seconds for rate in found),
        )
        for key, found in rates.items()
    }


def table(rates: dict[tuple[int, str], Rate]) -> str:
    """Return the rates as a Markdown table, with ratios to the first setting beside the same load, and beside none."""
    lines = [
        "| beside | setting | frames/s | to the first setting | to the first load | processor seconds a frame |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    first_load, first_name = next(iter(rates))
    for (load, name), rate in rates.items():
        beside = f"{load} busy" if load else "nothing"
        ratios = [
            rate.frames_per_second / rates[key].frames_per_second for key in ((load, first_name), (first_load, name))
        ]
        cells = (beside, name, f"{rate.frames_per_second:.3g}", *(f"{ratio:.2f}" for ratio in ratios))
        lines.append(f"| {' | '.join(cells)} | {rate.processor_seconds:.3g} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", default="1280x720", help="of the clip, WIDTHxHEIGHT")
    parser.add_argument("--frames", type=int, default=24, help="of the clip")
    parser.add_argument("--clip", type=Path, help="a video of your own instead")
    parser.add_argument("--model", default="lite")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--busy", default="0,1,2", help="numbers of busy processes, separated by commas")
    parser.add_argument("--settings", default=MEASURED, help=f"of {', '.join(SETTINGS)}, separated by commas")
    parser.add_argument("--rounds", type=int, default=1, help="how often to measure everything")
    given = parser.parse_args()
    names, loads = given.settings.split(","), [int(load) for load in given.busy.split(",")]
    if unknown := [name for name in names if name not in SETTINGS]:
        parser.error(f"unknown settings: {', '.join(unknown)}")
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        if given.clip is None:
            make_clip(clip, given.size, given.frames)
        else:
            clip = clip.with_suffix(given.clip.suffix)
            clip.write_bytes(given.clip.read_bytes())
        print(f"{os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}", flush=True)
        print(table(measure(clip, names, loads, given.rounds, given.model, given.precision)))


if __name__ == "__main__":
    main()
