"""How much memory a device has left, how its lack shows, and how much this process has taken."""

import contextlib
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

# What allocators, and the libraries above them, say where it is no torch.OutOfMemoryError; the last is oneDNN's.
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
    """Give what can be had now: of a GPU's memory, or of the machine's within the limits of its control groups."""
    if device.type in ("cuda", "xpu"):
        backend = torch.cuda if device.type == "cuda" else torch.xpu
        kept = backend.memory_reserved(device) - backend.memory_allocated(device)  # by PyTorch, for itself
        return int(backend.mem_get_info(device)[0] + kept)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return min([int(psutil.virtual_memory().available), *(limit - used for limit, used in control_groups())])


def total_bytes(device: torch.device) -> int:
    """Give what there is in all, of which free_bytes is a part; it is the same in every run."""
    if device.type in ("cuda", "xpu"):
        backend = torch.cuda if device.type == "cuda" else torch.xpu
        return int(backend.mem_get_info(device)[1])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in control_groups())])


def control_groups(root: Path = Path("/")) -> Iterator[tuple[int, int]]:
    """Give the limits on memory that Linux sets this process, and how much of each is used, in bytes.

    A group's limit holds for all groups in it, so those above this process's own count, too; there are two versions of
    them, and containers see theirs as the topmost. Pages of files that were read lately are not counted as used: they
    make room when room is needed. root: where /proc and /sys are.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
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
    except OSError:  # the topmost group has no limit, and containers do not see those above their own
        return
    if most != "max":
        yield int(most), now - int(facts.get("total_inactive_file", facts.get("inactive_file", 0)))


def is_lacking(error: BaseException) -> bool:
    """Tell whether an error means that there was not enough memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def release(device: torch.device) -> None:
    """Give back what nothing uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "xpu":
        torch.xpu.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


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


def reset_resident_peak() -> None:
    """Let that peak begin anew; only Linux can, elsewhere it stays that of all that the process did."""
    with contextlib.suppress(OSError):  # where there is no such file, or it is out of bounds
        RESET.write_text(RESET_PEAK)
