"""SPN and SPGAN: the network, its discriminator and their losses against the paper."""

import pytest
import torch
from torch import Tensor, nn

from tests import oracles
from tests.networks.test_networks import moving_clip, run
from vdeblur.networks.spn import SPN, Discriminator, gradient_magnitude, luma
from vdeblur.restore import streams, tiles
from vdeblur.train import losses


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_spn(**arguments: object) -> SPN:
    torch.manual_seed(0)
    return SPN(**{"pyramid_channels": 4, "channels": 8, "blocks": 2, **arguments})


def busy_spn(**arguments: object) -> SPN:
    """Return a small network with weights so large that every part shows in the result."""
    network = small_spn(**arguments)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)
    network.decoder[-2].weight.data.mul_(0.1)
    return network.eval()


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameters() -> None:
    with torch.device("meta"):
        assert count(SPN()) == 8_141_185
        assert count(SPN(residual_norm="none")) == 8_138_113
        assert count(Discriminator()) == 63_447_618


@pytest.mark.parametrize("scales", [(1,), (5,), (1, 3), (3, 5), (1, 3, 5), (1, 3, 5, 7)])
def test_scales_of_the_ablation(scales: tuple[int, ...]) -> None:
    network = SPN(scales)
    assert network.radius == max(scales) // 2
    # Each path: 9 weights a frame and a bias for each of 16 channels; and fusion's weights for them
    assert count(network) == 8_141_185 + (9 * sum(scales) - 81 + len(scales) - 3) * 16 + (len(scales) - 3) * 16 * 64 * 9
    clip = moving_clip(2, 16, 16)
    assert run(busy_spn(scales=scales), clip).shape == clip.shape


def test_scales_have_a_middle() -> None:
    with pytest.raises(ValueError, match="odd"):
        SPN((1, 4))


@pytest.mark.parametrize("size", [(13, 18), (4, 4), (1, 7), (30, 33)])
def test_any_size(size: tuple[int, int]) -> None:
    clip = moving_clip(2, *size)
    assert run(busy_spn(), clip).shape == clip.shape


def test_zeros_in_the_last_layer_leave_the_frame_as_it_is() -> None:
    network, clip = busy_spn(), moving_clip(6)
    nn.init.zeros_(network.decoder[-2].weight)
    assert torch.equal(run(network, clip), clip)


def test_red_green_and_blue_change_alike() -> None:
    clip = moving_clip(5)
    change = run(busy_spn(), clip) - clip
    assert change.abs().max() > 0.05
    torch.testing.assert_close(change[:, :, :1].expand_as(change), change, rtol=0, atol=1e-6)
    torch.testing.assert_close(luma(clip + 0.25), luma(clip) + 0.25)


def test_every_frame_of_the_window_counts() -> None:
    network, window = busy_spn(), moving_clip(5)
    with torch.inference_mode():
        restored = network(window)
        for frame in range(5):
            changed = window.clone()
            changed[:, frame] = 1 - changed[:, frame]
            assert (network(changed) - restored).abs().max() > 1e-3
        swapped = window[:, [4, 1, 2, 3, 0]]
        assert (network(swapped) - restored).abs().max() > 1e-3, "the order of time is known"


def test_windows_repeat_the_edge_frames() -> None:
    network, clip = busy_spn(), moving_clip(4, 16, 16)
    restored = run(network, clip)
    with torch.inference_mode():
        torch.testing.assert_close(restored[:, 0], network(clip[:, [0, 0, 0, 1, 2]]), rtol=0, atol=1e-6)
        torch.testing.assert_close(restored[:, 1], network(clip[:, [0, 0, 1, 2, 3]]), rtol=0, atol=1e-6)
        torch.testing.assert_close(restored[:, 3], network(clip[:, [1, 2, 3, 3, 3]]), rtol=0, atol=1e-6)


def test_a_tile_is_exact_62_pixels_from_its_edge() -> None:
    network = busy_spn(blocks=6).double()  # the reach depends on depth, not on width
    window = moving_clip(5, 32, 288).double()
    with torch.inference_mode():
        expected = network(window)
        error = (network(window[..., :160]) - expected[..., :160]).abs().amax((0, 1, 2))
        assert error[-56:-40].max() > 1e-9, "nearer to its edge it is not"
        assert error[:-62].max() < 1e-13
        error = (network(window[..., 128:]) - expected[..., 128:]).abs().amax((0, 1, 2))
        assert error[62:].max() < 1e-13


def test_tiles_are_exact() -> None:
    # In float64, for in float32 either result is off by up to 2.5e-6 already (measured), by rounding alone.
    network, clip = busy_spn(blocks=6).double(), moving_clip(2, 32, 420).double()
    plan = tiles.cut_tiles(32, 420, (32, 256), network.overlap, tiles.TileNeeds(network.multiple, reach=network.reach))
    assert plan.count > 1
    expected = run(network, clip)
    with torch.inference_mode():
        tiled = torch.stack(list(streams.stream_windows(network, iter(clip.unbind(1)), plan)), 1)
    # A tile's margin, where the frame's end shows, weighs a millionth (tiles.UNUSED) of at most 1; 1.5e-7 was measured.
    torch.testing.assert_close(tiled, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    clip = moving_clip(3, 32, 32)
    exact = run(busy_spn(), clip)
    half = run(busy_spn().to_precision(dtype), clip)
    assert half.dtype == torch.float32
    assert (half - exact).square().mean() < 1e-5, "50 dB"


def test_gradient_images() -> None:
    picture = torch.rand(2, 1, 6, 9, generator=generator(0), dtype=torch.float64)
    for eps in (0.0, 1e-12, 0.1):
        found = gradient_magnitude(picture, eps)
        for gradients, expected in zip(found[:, 0], picture[:, 0], strict=True):
            torch.testing.assert_close(gradients, torch.from_numpy(oracles.gradient_magnitude(expected.numpy(), eps)))


def test_the_gradient_of_a_slope() -> None:
    slope = 0.03 * torch.arange(6.0) + 0.04 * torch.arange(5.0)[:, None]
    found = gradient_magnitude(slope)
    torch.testing.assert_close(found[:-1, :-1], torch.full((4, 5), 0.05))
    torch.testing.assert_close(found[-1, :-1], torch.full((5,), 0.03))
    torch.testing.assert_close(found[:-1, -1], torch.full((4,), 0.04))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_flat_patches_have_finite_gradients(dtype: torch.dtype) -> None:
    flat = torch.full((1, 1, 5, 5), 0.5, dtype=dtype, requires_grad=True)
    found = gradient_magnitude(flat)
    assert found.dtype == torch.float32
    found.sum().backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def sample() -> tuple[Tensor, Tensor]:
    """Return a batch of windows of a sharp texture, blurred along x, and the sharp middle frames."""
    sharp = torch.cat([moving_clip(5, 24, 24), moving_clip(5, 24, 24).flip(3)])
    kernel = torch.full((1, 1, 1, 5), 0.2)
    blurry = nn.functional.conv2d(sharp.flatten(0, 2)[:, None], kernel, padding=(0, 2)).view_as(sharp)
    return blurry, sharp[:, 2]


def test_learning_to_restore_luma() -> None:
    blurry, sharp = sample()
    network = small_spn()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3, betas=(0.5, 0.999))
    history = []
    for _ in range(60):
        loss = nn.functional.mse_loss(luma(network(blurry)), luma(sharp))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.6 * nn.functional.mse_loss(luma(blurry[:, 2]), luma(sharp)).item()


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(network: nn.Module, before: dict[str, Tensor]) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("saturating", [True, False])
def test_each_adversary_learns_alone(saturating: bool) -> None:
    blurry, sharp = sample()
    network, discriminator = small_spn(), Discriminator(8)
    parameters = [*network.parameters(), *discriminator.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-3)  # over both networks, so that only gradients decide which changes

    before, adversary = snapshot(network), snapshot(discriminator)
    losses.fooling(discriminator, luma(network(blurry))[:, None], saturating).backward()
    optimizer.step()
    assert changed(network, before)
    assert not changed(discriminator, adversary)

    optimizer.zero_grad()
    restored = luma(network(blurry))[:, None]
    before = snapshot(network)
    losses.telling_apart(discriminator, restored, luma(sharp)[:, None]).backward()
    optimizer.step()
    assert changed(discriminator, adversary)
    assert not changed(network, before)


def test_adversarial_losses_are_logarithms_of_probabilities() -> None:
    class Certain(nn.Module):
        def forward(self, gradients: Tensor) -> Tensor:
            return gradients.new_tensor([[200.0, -200.0]]).expand(len(gradients), 2)  # a softmax rounds to 1 and 0

    picture = torch.rand(2, 1, 16, 16, generator=generator(0))
    assert losses.fooling(Certain(), picture).item() == 0
    assert losses.fooling(Certain(), picture, saturating=False).item() == 400
    assert losses.telling_apart(Certain(), picture, picture).item() == 200


def test_the_discriminator_learns_to_recognise_sharp_frames() -> None:
    torch.manual_seed(0)
    blurry, sharp = sample()
    discriminator = Discriminator(4)
    for module in discriminator.modules():  # at this width the paper's initial weights let almost nothing through
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-3)
    for _ in range(15):
        loss = losses.telling_apart(discriminator, luma(blurry[:, 2])[:, None], luma(sharp)[:, None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3, "guessing gives log 2"
