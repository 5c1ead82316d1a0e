"""lite's view along the motion: samples against their definition in float64, and against blur that is known."""

import numpy
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.models import weights
from vdeblur.networks import lite, lucas_kanade
from vdeblur.networks.lite import Lite, look_along_motion, luma_of
from vdeblur.restore import streams, tiles

SHIFT = 4.0  # pixels a frame, to the right


def texture(width: int = 160) -> Tensor:
    noise = torch.rand(1, 3, 24, width // 4, generator=torch.Generator().manual_seed(3))
    large = F.interpolate(noise, (96, width), mode="bicubic", align_corners=False)
    return large.clamp(0.05, 0.95)


def moved(picture: Tensor, pixels: float) -> Tensor:
    """Shift a picture to the right by a fraction of pixels, and cut out its middle (1, 3, 96, 96)."""
    grid = F.affine_grid(torch.eye(2, 3)[None], list(picture.shape), align_corners=False)
    grid[..., 0] -= 2 * pixels / picture.shape[3]
    return F.grid_sample(picture, grid, mode="bicubic", padding_mode="reflection", align_corners=False)[..., 32:128]


def blurred(picture: Tensor, centre: float, exposure: float) -> Tensor:
    """Average light while the picture moves by SHIFT a frame, around a moment."""
    moments = (torch.arange(33) / 32 - 0.5) * exposure + centre
    light = torch.stack([moved(picture, float(moment) * SHIFT).clamp(0.01) ** 2.2 for moment in moments])
    return light.mean(0) ** (1 / 2.2)


def view_of(exposure: float) -> tuple[Tensor, Tensor, lite.View]:
    picture = texture()
    frames = [blurred(picture, centre, exposure) for centre in (-1.0, 0.0, 1.0)]
    return moved(picture, 0.0), frames[1], look_along_motion(*frames)


@pytest.mark.parametrize(("exposure", "index"), [(0.5, 0), (0.75, 1), (1.0, 2)])
def test_the_step_of_the_right_exposure_removes_blur(exposure: float, index: int) -> None:
    sharp, blurry, view = view_of(exposure)
    inner = (..., slice(16, -16), slice(16, -16))
    luma, truth = luma_of(blurry)[inner], luma_of(sharp)[inner]
    steps = [view.pixels[:, 3 + k][:, None][inner] / lite.DETAIL for k in range(3)]
    errors = [float((luma + step - truth).square().mean()) for step in steps]
    before = float((luma - truth).square().mean())
    assert errors[index] < 0.7 * before


def test_the_motion_is_found() -> None:
    _, _, view = view_of(0.5)
    forward, backward = view.coarse[:, :2, 6:-6, 6:-6] * 4, view.coarse[:, 2:4, 6:-6, 6:-6] * 4
    assert forward[:, 0].median().item() == pytest.approx(SHIFT, abs=0.3)
    assert backward[:, 0].median().item() == pytest.approx(-SHIFT, abs=0.3)
    assert forward[:, 1].abs().median().item() < 0.3


def test_a_step_against_its_definition() -> None:
    """In float64, along a uniform horizontal motion: L A(L / (A(L) + 1e-4)), A the mean of taps along it."""
    luma = luma_of(texture())
    travel = torch.zeros(1, 2, *luma.shape[-2:])
    travel[:, 0] = 8.0
    samples = luma.new_empty(1, lite.SAMPLES - 2, *luma.shape[-2:])
    lite._sample(luma, lucas_kanade.pixel_grid(luma), lucas_kanade.grid_units(travel), samples)
    coded = luma[0, 0].double().numpy().clip(1e-3)
    light = coded**2.2

    def mean(plane: numpy.ndarray, reach: int) -> numpy.ndarray:
        padded = numpy.pad(plane, ((0, 0), (reach, reach)), mode="edge")
        return numpy.mean([padded[:, reach + k : padded.shape[1] - reach + k] for k in range(-reach, reach + 1)], 0)

    for index, reach in enumerate((2, 3, 4)):  # lags of an eighth of 8 pixels
        restored = (light * mean(light / (mean(light, reach) + 1e-4), reach)).clip(0, 1.2) ** (1 / 2.2)
        numpy.testing.assert_allclose(samples[0, index].numpy(), restored - coded, atol=2e-5)
    lag = numpy.pad(light, ((0, 0), (2, 2)), mode="edge")
    pair = ((lag[:, 4:] + lag[:, :-4]) / 2) ** (1 / 2.2) - coded
    numpy.testing.assert_allclose(samples[0, 3].numpy(), pair, atol=2e-5)


def test_still_frames_have_nothing_to_weigh() -> None:
    still = moved(texture(), 0.0)
    pixels, coarse = look_along_motion(still, still, still)
    assert pixels[:, 3:].abs().max() < 0.05, "0.003 in coded values: what keeps quotients finite in the dark"
    assert coarse[:, :4].abs().max() < 1e-3


def test_ends_of_a_scene() -> None:
    """Without a neighbour its sample is 0, and motion goes on unchanged; alone, a frame has no motion."""
    picture = texture()
    before, frame, after = (blurred(picture, centre, 0.5) for centre in (-1.0, 0.0, 1.0))
    first, last = look_along_motion(None, frame, after), look_along_motion(before, frame, None)
    assert not first.pixels[:, -1].any()
    assert not last.pixels[:, -2].any()
    assert torch.equal(first.coarse[:, :2], -first.coarse[:, 2:4])
    assert torch.equal(last.coarse[:, :2], -last.coarse[:, 2:4])
    alone = look_along_motion(None, frame, None)
    assert not alone.coarse[:, :4].any()


def test_an_untrained_network_returns_its_input() -> None:
    frames = [torch.rand(2, 3, 32, 40) for _ in range(3)]
    assert torch.equal(Lite(8, 1)(*frames), frames[1])


def test_gradients_reach_every_parameter() -> None:
    network = Lite(8, 1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    network(*(torch.rand(1, 3, 32, 32) for _ in range(3))).square().mean().backward()
    assert all(bool(parameter.grad.any()) for parameter in network.parameters() if parameter.grad is not None)
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_tiles_hardly_change_the_result() -> None:
    """Motion and statistics are those of the whole frame, so tiles differ only by the convolutions' borders."""
    network = weights.load_model("lite").eval()
    picture = F.interpolate(texture(320), (192, 320), mode="bilinear")
    frames = [picture.roll(4 * shift, 3) for shift in range(3)]
    needs = tiles.TileNeeds.of(network)
    plans = [tiles.cut_tiles(192, 320, tile, network.overlap, needs) for tile in (None, (160, 160))]
    with torch.inference_mode():
        whole, tiled = (list(streams.stream(network, iter(frames), plan))[1] for plan in plans)
    assert (whole - frames[1]).abs().max() > 0.02
    assert (whole - tiled).abs().max() < 1.5 / 255
    assert (whole - tiled).abs().mean() < 0.02 * (whole - frames[1]).abs().mean()
