"""`vdeblur still`: one moment as a picture, made sharper by its neighbours."""

import json
from pathlib import Path

import av
import numpy
import pytest
import torch

from tests import clips
from vdeblur.datasets.pictures import write_png
from vdeblur.frame import plane_array


def write_pair(folder: Path, blurred: int) -> numpy.ndarray:
    """Write five frames of a pattern that moves right by 2 pixels each; blur one. Return that one, sharp."""
    generator = numpy.random.default_rng(1)
    fine = generator.uniform(40, 215, (8, 20, 3)).repeat(12, 0).repeat(12, 1)
    folder.mkdir()
    sharp = []
    for index in range(5):
        at = 20 - 2 * index
        frame = fine[:, at : at + 128]
        sharp.append(frame)
        if index == blurred:
            frame = numpy.mean([fine[:, at + shift : at + shift + 128] for shift in range(-2, 3)], 0)
        save(folder / f"{index}.png", frame.round().astype(numpy.uint8))
    return sharp[blurred]


def save(path: Path, rgb: numpy.ndarray) -> None:
    write_png(path, torch.from_numpy(rgb).permute(2, 0, 1))


def error(a: numpy.ndarray, b: numpy.ndarray) -> float:
    """Root mean square difference, without the border into which neighbours do not reach."""
    return float(numpy.sqrt(((a.astype(float) - b)[8:-8, 12:-12] ** 2).mean()))


def test_a_blurred_frame_takes_detail_from_its_neighbours(vdeblur, tmp_path: Path) -> None:
    truth = write_pair(tmp_path / "in", 2)
    alone, still = tmp_path / "alone.png", tmp_path / "still.png"
    options = ("-m", "identity", "--at", "0.08")
    assert vdeblur("still", tmp_path / "in", *options, "--neighbours", "0", "-o", alone).exit_code == 0
    result = vdeblur("still", tmp_path / "in", *options, "-o", still, "--json")
    assert result.exit_code == 0, result.output
    event = next(json.loads(line) for line in result.stdout.splitlines() if '"still"' in line)
    assert event["neighbours"] == 4
    assert event["at"] == 0.08
    before, after = (error(clips.ffmpeg_rgb(path), truth) for path in (alone, still))
    assert after < 0.75 * before


def test_what_is_sharp_or_differs_stays(vdeblur, tmp_path: Path) -> None:
    """A sharp frame keeps its detail, and a square that only a neighbour shows leaves no ghost."""
    truth = write_pair(tmp_path / "in", 1)
    picture = clips.ffmpeg_rgb(tmp_path / "in" / "3.png").copy()
    picture[24:48, 48:80] = 255
    save(tmp_path / "in" / "3.png", picture)
    sharp = clips.ffmpeg_rgb(tmp_path / "in" / "2.png")
    result = vdeblur("still", tmp_path / "in", "-m", "identity", "--at", "0.08", "-o", tmp_path / "still.png")
    assert result.exit_code == 0, result.output
    still = clips.ffmpeg_rgb(tmp_path / "still.png")
    assert truth.shape == still.shape
    assert error(still, sharp) < 2
    assert numpy.abs(still.astype(int) - sharp)[24:48, 48:80].max() < 24, "a ghost of the square"


def chunks(path: Path) -> list[bytes]:
    """Return a PNG's chunks but the samples: size, depth, colour tags."""
    data, found, at = path.read_bytes(), [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        found += [data[at : at + 8 + length]] if data[at + 4 : at + 8] != b"IDAT" else []
        at += 12 + length
    return found


def test_depth_tags_and_rotation(vdeblur, tmp_path: Path) -> None:
    tags = ("-color_primaries", "bt2020", "-color_trc", "smpte2084", "-colorspace", "bt2020nc")
    flat = clips.make(tmp_path / "flat.mp4", frames=6, pix_fmt="yuv420p10le", codec=("-c:v", "libx265", *tags))
    clip = tmp_path / "in.mp4"
    clips.ffmpeg("-display_rotation", "90", "-i", flat, "-c", "copy", clip)
    for name in ("still.png", "still.tiff"):
        assert vdeblur("still", clip, "-m", "identity", "--at", "0.1", "-o", tmp_path / name).exit_code == 0
        with av.open(str(tmp_path / name)) as container:
            picture = next(container.decode(video=0))
        assert (picture.width, picture.height) == (48, 64)
        assert picture.format.name.startswith("rgb48")
        samples = plane_array(picture.reformat(format="gbrp16le"), 0)
        assert len(numpy.unique(samples)) > 256, "no more than 8 bits"
    run = vdeblur("run", clip, f"{tmp_path}/run/%06d.png", "-m", "identity")
    assert run.exit_code == 0, run.output
    assert chunks(tmp_path / "still.png") == chunks(tmp_path / "run" / "000003.png")


def test_a_moment_is_the_frame_that_is_visible_then(vdeblur, tmp_path: Path) -> None:
    clip = clips.make(tmp_path / "in.mkv", frames=10)
    frames = clips.rgb(clip)
    for at, number in (("0", 0), ("0.119", 2), ("120ms", 3), ("0:00.39", 9)):
        out = tmp_path / f"{number}.png"
        options = ("--at", at, "-o", out, "-m", "identity", "--neighbours", "0")
        assert vdeblur("still", clip, *options).exit_code == 0
        assert numpy.abs(clips.ffmpeg_rgb(out).astype(int) - frames[number]).mean() < 1


@pytest.mark.parametrize("kind", ["mkv", "mp4", "y4m", "folder"])
def test_a_moment_beyond_the_end_names_the_length(vdeblur, tmp_path: Path, kind: str) -> None:
    clip = tmp_path / f"in.{kind}"
    if kind == "folder":
        clip.mkdir()
        clips.make(clip / "%03d.png", frames=10, codec=())
    else:
        codec = {"mkv": ("-c:v", "ffv1"), "mp4": ("-c:v", "libx264"), "y4m": ()}[kind]
        clips.make(clip, frames=10, codec=codec)
    for at in ("0.4", "1:00:00"):
        result = vdeblur("still", clip, "--at", at, "-o", tmp_path / "x.png")
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
        assert "it is 0.400 s long" in result.stderr
    result = vdeblur("run", clip, tmp_path / "out.mkv", "-ss", "9")
    assert result.exit_code == 3
    assert "0.400 s long" in result.stderr
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("output", "options", "status", "words"),
    [
        ("x.jpg", (), 2, "neither PNG nor TIFF"),
        ("-", (), 2, "takes no pipes"),
        ("old.png", (), 4, "exists already"),
        ("missing/x.png", (), 4, "does not exist"),
        ("x.png", ("-m", "nothing"), 5, "unknown model"),
        ("x.png", ("--at", "-1"), 2, "negative"),
    ],
)
def test_what_is_refused(
    vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, options: tuple[str, ...], status: int,
    words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    clips.make(Path("in.mkv"), frames=2)
    Path("old.png").write_bytes(b"precious")
    result = vdeblur("still", "in.mkv", "--at", "0", "-o", output, *options)
    assert result.exit_code == status, result.output
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert Path("old.png").read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["in.mkv", "old.png"]


def psnr_of_stills(vdeblur, shared: Path, tmp_path: Path, scene: str, numbers: range) -> tuple[float, float]:
    """Return the mean PSNR of frames restored by lite, and of stills, against the sharp frames."""
    truth = sorted((shared / "data" / "pairs" / scene / "sharp").glob("*.png"))
    means = []
    for neighbours in (0, 3):
        values = []
        for number in numbers:
            out = tmp_path / f"{neighbours}_{number}.png"
            options = ("--at", number / 25, "-o", out, "--neighbours", neighbours)
            assert vdeblur("still", shared / "data" / "pairs" / scene / "blur", *options).exit_code == 0
            values.append(clips.psnr(clips.ffmpeg_rgb(out)[None], clips.ffmpeg_rgb(truth[number])[None]))
        means.append(sum(values) / len(values))
    return means[0], means[1]


def test_real_blur(vdeblur, shared: Path, tmp_path: Path) -> None:
    lite, still = psnr_of_stills(vdeblur, shared, tmp_path, "reds_market", range(6, 7))
    assert still > lite + 0.3  # measured: 0.64


@pytest.mark.slow
@pytest.mark.parametrize(("scene", "gain"), [("reds_alley", 0.29), ("reds_market", 0.22), ("reds_wall", 0.27)])
def test_every_moment_of_real_blur(vdeblur, shared: Path, tmp_path: Path, scene: str, gain: float) -> None:
    lite, still = psnr_of_stills(vdeblur, shared, tmp_path, scene, range(10))
    assert still - lite == pytest.approx(gain, abs=0.05)


GLITCH = """
from vdeblur.networks.layers import Network


class Glitch(Network):
    feeding = "frame"

    def forward(self, frame):
        changed = frame + 8 / 255
        if frame.mean() FAILS 0.4:
            changed[..., 32:48, 48:64] += 0.5
        return changed
"""


@pytest.mark.parametrize(("fails", "neighbours", "codes"), [(">", 2, ["W_GLITCH"]), ("<", 0, [])])
def test_glitches_are_kept_out(vdeblur, tmp_path: Path, fails: str, neighbours: int, codes: list[str]) -> None:
    """`still` wrote a false light that `run` kept out. The network fails in the frame alone, or in its neighbours."""
    folder, out, network = tmp_path / "in", tmp_path / "x.png", tmp_path / "glitch.py"
    folder.mkdir()
    waves = numpy.sin(numpy.mgrid[:128, :128].sum(0) / 9)[..., None].repeat(3, 2) * 20
    for index, light in enumerate((92, 112, 92)):
        save(folder / f"{index}.png", (waves + light).round().astype(numpy.uint8))
    network.write_text(GLITCH.replace("FAILS", fails))
    options = ("-m", f"{network}:Glitch", "--at", "0.04", "--neighbours", "1", "--json", "-y", "-o", out)
    before, changes = clips.ffmpeg_rgb(folder / "1.png").astype(int), []
    for option in ("--guard", "--no-guard", "--quiet"):
        result = vdeblur("still", folder, *options, option)
        assert result.exit_code == 0, result.output
        changes.append(numpy.abs(clips.ffmpeg_rgb(out).astype(int) - before).max())
    event = next(json.loads(line) for line in result.stdout.splitlines() if '"still"' in line)
    assert (event["warnings"], event["neighbours"]) == (codes, neighbours)
    assert changes[0] == changes[2] < 16, "no false light, and the guard is on by default"
    assert changes[1] > 60 or not codes
