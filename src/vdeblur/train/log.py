"""What a training tells: means over the last updates, a plain CSV, TensorBoard."""

import contextlib
import csv
import io
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from vdeblur import files
from vdeblur.errors import OutputError, UsageError
from vdeblur.train.data import Loader

TELL_SECONDS = 10.0


class Progress:
    """Losses and times since they were last told.

    seconds: spent on training, over all processes that went on with it, validations left out.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.last = self.told = time.monotonic()
        self.waited_before = self.loader_rate = 0.0
        self._clear()

    def _clear(self) -> None:
        self.losses: dict[str, list[float]] = {}
        self.batches = self.clips = 0
        self.spent = self.waited = 0.0

    def add(self, losses: dict[str, float], clips: int, loader: Loader) -> None:
        """Take what one batch gave."""
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

    def pause(self, seconds: float) -> None:
        """Leave out what something else took."""
        self.last += seconds

    def is_due(self) -> bool:
        """Tell whether it is time to tell."""
        return time.monotonic() - self.told >= TELL_SECONDS

    def take(self) -> dict[str, Any]:
        """Give the means, and begin anew: losses by name, clips per second, the share of time that was waited.

        loader_clips_per_second is what the loader's processes can give, of this process; step_clips_per_second, of all,
        what the steps could take if nobody had to wait.
        """
        self.told = time.monotonic()
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
    """log.csv, a row each time; and TensorBoard's files beside it, if wanted.

    What was written after the update that a training goes on from is taken away. Columns come with their first value.
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
            with told_of(self.path), self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.names, lineterminator="\n").writerow(row)
        else:
            rows = [*_rows(self.path), row]
            self.names = list(dict.fromkeys(name for one in rows for name in one))
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
        write_whole(self.path, text.getvalue().encode())

    def pictures(self, samples: dict[str, Tensor], update: int) -> None:
        """Show sample pictures (3, H, W), uint8, in TensorBoard."""
        if self.writer is not None:
            for name, picture in samples.items():
                self.writer.add_image(name, picture, update)

    def close(self) -> None:
        """Write what waits."""
        if self.writer is not None:
            self.writer.close()


def _tensorboard(folder: Path, update: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("TensorBoard is not installed", "pip install 'vdeblur[tensorboard]'") from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=update + 1)


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Say which file could not be written.

    Raises: OutputError.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}", "make room, or choose another --out"
        ) from error


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all, and have it on the disk.

    Raises: OutputError where that cannot be.
    """
    with told_of(path):
        files.write_whole(path, content)
