"""The hidden folder beside an output: which files in it are ours, and which folders a run refuses to touch.

The folder's name follows from the output's, so anybody can make one beforehand, for example in an archive. So a run
works only in a real folder of the user's own that holds a state of vdeblur and no links, and removes only files with
the names that it gives.
"""

import contextlib
import os
import re
import shlex
import stat
from pathlib import Path

from vdeblur.errors import OutputError

STATE = "state.json"  # the plan and the fingerprint
WHOLE = "whole"  # the output's name in the folder, without suffix, while the segments are joined
LOCK = "lock"  # the lock file, which a run holds while it works in the folder
PICTURES = "pictures"  # the folder of finished pictures
OTHERS = "others"  # the packets of a pipe's other streams
OUR_NAMES = re.compile(
    rf"{re.escape(STATE)}|{OTHERS}|{WHOLE}(\..*)?|\d{{6,}}\.(json|packets)|\d{{6,}}(\.\d+)?\.draft"
    rf"|({re.escape(STATE)}|\d{{6,}}\.json)\.\d+\.draft",
    re.ASCII | re.DOTALL,
)
PICTURE_NAMES = re.compile(r".*\.(png|tiff?|jpe?g|webp|bmp)", re.DOTALL | re.IGNORECASE)
SYSTEM_NAMES = re.compile(r"\..*|Thumbs\.db|desktop\.ini", re.DOTALL | re.IGNORECASE)  # that file managers add


def check_state_folder(folder: Path) -> bool:
    """Return whether the folder exists; if so, it is safe to work in.

    Raises: OutputError where it is a link, somebody else's, has links in it, or holds other files than vdeblur's.
    """
    try:
        facts = folder.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(f"{folder} cannot be read: {error.strerror}", "check its permissions") from error
    if not stat.S_ISDIR(facts.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(facts.st_mode) else "not a folder"
        raise _refused(folder, f"{kind}, where vdeblur keeps finished segments in a folder of its own")
    try:
        # Some file systems show one owner for everything, so the parent's owner is fine, too.
        if hasattr(os, "geteuid") and facts.st_uid not in (os.geteuid(), folder.parent.stat().st_uid, 0):
            raise _refused(folder, "another user's, so vdeblur does not use what is in it")
        names = _checked_names(folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be read: {error.strerror}", "check its permissions") from error
    if STATE not in names and any(not _is_from_a_start(name) for name in names):
        raise _refused(folder, "not a folder of vdeblur's: it holds other files and no state of a run")
    return True


def _checked_names(folder: Path) -> set[str]:
    """Return the names in the folder.

    Raises: OutputError for one that a run would use, if it is a link, or not a file or folder as it should be; OSError.
    """
    names = set()
    for entry in os.scandir(folder):
        names.add(entry.name)
        if entry.name == PICTURES and entry.is_dir(follow_symlinks=False):
            for picture in os.scandir(entry.path):
                if not picture.is_file(follow_symlinks=False):
                    raise _refused(Path(picture.path), "not a plain file, as a finished picture is")
        elif (_is_ours(entry.name) or entry.name == PICTURES) and not entry.is_file(follow_symlinks=False):
            raise _refused(Path(entry.path), "not a plain file, as vdeblur's own are")
    return names


def _is_ours(name: str) -> bool:
    return name == LOCK or OUR_NAMES.fullmatch(name) is not None


def _is_from_a_start(name: str) -> bool:
    """Return whether a run may have left this before it stored its state, or the system added it."""
    return name == LOCK or name.endswith(".draft") or SYSTEM_NAMES.fullmatch(name) is not None


def _refused(path: Path, reason: str) -> OutputError:
    return OutputError(f"{path} is {reason}", f"look at it, then remove it: rm -r {shlex.quote(str(path))}")


def clear_state_folder(folder: Path) -> None:
    """Remove the files that runs write, the state last; other files stay, and so does the lock.

    Raises: OSError.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if OUR_NAMES.fullmatch(entry.name))
    pictures = folder / PICTURES
    if pictures.is_dir() and not pictures.is_symlink():
        for entry in os.scandir(pictures):
            if PICTURE_NAMES.fullmatch(entry.name):
                os.unlink(entry.path)
        with contextlib.suppress(OSError):  # something else is in it
            pictures.rmdir()
    for name in sorted(names, key=lambda name: name == STATE):
        (folder / name).unlink()
