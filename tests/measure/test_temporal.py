"""Temporal consistency and sharpness: truths that hold without a reference implementation, and real pairs."""

import math
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.measure import temporal
from vdeblur.source.pictures import read_picture

PAIRS = ("reds_alley", "reds_market", "reds_wall")


def texture(height: int, width: int, seed: int = 0) -> Tensor:
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    smooth = F.avg_pool2d(F.pad(noise, (4, 4, 4, 4), mode="circular"), 9, 1)
    return (smooth - 0.5) * 4 + 0.5


def moving(count: int = 4, step: tuple[int, int] = (1, 3)) -> Tensor:
    wide = texture(160, 200)
    frames = [
        wide[..., 20 + step[0] * t : 116 + step[0] * t, 20 + step[1] * t : 148 + step[1] * t] for t in range(count)
    ]
    return torch.cat(frames)


def test_the_same_frame_again_is_steady() -> None:
    frames = texture(64, 80).expand(3, -1, -1, -1)
    assert temporal.warping_error(frames, frames) < 1e-12, "sampling rounds"


def test_motion_is_no_error() -> None:
    frames = moving()
    plain = float((frames[1:] - frames[:-1]).square().mean())
    assert temporal.warping_error(frames, frames) < 0.01 * plain


def test_flicker_is_counted_exactly() -> None:
    reference = texture(64, 80).expand(4, -1, -1, -1)
    flicker = torch.tensor([0.0, 0.1, 0.0, 0.1])[:, None, None, None]
    assert temporal.warping_error(reference + flicker, reference) == pytest.approx(0.01, rel=1e-4)


def test_flicker_is_counted_beside_motion() -> None:
    reference = moving()
    flicker = torch.tensor([0.0, 0.1, 0.0, 0.1])[:, None, None, None]
    assert temporal.warping_error(reference + flicker, reference) == pytest.approx(0.01, rel=0.1)


def test_what_is_covered_or_leaves_is_not_counted() -> None:
    still = torch.zeros(1, 2, 40, 60)
    assert temporal.is_seen(still, still).all()
    # A block of 10 columns moves right by 8: where it comes to is covered, the block itself is not.
    forward, backward = still.clone(), still.clone()
    forward[:, 0, :, 20:30] = 8
    backward[:, 0, :, 28:38] = -8
    seen = temporal.is_seen(forward, backward)[0, 0]
    assert not seen[:, 30:38].any()
    assert seen[:, 22:28].all()
    assert seen[:, :18].all()
    assert seen[:, 40:].all()
    away = torch.full((1, 2, 40, 60), 5.0)
    seen = temporal.is_seen(away, -away)[0, 0]
    assert seen[:35, :55].all()
    assert not seen[35:].any()
    assert not seen[:, 55:].any()


def test_one_frame_has_no_steadiness() -> None:
    assert math.isnan(temporal.warping_error(texture(32, 32), texture(32, 32)))


def reblurred(picture: numpy.ndarray) -> float:
    """Crété et al., step by step: (H, W, 3) in [0, 1] to 1 - blur."""
    luma = picture @ numpy.array([0.299, 0.587, 0.114])
    blurs = []
    for lines in (luma, luma.T):
        padded = numpy.pad(lines, ((0, 0), (4, 4)), mode="edge")
        averaged = numpy.stack([numpy.convolve(line, numpy.full(9, 1 / 9), mode="valid") for line in padded])
        before, after = numpy.abs(numpy.diff(lines)), numpy.abs(numpy.diff(averaged))
        blurs.append((before.sum() - numpy.maximum(before - after, 0).sum()) / before.sum())
    return float(1 - max(blurs))


def test_sharpness_is_as_defined() -> None:
    pictures = torch.cat([texture(50, 70), texture(50, 70, 1).clamp(0, 1)])
    expected = [reblurred(picture.permute(1, 2, 0).double().numpy()) for picture in pictures]
    assert temporal.sharpness(pictures).tolist() == pytest.approx(expected, abs=1e-9)


def test_sharpness_of_odd_pictures() -> None:
    stripes = torch.arange(64).remainder(2).float().expand(1, 3, 48, -1)
    assert temporal.sharpness(stripes)[0] > 0.8, "the direction without differences is passed over"
    assert temporal.sharpness(torch.full((1, 3, 48, 64), 0.3)).tolist() == [0]
    assert temporal.sharpness(torch.rand(2, 3, 1, 1)).tolist() == [0, 0]


def test_blur_along_one_direction_counts() -> None:
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    kernel = torch.full((3, 1, 1, 7), 1 / 7)
    smeared = F.conv2d(F.pad(picture, (3, 3, 0, 0), mode="replicate"), kernel, groups=3)
    for blurred in (smeared, smeared.transpose(2, 3)):
        assert temporal.sharpness(blurred)[0] < temporal.sharpness(picture)[0] - 0.1


def load(folder: Path) -> Tensor:
    pictures = [read_picture(path)[0].to_ndarray(format="rgb24") for path in sorted(folder.iterdir())]
    return torch.from_numpy(numpy.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def test_sharpness_tells_all_real_pairs_apart(shared: Path) -> None:
    blurry, sharp = (
        torch.stack([temporal.sharpness(load(shared / "data" / "pairs" / name / kind)) for name in PAIRS])
        for kind in ("blur", "sharp")
    )
    assert (blurry < sharp).all()
    assert blurry.max() < sharp.min(), "across scenes, too"


def test_real_frames_are_steadier_moved_than_not(shared: Path) -> None:
    for name in PAIRS:
        sharp = load(shared / "data" / "pairs" / name / "sharp")[:3]
        error = temporal.warping_error(sharp, sharp)
        assert error < 0.4 * float((sharp[1:] - sharp[:-1]).square().mean())
        noise = torch.randn(sharp.shape, generator=torch.Generator().manual_seed(0))
        noisy = (sharp + 0.05 * noise).clamp(0, 1)
        assert temporal.warping_error(noisy, sharp) > error + 0.002
