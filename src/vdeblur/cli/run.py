"""`vdeblur run`: restore videos and folders of pictures."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from vdeblur.cli.groups import GroupedCommand
from vdeblur.cli.report import ErrorReporter, HumanReporter, JsonReporter, Reporter, Session, reported
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
from vdeblur.errors import InputError, UsageError
from vdeblur.settings import COMPARE_MODES, DEFAULT_CRF, PRECISIONS, STRONGEST

if TYPE_CHECKING:
    from vdeblur.run.batch import Outcome
    from vdeblur.run.jobs import RunJob
    from vdeblur.settings import Settings

run_options = with_options(
    click.option("-m", "--model", default="lite",
                 help="NAME or NAME@WEIGHTS, as vdeblur models list shows; auto: chosen by footage and machine, with "
                      "its strength; best: the strongest that finishes within an hour and downloads without a question "
                      "(--yes allows the others); FILE.py:CLASS: your own network."),
    click.option("--weights", type=PATH,
                 help="Checkpoint for the model: .safetensors, .pt, .pth, .pytorch or .caffemodel."),
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
    click.option("--guard/--no-guard", default=None,
                 help="Keep the input in blocks of a frame in which the network clearly failed.  [default: on, but off "
                      "with --weights]"),
    click.option("--region", metavar="WxH+X+Y",
                 help="Restore only this part of the upright picture, in pixels: width, height, left, top."),
    click.option("--mask", type=PATH,
                 help="Restore only where this picture is white, partly where it is grey; it must have the upright "
                      "picture's size."),
    click.option("--only-blurred/--no-only-blurred", default=None,
                 help="Restore only frames that are blurred, smoothly over time; sharp ones pass unchanged.  "
                      "[default: by the model]"),
    click.option("-ss", "--start", type=TimeType(),
                 help="Start of the part to restore: seconds or MM:SS from the first frame, as 90 or 1:30."),
    click.option("-t", "--duration", type=TimeType(), help="Length of the part to restore, as 5 or 1:30."),
    click.option("--to", "-to", type=TimeType(),
                 help="End of the part to restore: seconds or MM:SS from the first frame, as 90 or 1:30."),
    click.option("--frames", type=click.IntRange(1), help="Restore at most N frames."),
    click.option("--sample", is_flag=True,
                 help="Restore three short samples beside the input, and predict time and size of the complete run; "
                      "with -m auto and an .html OUTPUT, show the candidates on the blurriest second."),
    click.option("--sample-seconds", type=TimeType(), default="2", help="Length of each sample."),
    click.option("-c", "--codec",
                 help="h264, hevc, av1, vp9, ffv1, x265 or another usual name, or FFmpeg's name of an encoder.  "
                      "[default: the input's]"),
    click.option("--crf", type=click.FloatRange(0), default=DEFAULT_CRF,
                 help="Encoder quality: a lower number means better quality and a larger file."),
    click.option("--bitrate", help="Bits per second instead of --crf, as 8M or 800k; sets the size of the file."),
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
    click.option("--pictures", is_flag=True,
                 help="Write pictures, into the folder OUTPUT. A pattern such as dir/%06d.png asks for them, too."),
    click.option("-y/-n", "--overwrite/--no-overwrite", default=False,
                 help="Replace an existing output, or refuse to."),
    click.option("--skip-existing", is_flag=True, help="Skip inputs whose output exists."),
    click.option("--recursive", is_flag=True,
                 help="Take the folders within INPUT folders, too; OUTPUT repeats their tree. Beside videos, pictures "
                      "are left out."),
    click.option("--files-from", metavar="FILE",
                 help="Read more INPUTs from a file, a name per line; - reads standard input."),
    click.option("--log", type=PATH,
                 help="Add a line for each file to a CSV file: settings, model, digest of its weights, frames, "
                      "warnings, seconds."),
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
    click.option("--dry-run", is_flag=True, help="Print the plan, with estimates of time and size; write nothing."),
    click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
    click.option("-v", "--verbose", is_flag=True, help="Print every decision with its reason."),
    JSON_EVENTS,
)  # fmt: skip
RUN_GROUPS = {
    "Inputs and outputs": (
        *("pictures", "suffix", "recursive", "files_from", "overwrite", "skip_existing", "compare", "log", "format"),
    ),
    "Part of the video": ("start", "duration", "to", "frames", "sample", "sample_seconds"),
    "Restoration": (
        *("model", "weights", "yes", "offline", "strength", "only_blurred", "guard", "region", "mask"),
        *("scene_detect", "deinterlace"),
        *("device", "precision", "threads", "tile", "tile_overlap", "deterministic"),
    ),
    "Encoding": (
        *("codec", "crf", "bitrate", "preset", "e", "pix_fmt", "lossless", "no_audio", "no_subtitles"),
    ),
    "Work": ("jobs", "resume", "segment", "share", "engine", "ray_address"),
    "Reports": ("dry_run", "on_damage", "strict", "profile", "quiet", "verbose", "json"),
}  # fmt: skip
RANKS = {ParameterSource.COMMANDLINE: 3, ParameterSource.ENVIRONMENT: 2, ParameterSource.DEFAULT_MAP: 1}


@click.command(
    "run",
    cls=GroupedCommand,
    groups=RUN_GROUPS,
    short_help="Restore videos or folders of pictures.",
    context_settings={"show_default": True},
)
@click.argument("paths", type=click.Path(allow_dash=True, readable=False), nargs=-1, metavar="INPUT... OUTPUT")
@run_options
@click.pass_context
def run_command(context: click.Context, /, paths: tuple[str, ...], **given: Any) -> None:
    """Restore INPUT to OUTPUT: a video file, a folder of numbered pictures, or - for a pipe (y4m or nut).

    OUTPUT is a file, or a folder, which exists or ends in /: there a video keeps its name. With several INPUTs, or a
    folder of videos, it is a folder. A folder of pictures becomes a folder of pictures; a video does with --pictures.
    Every frame keeps its own time; sound and other streams are copied; bit depth and colour stay as they are. OUTPUT
    appears complete or not at all. After an interruption, the same command continues.

    \b
    Examples:
      vdeblur run shaky.mp4 sharp.mp4
      vdeblur run drone.mov preview.mp4 -ss 1:30 -t 5 --strength 0.8
      vdeblur run clips/ sharp/ --skip-existing -j 2
      vdeblur run clip.mp4 frames/%06d.png
    """
    if not paths and given["files_from"] is None:
        raise click.MissingParameter(ctx=context, param=context.command.params[0])
    reporter = _reporter(given)
    has_output = given["suffix"] is None
    with reported(reporter, list(paths[:-1] if has_output else paths)) as session:
        _settle_quality(context, given)
        if has_output and not paths:
            raise UsageError("there is no OUTPUT", "name it last, or use --suffix _sharp")
        inputs, output = (paths[:-1], paths[-1]) if has_output else (paths, None)
        if given["files_from"] is not None:
            inputs = (*inputs, *_read_names(given["files_from"]))
        if not inputs:
            raise UsageError("there is no OUTPUT", "name it last, or use --suffix _sharp")
        if given["json"] and output == "-":
            raise UsageError("--json and a video cannot both go to standard output", "leave out --json")
        from vdeblur.run import batch, jobs, run_log  # torch and av take seconds to import; --help must not wait

        settings = run_settings(given)
        planned = jobs.plan_jobs(inputs, output, given["suffix"], settings, recursive=given["recursive"])
        if given["engine"] == "ray":
            if given["log"] is not None:
                raise UsageError("--log needs --engine local", "leave out one of them")
            left = batch.without_existing(planned, reporter.notify) if given["skip_existing"] else planned
            outcomes = _run_by_ray(left, settings, given, reporter.notify, session)
        else:
            log = None if given["log"] is None or given["dry_run"] else run_log.RunLog(given["log"])
            outcomes = batch.run_jobs(
                planned,
                settings,
                given["jobs"],
                skip_existing=given["skip_existing"],
                log=log,
                notify=reporter.notify,
                ask=question(given["json"]),
                stop=session,
            )
        session.files_failed = sum(outcome.error is not None for outcome in outcomes)
        session.files_ok = sum(outcome.result is not None for outcome in outcomes)
        batch.check_outcomes(outcomes)


def _reporter(given: dict[str, Any]) -> Reporter:
    """Return the reporter that --json, --quiet and --verbose ask for."""
    if given["json"]:
        return JsonReporter()
    return ErrorReporter() if given["quiet"] else HumanReporter(verbose=given["verbose"])


def _settle_quality(context: click.Context, given: dict[str, Any]) -> None:
    """Let a bitrate replace a --crf that comes from a file or the environment, and the other way round.

    Raises: UsageError if both come from the same place.
    """

    def rank(name: str) -> int:
        source = context.get_parameter_source(name)
        return 0 if source is None else RANKS.get(source, 0)

    has_rate_option = any(name in ("b", "b:v") for name, _ in given["e"])
    rates = {"--bitrate": rank("bitrate"), "-e b": rank("e") if has_rate_option else 0}
    name, strongest = max(rates.items(), key=lambda item: item[1])
    crf = rank("crf")
    if not crf or not strongest:
        return
    if crf == strongest:
        raise UsageError(f"--crf and {name} both choose the quality", "give one of them")
    if crf < strongest:
        given["crf"] = DEFAULT_CRF
        return
    given["bitrate"] = None
    given["e"] = tuple(option for option in given["e"] if option[0] not in ("b", "b:v"))


def _read_names(place: str) -> list[str]:
    """Return the names in a file, one per line; of standard input for -.

    Raises: InputError if it cannot be read or is empty.
    """
    try:
        data = sys.stdin.buffer.read() if place == "-" else Path(place).read_bytes()
    except OSError as error:
        raise InputError(f"--files-from {place} cannot be read: {error.strerror}", "check the path") from error
    names = [os.fsdecode(line.rstrip(b"\r")) for line in data.split(b"\n")]
    names = [name for name in names if name.strip()]
    if not names:
        raise InputError(f"--files-from {place} names no file", "write one name per line")
    return names


def _run_by_ray(
    jobs: "list[RunJob]", settings: "Settings", given: dict[str, Any], notify: Callable[..., None], stop: Session
) -> "list[Outcome]":
    from vdeblur.run import batch, ray_engine

    if given["share"] is not None:
        raise UsageError("--engine ray makes its own shares", "leave out --share")
    for option in ("sample", "profile"):
        if given[option]:
            raise UsageError(f"--{option} needs one process, and --engine ray has many", "leave out one of them")
    workers = given["jobs"] if given["jobs"] > 1 else None
    ask = question(given["json"])
    for job in jobs:
        batch.make_folder(job, settings)
    return ray_engine.run_jobs_on_ray(jobs, settings, workers, given["ray_address"], notify=notify, ask=ask, stop=stop)


def run_settings(given: dict[str, Any]) -> "Settings":
    """Return the settings that the options ask for.

    Raises: UsageError if options exclude each other.
    """
    start, duration, to = given["start"], given["duration"], given["to"]
    if duration is not None and to is not None:
        raise UsageError("-t and --to exclude each other", "give one of them")
    stop_at = to if duration is None else (start or 0) + duration
    if stop_at is not None and stop_at <= (start or 0):
        raise UsageError("the part asked for is empty", "-t must be above 0, and --to lie after -ss")
    from vdeblur.settings import Cut, EncodeOptions, Settings

    of_encoder = ("codec", "crf", "bitrate", "preset", "pix_fmt", "lossless", "overwrite", "format", "deinterlace")
    encoding = EncodeOptions(
        **{name: given[name] for name in of_encoder},
        options=given["e"],
        audio=not given["no_audio"],
        subtitles=not given["no_subtitles"],
    )
    names = ["model", "yes", "offline", "device", "precision", "tile", "tile_overlap", "scene_detect", "strength"]
    names += ["guard", "region", "mask"]
    names += ["resume", "share", "deterministic", "strict", "dry_run", "profile", "compare", "sample"]
    names += ["sample_seconds", "pictures", "only_blurred"]
    return Settings(
        **{name: given[name] for name in names},
        checkpoint=given["weights"],
        cut=Cut(start, stop_at, given["frames"]),
        encoding=encoding,
        segment=given["segment"] or None,
        threads=given["threads"],
        fail_on_damage=given["on_damage"] == "fail",
    )
