"""Measure how fast models are on this machine: the network alone, the whole run, its stages, and ratios.

Each part is measured in a process of its own (stages.py), one after the other, all models and precisions in turn, and
all of that as often as `repeats` says; the report has the medians. So ratios hold on a machine whose speed varies.
"""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vdeblur import errors
from vdeblur.bench.baselines import BASELINES
from vdeblur.bench.moving_clip import make_clip
from vdeblur.bench.network_speed import WARM_UP
from vdeblur.bench.speed_results import (
    CodecSpeed,
    ModelSpeed,
    NetworkSeconds,
    NetworkSpeed,
    PipelineSpeed,
    ReferenceSpeed,
    SpeedReport,
    SpeedTask,
)
from vdeblur.errors import DeviceError, InterruptedRunError, UsageError
from vdeblur.events import Notify, Stop, ignore, never
from vdeblur.models import registry
from vdeblur.restore import device
from vdeblur.version import __version__

POLL_SECONDS = 0.2  # between questions whether a signal arrived


def measure_speed(task: SpeedTask, notify: Notify = ignore, stop: Stop = never) -> SpeedReport:
    """Measure each model in each precision.

    notify: gets the event `measuring` with model, precision and part. stop: asked all the time; a status means that a
    signal arrived.

    Raises: UsageError, ModelError, DeviceError, InterruptedRunError.
    """
    width, height = parse_size(task.size)
    for model in task.models:
        if model not in BASELINES:
            registry.find_entry(model)  # raises for a misspelt name before anything is measured
    chosen = device.choose_device(task.device)
    pairs = [(model, precision) for model in task.models for precision in task.precisions]
    rows: list[list[ModelSpeed]] = [[] for _ in pairs]
    times: dict[str, list[float]] = {path.stem: [] for path in task.references}
    with tempfile.TemporaryDirectory() as folder:
        clip = make_clip(Path(folder) / "clip.mp4", width, height, task.frames)
        for _ in range(task.repeats):
            for row, (model, precision) in zip(rows, pairs, strict=True):
                row.append(_measure_model(task, model, precision, chosen, clip, notify, stop))
            for path in task.references:
                notify("measuring", {"model": path.stem, "precision": "", "part": "reference"})
                times[path.stem].append(time_reference(path, task.size, task.frames, str(chosen), stop))
    found = [ReferenceSpeed(name, statistics.median(seconds)) for name, seconds in times.items()]
    return SpeedReport(
        device=str(chosen),
        device_name=device_name_of(chosen),
        threads=torch.get_num_threads(),
        versions={"vdeblur": __version__, "torch": torch.__version__, "av": metadata.version("av")},
        size=task.size,
        frames=task.frames,
        warm_up_frames=WARM_UP,
        repeats=task.repeats,
        models=_with_ratios([_median(row) for row in rows], found),
        references=found,
    )


def parse_size(size: str) -> tuple[int, int]:
    """Return width and height.

    Raises: UsageError.
    """
    sides = size.lower().split("x")
    if len(sides) != 2 or not all(side.isascii() and side.isdigit() and int(side) >= 16 for side in sides):
        raise UsageError(f"--size {size} is not a size", "write WIDTHxHEIGHT in pixels, at least 16, as 1280x720")
    width, height = map(int, sides)
    if width % 2 or height % 2:
        raise UsageError(f"--size {size} is odd", "4:2:0 video has even sides")
    return width, height


def _measure_model(
    task: SpeedTask, model: str, precision: str, chosen: torch.device, clip: Path, notify: Notify, stop: Stop
) -> ModelSpeed:
    """Measure all parts of one model in one precision."""
    width, height = parse_size(task.size)
    options = {"model": model, "device_name": str(chosen), "precision": precision, "clip": str(clip)}
    restored = str(clip.with_name("restored.mp4"))

    def measure(part: str, **arguments: object) -> dict[str, Any]:
        notify("measuring", {"model": model, "precision": precision, "part": part})
        return run_part({"part": part, **arguments}, stop)

    is_filter = model in BASELINES
    facts = measure("filter" if is_filter else "network", **options, width=width, height=height, frames=task.frames)
    network = NetworkSpeed(**{**facts, "network_seconds": NetworkSeconds(**facts["network_seconds"])})
    run = PipelineSpeed(**measure("filtering" if is_filter else "pipeline", **options, output=restored))
    codecs = CodecSpeed(**measure("codecs", clip=str(clip), restored=restored))
    rates = (network.network_fps, codecs.encoder_fps, codecs.decoder_fps)
    # On the CPU network and codecs share the cores, so their times add up; else the slowest part sets the pace.
    allowed = 1 / sum(1 / rate for rate in rates) if chosen.type == "cpu" or is_filter else min(rates)
    stages = {"decode": 1 / codecs.decoder_fps, **network.stages, "encode": 1 / codecs.encoder_fps}
    shared = {field.name: getattr(network, field.name) for field in fields(network)}
    return ModelSpeed(
        model=model,
        pipeline_fps=run.pipeline_fps,
        peak_memory_bytes=run.memory_bytes,
        peak_device_memory_bytes=run.device_memory_bytes,
        allowed_fps=allowed,
        share=run.pipeline_fps / allowed,
        **asdict(codecs),
        **{**shared, "stages": stages},
    )


def _with_ratios(models: list[ModelSpeed], references: list[ReferenceSpeed]) -> list[ModelSpeed]:
    return [
        replace(
            model,
            ratio=model.network_fps / models[0].network_fps,
            reference_ratios={
                reference.name: reference.seconds_per_frame * model.network_fps for reference in references
            },
        )
        for model in models
    ]


def _median(values: Sequence[Any]) -> Any:
    """Return the median of every number in results of the same form; of texts and flags the first."""
    first = values[0]
    if is_dataclass(first) and not isinstance(first, type):
        return replace(
            first,
            **{field.name: _median([getattr(value, field.name) for value in values]) for field in fields(first)},
        )
    if isinstance(first, dict):
        return {key: _median([value[key] for value in values]) for key in first}
    if isinstance(first, int | float) and not isinstance(first, bool):
        return statistics.median(values)
    return first


def run_part(task: dict[str, Any], stop: Stop = never) -> dict[str, Any]:
    """Measure one part in a process of its own, with as many threads as this one; task and result: see stages.py.

    Raises: the error of the part if a user can fix it; DeviceError if the system killed the process.
    """
    line = json.dumps({**task, "threads": torch.get_num_threads()}) + "\n"
    # -P: without it, Python would import from the working folder first, where others may have put modules.
    output = _run([sys.executable, "-P", "-m", "vdeblur.bench.stages"], line, stop)
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    if "error" in result:
        kind, message, hint = result["error"]
        raise getattr(errors, kind)(message, hint)
    return result


def _run(command: list[str], text: str, stop: Stop) -> str:
    """Run a command with this text on stdin; return its stdout.

    It gets a session of its own: a signal from the terminal then reaches only this process, which ends the command. By
    default it computes with as many threads as this process.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(torch.get_num_threads()))
    process = subprocess.Popen(  # noqa: S603 - this Python, with a script that the user names
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | threads,
        start_new_session=True,
    )
    try:
        remaining: str | None = text
        while True:
            try:
                output, complaint = process.communicate(remaining, timeout=POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                remaining = None
                if status := stop():
                    raise InterruptedRunError(status) from None
    finally:
        process.kill()
        process.wait()
    if process.returncode < 0:
        raise DeviceError("the system killed a measurement; memory may have run out", "choose a smaller --size")
    if process.returncode:
        last = complaint.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"{' '.join(command)}: {last[0]}")
    return output


def time_reference(script: Path, size: str, frames: int, device_name: str, stop: Stop = never) -> float:
    """Let a script measure something else; return seconds per frame.

    It runs as `python SCRIPT WIDTHxHEIGHT FRAMES DEVICE` with this Python. The last line it writes to stdout must be a
    number: the seconds per frame.

    Raises: UsageError if it fails or writes something else.
    """
    try:
        output = _run([sys.executable, str(script), size, str(frames), device_name], "", stop)
    except RuntimeError as error:
        raise UsageError(f"--reference failed: {error}", "run it alone to see why") from error
    with contextlib.suppress(IndexError, ValueError):
        seconds = float(output.splitlines()[-1])
        if seconds > 0:
            return seconds
    raise UsageError(
        f"--reference {script} did not say how many seconds a frame takes", "print that number as the last line"
    )


def device_name_of(chosen: torch.device) -> str:
    """Return the name of the GPU, or of the processor with its number of cores."""
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.processor() or platform.machine())}, {os.cpu_count()} cores"
