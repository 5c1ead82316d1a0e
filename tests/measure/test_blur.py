"""The blur measure: values that follow from its definition, made blur, and real pairs."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.measure import blur
from vdeblur.source.pictures import read_picture


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(seed))


def moved(picture: Tensor, step: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Cut three frames from a picture, each `step` pixels further right."""
    width = picture.shape[-1] - 2 * step
    before, now, after = (picture[..., step * t : step * t + width] for t in (2, 1, 0))
    return before, now, after


def test_white_noise_has_slope_0_and_its_own_strength() -> None:
    found = blur.blur_of(*moved(noise(240, 328)))
    assert found.motion == pytest.approx(4, abs=0.1)
    assert found.slope_along == pytest.approx(0, abs=0.05)
    weak = 0.5 + 0.02 * torch.randn(1, 1, 240, 320, generator=torch.Generator().manual_seed(1))
    assert blur.blur_of(None, weak, None).noise == pytest.approx(0.4 * 0.02 * 255, rel=0.05)


def test_a_smooth_picture_has_the_least_slope() -> None:
    y, x = torch.meshgrid(torch.arange(200.0), torch.arange(300.0), indexing="ij")
    smooth = (0.5 + 0.2 * (x / 40).sin() + 0.2 * (y / 50).cos())[None, None]
    found = blur.blur_of(None, smooth, None, per_block=True)
    assert found.slope_along == pytest.approx(2 * math.log(1 / 4), abs=0.05)
    assert found.motion == 0
    assert math.isnan(found.alikeness)
    assert found.blocks is not None
    assert found.blocks.shape == (1, 1, 4, 5)
    assert float(found.blocks.nanmean()) == pytest.approx(2 * math.log(1 / 4), abs=0.1)


def test_a_picture_of_one_colour_is_sharp_and_has_no_map() -> None:
    flat = torch.full((1, 1, 96, 128), 0.4)
    found = blur.blur_of(flat, flat, flat, per_block=True)
    assert found.slope_along == pytest.approx(0, abs=1e-6)
    assert found.noise == pytest.approx(0, abs=1e-3)
    assert found.blocks is not None
    assert found.blocks.isnan().all()


def test_motion_blur_shows_along_the_motion_alone() -> None:
    texture = F.avg_pool2d(noise(244, 344), 3, 1)
    blurred = F.avg_pool2d(texture, (1, 7), 1)
    sharp, motion = (blur.blur_of(*moved(picture)) for picture in (texture, blurred))
    assert motion.slope_along < sharp.slope_along - 0.4
    assert motion.slope_across == pytest.approx(sharp.slope_across, abs=0.1)
    disk = blur.blur_of(*moved(F.avg_pool2d(texture, 7, 1)))
    assert disk.slope_across < sharp.slope_across - 0.4


@pytest.mark.parametrize("missing", ["previous", "following", "both"])
def test_frames_at_the_ends_of_a_scene(missing: str) -> None:
    before, now, after = moved(F.avg_pool2d(noise(124, 204), 3, 1))
    whole = blur.blur_of(before, now, after)
    found = blur.blur_of(
        None if missing in ("previous", "both") else before, now, None if missing in ("following", "both") else after
    )
    if missing != "both":
        assert found.motion == pytest.approx(whole.motion, abs=0.1)
        assert found.slope_along == pytest.approx(whole.slope_along, abs=0.03)
    assert found.slope_along < -0.5


def test_reduction_averages_areas() -> None:
    picture = noise(720, 812)
    reduced = blur.reduced_luma(picture)
    assert reduced.shape == (1, 1, 540, 609)
    fine = picture.repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert torch.allclose(reduced, F.avg_pool2d(fine, 4), atol=1e-6)
    tall = noise(1300, 1080)
    assert torch.allclose(blur.reduced_luma(tall), F.avg_pool2d(tall, 2), atol=1e-6)
    assert blur.reduced_luma(picture[..., :540]).shape[-1] == 540, "the short side is small enough already"


def test_strength() -> None:
    assert [blur.strength_of(slope) for slope in (0.0, -1.6, -1.8, -2.0, -2.5)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert blur.strength_of(-1.6, highest=-1.4) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("along", "across", "motion", "strength", "alike", "bits", "kind"),
    [
        (-0.8, -0.8, 3.0, 1.8, 0.3, None, "noise"),
        (-0.8, -0.8, 3.0, 4.0, 0.9, None, "noise"),
        (-2.3, -1.8, 5.0, 0.3, 0.9, None, "motion blur"),
        (-2.3, -2.3, 5.0, 0.3, 0.9, None, "defocus"),
        (-2.4, -2.2, 5.0, 0.3, 0.9, None, "motion blur"),
        (-2.4, -2.2, 2.0, 0.3, 0.9, None, "defocus"),  # so little motion cannot blur so much
        (-2.3, -2.1, 0.2, 0.3, math.nan, 0.02, "defocus"),
        (-2.3, -2.1, 0.2, 0.3, math.nan, 0.01, "compression"),
        (-0.8, -0.8, 3.0, 1.8, 0.9, None, "sharp"),
        (-1.95, -1.75, 2.0, 0.3, 0.9, 0.01, "motion blur"),
        (-1.95, -1.85, 2.0, 0.3, 0.9, 0.2, "soft"),
        (-1.5, -1.5, 2.0, 0.3, 0.9, 0.2, "sharp"),
    ],
)
def test_kinds(
    along: float, across: float, motion: float, strength: float, alike: float, bits: float | None, kind: str
) -> None:
    assert blur.kind_of(blur.BlurMeasure(along, across, motion, strength, alike), bits) == kind


def test_edges_of_blocks() -> None:
    picture = F.avg_pool2d(noise(162, 242), 3, 1)
    assert blur.block_edges(picture) == pytest.approx(1, abs=0.1)
    blocks = F.avg_pool2d(picture, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert blur.block_edges(0.3 * picture + 0.7 * blocks) > 1.2
    assert blur.block_edges(blocks) > 100
    assert blur.block_edges(torch.zeros(1, 1, 4, 4)) == 1
    assert blur.kind_of(blur.BlurMeasure(-2.1, -2.1, 0.0, 0.1, 0.9), None, 1.3) == "compression"


def load(folder: Path) -> list[Tensor]:
    arrays = (read_picture(path)[0].to_ndarray(format="rgb24") for path in sorted(folder.iterdir()))
    return [
        blur.reduced_luma(blur.luma_from_rgb(torch.from_numpy(a).permute(2, 0, 1)[None].float() / 255)) for a in arrays
    ]


def slopes(frames: list[Tensor]) -> list[blur.BlurMeasure]:
    return [
        blur.blur_of(before, now, after)
        for before, now, after in zip([None, *frames[:-1]], frames, [*frames[1:], None], strict=True)
    ]


@pytest.mark.parametrize("scene", ["reds_alley", "reds_market", "reds_wall"])
def test_all_real_pairs_are_told_apart(shared: Path, scene: str) -> None:
    blurred, sharp = (slopes(load(shared / "data" / "pairs" / scene / kind)) for kind in ("blur", "sharp"))
    # Measured: sharp -1.53 to -1.32, blurred -2.33 to -1.59, across scenes.
    assert all(-1.56 < found.slope_along < -1.25 for found in sharp)
    assert all(found.slope_along < -1.57 for found in blurred)
    assert {blur.kind_of(found) for found in sharp} == {"sharp"}
    assert sum(blur.kind_of(found) == "motion blur" for found in blurred) >= 4
    assert "defocus" not in {blur.kind_of(found) for found in blurred}
