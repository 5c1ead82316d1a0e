"""`vdeblur still`: the sharpest picture of one moment of a video."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import click

from vdeblur.cli.groups import GroupedCommand
from vdeblur.cli.report import ErrorReporter, HumanReporter, JsonReporter, Reporter, reported
from vdeblur.cli.terminal import question
from vdeblur.cli.types import DEVICE, JSON_EVENTS, OFFLINE, PATH, THREADS, YES, TimeType, with_options
from vdeblur.settings import PRECISIONS, STRONGEST

GROUPS = {
    "Picture": ("at", "output", "overwrite", "neighbours"),
    "Restoration": (
        *("model", "weights", "yes", "offline", "strength", "guard", "scene_detect", "deinterlace"),
        *("device", "precision", "threads", "tile", "tile_overlap"),
    ),
    "Reports": ("quiet", "json"),
}


@click.command(
    "still",
    cls=GroupedCommand,
    groups=GROUPS,
    short_help="Write the sharpest picture of one moment.",
    context_settings={"show_default": True},
)
@click.argument("clip", type=PATH, metavar="CLIP")
@with_options(
    click.option("--at", type=TimeType(), required=True, help="Time of the frame, as 4.5 or 1:30."),
    click.option("-o", "--output", type=PATH, required=True,
                 help="Picture to write: PNG or TIFF, with 16 bits where CLIP has more than 8."),
    click.option("-y/-n", "--overwrite/--no-overwrite", default=False,
                 help="Replace an existing output, or refuse to."),
    click.option("--neighbours", type=click.IntRange(0, 16), default=3,
                 help="Frames before and after the moment to combine with it; 0: the frame alone, as run restores it."),
    click.option("-m", "--model", default="lite", help="NAME or NAME@WEIGHTS, as for run."),
    click.option("--weights", type=PATH, help="Checkpoint for the model, as for run."),
    YES,
    OFFLINE,
    click.option("--strength", type=click.FloatRange(0, STRONGEST), default=1.0,
                 help="Share of the restoration to add."),
    click.option("--guard/--no-guard", default=None,
                 help="Keep the input in blocks of a frame in which the network clearly failed.  [default: on, but off "
                      "with --weights]"),
    click.option("--scene-detect/--no-scene-detect", default=True,
                 help="Detect cuts, and never mix frames of two scenes."),
    click.option("--deinterlace", type=click.Choice(["auto", "off", "on"]), default="auto",
                 help="Make interlaced frames progressive; auto: those that the input flags."),
    DEVICE,
    click.option("-p", "--precision", type=click.Choice(PRECISIONS), default="auto", help="Precision of the network."),
    THREADS,
    click.option("--tile", default="auto", help="Largest piece of a frame for the network, in pixels, as for run."),
    click.option("--tile-overlap", type=click.IntRange(0),
                 help="Pixels that neighbouring tiles share.  [default: the model's]"),
    click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
    JSON_EVENTS,
)  # fmt: skip
def still_command(clip: Path, at: Fraction, output: Path, neighbours: int, **given: Any) -> None:
    """Write the sharpest picture of one moment of CLIP: its frame, restored, with detail from the frames around it.

    The neighbouring frames are restored, too, moved onto the frame, and add detail where they show a place sharper and
    otherwise alike. The picture is upright, in CLIP's depth and colours.

    \b
    Examples:
      vdeblur still shaky.mp4 --at 4.5 -o plate.png
      vdeblur still drone.mov --at 1:30 -m dstnet -o house.tiff
    """
    reporter = _reporter(given)
    with reported(reporter, [str(clip)]) as session:
        from vdeblur.run import still  # torch and av take seconds; --help must not wait
        from vdeblur.settings import EncodeOptions, Settings

        names = ["model", "yes", "offline", "device", "precision", "threads", "tile", "tile_overlap", "scene_detect",
                 "strength", "guard"]  # fmt: skip
        settings = Settings(
            **{name: given[name] for name in names},
            checkpoint=given["weights"],
            encoding=EncodeOptions(overwrite=given["overwrite"], deinterlace=given["deinterlace"]),
        )
        still.write_still(
            clip, output, at, settings,
            neighbours=neighbours, notify=reporter.notify, ask=question(given["json"]), stop=session,
        )  # fmt: skip


def _reporter(given: dict[str, Any]) -> Reporter:
    if given["json"]:
        return JsonReporter()
    return ErrorReporter() if given["quiet"] else HumanReporter()
