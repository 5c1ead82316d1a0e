"""From a model's name to its network with verified weights, by what stands in weights.toml."""

import hashlib
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vdeblur.errors import ModelError
from vdeblur.networks import NETWORKS
from vdeblur.networks.layers import Network

WRAPPERS = ("params_ema", "params", "state_dict", "model")  # keys under which checkpoints keep their tensors


@dataclass(frozen=True)
class Entry:
    """One model of weights.toml."""

    name: str
    network: str
    description: str
    arguments: dict[str, Any]
    file: str | None
    sha256: str | None
    license: str


@cache
def entries() -> dict[str, Entry]:
    """Read weights.toml."""
    data = tomllib.loads((resources.files("vdeblur") / "weights.toml").read_text("utf-8"))
    return {
        name: Entry(
            name,
            facts["network"],
            facts["description"],
            facts.get("arguments", {}),
            facts.get("file"),
            facts.get("sha256"),
            facts["license"],
        )
        for name, facts in data.items()
    }


def find_entry(name: str) -> Entry:
    """Look up a model.

    Raises: ModelError where there is none of this name.
    """
    try:
        return entries()[name]
    except KeyError:
        raise ModelError(f"unknown model {name!r}", f"choose from {', '.join(sorted(entries()))}") from None


def load_model(name: str, checkpoint: Path | None = None) -> Network:
    """Build a model's network and load its weights, in float32, for evaluation.

    checkpoint: a file to take the weights from instead of the model's own: .safetensors, or a PyTorch checkpoint,
    which is read without running anything in it.

    Raises: ModelError where the model is unknown, or the file is missing, damaged, or made for another network.
    """
    entry = find_entry(name)
    network = NETWORKS[entry.network](**entry.arguments)
    if checkpoint is not None and not network.state_dict():
        raise ModelError(f"{name} has no weights to load", "leave out --weights")
    if checkpoint is not None:
        tensors = read_checkpoint(checkpoint)
        source = str(checkpoint)
    elif entry.file is not None:
        data = (resources.files("vdeblur") / entry.file).read_bytes()
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise ModelError(f"the weights of {name} are damaged: their SHA-256 is wrong", "install vdeblur again")
        tensors = safetensors.torch.load(data)
        source = entry.file
    else:
        return network.eval()
    _load_strictly(network, tensors, name, source)
    return network.eval()


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, out of whatever they are wrapped in, without a leading `module.`.

    Raises: ModelError where there are none to be had.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file", "check --weights")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise ModelError(f"{path} is not a whole safetensors file: {error}", "download it again") from error
    try:
        with path.open("rb") as file:
            head = file.read(256).lstrip().lower()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    if head.startswith((b"<!doctype", b"<html")):
        raise ModelError(f"{path} is a web page, not a checkpoint", "download the file itself, not its page")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than tensors, or is no checkpoint; it was not run", "take it from its authors only"
        ) from error
    except Exception as error:
        raise ModelError(f"{path} is not a whole PyTorch checkpoint", "download it again") from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{path} holds no tensors by name", "give a state dict")
    return {str(key).removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}


def _load_strictly(network: Network, tensors: dict[str, Tensor], name: str, source: str) -> None:
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    shapes = [key for key in wanted.keys() & found.keys() if wanted[key] != found[key]]
    if not missing and not extra and not shapes:
        network.load_state_dict({key: value.float() for key, value in tensors.items()})
        return
    faults = []
    if missing:
        faults.append(f"{len(missing)} tensors missing, {missing[0]} first")
    if extra:
        faults.append(f"{len(extra)} unknown, {extra[0]} first")
    if shapes:
        key = min(shapes)
        faults.append(f"{len(shapes)} of another shape, {key}: {found[key]} instead of {wanted[key]}")
    raise ModelError(f"{source} does not fit {name}: {'; '.join(faults)}", "is it for another model?")
