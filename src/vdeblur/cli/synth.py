"""`vdeblur synth`: sharp footage to pairs of blurry and sharp clips."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from vdeblur.cli.report import HumanReporter, JsonReporter, reported
from vdeblur.errors import UsageError

# As in vdeblur.train, importing which takes seconds.
WAYS = ("gopro", "dvd", "camera", "random")
# Options that only some ways have a use for.
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


class RangeType(click.ParamType):
    """A number, or LOW..HIGH."""

    name = "n|low..high"

    def __init__(self, kind: type, least: float, most: float) -> None:
        self.kind, self.least, self.most = kind, least, most

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[float, float]:
        """Give lowest and highest."""
        if isinstance(value, tuple):
            return value
        low, dots, high = str(value).partition("..")
        try:
            ends = (self.kind(low), self.kind(high if dots else low))
        except ValueError:
            self.fail(f"{value!r} is neither a number nor LOW..HIGH", param, context)
        if not self.least <= ends[0] <= ends[1] <= self.most:
            self.fail(f"{value!r} does not lie within {self.least}..{self.most}, lowest first", param, context)
        return ends


class NoiseType(click.ParamType):
    """READ, or READ/SHOT."""

    name = "read[/shot]"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[float, float]:
        """Give both."""
        if isinstance(value, tuple):
            return value
        read, _, shot = str(value).partition("/")
        try:
            both = (float(read), float(shot or 0))
        except ValueError:
            self.fail(f"{value!r} is not READ or READ/SHOT, as 1.5/2", param, context)
        if not all(0 <= part <= 255 for part in both):
            self.fail(f"{value!r} does not lie within 0..255", param, context)
        return both


class SizeType(click.ParamType):
    """WxH, or N for NxN."""

    name = "wxh"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[int, int]:
        """Give both."""
        if isinstance(value, tuple):
            return value
        width, _, height = str(value).partition("x")
        if not (width.isdigit() and (height or width).isdigit() and int(width) and int(height or width)):
            self.fail(f"{value!r} is not WIDTHxHEIGHT, as 640x360, or N", param, context)
        return int(width), int(height or width)


def _path() -> click.Path:
    return click.Path(path_type=Path)


@click.command(short_help="Make pairs of blurry and sharp clips to train on.", context_settings={"show_default": True})
@click.argument("paths", type=_path(), nargs=-1, required=True, metavar="SHARP... OUT_DIR")
@click.option("--way", type=click.Choice(WAYS), default="gopro", help="How blur comes about, see above.")
@click.option(
    "--average",
    type=RangeType(int, 1, 999),
    default="7..13",
    help="gopro, dvd: frames in a blurry one, odd; N, or drawn for each sequence.",
)
@click.option(
    "--duty",
    type=RangeType(float, 0.01, 1),
    default="1",
    help="Share of that, the frame interval, that the shutter is open; X, or drawn for each sequence.",
)
@click.option(
    "--stride", type=click.IntRange(1), help="Frames from one blurry frame to the next.  [default: --average]"
)
@click.option("--steps", type=click.IntRange(1), default=8, help="dvd: cross-fades from frame to frame.")
@click.option(
    "--blur",
    type=click.Choice(["blur", "blur_gamma", "both"]),
    default="both",
    help="Plain means, means after gamma 2.2 is undone, or both.",
)
@click.option("--frames", type=click.IntRange(1), help="Of a sequence.  [default: 100; camera, random: 7]")
@click.option(
    "--clips",
    type=click.IntRange(1),
    help="Sequences of a source; of random, of all.  [default: what there is; camera: 1; random: 1000]",
)
@click.option(
    "--size",
    type=SizeType(),
    help="Reduce frames to cover WxH, and cut out the middle.  [default: as they are; camera, random: 160]",
)
@click.option("--scale", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Reduce frames, say by 0.5.")
@click.option("--speed", type=RangeType(float, 0.1, 100), default="2..20", help="camera: pixels from frame to frame.")
@click.option(
    "--noise", type=NoiseType(), default="0", help="Deviation in blurry frames, of 255: of reading, of light."
)
@click.option("--compress", type=RangeType(int, 0, 51), help="H.264 at this CRF, or one drawn, on blurry frames.")
@click.option("--test-share", type=click.FloatRange(0, 1), default=0.1, help="Of the sources, by their names.")
@click.option("--split", type=click.Choice(["train", "test"]), help="Make only this part.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of all that is drawn.")
@click.option("--preview", type=_path(), help="Also write a PNG of some pairs, blurry above sharp.")
@click.option("-y", "--overwrite", is_flag=True, help="Replace what synth made in OUT_DIR, and the preview.")
@click.option("--resume/--no-resume", default=True, help="Go on with what an interrupted run has finished.")
@click.option("-j", "--jobs", type=click.IntRange(1), default=1, help="Processes.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")
@click.option("--json", is_flag=True, help="Write events as JSON lines to stdout.")
@click.pass_context
def synth(context: click.Context, /, paths: tuple[Path, ...], **given: Any) -> None:
    """Make pairs of blurry and sharp clips of SHARP, for training: OUT_DIR/{train,test}/SEQUENCE/{blur,sharp}.

    SHARP is videos, folders of numbered frames or, for camera and random, photographs. OUT_DIR is laid out as GoPro is,
    and bench and train take it as --dataset.

    \b
    gopro   neighbours are averaged, their middle one is sharp; wants 120 to 240
            frames a second, or a --scale at which little moves between two
    dvd     the same, with cross-fades in between: for lower frame rates; where
            more than a pixel moves between two, ghosts remain in the blur
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
                raise UsageError(f"--way {way} has no use for --{name}", f"it is for {', '.join(ways)}")
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
