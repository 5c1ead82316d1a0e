"""Checkpoints: read without running code in them, and fitted to a network strictly."""

import contextlib
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vdeblur.errors import ModelError
from vdeblur.fetch.sources import text_kind
from vdeblur.models import caffe, released_flow_rnn, switches
from vdeblur.models.pickles import HostilePickleError, check_sizes, load_pickle
from vdeblur.models.registry import ModelEntry, known_models
from vdeblur.networks import PARTS
from vdeblur.networks.layers import Network

SUFFIXES = {".safetensors", ".pt", ".pth", ".pytorch", ".ckpt", ".tar", caffe.SUFFIX}
WRAPPERS = ("params_ema", "params", "state_dict", "model")  # keys under which checkpoints keep their tensors
DTYPES = {  # that weights may have
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}
ARCHIVED = (".tar", ".pt", ".pth", ".pytorch", ".safetensors")  # checkpoints that authors put into archives
HEAD_BYTES = 512  # enough to recognise a web page or a pickle


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name, without wrappers and without a leading `module.`.

    path: safetensors or a Caffe model if its suffix says so, else what torch.save wrote (.pt, .pth, .pytorch, .tar),
    old or new. The only Caffe model that any network takes is flow-rnn's; its tensors get the names of FlowRNN.
    Raises: ModelError if it holds no tensors, or some of a kind that no network takes.
    """
    if path.is_dir():
        raise ModelError(f"{path} is a folder, not a checkpoint", "name the file in it")
    if not path.is_file():
        raise ModelError(f"{path}: no such file", "check the path")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    if kind := text_kind(head):
        raise ModelError(f"{path} is {kind}, not a checkpoint", "download the file itself")
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.suffix == caffe.SUFFIX or caffe.looks_like_caffe(head):
        tensors = _read_caffe(path)
    else:
        tensors = _unwrapped(_read_pickle(path, head), path)
    _check_kinds(tensors, path)
    try:
        check_sizes(tensors, path)
    except HostilePickleError as error:
        raise ModelError(f"{path} is not read: {error}", "take checkpoints from their authors only") from error
    return tensors


def refuse_other_training(path: Path, entry: ModelEntry) -> None:
    """Refuse weights that fit, but that vdeblur has trained as another model, or for one part of the network only.

    A model of the user's own registry takes those of other models with its network if it changes arguments that
    change no weights, as the number of CDVD-TSP's stages.

    Raises: ModelError.
    """
    model = training_of(path).get("model", entry.name)
    is_alike = entry.is_users and model in (known := known_models()) and known[model].network == entry.network
    if model != entry.name and not (is_alike and _changes_no_weights(entry)):
        raise ModelError(f"{path} holds weights that were trained as {model}, not {entry.name}", f"use -m {model}")
    refuse_stage(path, entry)


def training_of(path: Path) -> dict[str, Any]:
    """Return what a file of weights says about its training by vdeblur: model, stage, network; empty for others."""
    if path.suffix != ".safetensors":
        return {}  # others do not say how they were trained
    try:
        with safetensors.safe_open(path, "pt") as file:
            training = json.loads((file.metadata() or {}).get("training", "{}"))
    except (safetensors.SafetensorError, ValueError, OSError):
        return {}  # damaged files fail when their tensors are read; metadata of others may have any form
    return training if isinstance(training, dict) else {}


def _changes_no_weights(entry: ModelEntry) -> bool:
    return any(key in entry.arguments for key in entry.network_class.fit_any_weights)


def refuse_stage(path: Path, entry: ModelEntry) -> None:
    """Refuse weights of which vdeblur has trained one part only.

    Raises: ModelError.
    """
    stage = training_of(path).get("stage", "")
    if stage in PARTS:
        raise ModelError(
            f"{path} is of the stage {stage}: only that part of {entry.name} is trained in it",
            f"train {entry.name} from it, with --set start.{stage}={path}, or use the weights of that training",
        )


def variant_of_file(path: Path, entry: ModelEntry) -> ModelEntry:
    """Return the model's entry with the constructor's arguments that a file of weights was trained with.

    Those that any weights fit, as the number of CDVD-TSP's stages, may differ in the user's own registry.

    Raises: ModelError where others are not those that the user's own registry gives the model.
    """
    found = training_of(path).get("network")
    if not isinstance(found, dict):
        return entry
    fixed = switches.plain(entry.arguments) if entry.is_users else {}
    chosen = {key: fixed.pop(key) for key in entry.network_class.fit_any_weights if key in fixed}
    if other := [key for key, value in fixed.items() if found.get(key) != value]:
        hint = f"leave {', '.join(other)} out of the arguments of {entry.name}, or add a model with those of the file"
        raise _other_variant(path, entry, found, f"in the registry that VDEBLUR_REGISTRY names, {hint}")
    return entry.with_arguments({**found, **chosen})


def refuse_variant(path: Path, entry: ModelEntry) -> None:
    """Refuse weights that vdeblur has trained for a network with other arguments.

    Raises: ModelError.
    """
    found = training_of(path).get("network")
    if isinstance(found, dict) and _differing(found, entry):
        differing = " ".join(f"--set network.{key}=..." for key in _differing(found, entry))
        hint = f"run it with --weights, train from it with {differing}, or add a model with these arguments to the "
        raise _other_variant(path, entry, found, f"{hint}registry that VDEBLUR_REGISTRY names")


def _differing(found: dict[str, Any], entry: ModelEntry) -> list[str]:
    wanted, free = switches.plain(entry.variant), entry.network_class.fit_any_weights if entry.is_users else ()
    return [key for key in sorted(found) if found[key] != wanted.get(key) and key not in free]


def _other_variant(path: Path, entry: ModelEntry, found: dict[str, Any], hint: str) -> ModelError:
    wanted, differing = switches.plain(entry.variant), _differing(found, entry)
    theirs = switches.described({key: found[key] for key in differing})
    ours = switches.described({key: wanted[key] for key in differing if key in wanted})
    return ModelError(f"{path} holds weights of another variant of {entry.name}: {theirs}, not {ours}", hint)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # a damaged header fails in many ways
        raise ModelError(f"{path} is not a complete safetensors file: {error}", "download it again") from error


def _read_caffe(path: Path) -> dict[str, Tensor]:
    """Read flow-rnn's released weights, and refuse every other Caffe model."""
    page = (
        "flow-rnn's FlowNet2-s_weights_iter_1060000.caffemodel (vdeblur models show flow-rnn) is the only one it reads"
    )
    try:
        model = caffe.read_caffe(path)
    except caffe.CaffeError as error:
        raise ModelError(
            f"{path} is not a whole Caffe model (.caffemodel, a network's weights as Caffe writes them): {error}",
            "download it again",
        ) from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    try:
        return released_flow_rnn.convert(model)
    except caffe.CaffeError as error:
        named = f" named {model.name!r}" if model.name else ""
        message = f"{path} is a Caffe model{named} (.caffemodel, a network's weights as Caffe writes them)"
        raise ModelError(f"{message}, but not the one of flow-rnn: {error}", page) from error


def _read_pickle(path: Path, head: bytes) -> Any:
    """Read what torch.save wrote, a zip or the plain pickles before PyTorch 1.6, and run nothing in it."""
    try:
        return load_pickle(path)
    except HostilePickleError as error:
        raise ModelError(f"{path} is not read: {error}", "take checkpoints from their authors only") from error
    except UnpicklingError as error:
        # The restricted reader names what it would have to import, or meets an instruction that tensors do not need. In
        # a file that is neither a pickle nor a zip, such an "instruction" is only a byte of something else.
        is_pickle = head.startswith((b"\x80", b"PK"))
        if "GLOBAL" in str(error) or (is_pickle and "Unsupported" in str(error)):
            raise ModelError(
                f"{path} holds more than tensors; vdeblur did not run it", "take checkpoints from their authors only"
            ) from error
        raise ModelError(f"{path} is not a complete PyTorch checkpoint", _what_to_do(path)) from error
    except Exception as error:
        raise ModelError(f"{path} is not a complete PyTorch checkpoint", _what_to_do(path)) from error


def _what_to_do(path: Path) -> str:
    """Return what helps where a file is no checkpoint: it may be an archive that holds one."""
    with contextlib.suppress(OSError, zipfile.BadZipFile):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                held = [name for name in archive.namelist() if Path(name).suffix in ARCHIVED]
            if held:
                return f"it is an archive: take {held[0]} out of it and use that"
    return "download it again"


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors in what a checkpoint holds, which may keep them under one of WRAPPERS."""
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{path} holds no named tensors", "use a state dict")
    return {str(key).removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}


def _check_kinds(tensors: dict[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not dense, or of a type that weights do not have.

    Raises: ModelError.
    """
    for name, value in tensors.items():
        if kind := _odd_kind(value):
            message = f"{path} holds {name} as a {kind} tensor, which no network supports"
            raise ModelError(message, "save it as a plain float tensor")


def _odd_kind(value: Tensor) -> str:
    """Name what makes a tensor unusable as weights; empty if nothing does."""
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


def fit_model(tensors: dict[str, Tensor], network: Network, entry: ModelEntry, source: str) -> dict[str, Tensor]:
    """Return the state dict of a model's network from a checkpoint's tensors.

    source: the checkpoint's name, for the error.
    Raises: ModelError saying what does not fit, and which model the file is for, if there is one.
    """
    state, faults = fit(tensors, network, entry.prefix, entry.ignored)
    if not faults:
        return state
    # If names and shapes fit, the values are wrong, and the file fits no other network.
    others = () if _fits(tensors, entry) else known_models().values()
    for other in others:
        if other.network and other.name != entry.name and _fits(tensors, other):
            message = f"{source} holds the weights of {other.name}, not of {entry.name}"
            raise ModelError(message, f"use it with {other.name}")
    for part, kind in PARTS.items():
        if _fits_part(tensors, kind):
            alone = f"{source} holds {part} alone, a part of a network"
            message = f"{alone}, and does not fit {entry.name}: {'; '.join(faults)}"
            raise ModelError(message, f"a training can start from it: vdeblur train --set start.{part}={source}")
    raise ModelError(f"{source} does not fit {entry.name}: {'; '.join(faults)}", "is it for another model?")


def _fits_part(tensors: dict[str, Tensor], kind: type[nn.Module]) -> bool:
    with torch.device("meta"):
        return not fit(tensors, kind())[1]


def fit_start(tensors: dict[str, Tensor], entry: ModelEntry, source: str) -> dict[str, Tensor]:
    """Return start weights under their authors' names: all tensors of the part, and no others.

    source: the checkpoint's name, for the error.
    Raises: ModelError saying what does not fit.
    """
    if entry.part not in PARTS:
        raise ModelError(f"{entry.name} is for the unknown part {entry.part!r}", f"parts: {', '.join(PARTS)}")
    # Later ports of these networks say "net..." instead of "module...".
    tensors = {re.sub(r"(?:^|(?<=\.))net(?=[A-Z])", "module", name): value for name, value in tensors.items()}
    part = PARTS[entry.part]
    state, faults = fit(tensors, part(), entry.prefix, entry.ignored)
    if faults:
        raise ModelError(f"{source} does not fit {entry.name}: {'; '.join(faults)}", "is it for another model?")
    return {part.official_name(name): value for name, value in state.items()}  # type: ignore[attr-defined]


def _fits(tensors: dict[str, Tensor], entry: ModelEntry) -> bool:
    """Return whether tensors have the names and shapes of a model, whose network gets no memory."""
    try:
        with torch.device("meta"):
            network = entry.build()
        return bool(network.state_dict()) and not fit(tensors, network, entry.prefix, entry.ignored)[1]
    except Exception:  # constructors that compute with their tensors cannot be built like this: such models go unnamed
        return False


def fit(
    tensors: dict[str, Tensor], network: nn.Module, prefix: str = "", ignored: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], list[str]]:
    """Return a checkpoint's tensors as a network's state dict, and a list of what does not fit.

    The tensors have our names, or the authors' names with `prefix` before them; ignored ones are left out. Shapes may
    differ by sides of length 1. If the network is on the meta device, values are not compared.
    """
    # A part of a network may have no names of its authors.
    official_name: Callable[[str], str] = getattr(type(network), "official_name", str)
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
        faults.append(f"{len(integers)} of integers instead of floats, {official[integers[0]]} first")
    faults += _unfit_values(fitted, constants, official)
    constants_of_state = {name: value for name, value in constants.items() if name in state}
    return {name: value for name, value in fitted.items() if name in state} | constants_of_state, faults


def _in_our_names(
    tensors: dict[str, Tensor], official: dict[str, str], prefix: str, ignored: tuple[str, ...]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return a checkpoint's tensors under our names, and the unknown keys, whichever names it uses."""
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
    """Name values that cannot be right: constants of another network, NaN, and values too large for float32."""
    faults = []
    for name, value in fitted.items():
        if name in constants and not constants[name].is_meta:
            if not torch.equal(constants[name].to(value.dtype), value):
                faults.append(f"{official[name]} differs from the network's")
        elif value.is_floating_point() and not value.is_meta and not bool(value.float().isfinite().all()):
            faults.append(f"{official[name]} holds NaN, or values too large for float32")
            break
    return faults
