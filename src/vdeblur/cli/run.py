"""vdeblur run: parse, call one function, show what happened."""

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vdeblur.cli.compare import MODES
from vdeblur.cli.report import HumanReporter, JsonReporter, Session, reported
from vdeblur.cli.terminal import question
from vdeblur.cli.types import KeyValueType, ShareType, TimeType
from vdeblur.errors import UsageError

if TYPE_CHECKING:
    from vdeblur.run.batch import Outcome, RunJob
    from vdeblur.settings import Settings

PATH = click.Path(path_type=Path, readable=False)  # what cannot be read is told by whoever opens it


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `run`, in the order of its help."""
    option, time = click.option, TimeType()
    precisions = click.Choice(["auto", "fp32", "bf16", "fp16"])
    options = [
        option("-m", "--model", default="lite", help="NAME or NAME@WEIGHTS, see vdeblur models list; or best."),
        option("--weights", type=PATH, help="Checkpoint for the model: .safetensors, .pt, .pth, .pytorch."),
        option("--yes", is_flag=True, help="Fetch weights unasked, even if their authors published no digest."),
        option("--offline", is_flag=True, help="Never use the network."),
        option("-d", "--device", default="auto", help="auto, cpu, cuda, cuda:1, mps or xpu."),
        option("-p", "--precision", type=precisions, default="auto",
               help="Of the network; auto is half precision where device and network are good at it."),
        option("--tile", default="auto", help="auto, none, N or WxH: largest piece, in pixels. flow-rnn wants none."),
        option("--tile-overlap", type=click.IntRange(0), help="Pixels that neighbours share.  [default: the model's]"),
        option("--scene-detect/--no-scene-detect", default=True, help="Keep scenes apart."),
        option("--strength", type=click.FloatRange(0, 1), default=1.0, help="How much of the restoration is added."),
        option("-ss", "--start", type=time, help="Begin here, in time from the first frame."),
        option("-t", "--duration", type=time, help="Length of the part to restore."),
        option("--to", type=time, help="End here, in time from the first frame."),
        option("--frames", type=click.IntRange(1), help="At most so many frames."),
        option("--sample", is_flag=True,
               help="Restore three short samples beside the input, and predict time and size of the whole."),
        option("-c", "--codec", help="h264, hevc, av1, vp9, ffv1 or an encoder's name.  [default: the input's]"),
        option("--crf", type=click.FloatRange(0), default=16.0, help="Quality; lower is better."),
        option("--preset", default="medium", help="Encoder's speed, ultrafast to veryslow."),
        option("-e", "e", type=KeyValueType(), multiple=True, help="Any option of the encoder; may be repeated."),
        option("--pix-fmt", default="keep", help="Pixel format; keep is the input's."),
        option("--lossless", is_flag=True, help="FFV1 in Matroska (.mkv)."),
        option("--no-audio", is_flag=True, help="Leave sound out."),
        option("--no-subtitles", is_flag=True, help="Leave subtitles out."),
        option("--deinterlace", type=click.Choice(["auto", "off", "on"]), default="auto",
               help="Interlaced frames become progressive ones; auto where they are flagged."),
        option("-f", "--format", help="Container, by FFmpeg's name.  [default: by OUTPUT's name; y4m to a pipe]"),
        option("--suffix", help="Write beside each INPUT, with this added to its name; there is no OUTPUT then."),
        option("-y", "--overwrite", is_flag=True, help="Replace an existing output."),
        option("--skip-existing", is_flag=True, help="Leave out inputs whose output is there."),
        option("-j", "--jobs", type=click.IntRange(1), default=1, help="Files at once."),
        option("--resume/--no-resume", default=True, help="Go on with what an interrupted run has finished."),
        option("--segment", type=click.FloatRange(0), default=10.0,
               help="Seconds that are finished and kept as a whole; 0: all of it."),
        option("--compare", type=click.Choice(MODES),
               help="Also write OUTPUT_MODE, the input and the output in one video, or page with sliders."),
        option("--share", type=ShareType(), help="Make only share K of N, no OUTPUT; run without it joins them."),
        option("--engine", type=click.Choice(["local", "ray"]), default="local",
               help="Where the work is done; ray shares segments and files out, see examples/."),
        option("--ray-address", help="A running cluster's, or auto.  [default: a cluster on this machine]"),
        option("--on-damage", type=click.Choice(["warn", "fail"]), default="warn", help="What damage in INPUT is."),
        option("--strict", is_flag=True, help="Warnings are errors."),
        option("--deterministic", is_flag=True, help="The same bytes each time, on the same machine."),
        option("--profile", is_flag=True, help="Show seconds per stage and peak memory."),
        option("--dry-run", is_flag=True, help="Say what would be done, and stop."),
        option("--json", is_flag=True, help="Write events as JSON lines to stdout."),
    ]  # fmt: skip
    for add in reversed(options):
        command = add(command)
    return command


@click.command(short_help="Restore videos or folders of pictures.", context_settings={"show_default": True})
@click.argument(
    "paths", type=click.Path(allow_dash=True, readable=False), nargs=-1, required=True, metavar="INPUT... OUTPUT"
)
@run_options
def run(paths: tuple[str, ...], **given: Any) -> None:
    """Restore INPUT to OUTPUT: a video file, a folder of numbered pictures, or - for a pipe (y4m or nut).

    With several INPUTs, or a folder of videos, OUTPUT is a folder. Every frame keeps its own time, sound and the other
    streams are copied, depth and colour stay as they are. OUTPUT appears whole or not at all; after an interruption the
    same command goes on.

    \b
    Examples:
      vdeblur run shaky.mp4 sharp.mp4
      vdeblur run drone.mov preview.mp4 -ss 1:30 -t 5 --strength 0.8
      vdeblur run clips/ sharp/ --skip-existing -j 2
    """
    reporter = JsonReporter() if given["json"] else HumanReporter()
    inputs, output = (paths, None) if given["suffix"] is not None else (paths[:-1], paths[-1])
    with reported(reporter, list(inputs)) as session:
        if not inputs:
            raise UsageError("there is no OUTPUT", "name it last, or use --suffix _sharp")
        if given["json"] and output == "-":
            raise UsageError("--json and a video cannot both go to standard output", "leave out --json")
        from vdeblur.run import batch  # torch and av take seconds to import; --help must not wait

        settings = run_settings(given, output)
        jobs = batch.plan_jobs(inputs, output, given["suffix"], settings)
        if given["skip_existing"]:
            jobs = batch.without_existing(jobs, reporter.notify)
        if given["engine"] == "ray":
            outcomes = _run_by_ray(jobs, settings, given, reporter.notify, session)
        else:
            ask = question(given["json"])
            outcomes = batch.run_jobs(jobs, settings, given["jobs"], notify=reporter.notify, ask=ask, stop=session)
        session.files_failed = sum(outcome.error is not None for outcome in outcomes)
        session.files_ok = len(outcomes) - session.files_failed
        batch.check_outcomes(outcomes)


def _run_by_ray(
    jobs: "list[RunJob]", settings: "Settings", given: dict[str, Any], notify: Callable[..., None], stop: Session
) -> "list[Outcome]":
    from vdeblur.run import ray_engine

    if given["share"] is not None:
        raise UsageError("--engine ray shares out by itself", "leave out --share")
    for option in ("sample", "profile"):
        if given[option]:
            raise UsageError(f"--{option} is of one process, and --engine ray has many", "leave out one of them")
    workers = given["jobs"] if given["jobs"] > 1 else None
    ask = question(given["json"])
    return ray_engine.run_jobs_on_ray(jobs, settings, workers, given["ray_address"], notify=notify, ask=ask, stop=stop)


def run_settings(given: dict[str, Any], output: str | None) -> "Settings":
    """Turn options into settings.

    Raises: UsageError where they do not go together.
    """
    start, duration, to = given["start"], given["duration"], given["to"]
    if duration is not None and to is not None:
        raise UsageError("-t and --to exclude each other", "give one of them")
    stop_at = to if duration is None else (start or 0) + duration
    if stop_at is not None and stop_at <= (start or 0):
        raise UsageError("the part asked for is empty", "--to must lie after -ss")
    from vdeblur.settings import Cut, EncodeOptions, Settings

    of_encoder = ("codec", "crf", "preset", "pix_fmt", "lossless", "overwrite", "format", "deinterlace")
    encoding = EncodeOptions(
        **{name: given[name] for name in of_encoder},
        options=given["e"],
        audio=not given["no_audio"],
        subtitles=not given["no_subtitles"],
    )
    names = ["model", "yes", "offline", "device", "precision", "tile", "tile_overlap", "scene_detect", "strength"]
    names += ["resume", "share", "deterministic", "strict", "dry_run", "profile", "compare", "sample"]
    return Settings(
        **{name: given[name] for name in names},
        checkpoint=given["weights"],
        pictures=output is not None and output.endswith(("/", os.sep)),
        cut=Cut(start, stop_at, given["frames"]),
        encoding=encoding,
        segment=Fraction(given["segment"]).limit_denominator(1_000_000) or None,
        fail_on_damage=given["on_damage"] == "fail",
    )
