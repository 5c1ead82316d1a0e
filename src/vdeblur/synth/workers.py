"""The pieces of work of `vdeblur synth`: one after the other in this process, or several at once in others."""

import contextlib
import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

from vdeblur.errors import DeviceError, ExitStatus, InterruptedRunError, VdeblurError
from vdeblur.events import ignore, never
from vdeblur.synth.sequences import Piece, SynthJob, do_piece

POLL_SECONDS = 0.1  # between checks for events and signals

Note = Callable[[Piece, dict[str, Any]], None]


@contextlib.contextmanager
def _safe_imports() -> Iterator[None]:
    """Let processes that start now not import from the working folder, where others may have put modules."""
    name = "PYTHONSAFEPATH"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def do_all(job: SynthJob, work: list[Piece], jobs: int, note: Note) -> None:
    """Do all pieces, up to `jobs` at once; note: receives each piece's result.

    Raises: the first piece's error; DeviceError where a process was killed from outside.
    """
    if jobs == 1 or len(work) < 2:
        for piece in work:
            job.check_stop()
            note(piece, do_piece(job, piece))
        return
    context = multiprocessing.get_context("spawn")
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_safe_imports())
            events: Any = context.Queue()
            over: Any = context.Event()
            mute = (replace(job, notify=ignore, stop=never), events, over)
            executor = stack.enter_context(ProcessPoolExecutor(min(jobs, len(work)), context, _begin, mute))
            try:
                pending = {executor.submit(_do, piece): piece for piece in work}
                _collect(job, pending, events, note)
            finally:
                over.set()
                executor.shutdown(wait=True, cancel_futures=True)
                _pass_on(job, events)
    except BrokenProcessPool as error:
        hint = "memory may have run out: run the same command again with fewer --jobs; it continues"
        raise DeviceError("a worker process was killed from outside", hint) from error


def _collect(job: SynthJob, pending: dict[Future, Piece], events: Any, note: Note) -> None:
    left = set(pending)
    while left:
        done, left = wait(left, POLL_SECONDS, FIRST_COMPLETED)
        _pass_on(job, events)
        for future in done:
            result = future.result()
            if isinstance(result, Failure):
                raise result.error()
            note(pending[future], result)
        job.check_stop()


def _pass_on(job: SynthJob, events: Any) -> None:
    try:
        while True:
            job.notify(*events.get_nowait())
    except queue.Empty:
        return


class Failure:
    """An error on its way to the first process; pickle would lose its hint."""

    def __init__(self, error: VdeblurError) -> None:
        self.kind, self.message, self.hint = type(error), error.message, error.hint

    def error(self) -> VdeblurError:
        """Return the error."""
        return self.kind(self.message, self.hint)


_own: list[SynthJob] = []  # in a worker process: its job


def _begin(job: SynthJob, events: Any, over: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one stops the others

    def stop() -> ExitStatus | None:
        return ExitStatus.INTERRUPTED if over.is_set() else None

    _own.append(replace(job, notify=lambda event, facts: events.put((event, facts)), stop=stop))


def _do(piece: Piece) -> dict[str, Any] | Failure:
    try:
        return do_piece(_own[0], piece)
    except InterruptedRunError:
        return {}  # the first process knows why
    except VdeblurError as error:
        return Failure(error)
