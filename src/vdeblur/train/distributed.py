"""Several processes that train one network, as `torchrun` starts them; a process alone needs nothing of it."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from vdeblur.errors import UsageError
from vdeblur.restore import device

# Until others are thought dead: a process may be reading a large set's folders, or be writing its memory maps.
PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class ProcessGroup:
    """A process among those that train together: its number, how many there are, and what it computes on.

    restarts: how often torchrun has started them anew. run: torchrun's name for the whole run, if it has one.
    """

    rank: int
    size: int
    device: torch.device
    restarts: int = 0
    run: str = ""

    @property
    def leads(self) -> bool:
        """Tell whether this is the one that writes files and tells how it goes."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Give the values of all processes, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agree(self, value: Any) -> Any:
        """Give what the leading process says."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def any(self, value: bool) -> bool:
        """Tell whether it holds in any process."""
        if self.size == 1:
            return value
        flag = torch.tensor([float(value)], device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Give the mean of a tensor over the processes."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size


@contextlib.contextmanager
def joined(device_name: str) -> Iterator[ProcessGroup]:
    """Join the processes that torchrun has started, if it has: NCCL between GPUs, gloo else.

    device_name: as for run. "auto" and "cuda" give each process of a machine a GPU of its own.
    Raises: UsageError where there are fewer GPUs than processes; DeviceError where the device is missing.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 and "RANK" not in os.environ:
        chosen = device.choose_device(device_name)
        if chosen.type == "cuda" and chosen.index is not None:
            torch.cuda.set_device(chosen)  # or what pins memory would use the first one
        yield ProcessGroup(0, 1, chosen)
        return
    chosen = _own_device(device_name, int(os.environ.get("LOCAL_RANK", "0")))
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    # Of its own for each start, or processes find the addresses of those that were lost.
    store = PrefixStore(f"vdeblur/{restarts}", store)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        run = os.environ.get("TORCHELASTIC_RUN_ID", "none").replace("none", "")
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), chosen, restarts, run)
    finally:
        dist.destroy_process_group()


def is_parted(error: BaseException) -> bool:
    """Tell whether an error means that another process does not answer any more."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _own_device(name: str, local: int) -> torch.device:
    """Give the device of a machine's process with this number."""
    if name.startswith("cuda:"):
        raise UsageError(f"--device {name} is one GPU, and there are several processes", "use --device cuda")
    if name in ("auto", "cuda") and torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"process {local + 1} of this machine has no GPU, there are {torch.cuda.device_count()}",
                "give torchrun a smaller --nproc-per-node, or use --device cpu",
            )
        torch.cuda.set_device(local)  # before the first use, or all processes would take room on the first GPU
        return device.choose_device(f"cuda:{local}")
    return device.choose_device(name)
