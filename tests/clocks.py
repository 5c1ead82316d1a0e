"""A clock that advances only where a test says that something takes time: no figure depends on the machine."""

import threading
from collections.abc import Callable, Iterator
from typing import Any


class Clock:
    """Replaces the module `time`. Each thread has its own time, and waiting for another thread takes none."""

    def __init__(self) -> None:
        self.own = threading.local()

    def perf_counter(self) -> float:
        """Return the seconds that have passed in this thread, counted from an arbitrary moment."""
        return getattr(self.own, "seconds", 1000.0)

    monotonic = perf_counter

    def advance(self, seconds: float) -> None:
        """Advance this thread's time."""
        self.own.seconds = self.perf_counter() + seconds

    def calls(self, function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        """Wrap a function so that each call takes this long."""

        def slowly(*arguments: Any, **named: Any) -> Any:
            self.advance(seconds)
            return function(*arguments, **named)

        return slowly

    def items(self, function: Callable[..., Any], seconds: Callable[[], float]) -> Callable[..., Any]:
        """Wrap a function that returns an iterable so that each item takes this long."""

        def slowly(*arguments: Any, **named: Any) -> Iterator[Any]:
            for item in function(*arguments, **named):
                self.advance(seconds())
                yield item

        return slowly
