"""Processes that train one network together, as `torchrun` starts them; a lone process is a group of one."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from vdeblur.errors import UsageError
from vdeblur.restore import device

# Until others count as dead: a process may be reading a large set's folders, or writing its memory maps.
PATIENCE = timedelta(hours=1)

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """A process among those that train together: its rank, the group's size, its device.

    restarts: how often torchrun has restarted the group. run: torchrun's name for the run; empty without one.
    """

    rank: int
    size: int
    device: torch.device
    restarts: int = 0
    run: str = ""

    @property
    def is_main(self) -> bool:
        """Return whether this process writes files and reports progress."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agree(self, value: Any) -> Any:
        """Return the main process's value; wait for all processes."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def upload(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a batch on the device."""
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def main_first(self, make: Callable[[], T]) -> T:
        """Call make in the main process first, which may download or write files for all; return its result."""
        if self.is_main:
            made = make()
        self.agree(None)
        if not self.is_main:
            made = make()
        self.agree(None)
        return made

    def any(self, value: bool) -> bool:
        """Return whether the value is true in any process."""
        if self.size == 1:
            return value
        flag = torch.tensor([float(value)], device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a tensor over the processes."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size


@contextlib.contextmanager
def joined(device_name: str) -> Iterator[ProcessGroup]:
    """Join the group that torchrun started; NCCL connects GPUs, gloo CPUs. Yield a group of one without torchrun.

    device_name: as for run. "auto" and "cuda" give each process of a machine a GPU of its own.
    Raises: UsageError where there are fewer GPUs than processes; DeviceError where the device is missing.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 and "RANK" not in os.environ:
        chosen = device.choose_device(device_name)
        if chosen.type == "cuda" and chosen.index is not None:
            torch.cuda.set_device(chosen)  # otherwise pinned memory would use the first one
        yield ProcessGroup(0, 1, chosen)
        return
    chosen = _own_device(device_name, int(os.environ.get("LOCAL_RANK", "0")))
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    # A prefix for each start; otherwise processes find the addresses of lost ones.
    store = PrefixStore(f"vdeblur/{restarts}", store)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        run = os.environ.get("TORCHELASTIC_RUN_ID", "none").replace("none", "")
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), chosen, restarts, run)
    finally:
        dist.destroy_process_group()


def is_parted(error: BaseException) -> bool:
    """Return whether an error means that another process no longer answers."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _own_device(name: str, local: int) -> torch.device:
    """Return the device of the process with this local rank."""
    if name.startswith("cuda:"):
        raise UsageError(f"--device {name} is one GPU, and there are several processes", "use --device cuda")
    if name in ("auto", "cuda") and torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"process {local + 1} of this machine has no GPU, there are {torch.cuda.device_count()}",
                "start torchrun with a smaller --nproc-per-node, or use --device cpu",
            )
        torch.cuda.set_device(local)  # before the first use; otherwise all processes take memory on the first GPU
        return device.choose_device(f"cuda:{local}")
    return device.choose_device(name)
