"""The most memory that a piece of work takes."""

from typing import Self

import torch

from vdeblur.restore.memory import reset_resident_peak, resident_peak


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
            reset_resident_peak()
        return self

    def __exit__(self, *exception: object) -> None:
        seen = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else resident_peak()
        if seen is not None:
            self.bytes = max(self.bytes or 0, seen)
