"""The vdeblur command: its subcommands, its configuration file, and how wrong usage is reported."""

import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from vdeblur.cli.bench import bench_command
from vdeblur.cli.clean import clean_command
from vdeblur.cli.compare import compare_command
from vdeblur.cli.configuration import read_configuration
from vdeblur.cli.doctor import doctor_command
from vdeblur.cli.inspect import inspect_command
from vdeblur.cli.models import models_command
from vdeblur.cli.probe import probe_command
from vdeblur.cli.report import HumanReporter, JsonReporter, reported
from vdeblur.cli.run import run_command
from vdeblur.cli.still import still_command
from vdeblur.cli.synth import synth_command
from vdeblur.cli.train import train_command
from vdeblur.errors import ExitStatus, UsageError
from vdeblur.threads import let_waiting_threads_sleep
from vdeblur.version import __version__

EVENTFUL = {"run", "bench", "train", "synth", "still"}  # commands whose --json is one line per event


class Program(click.Group):
    """All commands; wrong usage becomes one line, or an event, like every other error."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command that the arguments name, and end the program."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode, **extra)
        let_waiting_threads_sleep()
        arguments = list(sys.argv[1:] if args is None else args)
        if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show must not end the program
            with contextlib.suppress(OSError):
                sys.stdout.reconfigure(errors="backslashreplace")
        try:
            status = super().main(arguments, prog_name, complete_var, False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            status = ExitStatus.USAGE
        except click.UsageError as error:
            wrong = " ".join(error.format_message().split()).removesuffix(".")
            command = "vdeblur" if error.ctx is None else error.ctx.command_path
            with_events = "--json" in arguments and not EVENTFUL.isdisjoint(arguments)
            with reported(JsonReporter() if with_events else HumanReporter(), []):
                raise UsageError(wrong[:1].lower() + wrong[1:], f"see {command} --help") from error
        except click.Abort:
            status = ExitStatus.INTERRUPTED
        raise SystemExit(int(status or 0))


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "VDEBLUR"})
@click.version_option(__version__, prog_name="vdeblur")
@click.option(
    "--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Read options from this TOML file."
)
@click.pass_context
def main(context: click.Context, config: Path | None) -> None:
    """Remove motion blur from video.

    Options can also come from a TOML file with a table per command (--config, ./vdeblur.toml, or vdeblur.toml in your
    configuration folder) and from VDEBLUR_<COMMAND>_<OPTION> in the environment; the command line wins.
    ./vdeblur.toml may set only options that do no harm.

    \b
    Examples:
      vdeblur run holiday.mp4 holiday_sharp.mp4
      vdeblur run frames/ sharp_frames/
    """
    context.default_map = read_configuration(config, main, context.invoked_subcommand)


main.add_command(run_command)
main.add_command(bench_command)
main.add_command(train_command)
main.add_command(synth_command)
main.add_command(models_command)
main.add_command(compare_command)
main.add_command(probe_command)
main.add_command(inspect_command)
main.add_command(still_command)
main.add_command(clean_command)
main.add_command(doctor_command)
