"""`vdeblur doctor`: check the installation."""

from collections.abc import Iterable
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vdeblur.cli.lines import counted
from vdeblur.cli.printable import echo_line
from vdeblur.cli.report import HumanReporter, reported
from vdeblur.cli.types import CONFIG_FILE
from vdeblur.errors import ExitStatus, VdeblurError

if TYPE_CHECKING:
    from vdeblur.run.doctor import Check

SHOWN = {"ok": "ok", "warning": "warning", "fail": "FAIL"}


class _UnhealthyError(VdeblurError):
    code = "E_DOCTOR"

    def __init__(self, failed: list["Check"]) -> None:
        names = ", ".join(check.name for check in failed)
        super().__init__(f"{counted(len(failed), 'check')} failed: {names}", failed[0].hint)
        self.status = failed[0].status


@click.command("doctor", short_help="Check versions, devices, codecs and caches, and restore a small clip.")
@click.option("--json", is_flag=True, help="Print a JSON object.")
@click.pass_context
def doctor_command(context: click.Context, json: bool) -> None:
    """Check versions, devices, encoders, decoders, memory, disk space, caches and settings; restore a small clip.

    Takes some seconds and uses no network. The exit code is 0 if nothing failed, otherwise that of the first failure: 4
    for encoders and disk, 5 for models, 6 for devices, 9 for the self test.

    \b
    Examples:
      vdeblur doctor
      vdeblur doctor --json > report.json
    """
    with reported(HumanReporter(), ["doctor"]):
        from vdeblur.run.doctor import CheckState, examine  # torch and av take seconds; --help must not wait

        checks = list(_shown(examine(_configuration(context.find_root())), json))
        failed = [check for check in checks if check.state is CheckState.FAIL]
        warnings = sum(check.state is CheckState.WARNING for check in checks)
        if json:
            status = failed[0].status if failed else ExitStatus.DONE
            rows = [{**asdict(check), "status": int(check.status)} for check in checks]
            click.echo(dumps({"v": 1, "exit": int(status), "checks": rows}, indent=1))
        elif not failed:
            click.echo(f"all checks passed, with {counted(warnings, 'warning')}" if warnings else "all checks passed")
        if failed:
            raise _UnhealthyError(failed)


def _configuration(root: click.Context) -> list[Path]:
    """Return the configuration file in use, if there is one."""
    explicit = root.params.get("config")
    places = (
        [explicit] if explicit else [Path(CONFIG_FILE).absolute(), Path(click.get_app_dir("vdeblur")) / CONFIG_FILE]
    )
    return [path for path in places if path.is_file()][:1]


def _shown(checks: Iterable["Check"], json: bool) -> Iterable["Check"]:
    """Yield the checks, and print each as it ends, unless the result is JSON."""
    group = ""
    for check in checks:
        if not json:
            if check.group != group:
                group = check.group
                click.echo(group)
            echo_line(f"  {SHOWN[check.state]:8} {check.name}: {check.found}")
            if check.hint:
                echo_line(f"           -> {check.hint}")
        yield check
