"""What commands have in common: how they show events, and how they end."""

import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from json import dumps
from types import FrameType
from typing import Any

import click

from vdeblur import __version__
from vdeblur.errors import ExitStatus, InterruptedRunError, VdeblurError

PROGRESS_SECONDS = 0.5  # at most two progress events a second
LINE_SECONDS = 10.0  # between lines of progress where there is no terminal


class JsonReporter:
    """Writes every event as a line of JSON to stdout."""

    def __init__(self) -> None:
        self.last_progress = 0.0

    def notify(self, event: str, facts: dict[str, object]) -> None:
        """Take an event."""
        if event in ("progress", "download_progress"):
            now = time.monotonic()
            if now - self.last_progress < PROGRESS_SECONDS:
                return
            self.last_progress = now
        click.echo(dumps({"v": 1, "event": event, **facts}))

    def close(self) -> None:
        """Nothing is left to do."""


class HumanReporter:
    """Writes to stderr: a bar on a terminal, otherwise a line now and then; and one line for each thing decided."""

    def __init__(self) -> None:
        self.last_line = time.monotonic()
        self.bar: Any = None
        self.task: Any = None

    def notify(self, event: str, facts: dict[str, object]) -> None:
        """Take an event."""
        handler = getattr(self, f"_on_{event}", None)
        if handler is not None:
            handler(facts)

    def _on_choice(self, facts: dict[str, Any]) -> None:
        self._say(f"best here: {facts['model']}, {facts['reason']}")

    def _on_plan(self, facts: dict[str, Any]) -> None:
        tiled = "" if facts["tile"] == "none" else f", tiles of {facts['tile']}"
        self._say(f"{facts['input']}: {facts['model']} on {facts['device']} in {facts['precision']}{tiled}")
        if _is_lively():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[fps]} fps"), TimeRemainingColumn())
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task("", total=facts["frames_estimate"], fps="-")
            self.bar.start()

    def _on_progress(self, facts: dict[str, Any]) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=facts["frame"], fps=f"{facts['fps']:.2f}")
            return
        now = time.monotonic()
        if now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            total = facts["frames_estimate"]
            left = "" if facts["eta_seconds"] is None else f", {clock(facts['eta_seconds'])} left"
            of = "" if total is None else f" of {total}"
            click.echo(f"  frame {facts['frame']}{of}, {facts['fps']:.2f} fps{left}", err=True)

    def _on_download(self, facts: dict[str, Any]) -> None:
        size = "" if facts["megabytes"] is None else f", about {facts['megabytes']:g} MB"
        notice = f"; note: {facts['notice']}" if facts["notice"] else ""
        self._say(f"{facts['model']}@{facts['weights']}: fetching {facts['file']}{size} from {facts['source']}")
        self._say(f"  licence: {facts['license']}{notice}")

    def _on_download_progress(self, facts: dict[str, Any]) -> None:
        done, total = facts["bytes"], facts["bytes_total"]
        if _is_lively():
            if self.bar is None:
                from rich.console import Console
                from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

                columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
                self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
                self.task = self.bar.add_task(facts["file"], total=total)
                self.bar.start()
            self.bar.update(self.task, completed=done, total=total, description=facts["file"])
            return
        now = time.monotonic()
        if now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            of = "" if total is None else f" of {total / 1e6:.1f}"
            self._say(f"  {done / 1e6:.1f}{of} MB")

    def _on_download_done(self, facts: dict[str, Any]) -> None:
        self.close()
        verified = {
            "pinned": "verified",
            "partly": "partly verified, by 8 digits of its SHA-256",
            "unpinned": "not verified, since its authors published no digest; any later change will be noticed",
        }[facts["verification"]]
        self._say(f"  {verified}; SHA-256 {facts['sha256']}")

    def _on_warning(self, facts: dict[str, Any]) -> None:
        self._say(f"warning: {facts['message']}")

    def _on_file_done(self, facts: dict[str, Any]) -> None:
        self.close()
        spent = clock(facts["seconds"])
        self._say(f"{_shown(facts['output'])}: {facts['frames']} frames in {spent} ({facts['fps']:.2f} fps)")

    def _on_error(self, facts: dict[str, Any]) -> None:
        self.close()
        hint = f" ({facts['hint']})" if facts["hint"] else ""
        self._say(f"vdeblur: {facts['message']}{hint}")

    def _say(self, line: str) -> None:
        if self.bar is not None:
            self.bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            click.echo(line, err=True)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _is_lively() -> bool:
    """Tell whether there is a terminal that can draw a bar."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def question(json: bool = False) -> Callable[[str], bool] | None:
    """Give a function that puts a question to the person at the terminal; None where there is none."""
    if json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def ask(text: str) -> bool:
        # `reported` only notes a signal; while a person is asked, Ctrl-C must end the question.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return click.confirm(text, err=True)
        except click.Abort as error:
            raise InterruptedRunError(ExitStatus.INTERRUPTED) from error
        finally:
            signal.signal(signal.SIGINT, before)

    return ask


def _shown(path: str) -> str:
    """Give a path as it is seen from here, where that is shorter."""
    return min(os.path.normpath(path), os.path.relpath(path), key=len)


def clock(seconds: float) -> str:
    """Write a length of time as people read it: [H:]MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextlib.contextmanager
def reported(reporter: JsonReporter | HumanReporter, inputs: list[str]) -> Iterator[Any]:
    """Frame a command with start and done, and turn every exception into one line and an exit status.

    Gives a function that tells whether a signal came, as the status to end with. The first signal only sets that;
    a second one ends the program at once.
    """
    begun = time.monotonic()
    caught: list[ExitStatus] = []
    logging.getLogger("libav").setLevel(logging.CRITICAL)

    def on_signal(number: int, frame: FrameType | None) -> None:
        status = ExitStatus.INTERRUPTED if number == signal.SIGINT else ExitStatus.TERMINATED
        if caught:
            os._exit(status)
        caught.append(status)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    reporter.notify("start", {"version": __version__, "inputs": inputs})
    status = ExitStatus.DONE
    try:
        yield lambda: caught[0] if caught else None
    except VdeblurError as error:
        status = error.status
        facts = {"code": error.code, "exit": int(status), "message": error.message, "hint": error.hint}
        reporter.notify("error", {**facts, "input": inputs[0]})
    except BrokenPipeError:  # whoever read, such as `head`, has enough, and hears no complaint either
        status = ExitStatus.OUTPUT
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except Exception as error:
        status = ExitStatus.INTERNAL
        log = _keep_traceback()
        message = f"internal error: {type(error).__name__}: {error}".splitlines()[0]
        facts = {"code": "E_INTERNAL", "exit": int(status), "message": message, "hint": f"please report {log}"}
        reporter.notify("error", {**facts, "input": inputs[0]})
    finally:
        reporter.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    failed = int(status != ExitStatus.DONE)
    seconds = round(time.monotonic() - begun, 3)
    reporter.notify("done", {"exit": int(status), "files_ok": 1 - failed, "files_failed": failed, "seconds": seconds})
    if failed:
        raise SystemExit(int(status))


def _keep_traceback() -> str:
    with tempfile.NamedTemporaryFile("w", prefix="vdeblur-", suffix=".log", delete=False) as file:
        traceback.print_exc(file=file)
    return file.name
