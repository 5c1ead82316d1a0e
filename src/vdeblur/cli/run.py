"""`vdeblur run`: restore videos and folders of pictures."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from vdeblur.cli.report import HumanReporter, JsonReporter, Session, reported
from vdeblur.cli.terminal import question
from vdeblur.cli.types import (
    DEVICE,
    JSON_EVENTS,
    OFFLINE,
    PATH,
    THREADS,
    YES,
    KeyValueType,
    ShareType,
    TimeType,
    with_options,
)
from vdeblur.errors import UsageError
from vdeblur.settings import COMPARE_MODES, PRECISIONS, STRONGEST

if TYPE_CHECKING:
    from vdeblur.run.batch import Outcome, RunJob
    from vdeblur.settings import Settings

run_options = with_options(
    click.option("-m", "--model", default="lite",
                 help="NAME or NAME@WEIGHTS, as vdeblur models list shows; best: the strongest that finishes within an "
                      "hour and downloads without a question (--yes allows the others); FILE.py:CLASS: your own "
                      "network."),
    click.option("--weights", type=PATH, help="Checkpoint for the model: .safetensors, .pt, .pth or .pytorch."),
    YES,
    OFFLINE,
    DEVICE,
    click.option("-p", "--precision", type=click.Choice(PRECISIONS), default="auto",
                 help="Precision of the network; auto: half precision where it is faster and loses no quality, else "
                      "fp32."),
    THREADS,
    click.option("--tile", default="auto",
                 help="Largest piece of a frame for the network, in pixels: N or WxH; auto: what fits the memory; "
                      "none: whole frames, even if memory may run out."),
    click.option("--tile-overlap", type=click.IntRange(0),
                 help="Pixels that neighbouring tiles share.  [default: the model's]"),
    click.option("--scene-detect/--no-scene-detect", default=True,
                 help="Detect cuts, and never mix frames of two scenes."),
    click.option("--strength", type=click.FloatRange(0, STRONGEST), default=1.0,
                 help="Share of the restoration to add: 0 changes nothing, more than 1 exaggerates."),
    click.option("-ss", "--start", type=TimeType(),
                 help="Start of the part to restore: seconds or MM:SS from the first frame, as 90 or 1:30."),
    click.option("-t", "--duration", type=TimeType(), help="Length of the part to restore, as 5 or 1:30."),
    click.option("--to", type=TimeType(),
                 help="End of the part to restore: seconds or MM:SS from the first frame, as 90 or 1:30."),
    click.option("--frames", type=click.IntRange(1), help="Restore at most N frames."),
    click.option("--sample", is_flag=True,
                 help="Restore three short samples beside the input, and predict time and size of the complete run."),
    click.option("-c", "--codec", help="h264, hevc, av1, vp9, ffv1 or the name of an encoder.  [default: the input's]"),
    click.option("--crf", type=click.FloatRange(0), default=16.0,
                 help="Encoder quality: a lower number means better quality and a larger file."),
    click.option("--preset", default="medium",
                 help="Encoder speed, from ultrafast to veryslow; a slower preset makes a smaller file."),
    click.option("-e", "e", type=KeyValueType(), multiple=True,
                 help="Set an option of the encoder that ffmpeg -h encoder=NAME lists and that names no file; may be "
                      "repeated."),
    click.option("--pix-fmt", default="keep", help="Pixel format of the output, as yuv420p10le; keep: the input's."),
    click.option("--lossless", is_flag=True, help="Encode without loss: FFV1, in Matroska (.mkv)."),
    click.option("--no-audio", is_flag=True, help="Drop the sound."),
    click.option("--no-subtitles", is_flag=True, help="Drop the subtitles."),
    click.option("--deinterlace", type=click.Choice(["auto", "off", "on"]), default="auto",
                 help="Make interlaced frames progressive; auto: those that the input flags."),
    click.option("-f", "--format",
                 help="Container, as FFmpeg names it.  [default: from OUTPUT's suffix; y4m to a pipe]"),
    click.option("--suffix", help="Write each result beside its INPUT, with this added to its name; give no OUTPUT."),
    click.option("-y", "--overwrite", is_flag=True, help="Replace an existing output."),
    click.option("--skip-existing", is_flag=True, help="Skip inputs whose output exists."),
    click.option("-j", "--jobs", type=click.IntRange(1), default=1, help="Number of files to restore at once."),
    click.option("--resume/--no-resume", default=True, help="Continue an interrupted run."),
    click.option("--segment", type=click.FloatRange(0), default=10.0,
                 help="Seconds of video that are finished and kept together, for --resume; 0: the whole video as one "
                      "segment, so an interruption loses it."),
    click.option("--compare", type=click.Choice(COMPARE_MODES),
                 help="Also write a comparison of input and output: a video, or a page with sliders, written beside "
                      "OUTPUT as NAME_MODE."),
    click.option("--share", type=ShareType(),
                 help="Restore only share K of N, without OUTPUT; the same command without --share joins them."),
    click.option("--engine", type=click.Choice(["local", "ray"]), default="local",
                 help="Where to compute: on this machine, or on a Ray cluster, which divides the work."),
    click.option("--ray-address", help="Address of a running Ray cluster, or auto.  [default: start one here]"),
    click.option("--on-damage", type=click.Choice(["warn", "fail"]), default="warn",
                 help="If INPUT is damaged: warn only, or fail (exit code 7) after writing OUTPUT."),
    click.option("--strict", is_flag=True, help="Treat every warning as an error (exit code 7)."),
    click.option("--deterministic", is_flag=True, help="Write the same bytes each time on the same machine."),
    click.option("--profile", is_flag=True, help="Print the seconds of each stage, and the peak memory."),
    click.option("--dry-run", is_flag=True, help="Print what would happen, and stop."),
    JSON_EVENTS,
)  # fmt: skip


@click.command("run", short_help="Restore videos or folders of pictures.", context_settings={"show_default": True})
@click.argument(
    "paths", type=click.Path(allow_dash=True, readable=False), nargs=-1, required=True, metavar="INPUT... OUTPUT"
)
@run_options
def run_command(paths: tuple[str, ...], **given: Any) -> None:
    """Restore INPUT to OUTPUT: a video file, a folder of numbered pictures, or - for a pipe (y4m or nut).

    With several INPUTs, or a folder of videos, OUTPUT is a folder. Every frame keeps its own time; sound and other
    streams are copied; bit depth and colour stay as they are. OUTPUT appears complete or not at all. After an
    interruption, the same command continues.

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
        raise UsageError("--engine ray makes its own shares", "leave out --share")
    for option in ("sample", "profile"):
        if given[option]:
            raise UsageError(f"--{option} needs one process, and --engine ray has many", "leave out one of them")
    workers = given["jobs"] if given["jobs"] > 1 else None
    ask = question(given["json"])
    return ray_engine.run_jobs_on_ray(jobs, settings, workers, given["ray_address"], notify=notify, ask=ask, stop=stop)


def run_settings(given: dict[str, Any], output: str | None) -> "Settings":
    """Return the settings that the options ask for.

    Raises: UsageError if options exclude each other.
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
        segment=given["segment"] or None,
        threads=given["threads"],
        fail_on_damage=given["on_damage"] == "fail",
    )
