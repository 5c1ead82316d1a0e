"""A recipe against the variant of the network that it trains: switches, frames in a sample, crops, and absent parts."""

from typing import Any

from tomlkit.items import InlineTable

from vdeblur.errors import ModelError, UsageError
from vdeblur.models.registry import ModelEntry
from vdeblur.networks.layers import Network
from vdeblur.train.merge import explain, put
from vdeblur.train.objectives import OBJECTIVES
from vdeblur.train.objectives.base import Objective


def fit_network(tables: Any, entry: ModelEntry, usual_frames: int) -> None:
    """Make a recipe fit the network that its table [network] describes, and refuse what cannot fit.

    The number of frames in a sample follows from the network, where the recipe has only its usual number; and rates and
    start weights of parts that a switch leaves out are dropped.
    tables: the recipe, which changes. entry: of the model. usual_frames: those of the recipe's own file.

    Raises: UsageError for switches that the network does not have, and for frames, margins and crops that do not fit.
    """
    switches = tables.get("network", {})
    try:
        variant = entry.with_arguments(switches.unwrap() if switches else {})
        if switches:
            variant.build()  # a constructor may refuse values together, or by a rule of its own
    except ModelError as error:
        message = error.message.replace(f"the network of {entry.name}: ", f"[network] of {entry.name}: ")
        raise UsageError(message, error.hint) from error
    objective = OBJECTIVES[str(tables["objective"])]
    objective.check_variant(variant.variant, tables["loss"].unwrap())
    _fit_frames(tables, variant, objective, usual_frames)
    network = variant.network_class
    if "mixture" not in tables:
        _check_crop(int(tables["data"]["crop"]), network, objective, entry.name)
    for absent in _left_out(network, variant):
        _drop_part(tables, absent)


def _fit_frames(tables: Any, variant: ModelEntry, objective: type[Objective], usual: int) -> None:
    data = tables["data"]
    frames, margin = int(data["frames"]), int(data.get("margin", 0))
    needed = objective.frames_of(variant.variant, tables["loss"].unwrap())
    if needed is not None and frames != needed:
        if frames != usual:
            fault = f"data.frames is {frames}, but this {variant.name} takes samples of {needed}"
            raise UsageError(fault, f"leave data.frames out, or set it to {needed}")
        put(data, "frames", needed, "follows from [network]")
    if objective.margin is not None and margin != objective.margin:
        raise UsageError(f"data.margin is {margin}, but {variant.name} takes {objective.margin}", "leave it out")


def _check_crop(crop: int, network: type[Network], objective: type[Objective], name: str) -> None:
    """Refuse crops that the network or the objective cannot take.

    Raises: UsageError.
    """
    multiple = network.multiple
    least = max(network.smallest, objective.smallest_crop, multiple)
    least += -least % multiple
    if crop % multiple or crop < least:
        lower = max(crop - crop % multiple, least)
        near = f"{lower} or {lower + multiple}" if lower <= crop else str(least)
        of = f"multiples of {multiple}" if multiple > 1 else "any"
        raise UsageError(f"data.crop is {crop}, but {name} takes {of}, from {least}", f"choose {near}")


def _left_out(network: type[Network], variant: ModelEntry) -> list[str]:
    values = variant.variant
    return [part for (key, value), parts in network.left_out.items() if values.get(key) == value for part in parts]


def _drop_part(tables: Any, absent: str) -> None:
    """Remove the start weights and rates of a part from a recipe, with those of its own parts."""
    optimiser = tables["optimiser"]
    for table in (tables.get("start", {}), optimiser.get("rates", {}), optimiser.get("frozen", {})):
        for part in list(table):
            if f"{part}.".startswith(f"{absent}."):
                del table[part]
                if isinstance(table, InlineTable):
                    explain(table, "follows from [network]")
