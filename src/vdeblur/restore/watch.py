"""Where a run's time goes, for `--profile`: seconds by stage, and the most memory.

    with watch.stage("color"): ...          # the time of what is done within
    for item in watch.each(items, "decode"): ...   # the time that each item takes to come

Stages nest, as iterators ask each other: one that begins within another stops that one's time, so every moment counts
once. A watch is for one thread. Where nobody asked for a profile, a Watch that measures nothing stands in its place.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from vdeblur.restore import memory
from vdeblur.threads import Worker

# In the order in which they are shown; those in threads of their own go on beside the others.
STAGES = ("start", "wait_decode", "color", "scenes", "network", "difference", "wait_encode", "assemble")
BESIDE = ("decode", "encode")

T = TypeVar("T")


class Watch:
    """Measures nothing."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time what is done within."""
        return contextlib.nullcontext()

    def each(self, items: Iterator[T], name: str) -> Iterator[T]:
        """Give items, timing how long each one takes to come."""
        return items


OFF = Watch()


@dataclass
class Stopwatch(Watch):
    """Seconds by stage. chosen: the device that is waited for where a stage begins or ends, so that its work counts."""

    chosen: torch.device
    totals: dict[str, float] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)
    since: float = 0.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done within; a stage that begins within another one stops that one's time."""
        self._turn()
        self.running.append(name)
        try:
            yield
        finally:
            self._turn()
            self.running.pop()

    def each(self, items: Iterator[T], name: str) -> Iterator[T]:
        """Give items, timing how long each one takes to come."""
        while True:
            with self.stage(name):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def _turn(self) -> None:
        synchronize(self.chosen)
        now = time.perf_counter()
        if self.running:
            self.totals[self.running[-1]] = self.totals.get(self.running[-1], 0.0) + now - self.since
        self.since = now


def synchronize(chosen: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if chosen.type != "cpu":
        getattr(torch, chosen.type).synchronize()


class Profile:
    """The watches of a run's threads.

    main: of the thread in which frames are restored, decoding and encoding: of the threads beside it.
    """

    def __init__(self, on: bool) -> None:
        self.on = on
        self.device: torch.device | None = None
        host = torch.device("cpu")
        self.main, self.decoding, self.encoding = (Stopwatch(host) if on else OFF for _ in range(3))
        if on:
            memory.reset_resident_peak()

    def use(self, chosen: torch.device) -> None:
        """Wait for this device from now on, and count its memory; nothing where the profile is off."""
        if isinstance(self.main, Stopwatch):
            self.device = self.main.chosen = chosen
            if chosen.type == "cuda":
                torch.cuda.reset_peak_memory_stats(chosen)

    def worker(self, depth: int) -> Worker:
        """Make a worker whose work, and the waiting for it, is timed."""
        return _WatchedWorker(depth, self) if self.on else Worker(depth)

    def facts(self) -> dict[str, object]:
        """Give what was measured, once all threads have ended.

        seconds: by stage, those that did not occur left out. peak_memory_bytes: that the process had resident, None
        where the system does not tell. peak_device_bytes: of tensors on a CUDA device, else None.
        """
        totals: dict[str, float] = {}
        for watch in (self.main, self.decoding, self.encoding):
            totals |= watch.totals if isinstance(watch, Stopwatch) else {}
        on_device = self.device is not None and self.device.type == "cuda"
        return {
            "seconds": {name: round(totals[name], 4) for name in (*STAGES, *BESIDE) if name in totals},
            "peak_memory_bytes": memory.resident_peak(),
            "peak_device_bytes": torch.cuda.max_memory_allocated(self.device) if on_device else None,
        }


class _WatchedWorker(Worker):
    """Times what it does as `encode`, and how long others wait for it as `wait_encode`."""

    def __init__(self, depth: int, profile: Profile) -> None:
        self.profile = profile
        super().__init__(depth)

    def do(self, function: Callable[..., object], *arguments: object) -> None:
        with self.profile.main.stage("wait_encode"):
            super().do(self._timed, function, *arguments)

    def _timed(self, function: Callable[..., object], *arguments: object) -> None:
        with self.profile.encoding.stage("encode"):
            function(*arguments)

    def _join(self) -> None:
        with self.profile.main.stage("wait_encode"):
            super()._join()
