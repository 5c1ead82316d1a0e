"""`vdeblur synth`: make pairs of blurry and sharp clips from sharp footage."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from vdeblur.cli.groups import GroupedCommand
from vdeblur.cli.report import HumanReporter, JsonReporter, reported
from vdeblur.cli.types import JSON_EVENTS, FiniteType, NoiseType, RangeType, SizeType, with_options
from vdeblur.errors import UsageError

# As in vdeblur.synth, whose import takes seconds.
WAYS = ("gopro", "dvd", "camera", "random")
# Options that only some ways use.
BELONGING = {
    "average": ("gopro", "dvd"),
    "stride": ("gopro", "dvd"),
    "steps": ("dvd",),
    "duty": ("gopro", "dvd", "camera"),
    "blur": ("gopro", "dvd", "camera"),
    "scale": ("gopro", "dvd"),
    "speed": ("camera",),
    "noise": ("gopro", "dvd", "camera"),
    "compress": ("gopro", "dvd", "camera"),
}
FRAMES = {"gopro": 100, "dvd": 100, "camera": 7, "random": 7}


SYNTH_GROUPS = {
    "Blur": ("way", "average", "duty", "stride", "steps", "blur", "speed", "noise", "compress"),
    "Sequences": ("frames", "clips", "size", "scale", "test_share", "split", "seed"),
    "Work and reports": ("preview", "overwrite", "resume", "jobs", "dry_run", "json"),
}


@click.command(
    "synth",
    cls=GroupedCommand,
    groups=SYNTH_GROUPS,
    short_help="Make pairs of blurry and sharp clips to train on.",
    context_settings={"show_default": True},
)
@click.argument("paths", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="SHARP... OUT_DIR")
@with_options(
    click.option("--way", type=click.Choice(WAYS), default="gopro", help="How the blur is made, see above."),
    click.option("--average", type=RangeType(int, 1, 999), default="7..13",
                 help="gopro, dvd: sharp frames per blurry frame, odd; a range draws one value per sequence."),
    click.option("--duty", type=RangeType(float, 0.01, 1), default="1",
                 help="Share of the frame interval in which the shutter is open; a range draws one value per "
                      "sequence."),
    click.option("--stride", type=click.IntRange(1),
                 help="gopro, dvd: sharp frames from one blurry frame to the next.  [default: --average]"),
    click.option("--steps", type=click.IntRange(1), default=8, help="dvd: cross-fade steps from frame to frame."),
    click.option("--blur", type=click.Choice(["blur", "blur_gamma", "both"]), default="both",
                 help="Average the frames as they are (blur), with gamma 2.2 undone (blur_gamma), or write both."),
    click.option("--frames", type=click.IntRange(1), help="Frames per sequence.  [default: 100; camera, random: 7]"),
    click.option("--clips", type=click.IntRange(1),
                 help="Sequences per source; random: in all.  [default: as many as fit; camera: 1; random: 1000]"),
    click.option("--size", type=SizeType(),
                 help="Shrink frames to cover WxH pixels, and crop the middle.  "
                      "[default: unchanged; camera, random: 160]"),
    click.option("--scale", type=FiniteType(0, 1, min_open=True), default=1.0,
                 help="gopro, dvd: factor by which to shrink frames, as 0.5."),
    click.option("--speed", type=RangeType(float, 0.1, 100), default="2..20",
                 help="camera: speed of the camera, in pixels per frame."),
    click.option("--noise", type=NoiseType(), default="0",
                 help="Noise in blurry frames: standard deviations of read noise and shot noise, on a scale of 255."),
    click.option("--compress", type=RangeType(int, 0, 51),
                 help="Compress blurry frames with H.264 at this CRF; a range draws one value per sequence."),
    click.option("--test-share", type=FiniteType(0, 1), default=0.1,
                 help="Share of the sources that becomes the test split, chosen by a hash of their names."),
    click.option("--split", type=click.Choice(["train", "test"]), help="Make only this split."),
    click.option("--seed", type=click.IntRange(0), default=0, help="Seed of everything random."),
    click.option("--preview", type=click.Path(path_type=Path),
                 help="Also write a PNG of some pairs, blurry above sharp."),
    click.option("-y", "--overwrite", is_flag=True, help="Replace what synth made in OUT_DIR, and the preview."),
    click.option("--resume/--no-resume", default=True, help="Continue an interrupted run."),
    click.option("-j", "--jobs", type=click.IntRange(1), default=1, help="Number of processes."),
    click.option("--dry-run", is_flag=True, help="Print what would happen, and stop."),
    JSON_EVENTS,
)  # fmt: skip
@click.pass_context
def synth_command(context: click.Context, /, paths: tuple[Path, ...], **given: Any) -> None:
    """Make pairs of blurry and sharp clips for training: OUT_DIR/{train,test}/SEQUENCE/{blur,blur_gamma,sharp}.

    SHARP is videos, folders of numbered frames or, for camera and random, photographs. OUT_DIR has the layout of GoPro;
    bench and train take it as --dataset.

    \b
    gopro   the average of consecutive frames; the middle one is the sharp frame;
            needs 120 to 240 frames per second, or a --scale at which little moves
    dvd     the same, with cross-faded frames in between, for lower frame rates;
            ghosts appear if more than a pixel moves from frame to frame
    camera  a camera moves over photographs on random paths
    random  the mixture that lite learns from: photographs with moving
            foregrounds, videos, noise, compression

    \b
    Examples:
      vdeblur synth slowmotion/*.mp4 pairs/ --scale 0.5 --preview pairs.png
      vdeblur synth photos/ pairs/ --way camera --frames 20 --size 256 --noise 1/1.5
    """
    reporter = JsonReporter() if given["json"] else HumanReporter()
    with reported(reporter, [str(path) for path in paths[:-1]]) as stop:
        if len(paths) < 2:
            raise UsageError("there is no OUT_DIR", "name it last")
        way = given["way"]
        for name, ways in BELONGING.items():
            chosen = context.get_parameter_source(name) not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
            if chosen and way not in ways:
                raise UsageError(
                    f"--way {way} does not use --{name}", f"only {', '.join(ways)} {'does' if len(ways) == 1 else 'do'}"
                )
        from vdeblur.synth import make, sequences

        same = ("way", "average", "duty", "stride", "steps", "blur", "clips", "size", "scale", "speed", "noise")
        options = sequences.Options(
            **{name: given[name] for name in (*same, "test_share", "split", "seed")},
            crf=given["compress"],
            frames=given["frames"] or FRAMES[way],
        )
        make.make_pairs(
            list(paths[:-1]),
            paths[-1],
            options,
            **{name: given[name] for name in ("overwrite", "resume", "preview", "jobs", "dry_run")},
            notify=reporter.notify,
            stop=stop,
        )
