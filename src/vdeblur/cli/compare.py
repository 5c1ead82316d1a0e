"""`vdeblur compare`: show or measure two videos against each other."""

import math
import os
import time
from collections.abc import Iterable
from fractions import Fraction
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vdeblur.cli.report import HumanReporter, reported
from vdeblur.cli.types import NamesType, TimeType
from vdeblur.errors import UsageError
from vdeblur.events import ignore
from vdeblur.settings import COMPARE_MODES

if TYPE_CHECKING:
    from vdeblur.look.compare import Likeness


PROFILE = "profile"


class OffsetType(click.ParamType):
    """Seconds, which may be negative, or auto."""

    name = "seconds|auto"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Fraction | None:
        """Return the seconds; None for auto."""
        if value == "auto" or isinstance(value, Fraction):
            return None if value == "auto" else value
        text = str(value)
        try:
            seconds = TimeType().convert(text.removeprefix("-"), param, context)
        except click.BadParameter:
            self.fail(f"{text!r} is neither seconds, as 4.5, nor auto", param, context)
        return -seconds if text.startswith("-") else seconds


@click.command("compare", short_help="Show two videos together, or measure how similar they are.")
@click.argument("a", type=click.Path(path_type=Path), metavar="A")
@click.argument("b", type=click.Path(path_type=Path), metavar="B")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write.  [default: B's name with _MODE added]"
)
@click.option(
    "--mode",
    type=click.Choice((*COMPARE_MODES, PROFILE)),
    help="side: A left, B right; split: half of each; wipe: half of each, with a moving divide; diff: the difference "
    "around grey; html: a page with a slider; profile: a PNG of one row or column of pixels over time, of both.  "
    "[default: side; html for an .html output]",
)
@click.option("--row", type=click.IntRange(0), help="Row of pixels of a profile.  [default: the middle one]")
@click.option("--column", type=click.IntRange(0), help="Column of pixels of a profile, instead of a row.")
@click.option(
    "--truth", type=click.Path(path_type=Path), metavar="FILE", help="Sharp video that a profile shows below A and B."
)
@click.option(
    "--metrics",
    is_flag=True,
    help="Print PSNR and SSIM of every frame and their means; without -o or --mode, write nothing.",
)
@click.option(
    "--offset",
    type=OffsetType(),
    default="auto",
    show_default=True,
    help="Seconds from A's first frame to B's if B is an excerpt of A, negative if A is one of B; auto: find it.",
)
@click.option("--labels", type=NamesType(), metavar="A,B", help="Write these two names over the pictures of A and B.")
@click.option("--json", is_flag=True, help="Print one JSON object, with the numbers of --metrics for every frame.")
@click.option("-y", "--overwrite", is_flag=True, help="Replace an existing output.")
def compare_command(a: Path, b: Path, **given: Any) -> None:
    """Compare A, for example the blurry video, with B, the restored one; both may be folders of pictures.

    Frames are matched by their times; of an excerpt, vdeblur finds the place in the longer video. The comparison keeps
    A's times, colour and sound.

    \b
    Examples:
      vdeblur compare shaky.mp4 sharp.mp4 --mode wipe -o wipe.mp4
      vdeblur compare truth.mp4 sharp.mp4 --metrics
    """
    reporter = HumanReporter()
    with reported(reporter, [str(a)]) as stop:
        output, mode, measures = given["output"], given["mode"], given["metrics"] or given["json"]
        labels = given["labels"]
        if labels is not None and len(labels) != 2:
            raise UsageError(f"--labels {','.join(labels)} are not two names", "write --labels blurry,restored")
        mode = _mode_of(mode, output, given, writes=output is not None or mode is not None or not measures)
        from vdeblur.look import compare as comparing  # torch and av take seconds; --help must not wait

        offset = comparing.searched_offset(a, b, reporter.notify) if given["offset"] is None else given["offset"]
        facts: dict[str, Any] = {"v": 1, "a": str(a), "b": str(b), "offset": float(offset)}
        if measures:
            likeness = comparing.measure_likeness(a, b, offset=offset, notify=reporter.notify, stop=stop)
            facts |= _likeness_facts(likeness, shown=not given["json"])
        if mode is not None:
            output = output or _name_for(a, b, mode)
            begun = time.monotonic()
            notify = ignore if measures else reporter.notify  # which has shown the same warnings
            options: dict[str, Any] = {"overwrite": given["overwrite"], "offset": offset, "labels": labels}
            if mode == PROFILE:
                from vdeblur.look import slices

                line = slices.Line(given["row"], given["column"])
                frames = slices.write_profile(
                    a, b, output, line, truth=given["truth"], **options, notify=notify, stop=stop
                )
            else:
                frames = comparing.write_comparison(a, b, output, mode, **options, notify=notify, stop=stop)
            seconds = time.monotonic() - begun
            facts |= {"output": os.path.abspath(output), "mode": mode, "frames": frames}
            done = {"input": str(a), "output": facts["output"], "frames": frames}
            reporter.notify("file_done", {**done, "seconds": seconds, "fps": frames / seconds})
        if given["json"]:
            click.echo(dumps(facts))


def _mode_of(mode: str | None, output: Path | None, given: dict[str, Any], *, writes: bool) -> str | None:
    """Return the mode of the comparison; None: nothing is written.

    Raises: UsageError for options of a profile in another mode.
    """
    of_profile = [f"--{name}" for name in ("row", "column", "truth") if given[name] is not None]
    if of_profile and mode not in (None, PROFILE):
        raise UsageError(f"{' and '.join(of_profile)} belong to --mode profile, not {mode}", "leave them out")
    if of_profile:
        return PROFILE
    if mode is None and writes:
        return "html" if output is not None and output.suffix.lower() in (".html", ".htm") else "side"
    return mode


def _name_for(a: Path, b: Path, mode: str) -> Path:
    """Return a name in the working folder: B's, with the mode added."""
    suffix = {"html": ".html", PROFILE: ".png"}.get(mode) or (".mp4" if a.is_dir() else a.suffix)
    return Path(f"{b.resolve().name if b.is_dir() else b.stem}_{mode}{suffix}")


def _likeness_facts(rows: Iterable["Likeness"], *, shown: bool) -> dict[str, Any]:
    """Return the numbers of every frame and their means; infinite PSNR is None. shown: print them as well."""
    psnr: list[float] = []
    ssim: list[float] = []
    frames: list[dict[str, Any]] = []
    if shown:
        click.echo("frame     time  PSNR dB    SSIM")
    for index, row in enumerate(rows):
        psnr.append(row.psnr)
        ssim += [] if row.ssim is None else [row.ssim]
        frames.append({"frame": index, "seconds": row.seconds, "psnr": _finite(row.psnr), "ssim": row.ssim})
        if shown:
            likeness = "-" if row.ssim is None else f"{row.ssim:.4f}"
            click.echo(f"{index:5} {row.seconds:8.3f}  {row.psnr:7.2f}  {likeness:>6}")
    means = (sum(psnr) / len(psnr), sum(ssim) / len(ssim) if ssim else None)
    if shown:
        mean = "-" if means[1] is None else f"{means[1]:.4f}"
        click.echo(f"mean of {len(psnr)} frames  {means[0]:.2f} dB  {mean}")
    return {"frames": len(psnr), "psnr": _finite(means[0]), "ssim": means[1], "per_frame": frames}


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
