"""`vdeblur bench --speed`: how fast models are on this machine."""

import sys
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vdeblur.events import Stop

if TYPE_CHECKING:
    from vdeblur.bench.speed_results import SpeedReport

WIDE = 200  # columns of a table that no terminal limits


def run_speed(
    models: Sequence[str],
    precisions: Sequence[str],
    size: str,
    frames: int,
    device: str,
    references: Sequence[Path],
    repeats: int,
    report: Path | None,
    json: bool,
    stop: Stop,
) -> None:
    """Measure, show the result, and write it to a report if one is asked for; see speed.measure.

    json: write it to stdout as a line of JSON instead of tables.
    """
    from vdeblur.bench import speed, speed_report  # torch and av take seconds; --help must not wait

    if report is not None:
        speed_report.check_speed_report(report)
    results = speed.measure_speed(models, precisions, size, frames, device, references, repeats, _say, stop)
    if report is not None:
        speed_report.write_speed_report(results, report)
    if json:
        click.echo(dumps(results.to_json()))
    else:
        show(results)


def _say(event: str, facts: dict[str, Any]) -> None:
    """Tell on stderr what is measured now."""
    if event == "measuring":
        click.echo(" ".join(filter(None, (facts["model"], facts["precision"], facts["part"]))), err=True)


def show(results: "SpeedReport") -> None:
    """Write the tables of a speed report to stdout."""
    from rich.console import Console
    from rich.table import Table

    from vdeblur.bench import speed_report

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDE)
    console.print(speed_report.summary(results), soft_wrap=True)
    for title, heads, rows in speed_report.tables(results):
        table = Table(title=title, title_justify="left", box=None)
        for index, head in enumerate(heads):
            table.add_column(head, justify="left" if index < 2 else "right")
        for row in rows:
            table.add_row(*row)
        console.print()
        console.print(table)
