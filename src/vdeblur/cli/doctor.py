"""`vdeblur doctor`: whether all is here that vdeblur needs."""

from collections.abc import Iterable
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

import click

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
        super().__init__(f"{len(failed)} checks failed: {names}", failed[0].hint)
        self.status = failed[0].status


@click.command(short_help="Check versions, devices, codecs and caches, and restore a small clip.")
@click.option("--json", is_flag=True, help="Write a JSON object.")
@click.pass_context
def doctor(context: click.Context, json: bool) -> None:
    """Check what vdeblur needs: versions, devices, encoders and decoders, room, caches, settings; then a self test.

    What can be tried is tried, so this takes some seconds. No network is used. Ends with 0 where nothing failed, else
    with the exit code of the first failure: 4 encoders and disk, 5 models, 6 devices, 9 the self test.

    \b
    Examples:
      vdeblur doctor
      vdeblur doctor --json > report.json
    """
    with reported(HumanReporter(), ["doctor"]):
        from vdeblur.run.doctor import (
            CheckState,  # torch and av take seconds; --help must not wait
            examine,
        )

        checks = list(_shown(examine(_configuration(context.find_root())), json))
        failed = [check for check in checks if check.state is CheckState.FAIL]
        warnings = sum(check.state is CheckState.WARNING for check in checks)
        if json:
            status = failed[0].status if failed else ExitStatus.DONE
            rows = [{**asdict(check), "status": int(check.status)} for check in checks]
            click.echo(dumps({"v": 1, "exit": int(status), "checks": rows}, indent=1))
        elif not failed:
            click.echo(f"all is well, but for {warnings} warnings" if warnings else "all is well")
        if failed:
            raise _UnhealthyError(failed)


def _configuration(root: click.Context) -> list[Path]:
    """Give the file whose options are in force, if there is one."""
    explicit = root.params.get("config")
    places = (
        [explicit] if explicit else [Path(CONFIG_FILE).absolute(), Path(click.get_app_dir("vdeblur")) / CONFIG_FILE]
    )
    return [path for path in places if path.is_file()][:1]


def _shown(checks: Iterable["Check"], json: bool) -> Iterable["Check"]:
    group = ""
    for check in checks:
        if not json:
            if check.group != group:
                group = check.group
                click.echo(group)
            click.echo(f"  {SHOWN[check.state]:8} {check.name}: {check.found}")
            if check.hint:
                click.echo(f"           -> {check.hint}")
        yield check
