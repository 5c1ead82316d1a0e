"""The processor: the threads of its networks, and whether bfloat16 is faster than float32, which the cache remembers.

The instruction set does not say the latter: on one processor with bfloat16 instructions of AVX-512, convolutions in
bfloat16 took half the time of float32, but six times as long where ONEDNN_MAX_CPU_ISA=AVX2 forbade these instructions.
"""

import contextlib
import contextvars
import functools
import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from vdeblur import files

CLEARLY_FASTER = 1.1  # least speedup that counts, so that noise does not change the precision
CHANNELS, HEIGHT, WIDTH = 64, 180, 320  # of a 3x3 convolution as the networks have it; 4.2 GFLOP, some 17 ms in float32
ROUNDS = 5  # in each round both precisions run once; the best of each counts, so the first round may be a warm-up
INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16")  # for products of bfloat16, as PyTorch names them
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE")  # they change oneDNN's kernels
FORMAT = 1  # of the file; others are measured again

_remembers = contextvars.ContextVar("remembers", default=True)
_unkept: dict[str, float] = {}  # measured speedups that are in no file yet, by machine
_measuring = threading.Lock()  # two measurements at the same time would disturb each other


@contextlib.contextmanager
def with_threads(count: int | None) -> Iterator[None]:
    """Let networks on the CPU use `count` threads, at most one for each core; None: as many as before."""
    before = torch.get_num_threads()  # asked first: the first call fixes what this thread of Python has
    if count is not None:
        torch.set_num_threads(min(count, os.cpu_count() or count))
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


@contextlib.contextmanager
def writing_nothing() -> Iterator[None]:
    """Write no measurements to the cache meanwhile, as a dry run does."""
    token = _remembers.set(False)
    try:
        yield
    finally:
        _remembers.reset(token)


def is_bf16_faster() -> bool:
    """Return whether bfloat16 is clearly faster than float32 on this processor."""
    speedup = bf16_speedup()
    return speedup is not None and speedup >= CLEARLY_FASTER


def bf16_speedup() -> float | None:
    """Return the time of a convolution in float32 over its time in bfloat16; None without bfloat16 instructions.

    It is measured at the first call, within a fraction of a second, and then kept in the cache folder: once for each
    machine, limit of its instructions, and version of PyTorch.
    """
    capabilities = torch.cpu.get_capabilities()  # since torch 2.11
    if not any(capabilities.get(name) for name in INSTRUCTIONS):
        return None
    machine = {
        "processor": dict(capabilities),
        "limits": {name: os.environ[name] for name in LIMITS if name in os.environ},
        "torch": str(torch.__version__),
    }
    key = json.dumps(machine, sort_keys=True)
    with _measuring:
        speedup = _speedup_of(key)
        if _remembers.get() and key in _unkept:
            _keep(key, _unkept.pop(key))
        return speedup


@functools.cache
def _speedup_of(machine: str) -> float:
    """Return the speedup of this machine, described in JSON: from its file, or measured."""
    speedup = _read(machine)
    if speedup is None:
        speedup = _unkept[machine] = measure_bf16_speedup()
    return speedup


def _keep(machine: str, speedup: float) -> None:
    """Write the machine's file, if that is possible."""
    facts = {"format": FORMAT, "machine": json.loads(machine), "bf16_speedup": speedup}
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home folder
        files.write_whole(_file_of(machine), json.dumps(facts, indent=1).encode())


def _file_of(machine: str) -> Path:
    """Return the machine's file; several machines may share a cache folder."""
    return files.cache_folder() / "processors" / f"{hashlib.sha256(machine.encode()).hexdigest()[:16]}.json"


def _read(machine: str) -> float | None:
    """Return the speedup in the machine's file; None if there is no such file, or it is not what was written there."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RuntimeError):  # RuntimeError: nested too deeply
        facts: dict[str, Any] = json.loads(_file_of(machine).read_text("utf-8"))
        speedup = facts["bf16_speedup"]
        is_of_machine = facts["format"] == FORMAT and facts["machine"] == json.loads(machine)
        if is_of_machine and isinstance(speedup, float) and math.isfinite(speedup) and speedup > 0:
            return speedup
    return None


@torch.inference_mode()
def measure_bf16_speedup() -> float:
    """Measure the time of a convolution in float32 over its time in bfloat16, in turn and in one thread.

    Beside other programs one thread gives 1.96 to 1.99 where two that wait for each other give 1.1 to 1.9.
    """
    generator = torch.Generator().manual_seed(0)  # of its own: the caller's random numbers stay the same
    frame = torch.rand(1, CHANNELS, HEIGHT, WIDTH, generator=generator, dtype=torch.float32, device="cpu")
    kernel = torch.rand(CHANNELS, CHANNELS, 3, 3, generator=generator, dtype=torch.float32, device="cpu")
    inputs = {
        dtype: [x.to(dtype).to(memory_format=torch.channels_last) for x in (frame, kernel)]
        for dtype in (torch.float32, torch.bfloat16)
    }
    seconds = dict.fromkeys(inputs, math.inf)
    with with_threads(1):
        for _ in range(ROUNDS):
            for dtype, (x, weight) in inputs.items():
                begun = time.perf_counter()
                F.conv2d(x, weight, padding=1)
                seconds[dtype] = min(seconds[dtype], time.perf_counter() - begun)
    return seconds[torch.float32] / seconds[torch.bfloat16]
