"""`vdeblur bench`: measure the quality of models on a data set, or, with --speed, their speed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from vdeblur.cli.groups import GroupedCommand
from vdeblur.cli.printable import echo_line
from vdeblur.cli.report import HumanReporter, JsonReporter, Session, reported
from vdeblur.cli.speed import SPEED_OPTIONS, run_speed
from vdeblur.cli.terminal import question, show_table
from vdeblur.cli.types import DATASET, DEVICE, LIMIT, OFFLINE, THREADS, YES, NamesType, with_options
from vdeblur.errors import UsageError
from vdeblur.settings import PRECISIONS

if TYPE_CHECKING:
    from vdeblur.bench.results import BenchReport, ModelResult
    from vdeblur.models.registry import PublishedScore

# Named here as well as in vdeblur.measure, since importing that takes seconds and --help must not wait; a test
# compares them.
PROTOCOLS = ("plain", "cdvd-tsp", "pvdnet", "dstnet", "estrnn", "vrt", "turtle", "flow-rnn")
# The columns of bench/columns.py, shorter: a terminal is narrow, empty cells are blank, and a number has its unit.
HEADS = (
    "MODEL",
    "WEIGHTS",
    "PRECISION",
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

common_options = with_options(
    click.option(
        "-m", "--model", type=NamesType(), default="lite", show_default=True,
        help="Models to measure, NAME or NAME@WEIGHTS, separated by commas.",
    ),
    click.option(
        "--report", type=click.Path(path_type=Path), multiple=True,
        help="Write a report: .html, .md, .csv or .json; may be repeated. With --speed one .md or .json.",
    ),
    DEVICE,
    click.option(
        "-p", "--precision", type=NamesType(PRECISIONS), default="auto", show_default=True,
        help="Precision of the networks: auto, fp32, bf16, fp16. auto is fp32 for papers' protocols. With --speed "
        "several, as fp32,bf16.",
    ),
    THREADS,
    click.option(
        "--json", is_flag=True, help="Write events to stdout, one JSON object per line; with --speed, one report."
    ),
    click.option("--speed", is_flag=True, help="Measure speed on a generated clip, instead of quality on a data set."),
)  # fmt: skip
dataset_options = with_options(
    DATASET,
    click.option("--data", type=click.Path(path_type=Path), help="Folder that holds your copy of the data set."),
    click.option(
        "--split",
        help="Part of the data set; of dvd also qualitative, without sharp frames.  [default: test; val for reds]",
    ),
    click.option(
        "--protocol", type=click.Choice(PROTOCOLS), default="plain", show_default=True,
        help="The paper to measure like: it decides which frames and pixels count, and the kind of SSIM.",
    ),
    LIMIT,
    click.option(
        "--save", type=click.Path(path_type=Path), help="Folder for restored frames: DIR/MODEL/SEQUENCE/NAME.png."
    ),
    click.option(
        "--restored", type=click.Path(path_type=Path), multiple=True,
        help="Also measure restored pictures that exist, DIR/SEQUENCE/NAME.png; may be repeated. Without --model, they "
        "alone are measured.",
    ),
    click.option(
        "--flow", is_flag=True,
        help="Measure optical flow instead: the sharp previous frame, warped, against the sharp frame. Default models: "
        "those on this machine that estimate flow.",
    ),
    click.option("--vmaf", is_flag=True, help="Also measure VMAF, with the libvmaf of an installed ffmpeg."),
    YES,
    OFFLINE,
)  # fmt: skip
OF_DATASET = (
    "data",
    "split",
    "protocol",
    "limit",
    "save",
    "restored",
    "flow",
    "vmaf",
    "yes",
)  # --offline is none of them: --speed accepts it, since it never downloads
NOT_OF_FLOW = ("protocol", "save", "restored", "vmaf")  # PVDNet's protocol is part of the measure
OF_SPEED = ("size", "frames", "repeats", "reference")


BENCH_GROUPS = {
    "What to measure": ("model", "device", "precision", "threads"),
    "On a data set": ("dataset", *OF_DATASET, "offline"),
    "Speed": ("speed", *OF_SPEED),
    "Reports": ("report", "json"),
}


@click.command(
    "bench",
    cls=GroupedCommand,
    groups=BENCH_GROUPS,
    short_help="Measure models on a data set, beside published figures.",
)
@common_options
@dataset_options
@SPEED_OPTIONS
@click.pass_context
def bench_command(context: click.Context, /, speed: bool, json: bool, **given: Any) -> None:
    """Measure models on a data set: PSNR, SSIM, time, memory and size, beside published figures.

    vdeblur downloads known data sets, and recognises the layout of a folder. Published figures appear only
    where data set, protocol and weights are those of the paper. identity, which passes frames through, and FFmpeg's
    filters unsharp and cas are always measured, too, and with spn the ceiling ideal-luma: the sharp luma with the
    blurry colour. An interrupted bench continues where it stopped; --speed and --flow start again. With --speed,
    measure instead how fast models are: the network alone, the complete run, and each of its stages. With --flow,
    measure instead how well networks estimate motion, as in PVDNet's Table 1.

    \b
    Examples:
      vdeblur bench --dataset gopro --model dstnet,lite --protocol dstnet --report gopro.html
      vdeblur bench --dataset my_pairs/ --model lite,nafnet-32 --limit 20 --save restored/
      vdeblur bench --dataset dvd --protocol pvdnet --restored their_results/
      vdeblur bench --dataset gopro --flow --model pvdnet,cdvd-tsp,bimnet,pwc-net
      vdeblur bench --speed --model lite,dstnet --precision fp32,bf16
    """
    reporter = JsonReporter() if json and not speed else HumanReporter()
    with reported(reporter, [given["dataset"] or "bench"]) as session:
        _check_options(context, speed, given["dataset"])
        from vdeblur.restore import processor  # torch takes seconds to import; --help must not wait

        with processor.with_threads(given["threads"]):
            if speed:
                _measure_speed(given, json, session)
            else:
                if given.pop("flow"):
                    _measure_flow(context, given, json, reporter, session)
                    return
                if given["restored"] and context.get_parameter_source("model") is ParameterSource.DEFAULT:
                    given["model"] = ()
                _measure_quality(given, json, reporter, session)


def _check_options(context: click.Context, speed: bool, dataset: str | None) -> None:
    """Refuse options that have no effect here, unless a configuration file or the environment sets them.

    Raises: UsageError.
    """
    if speed and dataset is not None:
        raise UsageError("--speed needs no data set", "leave out --dataset, or --speed")
    for name in OF_DATASET if speed else OF_SPEED:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            goes, other = ("--dataset", "--speed") if speed else ("--speed", "--dataset")
            raise UsageError(f"--{name} goes with {goes}, not with {other}", f"leave out --{name}")
    if not speed and dataset is None:
        raise UsageError("there is nothing to measure", "name a data set or a folder: --dataset gopro, or --speed")


def _measure_speed(given: dict[str, Any], json: bool, session: Session) -> None:
    if len(given["report"]) > 1:
        raise UsageError("--speed writes one report", "name one .json or .md file")
    report = given["report"][0] if given["report"] else None
    from vdeblur.bench.speed_results import SpeedTask

    names = {"models": "model", "precisions": "precision", "references": "reference"}
    same = ("size", "frames", "device", "repeats")
    task = SpeedTask(**{field: given[option] for field, option in (*names.items(), *zip(same, same, strict=True))})
    run_speed(task, report, json, session)


def _measure_flow(
    context: click.Context, given: dict[str, Any], json: bool, reporter: JsonReporter | HumanReporter, session: Session
) -> None:
    """Measure optical flow, and write the table.

    Raises: UsageError for options that have no effect on it.
    """
    for name in NOT_OF_FLOW:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"--{name} does not go with --flow", f"leave out --{name}")
    if set(given["precision"]) - {"auto", "fp32"}:
        raise UsageError("--flow computes in fp32", "leave out --precision")
    from vdeblur.bench import flow, flow_report
    from vdeblur.bench.results import BenchTask

    is_default = context.get_parameter_source("model") is ParameterSource.DEFAULT
    names = ("dataset", "split", "limit", "data", "device", "yes", "offline")
    models = flow.cached_flow_models() if is_default else given["model"]
    task = BenchTask(models=models, **{name: given[name] for name in names})
    found = flow_report.run_flow_bench(task, given["report"], reporter.notify, question(json), session)
    if json:
        reporter.notify("report", found.to_json())
        return
    reporter.close()
    heads = ("MODEL", "WEIGHTS", *(kind.upper() for kind in flow.KINDS), "S/PAIR")
    rows = [
        (model, weights, *(f"{psnr} / {ssim}" for psnr, ssim in zip(cells[::2], cells[1::2], strict=True)), seconds)
        for model, weights, *cells, _, seconds in flow_report.flow_rows(found)
    ]
    show_table(heads, rows)
    click.echo()
    about = found.dataset
    echo_line(f"{about.title} {about.split} ({about.blur}): {about.sequences} sequences")
    click.echo(f"flow: {flow_report.flow_protocol()}")


def _measure_quality(
    given: dict[str, Any], json: bool, reporter: JsonReporter | HumanReporter, session: Session
) -> None:
    if len(given["precision"]) > 1:
        raise UsageError("--precision takes several only with --speed", "choose one of them")
    from vdeblur.bench import evaluate
    from vdeblur.bench import report as reports
    from vdeblur.bench.results import BenchReport, BenchTask

    for path in given["report"]:
        reports.check_report(path)
    names = ("dataset", "protocol", "split", "limit", "data", "save", "restored", "vmaf", "device", "yes", "offline")
    task = BenchTask(models=given["model"], precision=given["precision"][0], **{name: given[name] for name in names})

    def write(results: BenchReport) -> None:
        for path in given["report"]:
            reports.write_report(results, path)

    results = evaluate.run_bench(task, notify=reporter.notify, ask=question(json), stop=session, finish=write)
    if json:
        from vdeblur.bench.tenths import with_tenths

        reporter.notify("report", with_tenths(results))
    else:
        reporter.close()
        _show(results)


def _show(results: "BenchReport") -> None:
    """Write the table, and the protocol below it."""
    heads: tuple[str, ...] = HEADS
    rows = [_row(model) for model in results.models]
    if any(model.vmaf is not None for model in results.models):
        heads = (*HEADS, "VMAF")
        rows = [(*row, _number(model.vmaf, ".2f")) for row, model in zip(rows, results.models, strict=True)]
    show_table(heads, rows)
    click.echo()
    show_table(MORE_HEADS, [_more_of(model) for model in results.models])
    about = results.dataset
    part = ", only a part of them" if about.known and not about.complete else ""
    click.echo()
    echo_line(f"{about.title} {about.split} ({about.blur}): {about.frames} frames{part}")
    click.echo(f"protocol {results.protocol.name}: {results.protocol.description}")
    for model in results.models:
        if about.complete and model.other_protocols:
            echo_line(f"{model.model}: figures were published by protocol {' or '.join(model.other_protocols)}")
    for model in results.models:
        if model.published_time is not None:
            from vdeblur.bench.columns import time_conditions

            echo_line(f"{model.model}: {model.published_time.seconds:g} s/frame published ({time_conditions(model)})")
    for name, reason in results.missing:
        echo_line(f"{name} was not measured: {reason}")
    if about.decoder != "exact":
        click.echo(f"JPEG decoder: {about.decoder}")


def _row(model: "ModelResult") -> tuple[str, ...]:
    memory = model.peak_memory_bytes
    return (
        model.model,
        model.weights,
        model.precision,
        _number(model.quality.psnr, ".2f"),
        _number(model.quality.ssim_2d, ".4f"),
        _number(model.quality.ssim_3d, ".4f"),
        _published(model.published, model) if model.published else "",
        _number(model.seconds_per_frame, ".3g"),
        "" if memory is None else f"{memory / 1e6:.0f} MB",
        f"{model.params / 1e6:.2f} M" if model.params else "",
        f"{model.flops / 2e9:.1f}" if model.flops else "",
    )


def _more_of(model: "ModelResult") -> tuple[str, ...]:
    """Return how steady and how sharp a model's frames are."""
    warping = model.warping_error
    steady = _number(None if warping is None else 1e3 * warping, ".3f")
    return model.model, model.weights, steady, _number(model.sharpness, ".3f")


def _published(score: "PublishedScore", model: "ModelResult") -> str:
    known = score.ssim is not None and score.ssim_kind not in ("", "not stated")
    other = f" of @{model.published_of}" if model.published_of not in ("", model.weights) else ""
    return f"{score.psnr:.2f}" + (f" / {score.ssim:.4f} ({score.ssim_kind})" if known else "") + other


def _number(value: float | None, form: str) -> str:
    return "" if value is None or value != value else format(value, form)  # NaN: without sharp frames
