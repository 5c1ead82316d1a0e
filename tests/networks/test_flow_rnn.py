"""Flow-RNN: its flows, its recurrent passes and the network against the paper's definitions."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests import oracles
from tests.networks.test_networks import lively, moving_clip, run, whole
from vdeblur.networks.flow_rnn import (
    PASS_ORDER,
    WEIGHT_ORDER,
    FlowRNN,
    LinearScan,
    scan_by_steps,
    scan_in_chunks,
    spatial_rnn,
)
from vdeblur.networks.layers import warp
from vdeblur.restore import streams
from vdeblur.train import losses


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def texture(height: int, width: int, cell: int = 8) -> Tensor:
    """Draw a texture that is smooth over some pixels: (1, 3, height, width)."""
    coarse = torch.rand(1, 3, height // cell + 2, width // cell + 2, generator=generator(3))
    return nn.functional.interpolate(coarse, scale_factor=cell, mode="bicubic")[..., :height, :width].clamp(0, 1)


def panning(x: int, y: int, side: int = 128) -> tuple[Tensor, Tensor]:
    """Return two frames of a texture that moves by x pixels to the right and y down."""
    wide = texture(side + 64, side + 64)
    return wide[..., 32 : 32 + side, 32 : 32 + side], wide[..., 32 - y : 32 - y + side, 32 - x : 32 - x + side]


def test_parameters() -> None:
    with torch.device("meta"):
        network = FlowRNN()
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    assert counts["flow_part"] == 5_476_960
    assert sum(number for name, number in counts.items() if name.startswith("rnnw")) == 665_952
    assert sum(number for name, number in counts.items() if name.startswith("d_")) == 2_138_784
    assert sum(counts.values()) == 8_281_696


def test_sizes_of_inner_features() -> None:
    network = lively("flow-rnn")
    seen: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> None:
        module = network.get_submodule(name)
        module.register_forward_pre_hook(lambda _, inputs: seen.update({name: tuple(inputs[0].shape[1:])}))

    for name in ("d_conv2", "d_conv3", "d_conv3_2", "rnnw1", "rnnw2", "rnnw3"):
        note(name)
    frame = torch.rand(1, 3, 256, 256, generator=generator(0))
    with torch.inference_mode():
        restored, flows = network.restore_with_flows(frame, frame.flip(3))
        again = network.flows(frame, frame.flip(3))
    assert restored.shape == frame.shape
    assert [tuple(flow.shape) for flow in flows] == [(1, 2, side, side) for side in (64, 32, 16, 8, 4)]
    assert all(torch.equal(flow, other) for flow, other in zip(flows, again, strict=True))
    # The passes' outputs are the next convolution's input
    assert seen["d_conv2"] == (96, 128, 128)
    assert seen["d_conv3"] == (192, 64, 64)
    assert seen["d_conv3_2"] == (384, 32, 32)
    assert [seen[name] for name in ("rnnw1", "rnnw2", "rnnw3")] == [(38, 128, 128), (74, 64, 64), (146, 32, 32)]


@pytest.mark.parametrize(
    ("weight_order", "pass_order"),
    [
        (WEIGHT_ORDER, PASS_ORDER),
        (PASS_ORDER, WEIGHT_ORDER),
        (("up", "left", "right", "down"), ("left", "up", "down", "right")),
    ],
)
def test_passes_against_the_oracle(weight_order, pass_order) -> None:
    feature, weights = noise(2, 3, 5, 7), noise(2, 12, 5, 7, seed=1).tanh()
    found = spatial_rnn(feature, weights, weight_order, pass_order)
    for one, f, w in zip(found, feature, weights, strict=True):
        expected = torch.from_numpy(oracles.spatial_rnn(f.numpy(), w.numpy(), weight_order, pass_order))
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-12)


def test_the_layout_is_the_released_one() -> None:
    feature, weights = noise(1, 2, 4, 6), noise(1, 8, 4, 6, seed=1).tanh()
    expected = oracles.spatial_rnn(
        feature[0].numpy(), weights[0].numpy(), ("right", "down", "left", "up"), ("right", "left", "down", "up")
    )
    torch.testing.assert_close(spatial_rnn(feature, weights)[0], torch.from_numpy(expected))


def test_passes_travel_in_their_direction() -> None:
    """With weights of 1/2 an impulse leaves a tail on the side that names the pass."""
    impulse = torch.zeros(1, 1, 5, 5)
    impulse[..., 2, 2] = 1
    right, left, down, up = spatial_rnn(impulse, torch.full((1, 4, 5, 5), 0.5))[0]
    tail = [0.0, 0.0, 0.5, 0.25, 0.125]
    assert right[2].tolist() == tail
    assert left[2].tolist() == tail[::-1]
    assert down[:, 2].tolist() == tail
    assert up[:, 2].tolist() == tail[::-1]
    feature = noise(1, 2, 4, 4)
    assert torch.equal(spatial_rnn(feature, torch.zeros(1, 8, 4, 4)), feature.repeat(1, 4, 1, 1))
    assert not spatial_rnn(feature, torch.ones(1, 8, 4, 4)).any()


def test_warping_against_the_oracle() -> None:
    picture, flow = noise(2, 3, 6, 9), 3 * noise(2, 2, 6, 9, seed=1)
    for one, p, f in zip(warp(picture, flow), picture, flow, strict=True):
        expected = torch.from_numpy(oracles.backward_warp(p.numpy(), f.numpy()))
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-5)  # the grid is float32


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 16, 17, 24, 25, 26, 640])
def test_chunks_equal_steps(length: int) -> None:
    terms, weight = noise(length, 2, 3), noise(length, 2, 3, seed=1).mul(2).tanh()
    weight[length // 2] = 0
    by_steps = scan_by_steps(terms.clone(), weight)
    torch.testing.assert_close(scan_in_chunks(terms, weight), by_steps, rtol=0, atol=1e-12)
    # In float32 both are exact to its rounding
    for scan in (scan_by_steps, scan_in_chunks):
        single = scan(terms.float(), weight.float()).double()
        torch.testing.assert_close(single, by_steps, rtol=0, atol=1e-5 * by_steps.abs().max().item())


@pytest.mark.parametrize("in_chunks", [False, True])
def test_gradients_of_a_pass(monkeypatch: pytest.MonkeyPatch, in_chunks: bool) -> None:
    if in_chunks:
        monkeypatch.setattr("vdeblur.networks.flow_rnn._scan", scan_in_chunks)
    feature = noise(6, 2, 2).requires_grad_()
    weight = noise(6, 2, 2, seed=1).tanh().requires_grad_()
    assert torch.autograd.gradcheck(LinearScan.apply, (feature, weight))
    feature = noise(1, 1, 3, 4).requires_grad_()
    weights = noise(1, 4, 3, 4, seed=1).tanh().requires_grad_()
    assert torch.autograd.gradcheck(spatial_rnn, (feature, weights))


def test_passes_are_computed_in_float32() -> None:
    """With weights near -1 half precision would be far off."""
    feature = noise(1, 2, 4, 640, dtype=torch.float32)
    weights = torch.full((1, 8, 4, 640), -0.999)
    half = spatial_rnn(feature.half(), weights)
    assert half.dtype == torch.float16
    exact = spatial_rnn(feature.half().float(), weights)
    torch.testing.assert_close(half.float(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (65, 30), (70, 130)])
def test_any_size(size: tuple[int, int]) -> None:
    clip = moving_clip(2, *size)
    assert run(lively("flow-rnn"), clip).shape == clip.shape


def test_the_last_frame_looks_back() -> None:
    network, clip = lively("flow-rnn"), moving_clip(3, 64, 64)
    restored = run(network, clip)
    first, second, third = clip.unbind(1)
    with torch.inference_mode():
        for index, pair in enumerate([(first, second), (second, third), (third, second)]):
            torch.testing.assert_close(restored[:, index], network(*pair), rtol=0, atol=1e-6)
        assert torch.equal(run(network, clip[:, :1])[:, 0], network(first, first))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    network, clip = lively("flow-rnn"), moving_clip(2, 64, 64)
    exact = run(network, clip)
    half = run(copy.deepcopy(network).to_precision(dtype), clip)
    assert half.dtype == torch.float32
    assert half.isfinite().all()
    assert (half - exact).square().mean() < 1e-5, "50 dB"


def test_flow_loss_is_least_at_the_true_motion() -> None:
    """A motion of (8, -4) pixels is a flow of (2, -1) at a quarter of the size."""
    current, neighbour = panning(8, -4)

    def loss(x: float, y: float) -> float:
        flow = torch.tensor([x, y])[None, :, None, None].expand(1, 2, 32, 32)
        return losses.carrying_over([flow], current, neighbour).item()

    right = loss(2, -1)
    for wrong in [(0, 0), (-2, 1), (2, 1), (1, -2), (-1, 2), (8, -4), (1, -0.5)]:
        assert right < 0.7 * loss(*wrong), wrong


def test_minimising_the_flow_loss_finds_the_motion() -> None:
    current = nn.functional.pad(texture(96, 96, 16), (16, 16, 16, 16))  # dark borders, since what leaves is an error
    neighbour = current.roll((-8, 8), (2, 3))
    motion = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([motion], 0.05)
    for _ in range(150):
        flows = [motion[:, None, None].expand(1, 2, 128 >> level, 128 >> level) / 2 ** (level - 2) for level in (2, 3)]
        loss = losses.carrying_over(flows, current, neighbour)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert motion.tolist() == pytest.approx([2, -2], abs=0.05)


def test_flow_loss_is_the_sum_of_squares_but_for_a_factor() -> None:
    current, neighbour = (torch.rand(2, 3, 64, 64, generator=generator(seed)) for seed in (0, 1))
    flows = [torch.randn(2, 2, 64 >> level, 64 >> level, generator=generator(level)) for level in range(2, 7)]
    total = 0.0
    for level, flow in enumerate(flows, 2):
        here, there = (nn.functional.avg_pool2d(frame, 2**level) for frame in (current, neighbour))
        total += (warp(there, flow) - here).square().sum().item()
    # Half the sum over the batch, by its size, is 3 H W / 2 times the mean form
    expected = total / 2 / 2 / (3 * 64 * 64 / 2)
    assert losses.carrying_over(flows, current, neighbour).item() == pytest.approx(expected, rel=1e-5)


def test_learning_to_restore_and_to_find_flows() -> None:
    torch.manual_seed(0)
    network = FlowRNN(4)
    sharp, following = panning(4, 0, 64)
    kernel = torch.full((1, 1, 1, 5), 0.2)
    current, neighbour = (
        nn.functional.conv2d(frame.transpose(0, 1), kernel, padding=(0, 2)).transpose(0, 1)
        for frame in (sharp, following)
    )
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    history = []
    for _ in range(60):
        restored, flows = network.restore_with_flows(current, neighbour)
        restoring = nn.functional.mse_loss(restored, sharp)
        carrying = losses.carrying_over(flows, current, neighbour)
        optimizer.zero_grad()
        (restoring + carrying).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.05)
        optimizer.step()
        history.append((restoring.item(), carrying.item()))
    assert history[-1][0] < 0.2 * history[0][0]
    assert history[-1][1] < 0.5 * history[0][1]


def test_padding_is_zero_as_in_the_release() -> None:
    frame = moving_clip(1, 30, 65)[:, 0]
    plan = whole(lively("flow-rnn"), frame[:, None])
    padded = plan.pad(frame)
    assert padded.shape == (1, 3, 64, 128)
    assert torch.equal(padded[..., :30, :65], frame)
    assert not padded[..., 30:, :].any()
    assert not padded[..., 65:].any()


def test_no_frames_in_no_frames_out() -> None:
    network, clip = lively("flow-rnn"), moving_clip(1, 64, 64)
    assert list(streams.stream_pairs(network, iter(()), whole(network, clip))) == []
    assert list(streams.stream_windows(network, iter(()), whole(network, clip))) == []
