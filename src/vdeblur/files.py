"""Files written whole, locks, cache folders, and checks of outputs."""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import av
import av.error

from vdeblur.errors import ModelError, OutputError
from vdeblur.events import Talk


def check_output(path: Path, source: Path, overwrite: bool) -> None:
    """Refuse an output that must not or cannot be written, before anything else is done.

    Raises: OutputError.
    """
    try:
        _check_output(path, source, overwrite)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}", "check the path") from error


def _check_output(path: Path, source: Path, overwrite: bool) -> None:
    folder = path.parent
    if source.exists() and path.exists() and path.samefile(source):
        raise OutputError(f"{path} is the input itself", "choose another name for the output")
    if not folder.is_dir():
        raise OutputError(f"the folder {folder} does not exist", f"make it: mkdir -p '{folder}'")
    if path.exists() and not path.is_dir() and not overwrite:
        raise OutputError(f"{path} exists already", "choose another name, or replace it with -y")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise OutputError(f"the folder {path} exists already and is not empty", "choose another, or add -y")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"the folder {folder} is not writable", "check its permissions")


def write_error(path: Path, error: BaseException) -> OutputError:
    """Say why a path cannot be written."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
    hint = "free some space and run the same command again; what is finished is kept" if full else ""
    return OutputError(f"{path} cannot be written: {what}", hint)


LOCK_POLL_SECONDS = 0.5


def cache_folder() -> Path:
    """Give the folder for our files: VDEBLUR_CACHE, or vdeblur in the user's cache folder."""
    explicit = os.environ.get("VDEBLUR_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vdeblur"


def hub_folder() -> str | None:
    """Give the folder for the Hub's files; None where huggingface_hub's own rules (HF_HOME, HF_HUB_CACHE) hold."""
    return str(cache_folder() / "hub") if os.environ.get("VDEBLUR_CACHE") else None


@contextlib.contextmanager
def locked(path: Path, talk: Talk) -> Iterator[None]:
    """Hold a lock file in the cache, so that a second process waits instead of fetching the same."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = wait_for_lock(path, talk, "fetches the same")
    except OSError as error:
        raise cache_error(error) from error
    with lock:
        yield


def wait_for_lock(path: Path, talk: Talk, doing: str) -> contextlib.ExitStack:
    """Take a lock file as soon as nobody else holds it; gives what releases it on leaving.

    doing: what another process does meanwhile, for the warning. Raises: OSError; InterruptedRunError.
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


def cache_error(error: OSError) -> ModelError:
    """Say that the cache cannot be used."""
    return ModelError(
        f"the cache {cache_folder()} cannot be used: {error.strerror or error}",
        "make room, or name another folder in VDEBLUR_CACHE",
    )


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that after any stop it is there as a whole or not at all."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def drafted(output: Path, overwrite: bool) -> Iterator[Path]:
    """Give a name beside the output; what was written there gets the output's name where nothing was raised."""
    draft = output.absolute().with_name(f".vdeblur-{os.getpid()}-{uuid.uuid4().hex[:8]}{output.suffix}")
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        if output.exists() and not overwrite:
            raise OutputError(f"{output} has appeared meanwhile", "choose another name, or replace it with -y")
        os.replace(draft, output)
    except (av.error.FFmpegError, OSError) as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}", "check the path") from error
    finally:
        draft.unlink(missing_ok=True)
