"""The command line: parse, call one function, show what happened."""

import os
import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Any

import click

from vdeblur import __version__
from vdeblur.cli_compare import compare
from vdeblur.cli_doctor import doctor
from vdeblur.cli_models import models
from vdeblur.cli_probe import probe
from vdeblur.cli_report import HumanReporter, JsonReporter, question, reported
from vdeblur.errors import UsageError

CONFIG_FILE = "vdeblur.toml"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "VDEBLUR"})
@click.version_option(__version__, prog_name="vdeblur")
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="TOML file with options.")
@click.pass_context
def main(context: click.Context, config: Path | None) -> None:
    """Remove motion blur from video.

    Options can also stand in a TOML file (--config, ./vdeblur.toml, or vdeblur.toml in the user's configuration
    folder), a table per command, and in VDEBLUR_<COMMAND>_<OPTION>; the command line wins.

    \b
    Examples:
      vdeblur run holiday.mp4 holiday_sharp.mp4
      vdeblur run frames/ sharp_frames/
    """
    context.default_map = _read_config(config)


def _read_config(explicit: Path | None) -> dict[str, Any]:
    """Read the options of the first configuration file there is."""
    places = [explicit] if explicit else [Path(CONFIG_FILE), Path(click.get_app_dir("vdeblur")) / CONFIG_FILE]
    for path in places:
        if path is not None and path.is_file():
            try:
                tables = tomllib.loads(path.read_text("utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
                raise click.UsageError(f"{path} cannot be read as TOML: {error}") from error
            return {command: _known_options(path, main, command, options) for command, options in tables.items()}
    return {}


def _known_options(path: Path, group: click.Group, name: str, options: Any) -> dict[str, Any]:
    """Give a command's options under the names of its parameters; refuse what it does not have."""
    if name not in group.commands or not isinstance(options, dict):
        raise click.UsageError(f"{path}: there is no command {name!r}; choose from {', '.join(group.commands)}")
    command = group.commands[name]
    if isinstance(command, click.Group):
        return {key: _known_options(path, command, key, value) for key, value in options.items()}
    parameters = {param.name: param for param in command.params if isinstance(param, click.Option)}
    named = {key.replace("-", "_"): value for key, value in options.items()}
    for key in named.keys() - parameters.keys():
        raise click.UsageError(f"{path}: {name} has no option {key!r}; choose from {', '.join(map(str, parameters))}")
    return named


class Time(click.ParamType):
    """FFmpeg's time syntax: [-][HH:]MM:SS[.m...], or S[.m...] with an optional s, ms or us."""

    name = "time"

    def convert(self, value: str | Fraction, param: click.Parameter | None, context: click.Context | None) -> Fraction:
        """Give seconds."""
        if isinstance(value, Fraction):
            return value
        text = str(value)
        try:
            for unit, size in (("us", 1_000_000), ("ms", 1000), ("s", 1)):
                if text.endswith(unit):
                    seconds = Fraction(text.removesuffix(unit)) / size
                    break
            else:
                seconds = Fraction(0)
                for part in text.split(":"):
                    seconds = seconds * 60 + Fraction(part)
        except (ValueError, ZeroDivisionError):
            self.fail(f"{text!r} is not a time; write 90, 1:30, 00:01:30.5 or 200ms", param, context)
        if seconds < 0:
            self.fail(f"{text!r} is negative", param, context)
        return seconds


class KeyValue(click.ParamType):
    """KEY=VALUE."""

    name = "key=value"

    def convert(
        self, value: str | tuple[str, str], param: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, str]:
        """Give both."""
        if isinstance(value, tuple):
            return value
        key, sign, rest = value.partition("=")
        if not key or not sign:
            self.fail(f"{value!r} is not KEY=VALUE", param, context)
        return key, rest


@main.command(short_help="Restore a video or a folder of pictures.")
@click.argument("input", type=click.Path(path_type=Path), metavar="INPUT")
@click.argument("output", type=click.Path(), metavar="OUTPUT")
@click.option(
    "-m", "--model", default="lite", show_default=True, help="NAME or NAME@WEIGHTS, see vdeblur models list; or best."
)
@click.option(
    "--weights", type=click.Path(path_type=Path), help="Checkpoint for the model: .safetensors, .pt, .pth, .pytorch."
)
@click.option("--yes", is_flag=True, help="Fetch weights unasked, even if their authors published no digest.")
@click.option("--offline", is_flag=True, help="Never use the network.")
@click.option("-d", "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps or xpu.")
@click.option(
    "-p",
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Of the network; auto is half precision where device and network are good at it.",
)
@click.option(
    "--tile",
    default="auto",
    show_default=True,
    help="auto, none, N or WxH: largest piece, in pixels. flow-rnn wants none.",
)
@click.option(
    "--tile-overlap", type=click.IntRange(0), help="Pixels that neighbours share.  [default: as the model needs]"
)
@click.option("--scene-detect/--no-scene-detect", default=True, show_default=True, help="Keep scenes apart.")
@click.option(
    "--strength",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="How much of the restoration is added, 0 to 1.",
)
@click.option("-ss", "--start", type=Time(), help="Begin here, in time from the first frame.")
@click.option("-t", "--duration", type=Time(), help="Length of the part to restore.")
@click.option("--to", type=Time(), help="End here, in time from the first frame.")
@click.option("--frames", type=click.IntRange(1), help="At most so many frames.")
@click.option("-c", "--codec", help="h264, hevc, av1, vp9, ffv1 or an encoder's name.  [default: the input's]")
@click.option("--crf", type=click.FloatRange(0), default=16.0, show_default=True, help="Quality; lower is better.")
@click.option("--preset", default="medium", show_default=True, help="Encoder's speed, ultrafast to veryslow.")
@click.option("-e", "e", type=KeyValue(), multiple=True, help="Any option of the encoder; may be repeated.")
@click.option("--pix-fmt", default="keep", show_default=True, help="Pixel format; keep is the input's.")
@click.option("--lossless", is_flag=True, help="FFV1 in Matroska (.mkv).")
@click.option("-y", "--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--json", is_flag=True, help="Write events as JSON lines to stdout.")
def run(
    input: Path,
    output: str,
    model: str,
    weights: Path | None,
    yes: bool,
    offline: bool,
    device: str,
    precision: str,
    tile: str,
    tile_overlap: int | None,
    scene_detect: bool,
    strength: float,
    start: Fraction | None,
    duration: Fraction | None,
    to: Fraction | None,
    frames: int | None,
    codec: str | None,
    crf: float,
    preset: str,
    e: tuple[tuple[str, str], ...],
    pix_fmt: str,
    lossless: bool,
    overwrite: bool,
    json: bool,
) -> None:
    """Restore INPUT, a video file or a folder of numbered pictures, to OUTPUT, a video file or a folder.

    Every frame keeps its own time, sound and the other streams are copied, depth and colour stay as they are. OUTPUT
    appears whole or not at all.

    \b
    Examples:
      vdeblur run shaky.mp4 sharp.mp4
      vdeblur run drone.mov preview.mp4 -ss 1:30 -t 5 --strength 0.8
    """
    reporter = JsonReporter() if json else HumanReporter()
    with reported(reporter, [str(input)]) as stop:
        if duration is not None and to is not None:
            raise UsageError("-t and --to exclude each other", "give one of them")
        stop_at = to if duration is None else (start or 0) + duration
        if stop_at is not None and stop_at <= (start or 0):
            raise UsageError("the part asked for is empty", "--to must lie after -ss")
        from vdeblur import decode, encode, pipeline, settings  # torch and av take seconds; --help must not wait

        told = settings.Settings(
            model=model,
            checkpoint=weights,
            yes=yes,
            offline=offline,
            device=device,
            precision=precision,
            tile=tile,
            tile_overlap=tile_overlap,
            scene_detect=scene_detect,
            strength=strength,
            pictures=output.endswith(("/", os.sep)),
            cut=decode.Cut(start, stop_at, frames),
            encoding=encode.EncodeOptions(codec, crf, preset, e, pix_fmt, lossless, overwrite),
        )
        pipeline.run(input, Path(output).absolute(), told, notify=reporter.notify, ask=question(json), stop=stop)


main.add_command(models)
main.add_command(compare)
main.add_command(probe)
main.add_command(doctor)

if __name__ == "__main__":
    main()
