"""`vdeblur inspect`: show what happens inside a network."""

import os
import time
from json import dumps
from pathlib import Path
from typing import Any

import click

from vdeblur.cli.groups import GroupedCommand
from vdeblur.cli.report import HumanReporter, reported
from vdeblur.cli.terminal import question
from vdeblur.cli.types import DEVICE, OFFLINE, PATH, YES, NamesType, TimeType, with_options
from vdeblur.errors import UsageError
from vdeblur.settings import PRECISIONS, Cut

GROUPS = {
    "Model": ("model", "weights", "yes", "offline", "device", "precision"),
    "Frames": ("at", "start", "duration", "to", "frames", "every"),
    "Output": ("output", "show", "overwrite", "json"),
}


@click.command("inspect", cls=GroupedCommand, groups=GROUPS, short_help="Show what happens inside a network.")
@click.argument("clip", type=PATH, metavar="CLIP")
@with_options(
    click.option("-m", "--model", default="lite", show_default=True, help="Model, see vdeblur models list."),
    click.option("--weights", type=PATH, help="Checkpoint to use instead of the model's own weights."),
    YES,
    OFFLINE,
    DEVICE,
    click.option("-p", "--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True,
                 help="Precision of the network."),
    click.option("--at", type=TimeType(), multiple=True,
                 help="Show the frame that is visible at this time; may be repeated.  [default: the middle frame]"),
    click.option("-ss", "--start", type=TimeType(), help="Show a part of the clip: its begin, as for run."),
    click.option("-t", "--duration", type=TimeType(), help="Length of the part."),
    click.option("--to", "-to", type=TimeType(), help="End of the part."),
    click.option("--frames", type=click.IntRange(1), help="Take at most N frames of the part."),
    click.option("--every", type=click.IntRange(1), help="Show every Nth frame of the part.  [default: 1]"),
    click.option("-o", "--output", type=PATH, required=True, metavar="DIR", help="Folder for pictures and arrays."),
    click.option("--show", type=NamesType(), metavar="NAME,...",
                 help="What to show, as flow,warp,prior; a name that the model lacks lists those that it has.  "
                      "[default: all]"),
    click.option("-y", "--overwrite", is_flag=True, help="Write into a folder that is not empty."),
    click.option("--json", is_flag=True, help="Print the index of the files as one JSON object."),
)  # fmt: skip
def inspect_command(clip: Path, **given: Any) -> None:
    """Write what a network computes on its way to a restored frame: flow, warped frames, gates, features, states.

    DIR gets a folder for each frame with a picture (PNG) and an array (NumPy's .npy) of everything, and index.json,
    which names shapes, units and ranges. The network sees the frames around each, as in run.

    \b
    Examples:
      vdeblur inspect shaky.mp4 -m cdvd-tsp --at 1.5 -o insides --show flow,prior,stage1
      vdeblur inspect frames/ -m lite -ss 2 -t 1 --every 5 -o insides
    """
    reporter = HumanReporter()
    with reported(reporter, [str(clip)]) as stop:
        choice = _choice(given)
        if given["model"] in ("auto", "best"):
            raise UsageError(f"-m {given['model']} is chosen for a run", "name the model to inspect")
        from vdeblur.look import insides, moments  # torch takes seconds; --help must not wait
        from vdeblur.models.model import Model

        begun = time.monotonic()
        model = Model.load(
            given["model"], weights=given["weights"], device=given["device"], precision=given["precision"],
            offline=given["offline"], yes=given["yes"], notify=reporter.notify, ask=question(False), should_stop=stop,
        )  # fmt: skip
        index = insides.write_insides(
            clip, given["output"], model, moments.FrameChoice(*choice), given["show"], overwrite=given["overwrite"],
            notify=reporter.notify, stop=stop,
        )  # fmt: skip
        frames, seconds = len(index["frames"]), time.monotonic() - begun
        done = {"input": str(clip), "output": os.path.abspath(given["output"]), "frames": frames}
        reporter.notify("file_done", {**done, "seconds": seconds, "fps": frames / seconds})
        if given["json"]:
            click.echo(dumps(index))


def _choice(given: dict[str, Any]) -> tuple[tuple[Any, ...], Cut | None, int]:
    """Return times, part and step of the frames to show.

    Raises: UsageError for options that exclude each other, and for an empty part.
    """
    names = {"start": "-ss", "duration": "-t", "to": "--to", "frames": "--frames", "every": "--every"}
    of_part = [names[name] for name in names if given[name] is not None]
    if given["at"] and of_part:
        raise UsageError(f"--at chooses single frames, {' and '.join(of_part)} a part", "leave out one of them")
    if not of_part:
        return given["at"], None, 1
    start, stop_at, duration = given["start"], given["to"], given["duration"]
    if stop_at is not None and duration is not None:
        raise UsageError("-t and --to both end the part", "leave out one of them")
    if duration is not None:
        stop_at = (start or 0) + duration
    return (), Cut(start, stop_at, given["frames"]), given["every"] or 1
