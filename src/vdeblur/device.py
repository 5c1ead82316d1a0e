"""Which device computes, and in which precision."""

import os

import torch

from vdeblur.errors import DeviceError
from vdeblur.networks.layers import Network

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """Give the device of this name; `auto` is the first GPU there is, else the CPU.

    Raises: DeviceError where it is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("xpu" if torch.xpu.is_available() else "cpu")
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
    return device


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
    """Move a network to a device in a precision, laid out as convolutions like it best."""
    if device.type == "cuda":  # TF32 has fp16's ten bits, so it is for those who asked for no more
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    moved: Network = network.to(device).to_precision(DTYPES[precision])
    return moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


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
