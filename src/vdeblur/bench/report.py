"""Results of a bench as files: a page for people, tables for a README, lines for a spreadsheet, JSON for programs.

`results` is what `vdeblur bench` writes as JSON (see the README). Two keys are only for the page: `pictures`, a list of
{"model", "weights", "sequence", "frame", "kind", "blurry", "restored", "sharp"} where kind is "worst" or "best" and the
last three are paths of picture files that may be gone later, and `per_frame` in sequences.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy

from vdeblur.bench import charts
from vdeblur.bench.baselines import BASELINES
from vdeblur.errors import OutputError, UsageError
from vdeblur.look.page import page_html, picture_uri, slider_html
from vdeblur.source.pictures import read_picture

CROP = (240, 320)  # lines and columns of the pictures on the page
BLURRY = "identity"  # the model that returns what it gets: what is to be gained on
GRAY = (BLURRY, *BASELINES)  # no networks
UNKNOWN = "-"

Results = dict[str, Any]


def write_report(results: Results, path: Path) -> None:
    """Write a report of the kind that the name's suffix says.

    Raises: UsageError for a suffix that is not among KINDS, OutputError where the file cannot be written.
    """
    check_report(path)
    write_text(KINDS[path.suffix.lower()](results), path)


def write_text(text: str, path: Path) -> None:
    """Write a report that is made.

    Raises: OutputError where that cannot be.
    """
    try:
        path.write_text(text, "utf-8", newline="")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}", "check the folder") from error


def check_report(path: Path, kinds: Iterable[str] = (), what: str = "a report") -> None:
    """Refuse a report that cannot be written, before the long work begins; raises as write does.

    kinds: suffixes to choose from, those of KINDS if none are given. what: its name in the message.
    """
    kinds = tuple(kinds or KINDS)
    if path.suffix.lower() not in kinds:
        raise UsageError(f"{what} cannot be of the kind {path.suffix!r}", f"name it {' or '.join(kinds)}")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"the folder {path.absolute().parent} does not exist", "make it, or choose another")


def as_json(results: Results) -> str:
    """Give results as JSON; what is no finite number (PSNR of frames that are equal) becomes null."""
    return json.dumps(plain(_lasting(results)), indent=1, allow_nan=False) + "\n"


def _lasting(results: Results) -> Results:
    """Leave out the pictures: paths of this machine, of files that are gone when a bench is through."""
    return {key: value for key, value in results.items() if key != "pictures"}


def as_csv(results: Results) -> str:
    """Give a line for each model and sequence."""
    text = io.StringIO()
    heads = ["dataset", "protocol", "device", "versions", "model", "weights", "weights_sha256", "precision"]
    measures = ["frames", "psnr", "ssim_2d", "ssim_3d", "warping_error", "vmaf", "seconds_per_frame"]
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([*heads, "sequence", *measures])
    for model in results["models"]:
        facts = {**results, **model, "versions": _versions(results)}  # a model may have a precision of its own
        for sequence in model["sequences"]:
            named = [facts.get(head) for head in heads]
            lines.writerow([*named, sequence["name"], *(sequence.get(measure) for measure in measures)])
    return text.getvalue()


def results_as_markdown(results: Results) -> str:
    """Give tables to paste into a README."""
    models = _ranked(results)
    columns = [column for column in COLUMNS if any(column.value(model) is not None for model in models)]
    parts = [
        f"**{results['dataset']}**",
        "\n".join(f"- {key}: {fact}" for key, fact in _facts(results).items()),
        markdown_table(
            ["model", *(column.head for column in columns)],
            [[_name(model, models), *(column.show(model) for column in columns)] for model in models],
        ),
        "PSNR in dB by sequence:",
        markdown_table(
            ["sequence", "frames", *(_name(model, models) for model in models)],
            [[name, frames, *cells] for name, frames, cells in _by_sequence(models, "psnr")],
        ),
        "What was measured:",
        markdown_table(SOURCE_HEADS, [[_name(model, models), *_source(model)] for model in models]),
    ]
    return "\n\n".join(parts) + "\n"


def markdown_table(heads: list[str], rows: list[list[str]]) -> str:
    """Give a table with names on the left and figures on the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def as_html(results: Results) -> str:
    """Give a page that stands alone."""
    models = _ranked(results)
    title = f"{results['dataset']}: {len(models)} models"
    parts = [
        _header(results),
        _bars(models),
        _scatters(models),
        _model_table(models),
        _sequence_tables(models),
        _pictures(results.get("pictures", []), models),
        _sources(models),
    ]
    return page_html(f"vdeblur bench: {title}", "\n".join(parts), plain(_lasting(results)))


KINDS: dict[str, Callable[[Results], str]] = {
    ".html": as_html,
    ".md": results_as_markdown,
    ".csv": as_csv,
    ".json": as_json,
}


@dataclass(frozen=True)
class Column:
    """A figure of a model: its key in the results, its head, and how it is shown.

    best: which one is printed bold, max or min, or None. scale: what the number is multiplied by.
    """

    key: str
    head: str
    form: str
    best: Callable[..., float] | None = None
    scale: float = 1.0

    def value(self, model: Results) -> float | None:
        """Give the number, None where there is none."""
        number = model.get(self.key)
        return None if number is None else float(number) * self.scale

    def show(self, model: Results) -> str:
        """Give it as text."""
        return _number(self.value(model), self.form)


COLUMNS = (
    Column("psnr", "PSNR, dB", ".2f", max),
    Column("ssim_2d", "SSIM (2D)", ".4f", max),
    Column("ssim_3d", "SSIM (3D)", ".4f", max),
    Column("published_psnr", "published PSNR, dB", ".2f"),
    Column("published_ssim", "published SSIM", ".4f"),
    Column("vmaf", "VMAF", ".2f", max),
    Column("warping_error", "warping error, 10⁻³", ".3f", min, 1e3),
    Column("sharpness", "sharpness", ".3f"),
    Column("frames", "frames", ".0f"),
    Column("seconds_per_frame", "s/frame", ".3g"),
    Column("peak_memory_bytes", "peak memory, MB", ".0f", None, 1e-6),
    Column("params", "parameters, M", ".2f", None, 1e-6),
    Column("flops", "GFLOP/frame", ".1f", None, 1e-9),
)


def _ranked(results: Results) -> list[Results]:
    """Give the models, best PSNR first, with their published figures as columns of their own."""
    models = []
    for model in results["models"]:
        published = model.get("published") or {}
        models.append({**model, "published_psnr": published.get("psnr"), "published_ssim": published.get("ssim")})
    return sorted(models, key=lambda model: -math.inf if model.get("psnr") is None else model["psnr"], reverse=True)


def _name(model: Results, models: list[Results]) -> str:
    """Name a model, with its weights where others of the same name have others."""
    twins = [other for other in models if other["model"] == model["model"]]
    several = len({other.get("weights") for other in twins}) > 1
    name = f"{model['model']}@{model['weights']}" if several and model.get("weights") else str(model["model"])
    precise = len({other.get("precision") for other in twins}) > 1
    return f"{name} {model['precision']}" if precise and model.get("precision") else name


def _facts(results: Results) -> dict[str, str]:
    """Say what was measured, how, and on what, without which no figure means anything."""
    frames = max((model["frames"] for model in results["models"]), default=0)
    data, protocol = results["dataset_details"], results["protocol_details"]
    part = "" if data["complete"] or not data["known"] else ", only a part of the set"
    return {
        "Protocol": f"{results['protocol']}: {protocol['description']}",
        "Data": f"{data['split']}, {data['blur']}, {data['sequences']} sequences, {frames} frames counted{part}",
        "Layout": data["layout"],
        "Decoder of pictures": data["decoder"],
        "Device": f"{results['device']} ({results['device_name']})",
        "Precision": results["precision"],
        "Versions": _versions(results),
    }


def _header(results: Results) -> str:
    items = "".join(f"<div><dt>{key}</dt><dd>{escape(fact)}</dd></div>" for key, fact in _facts(results).items())
    return (
        f"<header><h1>Deblurring on {escape(results['dataset'])}</h1>"
        f'<p class="quiet">Measured by vdeblur bench. Figures of different protocols cannot be compared.</p>'
        f'<dl class="facts">{items}</dl></header>'
    )


def _bars(models: list[Results]) -> str:
    """Give PSNR as bars: what is gained over the blurry frames, where these were measured, too."""
    measured = [model for model in models if _finite(model.get("psnr"))]
    blurry = next((model["psnr"] for model in measured if model["model"] == BLURRY), None)
    base = blurry or 0.0
    lengths = [model["psnr"] - base for model in measured]
    marks = [model["published_psnr"] - base for model in measured if _finite(model["published_psnr"])]
    low, high = min([0.0, *lengths, *marks]), max([0.0, *lengths, *marks])
    extent = (high - low) or 1.0

    def place(value: float) -> float:
        return float(round((value - low) / extent * 100, 3))

    items = []
    for model, length in zip(measured, lengths, strict=True):
        left, right = sorted((place(0), place(length)))
        gain = "" if blurry is None else f" ({length:+.2f})"
        published = ""
        if _finite(model["published_psnr"]):
            at = place(model["published_psnr"] - base)
            published = f'<span class="published" style="left:{at}%" title="published"></span>'
        items.append(
            f'<li{_baseline(model)}><span class="name">{escape(_name(model, models))}</span>'
            f'<span class="track"><span class="bar" style="left:{left}%;width:{right - left:.3f}%"></span>'
            f'<span class="zero" style="left:{place(0)}%"></span>{published}</span>'
            f'<span class="value">{model["psnr"]:.2f} dB{gain}</span></li>'
        )
    meaning = "gained over the blurry frames" if blurry is not None else "from 0 dB"
    note = '<span class="key"><span class="swatch mark"></span>as published</span>' if marks else ""
    return f'<section><h2>PSNR {meaning}</h2>{_key(note)}<ol class="bars">{"".join(items)}</ol></section>'


def _key(more: str = "") -> str:
    return (
        '<p class="quiet"><span class="key"><span class="swatch"></span>network</span>'
        f'<span class="key"><span class="swatch baseline"></span>baseline</span>{more}</p>'
    )


def _baseline(model: Results) -> str:
    return ' class="baseline"' if model["model"] in GRAY else ""


def _scatters(models: list[Results]) -> str:
    """Give PSNR against time and against parameters."""
    drawn = []
    for key, axis, scale in (
        ("seconds_per_frame", "seconds per frame", 1.0),
        ("params", "parameters, in millions", 1e-6),
    ):
        points = [
            charts.Point(_name(model, models), model[key] * scale, model["psnr"], model["model"] in GRAY)
            for model in models
            if _finite(model.get(key)) and _finite(model.get("psnr"))
        ]
        if points:
            drawn.append(f'<figure class="chart">{charts.scatter(points, axis, "PSNR, dB")}</figure>')
    if not drawn:
        return ""
    return f'<section><h2>What a decibel costs</h2>{_key()}<div class="charts">{"".join(drawn)}</div></section>'


def _model_table(models: list[Results]) -> str:
    columns = [column for column in COLUMNS if any(column.value(model) is not None for model in models)]
    rows = []
    for model in models:
        cells = []
        for column in columns:
            values = [value for value in map(column.value, models) if value is not None]
            best = column.best is not None and len(models) > 1 and column.value(model) == column.best(values)
            emphasis = ' class="best"' if best else ""
            cells.append(f"<td{emphasis}>{column.show(model)}</td>")
        rows.append(f'<tr><th scope="row">{escape(_name(model, models))}</th>{"".join(cells)}</tr>')
    heads = ["model", *(column.head for column in columns)]
    return f"<section><h2>Models</h2>{_table('All sequences', heads, rows, 'models')}</section>"


def _table(caption: str, heads: list[str], rows: list[str], name: str, kind: str = "figures") -> str:
    """Give a table that scrolls sideways where it has to. kind: "figures", or "texts", which stand on the left."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0">'
        f'<table id="{name}" class="{kind}"><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _sequence_tables(models: list[Results]) -> str:
    """Give a table per measure, of which buttons show one."""
    measures = {"psnr": "PSNR, dB", "ssim_2d": "SSIM (2D)", "ssim_3d": "SSIM (3D)"}
    buttons, tables = [], []
    heads = ["sequence", "frames", *(_name(model, models) for model in models)]
    for index, (key, name) in enumerate(measures.items()):
        checked = "" if index else " checked"
        buttons.append(
            f'<input type="radio" name="measure" id="show-{key}"{checked}><label for="show-{key}">{name}</label>'
        )
        rows = []
        for sequence, frames, cells in _by_sequence(models, key):
            row = "".join(f"<td>{escape(cell)}</td>" for cell in (frames, *cells))
            rows.append(f'<tr><th scope="row">{escape(sequence)}</th>{row}</tr>')
        tables.append(_table(f"{name}, mean over each sequence's frames", heads, rows, f"sequences-{key}"))
    return f'<section><h2>Sequences</h2><div class="tabs">{"".join(buttons + tables)}</div></section>'


def _by_sequence(models: list[Results], key: str) -> list[tuple[str, str, list[str]]]:
    """Give each sequence's name, frames, and a figure of each model as text."""
    form = ".2f" if key == "psnr" else ".4f"
    found: dict[str, dict[int, Results]] = {}
    for index, model in enumerate(models):
        for sequence in model["sequences"]:
            found.setdefault(sequence["name"], {})[index] = sequence
    return [
        (
            name,
            _number(next(iter(by_model.values())).get("frames"), ".0f"),
            [_number(by_model.get(index, {}).get(key), form) for index in range(len(models))],
        )
        for name, by_model in found.items()
    ]


def _pictures(pictures: list[dict[str, Any]], models: list[Results]) -> str:
    """Give sliders, each model's worst and best frames beside each other, the best models first."""
    parts = []
    for model in models:
        own = [one for one in pictures if (one["model"], one["weights"]) == (model["model"], model["weights"])]
        if own:
            sliders = "".join(_slider(one) for one in sorted(own, key=lambda one: one["kind"] != "worst"))
            parts.append(f'<h3>{escape(_name(model, models))}</h3><div class="sliders">{sliders}</div>')
    if not parts:
        return ""
    return (
        "<section><h2>Worst and best frames</h2><p>Cut out where the model changed most, pixel by pixel as computed. "
        f"Drag the divide, or use the arrow keys.</p>{''.join(parts)}</section>"
    )


def _slider(one: dict[str, Any]) -> str:
    blurry, restored, sharp = (
        read_picture(Path(one[kind]))[0].to_ndarray(format="rgb24") for kind in ("blurry", "restored", "sharp")
    )
    y, x = largest_change(blurry, restored)
    before, after, truth = (
        picture_uri(picture[y : y + CROP[0], x : x + CROP[1]]) for picture in (blurry, restored, sharp)
    )
    return slider_html(before, after, truth, f"{one['kind']} frame of {one['sequence']}: {one['frame']}")


def largest_change(blurry: numpy.ndarray, restored: numpy.ndarray) -> tuple[int, int]:
    """Find the window of CROP's size, or the frame's, in which two pictures (H, W, 3) differ most: its top and left."""
    change = numpy.abs(restored.astype(numpy.float64) - blurry).sum(2)
    height, width = (min(side, most) for side, most in zip(change.shape, CROP, strict=True))
    sums = numpy.pad(change.cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # over all that is above and to the left
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    y, x = numpy.unravel_index(inside.argmax(), inside.shape)
    return int(y), int(x)


SOURCE_HEADS = ["model", "weights", "precision", "SHA-256 of the weights", "published with"]


def _source(model: Results) -> list[str]:
    """Say which weights were measured, in which precision, and how those figures were taken that were published."""
    published = model.get("published") or {}
    kind = published.get("ssim_kind")
    protocol = ", ".join(filter(None, (published.get("protocol"), kind and f"SSIM {kind}")))
    facts = (model.get("weights"), model.get("precision"), model.get("weights_sha256"), protocol)
    return [str(fact or UNKNOWN) for fact in facts]


def _sources(models: list[Results]) -> str:
    rows = []
    for model in models:
        weights, precision, digest, protocol = map(escape, _source(model))
        cells = "".join(f"<td>{cell}</td>" for cell in (weights, precision, f"<code>{digest}</code>", protocol))
        rows.append(f'<tr><th scope="row">{escape(_name(model, models))}</th>{cells}</tr>')
    return f"<section><h2>Weights</h2>{_table('What was measured', SOURCE_HEADS, rows, 'weights', 'texts')}</section>"


def _versions(results: Results) -> str:
    return ", ".join(f"{name} {version}" for name, version in results["versions"].items())


def _number(value: float | None, form: str) -> str:
    if value is None or math.isnan(value):
        return UNKNOWN
    return format(value, form) if math.isfinite(value) else "∞"


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def plain(value: Any) -> Any:
    """Give results with None for what is no finite number, which JSON does not know."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
