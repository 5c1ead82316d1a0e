"""`vdeblur bench`: how good models are on a data set, beside what was published; with --speed, how fast they are."""

from pathlib import Path
from typing import Any

import click

from vdeblur.cli.report import HumanReporter, JsonReporter, reported
from vdeblur.cli.speed import run_speed
from vdeblur.cli.terminal import question, show_table
from vdeblur.errors import UsageError

# The names stand here as well as in vdeblur.bench, since importing that takes seconds and --help must not wait; a test
# compares them.
PROTOCOLS = ("plain", "cdvd-tsp", "pvdnet", "dstnet", "estrnn", "vrt")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
HEADS = (
    "MODEL",
    "WEIGHTS",
    "PSNR",
    "SSIM-2D",
    "SSIM-3D",
    "PUBLISHED",
    "S/FRAME",
    "MEMORY",
    "PARAMETERS",
    "GMACS",
)
MORE_HEADS = ("MODEL", "WEIGHTS", "WARPING, 1E-3", "SHARPNESS")  # of a table of its own: the first is wide enough


class Names(click.ParamType):
    """Names with commas between them, of those that there are to choose from if they are given."""

    name = "names"

    def __init__(self, choices: tuple[str, ...] = ()) -> None:
        self.choices = choices

    def convert(
        self, value: str | tuple[str, ...], param: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, ...]:
        """Give each."""
        if isinstance(value, tuple):
            return value
        names = tuple(name.strip() for name in value.split(","))
        if not all(names):
            self.fail(f"{value!r} has an empty name", param, context)
        for name in names if self.choices else ():
            if name not in self.choices:
                self.fail(f"{name!r} is not one of {', '.join(self.choices)}", param, context)
        return names


@click.command(short_help="Measure models on a data set, beside published figures.")
@click.option("--dataset", metavar="NAME|DIR", help="gopro, dvd, bsd, reds, or a folder of blurry and sharp pictures.")
@click.option("--data", type=click.Path(path_type=Path), help="Where a copy of the named data set is.")
@click.option("--split", help="Part of the data set.  [default: test; of reds val]")
@click.option("-m", "--model", type=Names(), default="lite", show_default=True, help="NAME[@WEIGHTS],...")
@click.option("--protocol", type=click.Choice(PROTOCOLS), default="plain", show_default=True, help="Whose way it is.")
@click.option("--limit", type=click.IntRange(1), help="At most so many frames of each sequence.")
@click.option("--save", type=click.Path(path_type=Path), help="Keep the frames as DIR/MODEL/SEQUENCE/NAME.png.")
@click.option(
    "--report", type=click.Path(path_type=Path), multiple=True, help=".html, .md, .csv or .json file; may be repeated."
)
@click.option("--vmaf", is_flag=True, help="Measure VMAF, too, by ffmpeg's libvmaf.")
@click.option("-d", "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps or xpu.")
@click.option(
    "-p",
    "--precision",
    type=Names(PRECISIONS),
    default="auto",
    show_default=True,
    help="Of the networks, as for run; with --speed several, as fp32,bf16.",
)
@click.option("--yes", is_flag=True, help="Fetch unasked, even what has no published digest.")
@click.option("--offline", is_flag=True, help="Never use the network.")
@click.option("--json", is_flag=True, help="Write events as JSON lines to stdout; with --speed, the report.")
@click.option("--speed", is_flag=True, help="Measure how fast models are, on a clip of its own.")
@click.option("--size", default="1280x720", show_default=True, help="For --speed: WIDTHxHEIGHT of the clip, in pixels.")
@click.option(
    "--frames", type=click.IntRange(2), default=60, show_default=True, help="For --speed: length of the clip."
)
@click.option(
    "--repeats", type=click.IntRange(1), default=1, show_default=True, help="For --speed: medians of so many."
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path, exists=True),
    multiple=True,
    help="For --speed: script to compare with.",
)
def bench(
    dataset: str | None,
    data: Path | None,
    split: str | None,
    model: tuple[str, ...],
    protocol: str,
    limit: int | None,
    save: Path | None,
    report: tuple[Path, ...],
    vmaf: bool,
    device: str,
    precision: tuple[str, ...],
    yes: bool,
    offline: bool,
    json: bool,
    speed: bool,
    size: str,
    frames: int,
    repeats: int,
    reference: tuple[Path, ...],
) -> None:
    """Measure models on a data set: PSNR, SSIM, time, memory and size, beside what was published.

    Known sets are fetched where they are not there (bsd only by hand), a folder's layout is found by looking.
    Published figures are shown only where data set, protocol and weights are theirs. identity, which passes frames
    through, and FFmpeg's filters unsharp and cas are always measured, too. An interrupted bench goes on where it was.
    With --speed, measure instead how fast models are: the network alone, the whole run, and each of its stages.

    \b
    Examples:
      vdeblur bench --dataset gopro --model dstnet,lite --protocol dstnet --report gopro.html
      vdeblur bench --dataset my_pairs/ --model lite,nafnet-32 --limit 20 --save restored/
      vdeblur bench --speed --model lite,dstnet --precision fp32,bf16
    """
    reporter = JsonReporter() if json and not speed else HumanReporter()
    with reported(reporter, [dataset or "bench"]) as stop:
        if speed:
            if dataset is not None:
                raise UsageError("--speed needs no data set", "leave out --dataset, or --speed")
            if len(report) > 1:
                raise UsageError("--speed writes one report", "name one .json or .md file")
            one = report[0] if report else None
            run_speed(model, precision, size, frames, device, reference, repeats, one, json, stop)
            return
        if dataset is None:
            raise UsageError("there is nothing to measure", "name a data set or a folder: --dataset gopro, or --speed")
        if len(precision) > 1:
            raise UsageError("--precision takes several only with --speed", "choose one of them")
        from vdeblur.bench import evaluate
        from vdeblur.bench import report as reports
        from vdeblur.bench.results import BenchTask

        for path in report:
            reports.check_report(path)
        told = BenchTask(dataset, model, protocol, split, limit, data, save, vmaf, device, precision[0], yes, offline)

        def write(results: dict[str, Any]) -> None:
            for path in report:
                reports.write_report(results, path)

        results = evaluate.run_bench(told, notify=reporter.notify, ask=question(json), stop=stop, finish=write)
        if json:
            reporter.notify("report", reports.plain(results))
        else:
            reporter.close()
            _show(results)


def _show(results: dict[str, Any]) -> None:
    """Write the table, and the protocol below it."""
    heads: tuple[str, ...] = HEADS
    rows = [_row(model) for model in results["models"]]
    if any(model["vmaf"] is not None for model in results["models"]):
        heads = (*HEADS, "VMAF")
        rows = [(*row, _number(model["vmaf"], ".2f")) for row, model in zip(rows, results["models"], strict=True)]
    show_table(heads, rows)
    click.echo()
    show_table(MORE_HEADS, [_more_of(model) for model in results["models"]])
    about = results["dataset_details"]
    part = ", only a part of them" if about["known"] and not about["complete"] else ""
    click.echo(f"\n{results['dataset']} {about['split']} ({about['blur']}): {about['frames']} frames{part}")
    click.echo(f"protocol {results['protocol']}: {results['protocol_details']['description']}")
    for model in results["models"]:
        if about["complete"] and model["other_protocols"]:
            names = " or ".join(model["other_protocols"])
            click.echo(f"{model['model']}: figures were published by protocol {names}")
    if about["decoder"] != "exact":
        click.echo(f"JPEG decoder: {about['decoder']}")


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    published = model["published"]
    return (
        model["model"],
        model["weights"],
        _number(model["psnr"], ".2f"),
        _number(model["ssim_2d"], ".4f"),
        _number(model["ssim_3d"], ".4f"),
        _published(published) if published else "",
        _number(model["seconds_per_frame"], ".3g"),
        "" if model["peak_memory_bytes"] is None else f"{model['peak_memory_bytes'] / 1e6:.0f} MB",
        f"{model['params'] / 1e6:.2f} M" if model["params"] else "",
        f"{model['flops'] / 2e9:.1f}" if model["flops"] else "",
    )


def _more_of(model: dict[str, Any]) -> tuple[str, ...]:
    """Give how steady and how sharp a model's frames are."""
    warping = model["warping_error"]
    steady = _number(None if warping is None else 1e3 * warping, ".3f")
    return model["model"], model["weights"], steady, _number(model["sharpness"], ".3f")


def _published(score: dict[str, Any]) -> str:
    known = score["ssim"] is not None and score["ssim_kind"] not in ("", "not stated")
    return f"{score['psnr']:.2f}" + (f" / {score['ssim']:.4f} ({score['ssim_kind']})" if known else "")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
