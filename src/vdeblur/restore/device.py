"""Which device computes, and in which precision."""

import copy
import os
from collections.abc import Callable

import torch

from vdeblur.errors import DeviceError
from vdeblur.events import ignore
from vdeblur.networks.layers import Network

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What a GPU's first use can end with: busy or broken, out of memory; not known to this build of PyTorch.
FAULTS = (RuntimeError, AssertionError)


def choose_device(name: str, passed_over: Callable[[str], None] = ignore) -> torch.device:
    """Give the device of this name; `auto` is the first GPU there is that works, else the CPU.

    passed_over: takes why `auto` does not use a GPU that is there.
    Raises: DeviceError where the device asked for is not there, or fails at its first use.
    """
    if name == "auto":
        backends = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": torch.xpu}
        for kind in (kind for kind, backend in backends.items() if backend.is_available()):
            fault = fault_of(torch.device(kind))
            if fault is None:
                return torch.device(kind)
            passed_over(f"{kind} is there, but cannot be used: {fault}")
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {name!r}", "choose from auto, cpu, cuda, cuda:1, mps, xpu") from error
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
        "xpu": torch.xpu.is_available(),
    }
    if not there.get(device.type, False):
        raise DeviceError(f"there is no device {name!r} here", "leave out --device, or use --device cpu")
    fault = fault_of(device)
    if fault is not None:
        raise DeviceError(f"{name} is there, but cannot be used: {fault}", "leave out --device, or use --device cpu")
    return device


def fault_of(device: torch.device) -> str | None:
    """Give why a device fails at its first use: another program keeps it busy or full, its driver does not fit."""
    try:
        torch.ones(1, device=device).add_(1).item()
    except FAULTS as error:
        return in_a_line(error)
    return None


def is_lost(error: BaseException) -> bool:
    """Tell whether an error means that a GPU does not answer any more; memory.is_lacking is to be asked first."""
    return isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and "CUDA error" in str(error))


def in_a_line(error: BaseException) -> str:
    """Give what an error says first; PyTorch's go on with advice for programmers."""
    return (str(error) or type(error).__name__).splitlines()[0]


def choose_precision(name: str, device: torch.device, network: Network | type[Network]) -> str:
    """Give fp32, bf16 or fp16; `auto` is half precision where the network bears it and the device is made for it."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "fp16" if "fp16" in network.half_precision else "fp32"
    good = device.type == "cpu" and "bf16" in network.half_precision and computes_bf16()
    return "bf16" if good else "fp32"


def computes_bf16() -> bool:
    """Whether this processor multiplies bfloat16 itself; emulated it is slower than float32."""
    facts = torch.cpu.get_capabilities()  # since torch 2.11
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16") or facts.get("arm_bf16") or facts.get("bf16"))


def place(network: Network, device: torch.device, precision: str) -> Network:
    """Move a network to a device in a precision, laid out as convolutions like it best.

    In half precision it keeps its weights as they were, see exact_copy. Where the device fails, the network is what it
    was before.
    """
    if device.type == "cuda":  # TF32 has fp16's ten bits, so it is for those who asked for no more
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    loaded = dict(network.state_dict())  # moving replaces what these refer to, and leaves them alone
    try:
        moved: Network = network.to(device).to_precision(DTYPES[precision])
        moved = moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    except FAULTS:
        network.load_state_dict(loaded, assign=True)
        raise
    moved.exact_weights = None if precision == "fp32" else loaded
    return moved


def exact_copy(network: Network, device: torch.device) -> Network:
    """Give a network in float32 beside one that was placed in half precision, from the weights before that."""
    weights = network.exact_weights
    assert weights is not None, "only for networks that were placed in half precision"
    twin = copy.deepcopy(network, {id(weights): {}})  # they need not be copied
    twin.exact_weights = None
    twin.load_state_dict({name: tensor.to(device) for name, tensor in weights.items()}, assign=True)
    return twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def make_deterministic() -> None:
    """Have PyTorch give the same bytes for the same input on the same machine, at some cost in speed on GPUs.

    On a CPU that holds for one number of threads: sums are split among them. PyTorch takes as many as there are cores
    unless OMP_NUM_THREADS says otherwise, so that is to stay the same. Call it before a GPU is used first: cuBLAS reads
    its workspace's size then. An operation that has no such way warns, and goes on.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads what was not written
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
