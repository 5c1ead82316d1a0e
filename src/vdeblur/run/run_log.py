"""`--log`: a CSV file with a line for each file that was restored or failed."""

import csv
import threading
import time
from pathlib import Path

from vdeblur.errors import OutputError
from vdeblur.run.context import RunResult
from vdeblur.settings import Settings

COLUMNS = (
    *("time", "input", "output", "status", "reason", "model", "weights_sha256", "device", "precision"),
    *("settings", "frames", "seconds", "warnings", "mean_change", "share_little_changed"),
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins so runs as a formula in spreadsheets


class RunLog:
    """A CSV file that grows by a line per file; a new one begins with the names of the columns.

    Raises: OutputError if it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self._check_columns()
        self._append(None)

    def write(
        self,
        source: Path,
        output: Path,
        status: str,
        reason: str,
        settings: Settings,
        result: RunResult | None,
        seconds: float,
    ) -> None:
        """Add a line. status: see Outcome. result: None after an error, which is the reason."""
        options = {name: value for name, value in settings.changing_result() if value not in (None, "", ())}
        options |= {} if settings.mask is None else {"mask": settings.mask}
        facts: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "input": source,
            "output": output,
            "status": status,
            "reason": reason,
            "model": settings.model,
            "settings": "; ".join(f"{name}={value}" for name, value in options.items()),
            "seconds": round(seconds, 3),
        }
        if result is not None:
            facts |= {"frames": result.frames, "warnings": " ".join(result.warnings)}
            facts |= {"model": result.model, "weights_sha256": result.weights_sha256}
            facts |= {"device": result.device, "precision": result.precision}
            if result.change is not None:
                facts |= {"mean_change": result.change.mean_change, "share_little_changed": result.change.little_share}
        with self.lock:
            self._append([_safe_cell(facts.get(name, "")) for name in COLUMNS])

    def _check_columns(self) -> None:
        """Refuse to add lines to a file of another kind."""
        try:
            with self.path.open(encoding="utf-8", newline="") as file:
                first = next(csv.reader(file), None)
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise OutputError(f"--log {self.path} cannot be read: {error}", "name another file") from error
        if first is not None and tuple(first) != COLUMNS:
            raise OutputError(f"--log {self.path} is not a log of vdeblur run", "name another file")

    def _append(self, cells: list[str] | None) -> None:
        """Add a line, and before it the names of the columns to an empty file."""
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                if not file.tell():
                    writer.writerow(COLUMNS)
                if cells is not None:
                    writer.writerow(cells)
        except OSError as error:
            raise OutputError(f"--log {self.path} cannot be written: {error.strerror}", "check the path") from error


def _safe_cell(value: object) -> str:
    text = str(value)
    return f"'{text}" if text.startswith(FORMULA) else text
