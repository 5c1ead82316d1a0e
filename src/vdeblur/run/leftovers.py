"""Find and remove leftovers of interrupted runs: segments that the next run would use, and drafts of killed ones."""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock

from vdeblur.files import is_draft_in_use
from vdeblur.run.segment_record import JUNK, read_json
from vdeblur.run.state_folder import LOCK, STATE, check_state_folder, clear_state_folder
from vdeblur.run.store import folder_of

SAMPLES = ".vdeblur-sample-"  # begins the name of a folder of samples; other drafts are files
SEGMENTS = re.compile(r"\.vdeblur-.*-[0-9a-f]{8}", re.DOTALL)  # a folder of segments; see folder_of


@dataclass(frozen=True)
class Leftover:
    """A file or folder that an interrupted run left.

    output: the output that it belongs to; None of a draft. frames: that are finished. bytes: its size. age_seconds:
    since it was last written. in_use: whether a run works with it now.
    """

    path: Path
    output: Path | None
    frames: int
    bytes: int
    age_seconds: float
    in_use: bool


def find_leftovers(folder: Path, *, recursive: bool = False) -> list[Leftover]:
    """Return what interrupted runs left in a folder, the oldest first; links are not followed.

    Raises: OSError.
    """
    found = []
    for place, folders, files in os.walk(folder, onerror=_raise):
        for name in sorted([*folders, *files]):
            path = Path(place) / name
            if not path.is_symlink() and (left := _as_leftover(path)) is not None:
                found.append(left)
        folders[:] = [name for name in folders if not name.startswith(".")] if recursive else []
    return sorted(found, key=lambda left: -left.age_seconds)


def remove_leftover(left: Leftover) -> bool:
    """Remove a leftover, only the files in it that runs write; return whether nothing of it is left.

    Raises: OSError; OutputError for a folder of segments that a run would refuse, see check_state_folder.
    """
    if not left.path.is_dir():
        left.path.unlink()
        return True
    if left.output is None:
        for entry in list(os.scandir(left.path)):
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
    else:
        check_state_folder(left.path)
        with _locked(left.path) as is_free:
            if not is_free:
                return False
            clear_state_folder(left.path)
            with contextlib.suppress(OSError):  # Windows does not remove open files
                (left.path / LOCK).unlink()
    with contextlib.suppress(OSError):  # something of other people's is in it
        if left.output is not None:
            (left.path / LOCK).unlink(missing_ok=True)
        left.path.rmdir()
    return not left.path.exists()


def _raise(error: OSError) -> None:
    raise error


def _as_leftover(path: Path) -> Leftover | None:
    if path.is_dir():
        if SEGMENTS.fullmatch(path.name) and (state := _state_of(path)) is not None:
            output, frames = state
            return _measured(path, output, frames, _is_locked(path))
        if not path.name.startswith(SAMPLES):
            return None
    in_use = is_draft_in_use(path)
    return None if in_use is None else _measured(path, None, 0, in_use)


def _state_of(folder: Path) -> tuple[Path, int] | None:
    """Return the output of a folder of segments, and its finished frames; None if it is no such folder."""
    try:
        output = folder.parent / Path(str(read_json(folder / STATE)["output"])).name
    except JUNK:
        return None
    if folder_of(output).name != folder.name:
        return None
    frames = 0
    for path in folder.glob("[0-9]*.json"):
        with contextlib.suppress(*JUNK):
            frames += int(read_json(path)["frames"])
    return output, frames


def _measured(path: Path, output: Path | None, frames: int, in_use: bool) -> Leftover:
    size, last = 0, path.lstat().st_mtime
    for place, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                facts = os.lstat(os.path.join(place, name))
                size, last = size + facts.st_size, max(last, facts.st_mtime)
    size = size if path.is_dir() else path.lstat().st_size
    return Leftover(path, output, frames, size, max(time.time() - last, 0.0), in_use)


def _is_locked(folder: Path) -> bool:
    with _locked(folder) as is_free:
        return not is_free


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder of segments, if it has one; yield whether no run holds it."""
    path = folder / LOCK
    if not path.is_file() or path.is_symlink():
        yield True
        return
    before = path.stat()
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
        if path.exists():
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # looking does not make it younger
