"""Reports of a bench: the page in a real browser, and the other kinds read back."""

import base64
import csv
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy
import pytest

from tests.conftest import ROOT
from vdeblur.bench import charts, html, report, tenths
from vdeblur.bench.results import (
    BenchReport,
    DatasetFacts,
    ExampleFrame,
    FrameResult,
    ModelResult,
    SequenceResult,
)
from vdeblur.errors import OutputError, UsageError
from vdeblur.look import page
from vdeblur.measure.protocols import PROTOCOLS
from vdeblur.models.registry import PublishedScore

COLORS = {"blurry": (200, 30, 30), "restored": (30, 160, 30), "sharp": (30, 30, 200)}


def sequences(*psnrs: float) -> tuple[SequenceResult, ...]:
    """Ten equal frames for each PSNR, half a second each."""
    return tuple(
        SequenceResult(name, (FrameResult("7", psnr, 0.81234, 0.82345, 0.5, 0.7),) * 10, 10, 5.0, 310_000_000, None)
        for name, psnr in zip(("alley", '<wall> & "door" </script>'), psnrs, strict=True)
    )


def model(name: str, psnr: float, **facts: Any) -> ModelResult:
    usual = {
        "model": name, "weights": "", "weights_sha256": "", "precision": "fp32", "params": 0, "flops": 0.0,
        "published": None, "other_protocols": (), "sequences": sequences(psnr - 1, psnr + 1),
    }  # fmt: skip
    return ModelResult(**{**usual, **facts})


@pytest.fixture
def results(tmp_path: Path) -> BenchReport:
    """Two networks, two baselines, and pictures of one colour each."""
    paths = {}
    for name, color in COLORS.items():
        picture = av.VideoFrame.from_ndarray(numpy.full((48, 64, 3), color, numpy.uint8))
        with av.open(str(tmp_path / f"{name}.png"), "w", format="image2") as container:
            stream = container.add_stream("png", rate=1)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
            container.mux([*stream.encode(picture), *stream.encode(None)])
        paths[name] = tmp_path / f"{name}.png"
    published = PublishedScore("pairs", 34.16, 0.9679, "3D", "all frames, RGB")
    data = DatasetFacts("pairs", False, "DVD (VIDEO/{input,GT})", "test", "blur", False, 2, 20, "one <of> its own")
    return BenchReport(
        dataset=data,
        protocol=PROTOCOLS["plain"],
        device="cpu",
        device_name="a processor",
        precision="fp32",
        versions={"vdeblur": "0.1.0", "torch": "2"},
        models=(
            model("identity", 26.123),
            model("unsharp", 25.5),
            model("lite", 27.456, weights_sha256="ab" * 32, params=630_000, flops=4e9),
            model("dstnet", 34.001, weights="gopro", params=7_450_000, published=published),
        ),
        examples=tuple(ExampleFrame("lite", "", "alley", "7", kind, **paths) for kind in ("worst", "best")),
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser of this machine's."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"there is no browser on this machine (looked for {', '.join(names)})")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'"
    )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path)
        yield browser
        browser.close()


def opened(browser: Any, path: Path, **settings: Any) -> tuple[Any, list[str]]:
    """Open a file; return the page, and a list of messages, errors and requests that should not happen."""
    faults: list[str] = []
    view = browser.new_context(**settings).new_page()
    view.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
    view.on("pageerror", lambda error: faults.append(str(error)))
    view.on("request", lambda request: faults.append(request.url) if request.url.startswith("http") else None)
    view.goto(path.as_uri())
    return view, faults


def png(data: bytes) -> numpy.ndarray:
    (picture,) = av.CodecContext.create("png", "r").decode(av.Packet(data))
    return picture.to_ndarray(format="rgb24")


def pixels(view: Any, at: tuple[float, ...]) -> list[str]:
    """Return which of the three pictures is visible at these shares of the first slider's width."""
    box = view.locator(".stage").first.bounding_box()
    picture = png(view.screenshot())
    seen = [picture[round(box["y"] + box["height"] / 4), round(box["x"] + share * box["width"])] for share in at]
    return [min(COLORS, key=lambda name: numpy.abs(COLORS[name] - color.astype(int)).sum()) for color in seen]


def test_the_page_in_a_browser(browser: Any, results: BenchReport, tmp_path: Path) -> None:
    report.write_report(results, tmp_path / "report.html")
    view, faults = opened(browser, tmp_path / "report.html", viewport={"width": 1000, "height": 700})

    rows = view.locator("#models tbody tr").all_inner_texts()
    ranked = sorted(results.models, key=lambda result: -result.quality.psnr)
    assert [row.split("\t")[:5] for row in rows] == [
        [result.model, "fp32", f"{result.quality.psnr:.2f}", "0.8123", "0.8235"] for result in ranked
    ]
    cells = view.locator("#sequences-psnr tbody tr").nth(1).inner_text().split("\t")
    psnrs = [result.sequences[1].quality.psnr for result in ranked]
    assert cells == [ranked[0].sequences[1].name, "10", *(f"{psnr:.2f}" for psnr in psnrs)]
    assert view.locator(".bars .value").all_inner_texts()[1] == "27.46 dB (+1.33)"
    embedded = json.loads(view.locator("#data").text_content())
    assert embedded == tenths.with_tenths(results)
    assert "ab" * 32 in view.locator("#weights").inner_text()
    facts = view.locator("header dd").all_inner_texts()
    assert facts[:3] == [
        f"plain: {PROTOCOLS['plain'].description}",
        "test, blur, 2 sequences, 20 frames counted",
        "DVD (VIDEO/{input,GT})",
    ]
    assert facts[3:] == ["one <of> its own", "cpu (a processor)", "fp32", "vdeblur 0.1.0, torch 2"]
    assert str(tmp_path) not in view.content(), "paths of this machine are nobody's business"

    assert view.locator("#sequences-ssim_3d").is_hidden()
    view.get_by_label("SSIM (3D)", exact=True).check()
    assert view.locator("#sequences-ssim_3d").is_visible()
    assert view.locator("#sequences-psnr").is_hidden()
    assert faults == []


def test_the_slider_moves(browser: Any, results: BenchReport, tmp_path: Path) -> None:
    report.write_report(results, tmp_path / "report.html")
    view, faults = opened(browser, tmp_path / "report.html", viewport={"width": 1000, "height": 700})
    assert view.locator(".slider").count() == 2
    stage = view.locator(".stage").first
    stage.scroll_into_view_if_needed()
    assert pixels(view, (0.1, 0.45, 0.55, 0.9)) == ["blurry", "blurry", "restored", "restored"]

    stage.locator("input").focus()
    for _ in range(20):
        view.keyboard.press("ArrowRight")
    assert pixels(view, (0.1, 0.65, 0.75, 0.9)) == ["blurry", "blurry", "restored", "restored"]
    assert stage.locator("input").get_attribute("aria-valuetext") == "70 % blurry, the rest restored"

    box = stage.bounding_box()
    view.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 20)
    view.mouse.down()
    view.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 20, steps=5)
    view.mouse.up()
    assert pixels(view, (0.15, 0.25, 0.9)) == ["blurry", "restored", "restored"]

    view.locator(".slider").first.get_by_label("restored | sharp").check()
    assert pixels(view, (0.15, 0.25)) == ["restored", "sharp"]
    assert view.locator(".slider").nth(1).locator("input").first.input_value() == "50", "the other one stays"
    assert faults == []


def test_the_page_on_a_telephone_and_in_the_dark(browser: Any, results: BenchReport, tmp_path: Path) -> None:
    report.write_report(results, tmp_path / "report.html")
    grounds = []
    for scheme in ("light", "dark"):
        size = {"width": 400, "height": 800}
        view, faults = opened(browser, tmp_path / "report.html", viewport=size, color_scheme=scheme)
        assert view.evaluate("document.documentElement.scrollWidth") <= 400
        grounds.append(view.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert faults == []
    light, dark = (sum(map(int, re.findall(r"\d+", ground))) for ground in grounds)
    assert light > 600
    assert dark < 150


def test_a_slider_of_two_pictures(browser: Any, tmp_path: Path) -> None:
    uris = [page.picture_uri(numpy.full((40, 90, 3), COLORS[name], numpy.uint8)) for name in ("blurry", "restored")]
    body = page.slider_html(uris[0], uris[1], caption="a < b", names=("before", "after", ""))
    (tmp_path / "two.html").write_text(page.page_html("Two & two", body), "utf-8")
    view, faults = opened(browser, tmp_path / "two.html", viewport={"width": 500, "height": 400})
    assert view.title() == "Two & two"
    assert pixels(view, (0.45, 0.55)) == ["blurry", "restored"]
    assert view.locator(".choice").count() == 0
    assert view.locator("figcaption").inner_text() == "a < b"
    assert faults == []


def test_pictures_are_kept_exactly() -> None:
    picture = numpy.random.default_rng(0).integers(0, 256, (31, 17, 3)).astype(numpy.uint8)
    kind, _, data = page.picture_uri(picture).partition(",")
    assert kind == "data:image/png;base64"
    assert (png(base64.b64decode(data)) == picture).all()


def test_the_axis_of_costs_has_a_mark_beside_zero() -> None:
    """One network alone, of any size."""
    for tenth in range(40):
        size = 10 ** (tenth / 20)
        assert any(0.6 < mark / size < 1.6 for mark in charts._LogAxis([0.0, size]).ticks), size


def test_csv_has_a_line_for_each_model_and_sequence(results: BenchReport, tmp_path: Path) -> None:
    report.write_report(results, tmp_path / "report.csv")
    with (tmp_path / "report.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    expected = [(result, sequence) for result in results.models for sequence in result.sequences]
    assert len(lines) == len(expected) == 8
    for line, (result, sequence) in zip(lines, expected, strict=True):
        assert (line["model"], line["weights_sha256"]) == (result.model, result.weights_sha256)
        assert (line["sequence"], float(line["psnr"])) == (sequence.name, sequence.quality.psnr)
        assert (line["dataset"], line["protocol"], line["precision"]) == ("pairs", "plain", "fp32")
        assert line["versions"] == "vdeblur 0.1.0, torch 2"
        assert float(line["sharpest_tenth_psnr"]) == pytest.approx(sequence.quality.psnr), "all frames are equal"


def test_markdown_tables(results: BenchReport, tmp_path: Path) -> None:
    report.write_report(results, tmp_path / "report.md")
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert lines[0] == "**pairs**"
    assert f"- Protocol: plain: {PROTOCOLS['plain'].description}" in lines
    assert "- Device: cpu (a processor)" in lines
    assert "- Versions: vdeblur 0.1.0, torch 2" in lines
    assert lines[12].startswith("| dstnet | fp32 | 34.00 | 0.8123 | 0.8235 | 34.16 | 0.9679 | 0.700 | 20 | 0.5 |")
    assert "| dstnet | gopro | fp32 | - | all frames, RGB, SSIM 3D | - |" in lines
    assert f"| lite | - | fp32 | {'ab' * 32} | - | - |" in lines
    assert "| alley | 10 | 33.00 | 26.46 | 25.12 | 24.50 |" in lines
    for table in ("\n".join(lines)).split("\n\n"):
        assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) <= 1


def test_json_is_what_was_measured(results: BenchReport, tmp_path: Path) -> None:
    results = replace(results, models=(model("identity", math.inf), *results.models))
    report.write_report(results, tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    equal, identity, *_ = written["models"]
    assert equal["psnr"] is None, "JSON knows no infinity"
    assert equal["sequences"][0]["per_frame"][0]["psnr"] is None
    assert identity["psnr"] == pytest.approx(26.123)
    assert identity["sequences"][0]["psnr"] == pytest.approx(25.123)
    assert written["models"][-1]["published"]["psnr"] == 34.16
    assert str(tmp_path) not in json.dumps(written), "the pictures are gone when the bench ends"


def test_the_keys_of_json_are_documented(results: BenchReport) -> None:
    text = (ROOT / "docs" / "json.md").read_text("utf-8")
    section = text[text.index("### `bench`\n\n`--report") : text.index("### `bench --speed`")]
    written = results.to_json()
    facts = [written, written["dataset_details"], written["models"][-1], written["models"][-1]["published"]]
    sequence = written["models"][0]["sequences"][0]
    for key in (key for each in (*facts, sequence, sequence["per_frame"][0]) for key in each):
        assert f'"{key}"' in section or f"`{key}`" in section, key


def test_equal_frames_do_not_stop_a_report(results: BenchReport, tmp_path: Path) -> None:
    results = replace(results, models=tuple(model(result.model, math.inf) for result in results.models))
    for kind in report.KINDS:
        report.write_report(results, tmp_path / f"report{kind}")
    assert "∞" in (tmp_path / "report.md").read_text()


def test_what_cannot_be_written_is_refused(results: BenchReport, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'\.pdf'"):
        report.write_report(results, tmp_path / "report.pdf")
    with pytest.raises(OutputError, match="does not exist"):
        report.write_report(results, tmp_path / "nowhere" / "report.md")


def test_models_are_told_apart_by_weights_where_they_have_to(results: BenchReport) -> None:
    facts = [("dstnet", 30, "gopro"), ("dstnet", 31, "dvd"), ("lite", 29, "a")]
    models = tuple(model(name, psnr, weights=weights) for name, psnr, weights in facts)
    text = report.results_as_markdown(replace(results, models=models))
    assert "| sequence | frames | dstnet@dvd | dstnet@gopro | lite |" in text


def test_pictures_of_two_weights_of_a_model_are_kept_apart(results: BenchReport) -> None:
    weights = ("dvd", "gopro")
    (frame, _) = results.examples
    results = replace(
        results,
        models=tuple(model("dstnet", 30 + index, weights=name) for index, name in enumerate(weights)),
        examples=tuple(replace(frame, model="dstnet", weights=name, sequence=f"of {name}") for name in weights),
    )
    text = html.as_html(results)
    assert re.findall(r"<h3>(.*?)</h3>|<figcaption>worst frame of (.*?):", text) == [
        ("dstnet@gopro", ""),
        ("", "of gopro"),
        ("dstnet@dvd", ""),
        ("", "of dvd"),
    ]


def test_pictures_are_cut_out_where_most_changed() -> None:
    blurry = numpy.zeros((720, 1280, 3), numpy.uint8)
    restored = blurry.copy()
    restored[500:520, 900:960] = 40
    restored[10, 10] = 255
    y, x = html.largest_change(blurry, restored)
    assert y <= 500 <= 520 <= y + 240
    assert x <= 900 <= 960 <= x + 320
    assert html.largest_change(blurry[:50, :60], restored[:50, :60]) == (0, 0)


def test_points_lie_by_their_logarithm_and_names_apart() -> None:
    points = [charts.Point(f"model-{k}", 10.0**k, 30 + 0.01 * k) for k in (-3, -2, -1, 0)]
    points += [charts.Point(f"twin-{k}", 0.5, 30.5, True) for k in range(4)] + [charts.Point("nothing", 0, 29, True)]
    text = charts.scatter(points, "seconds", "PSNR, dB")
    places = [float(x) for x in re.findall(r'<circle class="point" cx="([\d.]+)"', text)]
    steps = numpy.diff(sorted(places))
    assert steps.max() - steps.min() < 0.3
    labels = re.findall(r'class="label" x="([\d.]+)" y="([\d.]+)">([^<]+)', text)
    boxes = [(float(x), float(y), len(name) * charts.LETTER) for x, y, name in labels]
    for index, (x, y, width) in enumerate(boxes):
        for other_x, other_y, other_width in boxes[:index]:
            assert x >= other_x + other_width or other_x >= x + width or abs(y - other_y) >= charts.LINE - 0.1


# Reports of hostile names, over other files ---------------------------------------------------------------------------

HOSTILE = '=HYPERLINK("http://x","y")<img src=x onerror=alert(1)>|[a](javascript:b)`c`\n| d |'


def _hostile(results: BenchReport) -> BenchReport:
    sequence = replace(results.models[0].sequences[0], name=HOSTILE)
    models = tuple(replace(each, model=HOSTILE, weights=HOSTILE, sequences=(sequence,)) for each in results.models[:1])
    return replace(results, models=models, dataset=replace(results.dataset, title=HOSTILE, layout=HOSTILE))


def test_csv_holds_no_formulas(results: BenchReport, tmp_path: Path) -> None:
    """C low: names that begin with = + - @ were formulas in a spreadsheet."""
    for sign in "=+-@\t\r":
        sequence = replace(results.models[0].sequences[0], name=f"{sign}cmd|' /C calc'!A0")
        models = (replace(results.models[0], sequences=(sequence,)),)
        report.write_report(replace(results, models=models), tmp_path / "report.csv")
        with (tmp_path / "report.csv").open(newline="") as file:
            [row] = csv.DictReader(file)
        assert row["sequence"] == f"'{' ' if sign == chr(13) else sign}cmd|' /C calc'!A0"
        assert float(row["psnr"]) == sequence.quality.psnr


def test_markdown_holds_no_html(results: BenchReport, tmp_path: Path) -> None:
    """C low: names of sequences were HTML, links and cells in the Markdown report."""
    report.write_report(_hostile(results), tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert not re.search(r"<(?!!--)|\]\(|`", text)
    assert "&lt;img src=x onerror=alert(1)&gt;&#124;&#91;a&#93;(javascript:b)" in text
    for table in text.split("\n\n"):
        assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) <= 1


def test_the_page_holds_no_html_of_others(results: BenchReport, tmp_path: Path) -> None:
    """C: nor does the page."""
    report.write_report(_hostile(results), tmp_path / "report.html")
    assert "<img src=x" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("suffix", report.KINDS)
def test_a_report_replaces_reports_only(results: BenchReport, tmp_path: Path, suffix: str) -> None:
    """C low: --report wrote over any existing file."""
    path = tmp_path / f"notes{suffix}"
    for content in ("precious", '{"mine": 1}', "# Notes\n\n**bold**\n", "a,b\n1,2\n", "<title>mine</title>"):
        path.write_text(content)
        with pytest.raises(OutputError, match="is no report of vdeblur bench"):
            report.write_report(results, path)
        assert path.read_text() == content
    path.unlink()
    (tmp_path / "linked").write_text("")
    path.symlink_to(tmp_path / "linked")
    for _ in range(2):
        report.write_report(results, path)
    report.write_report(_hostile(results), path)
    report.write_report(results, path)
    assert path.stat().st_size > 100
    assert (tmp_path / "linked").read_text() == "", "a report is not written through a link"
    folder = tmp_path / f"folder{suffix}"
    folder.mkdir()
    with pytest.raises(OutputError):
        report.check_report(folder)


def test_a_report_of_speed_replaces_reports_only(vdeblur, tmp_path: Path) -> None:
    """C low: nor does a report of speed replace another file."""
    path = tmp_path / "speed.md"
    path.write_text("precious")
    result = vdeblur("bench", "--speed", "--report", path, "-m", "identity", "--size", "64x48", "--frames", 2)
    assert result.exit_code == 4
    assert path.read_text() == "precious"
