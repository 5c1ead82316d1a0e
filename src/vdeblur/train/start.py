"""The weights that a training starts from: a checkpoint, a model of the registry, or start weights of parts."""

from pathlib import Path

from torch import Tensor

from vdeblur.errors import ModelError, UsageError
from vdeblur.events import Talk
from vdeblur.models import registry, switches, weights
from vdeblur.models.checkpoint import SUFFIXES, fit, fit_model, read_checkpoint, refuse_stage, refuse_variant
from vdeblur.models.registry import ModelEntry
from vdeblur.networks import PARTS
from vdeblur.networks.layers import Network
from vdeblur.train.recipes import Recipe, stages_of


def begin(network: Network, entry: ModelEntry, recipe: Recipe, init: str | None, talk: Talk) -> None:
    """Load the given weights, or else the start weights that the recipe names.

    entry: of the variant that is trained. init: a checkpoint's path, or NAME[@WEIGHTS] of the registry; for a stage
    that trains one part, a file of that part alone will do, such as LiteFlowNet's for BIMNet.
    Raises: ModelError for weights that are unavailable or do not fit; UsageError where the recipe needs init, or names
    no part of the network.
    """
    if init is not None:
        part = recipe.stage if recipe.stage in PARTS else ""
        if part and _holds_part(Path(init), network, part):
            _load_part(network, part, init, talk)
        else:
            network.load_state_dict(_initial(init, entry, talk, part))
    elif needed := recipe.init_required:
        raise UsageError(f"{entry.name} is trained from the weights of {needed}", f"add --init FILE, with {needed}'s")
    else:
        for part, name in recipe.starts.items():
            # Like the authors' code, joint training starts from a random BIMNet, unless the user names a file.
            if not recipe.numbers.get("joint") or Path(name).is_file():
                try:
                    _load_part(network, part, name, talk)
                except ModelError as error:
                    raise _with_stage(error, entry, part) from error


def _with_stage(error: ModelError, entry: ModelEntry, part: str) -> ModelError:
    """Add to the hint of an error that a stage trains this part, if there is one."""
    if part not in stages_of(entry):
        return error
    made = f"runs/{entry.name}-{part}/last.safetensors"
    own = f"train it first: vdeblur train -m {entry.name} --stage {part}, then add --set start.{part}={made}"
    return ModelError(error.message, f"{own}; or {error.hint}" if error.hint else own)


def _holds_part(path: Path, network: Network, part: str) -> bool:
    """Return whether a file holds the weights of a part of the network alone."""
    return path.is_file() and not fit(read_checkpoint(path), network.get_submodule(part))[1]


def _initial(init: str, entry: ModelEntry, talk: Talk, stage: str) -> dict[str, Tensor]:
    """Return the weights of a file, or of a registry's model with the same network; stage: that is trained."""
    path = Path(init)
    if path.is_file() or path.suffix in SUFFIXES or path.name != init:
        if not stage:
            refuse_stage(path, entry)
        refuse_variant(path, entry)
        return fit_model(read_checkpoint(path), entry.build(), entry, init)
    other = registry.find_entry(init)
    if other.network != entry.network or switches.plain(other.variant) != switches.plain(entry.variant):
        raise ModelError(f"{init} is another network than {entry.name}", f"start from weights of {entry.name}")
    return weights.load_model(init, talk=talk).state_dict()


def _load_part(network: Network, part: str, name: str, talk: Talk) -> None:
    """Load start weights, of the registry or a file, into a part of a network.

    The file may hold that part alone, or a network with that part, such as another stage's.
    """
    try:
        module = network.get_submodule(part)
    except AttributeError as error:
        parts = ", ".join(name for name, _ in network.named_children())
        raise UsageError(f"start.{part}: no part of the network is called {part!r}", f"choose from {parts}") from error
    tensors = read_checkpoint(Path(name)) if Path(name).is_file() else weights.load_start(name, talk)
    own = {key.removeprefix(f"{part}."): value for key, value in tensors.items() if key.startswith(f"{part}.")}
    state, faults = fit(own or tensors, module)
    if faults:
        raise ModelError(f"{name} does not fit {part}: {'; '.join(faults)}", "is it for another network?")
    module.load_state_dict({key: value.float() for key, value in state.items()})
