"""The time of a run by stage, and its peak memory, for `--profile`.

    with watch.stage("color"): ...  # times the block
    for item in watch.each(items, "decode"): ...  # times the wait for each item

Stages nest, because iterators call each other: an inner stage pauses the clock of the outer one, so every moment counts
once. A watch belongs to one thread. Without --profile, a Watch that measures nothing takes its place.
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

# In the order of the report; those in BESIDE run in threads of their own.
STAGES = ("start", "wait_decode", "blur", "color", "scenes", "network", "difference", "wait_encode", "assemble")
BESIDE = ("decode", "encode")

T = TypeVar("T")


class Watch:
    """Measures nothing."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time the block."""
        return contextlib.nullcontext()

    def each(self, items: Iterator[T], name: str) -> Iterator[T]:
        """Yield items, and time the wait for each."""
        return items


OFF = Watch()


@dataclass
class Stopwatch(Watch):
    """Seconds by stage. chosen: the device to synchronise with at the ends of a stage, so that its work counts."""

    chosen: torch.device
    totals: dict[str, float] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)
    since: float = 0.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block; a stage within another pauses the clock of the outer one."""
        self._switch()
        self.running.append(name)
        try:
            yield
        finally:
            self._switch()
            self.running.pop()

    def each(self, items: Iterator[T], name: str) -> Iterator[T]:
        """Yield items, and time the wait for each."""
        while True:
            with self.stage(name):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def _switch(self) -> None:
        synchronize(self.chosen)
        now = time.perf_counter()
        if self.running:
            self.totals[self.running[-1]] = self.totals.get(self.running[-1], 0.0) + now - self.since
        self.since = now


def synchronize(chosen: torch.device) -> None:
    """Wait until a device has finished its work."""
    if chosen.type != "cpu":
        getattr(torch, chosen.type).synchronize()


class Profile:
    """The watches of a run's threads: main restores frames, decoding and encoding run beside it."""

    def __init__(self, on: bool) -> None:
        self.on = on
        self.device: torch.device | None = None
        host = torch.device("cpu")
        self.main, self.decoding, self.encoding = (Stopwatch(host) if on else OFF for _ in range(3))
        if on:
            memory.reset_resident_peak()

    def use(self, chosen: torch.device) -> None:
        """Measure this device from now on, if the profile is on."""
        if isinstance(self.main, Stopwatch):
            self.device = self.main.chosen = chosen
            if chosen.type == "cuda":
                torch.cuda.reset_peak_memory_stats(chosen)

    def worker(self, depth: int) -> Worker:
        """Return a worker; if the profile is on, it times its work, and the wait for it."""
        return _WatchedWorker(depth, self) if self.on else Worker(depth)

    def facts(self) -> dict[str, object]:
        """Return the measurements, after all threads have ended.

        seconds: by stage, without stages that did not occur. peak_memory_bytes: resident memory of the process, None if
        the system does not report it. peak_device_bytes: of tensors on a CUDA device, else None.
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
    """Times its work as `encode`, and the wait for it as `wait_encode`."""

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
