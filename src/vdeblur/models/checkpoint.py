"""Checkpoints: read without running anything in them, and fitted to a network strictly."""

import warnings
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vdeblur.errors import ModelError
from vdeblur.fetch.sources import text_kind

WRAPPERS = ("params_ema", "params", "state_dict", "model")  # keys under which checkpoints keep their tensors
DTYPES = {  # that weights may have
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, out of whatever they are wrapped in, without a leading `module.`.

    Raises: ModelError where there are none to be had, or some are of a kind that no network here has.
    """
    if path.is_dir():
        raise ModelError(f"{path} is a folder, not a checkpoint", "give the file in it")
    if not path.is_file():
        raise ModelError(f"{path}: no such file", "check the path")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    if kind := text_kind(head):
        raise ModelError(f"{path} is {kind}, not a checkpoint", "download the file itself")
    if path.suffix == ".safetensors":
        try:
            return _plain(safetensors.torch.load_file(path), path)
        except ModelError:
            raise
        except Exception as error:  # a header can lie in many ways
            raise ModelError(f"{path} is not a whole safetensors file: {error}", "download it again") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # about its pickle protocol, which users cannot change
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        # The restricted reader names what it would have to import, or meets an instruction that tensors do not need. In
        # a file that is neither a pickle nor a zip, such an "instruction" is only a byte of something else.
        is_pickle = head.startswith((b"\x80", b"PK"))
        if "GLOBAL" in str(error) or (is_pickle and "Unsupported" in str(error)):
            raise ModelError(
                f"{path} holds more than tensors; it was not run", "take checkpoints from their authors only"
            ) from error
        raise ModelError(f"{path} is not a whole PyTorch checkpoint", "download it again") from error
    except Exception as error:
        raise ModelError(f"{path} is not a whole PyTorch checkpoint", "download it again") from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{path} holds no tensors by name", "give a state dict")
    tensors = {str(key).removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}
    return _plain(tensors, path)


def _plain(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Give the tensors back.

    Raises: ModelError where one is more than numbers in a row, or of numbers that weights are not made of.
    """
    for name, value in tensors.items():
        kind = _odd_kind(value)
        if kind:
            message = f"{path} holds {name} as a {kind} tensor, which no network here can take"
            raise ModelError(message, "save it as a plain float tensor")
    return tensors


def _odd_kind(value: Tensor) -> str:
    """Name what a tensor is that weights are not; empty where there is nothing of the kind."""
    if value.is_nested:
        return "nested"
    if value.layout != torch.strided:
        return "sparse"
    if value.is_quantized:
        return "quantized"
    if value.device.type != "cpu":
        return value.device.type
    if type(value) not in (Tensor, torch.nn.Parameter):
        return type(value).__name__
    return "" if value.dtype in DTYPES else str(value.dtype).removeprefix("torch.")


def fit(
    tensors: dict[str, Tensor], network: nn.Module, prefix: str = "", ignored: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], list[str]]:
    """Turn a checkpoint's tensors into a network's state dict; gives it with a list of what does not fit.

    The tensors may have our names or their authors', before which these may have put prefix; ignored ones are left
    out. Shapes may differ by sides of length 1. The network may be on the meta device: then values are not compared.
    """
    official_name: Callable[[str], str] = type(network).official_name  # type: ignore[attr-defined]  # as parts have, too
    constant_buffers: tuple[str, ...] = getattr(network, "constant_buffers", ())
    official = {name: official_name(name) for name in (*network.state_dict(), *constant_buffers)}
    state = network.state_dict()
    constants = {name: network.get_buffer(name) for name in constant_buffers}
    found, extra = _in_our_names(tensors, official, prefix, ignored)
    fitted, shapes, faults = {}, [], []
    for name, value in sorted(found.items()):
        wanted = constants[name] if name in constants else state[name]
        if _long_sides(wanted) == _long_sides(value):
            fitted[name] = value.reshape(wanted.shape)
        else:
            shapes.append(f"{official[name]}: {tuple(value.shape)} instead of {tuple(wanted.shape)}")
    missing = sorted(official[name] for name in state.keys() - found.keys() - constants.keys())
    if missing:
        faults.append(f"{len(missing)} tensors missing, {missing[0]} first")
    if extra:
        faults.append(f"{len(extra)} unknown, {extra[0]} first")
    if shapes:
        faults.append(f"{len(shapes)} of another shape, {shapes[0]}")
    integers = [
        name
        for name, value in fitted.items()
        if name in state and state[name].is_floating_point() and not value.is_floating_point()
    ]
    if integers:
        faults.append(f"{len(integers)} of integers instead of fractions, {official[integers[0]]} first")
    faults += _unfit_values(fitted, constants, official)
    constants_of_state = {name: value for name, value in constants.items() if name in state}
    return {name: value for name, value in fitted.items() if name in state} | constants_of_state, faults


def _in_our_names(
    tensors: dict[str, Tensor], official: dict[str, str], prefix: str, ignored: tuple[str, ...]
) -> tuple[dict[str, Tensor], list[str]]:
    """Give a checkpoint's tensors under our names, and the keys that mean nothing, whichever names it uses."""
    tensors = {key: value for key, value in tensors.items() if key not in ignored}
    stripped = {key.removeprefix(prefix): value for key, value in tensors.items()}
    ours = {theirs: name for name, theirs in official.items()}
    if len(ours.keys() & stripped.keys()) > len(official.keys() & tensors.keys()):
        known = {ours[key]: value for key, value in stripped.items() if key in ours}
        return known, sorted(stripped.keys() - ours.keys())
    known = {key: value for key, value in tensors.items() if key in official}
    return known, sorted(tensors.keys() - official.keys())


def _long_sides(tensor: Tensor) -> list[int]:
    return [side for side in tensor.shape if side != 1]


def _unfit_values(fitted: dict[str, Tensor], constants: dict[str, Tensor], official: dict[str, str]) -> list[str]:
    """Name values that cannot be right: constants of another network, and numbers that are none."""
    faults = []
    for name, value in fitted.items():
        if name in constants and not constants[name].is_meta:
            if not torch.equal(constants[name].to(value.dtype), value):
                faults.append(f"another {official[name]} than the network's")
        elif value.is_floating_point() and not value.is_meta and not bool(value.float().isfinite().all()):
            faults.append(f"{official[name]} holds values that are not numbers, or too large for float32")
            break
    return faults
