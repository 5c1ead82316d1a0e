"""The finished segments of a run on the disk, and their records."""

import contextlib
import dataclasses
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import filelock

from vdeblur.errors import InputError, OutputError
from vdeblur.files import write_whole
from vdeblur.restore.only_blurred import scenes_from_json
from vdeblur.run.segment_record import JUNK, SegmentRecord, read_json, read_segment_record
from vdeblur.run.segments import CHECKED, Mark
from vdeblur.run.state_folder import LOCK, PICTURES, STATE, WHOLE, check_state_folder, clear_state_folder
from vdeblur.settings import TILE, Settings
from vdeblur.source import demux
from vdeblur.source.pictures import picture_files
from vdeblur.source.video import Source
from vdeblur.version import __version__

FORMAT = 1  # of the records; others are ignored
SAMPLE_BYTES = 1 << 16  # hashed at a file's beginning, middle and end to identify it
NAME_BYTES = 100  # of the output's name, repeated in the folder's name


def fingerprint(settings: Settings, model: str, digest: str, source: Source) -> dict[str, Any]:
    """Return everything that the result depends on, under names that tell a person what has changed.

    model, digest: of the network. The device and what `auto` means on it are left out: a run that a GPU began may
    resume without it.
    """
    facts = {"the input": uuid.uuid4().hex if source.is_pipe else identity_of(source.path)}
    facts |= {"vdeblur's version": __version__, "the model": model, "its weights": digest}
    if settings.mask is not None:
        facts["the mask"] = hashlib.sha256(settings.mask.read_bytes()).hexdigest()
    options = {f"--{name.replace('_', '-')}": str(value) for name, value in settings.changing_result()}
    return facts | options


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """A model that a run chose. asked: auto or best. strength: of the restoration, which `auto` chooses, too."""

    asked: str
    model: str
    strength: float = 1.0


class Store:
    """The folder beside an output that holds its finished segments.

    The constructor reads what an earlier run left. records: the usable segments by index. plan: the decisions of that
    run. fingerprint: see the function. reason: why the segments of the earlier run cannot be used; "" if they can, or
    there are none. chosen: what `-m auto` or `best` chose for this run, see ModelChoice; None if the model was named.

    Raises: OutputError where the folder must not be used; see check_state_folder.
    """

    def __init__(self, output: Path, fingerprint: dict[str, Any]) -> None:
        self.output = output
        self.folder = folder_of(output)
        self.fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint))
        self.records: dict[int, SegmentRecord] = {}
        self.plan: dict[str, Any] = {}
        self.reason = ""
        self.chosen: ModelChoice | None = None
        self.is_forgotten = self.is_shared = False
        self.lock = filelock.FileLock(self.folder / LOCK)
        self._read()

    def _read(self) -> None:
        """Read what an earlier run left, if its fingerprint is the same."""
        self.plan, self.records, self.reason = {}, {}, ""
        if not check_state_folder(self.folder):
            return
        try:
            state = read_json(self.folder / STATE)
            before = dict(state["fingerprint"] if state["format"] == FORMAT else {"version": "other"})
            plan = _checked_plan(state["plan"])
        except FileNotFoundError:
            return
        except JUNK:
            self.reason = "their records cannot be read"
            return
        keys = [key for key in {**self.fingerprint, **before} if before.get(key) != self.fingerprint.get(key)]
        if keys:
            self.reason = f"{' and '.join(sorted(keys))} changed since"
            return
        self.plan = plan
        for path in self.folder.glob("*.json"):
            record = read_segment_record(path)
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
        return self.folder / PICTURES

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
            check_state_folder(self.folder)
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
        clear_state_folder(self.folder)
        self.plan = plan
        state = {"format": FORMAT, "output": self.output.name, "fingerprint": self.fingerprint, "plan": plan}
        if self.chosen is not None:
            state["chosen"] = dataclasses.asdict(self.chosen)
        write_whole(self.folder / STATE, json.dumps(state, indent=1).encode())

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
            with contextlib.suppress(OSError):  # other files in it keep the folder
                clear_state_folder(self.folder)
                if os.name == "nt":  # which does not remove open files
                    self.lock.release()
                (self.folder / LOCK).unlink()  # last: the next run acquires it before it writes anything
                self.folder.rmdir()
        self.lock.release()


def earlier_choice(output: Path, source_path: Path, asked: str) -> ModelChoice | None:
    """Return what an earlier run chose for this output and input, asked in the same way; None if there was none.

    Raises: OutputError where the folder must not be used, see check_state_folder; InputError.
    """
    folder = folder_of(output)
    if source_path == demux.PIPE or not check_state_folder(folder):
        return None
    try:
        state = read_json(folder / STATE)
        before = dict(state["fingerprint"])["the input"]
        found = ModelChoice(**state["chosen"])
    except JUNK:
        return None
    is_sound = isinstance(found.model, str) and isinstance(found.strength, float) and 0 <= found.strength <= 1
    if not is_sound or found.asked != asked or before != identity_of(source_path):
        return None
    return found


def _checked_plan(plan: Any) -> dict[str, Any]:
    """Return a plan that was read.

    Raises: one of JUNK where it is not what runs store.
    """
    checked = dict(plan)
    is_sound = TILE.fullmatch(checked["tile"]) and isinstance(checked.get("window"), int | None)
    if not is_sound or not isinstance(checked.get("model"), str | None):
        raise ValueError("not a plan")
    scenes_from_json(checked.get("scenes"))
    return checked


def tail_of(chain: list[SegmentRecord]) -> list[Mark]:
    """Return the marks with which finished segments end."""
    return [mark for record in chain[-CHECKED:] for mark in record.tail][-CHECKED:]


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
