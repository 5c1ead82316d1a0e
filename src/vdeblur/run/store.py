"""The finished segments of a run on the disk, and their records."""

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

from vdeblur.errors import InputError, OutputError
from vdeblur.files import write_whole
from vdeblur.run.segments import CHECKED, Mark
from vdeblur.settings import Settings
from vdeblur.source.pictures import picture_files
from vdeblur.source.video import Source
from vdeblur.version import __version__

FORMAT = 1  # of the records; others are ignored
SAMPLE_BYTES = 1 << 16  # hashed at a file's beginning, middle and end to identify it
WHOLE = "whole"  # the output's name in the folder, without suffix, while the segments are joined
LOCK = "lock"  # the lock file, which a run holds while it works in the folder
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
    """The record of a finished segment.

    before, tail: marks of the last frames before it, and of its own last frames. packets: of each encoded packet its
    size in bytes, time, duration (in units of the video's time base), and whether it is a key frame, in decoding order;
    empty for pictures. names: of pictures. bytes, crc: size and CRC-32 of the data. damaged: packets of the input that
    could not be decoded. warnings: codes and messages of the run so far.
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
        """Return whether this segment directly follows the frames with these marks; no marks: whether it is first."""
        shared = min(len(self.before), len(tail))
        return self.before[-shared:] == tail[-shared:] if shared else not self.before and not tail


class Store:
    """The folder beside an output that holds its finished segments.

    The constructor reads what an earlier run left. records: the usable segments by index. plan: the decisions of that
    run. fingerprint: see the function. reason: why the segments of the earlier run cannot be used; "" if they can, or
    there are none.
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
        """Read what an earlier run left, if its fingerprint is the same."""
        self.plan, self.records, self.reason = {}, {}, ""
        try:
            state = json.loads((self.folder / "state.json").read_text("utf-8"))
            before = state["fingerprint"] if state["format"] == FORMAT else {"version": "other"}
            plan = state["plan"]
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError):
            self.reason = "their records cannot be read"
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
        """The folder of finished pictures, if the output is pictures."""
        return self.folder / "pictures"

    def data_of(self, index: int) -> Path:
        """Return the path of a segment's packets."""
        return self.folder / f"{index:06}.packets"

    def draft_of(self, index: int) -> Path:
        """Return the path under which packets are written; one of this process's own if others work here, too."""
        return self.folder / (f"{index:06}.{os.getpid()}.draft" if self.is_shared else f"{index:06}.draft")

    def open(self, plan: dict[str, Any], shared: bool = False) -> None:
        """Start or continue; remove what an earlier run left if it cannot be used.

        plan: decisions of this run that the next one must repeat, such as tiles. If another process has stored a plan
        meanwhile, that one counts, and is in self.plan. shared: whether other processes may work on the same output.

        Raises: OutputError if another run is writing the same output, or the folder cannot be written.
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
        """Store the record of a finished segment, whose data must be on the disk."""
        write_whole(self.folder / f"{record.index:06}.json", json.dumps(dataclasses.asdict(record)).encode())
        self.records[record.index] = record

    def drop(self, index: int) -> None:
        """Remove a segment."""
        self.records.pop(index, None)
        (self.folder / f"{index:06}.json").unlink(missing_ok=True)
        self.data_of(index).unlink(missing_ok=True)

    def chain(self) -> list[SegmentRecord]:
        """Return the finished segments from the first on, as far as each follows the one before."""
        chain: list[SegmentRecord] = []
        tail: list[Mark] = []
        for index in sorted(self.records):
            record = self.records[index]
            if (chain and chain[-1].last) or not record.follows(tail):
                break
            tail = (tail + record.tail)[-CHECKED:]
            chain.append(record)
        return chain

    def after(self, index: int) -> SegmentRecord | None:
        """Return the next finished segment after an index; None if there is none."""
        later = [other for other in self.records if other > index]
        return self.records[min(later)] if later else None

    def forget(self, reason: str = "") -> None:
        """Ignore what an earlier run left."""
        self.plan, self.records, self.reason, self.is_forgotten = {}, {}, reason, True

    def close(self, *, keep: bool) -> None:
        """Release the folder; remove it unless it holds segments that the next run can use (keep)."""
        if not self.lock.is_locked:  # never opened, or shared with other processes
            return
        if keep and self.records:
            with contextlib.suppress(OSError):
                for path in self.folder.glob(f"{WHOLE}*"):  # an unfinished output; the disk may be full
                    path.unlink()
        else:
            try:  # the lock goes last: the next run takes it before it writes anything
                self._clear()
                (self.folder / LOCK).unlink()
                self.folder.rmdir()
            except OSError:  # Windows does not remove open files
                self.lock.release()
                shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.release()


def earlier_plan(output: Path) -> dict[str, Any]:
    """Return the plan of an earlier run for this output, whatever its fingerprint; {} if there was none."""
    try:
        return dict(json.loads((folder_of(output) / "state.json").read_text("utf-8"))["plan"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def tail_of(chain: list[SegmentRecord]) -> list[Mark]:
    """Return the marks with which finished segments end."""
    return [mark for record in chain[-CHECKED:] for mark in record.tail][-CHECKED:]


def _read_record(path: Path) -> SegmentRecord | None:
    try:
        facts = json.loads(path.read_text("utf-8"))
        for key in ("before", "tail", "packets", "warnings"):
            facts[key] = [tuple(item) for item in facts[key]]
        return SegmentRecord(**facts)
    except (OSError, ValueError, KeyError, TypeError):  # state.json, or an incomplete record
        return None


def folder_of(output: Path) -> Path:
    """Return the hidden folder beside an output that holds its finished segments."""
    name = os.fsdecode(os.fsencode(output.name)[:NAME_BYTES].decode("utf-8", "ignore").encode())  # no half character
    code = hashlib.sha256(os.fsencode(output.name)).hexdigest()[:8]
    return output.absolute().parent / f".vdeblur-{name}-{code}"


def identity_of(path: Path) -> dict[str, Any]:
    """Return what distinguishes an input from a later version of it: size, time of the last change, digest of samples.

    Raises: InputError if it cannot be read.
    """
    try:
        if path.is_dir():
            # Its pictures alone: the output, and its segments, may be in the same folder.
            facts_of = ((file.name, file.stat()) for file in picture_files(path))
            sizes = [(name, facts.st_size, facts.st_mtime_ns) for name, facts in facts_of]
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
