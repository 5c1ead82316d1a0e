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
import time
from collections.abc import Callable, Sequence
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
from vdeblur.errors import DeviceError, ExitStatus, InterruptedRunError, UsageError, VdeblurError
from vdeblur.events import Notify, Stop, ignore, never
from vdeblur.models import registry
from vdeblur.restore import device
from vdeblur.version import __version__

POLL_SECONDS = 0.2  # between questions whether a signal arrived
BEAT_SECONDS = 10.0  # between reports of a part that takes long
PARTS = 3  # of a model: network, pipeline, codecs


def measure_speed(
    task: SpeedTask, notify: Notify = ignore, stop: Stop = never, keep: Callable[[SpeedReport], object] = ignore
) -> SpeedReport:
    """Measure each model in each precision.

    notify: gets the event `measuring` with model, precision and part, and again while a part takes long. stop: asked
    all the time; a status means that a signal arrived. keep: after an error, called with the report of what was
    measured until then, if that is something.

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
        heartbeat = _Heartbeat(notify, stop, task.repeats * (PARTS * len(pairs) + len(task.references)))
        try:
            for _ in range(task.repeats):
                for row, (model, precision) in zip(rows, pairs, strict=True):
                    row.append(_measure_model(task, model, precision, chosen, clip, heartbeat))
                for path in task.references:
                    heartbeat.begin({"model": path.stem, "precision": "", "part": "reference"})
                    times[path.stem].append(time_reference(path, task.size, task.frames, str(chosen), heartbeat))
        except VdeblurError as error:
            done = [row for row in rows if row]
            if done:
                keep(_report(task, chosen, done, times))
                error.message += f"; measured until then: {len(done)} of {len(pairs)} models"
            raise
    return _report(task, chosen, rows, times)


def _report(
    task: SpeedTask, chosen: torch.device, rows: list[list[ModelSpeed]], times: dict[str, list[float]]
) -> SpeedReport:
    found = [ReferenceSpeed(name, statistics.median(seconds)) for name, seconds in times.items() if seconds]
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


class _Heartbeat:
    """A Stop that reports the part that is measured: when it begins, and every BEAT_SECONDS while it takes."""

    def __init__(self, notify: Notify, stop: Stop, parts: int) -> None:
        self.notify, self.stop, self.parts = notify, stop, parts
        self.number = 0
        self.facts: dict[str, object] = {}
        self.begun = self.last = time.monotonic()

    def begin(self, facts: dict[str, object]) -> None:
        """Begin the next part."""
        self.number, self.facts = self.number + 1, facts
        self.begun = self.last = time.monotonic()
        self.notify("measuring", {**facts, "number": self.number, "parts": self.parts})

    def __call__(self) -> ExitStatus | None:
        """Return the status of a signal."""
        now = time.monotonic()
        if now - self.last >= BEAT_SECONDS:
            self.last = now
            place = {"number": self.number, "parts": self.parts, "seconds": round(now - self.begun, 1)}
            self.notify("measuring", {**self.facts, **place})
        return self.stop()


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
    task: SpeedTask, model: str, precision: str, chosen: torch.device, clip: Path, heartbeat: _Heartbeat
) -> ModelSpeed:
    """Measure all parts of one model in one precision."""
    width, height = parse_size(task.size)
    options = {"model": model, "device_name": str(chosen), "precision": precision, "clip": str(clip)}
    restored = str(clip.with_name("restored.mp4"))

    def measure(part: str, **arguments: object) -> dict[str, Any]:
        heartbeat.begin({"model": model, "precision": precision, "part": part})
        return run_part({"part": part, **arguments}, heartbeat)

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
