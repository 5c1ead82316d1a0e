"""Which sequences a training uses, and which ones validate it."""

import dataclasses
import hashlib
from collections.abc import Sequence as Several
from pathlib import Path

from vdeblur.datasets import layouts
from vdeblur.datasets.known import known_sets, names
from vdeblur.datasets.layouts import DataSet, Sequence
from vdeblur.errors import InputError
from vdeblur.events import Talk, Warn

NAMED = 3  # sequences in a warning or an error
HELD_OUT = 10  # one sequence in ten validates, where a set has no split for it


def open_sets(
    wanted: str,
    *,
    data: Path | None,
    validation: str | None = None,
    blur: str,
    limit: int | None = None,
    talk: Talk,
    warn: Warn,
) -> tuple[DataSet, DataSet]:
    """Open what to train on and what to validate on, in a set by its name or in any folder, see open_dataset.

    validation: a folder, or a set's name, to validate on. Without it the split "val" validates, else "test", as in the
    papers, else sequences that are kept out of the training, with a warning.

    Raises: InputError or UsageError for missing data; ModelError where it cannot be downloaded.
    """
    training = layouts.open_dataset(wanted, data=data, split="train", limit=limit, blur=blur, talk=talk, warn=warn)
    if validation is not None:
        return training, layouts.open_dataset(validation, blur=blur, talk=talk, warn=warn)
    is_named = wanted in names() or wanted in known_sets()
    root = data if is_named else Path(wanted)
    for split in ("val", "test"):
        if not (layouts.has_split(root, split) if root else split in known_sets()[training.known].splits):
            continue
        other = layouts.open_dataset(wanted, data=data, split=split, limit=limit, blur=blur, talk=talk, warn=warn)
        trained_on = {sequence.name for sequence in training.sequences}
        # A folder without splits passes for any of them.
        if other.root != training.root or not any(sequence.name in trained_on for sequence in other.sequences):
            return training, other
    kept, held_out = split_sequences(training.sequences)
    if not kept:
        raise InputError(f"{training.root} has one sequence, and none to validate on", "add another one")
    warn("W_DATASET", f"not trained on, to validate: {listed([sequence.name for sequence in held_out])}")
    held_out_set = dataclasses.replace(training, complete=False, sequences=held_out)
    return dataclasses.replace(training, complete=False, sequences=kept), held_out_set


def split_sequences(sequences: Several[Sequence]) -> tuple[tuple[Sequence, ...], tuple[Sequence, ...]]:
    """Divide sequences by their names into those to train on and about a tenth (at least one) to validate on."""
    ranks = {sequence.name: hashlib.sha256(sequence.name.encode()).digest() for sequence in sequences}
    chosen = {name for name, rank in ranks.items() if rank[0] % HELD_OUT == 0}
    if len(chosen) in (0, len(ranks)):
        chosen = {min(ranks, key=lambda name: ranks[name])}
    kept = tuple(sequence for sequence in sequences if sequence.name not in chosen)
    return kept, tuple(sequence for sequence in sequences if sequence.name in chosen)


def listed(parts: Several[str]) -> str:
    """Join the first parts of a message, and count the rest."""
    rest = f"; and {len(parts) - NAMED} more" if len(parts) > NAMED else ""
    return "; ".join(parts[:NAMED]) + rest
