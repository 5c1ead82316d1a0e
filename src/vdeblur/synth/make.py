"""`vdeblur synth`: sharp footage to a folder of paired blurry and sharp clips, laid out as GoPro is.

    OUT/{train,test}/SEQUENCE/{blur,blur_gamma,sharp}/000001.png, SEQUENCE/sequence.json; OUT/manifest.json

A sequence is made in a hidden folder and appears whole, with the record of how it was made, by one renaming; the same
command goes on with those that are missing. The work is shared out by source, or for `random` by tens of clips, and
what is made depends on nothing but the options and the sources' content.
"""

import contextlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from vdeblur import __version__
from vdeblur.datasets.pictures import read_rgb, to_frame
from vdeblur.errors import InputError, InterruptedRunError, OutputError, UsageError
from vdeblur.events import Notify, Stop, ignore
from vdeblur.files import check_output, write_whole
from vdeblur.output.pictures import picture_bytes
from vdeblur.synth import footage, workers
from vdeblur.synth.clips import is_held_out
from vdeblur.synth.sequences import (
    DRAFTS,
    RECORD,
    ManifestEntry,
    Options,
    Piece,
    SynthJob,
    look_at_motion,
    random_name,
)

WAYS = ("gopro", "dvd", "camera", "random")
SPLITS = ("train", "test")
CLIPS_AT_ONCE = 10  # of the way random, in one piece of work
COLUMNS, ROWS, CELL, GAP = 4, 3, (320, 320), 4  # of a preview: pairs across and down, largest picture, pixels between
MANIFEST, LOCK = "manifest.json", ".lock"
EARLIER = ".earlier"  # where what is being replaced waits


# Planning -------------------------------------------------------------------------------------------------------


def plan(sources: list[Path], options: Options) -> list[ManifestEntry]:
    """Find the footage, and which split each belongs to.

    Raises: InputError where it cannot be read, UsageError where it does not suit the way.
    """
    check_options(options)
    still_life = options.way in ("camera", "random")
    found = footage.find_stills(sources) if still_life else footage.find_sequences(sources)
    if options.way == "camera" and (videos := [one for one in found if one.kind == "video"]):
        raise UsageError(f"{videos[0].path} is no photograph", "--way camera moves over photographs; leave it out")
    if options.way == "random" and not any(one.kind == "still" for one in found):
        raise UsageError("--way random needs photographs", "name a folder of them, or use --way gopro")
    entries, taken = [], set()
    for one in found:
        if one.kind != "still" and not still_life:  # what cannot be read is told before the work
            footage.open_footage(one, ignore).close()
        stem = plain = re.sub(r"[^\w.-]+", "_", Path(one.name).stem if one.kind != "pictures" else one.name)
        again = 1
        while stem.casefold() in taken:
            again += 1
            stem = f"{plain}-{again}"
        taken.add(stem.casefold())
        # Videos of the way random train only: photographs are enough to validate on.
        for_test = is_held_out(one.name, options.test_share) and not (still_life and one.kind == "video")
        entries.append(ManifestEntry(one, one.digest(), SPLITS[for_test], stem))
    return entries


def check_options(options: Options) -> None:
    """Refuse options that do not go together.

    Raises: UsageError.
    """
    for number in options.average:
        if number % 2 == 0:
            raise UsageError(
                f"{number} frames have no middle one, which is the sharp one", f"average {number + 1}, an odd number"
            )
    if options.way in ("camera", "random") and options.size is not None and options.size[0] != options.size[1]:
        raise UsageError(f"--way {options.way} makes square frames", f"--size {min(options.size)}")
    if options.size is not None and options.scale != 1:
        raise UsageError("--size and --scale exclude each other", "give one of them")


def pieces(entries: list[ManifestEntry], options: Options) -> list[Piece]:
    """Divide the work."""
    splits = [options.split] if options.split else list(SPLITS)
    if options.way != "random":
        return [Piece(entry.split, number) for number, entry in enumerate(entries) if entry.split in splits]
    work = []
    for split in splits:
        if any(entry.split == split and entry.footage.kind == "still" for entry in entries):
            count = random_clips(options, split)
            firsts = range(0, count, CLIPS_AT_ONCE)
            work += [Piece(split, first=first, stop=min(first + CLIPS_AT_ONCE, count)) for first in firsts]
    return work


def random_clips(options: Options, split: str) -> int:
    """Give how many clips of the way random there are in a split."""
    clips = options.clips or 1000
    return clips if split == "train" else math.ceil(clips * options.test_share)


# Running --------------------------------------------------------------------------------------------------------


def make_pairs(
    sources: list[Path],
    out: Path,
    options: Options,
    *,
    overwrite: bool = False,
    resume: bool = True,
    preview: Path | None = None,
    jobs: int = 1,
    dry_run: bool = False,
    notify: Notify,
    stop: Stop,
) -> dict[str, Any]:
    """Make the data set; gives its manifest. notify: takes the events synth_plan, warning, progress, sequence_made.

    Raises: InputError, UsageError, OutputError; InterruptedRunError where `stop` gives a status.
    """
    begun = time.monotonic()
    if preview is not None:
        if preview.suffix.lower() != ".png":
            raise UsageError(f"{preview} is no name for a preview", "name it *.png")
        check_output(preview, out / MANIFEST, overwrite)
    for source in sources:
        if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise UsageError(f"{out} lies within {source}, which is read", "choose a folder elsewhere")
    entries = plan(sources, options)
    work = pieces(entries, options)
    head = {"options": options.facts(), "sources": [entry.facts() for entry in entries]}
    facts = {"output": str(out), "way": options.way, "sources": head["sources"]}
    notify("synth_plan", facts | {split: sum(e.split == split for e in entries) for split in SPLITS})
    if not work or all(piece.split == "test" for piece in work if options.split is None):
        _warn_of_empty(notify, options)
    job = SynthJob(options, out, entries, notify, stop)
    for entry in entries:
        if entry.footage.kind == "video" and options.split in (None, entry.split):
            footage.warn_of_footage(entry.footage, job.warn)
    if dry_run:
        for entry in entries if options.way in ("gopro", "dvd") else ():
            look_at_motion(job, entry)
        return head

    _read_manifest(out)  # where something else is there, not even a lock is put into it
    with _reserved(out):
        _put_back(out)  # where a run was killed
        earlier = _earlier(out, head, overwrite=overwrite, resume=resume)
        replaces = not earlier and (out / MANIFEST).exists()
        with _replaced(out) if replaces else contextlib.nullcontext():
            state = SynthState(out, head, earlier)
            workers.do_all(job, [piece for piece in work if not state.is_done(piece)], jobs, state.note)
            manifest = state.finish(entries)
            if not manifest["sequences"]:
                hint = "see the warnings; longer or larger footage is needed"
                raise InputError("not one sequence could be made", hint)
        if preview is not None:
            _write_preview(preview, out, manifest["sequences"])
    counts = {split: sum(row["split"] == split for row in manifest["sequences"]) for split in SPLITS}
    frames = sum(row["frames"] for row in manifest["sequences"])
    seconds = time.monotonic() - begun
    notify("synth_done", {"output": str(out), "frames": frames, "seconds": round(seconds, 3), **counts})
    return manifest


def _warn_of_empty(notify: Notify, options: Options) -> None:
    where = f"no source belongs to {options.split}" if options.split else "every source belongs to test"
    message = f"{where}, by its name; another --test-share divides otherwise"
    notify("warning", {"code": "W_SPLIT", "message": message})


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Name what cannot be written."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}", "make room, or check the path") from error


@contextlib.contextmanager
def _reserved(out: Path) -> Iterator[None]:
    """Make the folder, and keep other processes out of it."""
    lock = FileLock(out / LOCK, timeout=0)
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise OutputError(f"another vdeblur synth is writing to {out}", "wait for it") from error
    try:
        yield
    finally:
        shutil.rmtree(out / DRAFTS, ignore_errors=True)
        with contextlib.suppress(OSError):
            (out / LOCK).unlink()
        lock.release()


def _read_manifest(out: Path) -> dict[str, Any]:
    """Give the manifest of what synth made there; nothing where nothing is there.

    Raises: OutputError where something else is.
    """
    kept = out / EARLIER / MANIFEST  # of a run that was killed
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


def _earlier(out: Path, head: dict[str, Any], *, overwrite: bool, resume: bool) -> dict[str, Any]:
    """Give the manifest of what is to be gone on with; nothing where the set is made anew.

    Raises: OutputError where what is there is neither to be gone on with nor to be replaced.
    """
    manifest = _read_manifest(out)
    if not manifest or overwrite:
        return {}
    theirs = {"options": manifest["options"], "sources": [_bare(source) for source in manifest["sources"]]}
    if resume and theirs == head:
        return manifest
    raise OutputError(f"{out} was made {_difference(theirs, head)}", "choose another folder, or add -y")


@contextlib.contextmanager
def _replaced(out: Path) -> Iterator[None]:
    """Keep what an earlier run made until the new set is whole; where it is not to be, put it back."""
    try:
        _move_aside(out)
        yield
    except BaseException as error:
        _put_back(out)
        if isinstance(error, InterruptedRunError):
            error.message = "stopped; what was there before is there again"
        raise
    with _writing(out):
        (out / DRAFTS).mkdir(exist_ok=True)
        os.replace(out / EARLIER, out / DRAFTS / EARLIER)  # from here on it is the new set that counts


def _move_aside(out: Path) -> None:
    with _writing(out):
        _move_sequences(out, out / EARLIER)
        (out / EARLIER).mkdir(exist_ok=True)
        os.replace(out / MANIFEST, out / EARLIER / MANIFEST)  # last: it tells that what is in OUT now is new


def _put_back(out: Path) -> None:
    """Undo `_move_aside`, also where that, or this, was cut short, and drop what was made since."""
    kept = out / EARLIER
    if not kept.is_dir():
        return
    with _writing(out):
        if (kept / MANIFEST).exists():
            shutil.rmtree(out / DRAFTS, ignore_errors=True)
            _move_sequences(out, out / DRAFTS)
            os.replace(kept / MANIFEST, out / MANIFEST)
        _move_sequences(kept, out)
        shutil.rmtree(kept)


def _move_sequences(origin: Path, target: Path) -> None:
    """Move what synth made, and nothing else, each sequence by one renaming."""
    for split in SPLITS:
        for record in sorted(origin.glob(f"{split}/*/{RECORD}")):
            (target / split).mkdir(parents=True, exist_ok=True)
            os.replace(record.parent, target / split / record.parent.name)
        with contextlib.suppress(OSError):
            (origin / split).rmdir()  # unless something else lies there


def _bare(source: dict[str, Any]) -> dict[str, Any]:
    return {key: source[key] for key in ("name", "kind", "sha256", "split")}


def _difference(theirs: dict[str, Any], head: dict[str, Any]) -> str:
    """Say what is otherwise there."""
    for key, value in head["options"].items():
        if theirs["options"].get(key) != value:
            option = {"crf": "compress"}.get(key, key.replace("_", "-"))
            return f"with another --{option}: {theirs['options'].get(key)}, not {value}"
    return "of other sources" if theirs != head else "already, and is not to be gone on with"


class SynthState:
    """What is finished; kept in the manifest."""

    def __init__(self, out: Path, head: dict[str, Any], earlier: dict[str, Any]) -> None:
        self.out, self.head = out, head
        self.sources: list[dict[str, Any]] = [dict(source) for source in earlier.get("sources", head["sources"])]
        self._write([], complete=False)

    def is_done(self, piece: Piece) -> bool:
        """Tell whether an earlier run finished a piece of work, and all of it is there."""
        if piece.source < 0:
            return all((self.out / piece.split / random_name(n)).is_dir() for n in range(piece.first, piece.stop))
        made = self.sources[piece.source].get("made")
        return made is not None and all((self.out / piece.split / name).is_dir() for name in made)

    def note(self, piece: Piece, facts: dict[str, Any]) -> None:
        """Note what came of a piece of work."""
        if piece.source >= 0:
            self.sources[piece.source] = self.head["sources"][piece.source] | facts
            self._write([], complete=False)

    def finish(self, entries: list[ManifestEntry]) -> dict[str, Any]:
        """Write the manifest with every sequence in it, and give it."""
        records = [path.read_text("utf-8") for split in SPLITS for path in self.out.glob(f"{split}/*/{RECORD}")]
        order = {entry.footage.name: number for number, entry in reversed(list(enumerate(entries)))}
        sequences = [json.loads(record) for record in records]
        sequences.sort(key=lambda one: (SPLITS.index(one["split"]), order.get(one["source"], -1), one["name"]))
        return self._write(sequences, complete=True)

    def _write(self, sequences: list[dict[str, Any]], *, complete: bool) -> dict[str, Any]:
        head = {"v": 1, "made_by": f"vdeblur synth {__version__}", "complete": complete}
        manifest = {**head, "options": self.head["options"], "sources": self.sources, "sequences": sequences}
        with _writing(self.out):
            write_whole(self.out / MANIFEST, json.dumps(manifest, indent=1).encode())
        return manifest


# The preview ----------------------------------------------------------------------------------------------------


def _write_preview(path: Path, out: Path, sequences: list[dict[str, Any]]) -> None:
    """Write the middle frames of some sequences, blurry above sharp."""
    count = min(len(sequences), COLUMNS * ROWS)
    chosen = [sequences[index * len(sequences) // count] for index in range(count)]
    pairs = []
    for record in chosen:
        folder = out / record["split"] / record["name"]
        kind = next(kind for kind in ("blur", "blur_gamma") if (folder / kind).is_dir())
        name = f"{record['frames'] // 2 + 1:06}.png"
        pairs.append([_small(read_rgb(folder / one / name)) for one in (kind, "sharp")])
    width, height = (max(pair[0].shape[axis] for pair in pairs) for axis in (2, 1))
    columns, rows = min(count, COLUMNS), -(-count // COLUMNS)
    sheet = torch.full((3, rows * 2 * (height + GAP) + GAP, columns * (width + GAP) + GAP), 128, dtype=torch.uint8)
    for index, pair in enumerate(pairs):
        row, column = divmod(index, COLUMNS)
        for below, picture in enumerate(pair):
            top = GAP + (2 * row + below) * (height + GAP)
            left = GAP + column * (width + GAP)
            sheet[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    with _writing(path):
        write_whole(path, picture_bytes(to_frame(sheet)))


def _small(picture: Tensor) -> Tensor:
    height, width = picture.shape[1:]
    scale = min(CELL[0] / width, CELL[1] / height, 1)
    return footage.reduced(picture, max(round(width * scale), 1), max(round(height * scale), 1))
