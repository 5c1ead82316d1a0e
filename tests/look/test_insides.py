"""`vdeblur inspect`: what networks show is what they compute, and showing it changes nothing."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy
import pytest
import torch
from torch.nn import functional as F

from tests import clips
from vdeblur.frame import Frame
from vdeblur.look import insides, maps, moments
from vdeblur.networks import NETWORKS
from vdeblur.networks.layers import Network, Recorder, recording
from vdeblur.networks.lite import Lite
from vdeblur.restore import streams
from vdeblur.restore.tiles import TileNeeds, cut_tiles

MODELS = [name for name in NETWORKS if name != "identity"]
SMALL = {"nafnet": {"encoder": (1, 1, 1, 1)}, "dstnet": {"blocks": 1}, "dstnet-plus": {"blocks": 1},
         "basicvsrpp": {"blocks": 1}, "pvdnet": {"blocks": 1},
         "turtle": {"channels": 8, "encoder_blocks": (1, 1, 1), "middle_blocks": 2,
                    "decoder_blocks": (1, 1, 1)}}  # fmt: skip


def drawn(name: str) -> Network:
    """Return a network whose weights make every part of it count."""
    torch.manual_seed(1)
    network = NETWORKS[name](**SMALL.get(name, {})).eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return network


# A switch of each network, and what it takes away from `shows` or adds to it
VARIANTS: list[tuple[str, dict[str, object], set[str], set[str]]] = [
    ("cdvd-tsp", {"prior": False}, {"prior"}, set()),
    ("cdvd-tsp", {"flow": False}, {"flow", "warp"}, set()),
    ("cdvd-tsp", {"flow": False, "prior": False, "stages": 1}, {"flow", "warp", "prior", "stage1"}, set()),
    ("cdvd-tsp", {"stages": 1}, {"stage1"}, set()),
    ("cdvd-tsp", {"stages": 3}, set(), set()),
    ("pvdnet", {"motion": "warp"}, {"volume"}, {"warp"}),
    ("pvdnet", {"motion": "none"}, {"flow", "volume"}, set()),
    ("pvdnet", {"side": 3}, set(), set()),
    ("flow-rnn", {"rnn": "concatenate"}, {"gates", "rnn"}, set()),
    ("flow-rnn", {"rnn": "none"}, {"flow", "warp", "gates", "rnn"}, set()),
    ("flow-rnn", {"rnn": "decoder"}, set(), set()),
    ("flow-rnn", {"flow": "none"}, {"flow", "warp"}, set()),
    ("flow-rnn", {"flow": "two-way"}, set(), set()),
    ("flow-rnn", {"flow": "two-way", "rnn": "none"}, {"flow", "warp", "gates", "rnn"}, set()),
    ("flow-rnn", {"pairing": "itself"}, set(), set()),
    ("dstnet", {"fusion": "sum"}, set(), set()),
    ("dstnet", {"fusion": "sum", "gating": 0}, {"gates"}, set()),
    ("dstnet", {"fusion": "blend", "gating": 0}, set(), set()),
    ("dstnet", {"gating": 0}, set(), set()),
    ("dstnet", {"bands": "bilinear"}, set(), set()),
    ("spn", {"scales": (1, 3)}, set(), set()),
    ("spn", {"residual_norm": "none"}, set(), set()),
]


def in_order(value: object) -> str:
    """Return a value as words; those of a set come in the same order in every process."""
    return str(sorted(value) if isinstance(value, set) else value)


def variant(name: str, arguments: dict[str, object]) -> Network:
    torch.manual_seed(1)
    blocks = {"channels": 4, "blocks": 1}
    small: dict[str, dict[str, object]] = {"cdvd-tsp": {**blocks}, "spn": {**blocks}, "flow-rnn": {"width": 4}}
    return NETWORKS[name](**{**small.get(name, SMALL.get(name, {})), **arguments}).eval()


@pytest.mark.parametrize(("name", "arguments", "absent", "added"), VARIANTS, ids=in_order)
def test_a_variant_declares_what_it_shows(
    name: str, arguments: dict[str, object], absent: set[str], added: set[str]
) -> None:
    """All that it declares is shown, all that can be shown is declared, and the class keeps its own."""
    network = variant(name, arguments)
    assert {*network.shows} == {*NETWORKS[name].shows} - absent | added
    everything = frozenset({*NETWORKS[name].shows, *network.shows, "warp"})
    recorder = Recorder(network, everything, frozenset(range(4)))
    frames = list(torch.rand(4, 1, 3, 64, 64, generator=torch.Generator().manual_seed(2)))
    plan = cut_tiles(64, 64, None, 0, TileNeeds.of(network))
    with torch.inference_mode(), recording(recorder):
        list(streams.stream(network, iter(frames), plan))
    assert {item.name for item in recorder.shown} == {*network.shows}
    for item in recorder.shown:
        if network.shows[item.name].channels:
            assert len(item.values) == len(network.shows[item.name].channels)


def test_a_frame_paired_with_itself_is_warped_from_itself() -> None:
    """The flow of a frame to itself warped the real neighbour. Without flow, the frame's own means appear."""
    network = variant("flow-rnn", {"pairing": "itself"})
    for level in range(2, 7):
        layer = network.get_submodule(f"flow_part.refine{level}.flow")
        torch.nn.init.zeros_(layer.weight)
    frame, neighbour = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    recorder = Recorder(network, frozenset({"warp"}), frozenset({0}))
    with torch.inference_mode(), recording(recorder):
        network(frame, neighbour)
    torch.testing.assert_close(recorder.shown[0].values, F.avg_pool2d(frame, 4)[0])


def test_a_name_that_is_never_shown_is_an_error(vdeblur, tmp_path: Path) -> None:
    """The user's own network may declare what it does not hand over; what it does show is kept."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from vdeblur.networks.layers import Inside, Network, show\n"
        "class Mine(Network):\n"
        '    feeding = "frame"\n'
        "    trained = True\n"
        '    shows = {name: Inside(name, "picture") for name in ("flow", "features")}\n'
        "    def forward(self, frame):\n"
        '        show(self, "features", frame)\n'
        "        return frame\n"
    )
    clip, folder = clips.make(tmp_path / "in.mkv", frames=3), tmp_path / "out"
    command = ("inspect", clip, "-m", f"{file}:Mine", "-o", folder)
    result = vdeblur(*command, "--show", "flow,features")
    assert result.exit_code == 2, result.output
    assert "Mine showed no flow of these frames (it showed features)" in result.stderr
    assert {item["show"] for item in index_of(folder)["items"]} == {"frame", "restored", "features"}
    assert vdeblur(*command, "--overwrite").exit_code == 0


def shifting(path: Path, step: int = 2, frames: int = 5, size: int = 64) -> Path:
    """Write a smooth texture that moves to the right by `step` pixels a frame, as lossless video."""
    generator = numpy.random.default_rng(3)
    wide = torch.from_numpy(generator.random((1, 3, size // 8, size // 4)).astype(numpy.float32))
    texture = F.interpolate(wide, (size, 2 * size), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0)
    pixels = (255 * texture).round().byte().numpy()
    folder = path.with_suffix(".frames")
    folder.mkdir()
    for index in range(frames):
        begin = size // 2 - step * index
        picture = av.VideoFrame.from_ndarray(numpy.ascontiguousarray(pixels[:, begin : begin + size]), "rgb24")
        picture.save(str(folder / f"{index:03}.png"))
    clips.ffmpeg("-framerate", 25, "-i", folder / "%03d.png", "-c:v", "ffv1", "-pix_fmt", "bgr0", path)
    return path


def index_of(folder: Path) -> dict:
    return json.loads((folder / insides.INDEX).read_text())


def arrays(folder: Path, show: str) -> dict[tuple[str, str], numpy.ndarray]:
    items = [item for item in index_of(folder)["items"] if item["show"] == show]
    return {(item["folder"], item["part"]): numpy.load(folder / item["array"], allow_pickle=False) for item in items}


@pytest.mark.parametrize("name", MODELS)
def test_recording_changes_no_bit_and_keeps_what_is_declared(name: str) -> None:
    network = drawn(name)
    frames = list(torch.rand(5, 1, 3, 64, 64, generator=torch.Generator().manual_seed(2)))
    plan = cut_tiles(64, 64, None, 0, TileNeeds.of(network))
    recorder = Recorder(network, frozenset(network.shows), frozenset({1, 3}))
    with torch.inference_mode():
        plain = list(streams.stream(network, iter(frames), plan))
        with recording(recorder):
            watched = list(streams.stream(network, iter(frames), plan))
        again = list(streams.stream(network, iter(frames), plan))
    for a, b, c in zip(plain, watched, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert {item.name for item in recorder.shown} == {*network.shows}, "each declared name is shown"
    places = [(item.name, item.part, item.frame) for item in recorder.shown]
    assert len(places) == len(set(places)), "each once"
    for frame in (1, 3):
        of_frame = {(name, part) for name, part, number in places if number == frame}
        assert of_frame == {(name, part) for name, part, _ in places}, "each of both frames"
    for item in recorder.shown:
        kind = network.shows[item.name].kind
        assert item.values.dtype == torch.float32
        assert item.values.isfinite().all()
        if kind != "channels":
            assert len(item.values) == {"flow": 2, "picture": 3, "map": 1}[kind]
        if network.shows[item.name].channels:
            assert len(item.values) == len(network.shows[item.name].channels)


@pytest.mark.parametrize("name", MODELS)
def test_values_belong_to_the_frame_that_they_are_of(name: str) -> None:
    """A change of the last frames leaves what causal parts show of earlier frames, so numbers cannot be shuffled."""
    network = drawn(name)
    frames = list(torch.rand(6, 1, 3, 64, 64, generator=torch.Generator().manual_seed(2)))
    plan = cut_tiles(64, 64, None, 0, TileNeeds.of(network))

    def shown(clip: list[torch.Tensor]) -> dict[tuple[str, str, int], torch.Tensor]:
        recorder = Recorder(network, frozenset(network.shows), frozenset(range(6)))
        with torch.inference_mode(), recording(recorder):
            list(streams.stream(network, iter(clip), plan))
        return {(item.name, item.part, item.frame): item.values for item in recorder.shown}

    before, after = shown(frames), shown([*frames[:5], frames[5].flip(3)])
    assert {number for _, _, number in before} == set(range(6))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert any(number == 5 for _, _, number in changed)
    assert not any(number == 0 and part.startswith(("forward_1", "stage1 ")) for _, part, number in changed)
    if network.feeding in ("frame", "view", "window", "pair", "recurrent"):
        assert {number for _, _, number in changed} <= set(range(5 - max(network.radius, 1), 6))


def test_the_flow_of_a_shifted_picture_is_the_shift(vdeblur, tmp_path: Path) -> None:
    clip, folder = shifting(tmp_path / "in.mkv", step=4), tmp_path / "out"
    result = vdeblur("inspect", clip, "-o", folder, "--show", "flow", "--at", "0.1")
    assert result.exit_code == 0, result.output
    found = arrays(folder, "flow")
    assert {place for place, _ in found} == {"00000.080s"}, "the frame that is visible at 0.1 s"
    for part, expected in (("to_following", 1.0), ("to_previous", -1.0)):  # 4 pixels at a quarter of the size
        flow = found["00000.080s", part]
        assert flow.shape == (2, 16, 16)
        middle = flow[:, 4:-4, 4:-4]
        assert numpy.abs(middle[0] - expected).mean() < 0.15
        assert numpy.abs(middle[1]).mean() < 0.15


def test_arrays_are_what_the_network_computes(vdeblur, tmp_path: Path) -> None:
    clip, folder = shifting(tmp_path / "in.mkv"), tmp_path / "out"
    assert vdeblur("inspect", clip, "-o", folder, "-m", "lite", "--at", "0.1").exit_code == 0
    from vdeblur.models.weights import load_model

    network = load_model("lite")
    assert isinstance(network, Lite)
    pixels = torch.from_numpy(clips.rgb(clip).copy()).permute(0, 3, 1, 2).float() / 255
    before, frame, after = (pixels[index][None] for index in (1, 2, 3))
    with torch.inference_mode():
        view = network.look(before, frame, after)
        difference = network.difference(*view)
    place = "00000.080s"
    assert numpy.allclose(arrays(folder, "samples")[place, ""], view.pixels[0, 3:].numpy(), atol=1e-4)
    assert numpy.allclose(arrays(folder, "flow")[place, "to_following"], view.coarse[0, :2].numpy(), atol=1e-4)
    assert numpy.allclose(arrays(folder, "difference")[place, ""], difference[0].numpy(), atol=1e-4)
    assert numpy.allclose(arrays(folder, "frame")[place, ""], frame[0].numpy(), atol=1e-5)
    index = index_of(folder)
    assert index["v"] == 1
    assert {*index["shows"]} == {*network.shows, "difference"}
    for item in index["items"]:
        array = numpy.load(folder / item["array"], allow_pickle=False)
        assert list(array.shape) == item["shape"]
        assert item["least"] == pytest.approx(float(array.min()))
        with av.open(str(folder / item["picture"])) as picture:
            assert next(picture.decode(video=0)).width > 64


def test_the_restored_frame_is_that_of_run(vdeblur, tmp_path: Path) -> None:
    clip, folder, output = shifting(tmp_path / "in.mkv"), tmp_path / "out", tmp_path / "out.mkv"
    assert vdeblur("inspect", clip, "-o", folder, "-ss", "0", "--show", "difference").exit_code == 0
    assert vdeblur("run", clip, output, "--lossless").exit_code == 0
    expected = clips.rgb(output)
    found = arrays(folder, "restored")
    assert len(found) == 5
    for frame, array in zip(expected, [found[key] for key in sorted(found)], strict=True):
        mine = (255 * array.transpose(1, 2, 0)).round().clip(0, 255)
        assert numpy.abs(mine - frame).max() <= 1


def test_frames_of_a_part_by_steps(vdeblur, tmp_path: Path) -> None:
    clip = clips.make(tmp_path / "in.mkv", frames=30)
    result = vdeblur("inspect", clip, "-o", tmp_path / "out", "-ss", "0.2", "-t", "0.8", "--every", "8",
                     "--show", "flow", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    index = json.loads(result.stdout)
    assert [frame["seconds"] for frame in index["frames"]] == [0.2, 0.52, 0.84]
    assert index == index_of(tmp_path / "out")


def test_the_middle_frame_is_shown_by_default(vdeblur, tmp_path: Path) -> None:
    clip = clips.make(tmp_path / "in.mkv", frames=11)
    assert vdeblur("inspect", clip, "-o", tmp_path / "out", "--show", "weights").exit_code == 0
    assert [frame["seconds"] for frame in index_of(tmp_path / "out")["frames"]] == [0.2]


def test_odd_sizes_are_shown_without_padding(vdeblur, tmp_path: Path) -> None:
    clip = clips.make(tmp_path / "in.mkv", size="63x47", pix_fmt="bgr0", frames=3)
    assert vdeblur("inspect", clip, "-o", tmp_path / "out", "--show", "flow,samples,difference").exit_code == 0
    assert next(iter(arrays(tmp_path / "out", "samples").values())).shape[1:] == (47, 63)
    assert next(iter(arrays(tmp_path / "out", "flow").values())).shape == (2, 12, 16)


def test_what_cannot_be_inspected(vdeblur, tmp_path: Path) -> None:
    clip = clips.make(tmp_path / "in.mkv", frames=3)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("kept")
    cases = [
        (
            ("--show", "volume,flow"),
            2,
            "lite does not show volume (it shows flow, samples, weights, features, difference)",
        ),
        (("--at", "0", "--every", "2"), 2, "leave out one of them"),
        (("-t", "1", "--to", "2"), 2, "both end the part"),
        (("--at", "9"), 3, "it ends at 0.120 s"),
        (("-ss", "9"), 3, ""),
        (("-m", "best"), 2, "name the model"),
        (("-m", "cdvd"), 5, "unknown model"),
    ]
    for options, status, message in cases:
        result = vdeblur("inspect", clip, "-o", tmp_path / "new", *options)
        assert result.exit_code == status, (options, result.output)
        assert message in result.stderr, result.stderr
        assert result.stderr.strip().count("\n") == 0, result.stderr
        assert not (tmp_path / "new").exists()
    assert vdeblur("inspect", tmp_path / "none.mkv", "-o", tmp_path / "new").exit_code == 3
    assert vdeblur("inspect", "-", "-o", tmp_path / "new").exit_code == 2
    result = vdeblur("inspect", clip, "-o", full)
    assert result.exit_code == 4
    assert "not empty" in result.stderr
    assert vdeblur("inspect", clip, "-o", full, "-y", "--show", "flow").exit_code == 0
    assert (full / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize(("length", "before", "after"), [(1, 2, 2), (7, 2, 2), (40, 10, 10), (40, 0, 0), (9, 1, 1)])
def test_windows_show_each_frame_once_with_its_context(length: int, before: int, after: int) -> None:
    frame = Frame(av.VideoFrame(16, 16, "gray"), 0, Fraction(1, 25))
    clip = [moments.Moment(Fraction(number), frame, number % 3 == 0) for number in range(length)]
    seen: list[int] = []
    for held, numbers in moments.windows(iter(clip), before, after):
        assert len(held) <= before + moments.HOP + after
        times = [int(moment.seconds) for moment in held]
        for number in numbers:
            time = times[number]
            seen.append(time)
            assert {*range(max(time - before, 0), min(time + after + 1, length))} <= {*times}
    assert seen == [*range(0, length, 3)]


def test_the_colour_wheel() -> None:
    directions = numpy.array([[[1, 0, -1, 0, 0]], [[0, 1, 0, -1, 0]]], numpy.float64)
    colors = maps.flow_colors(directions, 1.0)[0]
    assert colors[0].tolist() == [255, 0, 0], "to the right is red"
    assert colors[4].tolist() == [255, 255, 255], "no motion is white"
    assert len({tuple(color) for color in colors}) == 5
    half = maps.flow_colors(directions / 2, 1.0)[0]
    assert half[0].tolist() == [255, 128, 128]


def test_maps_show_where_zero_is() -> None:
    signed = maps.scaled_colors(numpy.array([[-2.0, 0, 2]]), -2, 2)[0]
    assert signed[1].tolist() == [255, 255, 255]
    assert signed[0, 2] > signed[0, 0], "negative is blue"
    assert signed[2, 0] > signed[2, 2], "positive is red"
    assert maps.scaled_colors(numpy.array([[0.5, 1.0]]), 0.5, 1)[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def grid_of(values: numpy.ndarray, **options: object) -> numpy.ndarray:
    return maps.channels_picture(values.astype(numpy.float32), "title", **options)


def test_all_channels_of_a_grid_share_their_kind_of_colours() -> None:
    """A channel without negative values beside one with both signs stays red: grey would look like another scale."""
    positive, both = numpy.linspace(0.5, 1, 64).reshape(8, 8), numpy.linspace(-1, 1, 64).reshape(8, 8)
    colored = grid_of(numpy.stack([positive, both])).astype(int)
    tile = colored[:, : maps.TILE + 2 * maps.GAP]
    seen = tile[(tile.max(-1) - tile.min(-1)) > 20]
    assert len(seen)
    assert (seen[:, 0] > seen[:, 2]).all(), "red"
    plain = grid_of(numpy.stack([positive, positive]))
    assert (plain.max(-1) == plain.min(-1)).all(), "grey"
    common = grid_of(numpy.stack([both] * 4), common=True)
    assert (common.max(-1) == common.min(-1)).all(), "grey"


def test_grids_stay_small(vdeblur) -> None:
    wide = numpy.zeros((70, 90, 1280), numpy.float32)
    wide[:, :45] = numpy.arange(70)[:, None, None]
    shown = grid_of(wide)
    assert shown.shape[1] < maps.COLUMNS * (maps.MOST_WIDTH + 2 * maps.GAP) + 4 * maps.GAP
    assert shown.shape[0] < 8 * 120


def test_what_is_filmed_upright_is_shown_upright(vdeblur, tmp_path: Path) -> None:
    plain, turned = tmp_path / "plain.mp4", tmp_path / "turned.mp4"
    clips.make(plain, codec=("-c:v", "libx264", "-preset", "ultrafast", "-qp", "0"), frames=3)
    clips.ffmpeg("-display_rotation", "90", "-i", plain, "-c", "copy", turned)
    assert vdeblur("inspect", turned, "-o", tmp_path / "out", "--at", "0", "--show", "difference").exit_code == 0
    (frame,) = arrays(tmp_path / "out", "frame").values()
    assert frame.shape == (3, 64, 48)
    shown = (255 * frame.transpose(1, 2, 0)).round().clip(0, 255).astype(numpy.uint8)
    expected = clips.ffmpeg_rgb(turned)
    assert clips.psnr(shown[None], expected[None]) > 20, "ffmpeg repeats chroma, vdeblur interpolates it"
    assert clips.psnr(shown[None, ::-1, ::-1], expected[None]) < 12, "the other quarter turn"


def test_no_flow_across_a_cut(vdeblur, tmp_path: Path) -> None:
    """At the first frame after a cut there is no previous frame: lite then assumes that the motion continues."""
    first, second = shifting(tmp_path / "a.mkv", step=4), clips.make(tmp_path / "b.mkv", size="64x64", pix_fmt="bgr0")
    joined, folder = tmp_path / "in.mkv", tmp_path / "out"
    clips.ffmpeg("-i", second, "-i", first, "-lavfi", "[0][1]concat", "-c:v", "ffv1", "-pix_fmt", "bgr0", joined)
    assert vdeblur("inspect", joined, "-o", folder, "--at", "0.4", "--show", "flow").exit_code == 0
    found = {part: flow for (_, part), flow in arrays(folder, "flow").items()}
    assert [frame["seconds"] for frame in index_of(folder)["frames"]] == [0.4]
    assert numpy.array_equal(found["to_previous"], -found["to_following"])
    assert abs(found["to_following"][0, 4:-4, 4:-4].mean() - 1) < 0.15
