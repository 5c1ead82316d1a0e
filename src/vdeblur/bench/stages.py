"""Child processes that each measure one part of a bench, so that their peaks of memory do not add up.

These parts (PARTS) are not the stages of a run (decode, color, ...) that reports list as `stages`.

`python -m vdeblur.bench.stages` reads one line of JSON, {"part": a key of PARTS, "threads": for PyTorch, and the
arguments of the part's function}, and writes one: the dataclass that the function returns, or {"error": [class,
message, hint]}.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from vdeblur.bench.network_speed import time_filter, time_network
from vdeblur.bench.run_speed import time_codecs, time_filtering, time_pipeline
from vdeblur.bench.speed_results import CodecSpeed, NetworkSpeed, PipelineSpeed
from vdeblur.errors import DeviceError, VdeblurError

PARTS: dict[str, Callable[..., NetworkSpeed | PipelineSpeed | CodecSpeed]] = {
    "network": time_network,
    "pipeline": time_pipeline,
    "filter": time_filter,
    "filtering": time_filtering,
    "codecs": time_codecs,
}


def run_stage() -> None:
    """Measure the part that the line on stdin names; errors that a user can fix become JSON, too."""
    task: dict[str, Any] = json.loads(sys.stdin.readline())
    torch.set_num_threads(task.pop("threads"))
    try:
        result: dict[str, Any] = asdict(PARTS[task.pop("part")](**task))
    except torch.OutOfMemoryError:
        error: VdeblurError = DeviceError("the device is out of memory", "choose a smaller --size")
        result = {"error": [type(error).__name__, error.message, error.hint]}
    except VdeblurError as error:
        result = {"error": [type(error).__name__, error.message, error.hint]}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    run_stage()
