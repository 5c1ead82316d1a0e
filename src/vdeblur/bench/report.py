"""A bench report as a file: a page for people, tables for a README, lines for a spreadsheet, JSON for programs."""

import csv
import html
import io
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

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
    versions_line,
)
from vdeblur.bench.html import as_html
from vdeblur.bench.results import BenchReport
from vdeblur.bench.tenths import mean_psnr, tenths_of, with_tenths
from vdeblur.errors import OutputError, UsageError
from vdeblur.files import write_whole

HEAD_BYTES = 1 << 16
# How our own reports begin, by suffix, those of --speed too.
BEGINNINGS = {
    ".html": rb"<title>vdeblur bench: ",
    ".md": rb"(?s)\A\*\*.*\*\*\n\n- Protocol: |\A\d+ frames of \d+x\d+ on ",
    ".csv": rb"\Adataset,protocol,device,versions,model,",
    ".json": rb'\A\{\s*"v": 1,',
}
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n")


def write_report(report: BenchReport, path: Path) -> None:
    """Write a report in the format of the path's suffix.

    Raises: UsageError for a suffix that is not in KINDS, OutputError if the file cannot be written.
    """
    check_report(path)
    write_text(KINDS[path.suffix.lower()](report), path)


def write_text(text: str, path: Path) -> None:
    """Write a finished report.

    Raises: OutputError if the file cannot be written.
    """
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}", "check the folder") from error


def check_report(path: Path, kinds: Iterable[str] = (), kind: str = "a report") -> None:
    """Refuse a path that no report can be written to, before the long work begins.

    kinds: the suffixes allowed, by default those of KINDS. kind: the kind of report, for the message.

    Raises: UsageError for another suffix, OutputError if the folder does not exist, or the path is another file than an
    earlier report.
    """
    kinds = tuple(kinds or KINDS)
    if path.suffix.lower() not in kinds:
        raise UsageError(f"{kind} cannot be of the kind {path.suffix!r}", f"name it {' or '.join(kinds)}")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"the folder {path.absolute().parent} does not exist", "create it, or choose another")
    if path.exists() and not _is_report(path):
        raise OutputError(
            f"{path} exists already, and is no report of vdeblur bench", "choose another name, or remove it"
        )


def _is_report(path: Path) -> bool:
    """Return whether a file is an earlier report, by how it begins; those are replaced."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    return not head or re.search(BEGINNINGS[path.suffix.lower()], head) is not None


def _plain(cell: object) -> object:
    """Return a cell of CSV that no spreadsheet takes for a formula or for several lines."""
    if not isinstance(cell, str):
        return cell
    line = re.sub(r"[\r\n]", " ", cell)
    return f"'{line}" if cell.startswith(FORMULA_SIGNS) else line


def markdown_text(text: str) -> str:
    """Return text of others that Markdown shows as it is: neither HTML, nor a link, nor a new line or cell."""
    shown = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[|\[\]`!*]", lambda sign: f"&#{ord(sign[0])};", shown)


def as_json(report: BenchReport) -> str:
    """Return the report as JSON."""
    return json.dumps(with_tenths(report), indent=1, allow_nan=False) + "\n"


def as_csv(report: BenchReport) -> str:
    """Return a line for each model and sequence."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    heads = ["dataset", "protocol", "device", "versions", "model", "weights", "weights_sha256", "precision"]
    measures = ["frames", "psnr", "ssim_2d", "ssim_3d", "warping_error", "vmaf", "seconds_per_frame"]
    of_tenths = ["tenth_frames", "sharpest_tenth_psnr", "blurriest_tenth_psnr"]
    lines.writerow([*heads, "sequence", *measures, *of_tenths])
    found = tenths_of(report.models)
    place = [report.dataset.title, report.protocol.name, report.device, versions_line(report.versions)]
    for model in report.models:
        for sequence in model.sequences:
            quality = sequence.quality
            cells = [
                *place,
                *(model.model, model.weights, model.weights_sha256, model.precision),
                *(sequence.name, len(sequence.frames), quality.psnr, quality.ssim_2d, quality.ssim_3d),
                *(sequence.warping_error, sequence.vmaf, sequence.seconds_per_frame),
            ]
            if tenths := found.get(sequence.name):
                psnrs = (mean_psnr(sequence, names) for names in (tenths.sharpest, tenths.blurriest))
                cells += [len(tenths.sharpest), *psnrs]
            else:
                cells += [None] * len(of_tenths)
            lines.writerow(map(_plain, cells))
    return text.getvalue()


def results_as_markdown(report: BenchReport) -> str:
    """Return tables to paste into a README."""
    models = ranked(report)
    columns = known_columns(models)
    tenths = tenth_rows(models)
    names = [label(model, models) for model in models]
    parts = [
        f"**{markdown_text(report.dataset.title)}**",
        "\n".join(f"- {key}: {markdown_text(fact)}" for key, fact in report_facts(report).items()),
        markdown_table(
            ["model", "precision", *(column.head for column in columns)],
            [
                [name, model.precision or UNKNOWN, *(column.show(model) for column in columns)]
                for name, model in zip(names, models, strict=True)
            ],
        ),
        "PSNR in dB by sequence:",
        markdown_table(
            ["sequence", "frames", *names],
            [[name, frames, *cells] for name, frames, cells in sequence_rows(models, MEASURES["psnr"])],
        ),
        *(
            [
                "PSNR in dB of the sharpest and the blurriest tenth of each sequence, by the blurry input's sharpness:",
                markdown_table(
                    ["sequence", "frames", *names], [[name, frames, *cells] for name, frames, cells in tenths]
                ),
            ]
            if tenths
            else []
        ),
        "Weights:",
        markdown_table(SOURCE_HEADS, [[name, *source_cells(model)] for name, model in zip(names, models, strict=True)]),
    ]
    return "\n\n".join(parts) + "\n"


def markdown_table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a table with the first column aligned left and the others right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(markdown_text(cell) for cell in line)} |" for line in lines)


KINDS: dict[str, Callable[[BenchReport], str]] = {
    ".html": as_html,
    ".md": results_as_markdown,
    ".csv": as_csv,
    ".json": as_json,
}
