"""BasicVSR++ and SPyNet: every step of their papers and their reference."""

import json
from collections import defaultdict
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests import parity
from tests.networks.test_networks import lively, moving_clip
from tests.parity import Case
from vdeblur.models import weights
from vdeblur.networks.basicvsrpp import GROUPS, PASSES, TAPS, BasicVSRPP, deformable_convolution
from vdeblur.restore import device, streams, tiles

SMALL = [case for case in parity.cases() if case.folder == "basicvsrpp" and case.name[-1] in "abefg"]
OFFSETS = (0, 1, 143, 144, 287, 288, 431)  # channels that the larger cases have of the offset convolutions' results


def shallow() -> BasicVSRPP:
    network = lively("basicvsrpp")
    assert isinstance(network, BasicVSRPP)
    return network


def stream(network: BasicVSRPP, clip: Tensor, tile: tuple[int, int] | None = None, **window: int) -> Tensor:
    height, width = clip.shape[-2:]
    plan = tiles.cut_tiles(
        height, width, tile, network.overlap, tiles.TileNeeds(network.multiple, padding=network.padding)
    )
    frames = (plan.pad(frame) for frame in clip.unbind(1))
    with torch.inference_mode():
        return torch.stack(
            [plan.crop(restored) for restored in streams.stream_clip(network, frames, plan, **window)], 1
        )


def test_parameters() -> None:
    with torch.device("meta"):
        network = BasicVSRPP()
    assert sum(map(torch.numel, network.parameters())) == 9_760_175
    assert len(network.state_dict()) == 406


def slow_deformable_convolution(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute the definition, pixel by pixel and tap by tap."""
    batch, channels, height, width = x.shape
    groups = mask.shape[1] // TAPS
    result = bias[None, :, None, None].repeat(batch, 1, height, width)

    def value(b: int, g: int, y: int, z: int) -> Tensor:
        some = slice(g * channels // groups, (g + 1) * channels // groups)
        return x[b, some, y, z] if 0 <= y < height and 0 <= z < width else torch.zeros_like(x[b, some, 0, 0])

    for b, g, tap, y, z in numpy.ndindex(batch, groups, TAPS, height, width):
        row, column = divmod(tap, 3)
        down, right = offset[b, 18 * g + 2 * tap : 18 * g + 2 * tap + 2, y, z].tolist()
        at_y, at_z = y + row - 1 + down, z + column - 1 + right
        top, left = int(numpy.floor(at_y)), int(numpy.floor(at_z))
        sample = sum(
            value(b, g, top + i, left + j) * abs(1 - i - (at_y - top)) * abs(1 - j - (at_z - left))
            for i in (0, 1)
            for j in (0, 1)
        )
        some = slice(g * channels // groups, (g + 1) * channels // groups)
        result[b, :, y, z] += weight[:, some, row, column] @ sample * mask[b, 9 * g + tap, y, z]
    return result


@pytest.mark.parametrize("at_once", [1, 3, 9])
def test_deformable_convolution_equals_its_definition(at_once: int) -> None:
    """With offsets of a few pixels, to half a pixel outside the border, and far outside."""
    generator = torch.Generator().manual_seed(0)
    groups, height, width = 2, 4, 5
    x, weight, bias, mask, offset = (
        torch.randn(size, generator=generator, dtype=torch.float64)
        for size in ((2, 6, height, width), (3, 6, 3, 3), (3,), (2, 9 * groups, height, width), (2, 36, height, width))
    )
    offset *= 3
    offset[:, ::5] *= 100
    found = deformable_convolution(x, offset, mask, weight, bias, at_once)
    expected = slow_deformable_convolution(x, offset, mask, weight, bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_deformable_convolution_without_offsets_is_a_convolution() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 32, 1, 7), torch.randn(4, 32, 3, 3), torch.randn(4)
    offset, mask = torch.zeros(1, 18 * GROUPS, 1, 7), torch.ones(1, 9 * GROUPS, 1, 7)
    found = deformable_convolution(x, offset, mask, weight, bias)
    torch.testing.assert_close(found, F.conv2d(x, weight, bias, padding=1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deformable_convolution_equals_the_stored_case(dtype: torch.dtype) -> None:
    path = parity.STORED / "basicvsrpp" / "deform.npz"
    if not path.is_file():
        pytest.skip("needs shared/parity beside this checkout; the definition is tested above")
    with numpy.load(path) as arrays:
        names = ("x", "offset", "mask", "weight", "bias")
        inputs = [torch.from_numpy(arrays[name]).to(dtype) for name in names]
        expected = torch.from_numpy(arrays["output"])
    tolerance = json.loads(path.with_suffix(".json").read_text())["tolerance"]
    error = (deformable_convolution(*inputs) - expected).abs().max()
    assert error <= tolerance[f"max_abs_{str(dtype).removeprefix('torch.')}"]


def recorded(network: BasicVSRPP, frames: Tensor) -> dict[str, list[Tensor]]:
    """Record the outputs of a network's parts while it restores a clip, in the order of computation."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    parts = {
        "features": "feature_extraction",
        "flow": "spynet",
        "reconstruction": "reconstruction",
        "offsets": "propagation.backward_1.alignment.offsets",
        "aligned": "propagation.backward_1.alignment",
        **{name: f"propagation.{name}" for name in PASSES},
    }
    for name, part in parts.items():
        network.get_submodule(part).register_forward_hook(lambda *call, name=name: found[name].append(call[-1]))
    network.spynet.register_forward_pre_hook(lambda _, pictures: found["quarter"].append(pictures[1]))
    with torch.inference_mode():
        network(frames[None])
    return found


@pytest.mark.parametrize("case", parity.each(case for case in SMALL if case.steps()))
def test_the_steps(case: Case, tmp_path: Path) -> None:
    network = weights.load_model(case.model, case.checkpoint(tmp_path))
    assert isinstance(network, BasicVSRPP)
    frames = parity.as_tensor(case.frames()[: case.chunk])
    height, width = frames.shape[2:]
    plan = tiles.cut_tiles(height, width, None, 0, tiles.TileNeeds(network.multiple, padding=network.padding))
    parts = recorded(network, plan.pad(frames))
    found = {"spatial_f0_c0": parts["features"][0][0], "recon_f0_c0": parts["reconstruction"][0][0]}
    if len(frames) > 1:  # spynet gets both directions at once: to the frame before, then from there
        found |= {"quarter_f0": parts["quarter"][0][0]}
        found |= {"flow_1_0": parts["flow"][0][0], "flow_0_1": parts["flow"][0][1]}
    for name in PASSES:
        in_order = parts[name][::-1] if name.startswith("backward") else parts[name]
        found |= {f"{name}_f0_c0": in_order[0][0], f"{name}_last_c0": in_order[-1][0]}
    for step, (offsets, aligned) in enumerate(zip(parts["offsets"], parts["aligned"], strict=True), 1):
        found |= {f"backward_1_step{step}_offset_raw": offsets[0, OFFSETS, :, :]}
        found |= {f"backward_1_step{step}_aligned_c0": aligned[0]}
    stored = {name: torch.from_numpy(array) for name, array in case.steps().items()}
    assert stored.keys() <= found.keys()
    for name, expected in stored.items():
        assert (found[name][: len(expected)] - expected).abs().max() <= 1e-4, name


@pytest.mark.parametrize("case", parity.each(SMALL))
def test_half_precision_in_every_case(case: Case, tmp_path: Path) -> None:
    network = weights.load_model(case.model, case.checkpoint(tmp_path))
    network = device.place(network, torch.device("cpu"), "fp16")
    restored = parity.restore(network, case.frames(), case.chunk, smallest=case.smallest)
    error = numpy.clip(restored, 0, 1) - numpy.clip(case.output(), 0, 1)
    assert -10 * numpy.log10((error**2).mean()) >= 60  # 65 were measured; 50 are asked for


def test_passes_go_their_way_and_see_the_whole_clip() -> None:
    network, clip = shallow(), moving_clip(4, 16, 16)
    with torch.inference_mode():
        analysed = list(network.analyse(clip.unbind(1)))
        maps, motions = [[features] for _, features, _ in analysed], [motion for *_, motion in analysed]
        assert [index for index, _ in network._propagate("backward_1", maps, motions)] == [3, 2, 1, 0]
        assert [index for index, _ in network._propagate("forward_1", [[*m, *m] for m in maps], motions)] == [
            0,
            1,
            2,
            3,
        ]
        restored = network(clip)
        for changed in (0, 3):
            other = clip.clone()
            other[:, changed] += 0.1
            assert ((network(other) - restored).abs().amax((0, 2, 3, 4)) > 1e-6).all()


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_streamed_as_one_equals_the_network(frames: int) -> None:
    network, clip = shallow(), moving_clip(frames, 24, 32)
    with torch.inference_mode():
        expected = network(clip)
    torch.testing.assert_close(stream(network, clip), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(stream(network, clip, window=frames), expected, rtol=0, atol=1e-6)


def test_shorter_windows_come_close_the_more_they_share() -> None:
    network, clip = shallow(), moving_clip(13, 24, 32)
    whole = stream(network, clip)

    def errors(**window: int) -> Tensor:
        restored = stream(network, clip, **window)
        assert restored.shape == clip.shape
        return (restored - whole).abs().mean((0, 2, 3, 4))

    change = (whole - clip).abs().mean()
    shared, alone = errors(window=9, overlap=3), errors(window=9, overlap=0)
    assert shared.mean() < 0.5 * alone.mean()
    assert shared.mean() < 0.05 * change
    assert alone.argmax() in (8, 9)  # beside the cut


@pytest.mark.parametrize("window", [3, 4, 5, 6])
def test_windows_are_what_they_would_be_alone(window: int) -> None:
    """Windows share two frames and return each frame once, at every length of clip; only features are kept."""
    network, clip = shallow(), moving_clip(8, 16, 16)
    restored = stream(network, clip, window=window, overlap=1)
    step = window - 2
    for start in range(0, 8, step):
        part = stream(network, clip[:, start : start + window])
        end = min(start + window, 8)
        own = slice(start + (start > 0), end - (end < 8))
        if end == 8:
            own = slice(own.start, 8)
        local = slice(own.start - start, own.stop - start)
        torch.testing.assert_close(restored[:, own], part[:, local], rtol=0, atol=1e-5)
        if end == 8:
            break


def test_chunks_share_nothing_and_the_last_is_shorter() -> None:
    network, clip = shallow(), moving_clip(5, 16, 16)
    plan = tiles.cut_tiles(16, 16, None, 0, tiles.TileNeeds(network.multiple))
    with torch.inference_mode():
        chunks = torch.stack(list(streams.stream_chunks(network, iter(clip.unbind(1)), plan, 3)), 1)
        expected = torch.cat((network(clip[:, :3]), network(clip[:, 3:])), 1)
    torch.testing.assert_close(chunks, expected, rtol=0, atol=1e-6)


def test_tiles_come_close_and_are_exact_far_away() -> None:
    """Flow is computed on the whole frame, so a tile errs only near its own edges, which are not used."""
    network, clip = shallow(), moving_clip(3, 32, 512)
    whole = stream(network, clip)
    error = (stream(network, clip, tile=(256, 320)) - whole).abs().mean((0, 1, 2, 3))
    assert error.mean() < 0.01 * (whole - clip).abs().mean()
    assert max(error[:64].max(), error[-64:].max()) < 1e-5
