"""Files written whole or not at all, locks, cache folders, and checks of outputs."""

import contextlib
import errno
import os
import platform
import re
import shlex
import shutil
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import platformdirs

from vdeblur.errors import ModelError, OutputError
from vdeblur.events import Talk


def check_output(path: Path, source: Path, overwrite: bool, *, makes_folder: bool = False) -> None:
    """Refuse an output that must not or cannot be written; call this before the work.

    makes_folder: accept that its folder is missing, if it can be made.

    Raises: OutputError.
    """
    try:
        _check_output(path, source, overwrite, makes_folder)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}", "check the path") from error


def _check_output(path: Path, source: Path, overwrite: bool, makes_folder: bool) -> None:
    folder = path.parent
    while makes_folder and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if source.exists() and path.exists() and path.samefile(source):
        raise OutputError(f"{path} is the input itself", "choose another name for the output")
    if not folder.is_dir():
        raise OutputError(f"the folder {folder} does not exist", f"make it: mkdir -p {shlex.quote(str(folder))}")
    if path.exists() and not path.is_dir() and not overwrite:
        raise OutputError(f"{path} exists already", "choose another name, or replace it with -y")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise OutputError(f"the folder {path} exists already and is not empty", "choose another, or add -y")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"the folder {folder} is not writable", "check its permissions")


def write_error(path: Path, error: Exception) -> OutputError:
    """Return the error that says why a path cannot be written."""
    is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    reason = "the disk is full" if is_full else getattr(error, "strerror", None) or str(error)
    hint = "free some space and run the same command again; what is finished is kept" if is_full else ""
    return OutputError(f"{path} cannot be written: {reason}", hint)


# Names of hidden drafts. That of a folder of segments (run/store.py) ends in "-" and eight digits, so none matches.
LEFTOVER = re.compile(
    r"\.vdeblur-(sample-)?([0-9a-f]{8})-([0-9]{1,9})-[0-9a-z_]{8}\.draft(?:\.[^-]*)?", re.ASCII | re.DOTALL
)
LOCK_POLL_SECONDS = 0.5
ABANDONED_SECONDS = (
    3600  # since the last write to a draft: on shared disks, other machines write, whose processes are unknown
)


def cache_folder() -> Path:
    """Return the folder for vdeblur's files: VDEBLUR_CACHE, or vdeblur in the system's folder for caches.

    On macOS and Windows a cache that lies in ~/.cache/vdeblur, the folder of earlier versions, stays in use.
    """
    explicit = os.environ.get("VDEBLUR_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    on_linux = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vdeblur"
    if sys.platform.startswith("linux"):
        return on_linux
    usual = platformdirs.user_cache_path("vdeblur", appauthor=False)
    return on_linux if on_linux.is_dir() and not usual.exists() else usual


def hub_folder() -> str | None:
    """Return the folder for the Hub's files; None where huggingface_hub's own rules (HF_HOME, HF_HUB_CACHE) hold."""
    return str(cache_folder() / "hub") if os.environ.get("VDEBLUR_CACHE") else None


@contextlib.contextmanager
def locked(path: Path, talk: Talk) -> Iterator[None]:
    """Hold a lock file in the cache; a second process waits instead of fetching the same file.

    Raises: ModelError where the cache cannot be used; InterruptedRunError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = wait_for_lock(path, talk, "fetches the same")
    except OSError as error:
        raise cache_error(error) from error
    with lock:
        yield


def wait_for_lock(path: Path, talk: Talk, doing: str) -> contextlib.ExitStack:
    """Wait for a lock file and acquire it; the returned context releases it.

    doing: what the other process does, for the warning.

    Raises: OSError; InterruptedRunError.
    """
    import filelock

    lock = filelock.FileLock(path)
    with contextlib.suppress(filelock.Timeout):
        lock.acquire(timeout=0)
    if not lock.is_locked:
        talk.notify("warning", {"code": "W_LOCKED", "message": f"waiting for another vdeblur that {doing}"})
    while not lock.is_locked:
        talk.check_stop()
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(timeout=LOCK_POLL_SECONDS)
    held = contextlib.ExitStack()
    held.callback(lock.release)
    return held


@contextlib.contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold a lock file, and make its folder; yield whether it is free. At the end both go, the folder if it is empty.

    Raises: OSError.
    """
    import filelock

    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):
            if os.name == "nt":  # which does not remove open files
                lock.release()
            path.unlink()
            path.parent.rmdir()
        lock.release()


def cache_error(error: OSError) -> ModelError:
    """Return the error that says why the cache cannot be used."""
    return ModelError(
        f"the cache {cache_folder()} cannot be used: {error.strerror or error}",
        "free some space, or name another folder in VDEBLUR_CACHE",
    )


def write_whole(path: Path, data: bytes | memoryview | Callable[[BinaryIO], object]) -> None:
    """Write a file by `drafted`, so that it appears complete or not at all.

    data: the bytes, or a function that writes them to a file.

    Raises: OSError.
    """
    with drafted(path) as draft, fresh_file(draft) as file:
        if callable(data):
            data(file)
        else:
            file.write(data)


def fresh_file(path: Path) -> BinaryIO:
    """Open a new file for writing, and remove what has its name: a link there would lead the data elsewhere.

    Raises: OSError.
    """
    path.unlink(missing_ok=True)
    return path.open("xb")


@contextlib.contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """Yield the path of a draft beside a file; the draft then replaces the file, or is removed after an error.

    Makes the folder, and removes what killed processes left. The draft's name is the file's with ".PID.draft" added, so
    searches for "*.suffix" miss drafts.

    Raises: OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    draft.unlink(missing_ok=True)  # a link there would lead the data elsewhere
    with _removed(draft):
        yield draft
        put_in_place(draft, path)


@contextlib.contextmanager
def drafted_output(output: Path, overwrite: bool) -> Iterator[Path]:
    """Yield the path of a hidden draft beside an output, with its suffix; the draft then becomes the output.

    Raises: OutputError where the output cannot be written, or exists by now and must not be overwritten.
    """
    draft = output.absolute().with_name(f".vdeblur-{process_tag()}-{uuid.uuid4().hex[:8]}.draft{output.suffix}")
    remove_leftovers(draft.parent)
    try:
        with _removed(draft):
            yield draft
            put_in_place(draft, output, overwrite)
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}", "check the path") from error


def process_tag() -> str:
    """Return what identifies this process in names of hidden drafts: a checksum of the machine's name, and the PID."""
    return f"{zlib.crc32(platform.node().encode()):08x}-{os.getpid()}"


def remove_leftovers(folder: Path) -> None:
    """Remove the hidden drafts in a folder whose processes were killed, and the folders of samples.

    On this machine that is known at once. Another machine may still write one that is no older than ABANDONED_SECONDS.
    """
    with contextlib.suppress(OSError):  # it is only cleaning
        for name in os.listdir(folder):
            found, path = LEFTOVER.fullmatch(name), folder / name
            if found is None or is_draft_in_use(path):
                continue
            is_sample = bool(found[1])
            if is_sample and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif not is_sample and not path.is_dir():
                path.unlink()


def is_draft_in_use(path: Path) -> bool | None:
    """Return whether a process works, or may still work, on a hidden draft; None if the path has no draft's name.

    Raises: OSError.
    """
    found = LEFTOVER.fullmatch(path.name)
    if found is None:
        return None
    if found[2] != process_tag().partition("-")[0]:
        return time.time() - path.lstat().st_mtime <= ABANDONED_SECONDS
    import psutil

    return bool(psutil.pid_exists(int(found[3])))


def _remove_abandoned(path: Path) -> None:
    """Remove old drafts of a file whose processes have ended; a state of training can take hundreds of megabytes."""
    prefix, suffix = f"{path.name}.", ".draft"
    with contextlib.suppress(OSError):  # it is only cleaning
        for name in os.listdir(path.parent):
            process = name.removeprefix(prefix).removesuffix(suffix)
            if name != f"{prefix}{process}{suffix}" or not (process.isascii() and process.isdigit()):
                continue
            import psutil

            draft = path.parent / name
            if time.time() - draft.stat().st_mtime > ABANDONED_SECONDS and not psutil.pid_exists(int(process)):
                draft.unlink()


@contextlib.contextmanager
def _removed(draft: Path) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # an earlier error says more
            draft.unlink(missing_ok=True)


def put_in_place(draft: Path, path: Path, overwrite: bool = True) -> None:
    """Sync a closed draft to the disk, rename it to path, and sync the folder.

    Raises: OSError; OutputError where path exists by now and must not be overwritten.
    """
    with draft.open("r+b") as file:  # Windows syncs only files that are open for writing
        os.fsync(file.fileno())
    if not overwrite and path.exists():
        raise OutputError(f"{path} has appeared meanwhile", "choose another name, or replace it with -y")
    os.replace(draft, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder's list of files to the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
