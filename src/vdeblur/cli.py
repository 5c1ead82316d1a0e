"""The command line: parse, call one function, show what happened."""

import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterator
from fractions import Fraction
from json import dumps
from pathlib import Path
from types import FrameType
from typing import Any

import click

from vdeblur import __version__
from vdeblur.errors import ExitStatus, UsageError, VdeblurError

PROGRESS_SECONDS = 0.5  # at most two progress events a second
LINE_SECONDS = 10.0  # between lines of progress where there is no terminal
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
            return {command: _known_options(path, command, options) for command, options in tables.items()}
    return {}


def _known_options(path: Path, command: str, options: Any) -> dict[str, Any]:
    """Give a command's options under the names of its parameters; refuse what it does not have."""
    if command not in main.commands or not isinstance(options, dict):
        raise click.UsageError(f"{path}: there is no command {command!r}; choose from {', '.join(main.commands)}")
    parameters = {param.name: param for param in main.commands[command].params if isinstance(param, click.Option)}
    named = {key.replace("-", "_"): value for key, value in options.items()}
    for key in named.keys() - parameters.keys():
        raise click.UsageError(
            f"{path}: {command} has no option {key!r}; choose from {', '.join(map(str, parameters))}"
        )
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
@click.option("-m", "--model", default="lite", show_default=True, help="lite (in the package) or identity.")
@click.option("--weights", type=click.Path(path_type=Path), help="Checkpoint for the model, .safetensors or .pt.")
@click.option("-d", "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps or xpu.")
@click.option(
    "-p",
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Of the network; auto is half precision where device and network are good at it.",
)
@click.option("--tile", default="auto", show_default=True, help="auto, none, N or WxH: largest piece, in pixels.")
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
        from vdeblur import decode, encode, pipeline  # torch and av take seconds to import; --help must not wait

        settings = pipeline.Settings(
            model=model,
            checkpoint=weights,
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
        pipeline.run(input, Path(output).absolute(), settings, notify=reporter.notify, stop=stop)


class JsonReporter:
    """Writes every event as a line of JSON to stdout."""

    def __init__(self) -> None:
        self.last_progress = 0.0

    def notify(self, event: str, facts: dict[str, object]) -> None:
        """Take an event."""
        if event == "progress":
            now = time.monotonic()
            if now - self.last_progress < PROGRESS_SECONDS:
                return
            self.last_progress = now
        click.echo(dumps({"v": 1, "event": event, **facts}))

    def close(self) -> None:
        """Nothing is left to do."""


class HumanReporter:
    """Writes to stderr: a bar on a terminal, otherwise a line now and then; and one line for each thing decided."""

    def __init__(self) -> None:
        self.last_line = time.monotonic()
        self.bar: Any = None
        self.task: Any = None

    def notify(self, event: str, facts: dict[str, object]) -> None:
        """Take an event."""
        handler = getattr(self, f"_on_{event}", None)
        if handler is not None:
            handler(facts)

    def _on_plan(self, facts: dict[str, Any]) -> None:
        tiled = "" if facts["tile"] == "none" else f", tiles of {facts['tile']}"
        self._say(f"{facts['input']}: {facts['model']} on {facts['device']} in {facts['precision']}{tiled}")
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[fps]} fps"), TimeRemainingColumn())
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task("", total=facts["frames_estimate"], fps="-")
            self.bar.start()

    def _on_progress(self, facts: dict[str, Any]) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=facts["frame"], fps=f"{facts['fps']:.2f}")
            return
        now = time.monotonic()
        if now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            total = facts["frames_estimate"]
            left = "" if facts["eta_seconds"] is None else f", {_clock(facts['eta_seconds'])} left"
            of = "" if total is None else f" of {total}"
            click.echo(f"  frame {facts['frame']}{of}, {facts['fps']:.2f} fps{left}", err=True)

    def _on_warning(self, facts: dict[str, Any]) -> None:
        self._say(f"warning: {facts['message']}")

    def _on_file_done(self, facts: dict[str, Any]) -> None:
        self.close()
        spent = _clock(facts["seconds"])
        self._say(f"{facts['output']}: {facts['frames']} frames in {spent} ({facts['fps']:.2f} fps)")

    def _on_error(self, facts: dict[str, Any]) -> None:
        self.close()
        hint = f" ({facts['hint']})" if facts["hint"] else ""
        self._say(f"vdeblur: {facts['message']}{hint}")

    def _say(self, line: str) -> None:
        if self.bar is not None:
            self.bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            click.echo(line, err=True)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextlib.contextmanager
def reported(reporter: JsonReporter | HumanReporter, inputs: list[str]) -> Iterator[Any]:
    """Frame a command with start and done, and turn every exception into one line and an exit status.

    Gives a function that tells whether a signal came, as the status to end with. The first signal only sets that;
    a second one ends the program at once.
    """
    begun = time.monotonic()
    caught: list[ExitStatus] = []
    logging.getLogger("libav").setLevel(logging.CRITICAL)

    def on_signal(number: int, frame: FrameType | None) -> None:
        status = ExitStatus.INTERRUPTED if number == signal.SIGINT else ExitStatus.TERMINATED
        if caught:
            os._exit(status)
        caught.append(status)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    reporter.notify("start", {"version": __version__, "inputs": inputs})
    status = ExitStatus.DONE
    try:
        yield lambda: caught[0] if caught else None
    except VdeblurError as error:
        status = error.status
        facts = {"code": error.code, "exit": int(status), "message": error.message, "hint": error.hint}
        reporter.notify("error", {**facts, "input": inputs[0]})
    except Exception as error:
        status = ExitStatus.INTERNAL
        log = _keep_traceback()
        message = f"internal error: {type(error).__name__}: {error}".splitlines()[0]
        facts = {"code": "E_INTERNAL", "exit": int(status), "message": message, "hint": f"please report {log}"}
        reporter.notify("error", {**facts, "input": inputs[0]})
    finally:
        reporter.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    failed = int(status != ExitStatus.DONE)
    seconds = round(time.monotonic() - begun, 3)
    reporter.notify("done", {"exit": int(status), "files_ok": 1 - failed, "files_failed": failed, "seconds": seconds})
    if failed:
        raise SystemExit(int(status))


def _keep_traceback() -> str:
    with tempfile.NamedTemporaryFile("w", prefix="vdeblur-", suffix=".log", delete=False) as file:
        traceback.print_exc(file=file)
    return file.name


if __name__ == "__main__":
    main()
