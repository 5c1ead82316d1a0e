"""Every network's output equals its reference's, loaded from the authors' format and run by the code of `run`."""

from pathlib import Path

import numpy
import pytest
import torch

from tests import clips, parity, recipe
from tests.parity import Case
from vdeblur.models import registry
from vdeblur.networks.dstnet import DSTNet
from vdeblur.restore import device, streams, tiles

CASES = parity.cases()
FIRST = {case.model: case for case in reversed(CASES)}  # one case of each model
# Cases that `run` can repeat: no chunks, no arguments. One of each model here, and one with frames that need padding.
PLAIN = [case for case in reversed(CASES) if not (case.chunk or case.smallest or case.tile) and not case.arguments]
PADDED = sorted(PLAIN, key=lambda case: case.facts["frames"]["height"] % 8 > 0)
# These have a smaller sibling of the same parts, so that some of their tests are slow ones.
VARIANTS = ("dstnet-l", "dstnet-plus-l", "nafnet-64", "pvdnet-large")
RUNNABLE = [{case.model: case for case in cases} for cases in (PADDED, [case for case in PADDED if case.is_shipped])]


def test_every_network_has_a_shipped_case() -> None:
    shipped = {case.model for case in parity.cases() if case.is_shipped}
    assert shipped >= {"basicvsrpp", "cdvd-tsp", "dstnet", "dstnet-l", "dstnet-plus", "dstnet-plus-l", "nafnet-32",
                       "estrnn", "nafnet-64", "pvdnet", "pvdnet-large", "turtle"}  # fmt: skip


@pytest.mark.parametrize("case", parity.each(CASES))
def test_output_equals_the_reference(case: Case, tmp_path: Path) -> None:
    network = parity.load(case, tmp_path)
    network = device.place(network, torch.device("cpu"), "fp32")
    restored = parity.restore(network, case.frames(), case.chunk, smallest=case.smallest, mean_tiles=case.tile)
    restored = restored[case.output_frames]
    if case.tile is not None:  # clamped where they are joined
        restored = numpy.clip(restored, 0, 1)
    error = numpy.abs(restored - case.output()).max()
    assert error <= case.tolerance, f"off by {error:.1e}"


@pytest.mark.parametrize("case", parity.each(dict.fromkeys(case for cases in RUNNABLE for case in cases.values())))
def test_run_equals_the_reference(case: Case, vdeblur, tmp_path: Path) -> None:
    """From a folder of pictures to a folder of pictures, within one code value.

    Drawn weights change frames as a failing network does, so the guard is off.
    """
    frames = case.frames()
    (tmp_path / "in").mkdir()
    raw = tmp_path / "frames.rgb"
    raw.write_bytes(frames.tobytes())
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    clips.ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-i", raw, tmp_path / "in" / "f%03d.png")
    options = ("-m", case.model, "--weights", case.checkpoint(tmp_path), "-p", "fp32", "-d", "cpu")
    result = vdeblur("run", tmp_path / "in", tmp_path / "out/", *options, "--tile", "none", "--no-scene-detect")
    assert result.exit_code == 0, result.output
    written = numpy.concatenate([clips.rgb(path) for path in sorted((tmp_path / "out").iterdir())])
    expected = numpy.rint(numpy.clip(case.output(), 0, 1) * 255)
    assert numpy.abs(written - expected).max() <= 1


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("case", parity.each(FIRST.values(), slow=(*VARIANTS, "cdvd-tsp", "estrnn", "turtle")))
def test_half_precision_gives_the_same_picture(case: Case, precision: str, tmp_path: Path) -> None:
    network = parity.load(case, tmp_path)
    if precision not in network.half_precision:
        pytest.skip(f"{case.model} does not run in {precision}")
    network = device.place(network, torch.device("cpu"), precision)
    restored = parity.restore(network, case.frames(), case.chunk, smallest=case.smallest)
    error = numpy.clip(restored[case.output_frames], 0, 1) - numpy.clip(case.output(), 0, 1)
    assert -10 * numpy.log10((error**2).mean()) >= 50


# NAFNet needs larger tiles: test_nafnet.py has its test, test_estrnn.py a faster one of ESTRNN's. Turtle's tokens
# depend on the size of a tile.
UNLIKE_WHOLE = ("nafnet", "turtle")


@pytest.mark.parametrize(
    "case", parity.each((c for c in FIRST.values() if c.folder not in UNLIKE_WHOLE), (*VARIANTS, "estrnn", "cdvd-tsp"))
)
def test_tiles_come_close_to_the_whole_frame(case: Case, tmp_path: Path) -> None:
    """The error lies where tiles overlap, and is small beside what the network changes."""
    network = parity.load(case, tmp_path)
    frames = recipe.frames(2, 96, 256, 3)
    whole = parity.restore(network, frames, smallest=case.smallest)
    error = numpy.abs(parity.restore(network, frames, tile=(96, 160), smallest=case.smallest) - whole)
    change = numpy.abs(whole - frames / 255).mean()
    assert error.mean() <= 0.05 * change
    columns = error.mean((0, 1, 3))
    assert columns[96:160].mean() > max(columns[:48].mean(), columns[-48:].mean())


@pytest.mark.parametrize("case", parity.each(FIRST.values()))
def test_every_key_has_one_place(case: Case) -> None:
    """Our tensors' official names are the reference's keys, and their sizes agree."""
    entry = registry.find_entry(case.model).with_arguments(case.arguments)
    with torch.device("meta"):
        network = entry.build()
    ours = {network.official_name(name): tensor for name, tensor in network.state_dict().items()}
    manifest = case.manifest()
    theirs = {
        key.removeprefix("module.").removeprefix(entry.prefix): tuple(fact["shape"])
        for key, fact in manifest["keys"].items()
        if key not in entry.ignored
    }
    assert ours.keys() == theirs.keys()
    assert len(ours) == len(network.state_dict())
    for key, shape in theirs.items():
        assert [side for side in ours[key].shape if side != 1] == [side for side in shape if side != 1], key
    # Some manifests count fixed tensors as parameters.
    counts = [sum(map(torch.numel, tensors)) for tensors in (ours.values(), network.parameters())]
    assert manifest["parameters"] in counts


@pytest.mark.parametrize("case", parity.each(case for case in CASES if case.folder == "cdvd-tsp"))
def test_the_steps_of_cdvd_tsp(case: Case, tmp_path: Path) -> None:
    if not case.steps():
        pytest.skip("needs shared/parity, which has the reference's intermediate results")
    network = parity.load(case, tmp_path)
    arrays = {name: torch.from_numpy(numpy.asarray(array)) for name, array in case.steps().items()}
    frames = parity.as_tensor(case.frames())[:, None]
    previous, frame, following = (frames[index] for index in arrays["window"][1:4])
    height, width = frame.shape[2:]
    with torch.inference_mode():
        pyramids = tuple(network.pyramid(picture) for picture in (previous, frame, following))
        forward = network.flow_net(pyramids[1], pyramids[2], height, width)
        backward = network.flow_net(pyramids[1], pyramids[0], height, width)
        aligned = network.align((previous, frame, following), pyramids)
        restored = network.restore(aligned)
    expected = {
        "flow_t_prev": backward[0],
        "flow_t_next": forward[0],
        "warped_prev": aligned[0, :3],
        "sharpness_stage1": aligned[0, 9],
        "stage1_t": restored[0],
    }
    for name, found in expected.items():
        assert (found - arrays[name]).abs().max() <= 1e-4, name


@pytest.mark.parametrize(
    "case", parity.each(case for case in CASES if case.folder == "dstnet" and case.name[-1] in "ad")
)
def test_the_steps_of_dstnet(case: Case, tmp_path: Path) -> None:
    if not case.steps():
        pytest.skip("needs shared/parity, which has the reference's intermediate results")
    network = parity.load(case, tmp_path)
    assert isinstance(network, DSTNet)
    height, width = case.frames().shape[1:3]
    plan = tiles.cut_tiles(height, width, None, 0, tiles.TileNeeds(network.multiple))
    frames = plan.pad(parity.as_tensor(case.frames()[: case.chunk]))
    with torch.inference_mode():
        features = list(network.features(iter(frames.split(1))))
        backward = network.propagate_backward(features)
        expected = {"ll1_rec_f0": features[0], "backward_out_f0": backward[0], "backward_out_last": backward[-1]}
        forward, _ = network.propagate_forward(backward, None)
        expected |= {"forward_out_f0": forward[0], "forward_out_last": forward[-1]}
    arrays = case.steps()
    for name, found in expected.items():
        stored = torch.from_numpy(arrays[f"{name}_c0_3"])
        assert (found[0, :4] - stored).abs().max() <= 1e-4, name


def test_cdvd_tsp_streams_as_its_windows(tmp_path: Path) -> None:
    """The reference restores three windows and then one for every frame; a stream restores two, with one result."""
    case = FIRST["cdvd-tsp"]
    network = parity.load(case, tmp_path)
    frames = parity.as_tensor(case.frames())[[0, 1, 2, 3, 2], None]  # the window of frame 2 of 4
    with torch.inference_mode():
        first = [network(*frames[index : index + 3]) for index in range(3)]
        middle = network(*first)
    streamed = parity.restore(network, case.frames())[2]
    torch.testing.assert_close(middle[0].permute(1, 2, 0).numpy(), streamed, rtol=0, atol=2e-5)


def test_dstnet_streams_longer_clips_than_its_window(tmp_path: Path) -> None:
    """A window that holds the clip changes nothing; a shorter one with look-ahead comes close."""
    case = next(case for case in CASES if case.folder == "dstnet" and case.chunk)
    network = parity.load(case, tmp_path)
    assert isinstance(network, DSTNet)
    frames = parity.as_tensor(case.frames()).split(1)
    height, width = frames[0].shape[2:]
    plan = tiles.cut_tiles(height, width, None, 0, tiles.TileNeeds(network.multiple))

    def stream(**window: int) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat(list(streams.stream_bidirectional(network, iter(frames), plan, **window)))

    with torch.inference_mode():
        whole = network(torch.stack(frames, 1))[0]
    torch.testing.assert_close(stream(window=10, ahead=4), whole, rtol=0, atol=1e-5)
    change = (whole - torch.cat(frames)).abs().mean()
    with_ahead = (stream(window=8, ahead=4) - whole).abs().mean()
    without = (stream(window=4, ahead=0) - whole).abs().mean()
    assert with_ahead < without < change
    assert with_ahead < 0.05 * change
