"""Move finished pictures to the output, and remove those of an earlier output that they replace."""

import os
import re
import shutil
from pathlib import Path

from vdeblur.errors import VerificationError
from vdeblur.events import Warn
from vdeblur.files import put_in_place
from vdeblur.output.pictures import PictureEncoding
from vdeblur.run.store import Store
from vdeblur.source.pictures import PictureSource, picture_files, read_picture
from vdeblur.source.video import Source

WRITTEN_SUFFIXES = {".png", ".tif", ".tiff"}  # of folders of pictures, see PictureEncoding
LAST_NUMBER = re.compile(r"(.*?)([0-9]+)([^0-9]*)", re.DOTALL)  # in a picture's name without suffix
NAMED = 3  # kept pictures in a message


def place_pictures(store: Store, encoding: PictureEncoding, source: Source, warn: Warn, overwrite: bool) -> None:
    """Rename the picture, or the folder of pictures, to the output; if the folder exists, move the pictures into it.

    There, pictures of an earlier output go, and a warning counts the others, which stay.

    Raises: OutputError, VerificationError, OSError.
    """
    output = store.output
    names = [name for record in store.records.values() for name in record.names]
    files = {entry.name for entry in os.scandir(store.pictures)}
    for name in files - set(names):  # of an unfinished segment
        (store.pictures / name).unlink()
    if set(names) - files:
        raise VerificationError(f"{output}: {len(names)} pictures were written, {len(files)} exist")
    read_picture(store.pictures / names[-1])
    if encoding.is_single:
        put_in_place(store.pictures / names[0], output, overwrite)
        return
    if output.is_dir() and not any(output.iterdir()):
        output.rmdir()
    if not output.exists():
        os.replace(store.pictures, output)
        return
    stale, kept = replaced_pictures(output, names, _input_names(source))
    for name in names:
        os.replace(store.pictures / name, output / name)
    for path in stale:
        path.unlink()
    shutil.rmtree(store.pictures)
    if kept:
        shown = ", ".join(path.name for path in kept[:NAMED]) + (", ..." if len(kept) > NAMED else "")
        warn("W_KEPT", f"{output} keeps {len(kept)} pictures that do not belong to the new ones: {shown}")


def replaced_pictures(folder: Path, names: list[str], inputs: list[str]) -> tuple[list[Path], list[Path]]:
    """Return the pictures in a folder that an earlier output left there, and those that are not of its sequence.

    Pictures that the new ones, names, replace are in neither. Of the sequence are PNG and TIFF that are numbered as the
    new ones are, or named as one of the input's pictures.
    """
    found = [path for path in picture_files(folder) if path.name not in set(names)]
    stems, shortest = {Path(name).stem for name in inputs}, _shortest_numbers(names)
    stale = [
        path
        for path in found
        if path.suffix.lower() in WRITTEN_SUFFIXES and (path.stem in stems or _is_numbered_alike(path.stem, shortest))
    ]
    return stale, [path for path in found if path not in set(stale)]


def _input_names(source: Source) -> list[str]:
    """Return the names of all pictures of the input, those outside the part asked for, too."""
    if not isinstance(source, PictureSource):
        return []
    return [path.name for path in ([source.path] if source.is_single else picture_files(source.path))]


def _shortest_numbers(names: list[str]) -> dict[tuple[str, str], int]:
    """Return the least number of digits of the last number in names, by the text before and after it."""
    shortest: dict[tuple[str, str], int] = {}
    for name in names:
        if found := LAST_NUMBER.fullmatch(Path(name).stem):
            around = (found[1], found[3])
            shortest[around] = min(shortest.get(around, len(found[2])), len(found[2]))
    return shortest


def _is_numbered_alike(stem: str, shortest: dict[tuple[str, str], int]) -> bool:
    found = LAST_NUMBER.fullmatch(stem)
    digits = None if found is None else shortest.get((found[1], found[3]))
    if found is None or digits is None:
        return False
    return len(found[2]) == digits or (len(found[2]) > digits and found[2][0] != "0")
