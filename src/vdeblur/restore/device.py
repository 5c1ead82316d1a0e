"""The device and the precision to compute with."""

import copy
import os
from collections.abc import Callable

import torch

from vdeblur.errors import DeviceError
from vdeblur.events import ignore
from vdeblur.networks.layers import Network
from vdeblur.restore.processor import is_bf16_faster

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Errors of a GPU's first use: it is busy, broken, out of memory, or unknown to this build of PyTorch.
FAULTS = (RuntimeError, AssertionError)


def choose_device(name: str, passed_over: Callable[[str], None] = ignore) -> torch.device:
    """Return the device of this name; `auto` is the first GPU that works, else the CPU.

    passed_over: called with the reason if `auto` skips a GPU.
    Raises: DeviceError if the named device is missing, or fails at its first use.
    """
    if name == "auto":
        backends = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": torch.xpu}
        for kind in (kind for kind, backend in backends.items() if backend.is_available()):
            fault = fault_of(torch.device(kind))
            if fault is None:
                return torch.device(kind)
            passed_over(f"{kind} is present, but not usable: {fault}")
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {name!r}", "choose from auto, cpu, cuda, cuda:1, mps, xpu") from error
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
        "xpu": torch.xpu.is_available(),
    }
    if not available.get(device.type, False):
        raise DeviceError(f"there is no device {name!r}", "leave out --device, or use --device cpu")
    fault = fault_of(device)
    if fault is not None:
        raise DeviceError(f"{name} is present, but not usable: {fault}", "leave out --device, or use --device cpu")
    return device


def fault_of(device: torch.device) -> str | None:
    """Return why a device fails at its first use, such as another program or a wrong driver; None if it works."""
    try:
        torch.ones(1, device=device).add_(1).item()
    except FAULTS as error:
        return in_a_line(error)
    return None


def is_lost(error: BaseException) -> bool:
    """Return whether an error means that a GPU no longer responds; check memory.is_lacking first."""
    return isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and "CUDA error" in str(error))


def in_a_line(error: BaseException) -> str:
    """Return the first line of an error's text; PyTorch adds advice for programmers."""
    return (str(error) or type(error).__name__).splitlines()[0]


def choose_precision(name: str, device: torch.device, network: Network | type[Network]) -> str:
    """Return fp32, bf16 or fp16; `auto` is half precision if the network allows it and the device is faster in it."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "fp16" if "fp16" in network.half_precision else "fp32"
    is_fast = device.type == "cpu" and "bf16" in network.half_precision and is_bf16_faster()
    return "bf16" if is_fast else "fp32"


def place(network: Network, device: torch.device, precision: str) -> Network:
    """Move a network to a device, convert it to a precision, and lay out its weights channels last.

    In half precision it keeps its float32 weights for float32_copy. If the device fails, the network stays unchanged.
    """
    if device.type == "cuda":  # TF32 has a mantissa of ten bits, as fp16, so fp32 must not use it
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    loaded = dict(network.state_dict())  # moving replaces the network's tensors, but not these
    try:
        moved: Network = network.to(device).to_precision(DTYPES[precision])
        moved = moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    except FAULTS:
        network.load_state_dict(loaded, assign=True)
        raise
    moved.float32_weights = None if precision == "fp32" else loaded
    return moved


def float32_copy(network: Network, device: torch.device) -> Network:
    """Return a float32 copy, with the original weights, of a network that was placed in half precision."""
    weights = network.float32_weights
    assert weights is not None, "only for networks that were placed in half precision"
    twin = copy.deepcopy(network, {id(weights): {}})  # without copying the weights
    twin.float32_weights = None
    twin.load_state_dict({name: tensor.to(device) for name, tensor in weights.items()}, assign=True)
    return twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def make_deterministic() -> None:
    """Make PyTorch return the same bytes for the same input on the same machine; GPUs become somewhat slower.

    On a CPU this holds for one number of threads, because threads split sums. That number is the number of cores,
    OMP_NUM_THREADS or --threads. Call this before the first use of a GPU: cuBLAS reads the size of its workspace
    then. Operations without a deterministic variant warn, and run.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # no code here reads uninitialised memory
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
