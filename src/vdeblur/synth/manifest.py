"""The folder of a data set that synth makes: its manifest, and how a new set replaces an earlier one.

OUT/manifest.json records the options, the sources and, once the set is complete, its sequences. While a set is being
replaced, the earlier one waits in OUT/.earlier; if the new one fails or is stopped, it is put back.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vdeblur.errors import InterruptedRunError, OutputError
from vdeblur.files import write_whole
from vdeblur.synth.sequences import DRAFTS, RECORD, SPLITS, ManifestEntry, Piece, random_name
from vdeblur.version import __version__

MANIFEST, LOCK = "manifest.json", ".lock"
EARLIER = ".earlier"  # holds the set that is being replaced


@contextlib.contextmanager
def writing_pairs(path: Path) -> Iterator[None]:
    """Translate an OSError while a path is written.

    Raises: OutputError with the path.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}", "make room, or check the path") from error


def read_manifest(out: Path) -> dict[str, Any]:
    """Return the manifest of the set in a folder; an empty one if the folder is empty or missing.

    Raises: OutputError where the folder holds anything else, or a link in place of a file or folder of synth's.
    """
    for name in (MANIFEST, LOCK, EARLIER, DRAFTS):
        if (out / name).is_symlink():
            raise OutputError(f"{out / name} is a symbolic link, and synth makes none", "remove it")
    kept = out / EARLIER / MANIFEST  # left by a killed run
    try:
        if not out.is_dir() or all(entry.name == LOCK for entry in out.iterdir()):
            return {}
        manifest: dict[str, Any] = json.loads((kept if kept.exists() else out / MANIFEST).read_text("utf-8"))
        for source in manifest["sources"]:
            _bare(source)
        return {**manifest, "options": manifest["options"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        hint = "choose another folder; -y replaces only what synth made"
        raise OutputError(f"{out} is not empty, and has no {MANIFEST} of vdeblur synth", hint) from error
    except OSError as error:
        raise OutputError(f"{out} cannot be read: {error.strerror}", "check its permissions") from error


def earlier_manifest(out: Path, head: dict[str, Any], *, overwrite: bool, resume: bool) -> dict[str, Any]:
    """Return the manifest of the set to resume; an empty one for a new set.

    Raises: OutputError where a set exists that can neither be resumed nor overwritten.
    """
    manifest = read_manifest(out)
    if not manifest or overwrite:
        return {}
    existing = {"options": manifest["options"], "sources": [_bare(source) for source in manifest["sources"]]}
    if resume and existing == head:
        return manifest
    raise OutputError(f"{out} was made {_difference(existing, head)}", "choose another folder, or add -y")


@contextlib.contextmanager
def replaced(out: Path) -> Iterator[None]:
    """Keep the earlier set until the new one is complete; put it back after an error or a signal."""
    try:
        move_aside(out)
        yield
    except BaseException as error:
        put_back(out)
        if isinstance(error, InterruptedRunError):
            error.message = "stopped; the earlier data set is back in place"
        raise
    with writing_pairs(out):
        (out / DRAFTS).mkdir(exist_ok=True)
        os.replace(out / EARLIER, out / DRAFTS / EARLIER)  # from here on the new set is the valid one


def move_aside(out: Path) -> None:
    """Move the set in a folder to OUT/.earlier."""
    with writing_pairs(out):
        _move_sequences(out, out / EARLIER)
        (out / EARLIER).mkdir(exist_ok=True)
        os.replace(out / MANIFEST, out / EARLIER / MANIFEST)  # last: it marks all that is in OUT as new


def put_back(out: Path) -> None:
    """Undo move_aside, even after a kill during it or during this, and drop what was made since."""
    kept = out / EARLIER
    if not kept.is_dir():
        return
    with writing_pairs(out):
        if (kept / MANIFEST).exists():
            shutil.rmtree(out / DRAFTS, ignore_errors=True)
            _move_sequences(out, out / DRAFTS)
            os.replace(kept / MANIFEST, out / MANIFEST)
        _move_sequences(kept, out)
        shutil.rmtree(kept)


def _move_sequences(origin: Path, target: Path) -> None:
    """Move the sequences that synth made, and nothing else, each by one renaming."""
    for split in SPLITS:
        for record in sorted(origin.glob(f"{split}/*/{RECORD}")):
            (target / split).mkdir(parents=True, exist_ok=True)
            os.replace(record.parent, target / split / record.parent.name)
        with contextlib.suppress(OSError):
            (origin / split).rmdir()  # fails where something else is in it


def _bare(source: dict[str, Any]) -> dict[str, Any]:
    return {key: source[key] for key in ("name", "kind", "sha256", "split")}


def _difference(existing: dict[str, Any], head: dict[str, Any]) -> str:
    """Return how an existing set differs, after "was made"."""
    for key, value in head["options"].items():
        if existing["options"].get(key) != value:
            option = {"crf": "compress"}.get(key, key.replace("_", "-"))
            return f"with another --{option}: {existing['options'].get(key)}, not {value}"
    return "from other sources" if existing != head else "before, and --no-resume forbids resuming it"


class SynthState:
    """Progress of a data set, written to its manifest."""

    def __init__(self, out: Path, head: dict[str, Any], earlier: dict[str, Any]) -> None:
        self.out, self.head = out, head
        self.sources: list[dict[str, Any]] = [dict(source) for source in earlier.get("sources", head["sources"])]
        self._write([], complete=False)

    def is_done(self, piece: Piece) -> bool:
        """Return whether an earlier run finished a piece of work, and all of it still exists."""
        if piece.source < 0:
            return all((self.out / piece.split / random_name(n)).is_dir() for n in range(piece.first, piece.stop))
        made = self.sources[piece.source].get("made")
        return made is not None and all((self.out / piece.split / name).is_dir() for name in made)

    def note(self, piece: Piece, facts: dict[str, Any]) -> None:
        """Record the result of a piece of work."""
        if piece.source >= 0:
            self.sources[piece.source] = self.head["sources"][piece.source] | facts
            self._write([], complete=False)

    def finish(self, entries: list[ManifestEntry]) -> dict[str, Any]:
        """Write the manifest with every sequence in it, and return it."""
        records = [path.read_text("utf-8") for split in SPLITS for path in self.out.glob(f"{split}/*/{RECORD}")]
        order = {entry.footage.name: number for number, entry in reversed(list(enumerate(entries)))}
        sequences = [json.loads(record) for record in records]
        sequences.sort(key=lambda row: (SPLITS.index(row["split"]), order.get(row["source"], -1), row["name"]))
        return self._write(sequences, complete=True)

    def _write(self, sequences: list[dict[str, Any]], *, complete: bool) -> dict[str, Any]:
        head = {"v": 1, "made_by": f"vdeblur synth {__version__}", "complete": complete}
        manifest = {**head, "options": self.head["options"], "sources": self.sources, "sequences": sequences}
        with writing_pairs(self.out):
            write_whole(self.out / MANIFEST, json.dumps(manifest, indent=1).encode())
        return manifest
