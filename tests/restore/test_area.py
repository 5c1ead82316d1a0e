"""`run --region` and `--mask`: restored there alone, bit-exact elsewhere, without a seam, and quickly."""

import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy
import pytest
import torch

from tests import clips
from vdeblur import deblur
from vdeblur.errors import ExitStatus, UsageError
from vdeblur.frame import Frame, plane_array
from vdeblur.networks.identity import Identity
from vdeblur.restore import area
from vdeblur.restore.area import EDGE, Area
from vdeblur.settings import Settings
from vdeblur.source.upright import ORIENTATIONS, turn_upright

WIDTH, HEIGHT = 161, 97
NETWORK = '''
from pathlib import Path

import torch
from torch.nn import functional as F
from vdeblur.networks.layers import Network


class Brightens(Network):
    """Smooths, and brightens by 20 codes; writes down how many pixels it saw."""

    feeding = "neighbours"
    overlap, reach, multiple = 8, 1, 4

    def forward(self, previous, frame, following):
        with Path(__file__).with_name("seen").open("a") as file:
            file.write(f"{frame.shape[2] * frame.shape[3]}\\n")
        return F.avg_pool2d(F.pad(frame, (1, 1, 1, 1), "replicate"), 3, 1) + 20 / 255
'''


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NETWORK)
    return clips.make(tmp_path / "in.mkv", size=f"{WIDTH}x{HEIGHT}", frames=3)


@pytest.fixture
def words(clip: Path, tmp_path: Path) -> tuple[object, ...]:
    return ("run", clip, tmp_path / "out.mkv", "-m", f"{tmp_path}/net.py:Brightens", "--lossless", "-y")


def planes(path: Path) -> list[numpy.ndarray]:
    """Return Y, Cb and Cr of all frames: int (T, h, w)."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [numpy.stack([plane_array(frame, index) for frame in frames]).astype(int) for index in range(3)]


def changes(clip: Path, output: Path) -> list[numpy.ndarray]:
    return [abs(after - before) for before, after in zip(planes(clip), planes(output), strict=True)]


def draw(path: Path, picture: numpy.ndarray) -> Path:
    """Write a gray picture, uint8 (H, W)."""
    frame = av.VideoFrame.from_ndarray(numpy.ascontiguousarray(picture), "gray")
    codec = av.CodecContext.create("mjpeg" if path.suffix == ".jpg" else "png", "w")
    codec.width, codec.height, codec.time_base = frame.width, frame.height, 1  # type: ignore[assignment]
    codec.pix_fmt = "yuvj444p" if path.suffix == ".jpg" else "gray"
    packets = codec.encode(frame.reformat(format=codec.pix_fmt)) + codec.encode(None)
    path.write_bytes(b"".join(bytes(packet) for packet in packets))
    return path


def masked(*white: tuple[slice, slice]) -> numpy.ndarray:
    mask = numpy.zeros((HEIGHT, WIDTH), numpy.uint8)
    for place in white:
        mask[place] = 255
    return mask


@pytest.mark.parametrize("tile", ["none", "32"])
def test_only_the_region_is_restored(vdeblur, words: tuple[object, ...], clip: Path, tmp_path: Path, tile: str) -> None:
    """An odd place and size in 4:2:0: chroma samples that reach out of the region stay, too."""
    assert vdeblur(*words, "--tile", "none").exit_code == 0
    whole = planes(tmp_path / "out.mkv")
    result = vdeblur(*words, "--region", "51x35+33+21", "--tile", tile, "--json")
    assert result.exit_code == 0, result.output
    plan, done = [
        event for event in map(json.loads, result.stdout.splitlines()) if event["event"] in ("plan", "file_done")
    ]
    assert plan["restored_share"] == pytest.approx(51 * 35 / (WIDTH * HEIGHT), abs=1e-4)
    luma, *chroma = changes(clip, tmp_path / "out.mkv")
    inside = masked((slice(21, 56), slice(33, 84))) > 0
    assert not luma[:, ~inside].any()
    assert (luma[:, inside] > 0).mean() > 0.9
    assert done["change"]["mean_change"] == pytest.approx(luma[:, inside].mean(), rel=0.01), "the mean of the region"
    for plane in chroma:  # rows 11 to 27 and columns 17 to 41 lie inside with all their luma samples
        kept = plane.copy()
        kept[:, 11:28, 17:42] = 0
        assert not kept.any()
    core = (slice(None), slice(21 + EDGE, 56 - EDGE), slice(33 + EDGE, 84 - EDGE))
    assert (planes(tmp_path / "out.mkv")[0][core] == whole[0][core]).all(), "as in a run on the whole picture"
    seen = [int(line) for line in (tmp_path / "net.py").with_name("seen").read_text().split()]
    assert max(seen[3:]) <= (35 + 2 * 8 + 7) * (51 + 2 * 8 + 7), "the network gets the region and what it needs around"


def test_no_seam_is_visible() -> None:
    wanted = torch.zeros(60, 80)
    wanted[10:50, 20:] = 1
    found = Area.of(wanted, Identity(), 0)
    weights = torch.zeros(60, 80)
    weights[found.rows, found.columns] = found.weights
    assert (weights[10:50, 20:] > 0).all()
    assert not weights[wanted == 0].any()
    assert (weights[10 + EDGE : 50 - EDGE, 20 + EDGE :] == 1).all(), "the border of the picture is no edge"
    assert weights.diff(dim=0).abs().max() <= 1 / EDGE + 1e-6
    assert weights.diff(dim=1).abs().max() <= 1 / EDGE + 1e-6


@pytest.mark.parametrize(("height", "whole"), [(1, 1), (2, 2), (12, 8), (40, 26)])
def test_the_middle_of_a_narrow_area_is_restored_entirely(height: int, whole: int) -> None:
    wanted = torch.zeros(60, 80)
    wanted[10 : 10 + height, 20:60] = 1
    found = Area.of(wanted, Identity(), 0)
    assert int((found.weights == 1).any(1).sum()) == whole


@pytest.mark.parametrize("name", ["mask.png", "mask.jpg"])
def test_a_mask_restores_white_and_partly_grey(
    vdeblur, words: tuple[object, ...], clip: Path, tmp_path: Path, name: str
) -> None:
    mask = masked((slice(16, 64), slice(16, 64)))
    mask[16:64, 96:144] = 128
    result = vdeblur(*words, "--mask", draw(tmp_path / name, mask))
    assert result.exit_code == 0, result.output
    assert "in 30% of the picture" in result.output
    luma = changes(clip, tmp_path / "out.mkv")[0].mean(0)
    assert not luma[80:].any()
    assert not luma[16:64, 72:88].any()
    white, grey = (luma[28:52, left : left + 24].mean() for left in (28, 108))
    assert white > 15
    assert 0.4 * 20 < grey < 14
    both = vdeblur(*words, "--mask", tmp_path / name, "--region", "40x97+0+0")
    assert both.exit_code == 0
    luma = changes(clip, tmp_path / "out.mkv")[0]
    assert luma[:, 20:60, 20:36].all(0).any()
    assert not luma[:, :, 40:].any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_are_turned_as_frames_are(orientation: int) -> None:
    stored = numpy.random.default_rng(0).integers(0, 255, (40, 64), dtype=numpy.uint8)
    upright = turn_upright(av.VideoFrame.from_ndarray(stored, "gray"), orientation).to_ndarray()
    turned = area._as_stored(torch.from_numpy(upright.copy()), orientation)
    assert numpy.array_equal(turned.numpy(), stored)
    assert orientation in ORIENTATIONS.values()


def test_a_region_of_a_video_that_players_turn(vdeblur, words: tuple[object, ...], clip: Path, tmp_path: Path) -> None:
    """The upright picture is 97x161; its top right corner is the top left one as it is stored."""
    turned = tmp_path / "turned.mkv"
    clips.ffmpeg("-display_rotation:v:0", "-90", "-i", clip, "-c", "copy", turned)
    result = vdeblur("run", turned, *words[2:], "--region", "40x48+57+0")
    assert result.exit_code == 0, result.output
    luma = changes(turned, tmp_path / "out.mkv")[0]
    assert luma[:, 5:20, 5:20].any()
    assert not luma[:, 40:].any()
    assert not luma[:, :, 48:].any()
    assert "which is 97x161" in vdeblur("run", turned, *words[2:], "--region", "98x10+0+0").output


def test_another_mask_is_another_run(vdeblur, words: tuple[object, ...], clip: Path, tmp_path: Path) -> None:
    mask = draw(tmp_path / "mask.png", masked((slice(0, 48), slice(0, 80))))
    share = (*words[:-1], "--segment", "0.04", "--mask", mask, "--share", "2/3")
    assert vdeblur(*share).exit_code == 0
    resumed = vdeblur(*share[:-2], "--json")
    segments = [event for event in map(json.loads, resumed.stdout.splitlines()) if event["event"] == "segment"]
    assert [event["index"] for event in segments] == [0, 2], "one was finished"
    (tmp_path / "out.mkv").unlink()
    assert vdeblur(*share).exit_code == 0
    draw(mask, masked((slice(48, 97), slice(0, 80))))
    assert "the mask changed since" in vdeblur(*share[:-2]).output
    assert not changes(clip, tmp_path / "out.mkv")[0][:, :48].any()
    (tmp_path / "out.mkv").unlink()
    assert vdeblur(*share, "--region", "64x64+0+0").exit_code == 0
    other = vdeblur(*share[:-2], "--region", "60x64+0+0")
    assert "--region changed since" in other.output


@pytest.mark.parametrize(
    ("region", "words_of_it"),
    [("51x35", "is not a region"), ("51x35+1", "is not a region"), ("0x5+0+0", "is empty"),
     ("51x35-1+0", "is not a region"), ("fifty", "is not a region"), ("162x10+0+0", "reaches out of"),
     ("100x50+62+0", "reaches out of"), ("10x10+0+999999999", "reaches out of"),
     ("9999999999x1+0+0", "is not a region")],
)  # fmt: skip
def test_regions_that_do_not_fit(
    vdeblur, words: tuple[object, ...], tmp_path: Path, region: str, words_of_it: str
) -> None:
    result = vdeblur(*words, "--region", region)
    assert result.exit_code == ExitStatus.USAGE, result.output
    assert words_of_it in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out.mkv").exists()


def test_masks_that_do_not_fit(vdeblur, words: tuple[object, ...], clip: Path, tmp_path: Path) -> None:
    white = draw(tmp_path / "white.png", masked((slice(None), slice(None))))
    (tmp_path / "cut.png").write_bytes(white.read_bytes()[:-20])
    (tmp_path / "text.png").write_text("#EXTM3U\nhttp://127.0.0.1:9/x.ts\n")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    enormous = bytearray(white.read_bytes())
    enormous[16:24] = (60000).to_bytes(4) * 2
    (tmp_path / "enormous.png").write_bytes(enormous)
    cases = {
        "none.png": (ExitStatus.INPUT, "does not exist"),
        "text.png": (ExitStatus.INPUT, "is no still picture"),
        "folder.png": (ExitStatus.INPUT, "is no still picture"),
        "pipe.png": (ExitStatus.INPUT, "is no still picture"),
        "in.mkv": (ExitStatus.INPUT, "is no still picture"),
        "cut.png": (ExitStatus.INPUT, "it is cut off"),
        "enormous.png": (ExitStatus.USAGE, "is 60000x60000, and the upright picture is 161x97"),
        "small.png": (ExitStatus.USAGE, "is 64x48, and the upright picture is 161x97"),
        "black.png": (ExitStatus.USAGE, "is all black"),
    }
    draw(tmp_path / "small.png", numpy.full((48, 64), 255, numpy.uint8))
    draw(tmp_path / "black.png", masked())
    for name, (status, text) in cases.items():
        result = vdeblur(*words, "--mask", tmp_path / name)
        assert result.exit_code == status, result.output
        assert text in result.stderr, name
        assert len(result.stderr.splitlines()) == 1
        assert not (tmp_path / "out.mkv").exists()
    corner = draw(tmp_path / "corner.png", masked((slice(0, 9), slice(0, 9))))
    result = vdeblur(*words, "--mask", corner, "--region", "9x9+9+9")
    assert "is black in all of --region" in result.stderr


def test_transparent_is_black() -> None:
    pixels = numpy.full((16, 16, 4), 255, numpy.uint8)
    pixels[:, 8:, 3] = 0
    picture = av.VideoFrame.from_ndarray(pixels, "rgba")
    found = area._brightness(Frame(picture, 0, Fraction(1)))
    assert torch.equal(found, (torch.arange(16) < 8).float().expand(16, 16))


def test_several_files_and_the_api(vdeblur, words: tuple[object, ...], clip: Path, tmp_path: Path) -> None:
    small = clips.make(tmp_path / "small.mkv", size="64x48", frames=2)
    result = vdeblur("run", clip, small, tmp_path / "done/", *words[3:], "--region", "64x40+40+40")
    assert result.exit_code == ExitStatus.BATCH
    assert "small.mkv, which is 64x48" in result.output
    assert changes(clip, tmp_path / "done" / "in.mkv")[0].any()
    assert not (tmp_path / "done" / "small.mkv").exists()
    deblur(clip, tmp_path / "api.mkv", model=str(words[4]), lossless=True, region="64x40+40+40")
    assert clips.frame_hashes(tmp_path / "api.mkv") == clips.frame_hashes(tmp_path / "done" / "in.mkv")
    assert Settings(region="64x40+40+41").region == (64, 40, 40, 41)
    with pytest.raises(UsageError, match="region 'x' is not a region"):
        Settings(region="x")


@pytest.mark.parametrize("pixel_format", ["gray", "gbrp10le", "yuv444p10le", "yuv411p", "yuv410p"])
def test_every_format_is_exact_outside(vdeblur, words: tuple[object, ...], tmp_path: Path, pixel_format: str) -> None:
    source = clips.make(tmp_path / "source.mkv", size="96x64", frames=1, pix_fmt=pixel_format)
    assert vdeblur("run", source, *words[2:], "--region", "37x27+31+19").exit_code == 0
    sides = []
    for path in (source, tmp_path / "out.mkv"):
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            assert frame.format.name == pixel_format
            sides.append([plane_array(frame, index).astype(int) for index in range(len(frame.planes))])
    for before, after in zip(*sides, strict=True):
        across, down = 96 // before.shape[1], 64 // before.shape[0]
        changed = before != after
        assert changed.any()
        rows, columns = numpy.flatnonzero(changed.any(1)), numpy.flatnonzero(changed.any(0))
        assert rows[0] * down >= 19
        assert (rows[-1] + 1) * down <= 19 + 27
        assert columns[0] * across >= 31
        assert (columns[-1] + 1) * across <= 31 + 37
