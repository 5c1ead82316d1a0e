"""Free and total memory of a device, the signs of running out of it, and the peak of this process."""

import contextlib
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

# Texts of allocators and libraries that raise no torch.OutOfMemoryError; the last is oneDNN's.
SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "_STATUS_ALLOC_FAILED",
    "bad allocation",
    "could not create a primitive",
)

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): sets the peak resident set size to the current one


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a GPU, or of the machine within the limits of its control groups."""
    if device.type in ("cuda", "xpu"):
        backend = torch.cuda if device.type == "cuda" else torch.xpu
        kept = backend.memory_reserved(device) - backend.memory_allocated(device)  # PyTorch's own cache
        return int(backend.mem_get_info(device)[0] + kept)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return min([int(psutil.virtual_memory().available), *(limit - used for limit, used in control_groups())])


def total_bytes(device: torch.device) -> int:
    """Return the total memory, of which free_bytes is a part; it is the same in every run."""
    if device.type in ("cuda", "xpu"):
        backend = torch.cuda if device.type == "cuda" else torch.xpu
        return int(backend.mem_get_info(device)[1])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in control_groups())])


def control_groups(root: Path = Path("/")) -> Iterator[tuple[int, int]]:
    """Yield the memory limits that Linux sets this process, and how much of each is used, in bytes.

    A group's limit covers the groups inside it, so those above this process's own count, too. Control groups have two
    versions, and a container sees its own as the topmost. Inactive pages of files do not count as used: the kernel
    drops them when it needs room. root: where /proc and /sys are.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    top = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder = top / "memory" if controllers else top
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        own = folder / path.lstrip("/")
        for group in (own, *own.parents):
            yield from _limit_and_use(group, *names)
            if group == folder:
                break


def _limit_and_use(group: Path, limit: str, used: str) -> Iterator[tuple[int, int]]:
    try:
        most = (group / limit).read_text().strip()
        now = int((group / used).read_text())
        facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:  # the topmost group has no limit, and containers do not see groups above their own
        return
    if most != "max":
        yield int(most), now - int(facts.get("total_inactive_file", facts.get("inactive_file", 0)))


def is_lacking(error: BaseException) -> bool:
    """Return whether an error means that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def release(device: torch.device) -> None:
    """Free memory that nothing uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "xpu":
        torch.xpu.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def resident_peak() -> int | None:
    """Return the peak resident memory of this process in bytes; None if the system does not report it."""
    if STATUS.exists():  # getrusage would include what the parent held when it started this process
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_resident_peak() -> None:
    """Reset that peak, which only Linux can; elsewhere it covers the life of the process."""
    with contextlib.suppress(OSError):  # the file is missing or read-only
        RESET.write_text(RESET_PEAK)
