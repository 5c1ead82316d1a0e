"""A data set's name, or any folder, becomes pairs of blurry and sharp pictures.

The layout of a folder is recognised from its contents. datasets.toml has the sequences and frames of the known sets,
and where to download them.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vdeblur.datasets.known import KnownSet, NumberSpan, known_sets, names, number_names
from vdeblur.errors import InputError, UsageError
from vdeblur.events import Talk, Warn
from vdeblur.source.pictures import PICTURE_SUFFIXES, natural_key

DEPTH = 4  # levels of folders to search below the root
# The names of folders that hold a split, by the split's name.
SPLIT_FOLDERS = {"train": {"train"}, "test": {"test"}, "val": {"val", "valid"}, "reds4": {"reds4", "train"}}
NAMED_IN_ERRORS = 3
ANY_SEQUENCE = "*"  # in datasets.toml: those that the folder has
QUALITATIVE = "qualitative"  # DVD's videos without sharp frames


@dataclass(frozen=True)
class DatasetLayout:
    """A layout of pictures in a folder. blurry, sharp: paths of their folders, with * for the sequence, by kind."""

    name: str
    blurry: dict[str, str]
    sharp: str

    def sequences(self, folder: Path, kind: str) -> dict[str, tuple[Path, Path]]:
        """Return the folders of blurry and sharp pictures by sequence; nothing if the folder has another layout."""
        found = {}
        pattern = self.blurry.get(kind, "")
        for blurry in folder.glob(pattern) if pattern else ():
            name = blurry.relative_to(folder).parts[pattern.split("/").index("*")] if "*" in pattern else folder.name
            sharp = folder / self.sharp.replace("*", name)
            if sharp.is_dir() and pictures_in(blurry) and pictures_in(sharp):
                found[name] = (blurry, sharp)
        return dict(sorted(found.items(), key=lambda item: natural_key(Path(item[0]))))

    def kinds(self, folder: Path) -> list[str]:
        """Return the kinds of blurry pictures in a folder."""
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
    """A blurry and a sharp picture of the same moment. name: of both files, without suffix."""

    name: str
    blurry: Path
    sharp: Path


@dataclass(frozen=True)
class Sequence:
    """Consecutive pairs of a scene."""

    name: str
    pairs: tuple[FramePair, ...]


@dataclass(frozen=True)
class DataSet:
    """The pairs of a split.

    title: the name of the known set in papers, else of the folder. known: its name in datasets.toml, empty for other
    sets. complete: it has every frame of its split. has_truth: the sharp pictures exist; if not, blurry ones stand in
    for them, and no score compares with them. blur: the kind of blurry pictures, named like their folder.
    """

    title: str
    known: str
    root: Path
    layout: str
    split: str
    blur: str
    complete: bool
    sequences: tuple[Sequence, ...] = field(repr=False)
    has_truth: bool = True

    @property
    def frames(self) -> int:
        """The number of pairs."""
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
    """Find the pairs of a known set, downloaded if need be, or of any folder.

    wanted: a name or a folder. data: the folder with a copy of the named set. limit: the number of frames to keep of
    each sequence; then the set may be incomplete. blur: the kind of blurry pictures, for sets with several kinds.

    Raises: InputError or UsageError that says what is missing; ModelError if the set cannot be downloaded.
    """
    if split == QUALITATIVE and data is None and wanted in known_sets():
        page = known_sets()[wanted].page
        raise UsageError(
            f"vdeblur does not download this split of {wanted}", f"unpack it by hand from {page}: --data DIR"
        )
    root = _find_root(wanted, data, split, blur, talk)
    if split == QUALITATIVE:
        return _without_truth(wanted, root, limit)
    folder, layout, kinds = _look(root, split, wanted)
    kind = blur if blur in kinds else kinds[0]
    folders = layout.sequences(folder, kind)
    known, split = _identify(wanted, split, folder, set(folders))
    if blur not in kinds and known is not None and known.name == "gopro":
        raise UsageError(
            f"{folder} has no {blur}, only {', '.join(kinds)}", "the protocol needs the original GoPro set"
        )
    spans = known.splits.get(split, {}) if known else {}
    is_named = ANY_SEQUENCE not in spans
    if not is_named:
        spans = dict.fromkeys(folders, spans[ANY_SEQUENCE])
    sequences, faults = _pair(folders, spans)
    if not sequences:
        raise InputError(
            f"{root} has no sequence of {known.title if known else wanted}'s {split} split", "check --data"
        )
    if faults:
        message = f"{known.title if known else root} is not complete: {_summary(faults)}"
        if limit is None:
            raise InputError(message, "complete the copy, or use what exists with --limit")
        warn("W_DATASET", message)
    has_all_frames = not faults and (limit is None or all(span.count <= limit for span in spans.values()))
    return DataSet(
        title=known.title if known else root.resolve().name,
        known=known.name if known else "",
        root=folder,
        layout=layout.name,
        split=split,
        blur=kind,
        complete=bool(spans) and is_named and has_all_frames,
        sequences=tuple(Sequence(sequence.name, sequence.pairs[:limit]) for sequence in sequences),
    )


def _without_truth(wanted: str, root: Path, limit: int | None) -> DataSet:
    """Return the videos of a hand-unpacked folder that have no sharp frames: VIDEO/input, as in qualitative_datasets.

    Raises: InputError if there are none.
    """
    for level in _levels(root, set()):
        for folder in level:
            found = {place.parent.name: pictures_in(place) for place in folder.glob("*/input")}
            names = sorted((name for name in found if found[name]), key=lambda name: natural_key(Path(name)))
            if names and not any((folder / name / "GT").is_dir() for name in names):
                pairs = {name: [FramePair(file.stem, file, file) for file in found[name][:limit]] for name in names}
                return DataSet(
                    title=known_sets()[wanted].title if wanted in known_sets() else root.resolve().name,
                    known=wanted if wanted in known_sets() else "",
                    root=folder,
                    layout="DVD, without sharp frames (VIDEO/input)",
                    split=QUALITATIVE,
                    blur="input",
                    complete=False,
                    sequences=tuple(Sequence(name, tuple(pairs[name])) for name in names),
                    has_truth=False,
                )
    raise InputError(
        f"{root} holds no videos without sharp frames (VIDEO/input)", "unpack qualitative_datasets of DVD there"
    )


def _find_root(wanted: str, data: Path | None, split: str | None, blur: str, talk: Talk) -> Path:
    """Return the folder of a known set, downloaded if need be, or the folder that the user named.

    Raises: UsageError, InputError, ModelError.
    """
    if wanted in names() or wanted in known_sets():
        root = data if data is not None else _obtained(wanted, split, blur, talk)
    elif data is not None:
        raise UsageError(
            f"--data is for known data sets, and {wanted} is not one of them", f"choose {', '.join(names())}"
        )
    else:
        root = Path(wanted)
    if not root.is_dir():
        choice = f"choose {', '.join(names())}, or an existing folder"
        raise InputError(f"{root}: no such folder", "check --data" if data else choice)
    return root


def _summary(faults: list[str]) -> str:
    more = len(faults) - NAMED_IN_ERRORS
    return "; ".join(faults[:NAMED_IN_ERRORS]) + (f"; and {more} more" if more > 0 else "")


def _obtained(wanted: str, split: str | None, blur: str, talk: Talk) -> Path:
    from vdeblur.datasets import obtain  # with its network packages, which a local copy does not need

    name = "bsd-1ms8ms" if wanted == "bsd" else wanted
    return obtain.obtain_split(known_sets()[name], split or known_sets()[name].split, blur, talk)


def _look(root: Path, split: str | None, wanted: str) -> tuple[Path, DatasetLayout, list[str]]:
    """Return the folder with a known layout, the root or the nearest below it, its layout and its blurry kinds.

    Raises: InputError if there is none, UsageError if there are several.
    """
    default = known_sets()[wanted].split if wanted in known_sets() else "test"
    own = SPLIT_FOLDERS.get(split or default, {split or default})
    other = set().union(*SPLIT_FOLDERS.values()) - own
    for skipped in [other] if split else [other, set()]:
        for level in _levels(root, skipped):
            found = [match for folder in level if (match := _recognise(folder))]
            if len(found) > 1:
                several = ", ".join(str(folder.relative_to(root)) for folder, _, _ in found[:NAMED_IN_ERRORS])
                raise UsageError(f"{root} holds several data sets: {several}", "choose one of them")
            if found:
                return found[0]
    known = "; ".join(layout.name for layout in LAYOUTS)
    missing = f" with a split {split!r}" if split else ""
    raise InputError(
        f"{root} holds no pairs of blurry and sharp pictures{missing}", f"use one of these layouts: {known}"
    )


def has_split(root: Path, split: str) -> bool:
    """Return whether a folder has pictures of a split, or pictures that belong to no split.

    Raises: UsageError if it has several such data sets.
    """
    try:
        _look(root, split, "")
    except InputError:
        return False
    return True


def has_pairs(root: Path) -> bool:
    """Return whether a folder holds pairs of blurry and sharp pictures in a known layout."""
    return any(_recognise(folder) for level in _levels(root, set()) for folder in level)


def _recognise(folder: Path) -> tuple[Path, DatasetLayout, list[str]] | None:
    return next(((folder, layout, kinds) for layout in LAYOUTS if (kinds := layout.kinds(folder))), None)


def _levels(root: Path, skipped: set[str]) -> Iterator[list[Path]]:
    """Yield the root, then the folders in it, and so on; folders with the skipped names are left out."""
    level = [root]
    for _ in range(DEPTH + 1):
        yield level
        below = itertools.chain.from_iterable(folder.iterdir() for folder in level)
        level = sorted(folder for folder in below if folder.is_dir() and folder.name not in skipped)


def _identify(wanted: str, split: str | None, folder: Path, found: set[str]) -> tuple[KnownSet | None, str]:
    """Return the known set that a folder is, by its name or by its sequences, and the split."""
    if wanted in known_sets():
        return known_sets()[wanted], split or known_sets()[wanted].split
    if wanted == "bsd":
        exposures = [known for name, known in known_sets().items() if name.startswith("bsd-")]

        def likeness(known: KnownSet) -> tuple[bool, int]:
            is_named = known.name.removeprefix("bsd-") in str(folder.resolve())
            return is_named, len(known.splits["test"].keys() & found)

        return max(exposures, key=likeness), split or "test"
    for known in known_sets().values():
        for name, sequences in known.splits.items():
            # All splits of DVD are in one folder.
            is_part = known.name == "dvd" and name == (split or known.split) and sequences.keys() <= found
            if (is_part or sequences.keys() == found) and split in (None, name):
                return known, name
    named = (name for name, folders in SPLIT_FOLDERS.items() if folder.name in folders)
    return None, split or next(named, "test")


def pictures_in(folder: Path) -> list[Path]:
    """Return the picture files of a folder in natural order."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES] if folder.is_dir() else []
    return sorted(files, key=natural_key)


def _pair(folders: dict[str, tuple[Path, Path]], spans: dict[str, NumberSpan]) -> tuple[list[Sequence], list[str]]:
    """Pair blurry and sharp pictures by name.

    spans: the frames of each sequence of the split, empty if unknown. Returns the sequences, and what is missing.
    """
    sequences, faults = [], []
    for name in spans or folders:
        if name not in folders:
            faults.append(f"{name} is missing")
            continue
        blurry, sharp = ({file.stem: file for file in pictures_in(folder)} for folder in folders[name])
        pairs = tuple(FramePair(stem, file, sharp[stem]) for stem, file in blurry.items() if stem in sharp)
        if unpaired := sorted(blurry.keys() ^ sharp.keys()):
            side = "sharp" if unpaired[0] in blurry else "blurry"
            count = f"{len(unpaired)} picture{'s' * (len(unpaired) > 1)}"
            faults.append(f"{name} has {count} without a partner ({unpaired[0]} has no {side} one)")
        elif name in spans and (missing := _missing(spans[name], pairs)):
            faults.append(f"{name} {missing}")
        if pairs:
            sequences.append(Sequence(name, pairs))
    return sequences, faults


def _missing(span: NumberSpan, pairs: tuple[FramePair, ...]) -> str:
    """Return how many frames are there and the first missing one, if known; "" if the sequence is complete."""
    if len(pairs) == span.count:
        return ""
    absent = set(number_names(f"{span.first}..{span.last}")) - {pair.name for pair in pairs} if span.first else set()
    which = f" ({min(absent)} is missing)" if 0 < len(absent) < span.count else ""
    return f"has {len(pairs)} of {span.count} frames{which}"
