"""`vdeblur bench` on pictures that exist already, and the ceiling of networks that restore luma only."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from tests.source.test_pictures import photo
from vdeblur.bench import contenders, existing
from vdeblur.datasets import pictures
from vdeblur.datasets.layouts import FramePair
from vdeblur.errors import ExitStatus
from vdeblur.models import registry

FRAMES = 5


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two sequences of five pairs, 48x32; every sharp picture is brighter than its blurry one."""
    random = numpy.random.default_rng(0)
    for sequence in ("alley", "wall"):
        for index in range(FRAMES):
            sharp = torch.from_numpy(random.integers(20, 250, (3, 32, 48), dtype=numpy.uint8))
            for kind, picture in (("sharp", sharp), ("blur", sharp // 2)):
                pictures.write_png(tmp_path / "set" / sequence / kind / f"{index:05}.png", picture)
    return tmp_path / "set"


def restore(
    pairs: Path, folder: Path, *, names: str = "{:05}.png", frames: range = range(FRAMES), off: int = 1
) -> Path:
    """Write sharp pictures that are off by some codes, as others would have restored them."""
    for sequence in ("alley", "wall"):
        for index in frames:
            sharp = pictures.read_rgb(pairs / sequence / "sharp" / f"{index:05}.png")
            pictures.write_png(folder / sequence / names.format(index), sharp + off)
    return folder


def bench(vdeblur, folder: Path, *arguments: object) -> dict[str, Any]:
    result = vdeblur("bench", *arguments, "--report", folder / "report.json", "-d", "cpu")
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return {"stderr": result.stderr, "stdout": result.stdout, **{row["model"]: row for row in report["models"]}}


def test_restored_pictures_are_measured(vdeblur, pairs: Path, tmp_path: Path) -> None:
    restored = restore(pairs, tmp_path / "theirs")
    report = bench(vdeblur, tmp_path, "--dataset", pairs, "--restored", restored)
    row = report["theirs"]
    assert row["psnr"] == pytest.approx(20 * numpy.log10(255), abs=1e-6)  # off by one code everywhere
    assert (row["frames"], row["seconds_per_frame"], row["peak_memory_bytes"]) == (10, None, None)
    assert "lite" not in report, "nobody asked for it"
    page = tmp_path / "report.html"
    result = vdeblur("bench", "--dataset", pairs, "--restored", restored, "--report", page, "--limit", 2, "-d", "cpu")
    assert result.exit_code == 0, result.output
    assert "theirs" in page.read_text()


def test_saved_frames_score_as_their_model_did(vdeblur, pairs: Path, tmp_path: Path) -> None:
    first = bench(vdeblur, tmp_path, "--dataset", pairs, "-m", "lite", "--save", tmp_path / "saved")
    again = bench(vdeblur, tmp_path, "--dataset", pairs, "--restored", tmp_path / "saved" / "lite", "-m", "identity")
    assert again["lite"]["psnr"] == pytest.approx(first["lite"]["psnr"], abs=1e-12)
    assert again["lite"]["ssim_2d"] == pytest.approx(first["lite"]["ssim_2d"], abs=1e-12)


def test_frames_that_do_not_count_may_be_missing(vdeblur, pairs: Path, tmp_path: Path) -> None:
    """The release of flow-rnn writes no last frame."""
    restored = restore(pairs, tmp_path / "theirs", frames=range(FRAMES - 1))
    report = bench(vdeblur, tmp_path, "--dataset", pairs, "--restored", restored, "--protocol", "flow-rnn")
    assert report["theirs"]["frames"] == 8
    result = vdeblur("bench", "--dataset", pairs, "--restored", restored, "-d", "cpu")
    assert result.exit_code == ExitStatus.INPUT
    assert "lacks 1 of 5 pictures of alley, 00004 first" in result.stderr


@pytest.mark.parametrize("frames", [range(FRAMES), range(FRAMES - 1)])
def test_other_names_are_taken_in_order(vdeblur, pairs: Path, tmp_path: Path, frames: range) -> None:
    restored = restore(pairs, tmp_path / "theirs", names="out_{}.png", frames=frames, off=2)
    report = bench(vdeblur, tmp_path, "--dataset", pairs, "--restored", restored, "--protocol", "flow-rnn")
    assert report["theirs"]["psnr"] == pytest.approx(20 * numpy.log10(255 / 2), abs=1e-6)
    assert "its pictures were taken in order: out_0.png for 00000" in report["stderr"]


def test_two_folders_of_one_name_are_told_apart(vdeblur, pairs: Path, tmp_path: Path) -> None:
    folders = [restore(pairs, tmp_path / name / "results", off=off) for name, off in (("a", 1), ("b", 2))]
    report = bench(vdeblur, tmp_path, "--dataset", pairs, "--restored", folders[0], "--restored", folders[1])
    assert report[str(folders[0])]["psnr"] > report[str(folders[1])]["psnr"]


def test_restored_pictures_that_cannot_be_measured(vdeblur, pairs: Path, tmp_path: Path) -> None:
    def refused(folder: Path) -> str:
        result = vdeblur("bench", "--dataset", pairs, "--restored", folder, "-d", "cpu")
        assert result.exit_code == ExitStatus.INPUT
        assert "Traceback" not in result.stderr
        return result.stderr

    assert "no such folder" in refused(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "has no pictures of alley" in refused(tmp_path / "empty")
    restored = restore(pairs, tmp_path / "theirs")
    pictures.write_png(restored / "wall" / "00003.png", torch.zeros(3, 16, 48, dtype=torch.uint8))
    assert "00003.png is 48x16 instead of 48x32" in refused(restored)
    (restored / "wall" / "00003.png").write_bytes(b"no picture")
    assert "00003.png" in refused(restored)


def test_sizes_are_compared_before_the_first_sequence_is_measured(vdeblur, pairs: Path, tmp_path: Path) -> None:
    restored = restore(pairs, tmp_path / "theirs")
    pictures.write_png(restored / "wall" / "00004.png", torch.zeros(3, 32, 40, dtype=torch.uint8))
    result = vdeblur("bench", "--dataset", pairs, "--restored", restored, "-d", "cpu", "--json")
    assert result.exit_code == ExitStatus.INPUT
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert "wall/00004.png is 40x32 instead of 48x32" in next(e["message"] for e in events if e["event"] == "error")
    assert "sequence_done" not in [event["event"] for event in events]


def test_blurry_pictures_are_not_decoded_for_their_size(vdeblur, pairs: Path, tmp_path: Path, monkeypatch) -> None:
    read: list[Path] = []

    def recorded(path: Path) -> torch.Tensor:
        read.append(path)
        return original(path)

    original = pictures.read_rgb
    restored = restore(pairs, tmp_path / "theirs")
    monkeypatch.setattr(pictures, "read_rgb", recorded)
    report = bench(vdeblur, tmp_path, "--dataset", pairs, "--restored", restored)
    assert {"theirs", "identity", "unsharp", "cas"} < report.keys()
    assert read.count(pairs / "wall" / "blur" / "00002.png") == 3, "identity and the filters restore it"
    assert read.count(restored / "wall" / "00002.png") == 1


def test_pictures_turned_by_their_camera_have_their_upright_size(tmp_path: Path) -> None:
    assert existing._size_of(photo(tmp_path / "turned.jpg", orientation=6, size="64x48")) == (48, 64)


def test_ideal_luma_keeps_the_blurry_colour(tmp_path: Path) -> None:
    random = numpy.random.default_rng(1)
    sharp = torch.from_numpy(random.integers(80, 170, (3, 20, 30), dtype=numpy.uint8))
    blurry = torch.from_numpy(random.integers(80, 170, (3, 20, 30), dtype=numpy.uint8))
    pictures.write_png(tmp_path / "s.png", sharp)
    pictures.write_png(tmp_path / "b.png", blurry)
    ideal = existing.ideal_luma(FramePair("x", tmp_path / "b.png", tmp_path / "s.png")).double()

    def to_ycbcr(rgb: torch.Tensor) -> torch.Tensor:
        y = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
        return torch.stack((y, (rgb[2] - y) / 1.772, (rgb[0] - y) / 1.402))

    found, from_sharp, from_blurry = map(to_ycbcr, (ideal, sharp.double(), blurry.double()))
    assert (found[0] - from_sharp[0]).abs().max() <= 0.5  # rounding
    assert (found[1:] - from_blurry[1:]).abs().max() <= 0.6


def test_the_ceiling_stands_beside_spn(vdeblur, pairs: Path, tmp_path: Path) -> None:
    assert contenders.with_ceiling(("spn", "unsharp")) == ("spn", "unsharp", "ideal-luma")
    assert contenders.with_ceiling(("lite", "identity")) == ("lite", "identity")
    report = bench(vdeblur, tmp_path, "--dataset", pairs, "-m", "ideal-luma")
    assert report["ideal-luma"]["psnr"] > report["identity"]["psnr"]


def test_papers_protocols_compute_in_float32(vdeblur, pairs: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        "vdeblur.bench.contenders.choose_precision", lambda wanted, *rest: "bf16" if wanted == "auto" else wanted
    )
    for protocol, precision in (("plain", "bf16"), ("dstnet", "fp32")):
        report = bench(vdeblur, tmp_path, "--dataset", pairs, "-m", "lite", "--protocol", protocol, "--limit", 1)
        assert report["lite"]["precision"] == precision
        row = next(line for line in report["stdout"].splitlines() if line.startswith("lite"))
        assert precision in row.split()
    named = bench(
        vdeblur, tmp_path, "--dataset", pairs, "--protocol", "dstnet", "-m", "lite", "-p", "bf16", "--limit", 1
    )
    assert named["lite"]["precision"] == "bf16"


def test_published_times_stand_beside_measured_ones(vdeblur, pairs: Path, tmp_path: Path, monkeypatch) -> None:
    text = '[quick]\nnetwork = "identity"\ndescription = "d"\nlicense = "MIT"\n'
    (tmp_path / "registry.toml").write_text(
        f'{text}time = {{ seconds = 0.2, size = "1280x720", device = "Titan Xp" }}\n'
    )
    monkeypatch.setenv("VDEBLUR_REGISTRY", str(tmp_path / "registry.toml"))
    report = bench(vdeblur, tmp_path, "--dataset", pairs, "-m", "quick", "--limit", 1)
    assert report["quick"]["published_time"]["seconds"] == 0.2
    assert "quick: 0.2 s/frame published (1280x720, Titan Xp)" in report["stdout"]
    result = vdeblur("bench", "--dataset", pairs, "-m", "quick", "--limit", 1, "--report", tmp_path / "r.md")
    assert result.exit_code == 0
    head, _, row = next(
        part for part in (tmp_path / "r.md").read_text().split("\n\n") if part.startswith("| model | precision")
    ).partition("\n")
    assert "published s/frame" in head
    assert "| fp32 |" in row


def test_registry_times_are_those_of_the_papers() -> None:
    seconds = {name: entry.time.seconds for name, entry in registry.known_models().items() if entry.time}
    assert seconds == {
        "cdvd-tsp": 2.09,
        "dstnet": 0.08,
        "dstnet-l": 0.28,
        "basicvsrpp": 0.1,
        "pvdnet": 0.28,
        "flow-rnn": 0.2,
        "estrnn": 0.073,
    }


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("flow-rnn", "0.2 s for a frame of 1280x720, Titan Xp"),
        (
            "pvdnet",
            "0.28 s for a frame of 1280x720, RTX 2080 Ti (measured by a user: issue 2 of the authors' repository)",
        ),
    ],
)
def test_models_show_prints_the_published_time_as_one_line(vdeblur, name: str, time: str) -> None:
    lines = vdeblur("models", "show", name).stdout.splitlines()
    assert [line for line in lines if line.startswith("published_time")] == [f"published_time: {time}"]


def test_a_wrong_time_in_a_registry_is_named(tmp_path: Path, vdeblur, monkeypatch) -> None:
    text = '[quick]\nnetwork = "identity"\ndescription = "d"\nlicense = "MIT"\ntime = { seconds = "soon" }\n'
    (tmp_path / "registry.toml").write_text(text)
    monkeypatch.setenv("VDEBLUR_REGISTRY", str(tmp_path / "registry.toml"))
    result = vdeblur("models", "list")
    assert result.exit_code == ExitStatus.MODEL
    assert "[quick] is not valid: device is missing" in result.stderr


@pytest.fixture
def qualitative(pairs: Path, tmp_path: Path) -> Path:
    """The folders of DVD's archive: one video with sharp frames, two without."""
    root = tmp_path / "DeepVideoDeblurring_Dataset" / "DeepVideoDeblurring_Dataset"
    for part, video, kinds in (
        ("quantitative_datasets", "IMG_0003", {"blur": "input", "sharp": "GT"}),
        ("qualitative_datasets", "alley", {"blur": "input"}),
        ("qualitative_datasets", "wall", {"blur": "input"}),
    ):
        for kind, name in kinds.items():
            source = pairs / ("wall" if video == "wall" else "alley") / kind
            (root / part / video).mkdir(parents=True, exist_ok=True)
            (root / part / video / name).symlink_to(source)
    return root.parent


def test_videos_without_sharp_frames(vdeblur, qualitative: Path, tmp_path: Path) -> None:
    options = ("--dataset", "dvd", "--split", "qualitative", "--data", qualitative, "-m", "lite")
    report = bench(vdeblur, tmp_path, *options, "--report", tmp_path / "r.html", "--save", tmp_path / "saved")
    row = report["lite"]
    assert (row["psnr"], row["ssim_2d"], row["ssim_3d"], row["frames"]) == (None, None, None, 10)
    assert 0 < row["sharpness"] < 1
    assert row["warping_error"] > 0
    assert report["identity"]["sharpness"] != row["sharpness"]
    assert [sequence["name"] for sequence in row["sequences"]] == ["alley", "wall"]
    assert len(list((tmp_path / "saved" / "lite" / "wall").iterdir())) == FRAMES
    assert "nan" not in report["stdout"]
    page = (tmp_path / "r.html").read_text()
    assert "Temporal profile of alley" in page
    assert "tenth of the frames" not in page, "a table without a number"
    assert "DVD qualitative (input): 10 frames" in report["stdout"]
    assert "Temporal profile: lite" in (tmp_path / "r.html").read_text()
    assert "Temporal profile: sharp" not in (tmp_path / "r.html").read_text()
    assert "worst frame of alley" in (tmp_path / "r.html").read_text()
    own = bench(vdeblur, tmp_path, "--dataset", qualitative, "--split", "qualitative", "-m", "identity", "--limit", 2)
    assert own["identity"]["frames"] == 4


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (
            (),
            ExitStatus.USAGE,
            "vdeblur does not download this split of dvd (unpack it by hand from https://www.cs.ubc",
        ),
        (("--data", "{}", "-m", "ideal-luma"), ExitStatus.USAGE, "ideal-luma compares with sharp frames"),
        (("--data", "{}", "--flow"), ExitStatus.USAGE, "--flow warps sharp frames"),
        (
            (
                "--data",
                "{}/DeepVideoDeblurring_Dataset/quantitative_datasets",
            ),
            ExitStatus.INPUT,
            "holds no videos without",
        ),
    ],
)
def test_what_needs_sharp_frames_is_refused(vdeblur, qualitative: Path, arguments, status: int, words: str) -> None:
    options = [str(argument).format(qualitative) for argument in arguments]
    result = vdeblur("bench", "--dataset", "dvd", "--split", "qualitative", "-d", "cpu", *options)
    assert result.exit_code == status, result.output
    assert words in result.stderr
