"""`vdeblur synth`: sharp footage to a folder of paired blurry and sharp clips, in GoPro's layout.

    OUT/{train,test}/SEQUENCE/{blur,blur_gamma,sharp}/000001.png, SEQUENCE/sequence.json; OUT/manifest.json

A sequence is made in a hidden folder and appears complete, with a record of how it was made, by one renaming; the same
command resumes and makes the missing ones. The work is divided by source, or for `random` into tens of clips. The
result depends only on the options and the sources' content.
"""

import contextlib
import math
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vdeblur.datasets.held_out import is_held_out
from vdeblur.errors import InputError, OutputError, UsageError
from vdeblur.events import Notify, Stop, ignore
from vdeblur.files import check_output
from vdeblur.synth import footage, workers
from vdeblur.synth.manifest import (
    LOCK,
    MANIFEST,
    SynthState,
    earlier_manifest,
    put_back,
    read_manifest,
    replaced,
    writing_pairs,
)
from vdeblur.synth.preview import write_preview
from vdeblur.synth.sequences import DRAFTS, SPLITS, ManifestEntry, Options, Piece, SynthJob, look_at_motion

WAYS = ("gopro", "dvd", "camera", "random")
CLIPS_AT_ONCE = 10  # in a piece of work, for the way random


def plan(sources: list[Path], options: Options) -> list[ManifestEntry]:
    """Find the footage, and assign each source to a split.

    Raises: InputError for unreadable footage; UsageError for footage that does not suit the way.
    """
    check_options(options)
    uses_stills = options.way in ("camera", "random")
    found = footage.find_stills(sources) if uses_stills else footage.find_sequences(sources)
    if options.way == "camera" and (videos := [source for source in found if source.kind == "video"]):
        raise UsageError(f"{videos[0].path} is not a photograph", "leave it out: --way camera moves over photographs")
    if options.way == "random" and not any(source.kind == "still" for source in found):
        raise UsageError("--way random needs photographs", "name a folder of them, or use --way gopro")
    entries, taken = [], set()
    for source in found:
        if source.kind != "still" and not uses_stills:  # report unreadable footage before the work
            footage.open_footage(source, ignore).close()
        name = source.name if source.kind == "pictures" else Path(source.name).stem
        stem = plain = re.sub(r"[^\w.-]+", "_", name)
        again = 1
        while stem.casefold() in taken:
            again += 1
            stem = f"{plain}-{again}"
        taken.add(stem.casefold())
        # With --way random, videos are only for training: photographs are enough for validation.
        for_test = is_held_out(source.name, options.test_share) and not (uses_stills and source.kind == "video")
        entries.append(ManifestEntry(source, source.digest(), SPLITS[for_test], stem))
    return entries


def check_options(options: Options) -> None:
    """Refuse options that contradict each other.

    Raises: UsageError.
    """
    for number in options.average:
        if number % 2 == 0:
            raise UsageError(
                f"{number} frames have no middle one, which would be the sharp one", f"use an odd number: {number + 1}"
            )
    if options.way in ("camera", "random") and options.size is not None and options.size[0] != options.size[1]:
        raise UsageError(f"--way {options.way} makes square frames", f"--size {min(options.size)}")
    if options.size is not None and options.scale != 1:
        raise UsageError("--size and --scale exclude each other", "give one of them")


def pieces(entries: list[ManifestEntry], options: Options) -> list[Piece]:
    """Divide the work into pieces."""
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
    """Return the number of clips in a split, for the way random."""
    clips = options.clips or 1000
    return clips if split == "train" else math.ceil(clips * options.test_share)


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
    """Make the data set and return its manifest; of a dry run, the manifest's options and sources.

    notify: receives the events synth_plan, warning, progress, sequence_made, synth_done.

    Raises: InputError, UsageError, OutputError; InterruptedRunError when `stop` returns a status.
    """
    begun = time.monotonic()
    _check_paths(sources, out, preview, overwrite)
    entries = plan(sources, options)
    work = pieces(entries, options)
    job = SynthJob(options, out, entries, notify, stop)
    head: dict[str, Any] = {"options": options.facts(), "sources": [entry.facts() for entry in entries]}
    _announce(job, work, head["sources"])
    if dry_run:
        for entry in entries if options.way in ("gopro", "dvd") else ():
            look_at_motion(job, entry)
        return head

    read_manifest(out)  # raises before even a lock is written into a folder of something else
    with _reserved(out):
        put_back(out)  # after a killed run
        earlier = earlier_manifest(out, head, overwrite=overwrite, resume=resume)
        replaces = not earlier and (out / MANIFEST).exists()
        with replaced(out) if replaces else contextlib.nullcontext():
            manifest = _do_work(job, work, jobs, SynthState(out, head, earlier))
        if preview is not None:
            write_preview(preview, out, manifest["sequences"])
    counts = {split: sum(row["split"] == split for row in manifest["sequences"]) for split in SPLITS}
    frames = sum(row["frames"] for row in manifest["sequences"])
    seconds = time.monotonic() - begun
    notify("synth_done", {"output": str(out), "frames": frames, "seconds": round(seconds, 3), **counts})
    return manifest


def _check_paths(sources: list[Path], out: Path, preview: Path | None, overwrite: bool) -> None:
    """Refuse paths that get in each other's way.

    Raises: UsageError; OutputError where the preview cannot be written.
    """
    if preview is not None:
        if preview.suffix.lower() != ".png":
            raise UsageError(f"the preview is a PNG, not {preview}", "name it *.png")
        check_output(preview, out / MANIFEST, overwrite)
    for source in sources:
        if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise UsageError(f"the output {out} lies within the source {source}", "choose a folder elsewhere")


def _announce(job: SynthJob, work: list[Piece], sources: list[dict[str, Any]]) -> None:
    """Send the plan, and warn of an empty split and of unsuitable footage."""
    counts = {split: sum(entry.split == split for entry in job.entries) for split in SPLITS}
    job.notify("synth_plan", {"output": str(job.out), "way": job.options.way, "sources": sources, **counts})
    only = job.options.split
    if not work or (only is None and all(piece.split == "test" for piece in work)):
        which = f"no source belongs to {only}" if only else "every source belongs to test"
        job.warn("W_SPLIT", f"{which}, by its name; another --test-share divides them otherwise")
    for entry in job.entries:
        if entry.footage.kind == "video" and only in (None, entry.split):
            footage.warn_of_footage(entry.footage, job.warn)


def _do_work(job: SynthJob, work: list[Piece], jobs: int, state: SynthState) -> dict[str, Any]:
    """Make all sequences that do not exist yet, and return the manifest.

    Raises: InputError where there is none in the end.
    """
    workers.do_all(job, [piece for piece in work if not state.is_done(piece)], jobs, state.note)
    manifest = state.finish(job.entries)
    if not manifest["sequences"]:
        raise InputError("not one sequence could be made", "see the warnings; longer or larger footage is needed")
    return manifest


@contextlib.contextmanager
def _reserved(out: Path) -> Iterator[None]:
    """Make the folder, and lock it against other processes.

    Raises: OutputError.
    """
    lock = FileLock(out / LOCK, timeout=0)
    with writing_pairs(out):
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
