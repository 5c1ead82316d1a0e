"""A speed report as a file or as tables."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from vdeblur.bench import report
from vdeblur.bench.columns import versions_line
from vdeblur.bench.speed_results import ModelSpeed, ReferenceSpeed, SpeedReport

KINDS = (".json", ".md")

Show = Callable[[ModelSpeed], str]  # a cell of a table


def check_speed_report(path: Path) -> None:
    """Refuse a path that no report can be written to, before the long work begins.

    Raises: UsageError, OutputError.
    """
    report.check_report(path, KINDS, "a report of speed")


def write_speed_report(results: SpeedReport, path: Path) -> None:
    """Write the report as JSON, or as tables to paste into a README.

    Raises: UsageError, OutputError.
    """
    check_speed_report(path)
    is_text = path.suffix.lower() == ".md"
    report.write_text(speed_as_markdown(results) if is_text else json.dumps(results.to_json(), indent=1) + "\n", path)


def speed_as_markdown(results: SpeedReport) -> str:
    """Return the tables that the terminal shows."""
    titled = (f"{title}:\n\n{report.markdown_table(heads, rows)}" for title, heads, rows in tables(results))
    return "\n\n".join([report.markdown_text(summary(results)), *titled]) + "\n"


def summary(results: SpeedReport) -> str:
    """Return in one line what was measured, and where."""
    return (
        f"{results.frames} frames of {results.size} on {results.device} ({results.device_name}, "
        f"{results.threads} threads), after {results.warm_up_frames} to warm up, "
        f"median of {results.repeats}; {versions_line(results.versions)}"
    )


def tables(results: SpeedReport) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield the tables: title, heads and rows."""
    groups = {
        "Frames per second": RATES,
        "Network time per frame, and peak memory": COSTS,
        "Milliseconds per frame in each stage": {stage: _stage(stage) for stage in results.models[0].stages},
        "Speed relative to the references": {
            f"{reference.name} ({reference.seconds_per_frame:.3g} s)": _reference_ratio(reference)
            for reference in results.references
        },
    }
    for title, columns in groups.items():
        if columns:
            rows = [[show(model) for show in (NAMES | columns).values()] for model in results.models]
            yield title, [*NAMES, *columns], rows


def _short(number: float) -> str:
    """Return three digits, or all before the point."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _megabytes(number: int | None) -> str:
    return "-" if number is None else f"{number / 1e6:.0f}"


def _stage(name: str) -> Show:
    return lambda model: _short(1000 * model.stages[name])


def _reference_ratio(reference: ReferenceSpeed) -> Show:
    return lambda model: f"{model.reference_ratios[reference.name]:.2f}"


# Columns of the tables: head, and cell of a model.
NAMES: dict[str, Show] = {
    "model": lambda model: model.model + ("" if model.trained else " (untrained weights)"),
    "precision": lambda model: model.precision,
}
RATES: dict[str, Show] = {
    "network": lambda model: _short(model.network_fps),
    "ratio": lambda model: f"{model.ratio:.2f}",
    "run": lambda model: _short(model.pipeline_fps),
    "of what its parts allow": lambda model: f"{model.share:.2f}",
    "decoder": lambda model: _short(model.decoder_fps),
    "encoder": lambda model: _short(model.encoder_fps),
}
COSTS: dict[str, Show] = {
    "median, ms": lambda model: _short(1000 * model.network_seconds.median),
    "95 %, ms": lambda model: _short(1000 * model.network_seconds.p95),
    "CPU, ms": lambda model: _short(1000 * model.network_cpu_seconds),
    "GFLOP": lambda model: "-" if model.flops is None else _short(model.flops / 1e9),
    "parameters, M": lambda model: f"{model.params / 1e6:.2f}",
    "network, MB": lambda model: _megabytes(model.network_memory_bytes),
    "run, MB": lambda model: _megabytes(model.peak_memory_bytes),
    "run on the device, MB": lambda model: _megabytes(model.peak_device_memory_bytes),
}
