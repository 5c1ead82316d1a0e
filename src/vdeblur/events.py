"""The callbacks through which a run speaks: notify, warn, stop, and what fetching may do."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from vdeblur.errors import ExitStatus, InterruptedRunError

Warn = Callable[[str, str], None]  # takes a warning: a stable code and a sentence
Notify = Callable[[str, dict[str, object]], None]  # takes an event: its name and its payload
Stop = Callable[[], ExitStatus | None]  # asked before every frame; a status means that a signal arrived
Ask = Callable[[str], bool]  # puts a question to a person
TRUE = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads its variables


def ignore(*_: object) -> None:
    """Do nothing with an event or a warning."""


def never() -> ExitStatus | None:
    """Never ask to stop."""
    return None


@dataclass(frozen=True)
class Talk:
    """What fetching may do, and how it speaks to whoever started it.

    offline: use no network. yes: take files without a published digest unasked. ask: puts a question to a person
    (None: there is nobody). stop: a status means that a signal came.
    """

    offline: bool = False
    yes: bool = False
    notify: Notify = ignore
    ask: Ask | None = None
    stop: Stop = never

    @property
    def is_offline(self) -> bool:
        """Tell whether the network is off, by option or by the Hub's variable."""
        return self.offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in TRUE

    def check_stop(self) -> None:
        """End where a signal came.

        Raises: InterruptedRunError.
        """
        status = self.stop()
        if status is not None:
            raise InterruptedRunError(status)

    def show_progress(self, name: str, done: int, total: int | None) -> None:
        """Tell how much of a file is there, in bytes."""
        self.check_stop()
        self.notify("download_progress", {"file": name, "bytes": done, "bytes_total": total})
