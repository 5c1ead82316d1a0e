"""How fast models are on this machine: the network alone, the whole run, what it is made of, and ratios.

Every part is measured in a process of its own (parts.py), one after the other, models and precisions in turn, and all
that again as often as is asked for; of figures that were taken several times the median is given. So ratios hold on a
machine that is now faster, now slower.
"""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vdeblur import __version__, errors
from vdeblur.bench import report
from vdeblur.bench.baselines import BASELINES
from vdeblur.bench.stages import WARM_UP, make_clip
from vdeblur.errors import DeviceError, InterruptedRunError, UsageError
from vdeblur.events import Notify, Stop, ignore, never
from vdeblur.models import registry
from vdeblur.restore import device

POLL_SECONDS = 0.2  # between questions whether a signal came
KINDS = (".json", ".md")

Results = dict[str, Any]
Show = Callable[[Results], str]


def measure_speed(
    models: Sequence[str],
    precisions: Sequence[str] = ("auto",),
    size: str = "1280x720",
    frames: int = 60,
    device_name: str = "auto",
    references: Sequence[Path] = (),
    repeats: int = 1,
    notify: Notify = ignore,
    stop: Stop = never,
) -> Results:
    """Measure models in precisions; gives what `vdeblur bench --speed` writes as JSON, see the README.

    models: unsharp and cas may be among them. size: WIDTHxHEIGHT, even. references: scripts to compare with, see
    time_reference. notify: takes the event `measuring` with model, precision and part. stop: asked all the time; a
    status means that a signal came.

    Raises: UsageError, ModelError, DeviceError, InterruptedRunError.
    """
    width, height = parse_size(size)
    for model in models:
        if model not in BASELINES:
            registry.find_entry(model)  # a misspelt name is told before anything is measured
    chosen = device.choose_device(device_name)
    rows: list[list[Results]] = [[] for _ in range(len(models) * len(precisions))]
    times: dict[str, list[float]] = {path.stem: [] for path in references}
    with tempfile.TemporaryDirectory() as folder:
        clip = make_clip(Path(folder) / "clip.mp4", width, height, frames)
        for _ in range(repeats):
            pairs = ((model, precision) for model in models for precision in precisions)
            for taken, (model, precision) in zip(rows, pairs, strict=True):
                row = _measure_row(model, precision, str(chosen), width, height, frames, clip, notify, stop)
                taken.append(row | _share_of(row, chosen.type == "cpu" or model in BASELINES))
            for path in references:
                notify("measuring", {"model": path.stem, "precision": "", "part": "reference"})
                times[path.stem].append(time_reference(path, size, frames, str(chosen), stop))
    medians = [_median(taken) for taken in rows]
    found = [{"name": name, "seconds_per_frame": statistics.median(taken)} for name, taken in times.items()]
    for row in medians:
        row["ratio"] = row["network_fps"] / medians[0]["network_fps"]
        row["reference_ratios"] = {one["name"]: one["seconds_per_frame"] * row["network_fps"] for one in found}
    return {
        "v": 1,
        "device": str(chosen),
        "device_name": device_name_of(chosen),
        "threads": torch.get_num_threads(),
        "versions": {"vdeblur": __version__, "torch": torch.__version__, "av": metadata.version("av")},
        "size": size,
        "frames": frames,
        "warm_up_frames": WARM_UP,
        "repeats": repeats,
        "models": medians,
        "references": found,
    }


def parse_size(size: str) -> tuple[int, int]:
    """Give width and height.

    Raises: UsageError.
    """
    sides = size.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) >= 16 for side in sides):
        raise UsageError(f"--size {size} is not understood", "write WIDTHxHEIGHT in pixels, at least 16, as 1280x720")
    width, height = map(int, sides)
    if width % 2 or height % 2:
        raise UsageError(f"--size {size} is odd", "4:2:0 video has even sides")
    return width, height


def _measure_row(
    model: str,
    precision: str,
    device_name: str,
    width: int,
    height: int,
    frames: int,
    clip: Path,
    notify: Notify,
    stop: Stop,
) -> Results:
    """Measure all parts of one model in one precision."""
    named = {"model": model, "device_name": device_name, "precision": precision, "clip": str(clip)}
    restored = str(clip.with_name("restored.mp4"))

    def part(name: str, **told: object) -> Results:
        notify("measuring", {"model": model, "precision": precision, "part": name})
        return run_part({"part": name, **told}, stop)

    alone, together = ("filter", "filtering") if model in BASELINES else ("network", "pipeline")
    network = part(alone, **named, width=width, height=height, frames=frames)
    whole = part(together, **named, output=restored)
    codecs = part("codecs", clip=str(clip), restored=restored)
    stages = {"decode": 1 / codecs["decoder_fps"], **network.pop("stages"), "encode": 1 / codecs["encoder_fps"]}
    peaks = {f"peak_{name}": value for name, value in whole.items() if name.endswith("memory_bytes")}
    rates = {"network_fps": network.pop("network_fps"), "pipeline_fps": whole["pipeline_fps"], **codecs}
    return {"model": model, "precision": network.pop("precision"), **rates, "stages": stages, **peaks, **network}


def run_part(told: Results, stop: Stop = never) -> Results:
    """Do one part in a process of its own.

    Raises: what the part raised, if a user can mend it; DeviceError where the system ended it.
    """
    output = _run([sys.executable, "-m", "vdeblur.bench.stages"], json.dumps(told) + "\n", stop)
    result: Results = json.loads(output.splitlines()[-1])
    if "error" in result:
        kind, message, hint = result["error"]
        raise getattr(errors, kind)(message, hint)
    return result


def _run(command: list[str], given: str, stop: Stop) -> str:
    """Run a command; gives its stdout.

    It has a session of its own, so that a signal from the terminal reaches this process only, which then ends it.
    """
    process = subprocess.Popen(  # noqa: S603 - this Python, with a script that the user names
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        waiting: str | None = given
        while True:
            try:
                output, complaint = process.communicate(waiting, timeout=POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                waiting = None
                if status := stop():
                    raise InterruptedRunError(status) from None
    finally:
        process.kill()
        process.wait()
    if process.returncode < 0:
        raise DeviceError("the system ended a measurement; memory may have run out", "choose a smaller --size")
    if process.returncode:
        last = complaint.strip().splitlines()[-1:] or ["it says nothing"]
        raise RuntimeError(f"{' '.join(command)}: {last[0]}")
    return output


def time_reference(script: Path, size: str, frames: int, device_name: str, stop: Stop = never) -> float:
    """Let a script measure something else; gives seconds per frame.

    It is run as `python SCRIPT WIDTHxHEIGHT FRAMES DEVICE` with this Python, and the last line that it writes to stdout
    is a number: how many seconds a frame takes.

    Raises: UsageError where it does otherwise.
    """
    try:
        output = _run([sys.executable, str(script), size, str(frames), device_name], "", stop)
    except RuntimeError as error:
        raise UsageError(f"--reference failed: {error}", "run it alone to see why") from error
    with contextlib.suppress(IndexError, ValueError):
        seconds = float(output.splitlines()[-1])
        if seconds > 0:
            return seconds
    raise UsageError(f"--reference {script} did not say how many seconds a frame takes", "as its last line, a number")


def _median(taken: Sequence[Any]) -> Any:
    """Give the median of every figure in results of the same form."""
    first = taken[0]
    if isinstance(first, dict):
        return {key: _median([one[key] for one in taken]) for key in first}
    if isinstance(first, int | float) and not isinstance(first, bool):
        return statistics.median(taken)
    return first


def _share_of(row: Results, shares_cores: bool) -> Results:
    """Give what the parts of one round allow, and which share of it the pipeline reached in that round."""
    rates = [row[f"{part}_fps"] for part in ("network", "encoder", "decoder")]
    # On the CPU network and codecs share the cores, so their times add up; else the slowest part leads.
    allowed = 1 / sum(1 / rate for rate in rates) if shares_cores else min(rates)
    return {"allowed_fps": allowed, "share": row["pipeline_fps"] / allowed}


def device_name_of(chosen: torch.device) -> str:
    """Name the GPU, or the processor and its cores."""
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.processor() or platform.machine())}, {os.cpu_count()} cores"


def check_speed_report(path: Path) -> None:
    """Refuse a report that cannot be written, before the long work begins.

    Raises: UsageError, OutputError.
    """
    report.check_report(path, KINDS, "a report of speed")


def write_speed_report(results: Results, path: Path) -> None:
    """Write results as JSON, or as tables to paste into a README.

    Raises: UsageError, OutputError.
    """
    check_speed_report(path)
    text = speed_as_markdown(results) if path.suffix.lower() == ".md" else json.dumps(results, indent=1) + "\n"
    report.write_text(text, path)


def speed_as_markdown(results: Results) -> str:
    """Give the tables that are shown on a terminal, too."""
    titled = (f"{title}:\n\n{report.markdown_table(heads, rows)}" for title, heads, rows in tables(results))
    return "\n\n".join([summary(results), *titled]) + "\n"


def summary(results: Results) -> str:
    """Say in a line what was measured where."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"{results['frames']} frames of {results['size']} on {results['device']} ({results['device_name']}, "
        f"{results['threads']} threads), after {results['warm_up_frames']} to warm up, "
        f"median of {results['repeats']}; {versions}"
    )


def tables(results: Results) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Give tables of text: title, heads and rows."""
    groups = {
        "Frames a second": RATES,
        "The network for a frame, and peak memory": COSTS,
        "Milliseconds a frame spends in each stage": {
            stage: _milliseconds("stages", stage) for stage in results["models"][0]["stages"]
        },
        "Times as fast as the references": {
            f"{one['name']} ({one['seconds_per_frame']:.3g} s)": _reference_ratio(one["name"])
            for one in results["references"]
        },
    }
    for title, columns in groups.items():
        if columns:
            rows = [[show(row) for show in (NAMES | columns).values()] for row in results["models"]]
            yield title, [*NAMES, *columns], rows


def _short(number: float) -> str:
    """Give three digits, or all before the point."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _megabytes(number: int | None) -> str:
    return "-" if number is None else f"{number / 1e6:.0f}"


def _milliseconds(*keys: str) -> Show:
    def show(row: Results) -> str:
        for key in keys[:-1]:
            row = row[key]
        return _short(1000 * row[keys[-1]])

    return show


def _reference_ratio(name: str) -> Show:
    return lambda row: f"{row['reference_ratios'][name]:.2f}"


# Columns of tables: their heads, and what they show of a row.
NAMES: dict[str, Show] = {
    "model": lambda row: row["model"] + ("" if row["trained"] else " (untrained weights)"),
    "precision": lambda row: row["precision"],
}
RATES: dict[str, Show] = {
    "network": lambda row: _short(row["network_fps"]),
    "ratio": lambda row: f"{row['ratio']:.2f}",
    "run": lambda row: _short(row["pipeline_fps"]),
    "of what its parts allow": lambda row: f"{row['share']:.2f}",
    "decoder": lambda row: _short(row["decoder_fps"]),
    "encoder": lambda row: _short(row["encoder_fps"]),
}
COSTS: dict[str, Show] = {
    "median, ms": _milliseconds("network_seconds", "median"),
    "95 %, ms": _milliseconds("network_seconds", "p95"),
    "CPU, ms": _milliseconds("network_cpu_seconds"),
    "GFLOP": lambda row: "-" if row["flops"] is None else _short(row["flops"] / 1e9),
    "parameters, M": lambda row: f"{row['params'] / 1e6:.2f}",
    "network, MB": lambda row: _megabytes(row["network_memory_bytes"]),
    "run, MB": lambda row: _megabytes(row["peak_memory_bytes"]),
    "run on the device, MB": lambda row: _megabytes(row["peak_device_memory_bytes"]),
}
