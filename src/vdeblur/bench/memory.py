"""The most memory that a piece of work takes."""

import contextlib
import sys
from pathlib import Path
from typing import Self

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): sets the peak resident set size to the current one


def resident_peak() -> int | None:
    """Give the most bytes that this process has had resident; None where the system does not tell."""
    if STATUS.exists():  # getrusage would count what the parent held, too, when it began this process
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Peak:
    """A context that may be entered again and again; `bytes` is the most that was seen in it.

    On CUDA what tensors took on the device, elsewhere what the whole process had resident, the libraries in it. Only
    Linux lets that peak be set back, elsewhere it is of all that the process did before, too.
    """

    def __init__(self, chosen: torch.device) -> None:
        self.device = chosen
        self.bytes: int | None = None

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):  # where there is no such file, or it is out of bounds
                RESET.write_text(RESET_PEAK)
        return self

    def __exit__(self, *exception: object) -> None:
        seen = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else resident_peak()
        if seen is not None:
            self.bytes = max(self.bytes or 0, seen)
