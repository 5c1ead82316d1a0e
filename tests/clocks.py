"""A clock that only passes where a test says that something takes time, so that no figure depends on the machine."""

import threading
from collections.abc import Callable, Iterator
from typing import Any


class Clock:
    """Stands in for the module `time`; each thread has a time of its own, and waiting for another takes none."""

    def __init__(self) -> None:
        self.own = threading.local()

    def perf_counter(self) -> float:
        """Give the seconds that have passed in this thread, from any moment on."""
        return getattr(self.own, "seconds", 1000.0)

    monotonic = perf_counter

    def advance(self, seconds: float) -> None:
        """Let time pass in this thread."""
        self.own.seconds = self.perf_counter() + seconds

    def calls(self, function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        """Give the function as one that takes so long."""

        def slowly(*arguments: Any, **named: Any) -> Any:
            self.advance(seconds)
            return function(*arguments, **named)

        return slowly

    def items(self, function: Callable[..., Any], seconds: Callable[[], float]) -> Callable[..., Any]:
        """Give the function as one each of whose items takes so long to come."""

        def slowly(*arguments: Any, **named: Any) -> Iterator[Any]:
            for item in function(*arguments, **named):
                self.advance(seconds())
                yield item

        return slowly
