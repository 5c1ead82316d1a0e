"""The record of a training: means over the last updates, log.csv, TensorBoard, progress events."""

import contextlib
import csv
import io
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from vdeblur.errors import OutputError, UsageError
from vdeblur.events import Notify
from vdeblur.files import write_whole

REPORT_SECONDS = 10.0  # between two reports
SLOW_DATA = 0.25  # share of the time; waiting longer than this for data is worth a warning


class Supply(Protocol):
    """A loader's figures: seconds spent waiting for it so far, and samples a second that it can make."""

    waited_seconds: float

    @property
    def rate(self) -> float:
        """Samples a second."""


class Progress:
    """Losses and times since the last report.

    seconds: spent on training so far, without validations, over all runs that it was resumed in.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.last = self.reported = time.monotonic()
        self.waited_before = self.loader_rate = 0.0
        self._clear()

    def _clear(self) -> None:
        self.losses: dict[str, list[float]] = {}
        self.batches = self.clips = 0
        self.spent = self.waited = 0.0

    def add(self, losses: dict[str, float], clips: int, loader: Supply) -> None:
        """Add a batch's losses, its number of clips, and the time it took."""
        now = time.monotonic()
        for name, value in losses.items():
            self.losses.setdefault(name, []).append(value)
        self.batches += 1
        self.clips += clips
        self.spent += now - self.last
        self.seconds += now - self.last
        self.waited += loader.waited_seconds - self.waited_before
        self.loader_rate = loader.rate
        self.last, self.waited_before = now, loader.waited_seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time within out of all figures."""
        begun = time.monotonic()
        yield
        self.last += time.monotonic() - begun

    def is_due(self) -> bool:
        """Return whether it is time for a report."""
        return time.monotonic() - self.reported >= REPORT_SECONDS

    def take(self) -> dict[str, Any]:
        """Return means since the last call: losses by name, clips per second, the share of time spent waiting.

        loader_clips_per_second: what this process's loader can supply. step_clips_per_second: what the steps of all
        processes could use without waiting.
        """
        self.reported = time.monotonic()
        spent = self.spent or math.inf
        facts: dict[str, Any] = {
            "seconds": round(self.seconds, 1),
            **{name: math.fsum(values) / len(values) for name, values in self.losses.items()},
            "clips_per_second": self.clips / spent,
            "step_clips_per_second": self.clips / max(spent - self.waited, 1e-9),
            "loader_clips_per_second": self.loader_rate,
            "batches_per_second": self.batches / spent,
            "waited_share": self.waited / spent,
        }
        self._clear()
        return facts


class Log:
    """log.csv, a row for each report, and optionally TensorBoard's files beside it.

    Rows after the given update, from which the training resumes, are removed. A new name adds a column.
    """

    def __init__(self, path: Path, update: int, *, active: bool, tensorboard: bool) -> None:
        self.path, self.active = path, active
        self.names: list[str] = []
        rows = [row for row in _rows(path) if int(row["update"]) <= update] if active else []
        if rows:
            self.names = list(rows[0])
            self._write(rows)
        self.writer = _tensorboard(path.parent, update) if tensorboard and active else None

    def add(self, facts: dict[str, Any]) -> None:
        """Write a row."""
        if not self.active:
            return
        row = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in facts.items()}
        if row.keys() <= set(self.names):
            with writing(self.path), self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.names, lineterminator="\n").writerow(row)
        else:
            rows = [*_rows(self.path), row]
            self.names = list(dict.fromkeys(name for row in rows for name in row))
            self._write(rows)
        if self.writer is not None:
            for name, value in facts.items():
                if isinstance(value, (int, float)) and name != "update":
                    self.writer.add_scalar(name, value, facts["update"])

    def _write(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with writing(self.path):
            write_whole(self.path, text.getvalue().encode())

    def pictures(self, samples: dict[str, Tensor], update: int) -> None:
        """Add sample pictures (3, H, W), uint8, to TensorBoard."""
        if self.writer is not None:
            for name, picture in samples.items():
                self.writer.add_image(name, picture, update)

    def close(self) -> None:
        """Write what TensorBoard still holds back."""
        if self.writer is not None:
            self.writer.close()


class Journal:
    """Reports a training: to the log, and as the events train_progress, validation and warning.

    iterations, stop_at: the recipe's updates, and the update at which this run ends. first_update: that it began with.
    """

    def __init__(self, log: Log, notify: Notify, iterations: int, stop_at: int, first_update: int) -> None:
        self.log, self.notify = log, notify
        self.iterations, self.stop_at, self.first_update = iterations, stop_at, first_update
        self.has_warned = False

    def report(
        self, progress: Progress, update: int, rate: float, updates_per_batch: int, score: dict[str, Any] | None = None
    ) -> None:
        """Report the progress since the last call, and a validation's score."""
        facts = {"update": update, **progress.take(), "rate": rate, **(score or {})}
        pace = facts["updates_per_second"] = facts.pop("batches_per_second") * updates_per_batch
        self.log.add(facts)
        self._warn_of_slow_data(update, facts["waited_share"])
        left = max(self.stop_at - update, 0)
        more = {"iterations": self.iterations, "eta_seconds": left / pace if pace else None}
        self.notify("train_progress" if score is None else "validation", {**facts, **more})

    def _warn_of_slow_data(self, update: int, waited_share: float) -> None:
        if waited_share > SLOW_DATA and not self.has_warned and update > self.first_update:
            self.has_warned = True
            share = f"the training spends {waited_share:.0%} of its time waiting for data"
            message = f"{share}; more --workers, or a --cache, helps if there are idle processors"
            self.notify("warning", {"code": "W_WAITING", "message": message})


def _tensorboard(folder: Path, update: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("TensorBoard is not installed", "pip install 'vdeblur[tensorboard]'") from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=update + 1)


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log; none if there is no file.

    Raises: OutputError where the file is no log.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file, strict=True))
        if rows and None in rows[-1].values():
            rows.pop()  # a process was killed while it wrote this one
        if any(None in row or None in row.values() or not row["update"].isdecimal() for row in rows):
            raise ValueError("its rows are not those of a training")
    except (OSError, ValueError, KeyError, csv.Error) as error:
        reason = f"{path} is not a log of vdeblur train ({error})"
        raise OutputError(reason, "move it away; the training continues without it") from error
    return rows


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translate an OSError while a file is written.

    Raises: OutputError with the path.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}", "make room, or choose another --out"
        ) from error
