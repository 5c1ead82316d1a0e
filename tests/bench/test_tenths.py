"""Reports of a bench by the blur of frames, and over time."""

import base64
import csv
import json
import re
from pathlib import Path

import numpy
import pytest
import torch

from tests import clips
from vdeblur.bench import tenths
from vdeblur.datasets import pictures
from vdeblur.measure import temporal

FRAMES = 21


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Noise whose blurry frames are averaged more and more, in an order that is not that of time."""
    generator = torch.Generator().manual_seed(0)
    for index in range(FRAMES):
        sharp = torch.rand(3, 32, 48, generator=generator) * 255
        blur = 3 + 2 * (index * 8 % FRAMES)  # each width once: 8 and 21 have no common factor
        blurry = torch.nn.functional.avg_pool2d(sharp[None], (1, blur), 1, (0, blur // 2), count_include_pad=False)[0]
        for kind, picture in (("sharp", sharp), ("blur", blurry)):
            pictures.write_png(tmp_path / "set" / "scene" / kind / f"{index:05}.png", picture.round().byte())
    return tmp_path / "set"


def test_tenths_are_ranked_by_the_input(vdeblur, pairs: Path, tmp_path: Path) -> None:
    reports = [part for kind in ("json", "md", "html", "csv") for part in ("--report", tmp_path / f"r.{kind}")]
    result = vdeblur("bench", "--dataset", pairs, "-m", "identity", "-d", "cpu", *reports)
    assert result.exit_code == 0, result.output
    rows = {row["model"]: row["sequences"][0] for row in json.loads((tmp_path / "r.json").read_text())["models"]}
    frames = rows["identity"]["per_frame"]
    inputs = [pictures.read_rgb(pairs / "scene" / "blur" / f"{index:05}.png")[None] / 255 for index in range(FRAMES)]
    sharpness = [float(temporal.sharpness(frame)) for frame in inputs]
    order = numpy.argsort(sharpness)
    for model, sequence in rows.items():
        psnr = [frame["psnr"] if frame["psnr"] is not None else numpy.inf for frame in sequence["per_frame"]]
        for kind, indices in (("blurriest_tenth", order[:3]), ("sharpest_tenth", order[-3:])):
            expected = numpy.mean([psnr[index] for index in indices])
            found = sequence[kind]
            assert found["frames"] == 3  # a tenth of 21, rounded up
            assert found["psnr"] == (pytest.approx(expected) if numpy.isfinite(expected) else None), model
    assert len(frames) == FRAMES
    assert rows["identity"]["blurriest_tenth"]["psnr"] < rows["identity"]["psnr"]
    assert "| scene, blurriest | 3 |" in (tmp_path / "r.md").read_text()
    assert "scene, blurriest" in (tmp_path / "r.html").read_text()
    with (tmp_path / "r.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            assert line["tenth_frames"] == "3"
            for kind in ("blurriest_tenth", "sharpest_tenth"):
                psnr = rows[line["model"]][kind]["psnr"]
                assert float(line[f"{kind}_psnr"]) == (pytest.approx(psnr) if psnr is not None else numpy.inf)


def test_the_page_has_the_profiles_of_time(vdeblur, pairs: Path, tmp_path: Path) -> None:
    """Each row of a profile is the middle line of a frame."""
    page = tmp_path / "r.html"
    result = vdeblur("bench", "--dataset", pairs, "-m", "identity", "-d", "cpu", "--report", page)
    assert result.exit_code == 0, result.output
    found = dict(
        re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="Temporal profile: ([^"]+)"', page.read_text())
    )
    profiles = {name: data for data, name in found.items()}
    assert profiles.keys() == {"identity", "unsharp", "cas", "sharp"}
    for name, kind in (("identity", "blur"), ("sharp", "sharp")):
        (tmp_path / "profile.png").write_bytes(base64.b64decode(profiles[name]))
        shown = clips.rgb(tmp_path / "profile.png")[0]
        frames = [clips.rgb(file)[0] for file in sorted((pairs / "scene" / kind).iterdir())]
        repeats = len(shown) // FRAMES
        assert shown.shape == (repeats * FRAMES, 48, 3)
        assert numpy.array_equal(shown[::repeats], numpy.stack([frame[16] for frame in frames]))


def test_without_the_input_there_are_no_tenths() -> None:
    assert tenths.tenths_of(()) == {}
