"""`vdeblur bench --speed`: measure how fast models are on this machine."""

import sys
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vdeblur.cli.lines import lines_of
from vdeblur.cli.printable import echo_line, printable
from vdeblur.cli.types import with_options
from vdeblur.events import Stop

if TYPE_CHECKING:
    from vdeblur.bench.speed_results import SpeedReport, SpeedTask

WIDE = 200  # columns of a table outside a terminal

SPEED_OPTIONS = with_options(
    click.option(
        "--size", default="1280x720", show_default=True, help="With --speed: size of the clip, WIDTHxHEIGHT in pixels."
    ),
    click.option(
        "--frames", type=click.IntRange(2), default=60, show_default=True, help="With --speed: frames in the clip."
    ),
    click.option(
        "--repeats", type=click.IntRange(1), default=1, show_default=True,
        help="With --speed: measure N times, and report medians.",
    ),
    click.option(
        "--reference", type=click.Path(path_type=Path, exists=True), multiple=True,
        help="With --speed: a Python script that times another program, to compare with; may be repeated.",
    ),
)  # fmt: skip


def run_speed(task: "SpeedTask", report: Path | None, json: bool, stop: Stop) -> None:
    """Measure, print the result, and write the report if there is one; see bench.speed.measure_speed.

    json: print one line of JSON instead of tables.
    """
    from vdeblur.bench import speed, speed_report  # torch and av take seconds; --help must not wait

    if report is not None:
        speed_report.check_speed_report(report)

    def finish(results: "SpeedReport") -> None:
        if report is not None:
            speed_report.write_speed_report(results, report)
        if json:
            click.echo(dumps(results.to_json()))
        else:
            _show_speed(results)

    finish(speed.measure_speed(task, _say, stop, finish))


def _say(event: str, facts: dict[str, Any]) -> None:
    for line in lines_of(event, facts):
        echo_line(line, err=True)


def _show_speed(results: "SpeedReport") -> None:
    """Print the tables of a speed report."""
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
            table.add_row(*map(printable, row))
        console.print()
        console.print(table)
