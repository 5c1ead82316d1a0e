"""NAFNet: its output equals its reference's, and its windows follow their definition."""

from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from tests import parity, recipe
from tests.parity import Case
from vdeblur.networks import nafnet
from vdeblur.networks.nafnet import NAFNet
from vdeblur.restore import device, streams, tiles
from vdeblur.train import losses

CASES = [case for case in parity.cases() if case.folder == "nafnet"]
BY_NAME = {case.name: case for case in CASES}
WIDTHS = {"nafnet-32": 32, "nafnet-64": 64}
INTERMEDIATES = 5e-4  # they reach 32, and float64 differs by up to 5e-5


def named(*names: str) -> list[Any]:
    """Return those of these cases that are on this machine, as a test's parameters."""
    return parity.each(BY_NAME[name] for name in names if name in BY_NAME)


def build(case: Case, **arguments: object) -> NAFNet:
    """Return the network of a case with its weights."""
    network = NAFNet(WIDTHS[case.model], **{**case.arguments, **arguments}).eval()
    theirs = case.tensors()
    network.load_state_dict({name: theirs[network.official_name(name)] for name in network.state_dict()})
    return network


def small(**arguments: object) -> NAFNet:
    """A network of one block a level, with drawn weights, in which all blocks do something; windows of 48 pixels."""
    torch.manual_seed(0)
    network = NAFNet(8, (1, 1, 1, 1), **{"train_size": 32, **arguments})
    for name, parameter in network.named_parameters():
        if name.endswith(("beta", "gamma")):
            torch.nn.init.normal_(parameter, std=0.3)
    network.ending.weight.data.mul_(0.1)  # so that frames change about as much as by deblurring
    return network.eval()


def texture(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", parity.each(CASES))
def test_output_and_steps_equal_the_reference(case: Case) -> None:
    network = build(case)
    height, width = (-(-side // network.multiple) * network.multiple for side in case.frames().shape[1:3])
    found: dict[str, Tensor] = {}  # of the first frame
    places = {
        "intro": "intro",
        "enc0_norm1": "encoder.0.0.norm_1",
        "enc0_dwconv": "encoder.0.0.look_around",
        "enc0_block0": "encoder.0.0",
        "down0": "down.0",
        "enc1": "encoder.1.0",
        "enc2": "encoder.2.0",
        "enc3_block0": "encoder.3.0",
        "enc3": "encoder.3.27",
        "middle": "middle.0",
        "up0": "up.0",
        "ending": "ending",
    }
    places |= {f"dec{index}": f"decoder.{index}.0" for index in range(4)}

    def keep(name: str, place: str) -> None:
        def hook(module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            found.setdefault(name, output)

        network.get_submodule(place).register_forward_hook(hook)

    def keep_means(name: str, place: str, level: int) -> None:
        """Keep what goes into and comes out of an attention's convolution, for every pixel."""
        steps = (4, 5) if network.tlc == "fast" and level == 0 else (1, 1)  # of 112x160

        def hook(module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            for kind, means in (("pool", inputs[0]), ("sca", output)):
                whole = means.shape[2:] == (1, 1)
                spread = means if whole else nafnet.spread(means, height >> level, width >> level, steps)
                found.setdefault(name.replace("pool", kind), spread)

        network.get_submodule(f"{place}.attention.weigh").register_forward_hook(hook)

    for name, place in places.items():
        keep(name, place)
    keep_means("enc0_pool", "encoder.0.0", 0)
    keep_means("enc3_pool0", "encoder.3.0", 3)
    keep_means("middle_pool", "middle.0", 4)
    error = numpy.abs(parity.restore(network, case.frames()) - case.output()).max()
    assert error <= case.tolerance, f"off by {error:.1e}"
    for key, expected in case.steps().items():
        name, _, channels = key.partition("_f0")
        ours = found[name][0]
        if channels in ("_c0_c32", "_c0_c64"):
            ours = ours[[0, ours.shape[0] // 2]]
        elif channels:
            ours = ours[: len(expected)] if expected.ndim == 3 else ours[0, ::8, ::8]
        assert ours.shape == expected.shape, key
        assert (ours - torch.from_numpy(expected)).abs().max() <= INTERMEDIATES, key


@pytest.mark.parametrize("case", named("case-a", "case-b"))
def test_frames_within_the_window_need_no_windows(case: Case) -> None:
    assert numpy.array_equal(*(parity.restore(build(case, tlc=tlc), case.frames()) for tlc in ("exact", "off")))


@pytest.mark.parametrize("case", named("case-a", "case-e"))
def test_every_key_has_one_place(case: Case) -> None:
    with torch.device("meta"):
        network = NAFNet(WIDTHS[case.model])
    ours = {network.official_name(key): tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert ours == {key: tuple(fact["shape"]) for key, fact in case.manifest()["keys"].items()}
    assert len(ours) == len(network.state_dict())


@pytest.mark.parametrize(("width", "parameters"), [(32, 17_111_907), (64, 67_888_835)])
def test_parameters(width: int, parameters: int) -> None:
    with torch.device("meta"):
        network = NAFNet(width)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert len(network.state_dict()) == 664


def test_an_untrained_block_passes_on_what_it_gets() -> None:
    block, x = nafnet.Block(8, 48, 0), texture(1, 8, 64).reshape(1, 8, 8, 24)
    assert torch.equal(block(x, local=False), x)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (6, 24), (13, 40)])
@pytest.mark.parametrize("window", [1, 2, 6, 7])
def test_windows_are_moved_inside_at_the_border(size: tuple[int, int], window: int) -> None:
    x = texture(2, *size).double()
    found = nafnet.spread(nafnet.mean_over_windows(x, window), *size)
    height, width = (min(window, side) for side in size)
    for row in range(size[0]):
        top = min(max(row - (height - 1) // 2, 0), size[0] - height)
        for column in range(size[1]):
            left = min(max(column - (width - 1) // 2, 0), size[1] - width)
            mean = x[:, :, top : top + height, left : left + width].mean((2, 3))
            torch.testing.assert_close(found[:, :, row, column], mean)


@pytest.mark.parametrize("size", [(1, 1), (2, 10), (25, 12), (7, 60)])
def test_approximate_windows(size: tuple[int, int]) -> None:
    """Every r-th element, without the first, repeated r times; edges repeated."""
    x, window, most = texture(1, *size).double(), 9, 5
    means, steps = nafnet.mean_over_sparse_windows(x, window, most)
    for axis, side in enumerate(size, 2):
        step = next(step for step in (5, 4, 3, 2, 1) if side % step == 0)
        assert steps[axis - 2] == step
        elements = x.movedim(axis, 0)[::step]
        if len(elements) > 1:
            length = min(len(elements) - 1, window // step)
            elements = torch.stack([elements[i + 1 : i + 1 + length].mean(0) for i in range(len(elements) - length)])
        x = elements.movedim(0, axis)
    torch.testing.assert_close(means, x)
    assert nafnet.spread(means, *size, steps).shape[2:] == size


def test_sums_in_strips_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = texture(1, 50, 70)
    whole = nafnet.mean_over_windows(x, 24)
    monkeypatch.setattr(nafnet, "CACHED", 1000)
    assert torch.equal(nafnet.mean_over_windows(x, 24), whole)


def test_half_precision_sums_in_float32() -> None:
    """A sum of a frame's values near 1 is beyond float16."""
    x = torch.full((1, 4, 720, 360), 1.5, dtype=torch.float16)
    means = nafnet.mean_over_windows(x, 384)
    assert means.dtype == torch.float32
    torch.testing.assert_close(means, torch.full((1, 4, 337, 1), 1.5))


@pytest.mark.parametrize("tlc", ["exact", "fast", "off"])
@pytest.mark.parametrize("size", [(1, 1), (17, 3), (16, 80), (50, 1), (65, 97)])
def test_any_size(size: tuple[int, int], tlc: str) -> None:
    network = small(tlc=tlc)
    frame = texture(1, *size)
    plan = tiles.cut_tiles(*size, None, 0, tiles.TileNeeds(network.multiple, padding=network.padding))
    with torch.inference_mode():
        restored = plan.crop(network(plan.pad(frame)))
    assert restored.shape == frame.shape
    assert restored.isfinite().all()


@pytest.mark.parametrize("tlc", ["exact", "fast"])
def test_gradients_pass_windows(tlc: str) -> None:
    network = small(tlc=tlc).train()
    network(texture(1, 64, 80)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize("size", [(32, 48), (32, 80)])
def test_a_batch_equals_its_frames(size: tuple[int, int]) -> None:
    network, frames = small(), texture(3, *size)
    with torch.inference_mode():
        together = network(frames)
        alone = torch.cat([network(frame) for frame in frames.split(1)])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", named("case-a", "case-b", "case-d"))
def test_float16_gives_the_same_picture(case: Case) -> None:
    network = device.place(build(case), torch.device("cpu"), "fp16")
    error = numpy.clip(parity.restore(network, case.frames()), 0, 1) - numpy.clip(case.output(), 0, 1)
    assert -10 * numpy.log10((error**2).mean()) >= 60


def test_tiles_come_close_to_the_whole_frame() -> None:
    """With tiles larger than the window: both the tiles and the whole frame average over windows, though others."""
    network = build(BY_NAME["case-a"])
    frames = recipe.frames(1, 48, 832, 3)
    plan = tiles.cut_tiles(
        48, 832, (48, 480), network.overlap, tiles.TileNeeds(network.multiple, padding=network.padding)
    )
    assert plan.count == 2
    with torch.inference_mode():
        tiled = torch.cat(list(streams.stream(network, iter(parity.as_tensor(frames).split(1)), plan)))
    whole = parity.restore(network, frames)
    error = numpy.abs(tiled.permute(0, 2, 3, 1).numpy() - whole)
    change = numpy.abs(whole - frames / 255).mean()
    assert error.mean() <= 0.05 * change
    columns = error.mean((0, 1, 3))
    assert columns[352:480].mean() > 2 * max(columns[:176].mean(), columns[-176:].mean()), "it lies where tiles meet"


def test_the_loss_in_training() -> None:
    frames = parity.as_tensor(recipe.frames(2, 32, 32, 7, 1.0))
    assert losses.negative_psnr(frames, frames.flip(3)).item() == pytest.approx(-11.474508, abs=2e-6)
