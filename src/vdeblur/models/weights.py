"""Load models: load_model builds a model's network and fills it with its weights.

cache.py obtains the file of the weights; checkpoint.py fits its tensors to the network.
"""

from pathlib import Path

from torch import Tensor

from vdeblur.errors import ModelError, UsageError
from vdeblur.events import Talk
from vdeblur.models.cache import QUIET, available_models_hint, obtain_weights, read_cached
from vdeblur.models.checkpoint import fit_model, read_checkpoint, refuse_other_training, variant_of_file
from vdeblur.models.registry import ModelEntry, choose_weights
from vdeblur.networks.layers import Network


def load_model(name: str, checkpoint: Path | None = None, talk: Talk = QUIET) -> Network:
    """Build a model's network and load its weights, in float32, for evaluation; download weights that are missing.

    name: see registry.choose_weights. checkpoint: a file with other weights for the network: .safetensors, or a PyTorch
    checkpoint, which is read without running code in it. A file that vdeblur trained also says which variant of the
    network it is for.

    Raises: ModelError if the model is unknown, or its weights are missing, damaged, or made for another network;
    UsageError if both NAME@WEIGHTS and a checkpoint are given.
    """
    entry, weights = choose_weights(name)
    if not entry.network:
        raise ModelError(f"{entry.name} restores nothing: {entry.description}", f"use -m {entry.start_of}, or -m lite")
    if checkpoint is not None and weights is not None and name != entry.name:
        raise UsageError(f"--weights and {name} both choose weights", f"use -m {entry.name} with --weights")
    if checkpoint is not None:
        refuse_other_training(checkpoint, entry)
        entry = variant_of_file(checkpoint, entry)
    network = entry.build()
    has_weights = bool(network.state_dict())
    if checkpoint is not None:
        if not has_weights:
            raise ModelError(f"{entry.name} has no weights to load", "leave out --weights")
        state = fit_model(read_checkpoint(checkpoint), network, entry, str(checkpoint))
    elif weights is not None:
        path = obtain_weights(entry, weights, talk)
        state = fit_model(read_cached(path), network, entry, path.name)
    elif has_weights and not (entry.own is not None and entry.own.trained):
        raise _no_weights(entry)
    else:
        return network.eval()
    network.load_state_dict({key: value.float() for key, value in state.items()})
    return network.eval()


def _no_weights(entry: ModelEntry) -> ModelError:
    if entry.own is not None:
        return ModelError(
            f"{entry.name} needs weights", "add --weights FILE, or set trained = True in the class to run without"
        )
    return ModelError(
        f"{entry.name} has no published weights: {entry.no_weights or 'weights.toml names none'}",
        f"with your own file: vdeblur run --weights FILE -m {entry.name}; "
        f"without a download: {available_models_hint()}",
    )


def load_start(name: str, talk: Talk = QUIET) -> dict[str, Tensor]:
    """Return the tensors of start weights (an entry without a network) under their authors' names.

    Raises: ModelError if they cannot be obtained.
    """
    entry, weights = choose_weights(name)
    if weights is None:
        raise ModelError(f"{name} has no published weights", entry.no_weights)
    return read_cached(obtain_weights(entry, weights, talk))
