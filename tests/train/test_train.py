"""Synthetic clips with a known truth, and losses."""

import numpy
import pytest
import torch

from vdeblur.datasets.held_out import is_held_out
from vdeblur.synth import clips
from vdeblur.train import losses

SHAPE = clips.ClipShape(3, 32)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def stills() -> list[torch.Tensor]:
    coarse = torch.rand(3, 3, 20, 25, generator=generator(0))
    fine = torch.nn.functional.interpolate(coarse, (160, 200), mode="bicubic")
    return list((fine.clamp(0, 1) * 255).to(torch.uint8))


def test_a_clip_is_a_function_of_its_seed(stills: list[torch.Tensor]) -> None:
    first, again = (clips.render_clip(generator(3), stills, SHAPE) for _ in range(2))
    other = clips.render_clip(generator(4), stills, SHAPE)
    assert first[0].shape == first[1].shape == (3, 3, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_blur_is_where_motion_is(stills: list[torch.Tensor]) -> None:
    """Clips are blurrier than their truth, but for the share that is meant to be sharp."""
    sharp_clips = 0
    for seed in range(30):
        blurry, sharp = (clip.float() for clip in clips.render_clip(generator(seed), stills, SHAPE))
        if torch.equal(blurry, sharp):
            sharp_clips += 1
            continue
        assert 5 < (10 * torch.log10(255**2 / (blurry - sharp).square().mean())) < 60
    assert 0 < sharp_clips < 12


def test_a_path_has_the_speed_asked_for() -> None:
    times = torch.arange(0, 7, 0.1)
    for seed in range(10):
        path = clips.draw_path(generator(seed), times, 6.0, 160)
        points = torch.tensor([[0.0, 0, 1], [0.8, 0.8, 1], [-0.8, 0.8, 1], [0.8, -0.8, 1], [-0.8, -0.8, 1]])
        places = torch.einsum("nij,pj->npi", path, points)
        places = places[..., :2] / places[..., 2:] * 80
        travelled = (places[1:] - places[:-1]).norm(dim=-1).sum(0).mean() / (times[-1] - times[0])
        assert travelled == pytest.approx(6.0, rel=0.35), "slants and limits bend the figure a little"


def test_averaging_real_frames() -> None:
    frames = (torch.rand(60, 3, 96, 128, generator=generator(1)) * 255).to(torch.uint8)
    blurry, sharp = clips.average_clip(generator(2), frames, SHAPE)
    assert blurry.shape == sharp.shape == (3, 3, 32, 32)
    assert blurry.float().std() < sharp.float().std()


def test_compression_keeps_the_picture(stills: list[torch.Tensor]) -> None:
    gray = stills[0].float().mean(0, keepdim=True).expand(3, -1, -1).to(torch.uint8)  # chroma is halved in size
    clip = torch.stack([gray[:, :64, k : k + 64] for k in range(3)])
    coded = clips.compress(clip, 20)
    assert coded.shape == clip.shape
    assert 0 < (coded.float() - clip.float()).abs().mean() < 3


def test_validation_photographs_are_kept_apart() -> None:
    names = [f"picture_{index}.jpg" for index in range(1000)]
    held_out = [name for name in names if is_held_out(name)]
    assert 60 < len(held_out) < 140
    assert is_held_out(held_out[0])


def test_losses_against_their_definitions() -> None:
    a, b = torch.rand(2, 3, 3, 8, 8), torch.rand(2, 3, 3, 8, 8)
    difference = (a - b).double().numpy()
    assert float(losses.charbonnier(a, b)) == pytest.approx(numpy.sqrt(difference**2 + 1e-6).mean(), rel=1e-5)
    transform = numpy.fft.rfft2(difference, norm="ortho")
    expected = (abs(transform.real).mean() + abs(transform.imag).mean()) / 2
    assert float(losses.spectral(a, b)) == pytest.approx(expected, rel=1e-5)
    expected = numpy.log((difference**2).mean((-1, -2, -3)) + 1e-4).mean()
    assert float(losses.log_error(a, b)) == pytest.approx(expected, rel=1e-5)
