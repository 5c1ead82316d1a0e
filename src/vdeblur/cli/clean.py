"""`vdeblur clean`: list and remove what interrupted runs left."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vdeblur.cli.lines import bytes_in_words, counted, duration_in_words, shown
from vdeblur.cli.printable import echo_line
from vdeblur.cli.report import HumanReporter, reported
from vdeblur.cli.terminal import show_table
from vdeblur.errors import InputError, OutputError

if TYPE_CHECKING:
    from vdeblur.run.leftovers import Leftover


@click.command("clean", short_help="List or remove what interrupted runs left.")
@click.argument("folder", type=click.Path(path_type=Path), default=Path())
@click.option("--yes", is_flag=True, help="Remove what is listed.")
@click.option("--recursive", is_flag=True, help="Look into the folders within FOLDER, too.")
def clean_command(folder: Path, yes: bool, recursive: bool) -> None:
    """List what interrupted runs left in FOLDER, the working folder by default: sizes and ages. --yes removes it.

    Runs keep finished segments beside their output, so that the same command continues. Without them it starts over.
    What a run uses now stays.

    \b
    Examples:
      vdeblur clean
      vdeblur clean sharp/ --yes
    """
    with reported(HumanReporter(), [str(folder)]):
        from vdeblur.run import leftovers  # its modules import torch, and --help must not wait

        if not folder.is_dir():
            raise InputError(f"{folder} is no folder", "name the folder of the outputs")
        try:
            found = leftovers.find_leftovers(folder, recursive=recursive)
        except OSError as error:
            raise InputError(f"{folder} cannot be read: {error.strerror}", "check its permissions") from error
        if not found:
            echo_line(f"{folder}: interrupted runs left nothing", err=True)
            return
        show_table(("SIZE", "AGE", "FRAMES", "OF"), [_row(left) for left in found])
        unused = [left for left in found if not left.in_use]
        size = bytes_in_words(sum(left.bytes for left in unused))
        if not yes:
            hint = (
                f"; vdeblur clean {shlex.quote(str(folder))} --yes removes {'it' if len(unused) == 1 else 'them'}"
                if unused
                else ""
            )
            echo_line(f"{counted(len(unused), 'leftover')}, {size}{hint}", err=True)
            return
        kept = _remove(unused)
        echo_line(f"removed {counted(len(unused) - len(kept), 'leftover')}, {size}", err=True)
        if kept:
            raise OutputError(f"not removed: {', '.join(kept)}", "see what else is in them, and remove it yourself")


def _row(left: "Leftover") -> tuple[str, ...]:
    name = shown(str(left.path)) if left.output is None else shown(str(left.output))
    use = ", in use now" if left.in_use else ""
    return (
        bytes_in_words(left.bytes),
        duration_in_words(left.age_seconds),
        str(left.frames) if left.output is not None else "",
        f"{name}{use}" if left.output is not None else f"{name} (draft{use})",
    )


def _remove(unused: "list[Leftover]") -> list[str]:
    """Remove leftovers; return the paths of those of which something is left."""
    from vdeblur.run import leftovers

    kept = []
    for left in unused:
        try:
            if not leftovers.remove_leftover(left):
                kept.append(str(left.path))
        except OutputError as error:
            kept.append(error.message)
        except OSError as error:
            kept.append(f"{left.path} ({os.strerror(error.errno) if error.errno else error})")
    return kept
