"""Run iterators and calls in threads, behind bounded queues; settings of OpenMP's threads."""

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

# OpenMP's variables for how long a thread that waits for the others spins before it sleeps: of the standard, of GCC's
# library (in PyTorch's wheels for Linux), and of LLVM's and Intel's.
SPINNING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")

T = TypeVar("T")
_END = object()


def let_waiting_threads_sleep() -> None:
    """Let OpenMP's waiting threads sleep at once, unless the environment chooses; call it before PyTorch is imported.

    By default they spin: GCC's for about 3 ms, LLVM's for 200. On a busy machine a network's threads spend most of
    their share of the processor so, while the one they wait for has none: lite at 640x360 then took 671 to 1017 ms of
    processor time a frame instead of 160.
    """
    if not any(name in os.environ for name in SPINNING):
        os.environ["OMP_WAIT_POLICY"] = "passive"


@dataclass
class _Failure:
    error: BaseException


def threaded(items: Iterator[T], depth: int) -> Generator[T]:
    """Run an iterator in a thread, at most `depth` items ahead; its errors are raised in their place between the items.

    Closing the generator stops the thread and waits for it.
    """
    ready: queue.Queue[object] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:
            put(_Failure(error))

    thread = threading.Thread(target=work, name="decode", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()


class Worker:
    """Run calls one after another in a thread, behind a bounded queue.

    After an error it skips the remaining calls; the next `do` or `finish` raises the error.
    """

    def __init__(self, depth: int) -> None:
        self.queue: queue.Queue[Callable[[], object] | None] = queue.Queue(depth)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._work, name="encode", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while (task := self.queue.get()) is not None:
            if self.error is None:
                try:
                    task()
                except BaseException as error:
                    self.error = error  # go on emptying the queue, or `do` would wait for room forever

    def do(self, function: Callable[..., object], *arguments: object) -> None:
        """Queue a call; wait while the queue is full."""
        if self.error is not None:
            raise self.error
        self.queue.put(partial(function, *arguments))

    def finish(self) -> None:
        """Wait until all calls are done."""
        self._join()
        if self.error is not None:
            raise self.error

    def drain(self) -> None:
        """Wait as `finish` does, but raise nothing; for use after another error."""
        self._join()

    def _join(self) -> None:
        if self.thread.is_alive():
            self.queue.put(None)
            self.thread.join()
