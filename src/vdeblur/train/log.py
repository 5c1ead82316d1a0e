"""What a training tells: means over the last updates, a plain CSV, TensorBoard."""

import csv
import io
import math
import os
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from vdeblur.errors import OutputError, UsageError

TELL_SECONDS = 10.0


class Progress:
    """Losses and times since they were last told.

    seconds: spent on training, over all processes that went on with it, validations left out.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.last = self.told = time.monotonic()
        self.waited_before = 0.0
        self._clear()

    def _clear(self) -> None:
        self.losses: dict[str, list[float]] = {}
        self.batches = self.clips = 0
        self.spent = self.waited = 0.0

    def add(self, losses: dict[str, float], clips: int, waited_seconds: float) -> None:
        """Take what one batch gave; waited_seconds: for the loader, since it was opened."""
        now = time.monotonic()
        for name, value in losses.items():
            self.losses.setdefault(name, []).append(value)
        self.batches += 1
        self.clips += clips
        self.spent += now - self.last
        self.seconds += now - self.last
        self.waited += waited_seconds - self.waited_before
        self.last, self.waited_before = now, waited_seconds

    def pause(self, seconds: float) -> None:
        """Leave out what something else took."""
        self.last += seconds

    def is_due(self) -> bool:
        """Tell whether it is time to tell."""
        return time.monotonic() - self.told >= TELL_SECONDS

    def take(self) -> dict[str, Any]:
        """Give the means, and begin anew: losses by name, clips per second, the share of time that was waited."""
        self.told = time.monotonic()
        spent = self.spent or math.inf
        facts: dict[str, Any] = {
            "seconds": round(self.seconds, 1),
            **{name: math.fsum(values) / len(values) for name, values in self.losses.items()},
            "clips_per_second": self.clips / spent,
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
        self.rows: list[dict[str, Any]] = []
        if active and path.is_file():
            with path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["update"]) <= update]
        self.writer = _tensorboard(path.parent, update) if tensorboard and active else None

    def add(self, facts: dict[str, Any]) -> None:
        """Write a row."""
        if not self.active:
            return
        self.rows.append(facts)
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.path, text.getvalue().encode())
        if self.writer is not None:
            for name, value in facts.items():
                if isinstance(value, (int, float)) and name != "update":
                    self.writer.add_scalar(name, value, facts["update"])

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


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises: OutputError where that cannot be.
    """
    draft = path.with_name(f"{path.name}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(content)
        os.replace(draft, path)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}", "make room, or choose another --out"
        ) from error
