"""ESTRNN: its steps, merged weights, bands of rows, and what its feeding does over time."""

from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor, nn

from tests import clips, parity, recipe
from vdeblur.datasets.pictures import write_png
from vdeblur.networks import estrnn
from vdeblur.networks.estrnn import ESTRNN
from vdeblur.restore import streams, tiles

CASES = [case for case in parity.cases() if case.folder == "estrnn"]
CASE_E = next(case for case in CASES if case.name == "case-e")


def small() -> ESTRNN:
    torch.manual_seed(0)
    return ESTRNN(4, 2).eval()


def plan_of(network: ESTRNN, height: int, width: int, tile: tuple[int, int] | None = None, overlap: int = 0):
    return tiles.cut_tiles(height, width, tile, overlap, tiles.TileNeeds.of(network))


@torch.inference_mode()
def stream(network: ESTRNN, clip: Tensor, tile: tuple[int, int] | None = None, overlap: int = 0) -> Tensor:
    height, width = clip.shape[2:]
    plan = plan_of(network, height, width, tile, overlap)
    restored = streams.stream_cell(network, map(plan.pad, clip.split(1)), plan)
    return torch.cat([plan.crop(frame) for frame in restored])


def test_the_steps_of_estrnn(tmp_path: Path) -> None:
    stored = CASE_E.steps()
    if not stored:
        pytest.skip("needs shared/parity, which has the reference's intermediate results")
    network = parity.load(CASE_E, tmp_path)
    assert isinstance(network, ESTRNN)
    plan = plan_of(network, *CASE_E.frames().shape[1:3])
    frame = plan.pad(parity.as_tensor(CASE_E.frames()))
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        picture = frame.flip(1) - 0.5
        found["b0_f0"] = network.extract_1(picture)
        found["b1rdb_f0"] = network.extract_2[0](found["b0_f0"])
        found["b1_f0"] = network.extract_2[1](found["b1rdb_f0"])
        found["b2_f0"] = network.extract_3(found["b1_f0"])
        found["h_f0"], found["s_f0"] = network.step(frame, None)
        found["h_f1"], found["s_f1"] = network.step(frame, found["s_f0"])
        window, state = [found["h_f0"], found["h_f1"]], found["s_f1"]
        for _ in range(3):
            h, state = network.step(frame, state)
            window.append(h)
    found["h_last"], found["s_last"] = window[-1], state
    with torch.no_grad():
        gates = network.look(None, window)
        found["up1_out0"] = network._fuse_in_steps(gates, window)
        merged = network._fuse_merged(network.look(network.begin(), window), window)
        torch.testing.assert_close(merged, found["up1_out0"], rtol=0, atol=1e-4)
        found["up2_out0"] = network.reconstruction[1](merged)
    for name, values in found.items():
        expected = torch.from_numpy(stored[f"{name}_ch0_1"])
        assert (values[0, :2] - expected.reshape(values[0, :2].shape)).abs().max() <= 1e-4, name
    for index, name in ((0, "gate_out0_m2"), (2, "gate_out0_p1")):
        assert (gates[0, index] - torch.from_numpy(stored[name]).flatten()).abs().max() <= 1e-4, name


def test_the_authors_file_is_imported_and_run(vdeblur, tmp_path: Path) -> None:
    """A .tar that is none, with the state of an optimiser beside the weights, and a prefix before every name."""
    imported = vdeblur("models", "import", CASE_E.checkpoint(tmp_path), "--as", "estrnn@bsd-3ms24ms")
    assert imported.exit_code == 0, imported.output
    assert "is not verified: its authors published no digest" in imported.stderr
    picture = tmp_path / "f1.png"
    write_png(picture, torch.from_numpy(CASE_E.frames()[0]).permute(2, 0, 1))
    result = vdeblur("run", picture, tmp_path / "out.png", "-m", "estrnn@bsd-3ms24ms", "-p", "fp32", "-d", "cpu")
    assert result.exit_code == 0, result.output
    expected = numpy.rint(numpy.clip(CASE_E.output(), 0, 1) * 255)
    assert numpy.abs(clips.rgb(tmp_path / "out.png") - expected).max() <= 1


@pytest.mark.parametrize(
    ("features", "blocks", "parameters"), [(16, 15, 2_467_931), (14, 7, 1_170_907), (18, 10, 2_379_531)]
)
def test_the_papers_sizes(features: int, blocks: int, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in ESTRNN(features, blocks).parameters()) == parameters


def test_merged_weights_restore_what_the_authors_form_does() -> None:
    """And each clip of a batch by its own gates."""
    network = small()
    clips = torch.rand(2, 6, 3, 16, 20, generator=torch.Generator().manual_seed(1))
    with torch.enable_grad():
        expected = network(clips).detach()
    assert expected.shape == (2, 2, 3, 16, 20)
    with torch.inference_mode():
        torch.testing.assert_close(network(clips), expected, rtol=0, atol=2e-6)


def test_merged_weights_follow_the_networks() -> None:
    """Weights that change, as between two validations, are merged anew."""
    network, clip = small(), torch.rand(3, 3, 8, 8)
    before = stream(network, clip)
    with torch.no_grad():
        network.fusion.bias.add_(0.5)
    assert (stream(network, clip) - before).abs().max() > 1e-3


def test_bands_of_rows_equal_the_whole_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small()
    frame = torch.rand(1, 3, 100, 24)
    with torch.inference_mode():
        whole = network._extract(frame)
        monkeypatch.setattr(estrnn, "BAND", 32)
        torch.testing.assert_close(network._extract(frame), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "fed"),
    [(1, [0] * 5), (2, [0, 1] * 3), (3, [2, 1, 0, 1, 2, 1, 0]), (6, [2, 1, 0, 1, 2, 3, 4, 5, 4, 3]), (0, [])],
)
def test_clips_are_reflected_in_time(count: int, fed: list[int]) -> None:
    frames = [torch.tensor(index) for index in range(count)]
    assert [int(frame) for frame in streams._reflected(iter(frames), 2)] == fed


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 9, 15, 16])
def test_chunks_yield_each_frame_once(count: int) -> None:
    """The authors' chunks: the first result of each frame, and the frames at the ends as they are."""
    network = small()
    clip = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    plan = plan_of(network, 8, 8)
    with torch.inference_mode():
        found = torch.cat(list(streams.stream_chunks(network, iter(clip.split(1)), plan, 8)))
        assert found.shape == clip.shape
        assert torch.equal(found[:2], clip[:2])
        assert torch.equal(found[-2:], clip[-2:])
        if count >= 8:
            torch.testing.assert_close(found[2:6], network(clip[None, :8])[0])
        if count == 15:  # the chunks begin at frames 0, 4 and 7
            torch.testing.assert_close(found[6:10], network(clip[None, 4:12])[0])
            torch.testing.assert_close(found[10:13], network(clip[None, 7:])[0, 1:])


def test_a_scene_entered_in_the_middle_comes_close(tmp_path: Path) -> None:
    """With the frames around that a segment gets; at once, the state would be missing."""
    network = parity.load(CASE_E, tmp_path)
    clip = parity.as_tensor(recipe.frames(16, 16, 16, 3))
    before, after = streams.frames_around(network)
    assert (before, after) == (10, 2)
    whole = stream(network, clip)
    part = stream(network, clip[2 : 13 + after])[before:-after]
    at_once = stream(network, clip[12:])[:1]
    assert (part[:1] - whole[12:13]).abs().max() < 0.02 * (at_once - whole[12:13]).abs().max()


def test_tiles_use_the_gates_of_the_whole_frame(tmp_path: Path) -> None:
    """Far from the cut they restore what the whole frame does; with means of their own they would be off by 1e-3."""
    network = parity.load(CASE_E, tmp_path)
    clip = parity.as_tensor(recipe.frames(2, 16, 352, 3))
    error = numpy.abs((stream(network, clip, (16, 224), 96) - stream(network, clip)).numpy()).max((0, 1, 2))
    assert error[:32].max() < 1e-4
    assert error[-32:].max() < 1e-4


class Runaway(nn.Module):
    """A cell whose state doubles at each frame; it restores the middle frame's state."""

    radius = 2

    def begin(self) -> None:
        return None

    def step(self, frame: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        state = frame if state is None else 2 * state
        return state, state

    def look(self, begun: None, window) -> Tensor:
        return window[2].mean()

    def fuse(self, looked: Tensor, *window: Tensor) -> Tensor:
        return window[2]


def test_a_state_that_runs_away_begins_anew() -> None:
    plan = tiles.cut_tiles(4, 4, None, 0, tiles.TileNeeds())
    frames = (torch.ones(1, 3, 4, 4) for _ in range(60))
    states = [float(restored.amax()) for restored in streams.stream_cell(Runaway(), frames, plan)]
    assert len(states) == 60
    assert max(states) <= 2.0**20
    assert states.count(1.0) >= 3
