"""Reporters of events, and the end of a command: an exception or a signal becomes an error event and an exit code."""

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from json import dumps
from types import FrameType
from typing import Any, TextIO

import click

from vdeblur.cli.lines import counted, lines_of, plan_details, plan_reasons
from vdeblur.cli.terminal import Bars, show_batch
from vdeblur.errors import ExitStatus, OutputError, VdeblurError, error_facts
from vdeblur.events import without_infinities
from vdeblur.version import __version__

PROGRESS_SECONDS = 0.5  # at most two progress events a second
LINE_SECONDS = 10.0  # between lines of progress without a terminal
# Shown as a line every LINE_SECONDS, unless as a bar.
FREQUENT = {"progress", "first_pass_progress", "download_progress", "sequence_made"}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # what writing to a full disk raises
ENDS_FILE = {"file_done", "comparison", "sample", "still", "profile", "error"}
ENDS_DOWNLOADS = {"download_done", "dataset_done"}


class JsonReporter:
    """Writes every event as a line of JSON to stdout."""

    def __init__(self) -> None:
        self.last_progress: dict[object, float] = {}  # by file
        self.fault = ""  # why stdout takes no more
        self.lock = threading.Lock()

    def notify(self, event: str, facts: dict[str, object]) -> None:
        """Write an event."""
        if event in ("progress", "first_pass_progress", "download_progress"):
            now = time.monotonic()
            name = facts.get("input")
            if now - self.last_progress.get(name, 0.0) < PROGRESS_SECONDS:
                return
            self.last_progress[name] = now
        with self.lock:
            if self.fault:
                return
            try:
                click.echo(dumps({"v": 1, "event": event, **without_infinities(facts)}, allow_nan=False))
            except BrokenPipeError:
                raise
            except OSError as error:  # translated here, or the output of the run would be blamed
                self.fault = _stdout_fault(error)
                raise OutputError(self.fault, "free some space, or write the events elsewhere") from error

    def close(self) -> None:
        """Do nothing: every event is written already."""


class HumanReporter:
    """Writes events to stderr as lines, and progress as bars on a terminal or as a line every ten seconds.

    verbose: also write the reason of each decision, and the segments that are finished.
    """

    def __init__(self, verbose: bool = False) -> None:
        self.verbose = verbose
        self.bars = Bars()
        self.last_line = time.monotonic()
        self.made = 0  # sequences
        self.lock = threading.Lock()

    def notify(self, event: str, facts: Any) -> None:  # the TypedDict of the event
        """Show an event."""
        with self.lock:
            if event in ENDS_FILE:
                self.bars.end_file(facts["input"])
            elif event in ENDS_DOWNLOADS:
                self.bars.end_downloads()
            so_far = ""
            if event == "sequence_made":
                self.made += 1
                so_far = f"; {counted(self.made, 'sequence')} so far"
            if event == "batch":
                self.bars.close()
                show_batch(facts)
            elif event not in FREQUENT or (not self._is_drawn(event, facts) and self._is_due()):
                for line in [*lines_of(event, facts), *(self._more_lines(event, facts) if self.verbose else [])]:
                    self.bars.say(line + so_far)
            if event == "plan" and not facts["dry_run"]:
                self.bars.add_file(facts)

    def _more_lines(self, event: str, facts: Any) -> list[str]:
        """Return the lines that --verbose adds."""
        if event == "segment":
            return [f"  segment {facts['index']}: frames {facts['first']} to {facts['last']} are finished"]
        if event != "plan":
            return []
        return [*([] if facts["dry_run"] else plan_details(facts)), *plan_reasons(facts)]

    def close(self) -> None:
        """Remove the bars."""
        self.bars.close()

    def _is_drawn(self, event: str, facts: Any) -> bool:
        """Draw progress as a bar; False if there is none."""
        if event == "progress":
            return self.bars.update_file(facts)
        if event == "first_pass_progress":
            return self.bars.update_first_pass(facts)
        return event == "download_progress" and self.bars.update_download(facts)

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self.last_line < LINE_SECONDS:
            return False
        self.last_line = now
        return True


class ErrorReporter(HumanReporter):
    """Writes errors, and nothing else."""

    def notify(self, event: str, facts: Any) -> None:
        """Show an error."""
        if event == "error":
            super().notify(event, facts)


Reporter = JsonReporter | HumanReporter


class Session:
    """A command while it runs; called, it is a Stop.

    files_ok, files_failed: the result of a batch; None if the command is about one thing.
    """

    def __init__(self) -> None:
        self.caught: ExitStatus | None = None
        self.files_ok: int | None = None
        self.files_failed = 0

    def __call__(self) -> ExitStatus | None:
        """Return the status of the first signal."""
        return self.caught


@contextlib.contextmanager
def reported(reporter: Reporter, inputs: list[str]) -> Iterator[Session]:
    """Send start and done around a command, and turn every exception into one error event and an exit status.

    The first signal is only noted in the session that is yielded; a second one ends the program at once.
    """
    begun = time.monotonic()
    session = Session()
    logging.getLogger("libav").setLevel(logging.CRITICAL)

    def on_signal(number: int, frame: FrameType | None) -> None:
        status = ExitStatus.INTERRUPTED if number == signal.SIGINT else ExitStatus.TERMINATED
        if session.caught is not None:
            os._exit(status)
        session.caught = status

    # A signal that is ignored, as by nohup or in the background of a script, stays ignored.
    heeded = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, on_signal) for number in heeded}
    status = ExitStatus.DONE
    try:
        reporter.notify("start", {"version": __version__, "inputs": inputs})
        yield session
    except VdeblurError as error:
        status = error.status
        _notify_error(reporter, error, inputs)
    except BrokenPipeError:  # the reader, such as `head`, has enough; an error message would not reach it either
        status = ExitStatus.OUTPUT
        _discard(sys.stdout)
        _discard(sys.stderr)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL and error.filename is None:  # written by click.echo
            error = OutputError(_stdout_fault(error), "free some space")
            _discard(sys.stdout)
        status = error.status if isinstance(error, VdeblurError) else ExitStatus.INTERNAL
        _notify_error(reporter, error, inputs)
    finally:
        reporter.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    failed = int(status != ExitStatus.DONE)
    seconds = round(time.monotonic() - begun, 3)
    ok, bad = (1 - failed, failed) if session.files_ok is None else (session.files_ok, session.files_failed)
    try:
        reporter.notify("done", {"exit": int(status), "files_ok": ok, "files_failed": bad, "seconds": seconds})
    except OutputError as error:
        status, failed = error.status, 1
        _notify_error(reporter, error, inputs)
    if failed:
        raise SystemExit(int(status))


def _notify_error(reporter: Reporter, error: Exception, inputs: list[str]) -> None:
    """Report an error; on stderr if stdout takes no more events."""
    facts = {**error_facts(error), "input": ", ".join(inputs[:1])}
    if isinstance(reporter, JsonReporter) and reporter.fault:
        _discard(sys.stdout)
        HumanReporter().notify("error", facts)
    else:
        reporter.notify("error", facts)


def _stdout_fault(error: OSError) -> str:
    return f"standard output cannot be written: {error.strerror or error}"


def _discard(stream: TextIO | None) -> None:
    """Let what is still written to a stream vanish; what it holds would fail once more when Python ends."""
    if stream is None:
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
