"""From a data set's name, or any folder, to pairs of blurry and sharp pictures.

How a folder is laid out is found by looking. Which sequences and frames the known sets consist of, and where they are
to be had, stands in datasets.toml.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vdeblur.datasets.known import KnownSet, NumberSpan, known_sets, names, number_names
from vdeblur.errors import InputError, UsageError
from vdeblur.events import Talk, Warn
from vdeblur.source.pictures import PICTURE_SUFFIXES, natural_key

DEPTH = 4  # folders around a data set that are looked into
# The names of folders that hold a split, by the split's name.
SPLIT_FOLDERS = {"train": {"train"}, "test": {"test"}, "val": {"val", "valid"}, "reds4": {"reds4", "train"}}
NAMED_IN_ERRORS = 3


@dataclass(frozen=True)
class DatasetLayout:
    """How pictures lie in a folder: where those of each blurry kind and the sharp ones are, a * for the sequence."""

    name: str
    blurry: dict[str, str]
    sharp: str

    def sequences(self, folder: Path, kind: str) -> dict[str, tuple[Path, Path]]:
        """Give the folders of blurry and sharp pictures by sequence; nothing where the folder is not laid out so."""
        found = {}
        pattern = self.blurry.get(kind, "")
        for blurry in folder.glob(pattern) if pattern else ():
            name = blurry.relative_to(folder).parts[pattern.split("/").index("*")] if "*" in pattern else folder.name
            sharp = folder / self.sharp.replace("*", name)
            if sharp.is_dir() and pictures_in(blurry) and pictures_in(sharp):
                found[name] = (blurry, sharp)
        return dict(sorted(found.items(), key=lambda item: natural_key(Path(item[0]))))

    def kinds(self, folder: Path) -> list[str]:
        """Tell which blurry kinds there are."""
        return [kind for kind in self.blurry if self.sequences(folder, kind)]


LAYOUTS = (
    DatasetLayout(
        "GoPro (SEQUENCE/{blur,blur_gamma,sharp})", {"blur": "*/blur", "blur_gamma": "*/blur_gamma"}, "*/sharp"
    ),
    DatasetLayout("VRT (test_GT_blurred/SEQUENCE, test_GT/SEQUENCE)", {"blur": "test_GT_blurred/*"}, "test_GT/*"),
    DatasetLayout("DVD (VIDEO/{input,GT})", {"blur": "*/input"}, "*/GT"),
    DatasetLayout("CDVD-TSP (blur/VIDEO, gt/VIDEO)", {"blur": "blur/*"}, "gt/*"),
    DatasetLayout("STDAN (blur/VIDEO, GT/VIDEO)", {"blur": "blur/*"}, "GT/*"),
    *(
        DatasetLayout(
            f"REDS ({split}_blur/SEQUENCE, {split}_sharp/SEQUENCE)", {"blur": f"{split}_blur/*"}, f"{split}_sharp/*"
        )
        for split in ("train", "val", "test")
    ),
    DatasetLayout("BSD (SEQUENCE/{Blur,Sharp}/RGB)", {"blur": "*/Blur/RGB"}, "*/Sharp/RGB"),
    DatasetLayout("one sequence (blur, sharp)", {"blur": "blur", "blur_gamma": "blur_gamma"}, "sharp"),
)


@dataclass(frozen=True)
class FramePair:
    """A blurry picture, and what it should have been; name: that of both files, without suffix."""

    name: str
    blurry: Path
    sharp: Path


@dataclass(frozen=True)
class Sequence:
    """Consecutive pairs."""

    name: str
    pairs: tuple[FramePair, ...]


@dataclass(frozen=True)
class DataSet:
    """What is to be measured on.

    title: of the known set that it is, as papers call it, else of the folder. known: its name in datasets.toml, empty
    where it is none of those. complete: that it has every frame of its split. blur: the kind of blurry pictures, as
    their folder is called.
    """

    title: str
    known: str
    root: Path
    layout: str
    split: str
    blur: str
    complete: bool
    sequences: tuple[Sequence, ...] = field(repr=False)

    @property
    def frames(self) -> int:
        """How many pairs there are."""
        return sum(len(sequence.pairs) for sequence in self.sequences)


def open_dataset(
    wanted: str,
    *,
    data: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    blur: str = "blur",
    talk: Talk,
    warn: Warn,
) -> DataSet:
    """Find the pairs of a set by its name (fetched where it is not there), or of any folder.

    data: where a copy of a named set is. limit: at most so many frames of each sequence, and whatever of them there is.
    blur: the kind of blurry pictures that is wanted, where a set has several.

    Raises: InputError or UsageError saying what is missing; ModelError where it cannot be fetched.
    """
    if wanted in names() or wanted in known_sets():
        root = data if data is not None else _obtained(wanted, split, blur, talk)
    elif data is not None:
        raise UsageError(f"--data says where a known set is, and {wanted} is none", f"choose {', '.join(names())}")
    else:
        root = Path(wanted)
    if not root.is_dir():
        choice = f"choose {', '.join(names())}, or a folder that is there"
        raise InputError(f"{root}: no such folder", "check --data" if data else choice)
    folder, layout, kinds = _look(root, split, wanted)
    kind = blur if blur in kinds else kinds[0]
    folders = layout.sequences(folder, kind)
    known, split = _identify(wanted, split, folder, set(folders))
    if blur not in kinds and known is not None and known.name == "gopro":
        raise UsageError(
            f"{folder} has no {blur}, only {', '.join(kinds)}", "the protocol needs the original GoPro set"
        )
    spans = known.splits.get(split, {}) if known else {}
    sequences, faults = _pair(folders, spans)
    if not sequences:
        raise InputError(
            f"{root} has no sequence of {known.title if known else wanted}'s {split} split", "check --data"
        )
    if faults:
        told = "; ".join(faults[:NAMED_IN_ERRORS]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
        message = f"{known.title if known else root} is not complete: {told}"
        if limit is None:
            raise InputError(message, "mend the copy, or measure on what there is with --limit")
        warn("W_DATASET", message)
    return DataSet(
        title=known.title if known else root.resolve().name,
        known=known.name if known else "",
        root=folder,
        layout=layout.name,
        split=split,
        blur=kind,
        complete=bool(spans) and not faults and (limit is None or limit >= max(span.count for span in spans.values())),
        sequences=tuple(Sequence(sequence.name, sequence.pairs[:limit]) for sequence in sequences),
    )


def _obtained(wanted: str, split: str | None, blur: str, talk: Talk) -> Path:
    from vdeblur.datasets import obtain  # a local copy needs nothing of it

    name = "bsd-1ms8ms" if wanted == "bsd" else wanted
    return obtain.obtain_split(known_sets()[name], split or known_sets()[name].split, blur, talk)


def _look(root: Path, split: str | None, wanted: str) -> tuple[Path, DatasetLayout, list[str]]:
    """Find the folder, at root or nearest below it, that is laid out in a way that is known.

    Raises: InputError where there is none, UsageError where there are several.
    """
    default = known_sets()[wanted].split if wanted in known_sets() else "test"
    own = SPLIT_FOLDERS.get(split or default, {split or default})
    other = set().union(*SPLIT_FOLDERS.values()) - own
    for passed_over in [other] if split else [other, set()]:
        for level in _levels(root, passed_over):
            found = [match for folder in level if (match := _recognise(folder))]
            if len(found) > 1:
                several = ", ".join(str(folder.relative_to(root)) for folder, _, _ in found[:NAMED_IN_ERRORS])
                raise UsageError(f"{root} holds several data sets: {several}", "name one of them")
            if found:
                return found[0]
    known = "; ".join(layout.name for layout in LAYOUTS)
    missing = f" with a split {split!r}" if split else ""
    raise InputError(f"{root} holds no pairs of blurry and sharp pictures{missing}", f"layouts known: {known}")


def has_split(root: Path, split: str) -> bool:
    """Tell whether a folder has pictures of a split, or pictures that belong to no split.

    Raises: UsageError where there are several such data sets.
    """
    try:
        _look(root, split, "")
    except InputError:
        return False
    return True


def _recognise(folder: Path) -> tuple[Path, DatasetLayout, list[str]] | None:
    return next(((folder, layout, kinds) for layout in LAYOUTS if (kinds := layout.kinds(folder))), None)


def _levels(root: Path, passed_over: set[str]) -> Iterator[list[Path]]:
    """Give root, then the folders in it, and so on, but nothing in folders of these names."""
    level = [root]
    for _ in range(DEPTH + 1):
        yield level
        below = itertools.chain.from_iterable(folder.iterdir() for folder in level)
        level = sorted(folder for folder in below if folder.is_dir() and folder.name not in passed_over)


def _identify(wanted: str, split: str | None, folder: Path, found: set[str]) -> tuple[KnownSet | None, str]:
    """Tell which known set a folder is, by its name or by its sequences, and which split of it."""
    if wanted in known_sets():
        return known_sets()[wanted], split or known_sets()[wanted].split
    if wanted == "bsd":
        exposures = [one for name, one in known_sets().items() if name.startswith("bsd-")]
        return max(exposures, key=lambda one: len(one.splits["test"].keys() & found)), split or "test"
    for one in known_sets().values():
        for name, sequences in one.splits.items():
            # The splits of DVD lie in one folder.
            shares = one.name == "dvd" and name == (split or one.split) and sequences.keys() <= found
            fits = sequences.keys() == found or shares
            if fits and split in (None, name):
                return one, name
    named = (name for name, folders in SPLIT_FOLDERS.items() if folder.name in folders)
    return None, split or next(named, "test")


def pictures_in(folder: Path) -> list[Path]:
    """Give the picture files of a folder in their natural order."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES] if folder.is_dir() else []
    return sorted(files, key=natural_key)


def _pair(folders: dict[str, tuple[Path, Path]], spans: dict[str, NumberSpan]) -> tuple[list[Sequence], list[str]]:
    """Pair blurry and sharp pictures by name, of the sequences that belong to the split; tells what is missing."""
    sequences, faults = [], []
    for name in spans or folders:
        if name not in folders:
            faults.append(f"{name} is missing")
            continue
        blurry, sharp = ({file.stem: file for file in pictures_in(folder)} for folder in folders[name])
        pairs = tuple(FramePair(stem, file, sharp[stem]) for stem, file in blurry.items() if stem in sharp)
        if alone := sorted(blurry.keys() ^ sharp.keys()):
            side = "sharp" if alone[0] in blurry else "blurry"
            faults.append(f"{name} has {len(alone)} pictures without a partner ({alone[0]} has no {side} one)")
        elif name in spans and (missing := _missing(spans[name], pairs)):
            faults.append(f"{name} {missing}")
        if pairs:
            sequences.append(Sequence(name, pairs))
    return sequences, faults


def _missing(span: NumberSpan, pairs: tuple[FramePair, ...]) -> str:
    """Say how many frames a sequence has if it does not have all, and which is the first one missing if that shows."""
    if len(pairs) == span.count:
        return ""
    absent = set(number_names(f"{span.first}..{span.last}")) - {pair.name for pair in pairs} if span.first else set()
    which = f" ({min(absent)} is missing)" if 0 < len(absent) < span.count else ""
    return f"has {len(pairs)} frames of {span.count}{which}"
