"""The peak of memory during a piece of work."""

from typing import Self

import torch

from vdeblur.restore.memory import reset_resident_peak, resident_peak


class Peak:
    """A context that can be entered many times; `bytes` is the peak over all of them, None if unknown.

    On CUDA it counts the device memory of tensors, elsewhere the resident memory of the whole process with its
    libraries. Only Linux can reset that peak; elsewhere it includes all that the process did before.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
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
