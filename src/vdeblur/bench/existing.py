"""Contenders that restore nothing: pictures that exist already, and the best picture that luma alone can give.

A folder of restored pictures (--restored) has a folder for each sequence, as --save writes them; a set of one sequence
may also have its pictures in the folder itself. A paper's own results often have other names than the set's pictures.
So frames are found by name; where no name agrees, by order, if there is a picture for each frame, or for each frame
that the protocol counts.

"ideal-luma" is the ceiling of networks that restore luma and keep the blurred colour, as SPN does: the sharp frame's
luma with the blurry frame's chroma.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from vdeblur.datasets import pictures
from vdeblur.datasets.layouts import DataSet, FramePair, Sequence, pictures_in
from vdeblur.errors import InputError
from vdeblur.events import Warn
from vdeblur.measure.protocols import Protocol
from vdeblur.models.registry import ModelEntry, Weights
from vdeblur.source.picture_header import read_header

IDEAL_LUMA = "ideal-luma"
LUMA = (0.299, 0.587, 0.114)  # BT.601, as SPN's


class _Existing:
    """The facts that contenders which restore nothing share."""

    weights, digest, parameters = "", "", 0
    precision = "8 bit"
    entry: ModelEntry | None = None
    chosen_weights: Weights | None = None

    def flops(self, height: int, width: int) -> float | None:
        """Return None: nothing is computed that could be counted."""
        return None


class RestoredFolder(_Existing):
    """Restored pictures of others, one contender for each folder."""

    def __init__(self, folder: Path, name: str, dataset: DataSet, protocol: Protocol, warn: Warn) -> None:
        """Find a picture for every frame that the protocol counts.

        Raises: InputError naming the first that is missing, or has another size than the blurry one.
        """
        self.folder, self.warn = folder, warn
        self.name = self.model = name
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder", "name the folder of the restored pictures")
        self.files: dict[str, list[Path | None]] = {
            sequence.name: self._found(sequence, len(dataset.sequences) == 1, protocol)
            for sequence in dataset.sequences
        }
        self.sizes = {
            sequence.name: [_size_of(pair.blurry) for pair in sequence.pairs] for sequence in dataset.sequences
        }
        for name, paths in self.files.items():  # before the long work
            for path, size in zip(paths, self.sizes[name], strict=True):
                if path is not None:
                    _check_size(path, _size_of(path), size)
        facts = [
            (str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns)
            for paths in self.files.values()
            for path in paths
            if path is not None
        ]
        self.version = hashlib.sha256(repr(facts).encode()).hexdigest()

    def _found(self, sequence: Sequence, is_only: bool, protocol: Protocol) -> list[Path | None]:
        """Return the picture of each frame of a sequence; None for frames that do not count and have none."""
        folder = self.folder / sequence.name
        files = pictures_in(folder) or (pictures_in(self.folder) if is_only else [])
        if not files:
            hint = "it needs a folder for each sequence, as bench --save writes them: DIR/SEQUENCE/NAME.png"
            raise InputError(f"{self.folder} has no pictures of {sequence.name}", hint)
        count = len(sequence.pairs)
        counting = [index for index in range(count) if protocol.counts(index, count)]
        by_name = {file.stem: file for file in files}
        found: list[Path | None] = [by_name.get(pair.name) for pair in sequence.pairs]
        if not any(found) and len(files) in (count, len(counting)):
            places = range(count) if len(files) == count else counting
            found = [None] * count
            for place, file in zip(places, files, strict=True):
                found[place] = file
            message = f"{folder} has other names than the set, so its pictures were taken in order: {files[0].name}"
            self.warn("W_RESTORED", f"{message} for {sequence.pairs[places[0]].name}, and so on")
        missing = [sequence.pairs[index].name for index in counting if found[index] is None]
        if missing:
            message = f"{self.folder} lacks {len(missing)} of {len(counting)} pictures of {sequence.name}"
            raise InputError(f"{message}, {missing[0]} first", "complete it, or measure less with --limit")
        return found

    def pictures(self, sequence: Sequence) -> Iterator[Tensor]:
        """Yield the picture of each frame, uint8 (3, H, W); for frames without one the blurry frame, uncounted.

        Raises: InputError if a picture cannot be read, or has another size than the blurry one.
        """
        for pair, file, size in zip(sequence.pairs, self.files[sequence.name], self.sizes[sequence.name], strict=True):
            picture = pictures.read_rgb(pair.blurry if file is None else file)
            if file is not None:
                _check_size(file, (picture.shape[2], picture.shape[1]), size)  # headers may be wrong
            yield picture


def _size_of(path: Path) -> tuple[int, int]:
    """Return the width and height of a picture, upright: from its header, or decoded where that has another form.

    Raises: InputError if it cannot be read.
    """
    try:
        header = read_header(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    if header is not None:
        return header.upright_size
    height, width = pictures.read_rgb(path).shape[1:]
    return width, height


def _check_size(path: Path, size: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Refuse a restored picture of another width and height than the blurry one's."""
    if size != wanted:
        sizes = f"{size[0]}x{size[1]} instead of {wanted[0]}x{wanted[1]}"
        raise InputError(f"{path} is {sizes}", "restore the frames at their full size")


def open_restored(folders: tuple[Path, ...], dataset: DataSet, protocol: Protocol, warn: Warn) -> list[RestoredFolder]:
    """Return a contender for each folder, named like it, or by its path if two have one name.

    Raises: InputError if a folder lacks a picture.
    """
    names = [folder.resolve().name for folder in folders]
    named = [str(folder) if names.count(name) > 1 else name for folder, name in zip(folders, names, strict=True)]
    return [RestoredFolder(folder, name, dataset, protocol, warn) for folder, name in zip(folders, named, strict=True)]


class IdealLuma(_Existing):
    """The sharp frame's luma with the blurry frame's chroma."""

    name = model = IDEAL_LUMA
    version = "1"

    def pictures(self, sequence: Sequence) -> Iterator[Tensor]:
        """Yield the ideal picture of each frame, uint8 (3, H, W)."""
        yield from map(ideal_luma, sequence.pairs)


def ideal_luma(pair: FramePair) -> Tensor:
    """Return a blurry picture with its luma replaced by the sharp one's, rounded to uint8 (3, H, W).

    With the same chroma, a difference in luma adds the same to red, green and blue.
    """
    blurry, sharp = (pictures.read_rgb(path).double() for path in (pair.blurry, pair.sharp))
    luma = torch.einsum("chw,c->hw", sharp - blurry, blurry.new_tensor(LUMA))
    return (blurry + luma).round().clamp(0, 255).to(torch.uint8)


Existing = RestoredFolder | IdealLuma
