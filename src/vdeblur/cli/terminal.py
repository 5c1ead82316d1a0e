"""Progress bars, tables and questions: output that depends on whether a stream is a terminal."""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from vdeblur.cli.lines import shown, total_in_words
from vdeblur.cli.printable import echo_line, printable
from vdeblur.errors import ExitStatus, InterruptedRunError
from vdeblur.events import Ask, BatchEvent, DownloadProgressEvent, FirstPassProgressEvent, PlanEvent, ProgressEvent

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# rich is imported inside functions: --help must not wait for it.

NARROW = 80  # columns; a terminal of fewer has no room for tables
UNBOUND = 10_000  # columns of a file, in which nothing has to be wrapped


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal; it is None if it was closed before Python started."""
    return stream is not None and stream.isatty()


def draws_bars() -> bool:
    """Return whether stderr is a terminal that can draw a bar."""
    return is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"


class Bars:
    """Progress bars on the terminal, which vanish when done: one per file at work, and one per download."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.files: dict[str, TaskID] = {}
        self.downloads: dict[str, TaskID] = {}

    def say(self, line: str) -> None:
        """Write a line to stderr, above the bars if there are any."""
        if self.progress is None:
            echo_line(line, err=True)
        else:
            self.progress.console.print(printable(line), highlight=False, markup=False, soft_wrap=True)

    def add_file(self, facts: PlanEvent) -> None:
        """Draw a bar for a file, if stderr can."""
        if not draws_bars():
            return
        done, total = facts["frames_done"], facts["frames_estimate"]
        task = self._add(Path(facts["input"]).name, done, total, f"{done}/{'?' if total is None else total}")
        self.files[facts["input"]] = task

    def update_file(self, facts: ProgressEvent) -> bool:
        """Move the bar of a file; False if it has none."""
        if self.progress is None or facts["input"] not in self.files:
            return False
        done = facts["frame"]
        total = max(facts["frames_estimate"], done) if facts["frames_estimate"] else None
        amount, rate = f"{done}/{'?' if total is None else total}", f"{facts['fps']:.2f} fps"
        self.progress.update(self.files[facts["input"]], completed=done, total=total, amount=amount, rate=rate)
        return True

    def update_first_pass(self, facts: FirstPassProgressEvent) -> bool:
        """Write beside the bar of a file how far its first pass is; False if it has no bar."""
        if self.progress is None or facts["input"] not in self.files:
            return False
        total = "" if facts["frames_estimate"] is None else f"/{facts['frames_estimate']}"
        self.progress.update(self.files[facts["input"]], rate=f"first pass: {facts['frame']}{total}")
        return True

    def end_file(self, name: str) -> None:
        """Remove the bar of a file."""
        if self.progress is not None and name in self.files:
            self.progress.remove_task(self.files.pop(name))
        self._close_if_empty()

    def update_download(self, facts: DownloadProgressEvent) -> bool:
        """Move the bar of a download; False if stderr cannot draw one."""
        if not draws_bars():
            return False
        done, total = facts["bytes"], facts["bytes_total"]
        amount = f"{done / 1e6:.1f}/{'?' if total is None else f'{total / 1e6:.1f}'} MB"
        if facts["file"] not in self.downloads:
            self.downloads[facts["file"]] = self._add(facts["file"], done, total, amount)
        assert self.progress is not None, "it has a bar"
        self.progress.update(self.downloads[facts["file"]], completed=done, total=total, amount=amount)
        return True

    def end_downloads(self) -> None:
        """Remove the bars of downloads; one that goes on gets a new bar."""
        if self.progress is not None:
            for task in self.downloads.values():
                self.progress.remove_task(task)
        self.downloads.clear()
        self._close_if_empty()

    def _add(self, name: str, done: int, total: int | None, amount: str) -> "TaskID":
        """Add a bar to the drawing, which all bars share: a terminal has room for one drawing only."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        if self.progress is None:
            console = Console(stderr=True)
            rate = [TextColumn("{task.fields[rate]}", markup=False)] if console.width >= NARROW else []
            amounts = TextColumn("{task.fields[amount]}", markup=False)
            columns = (BarColumn(), amounts, *rate, TimeRemainingColumn(compact=True))
            description = TextColumn("{task.description}", markup=False)
            self.progress = Progress(*columns, description, console=console, transient=True, expand=False)
            self.progress.start()
        name_shown = _shortened(printable(name), self.progress.console.width // 3)
        return self.progress.add_task(name_shown, total=total, completed=done, amount=amount, rate="")

    def _close_if_empty(self) -> None:
        if not self.files and not self.downloads:
            self.close()

    def close(self) -> None:
        """Remove all bars."""
        if self.progress is not None:
            self.progress.stop()
        self.progress = None
        self.files.clear()
        self.downloads.clear()


def show_batch(facts: BatchEvent) -> None:
    """Write the table of a batch to stderr; a line per file if the terminal is narrow."""
    from rich.console import Console
    from rich.table import Table

    table = Table("input", "result", "frames", "seconds", "warnings", box=None)
    for row in facts["files"]:
        cells = (row["input"], row["result"], row["frames"], row["seconds"], row["warnings"])
        table.add_row(*map(printable, cells))
    width = None if is_terminal(sys.stderr) else UNBOUND
    console = Console(stderr=True, highlight=False, markup=False, width=width)
    if console.width >= NARROW:
        console.print(table)
    else:
        for row in facts["files"]:
            echo_line(f"{shown(row['input'])}: {row['result']}, {row['frames']} frames", err=True)
    echo_line(total_in_words(facts["total"]), err=True)


def show_table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Write a table to stdout: drawn on a terminal, plain columns otherwise."""
    rows = [tuple(map(printable, row)) for row in rows]
    if is_terminal(sys.stdout):
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for place, head in enumerate(heads):
            table.add_column(head.capitalize(), no_wrap=not place)  # names stay uncut
        for row in rows:
            table.add_row(*row)
        Console(highlight=False, markup=False).print(table)
        return
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    for row in [heads, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def question(json: bool = False) -> Ask | None:
    """Return a function that asks the user; None with --json, or if nobody can answer at a terminal."""
    if json or not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        return None

    def ask(text: str) -> bool:
        # `reported` only notes a signal; during a question Ctrl-C must end the question.
        before = signal.getsignal(signal.SIGINT)
        if before != signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return click.confirm(printable(text), err=True)
        except click.Abort as error:
            raise InterruptedRunError(ExitStatus.INTERRUPTED) from error
        finally:
            signal.signal(signal.SIGINT, before)

    return ask


def _shortened(name: str, length: int) -> str:
    """Return a name cut to a length: its beginning and its end."""
    return name if len(name) <= length else f"{name[: length - length // 2 - 1]}…{name[-(length // 2) :]}"
