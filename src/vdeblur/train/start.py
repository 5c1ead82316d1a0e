"""The weights that a training begins with: a checkpoint, a model of the registry, or start weights of some parts."""

from pathlib import Path

from torch import Tensor

from vdeblur.errors import ModelError, UsageError
from vdeblur.events import Talk
from vdeblur.models import cache, weights
from vdeblur.models.checkpoint import fit, read_checkpoint
from vdeblur.models.registry import Entry
from vdeblur.networks.layers import Network
from vdeblur.train.recipes import Recipe


def begin(network: Network, entry: Entry, recipe: Recipe, init: str | None, talk: Talk) -> None:
    """Load what was asked for, or else the start weights that the recipe names.

    init: a checkpoint's path, or NAME[@WEIGHTS] of the registry.
    Raises: ModelError where weights cannot be had, or do not fit; UsageError where the recipe needs some.
    """
    if init is not None:
        network.load_state_dict(_initial(init, entry, talk))
    elif needed := recipe.init_required:
        raise UsageError(f"{entry.name} is trained from the weights of {needed}", f"add --init FILE, with {needed}'s")
    else:
        for part, name in recipe.starts.items():
            # As the authors' code does, a BIMNet that is trained along is drawn, unless there is one of one's own.
            if not recipe.numbers.get("joint") or Path(name).is_file():
                _load_part(network, part, name, talk)


def _initial(init: str, entry: Entry, talk: Talk) -> dict[str, Tensor]:
    """Give the weights of a file, or of a model of the registry whose network is the same."""
    path = Path(init)
    if path.is_file() or path.suffix or "/" in init:
        return weights.load_model(entry.name, path, talk).state_dict()
    other = cache.find_entry(init)
    if (other.network, other.arguments) != (entry.network, entry.arguments):
        raise ModelError(f"{init} is another network than {entry.name}", f"begin with weights of {entry.name}")
    return weights.load_model(init, talk=talk).state_dict()


def _load_part(network: Network, part: str, name: str, talk: Talk) -> None:
    """Put start weights of the registry, or those of a file, into a part of a network.

    The file may be of that part, or of a whole network that has it, as that of another stage.
    """
    module = network.get_submodule(part)
    tensors = read_checkpoint(Path(name)) if Path(name).is_file() else weights.load_start(name, talk)
    own = {key.removeprefix(f"{part}."): value for key, value in tensors.items() if key.startswith(f"{part}.")}
    state, faults = fit(own or tensors, module)
    if faults:
        raise ModelError(f"{name} does not fit {part}: {'; '.join(faults)}", "is it for another network?")
    module.load_state_dict({key: value.float() for key, value in state.items()})
