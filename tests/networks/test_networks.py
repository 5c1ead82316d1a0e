"""Every network passes the same tests, over all of NETWORKS."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vdeblur.networks import NETWORKS, lucas_kanade
from vdeblur.networks.layers import Network
from vdeblur.restore import streams, tiles
from vdeblur.restore.device import DTYPES, place

NAMES = sorted(NETWORKS)
SLOW = pytest.mark.slow
# Arguments that make slow networks faster
SMALL: dict[str, dict[str, Any]] = {
    "basicvsrpp": {"blocks": 2},
    "estrnn": {"blocks": 2},
    "turtle": {"channels": 4, "encoder_blocks": (1, 1, 1), "middle_blocks": 2, "decoder_blocks": (1, 1, 1)},
}


def lively(name: str) -> Network:
    """Return an untrained network whose last layers are not zero."""
    torch.manual_seed(0)
    network = NETWORKS[name](**SMALL.get(name, {}))
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network.eval()


def moving_clip(frames: int, height: int = 48, width: int = 64) -> Tensor:
    """Draw a texture that pans: (1, T, 3, H, W)."""
    generator = torch.Generator().manual_seed(1)
    wide = torch.rand(1, 3, height, width + 3 * frames, generator=generator)
    wide = nn.functional.avg_pool2d(wide, 5, 1, 2)
    return torch.stack([wide[..., 3 * t : 3 * t + width] for t in range(frames)], 1)


def whole(network: Network, clip: Tensor) -> tiles.TilePlan:
    """Plan without tiles, and pad no more than the network needs."""
    height, width = clip.shape[-2:]
    return tiles.cut_tiles(
        height, width, None, 0, tiles.TileNeeds(network.multiple, min(network.smallest, 32), network.padding)
    )


def run(network: Network, clip: Tensor) -> Tensor:
    plan = whole(network, clip)
    frames = (plan.pad(frame) for frame in clip.unbind(1))
    with torch.inference_mode():
        return torch.stack([plan.crop(restored) for restored in streams.stream(network, frames, plan)], 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_every_frame_comes_out(name: str, frames: int) -> None:
    clip = moving_clip(frames, 16, 16)
    assert run(lively(name), clip).shape == clip.shape


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (33, 70)])
def test_any_frame_size(name: str, size: tuple[int, int]) -> None:
    clip = moving_clip(2, *size)
    restored = run(lively(name), clip)
    assert restored.shape == clip.shape
    assert restored.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_stack_of_tiles_equals_each_tile_alone(name: str) -> None:
    network = lively(name)
    stack = torch.cat((moving_clip(5, 32, 32), moving_clip(5, 32, 32).flip(3)))
    together = run(network, stack)
    torch.testing.assert_close(together[:1], run(network, stack[:1]), rtol=0, atol=1e-5)


def test_lite_sees_its_neighbours_and_nothing_else() -> None:
    network, clip = lively("lite"), moving_clip(9)
    whole = run(network, clip)
    assert (whole - clip).abs().mean() > 1e-3, "the network is meant to do something"
    # Three frames suffice for the middle one; at the ends there are no neighbours.
    torch.testing.assert_close(run(network, clip[:, 3:6])[:, 1], whole[:, 4], rtol=0, atol=1e-6)
    torch.testing.assert_close(run(network, clip[:, :2])[:, 0], whole[:, 0], rtol=0, atol=1e-6)
    changed = clip.clone()
    changed[:, 5] += 0.1
    difference = (run(network, changed) - whole).abs().amax((0, 2, 3, 4))
    assert [bool(d > 1e-4) for d in difference] == [False] * 4 + [True] * 3 + [False] * 2


def test_lite_moves_with_the_picture() -> None:
    """Frames shifted by whole blocks restore to shifted frames, except for borders and energies of the whole frame."""
    network, clip = lively("lite"), moving_clip(3, 96, 192)
    whole = run(network, clip)
    part = run(network, clip[..., 32:160])
    inner = slice(48, -48)
    error = (part[..., inner] - whole[..., 32:160][..., inner]).abs().mean()
    assert error < 0.3 * (whole - clip).abs().mean()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "identity"])
def test_gradients_reach_every_parameter(name: str) -> None:
    network = lively(name).train()
    clip = moving_clip(4)
    plan = whole(network, clip)
    restored = torch.stack(list(streams.stream(network, map(plan.pad, clip.unbind(1)), plan)))
    restored.square().mean().backward()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trained)


@pytest.mark.parametrize("name", [name if name != "cdvd-tsp" else pytest.param(name, marks=SLOW) for name in NAMES])
def test_half_precision_is_close(name: str) -> None:
    network = lively(name)
    clip = moving_clip(6)
    exact = run(network, clip)
    if not network.half_precision:
        pytest.skip("runs in float32 only")
    half = run(network.to_precision(DTYPES[network.half_precision[-1]]), clip)
    assert half.dtype == torch.float32
    # bfloat16 keeps 8 bits of the difference that is added to the frame, so the error is far below this
    assert (half - exact).abs().mean() <= 0.05 * (exact - clip).abs().mean()


@pytest.mark.parametrize("name", NAMES)
def test_parts_that_stay_in_float32_keep_their_weights(name: str) -> None:
    """They are not even rounded to half precision."""
    network = lively(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for key, value in network.to_precision(torch.float16).state_dict().items():
        exact = key.startswith(tuple(f"{part}." for part in network.float32_parts))
        assert torch.equal(value, before[key] if exact else before[key].half())


@pytest.mark.parametrize("name", [name if name != "cdvd-tsp" else pytest.param(name, marks=SLOW) for name in NAMES])
def test_tiles_in_half_precision(name: str) -> None:
    """Tiles of features once came back from blending in float32, and met weights in half precision."""
    network = lively(name)
    if not network.half_precision:
        pytest.skip("runs in float32 only")
    network = network.to_precision(DTYPES[network.half_precision[-1]])
    facts = (network.multiple, network.smallest, network.padding)
    plan = tiles.cut_tiles(64, 96, (64, 64), 32, tiles.TileNeeds(*facts, tile_multiple=network.tile_multiple))
    assert plan.count > 1
    clip = moving_clip(2, 64, 96)
    with torch.inference_mode():
        frames = (plan.pad(frame) for frame in clip.unbind(1))
        restored = torch.stack([plan.crop(frame) for frame in streams.stream(network, frames, plan)], 1)
    assert restored.shape == clip.shape
    assert restored.dtype == torch.float32
    assert restored.isfinite().all()


def test_an_untrained_lite_returns_its_input() -> None:
    clip = moving_clip(3)
    assert torch.equal(run(NETWORKS["lite"](), clip), clip)


@pytest.mark.cuda
@pytest.mark.parametrize("name", NAMES)
def test_cuda_agrees_with_the_cpu(name: str) -> None:
    network, clip = lively(name), moving_clip(6)
    expected = run(network, clip)
    network = place(network, torch.device("cuda"), "fp32")
    torch.testing.assert_close(run(network, clip.cuda()).cpu(), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("side", "height", "width"), [(3, 20, 31), (7, 9, 16), (7, 2, 3), (3, 1, 1)])
def test_window_means_have_nothing_beyond_the_border(side: int, height: int, width: int) -> None:
    values = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    expected = nn.functional.avg_pool2d(values.double(), side, 1, side // 2, count_include_pad=False)
    torch.testing.assert_close(lucas_kanade.window_mean(values, side).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("motion", [(0.0, 0.0), (3.0, -1.0), (-6.5, 2.25), (10.0, 8.0)])
def test_lucas_kanade_finds_a_shift(motion: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(2)
    coarse = [
        torch.rand(1, 1, 200 // k, 240 // k, generator=generator) for k in (4, 10, 20, 40)
    ]  # all scales, as in pictures
    texture = torch.stack([nn.functional.interpolate(layer, (200, 240), mode="bicubic") for layer in coarse]).mean(0)
    shift = torch.tensor(motion)[None, :, None, None].expand(1, 2, 200, 240)
    a = texture
    b = lucas_kanade.sample(texture, -shift)  # a's content at x is at x + motion in b
    found = lucas_kanade.flow(a, b)[..., 40:-40, 40:-40]
    assert found.mean((0, 2, 3)).tolist() == pytest.approx(motion, abs=0.1)
    assert found.std((0, 2, 3)).max() < 0.2
