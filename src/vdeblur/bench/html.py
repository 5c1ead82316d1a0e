"""A bench report as one HTML page with charts, tables, and sliders over the worst and best frames."""

import math
from html import escape
from pathlib import Path

import numpy

from vdeblur.bench import charts
from vdeblur.bench.baselines import BASELINES
from vdeblur.bench.columns import (
    MEASURES,
    SOURCE_HEADS,
    UNKNOWN,
    known_columns,
    label,
    ranked,
    report_facts,
    sequence_rows,
    source_cells,
    tenth_rows,
)
from vdeblur.bench.existing import IDEAL_LUMA
from vdeblur.bench.profiles import profile_uris
from vdeblur.bench.results import BenchReport, ExampleFrame, ModelResult, ProfilePictures
from vdeblur.bench.tenths import with_tenths
from vdeblur.look.page import page_html, picture_uri, slider_html
from vdeblur.source.pictures import read_picture

CROP = (240, 320)  # lines and columns of the pictures on the page
BLURRY = "identity"  # the model that returns its input: gains are measured from its PSNR
GRAY = (BLURRY, *BASELINES, IDEAL_LUMA)  # models that are no networks


def as_html(report: BenchReport) -> str:
    """Return a page in one file, with the JSON report inside."""
    models = ranked(report)
    parts = [
        _header(report),
        _bars(models),
        _scatters(models),
        _model_table(models),
        _sequence_tables(models),
        _tenth_table(models),
        _profile_section(report.profiles, models),
        _pictures(report.examples, models),
        _sources(models),
    ]
    title = f"vdeblur bench: {report.dataset.title}: {len(models)} models"
    return page_html(title, "\n".join(parts), with_tenths(report))


def _header(report: BenchReport) -> str:
    items = "".join(f"<div><dt>{key}</dt><dd>{escape(fact)}</dd></div>" for key, fact in report_facts(report).items())
    return (
        f"<header><h1>Deblurring on {escape(report.dataset.title)}</h1>"
        f'<p class="quiet">Measured by vdeblur bench. Scores of different protocols cannot be compared.</p>'
        f'<dl class="facts">{items}</dl></header>'
    )


def _bars(models: list[ModelResult]) -> str:
    """Draw PSNR as bars: the gain over the blurry frames if identity was measured, else from 0 dB."""
    measured = [model for model in models if math.isfinite(model.quality.psnr)]
    blurry = next((model.quality.psnr for model in measured if model.model == BLURRY), None)
    base = blurry or 0.0
    lengths = [model.quality.psnr - base for model in measured]
    marks = [model.published.psnr - base if model.published else None for model in measured]
    known_marks = [mark for mark in marks if mark is not None]
    low, high = min([0.0, *lengths, *known_marks]), max([0.0, *lengths, *known_marks])
    extent = (high - low) or 1.0

    def place(value: float) -> float:
        return float(round((value - low) / extent * 100, 3))

    items = []
    for model, length, mark in zip(measured, lengths, marks, strict=True):
        left, right = sorted((place(0), place(length)))
        gain = "" if blurry is None else f" ({length:+.2f})"
        published = ""
        if mark is not None:
            published = f'<span class="published" style="left:{place(mark)}%" title="published"></span>'
        items.append(
            f'<li{_baseline(model)}><span class="name">{escape(label(model, models))}</span>'
            f'<span class="track"><span class="bar" style="left:{left}%;width:{right - left:.3f}%"></span>'
            f'<span class="zero" style="left:{place(0)}%"></span>{published}</span>'
            f'<span class="value">{model.quality.psnr:.2f} dB{gain}</span></li>'
        )
    title = "PSNR" if blurry is None else "PSNR gain over the blurry frames"
    note = '<span class="key"><span class="swatch mark"></span>as published</span>' if known_marks else ""
    return f'<section><h2>{title}</h2>{_key(note)}<ol class="bars">{"".join(items)}</ol></section>'


def _key(more: str = "") -> str:
    return (
        '<p class="quiet"><span class="key"><span class="swatch"></span>network</span>'
        f'<span class="key"><span class="swatch baseline"></span>baseline</span>{more}</p>'
    )


def _baseline(model: ModelResult) -> str:
    return ' class="baseline"' if model.model in GRAY else ""


def _scatters(models: list[ModelResult]) -> str:
    """Draw PSNR against time and against parameters."""
    measured = [model for model in models if math.isfinite(model.quality.psnr)]
    if not measured:
        return ""
    figures = []
    for axis, costs in (
        ("seconds per frame", [model.seconds_per_frame for model in measured]),
        ("parameters, in millions", [model.params * 1e-6 for model in measured]),
    ):
        points = [
            charts.Point(label(model, models), cost, model.quality.psnr, model.model in GRAY)
            for model, cost in zip(measured, costs, strict=True)
            if cost is not None
        ]
        if not points:
            continue
        figures.append(f'<figure class="chart">{charts.scatter(points, axis, "PSNR, dB")}</figure>')
    return f'<section><h2>PSNR and its cost</h2>{_key()}<div class="charts">{"".join(figures)}</div></section>'


def _model_table(models: list[ModelResult]) -> str:
    columns = known_columns(models)
    rows = []
    for model in models:
        cells = [f"<td>{escape(model.precision or UNKNOWN)}</td>"]
        for column in columns:
            values = [value for value in map(column.value, models) if value is not None]
            best = column.best is not None and len(models) > 1 and column.value(model) == column.best(values)
            emphasis = ' class="best"' if best else ""
            cells.append(f"<td{emphasis}>{column.show(model)}</td>")
        rows.append(f'<tr><th scope="row">{escape(label(model, models))}</th>{"".join(cells)}</tr>')
    heads = ["model", "precision", *(column.head for column in columns)]
    return f"<section><h2>Models</h2>{_table('All sequences', heads, rows, 'models')}</section>"


def _table(caption: str, heads: list[str], rows: list[str], name: str, kind: str = "figures") -> str:
    """Return a table that scrolls sideways if it is too wide. kind: "figures", or "texts", which are aligned left."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0">'
        f'<table id="{name}" class="{kind}"><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _sequence_tables(models: list[ModelResult]) -> str:
    """Return a table per measure; buttons choose which one is shown."""
    buttons, tables = [], []
    heads = ["sequence", "frames", *(label(model, models) for model in models)]
    for index, (key, measure) in enumerate(MEASURES.items()):
        checked = "" if index else " checked"
        buttons.append(
            f'<input type="radio" name="measure" id="show-{key}"{checked}>'
            f'<label for="show-{key}">{measure.name}</label>'
        )
        rows = []
        for sequence, frames, cells in sequence_rows(models, measure):
            row = "".join(f"<td>{escape(cell)}</td>" for cell in (frames, *cells))
            rows.append(f'<tr><th scope="row">{escape(sequence)}</th>{row}</tr>')
        tables.append(_table(f"{measure.name}, mean over each sequence's frames", heads, rows, f"sequences-{key}"))
    return f'<section><h2>Sequences</h2><div class="tabs">{"".join(buttons + tables)}</div></section>'


def _tenth_table(models: list[ModelResult]) -> str:
    """Return the table of the sharpest and blurriest tenth of each sequence; nothing if the input was not measured."""
    rows = []
    for name, frames, cells in tenth_rows(models):
        row = "".join(f"<td>{escape(cell)}</td>" for cell in (frames, *cells))
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{row}</tr>')
    if not rows:
        return ""
    heads = ["sequence", "frames", *(label(model, models) for model in models)]
    table = _table("PSNR in dB; the sharpness of the blurry input ranks the frames", heads, rows, "tenths")
    return f"<section><h2>Sharpest and blurriest tenth of the frames</h2>{table}</section>"


def _profile_section(profiles: tuple[ProfilePictures, ...], models: list[ModelResult]) -> str:
    """Return the temporal profiles of the first sequence, in the order of the models, then the sharp frames'."""
    found = {(profile.model, profile.weights): profile for profile in profiles}
    shown = [(model, found[model.model, model.weights]) for model in models if (model.model, model.weights) in found]
    if not shown:
        return ""
    pictures = [(label(model, models), profile_uris(profile)[0]) for model, profile in shown]
    if not math.isnan(models[0].quality.psnr):  # without sharp frames, the blurry ones stand in for them
        pictures.append(("sharp", profile_uris(shown[0][1])[1]))
    figures = "".join(
        f'<figure><img src="{uri}" alt="Temporal profile: {escape(name)}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for name, uri in pictures
    )
    return (
        f"<section><h2>Temporal profile of {escape(shown[0][1].sequence)}</h2><p>The middle line of each frame, one "
        "below the other: time goes down. Horizontal stripes are flicker, smear is blur.</p>"
        f'<div class="profiles">{figures}</div></section>'
    )


def _pictures(frames: tuple[ExampleFrame, ...], models: list[ModelResult]) -> str:
    """Return a slider for each of the worst and best frames, the best model first."""
    parts = []
    for model in models:
        own = [frame for frame in frames if (frame.model, frame.weights) == (model.model, model.weights)]
        if own:
            sliders = "".join(_slider(frame) for frame in sorted(own, key=lambda frame: frame.kind != "worst"))
            parts.append(f'<h3>{escape(label(model, models))}</h3><div class="sliders">{sliders}</div>')
    if not parts:
        return ""
    return (
        "<section><h2>Worst and best frames</h2><p>Each crop shows where the model changed the frame most, at full "
        f"resolution. Drag the divider, or use the arrow keys.</p>{''.join(parts)}</section>"
    )


def _slider(frame: ExampleFrame) -> str:
    blurry, restored, sharp = map(_read, (frame.blurry, frame.restored, frame.sharp))
    y, x = largest_change(blurry, restored)
    blurry_crop, restored_crop, sharp_crop = (
        picture_uri(picture[y : y + CROP[0], x : x + CROP[1]]) for picture in (blurry, restored, sharp)
    )
    truth = None if frame.sharp == frame.blurry else sharp_crop  # without sharp frames, the blurry ones stand in
    return slider_html(blurry_crop, restored_crop, truth, f"{frame.kind} frame of {frame.sequence}: {frame.frame}")


def _read(path: Path) -> numpy.ndarray:
    array: numpy.ndarray = read_picture(path)[0].to_ndarray(format="rgb24")
    return array


def largest_change(blurry: numpy.ndarray, restored: numpy.ndarray) -> tuple[int, int]:
    """Return top and left of the window of CROP's size (at most the picture's) in which two pictures differ most.

    blurry, restored: (H, W, 3).
    """
    change = numpy.abs(restored.astype(numpy.float64) - blurry).sum(2)
    height, width = (min(side, most) for side, most in zip(change.shape, CROP, strict=True))
    sums = numpy.pad(change.cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # over all pixels above and to the left
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    y, x = numpy.unravel_index(inside.argmax(), inside.shape)
    return int(y), int(x)


def _sources(models: list[ModelResult]) -> str:
    rows = []
    for model in models:
        weights, precision, digest, *published = map(escape, source_cells(model))
        cells = "".join(f"<td>{cell}</td>" for cell in (weights, precision, f"<code>{digest}</code>", *published))
        rows.append(f'<tr><th scope="row">{escape(label(model, models))}</th>{cells}</tr>')
    return f"<section><h2>Weights</h2>{_table('Measured weights', SOURCE_HEADS, rows, 'weights', 'texts')}</section>"
