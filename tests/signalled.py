"""The command line in a process that sends signals to itself at an event, and so at the same moment on every machine.

python -m tests.signalled SIGNALS EVENT COUNT ...   # as 2,2 progress 3 run in.mp4 out.mp4 --json
"""

import os
import sys
from collections.abc import Sequence

from vdeblur.cli import report
from vdeblur.cli.main import main


def run(signals: Sequence[int], event: str, count: int, arguments: Sequence[str]) -> None:
    """Run the command line, and send these signals after `count` events of a kind."""
    left = count
    for reporter in (report.JsonReporter, report.HumanReporter):

        def notify(self, kind: str, facts: dict[str, object], original=reporter.notify) -> None:
            nonlocal left
            original(self, kind, facts)
            left -= kind == event
            if kind == event and not left:
                for number in signals:
                    os.kill(os.getpid(), number)

        setattr(reporter, "notify", notify)  # noqa: B010 - mypy does not allow to replace methods
    main(list(arguments))


if __name__ == "__main__":
    run([int(number) for number in sys.argv[1].split(",")], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
