"""What commands have in common: how they show events, and how they end."""

import contextlib
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from json import dumps
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import click

from vdeblur import __version__
from vdeblur.errors import ExitStatus, InterruptedRunError, UsageError, VdeblurError, error_facts
from vdeblur.events import Ask

EVENTFUL = {"run", "bench", "train", "synth"}  # commands whose --json is a line for each event
PROGRESS_SECONDS = 0.5  # at most two progress events a second
NARROW = 80  # columns; a terminal of fewer has no room for tables
UNBOUND = 10_000  # columns of a file, in which nothing has to be wrapped
WAITED = 0.05  # of a training's time; less is not worth a word
LINE_SECONDS = 10.0  # between lines of progress where there is no terminal
# Stages of --profile in words: one after the other, and then those that go on beside them.
PROFILE_STAGES = {
    "start": "opening the input, loading the network",
    "wait_decode": "waiting for the decoder",
    "color": "upload, conversion to RGB",
    "scenes": "scene detection",
    "network": "network, tiles",
    "difference": "difference, download",
    "wait_encode": "waiting for the encoder",
    "assemble": "joining the segments",
}
PROFILE_BESIDE = {"decode": "decoding, in a thread of its own", "encode": "encoding, in a thread of its own"}


class Program(click.Group):
    """All commands; wrong usage is told in one line, or as events, as every other error is."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command that the arguments name, and end the program."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode, **extra)
        arguments = list(sys.argv[1:] if args is None else args)
        if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to fail
            with contextlib.suppress(OSError):
                sys.stdout.reconfigure(errors="backslashreplace")
        try:
            status = super().main(arguments, prog_name, complete_var, False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            status = ExitStatus.USAGE
        except click.UsageError as error:
            wrong = " ".join(error.format_message().split()).removesuffix(".")
            command = "vdeblur" if error.ctx is None else error.ctx.command_path
            with_events = "--json" in arguments and not EVENTFUL.isdisjoint(arguments)
            with reported(JsonReporter() if with_events else HumanReporter(), []):
                raise UsageError(wrong[:1].lower() + wrong[1:], f"see {command} --help") from error
        except click.Abort:
            status = ExitStatus.INTERRUPTED
        raise SystemExit(int(status or 0))


class JsonReporter:
    """Writes every event as a line of JSON to stdout."""

    def __init__(self) -> None:
        self.last_progress: dict[object, float] = {}  # by file
        self.lock = threading.Lock()

    def notify(self, event: str, facts: dict[str, object]) -> None:
        """Take an event."""
        if event in ("progress", "download_progress"):
            now = time.monotonic()
            name = facts.get("input")
            if now - self.last_progress.get(name, 0.0) < PROGRESS_SECONDS:
                return
            self.last_progress[name] = now
        with self.lock:
            click.echo(dumps({"v": 1, "event": event, **facts}))

    def close(self) -> None:
        """Nothing is left to do."""


class HumanReporter:
    """Writes to stderr: a bar on a terminal, otherwise a line now and then; and one line for each thing decided."""

    def __init__(self) -> None:
        self.last_line = time.monotonic()
        self.bar: Any = None
        self.task: Any = None
        self.tasks: dict[str, Any] = {}  # of files that are being restored
        self.made = 0  # sequences
        self.lock = threading.Lock()

    def notify(self, event: str, facts: dict[str, object]) -> None:
        """Take an event."""
        handler = getattr(self, f"_on_{event}", None)
        if handler is not None:
            with self.lock:
                handler(facts)

    def _on_choice(self, facts: dict[str, Any]) -> None:
        self._say(f"best here: {facts['model']}, {facts['reason']}")

    def _on_plan(self, facts: dict[str, Any]) -> None:
        tiled = "" if facts["tile"] == "none" else f", tiles of {facts['tile']}"
        done = f"; {facts['frames_done']} frames are there already" if facts["frames_done"] else ""
        self._say(f"{facts['input']}: {facts['model']} on {facts['device']} in {facts['precision']}{tiled}{done}")
        if facts.get("dry_run"):
            for word in ("keep", "convert", "drop"):
                for name in facts.get(word, ()):
                    self._say(f"  {word}: {name}")
        elif _is_lively():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            console = Console(stderr=True)
            if self.bar is None:
                rate = [TextColumn("{task.fields[fps]} fps")] if console.width >= NARROW else []
                columns = (BarColumn(), MofNCompleteColumn(), *rate, TimeRemainingColumn(compact=True))
                name = TextColumn("{task.description}", markup=False)
                self.bar = Progress(*columns, name, console=console, transient=True, expand=False)
                self.bar.start()
            name = _shortened(Path(facts["input"]).name, console.width // 3)
            total = facts["frames_estimate"]
            self.tasks[facts["input"]] = self.bar.add_task(name, total=total, completed=facts["frames_done"], fps="-")

    def _on_progress(self, facts: dict[str, Any]) -> None:
        if facts["input"] in self.tasks:
            task = self.tasks[facts["input"]]
            total = max(facts["frames_estimate"] or 0, facts["frame"]) if facts["frames_estimate"] else None
            self.bar.update(task, completed=facts["frame"], total=total, fps=f"{facts['fps']:.2f}")
            return
        now = time.monotonic()
        if now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            total = facts["frames_estimate"]
            left = "" if facts["eta_seconds"] is None else f", {clock(facts['eta_seconds'])} left"
            of = "" if total is None else f" of {total}"
            click.echo(f"  {facts['input']}: frame {facts['frame']}{of}, {facts['fps']:.2f} fps{left}", err=True)

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

    def _on_dataset_download(self, facts: dict[str, Any]) -> None:
        size = "" if facts["megabytes"] is None else f", about {facts['megabytes'] / 1000:.1f} GB as a whole"
        self._say(f"{facts['dataset']}: fetching the {facts['split']} split of {facts['file']}{size}")
        self._say(f"  from {facts['source']}; licence: {facts['license']}")

    def _on_dataset_done(self, facts: dict[str, Any]) -> None:
        self.close()
        self._say(f"  in {_shown(facts['path'])}")

    def _on_bench(self, facts: dict[str, Any]) -> None:
        size = f"{facts['sequences']} sequences, {facts['frames']} frames"
        self._say(f"{facts['title']}, {facts['split']}: {size}, laid out as {facts['layout']}; blurry: {facts['blur']}")
        self._say(f"protocol: {facts['protocol']}")

    def _on_bench_model(self, facts: dict[str, Any]) -> None:
        again = f"; {facts['finished']} sequences of an interrupted bench are kept" if facts["finished"] else ""
        self._say(f"{facts['model']} on {facts['device']} in {facts['precision']}{again}")

    def _on_bench_kept(self, facts: dict[str, Any]) -> None:
        self._say(f"{facts['sequences']} sequences are kept: the same command goes on")

    def _on_sequence_done(self, facts: dict[str, Any]) -> None:
        self._say(f"  {facts['sequence']}: {facts['psnr']:.2f} dB")

    def _on_training(self, facts: dict[str, Any]) -> None:
        name = f"{facts['model']}, stage {facts['stage']}" if facts["stage"] else facts["model"]
        on = facts["device"] if facts["processes"] == 1 else f"{facts['device']} in {facts['processes']} processes"
        again = f"; going on from update {facts['update']}" if facts["update"] else ""
        self._say(f"{name}: {facts['parameters']:,} parameters to train, on {on} in {facts['precision']}{again}")
        held_out = f"{_count(facts['validation_sequences'], 'sequence')} for validation"
        trained = f"{_count(facts['sequences'], 'sequence')}, {facts['frames']} frames in all"
        self._say(f"{facts['dataset']}: {trained}; {held_out}")

    def _on_train_progress(self, facts: dict[str, Any]) -> None:
        left = "" if facts["eta_seconds"] is None else f", {clock(facts['eta_seconds'])} left"
        waited = f", {facts['waited_share']:.0%} waiting for data" if facts["waited_share"] >= WAITED else ""
        pace = f"{facts['clips_per_second']:.1f} clips/s{waited}{left}"
        self._say(f"  update {facts['update']} of {facts['iterations']}: loss {facts['loss']:.5g}, {pace}")

    def _on_validation(self, facts: dict[str, Any]) -> None:
        if "loss" in facts:
            self._on_train_progress(facts)
        if "psnr" not in facts:
            self._say(f"    loss on what is held out: {facts['validation_loss']:.5g}")
            return
        untouched = "" if facts["untouched"] is None else f"; what was sharp: {facts['untouched']:.2f} dB"
        gain = (
            f"blurry {facts['blurry']:.2f} dB, restored {facts['psnr']:.2f} dB ({facts['psnr'] - facts['blurry']:+.2f})"
        )
        self._say(f"    held out: {gain}, SSIM {facts['ssim']:.4f}{untouched}")

    def _on_trained(self, facts: dict[str, Any]) -> None:
        best, out = facts["best"], _shown(facts["out"])
        figure = f"{best:.2f} dB" if facts["measure"] == "psnr" else f"loss {-best:.5g}"
        when = f"after update {facts['best_update']}" if facts["best_update"] else "those it began with"
        self._say(f"{out}/best.safetensors: the best weights, {when}, {figure} on what is held out")
        if facts["measure"] == "psnr":
            self._say(f"use them: vdeblur run INPUT OUTPUT -m {facts['model']} --weights {out}/best.safetensors")

    def _on_synth_plan(self, facts: dict[str, Any]) -> None:
        counts = f"{_count(facts['train'], 'source')} for train, {facts['test']} for test"
        self._say(f"{_shown(facts['output'])}: {counts}; {facts['way']}")

    def _on_sequence_made(self, facts: dict[str, Any]) -> None:
        now = time.monotonic()
        self.made += 1
        if now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            self._say(f"  {_count(self.made, 'sequence')}, {facts['split']}/{facts['sequence']} the last one")

    def _on_synth_done(self, facts: dict[str, Any]) -> None:
        counts = f"{_count(facts['train'], 'sequence')} for train, {facts['test']} for test"
        self._say(
            f"{_shown(facts['output'])}: {counts}; {_count(facts['frames'], 'pair')} in {clock(facts['seconds'])}"
        )

    def _on_warning(self, facts: dict[str, Any]) -> None:
        self._say(f"warning: {facts['message']}")

    def _on_file_done(self, facts: dict[str, Any]) -> None:
        self._end_of(facts["input"])
        spent = clock(facts["seconds"])
        self._say(f"{_shown(facts['output'])}: {facts['frames']} frames in {spent} ({facts['fps']:.2f} fps)")

    def _on_comparison(self, facts: dict[str, Any]) -> None:
        self._end_of(facts["input"])
        self._say(f"{_shown(facts['output'])}: the input and the output, {facts['mode']}")

    def _on_sample(self, facts: dict[str, Any]) -> None:
        self._end_of(facts["input"])
        predicted = "how long the whole takes cannot be told, since the input's length is not known"
        if facts["seconds_estimate"] is not None:
            size = facts["bytes_estimate"] / 1e6
            predicted = f"the whole takes about {clock(facts['seconds_estimate'])} and {size:.3g} MB"
        self._say(f"{_shown(facts['output'])}: {facts['frames']} frames, left as they were; {predicted}")

    def _on_profile(self, facts: dict[str, Any]) -> None:
        self._end_of(facts["input"])
        device = facts["peak_device_bytes"]
        host = "?" if facts["peak_memory_bytes"] is None else f"{facts['peak_memory_bytes'] / 1e6:.0f}"
        on_device = "" if device is None else f", {device / 1e6:.0f} MB on the device"
        seconds = facts["seconds"]
        self._say(f"{facts['input']}: at most {host} MB of memory{on_device}; seconds:")
        for names in (PROFILE_STAGES, PROFILE_BESIDE):
            for name in names:
                if name in seconds:
                    self._say(f"  {seconds[name]:9.2f}  {names[name]}")

    def _on_file_skipped(self, facts: dict[str, Any]) -> None:
        self._say(f"{_shown(facts['output'])}: is there already; left as it is")

    def _on_batch(self, facts: dict[str, Any]) -> None:
        self.close()
        from rich.console import Console
        from rich.table import Table

        table = Table("input", "result", "frames", "seconds", "warnings", box=None)
        for row in facts["files"]:
            table.add_row(*(str(row[key]) for key in ("input", "result", "frames", "seconds", "warnings")))
        width = None if _is_terminal(sys.stderr) else UNBOUND
        console = Console(stderr=True, highlight=False, markup=False, width=width)
        if console.width >= NARROW:
            console.print(table)
            return
        for row in facts["files"]:
            self._say(f"{_shown(row['input'])}: {row['result']}, {row['frames']} frames")

    def _end_of(self, name: str) -> None:
        """Take a file's bar away, and all with the last one."""
        if name in self.tasks:
            self.bar.remove_task(self.tasks.pop(name))
        if not self.tasks:
            self.close()

    def _on_error(self, facts: dict[str, Any]) -> None:
        self._end_of(facts["input"])
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
            self.tasks.clear()


class ErrorReporter(HumanReporter):
    """Writes what went wrong, and nothing else."""

    def notify(self, event: str, facts: dict[str, object]) -> None:
        """Take an event."""
        if event == "error":
            super().notify(event, facts)


Reporter = JsonReporter | HumanReporter


def show_table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Write a table to stdout: drawn on a terminal, plain columns otherwise."""
    if _is_terminal(sys.stdout):
        from rich.console import Console
        from rich.table import Table

        table = Table(*(head.capitalize() for head in heads), box=None)
        for row in rows:
            table.add_row(*row)
        Console(highlight=False, markup=False).print(table)
        return
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    for row in [heads, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _is_lively() -> bool:
    """Tell whether there is a terminal that can draw a bar."""
    return _is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"


def _is_terminal(stream: TextIO | None) -> bool:
    """Tell whether a stream is a terminal; where it was closed beforehand, Python has None for it."""
    return stream is not None and stream.isatty()


def question(json: bool = False) -> Ask | None:
    """Give a function that puts a question to the person at the terminal; None where there is none."""
    if json or not (_is_terminal(sys.stdin) and _is_terminal(sys.stderr)):
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


def _count(number: int, what: str) -> str:
    """Give a number of things."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _shortened(name: str, most: int) -> str:
    """Give a name of at most so many characters: its beginning and its end."""
    return name if len(name) <= most else f"{name[: most - most // 2 - 1]}…{name[-(most // 2) :]}"


def clock(seconds: float) -> str:
    """Write a length of time as people read it: [H:]MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Session:
    """A command while it runs. Called, it tells whether a signal came, as the status to end with; else None.

    files_ok, files_failed: what came of a batch; None where the command is about one thing.
    """

    def __init__(self) -> None:
        self.caught: ExitStatus | None = None
        self.files_ok: int | None = None
        self.files_failed = 0

    def __call__(self) -> ExitStatus | None:
        """Tell whether a signal came."""
        return self.caught


@contextlib.contextmanager
def reported(reporter: JsonReporter | HumanReporter, inputs: list[str]) -> Iterator[Session]:
    """Frame a command with start and done, and turn every exception into one line and an exit status.

    Gives what tells whether a signal came. The first signal only sets that; a second one ends the program at once.
    """
    begun = time.monotonic()
    session = Session()
    logging.getLogger("libav").setLevel(logging.CRITICAL)

    def on_signal(number: int, frame: FrameType | None) -> None:
        status = ExitStatus.INTERRUPTED if number == signal.SIGINT else ExitStatus.TERMINATED
        if session.caught is not None:
            os._exit(status)
        session.caught = status

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    reporter.notify("start", {"version": __version__, "inputs": inputs})
    status = ExitStatus.DONE
    try:
        yield session
    except VdeblurError as error:
        status = error.status
        reporter.notify("error", {**error_facts(error), "input": ", ".join(inputs[:1])})
    except BrokenPipeError:  # whoever read, such as `head`, has enough, and hears no complaint either
        status = ExitStatus.OUTPUT
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except Exception as error:
        status = ExitStatus.INTERNAL
        reporter.notify("error", {**error_facts(error), "input": ", ".join(inputs[:1])})
    finally:
        reporter.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    failed = int(status != ExitStatus.DONE)
    seconds = round(time.monotonic() - begun, 3)
    ok, bad = (1 - failed, failed) if session.files_ok is None else (session.files_ok, session.files_failed)
    reporter.notify("done", {"exit": int(status), "files_ok": ok, "files_failed": bad, "seconds": seconds})
    if failed:
        raise SystemExit(int(status))
