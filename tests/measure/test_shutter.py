"""The fit of a frame's exposure: made blur of known length, and real frames beside sharp ones."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.measure.test_blur import load
from vdeblur.measure.shutter import GAMMA, fit_shutter

SPEED = 8.0  # pixels a frame


def scene(height: int, width: int) -> Tensor:
    """Draw a texture whose amplitudes fall as 1/f^1.5, like those of photographs."""
    y, x = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    amplitude = (x * x + y * y).sqrt().clamp(min=1 / width) ** -1.5
    random = torch.randn(height, width, generator=torch.Generator().manual_seed(2))
    texture = torch.fft.irfft2(torch.fft.rfft2(random) * amplitude, (height, width))
    return (0.5 + 0.15 * texture / texture.std()).clamp(0, 1)[None, None]


def exposed(picture: Tensor, time: float, share: float) -> Tensor:
    """Return 120x200 pixels of a picture that moves to the right, as an exposure around a time sees them."""
    light, total = picture**GAMMA, torch.zeros(1, 1, 120, 200)
    moments = [time + share * (step / 20 - 0.5) for step in range(21)] if share else [time]
    for moment in moments:
        begin = 40 - SPEED * moment
        whole, part = math.floor(begin), begin - math.floor(begin)
        total += (1 - part) * light[..., whole : whole + 200] + part * light[..., whole + 1 : whole + 201]
    return (total / len(moments)) ** (1 / GAMMA)


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_made_exposure_is_found(share: float) -> None:
    picture = scene(120, 300)
    before, blurred, after = (exposed(picture, time, share if time == 0 else 0) for time in (-1.0, 0.0, 1.0))
    fit = fit_shutter(before, blurred, after, after)
    assert fit is not None
    assert fit.share == pytest.approx(share, abs=0.15)
    assert fit.gain > 1


def test_defocus_is_not_explained_by_motion() -> None:
    picture = scene(120, 300)
    frames = [exposed(picture, time, 0) for time in (0.0, 0.02, 0.04)]
    soft = F.avg_pool2d(F.pad(frames[1], (2, 2, 2, 2), mode="replicate"), 5, 1)
    assert fit_shutter(frames[0], soft, frames[2], frames[2]) is None


def test_real_frames_beside_sharp_ones(shared: Path) -> None:
    shares = []
    for scene_name in ("reds_alley", "reds_market", "reds_wall"):
        folder = shared / "data" / "pairs" / scene_name
        blurred, sharp = load(folder / "blur")[6:9], load(folder / "sharp")[6:9]
        fit = fit_shutter(blurred[0], blurred[1], blurred[2], sharp[0])
        assert fit is not None
        shares.append(fit.share)
        assert fit_shutter(sharp[0], sharp[1], sharp[2], sharp[0]) is None, "sharp frames were exposed briefly"
    assert all(0.4 <= share <= 1 for share in shares), shares
