"""Options from a TOML file: the one that --config names, ./vdeblur.toml, or the one in the user's folder.

A folder that came from others may hold a vdeblur.toml, so what that one sets is named on stderr, and only options that
can do no harm are taken from it.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import click

from vdeblur.cli.types import CONFIG_FILE

LARGEST_BYTES = 1 << 20
# What ./vdeblur.toml may set: options that neither name files, replace outputs, run programs nor reach the network.
# Others, those that do not exist yet among them, are refused.
HARMLESS = frozenset(
    re.findall(
        r"\w+",
        # run
        "device precision tile tile_overlap scene_detect strength start duration to frames sample sample_seconds codec "
        "crf bitrate preset pix_fmt lossless no_audio no_subtitles deinterlace format skip_existing no_overwrite jobs "
        "resume segment compare share on_damage strict deterministic profile dry_run json threads only_blurred guard "
        "region quiet verbose recursive pictures "
        # bench
        "protocol split limit repeats precisions flow "
        # train
        "stage freeze paper print_config iterations stop_at batch accumulate crop rate ema seed validate_every workers "
        # synth
        "way average duty stride steps blur clips size scale speed noise compress test_share "
        # compare, probe
        "mode metrics offset labels output_suffix row column "
        # inspect
        "at every show "
        # still
        "neighbours",
    )
)


def read_configuration(explicit: Path | None, group: click.Group, command: str | None) -> dict[str, Any]:
    """Return the options, by command, of the first configuration file that exists; name those of ./vdeblur.toml.

    command: the one that is about to run.

    Raises: click.UsageError for a file that cannot be read, or sets what it may not.
    """
    own, here = Path(click.get_app_dir("vdeblur")) / CONFIG_FILE, Path(CONFIG_FILE)
    for path in [explicit] if explicit else [here, own]:
        if explicit or os.path.isfile(path):  # False also for a folder without permission
            tables = _read(path)
            options = {name: _known_options(path, group, name, table) for name, table in tables.items()}
            if explicit is None and path is here and not _is_same(here, own):
                _check_harmless(options)
                _name_aloud(options, command)
            return options
    return {}


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
        if len(data) > LARGEST_BYTES:
            raise click.UsageError(f"{path} is larger than {LARGEST_BYTES >> 20} MiB, so it is no settings file")
        return tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise click.UsageError(f"{path} cannot be read as TOML: {reason}") from error


def _is_same(one: Path, other: Path) -> bool:
    """Return whether the working folder is the user's own folder of settings."""
    return other.exists() and one.samefile(other)


def _known_options(path: Path, group: click.Group, name: str, table: Any) -> dict[str, Any]:
    """Return a command's options by the names of its parameters.

    Raises: click.UsageError for a command or an option that does not exist, or a value that cannot be one.
    """
    if name not in group.commands:
        raise click.UsageError(f"{path}: there is no command {name!r}; choose from {', '.join(group.commands)}")
    if not isinstance(table, dict):
        raise click.UsageError(f"{path}: {name} is {table!r}, and must be a table: [{name}], then its options")
    command = group.commands[name]
    if isinstance(command, click.Group):
        return {key: _known_options(path, command, key, value) for key, value in table.items()}
    parameters = {param.name: param for param in command.params if isinstance(param, click.Option)}
    named = {key.replace("-", "_"): value for key, value in table.items()}
    for key in named.keys() - parameters.keys():
        raise click.UsageError(f"{path}: {name} has no option {key!r}; choose from {', '.join(map(str, parameters))}")
    return {key: _value(f"{path}: {name} {key}", parameters[key], value) for key, value in named.items()}


def _value(where: str, option: click.Option, value: Any) -> Any:
    """Return a value as the command line would give it: a flag as true or false, everything else as text.

    Raises: click.UsageError for a value of another kind.
    """
    if option.is_flag:
        if not isinstance(value, bool):
            raise click.UsageError(f"{where} is {value!r}, and must be true or false")
        return value
    if option.multiple:
        values = value if isinstance(value, list) else [value]
        return [_text(where, each) for each in values]
    return _text(where, value)


def _text(where: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise click.UsageError(f"{where} is {_shown(value)}, and must be a number or a text in quotes")
    return str(value)


def _shown(value: object) -> str:
    kinds = {bool: str(value).lower(), list: "a list", dict: "a table"}
    return kinds.get(type(value), repr(str(value)))


def _check_harmless(options: dict[str, Any], above: str = "") -> None:
    """Refuse options that ./vdeblur.toml may not set.

    Raises: click.UsageError.
    """
    for name, value in options.items():
        if isinstance(value, dict):
            _check_harmless(value, f"{above}{name} ")
        elif name not in HARMLESS:
            raise click.UsageError(
                f"./{CONFIG_FILE} may not set {above}{name}: a file in the working folder, which others may have "
                "written, neither names files nor replaces outputs, runs programs or reaches the network. To use it, "
                f"name it: --config {CONFIG_FILE}"
            )


def _name_aloud(options: dict[str, Any], command: str | None) -> None:
    """Write to stderr what ./vdeblur.toml sets for this command."""
    settings = options.get(command or "", {})
    if settings:
        values = ", ".join(f"{name} = {value!r}" for name, value in settings.items())
        click.echo(f"./{CONFIG_FILE} sets {command}: {values}", err=True)
