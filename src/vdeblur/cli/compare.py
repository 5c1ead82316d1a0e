"""`vdeblur compare`: show or measure two videos against each other."""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vdeblur.cli.report import HumanReporter, reported
from vdeblur.events import ignore
from vdeblur.settings import COMPARE_MODES

if TYPE_CHECKING:
    from vdeblur.look.compare import Likeness


@click.command("compare", short_help="Show two videos together, or measure how similar they are.")
@click.argument("a", type=click.Path(path_type=Path), metavar="A")
@click.argument("b", type=click.Path(path_type=Path), metavar="B")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write.  [default: B's name with _MODE added]"
)
@click.option(
    "--mode",
    type=click.Choice(COMPARE_MODES),
    help="side: A left, B right; split: half of each; wipe: half of each, with a moving divide; diff: the difference "
    "around grey; html: a page with a slider.  [default: side; html for an .html output]",
)
@click.option(
    "--metrics",
    is_flag=True,
    help="Print PSNR and SSIM of every frame and their means; without -o or --mode, write nothing.",
)
@click.option("-y", "--overwrite", is_flag=True, help="Replace an existing output.")
def compare_command(a: Path, b: Path, output: Path | None, mode: str | None, metrics: bool, overwrite: bool) -> None:
    """Compare A, for example the blurry video, with B, the restored one; both may be folders of pictures.

    Frames are matched by their times. The comparison keeps A's times, colour and sound.

    \b
    Examples:
      vdeblur compare shaky.mp4 sharp.mp4 --mode wipe -o wipe.mp4
      vdeblur compare truth.mp4 sharp.mp4 --metrics
    """
    reporter = HumanReporter()
    with reported(reporter, [str(a)]) as stop:
        from vdeblur.look import compare as comparing  # torch and av take seconds; --help must not wait

        if metrics:
            _show_likeness(comparing.measure_likeness(a, b, notify=reporter.notify, stop=stop))
        if output is None and mode is None and metrics:
            return
        mode = mode or ("html" if output is not None and output.suffix.lower() in (".html", ".htm") else "side")
        output = output or _name_for(a, b, mode)
        begun = time.monotonic()
        notify = ignore if metrics else reporter.notify  # which has shown the same warnings
        frames = comparing.write_comparison(a, b, output, mode, overwrite=overwrite, notify=notify, stop=stop)
        seconds = time.monotonic() - begun
        facts = {"input": str(a), "output": os.path.abspath(output), "frames": frames}
        reporter.notify("file_done", {**facts, "seconds": seconds, "fps": frames / seconds})


def _name_for(a: Path, b: Path, mode: str) -> Path:
    """Return a name in the working folder: B's, with the mode added."""
    suffix = ".html" if mode == "html" else ".mp4" if a.is_dir() else a.suffix
    return Path(f"{b.resolve().name if b.is_dir() else b.stem}_{mode}{suffix}")


def _show_likeness(rows: Iterable["Likeness"]) -> None:
    psnr: list[float] = []
    ssim: list[float] = []
    click.echo("frame     time  PSNR dB    SSIM")
    for index, row in enumerate(rows):
        psnr.append(row.psnr)
        ssim += [] if row.ssim is None else [row.ssim]
        shown = "-" if row.ssim is None else f"{row.ssim:.4f}"
        click.echo(f"{index:5} {row.seconds:8.3f}  {row.psnr:7.2f}  {shown:>6}")
    mean = f"{sum(ssim) / len(ssim):.4f}" if ssim else "-"
    click.echo(f"mean of {len(psnr)} frames  {sum(psnr) / len(psnr):.2f} dB  {mean}")
