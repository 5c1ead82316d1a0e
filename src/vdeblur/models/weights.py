"""From a model's name to its network with verified weights: what is cached, fetched, imported and loaded."""

from pathlib import Path

from torch import Tensor

from vdeblur.errors import ModelError, UsageError
from vdeblur.events import Talk
from vdeblur.models.cache import QUIET, choose_weights, fitted, models_at_hand, obtain_weights, read_cached
from vdeblur.models.checkpoint import read_checkpoint
from vdeblur.networks import NETWORKS
from vdeblur.networks.layers import Network


def load_model(name: str, checkpoint: Path | None = None, talk: Talk = QUIET) -> Network:
    """Build a model's network and load its weights, in float32, for evaluation; fetch them where they are not there.

    checkpoint: a file to take the weights from instead of the model's own: .safetensors, or a PyTorch checkpoint,
    which is read without running anything in it.

    Raises: ModelError where the model is unknown, or its weights are missing, damaged, or made for another network.
    """
    entry, weights = choose_weights(name)
    if not entry.network:
        raise ModelError(f"{entry.name} restores nothing: {entry.description}", f"use -m {entry.start_of}, or -m lite")
    if checkpoint is not None and "@" in name:
        raise UsageError(f"--weights and {name} both say which weights to take", f"use -m {entry.name} with --weights")
    network = NETWORKS[entry.network](**entry.arguments)
    if checkpoint is not None and not network.state_dict():
        raise ModelError(f"{entry.name} has no weights to load", "leave out --weights")
    if checkpoint is None and weights is None and network.state_dict():
        raise ModelError(
            f"there are no weights of {entry.name} to be had: {entry.no_weights or 'weights.toml names none'}",
            f"with a file of your own: vdeblur run --weights FILE -m {entry.name}; at once: {models_at_hand()}",
        )
    if checkpoint is not None:
        state = fitted(read_checkpoint(checkpoint), network, entry, str(checkpoint))
    elif weights is not None:
        path = obtain_weights(entry, weights, talk)
        state = fitted(read_cached(path), network, entry, path.name)
    else:
        return network.eval()
    network.load_state_dict({key: value.float() for key, value in state.items()})
    return network.eval()


def load_start(name: str, talk: Talk = QUIET) -> dict[str, Tensor]:
    """Give the tensors of start weights (an entry without a network) under their authors' names.

    Raises: ModelError where they cannot be had.
    """
    entry, weights = choose_weights(name)
    if weights is None:
        raise ModelError(f"there are no weights of {name} to be had", entry.no_weights)
    return read_cached(obtain_weights(entry, weights, talk))


# The cache: models/NAME/WEIGHTS.safetensors, converted once, and WEIGHTS.json, which says what it was made of. The
# record outlives `remove`, so that a file without a published digest cannot change unnoticed.
