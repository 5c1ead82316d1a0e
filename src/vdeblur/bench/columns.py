"""The parts that all reports of a bench share: names of models, columns of tables, and the facts above them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from vdeblur.bench.results import BenchReport, ModelResult, SequenceResult
from vdeblur.bench.tenths import mean_psnr, tenths_of

UNKNOWN = "-"


def ranked(report: BenchReport) -> list[ModelResult]:
    """Return the models, the best PSNR first."""
    return sorted(report.models, key=lambda model: model.quality.psnr, reverse=True)


def label(model: ModelResult, models: list[ModelResult]) -> str:
    """Return a model's name; with its weights or precision where another model differs only in these."""
    twins = [other for other in models if other.model == model.model]
    name = model.model
    if model.weights and len({other.weights for other in twins}) > 1:
        name = f"{name}@{model.weights}"
    if model.precision and len({other.precision for other in twins}) > 1:
        name = f"{name} {model.precision}"
    return name


def format_number(value: float | None, form: str) -> str:
    """Return a number as text: "-" for None and NaN, "∞" for infinity."""
    if value is None or math.isnan(value):
        return UNKNOWN
    return format(value, form) if math.isfinite(value) else "∞"


@dataclass(frozen=True)
class Column:
    """One number of a model. form: its format. best: which value is printed bold, max or min, None for none."""

    head: str
    form: str
    value: Callable[[ModelResult], float | None]
    best: Callable[..., float] | None = None

    def show(self, model: ModelResult) -> str:
        """Return the number as text."""
        return format_number(self.value(model), self.form)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


COLUMNS = (
    Column("PSNR, dB", ".2f", lambda model: model.quality.psnr, max),
    Column("SSIM (2D)", ".4f", lambda model: model.quality.ssim_2d, max),
    Column("SSIM (3D)", ".4f", lambda model: model.quality.ssim_3d, max),
    Column("published PSNR, dB", ".2f", lambda model: model.published.psnr if model.published else None),
    Column("published SSIM", ".4f", lambda model: model.published.ssim if model.published else None),
    Column("VMAF", ".2f", lambda model: model.vmaf, max),
    Column("warping error, 10⁻³", ".3f", lambda model: _scaled(model.warping_error, 1e3), min),
    Column("sharpness", ".3f", lambda model: model.sharpness),
    Column("frames", ".0f", lambda model: model.frames),
    Column("s/frame", ".3g", lambda model: model.seconds_per_frame),
    Column("published s/frame", ".3g", lambda model: model.published_time.seconds if model.published_time else None),
    Column("peak memory, MB", ".0f", lambda model: _scaled(model.peak_memory_bytes, 1e-6)),
    Column("parameters, M", ".2f", lambda model: model.params * 1e-6),
    Column("GFLOP/frame", ".1f", lambda model: _scaled(model.flops, 1e-9)),
)


def known_columns(models: list[ModelResult]) -> list[Column]:
    """Return the columns in which at least one model has a number."""
    return [column for column in COLUMNS if any(column.value(model) is not None for model in models)]


@dataclass(frozen=True)
class Measure:
    """One score of a sequence."""

    name: str
    form: str
    value: Callable[[SequenceResult], float | None]


MEASURES = {
    "psnr": Measure("PSNR, dB", ".2f", lambda sequence: sequence.quality.psnr),
    "ssim_2d": Measure("SSIM (2D)", ".4f", lambda sequence: sequence.quality.ssim_2d),
    "ssim_3d": Measure("SSIM (3D)", ".4f", lambda sequence: sequence.quality.ssim_3d),
}


def sequence_rows(models: list[ModelResult], measure: Measure) -> list[tuple[str, str, list[str]]]:
    """Return for each sequence its name, its number of frames, and the score of each model as text."""
    names = dict.fromkeys(sequence.name for model in models for sequence in model.sequences)
    by_model = [{sequence.name: sequence for sequence in model.sequences} for model in models]
    rows = []
    for name in names:
        frames = next(len(sequences[name].frames) for sequences in by_model if name in sequences)
        cells = [
            format_number(measure.value(sequences[name]) if name in sequences else None, measure.form)
            for sequences in by_model
        ]
        rows.append((name, str(frames), cells))
    return rows


def tenth_rows(models: list[ModelResult]) -> list[tuple[str, str, list[str]]]:
    """Return for the sharpest and blurriest tenth of each sequence its name, number of frames, and PSNRs as text.

    Without sharp frames there are no rows.
    """
    by_model = [{sequence.name: sequence for sequence in model.sequences} for model in models]
    rows: list[tuple[str, str, list[str]]] = []
    if all(math.isnan(model.quality.psnr) for model in models):
        return rows
    for name, found in tenths_of(models).items():
        for kind, names in (("sharpest", found.sharpest), ("blurriest", found.blurriest)):
            cells = [format_number(mean_psnr(sequences[name], names), ".2f") for sequences in by_model]
            rows.append((f"{name}, {kind}", str(len(names)), cells))
    return rows


def report_facts(report: BenchReport) -> dict[str, str]:
    """Return what was measured, how, and on what: without it no score means anything."""
    data, protocol = report.dataset, report.protocol
    frames = max((model.frames for model in report.models), default=0)
    part = "" if data.complete or not data.known else ", only part of the set"
    return {
        "Protocol": f"{protocol.name}: {protocol.description}",
        "Data": f"{data.split}, {data.blur}, {data.sequences} sequences, {frames} frames counted{part}",
        "Layout": data.layout,
        "Decoder of pictures": data.decoder,
        "Device": f"{report.device} ({report.device_name})",
        "Precision": report.precision,
        "Versions": versions_line(report.versions),
    }


def versions_line(versions: dict[str, str]) -> str:
    """Return the names and versions of packages in one line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


SOURCE_HEADS = ["model", "weights", "precision", "SHA-256 of the weights", "published with", "published time"]


def time_conditions(model: ModelResult) -> str:
    """Return what a model's published time was measured on; empty if there is none."""
    time = model.published_time
    return "" if time is None else ", ".join(filter(None, (time.size, time.device, time.source)))


def source_cells(model: ModelResult) -> list[str]:
    """Return the cells below SOURCE_HEADS, without the model's name."""
    protocol = ""
    if model.published is not None:
        kind = model.published.ssim_kind
        other = f"of @{model.published_of}" if model.published_of not in ("", model.weights) else ""
        protocol = ", ".join(filter(None, (other, model.published.protocol, kind and f"SSIM {kind}")))
    facts = (model.weights, model.precision, model.weights_sha256, protocol, time_conditions(model))
    return [fact or UNKNOWN for fact in facts]
