"""What an interrupted run has finished: segments on the disk and their records."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

from vdeblur import __version__
from vdeblur.errors import InputError, OutputError
from vdeblur.files import write_whole
from vdeblur.run.segments import CHECKED, Mark
from vdeblur.settings import Settings
from vdeblur.source.video import Source

FORMAT = 1  # of the records; others are ignored
SAMPLE_BYTES = 1 << 16  # hashed at a file's beginning, middle and end to identify it
WHOLE = "whole"  # the output's name in the folder, without suffix, while the segments are joined
LOCK = "lock"  # the file that whoever works in the folder holds
NAME_BYTES = 100  # of the output's name, repeated in the folder's name


def fingerprint(settings: Settings, model: str, digest: str, source: Source) -> dict[str, Any]:
    """Return everything that the result depends on, under names that tell a person what has changed.

    model, digest: of the network. The device and what `auto` means on it are left out: a run that a GPU began may
    resume without it.
    """
    facts = {"the input": uuid.uuid4().hex if source.is_pipe else identity_of(source.path)}
    facts |= {"vdeblur's version": __version__, "the model": model, "its weights": digest}
    options = {f"--{name.replace('_', '-')}": str(value) for name, value in settings.changing_result()}
    return facts | options


@dataclass
class SegmentRecord:
    """What is known of a finished segment.

    packets: of each encoded packet its size in bytes, time, duration (in units of the video's time base), and whether
    it is a key frame, in decoding order; none for pictures. names: of pictures. damaged: packets of the input that
    could not be decoded on the way. warnings: codes and messages so far.
    """

    index: int
    frames: int
    last: bool
    before: list[Mark]
    tail: list[Mark]
    packets: list[tuple[int, int, int, int]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    bytes: int = 0
    crc: int = 0
    damaged: int = 0
    warnings: list[tuple[str, str]] = field(default_factory=list)

    def follows(self, tail: list[Mark]) -> bool:
        """Tell whether it begins right after frames of these marks; none: at the beginning."""
        shared = min(len(self.before), len(tail))
        return self.before[-shared:] == tail[-shared:] if shared else not self.before and not tail


class Store:
    """The folder beside an output in which its finished segments wait for the rest.

    fingerprint: everything that the result depends on, under names that tell a person what has changed. Opening reads
    what is there. `reason` says why what was there is not used, if so.
    """

    def __init__(self, output: Path, fingerprint: dict[str, Any]) -> None:
        self.output = output
        self.folder = folder_of(output)
        self.fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint))
        self.records: dict[int, SegmentRecord] = {}
        self.plan: dict[str, Any] = {}
        self.reason = ""
        self.is_forgotten = self.is_shared = False
        self.lock = filelock.FileLock(self.folder / LOCK)
        self._read()

    def _read(self) -> None:
        """Read what an earlier run has left, if it was about the same."""
        self.plan, self.records, self.reason = {}, {}, ""
        try:
            state = json.loads((self.folder / "state.json").read_text("utf-8"))
            before = state["fingerprint"] if state["format"] == FORMAT else {"version": "other"}
            plan = state["plan"]
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError):
            self.reason = "its notes cannot be read"
            return
        keys = [key for key in {**self.fingerprint, **before} if before.get(key) != self.fingerprint.get(key)]
        if keys:
            self.reason = f"{' and '.join(sorted(keys))} changed since"
            return
        self.plan = plan
        for path in self.folder.glob("*.json"):
            record = _read_record(path)
            if record is not None and self._is_whole(record):
                self.records[record.index] = record

    def _is_whole(self, record: SegmentRecord) -> bool:
        try:
            if record.names:
                return all((self.pictures / name).stat().st_size for name in record.names)
            return not record.frames or self.data_of(record.index).stat().st_size == record.bytes
        except OSError:
            return False

    @property
    def pictures(self) -> Path:
        """The folder of finished pictures, where pictures are written."""
        return self.folder / "pictures"

    def data_of(self, index: int) -> Path:
        """Give where a segment's packets are."""
        return self.folder / f"{index:06}.packets"

    def draft_of(self, index: int) -> Path:
        """Give where they are written; where others work here, too, to a file of this process's own."""
        return self.folder / (f"{index:06}.{os.getpid()}.draft" if self.is_shared else f"{index:06}.draft")

    def open(self, plan: dict[str, Any], shared: bool = False) -> None:
        """Begin or go on; what an earlier run left and cannot be used is removed.

        plan: what was decided for this run and must be the same in the next, such as tiles; what other processes have
        decided meanwhile goes before it, and is in self.plan then. shared: whether they may work on the same output.

        Raises: OutputError where another run is writing the same output, or the folder cannot be written.
        """
        self.is_shared = shared
        try:
            self.folder.mkdir(exist_ok=True)
            self._acquire(60 if shared else 0)
            if shared or not self.is_forgotten:
                self._read()  # another process may have been here since this one looked
            if not self.plan:
                self._begin(plan)
            if shared:
                self.lock.release()
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be written: {error.strerror}", "check the folder") from error

    def _begin(self, plan: dict[str, Any]) -> None:
        self._clear()
        self.plan = plan
        state = {"format": FORMAT, "output": self.output.name, "fingerprint": self.fingerprint, "plan": plan}
        write_whole(self.folder / "state.json", json.dumps(state, indent=1).encode())

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

    def _acquire(self, seconds: float) -> None:
        try:
            self.lock.acquire(timeout=seconds)
        except filelock.Timeout as error:
            raise OutputError(
                f"another run is writing {self.output}", "wait for it, or choose another output"
            ) from error

    def save(self, record: SegmentRecord) -> None:
        """Note a finished segment; its data must be on the disk."""
        write_whole(self.folder / f"{record.index:06}.json", json.dumps(dataclasses.asdict(record)).encode())
        self.records[record.index] = record

    def drop(self, index: int) -> None:
        """Forget a segment."""
        self.records.pop(index, None)
        (self.folder / f"{index:06}.json").unlink(missing_ok=True)
        self.data_of(index).unlink(missing_ok=True)

    def chain(self) -> list[SegmentRecord]:
        """Give the finished segments from the first one on, as far as they follow one another and vouch for it."""
        whole: list[SegmentRecord] = []
        tail: list[Mark] = []
        for index in sorted(self.records):
            record = self.records[index]
            if (whole and whole[-1].last) or not record.follows(tail):
                break
            tail = (tail + record.tail)[-CHECKED:]
            whole.append(record)
        return whole

    def after(self, index: int) -> SegmentRecord | None:
        """Give the next finished segment after one."""
        later = [other for other in self.records if other > index]
        return self.records[min(later)] if later else None

    def forget(self, reason: str = "") -> None:
        """Take nothing of what an earlier run left."""
        self.plan, self.records, self.reason, self.is_forgotten = {}, {}, reason, True

    def close(self, *, keep: bool) -> None:
        """Let go of the folder; it is removed where nothing in it is worth keeping, or it is not to be kept."""
        if not self.lock.is_locked:  # never opened, or there are others who work on it
            return
        if keep and self.records:
            with contextlib.suppress(OSError):
                for path in self.folder.glob(f"{WHOLE}*"):  # room that a full disk may lack
                    path.unlink()
        else:
            try:  # the lock goes last: whoever takes it next would lose what he has begun
                self._clear()
                (self.folder / LOCK).unlink()
                self.folder.rmdir()
            except OSError:  # as on Windows, where a file that is open stays
                self.lock.release()
                shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.release()


def earlier_plan(output: Path) -> dict[str, Any]:
    """Give what an earlier run decided for this output, whatever it was about; nothing where there was none."""
    try:
        return dict(json.loads((folder_of(output) / "state.json").read_text("utf-8"))["plan"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def tail_of(chain: list[SegmentRecord]) -> list[Mark]:
    """Give the marks with which finished segments end."""
    return [mark for record in chain[-CHECKED:] for mark in record.tail][-CHECKED:]


def _read_record(path: Path) -> SegmentRecord | None:
    try:
        facts = json.loads(path.read_text("utf-8"))
        for key in ("before", "tail", "packets", "warnings"):
            facts[key] = [tuple(item) for item in facts[key]]
        return SegmentRecord(**facts)
    except (OSError, ValueError, KeyError, TypeError):  # state.json, or one that was not written to its end
        return None


def folder_of(output: Path) -> Path:
    """Give where an output's finished segments wait: a hidden folder beside it."""
    name = os.fsdecode(os.fsencode(output.name)[:NAME_BYTES].decode("utf-8", "ignore").encode())  # no half character
    code = hashlib.sha256(os.fsencode(output.name)).hexdigest()[:8]
    return output.absolute().parent / f".vdeblur-{name}-{code}"


def identity_of(path: Path) -> dict[str, Any]:
    """Tell an input from what it may be changed to: size, time of the last change, digest of samples.

    Raises: InputError where it cannot be read.
    """
    try:
        if path.is_dir():
            names = sorted(entry.name for entry in os.scandir(path))
            sizes = [(name, (path / name).stat().st_size, (path / name).stat().st_mtime_ns) for name in names]
            return {"pictures": hashlib.sha256(repr(sizes).encode()).hexdigest()}
        facts = path.stat()
        samples = hashlib.sha256()
        with path.open("rb") as file:
            for place in (0, facts.st_size // 2, max(facts.st_size - SAMPLE_BYTES, 0)):
                file.seek(place)
                samples.update(file.read(SAMPLE_BYTES))
        return {"bytes": facts.st_size, "changed": facts.st_mtime_ns, "samples": samples.hexdigest()}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check the path and its permissions") from error
