"""The most memory that a piece of work takes."""

import sys
from pathlib import Path
from typing import Self

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): sets the peak resident set size to the current one


class Peak:
    """A context that may be entered again and again; `bytes` is the most that was seen in it.

    On CUDA what tensors took on the device, elsewhere what the whole process had resident, the libraries in it; None
    where that is not known (only Linux lets the peak be set back).
    """

    def __init__(self, chosen: torch.device) -> None:
        self.device = chosen
        self.bytes: int | None = None

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            RESET.write_text(RESET_PEAK)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.device.type == "cuda":
            self.bytes = max(self.bytes or 0, torch.cuda.max_memory_allocated(self.device))
        elif sys.platform == "linux":
            line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
            self.bytes = max(self.bytes or 0, int(line.split()[1]) * 1024)
