"""Whether the shipped weights restore: on real pairs where they are at hand, and on clips blurred here."""

from pathlib import Path

import numpy
import pytest
import torch
from torch.nn import functional as F

from tests import clips
from tests.conftest import ROOT
from vdeblur.datasets.pictures import read_rgb
from vdeblur.models import weights
from vdeblur.restore import streams, tiles
from vdeblur.synth.clips import ClipShape, render_clip

SEQUENCES = ("reds_alley", "reds_market", "reds_wall")


def load(folder: Path) -> numpy.ndarray:
    frames = [read_rgb(path).permute(1, 2, 0).numpy() for path in sorted(folder.iterdir())]
    return numpy.stack(frames)


def restore_folder(vdeblur, folder: Path, output: Path) -> numpy.ndarray:
    result = vdeblur("run", folder, output)
    assert result.exit_code == 0, result.output
    return load(output)


def test_lite_restores_real_pairs(vdeblur, shared: Path, tmp_path: Path) -> None:
    """By the real command, as MODEL_CARD.md states it: RGB PSNR per frame, 8 bit, mean over frames."""
    gains = []
    for name in SEQUENCES:
        pair = shared / "data" / "pairs" / name
        restored = restore_folder(vdeblur, pair / "blur", tmp_path / name)
        sharp = load(pair / "sharp")
        gains.append(clips.psnr(restored, sharp) - clips.psnr(load(pair / "blur"), sharp))
    assert min(gains) > 0, "no sequence may get worse"
    assert numpy.mean(gains) >= 1.0


def test_lite_leaves_sharp_frames_alone(vdeblur, shared: Path, tmp_path: Path) -> None:
    for name in SEQUENCES:
        sharp = shared / "data" / "pairs" / name / "sharp"
        assert clips.psnr(restore_folder(vdeblur, sharp, tmp_path / name), load(sharp)) >= 36


@pytest.mark.slow
@pytest.mark.parametrize("name", ["walk_gopro_max.mp4", "person_garden.mp4", "bbb_1080p60.mp4"])
def test_lite_leaves_sharp_video_alone(vdeblur, shared: Path, tmp_path: Path, name: str) -> None:
    """Sharp video reduced to half its size, against itself."""
    small = tmp_path / "small.mkv"
    scale = "scale=trunc(iw/4)*2:trunc(ih/4)*2:flags=area"
    clips.ffmpeg("-i", shared / "data" / "sharp" / name, "-an", "-vf", scale, "-frames:v", 8, "-c:v", "ffv1", small)
    output = tmp_path / "out.mkv"
    assert vdeblur("run", small, output, "--lossless").exit_code == 0
    assert clips.psnr(clips.rgb(output), clips.rgb(small)) >= 36


def test_lite_restores_what_is_blurred_here() -> None:
    """Clips made from a frame of the example, reduced until it is sharp; nobody's data set is needed."""
    frame = clips.rgb(ROOT / "examples" / "square.mp4")[-1]
    picture = F.interpolate(
        torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float(), scale_factor=0.5, mode="area"
    )[0]
    network = weights.load_model("lite")
    plan = tiles.cut_tiles(96, 96, None, 0, tiles.TileNeeds(network.multiple))
    gains = []
    for seed in range(24):
        generator = torch.Generator().manual_seed(seed * 7919)
        shape = ClipShape(5, 96)
        blurry, sharp = (clip.float() / 255 for clip in render_clip(generator, [picture.to(torch.uint8)], shape))
        if torch.equal(blurry, sharp):
            continue
        with torch.inference_mode():
            restored = torch.cat(list(streams.stream(network, iter(blurry.split(1)), plan))).clamp(0, 1)
        before, after = (blurry - sharp).square().mean(), (restored - sharp).square().mean()
        gains.append(float(10 * torch.log10(before / after)))
    assert numpy.mean(gains) > 0.3
