"""Turtle: its steps, through the importer and `run`, its exact reach into the past, and its alignment."""

import math
from pathlib import Path

import numpy
import pytest
import torch

from tests import clips, parity
from tests.parity import Case
from vdeblur.networks import turtle
from vdeblur.networks.layers import Recorder, recording
from vdeblur.networks.turtle import Turtle
from vdeblur.restore import streams, tiles

SMALL = Case("turtle", "case-s")
CASES = [case for case in parity.cases() if case.folder == "turtle"]
EARLIER = 14
# What the recorder hands over, by the beginnings of the stored names; enc3 and latent lie at the level's end, too.
STEPS = {
    "enc1": ("features", "encoder.0"),
    "enc2": ("features", "encoder.1"),
    "enc3": ("features", "encoder.2"),
    "latent": ("features", "latent"),
    "refinement": ("features", "refinement"),
    **{f"dec{3 - index}": ("features", f"decoder.{index}") for index in range(3)},
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The model of the small case, in a registry of the user's."""
    arguments = ", ".join(f"{key} = {value}" for key, value in SMALL.facts["arguments"].items())
    lines = ("[turtle-small]", 'network = "turtle"', f"arguments = {{ {arguments} }}", 'description = "small"',
             'license = "MIT"', 'no_weights = "for tests"')  # fmt: skip
    (tmp_path / "registry.toml").write_text("\n".join(lines))
    monkeypatch.setenv("VDEBLUR_REGISTRY", str(tmp_path / "registry.toml"))
    return "turtle-small"


def pictures(folder: Path, frames: numpy.ndarray) -> Path:
    folder.mkdir()
    raw = folder.parent / "frames.rgb"
    raw.write_bytes(frames.tobytes())
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    clips.ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-i", raw, folder / "f%03d.png")
    return folder


def test_imported_weights_run_as_the_reference_in_one_part_or_several(vdeblur, tmp_path: Path, small: str) -> None:
    """Segments of sixteen frames, and so of the fourteen before the second, give the same bytes as one of all."""
    source = pictures(tmp_path / "in", SMALL.frames())
    imported = vdeblur("models", "import", SMALL.checkpoint(tmp_path), "--as", f"{small}@mine")
    assert imported.exit_code == 0, imported.output
    options = ("-m", f"{small}@mine", "-p", "fp32", "-d", "cpu", "--no-scene-detect", "--threads", 1)
    written = {}
    for name, length in (("whole", 0), ("parts", 0.64)):
        result = vdeblur("run", source, tmp_path / name / "", *options, "--segment", length)
        assert result.exit_code == 0, result.output
        written[name] = [path.read_bytes() for path in sorted((tmp_path / name).glob("*.png"))]
    assert len(written["whole"]) == len(SMALL.output())
    assert written["whole"] == written["parts"]
    restored = clips.rgb(tmp_path / "whole" / "f%03d.png")
    assert numpy.abs(restored - numpy.rint(numpy.clip(SMALL.output(), 0, 1) * 255)).max() <= 1


@pytest.mark.slow  # segments, above, show it more quickly
def test_a_frame_depends_on_the_fourteen_before_it_and_on_no_others(tmp_path: Path) -> None:
    network = parity.load(SMALL, tmp_path)
    assert streams.frames_around(network) == (EARLIER, 0)
    frames = SMALL.frames()[:, :32]  # less work
    whole = parity.restore(network, frames)[-1]
    first = len(frames) - 1 - EARLIER
    assert numpy.array_equal(parity.restore(network, frames[first:])[-1], whole), "to the bit"
    assert numpy.abs(parity.restore(network, frames[first + 1 :])[-1] - whole).max() > 1e-6, "one fewer is not enough"


@pytest.mark.parametrize("case", parity.each(case for case in CASES if case.tile is None))
def test_the_steps(case: Case, tmp_path: Path) -> None:
    stored = case.steps()
    if not stored:
        pytest.skip("needs shared/parity, which has the reference's intermediate results")
    network = parity.load(case, tmp_path)
    last = case.facts["frames"]["count"] - 1
    recorder = Recorder(network, frozenset(network.shows), frozenset((0, last)))
    with recording(recorder):
        parity.restore(network, case.frames())
    found = {(item.name, item.part, item.frame): item.values for item in recorder.shown}
    for index, level in enumerate(network.decoder):
        block = f"decoder.{index}.{len(level) - 1}"
        STEPS[f"dec{3 - index}_history"] = ("history", block)
        STEPS[f"dec{3 - index}_aligned_oldest"] = ("aligned", f"{block}.attn oldest")
        STEPS[f"dec{3 - index}_aligned_newest"] = ("aligned", f"{block}.attn newest")
    compared = set()
    for name, array in stored.items():
        step, _, rest = name.partition("_f0_c")
        step, frame = (step, 0) if rest else (name.partition("_last_c")[0], last)
        if step not in STEPS or (step.endswith(("oldest", "newest")) and "aligned" not in network.shows):
            continue
        expected = torch.from_numpy(array).view(-1, *array.shape[-2:])
        values = found[*STEPS[step], frame][: len(expected)]
        assert (values - expected).abs().max() <= 5e-4, name
        compared.add(step)
    assert {"enc1", "enc3", "latent", "dec3", "dec2_history", "dec1"} <= compared


def test_alignment_adds_up_what_its_masks_allow() -> None:
    """Against the dense form: near ones and the five best, doubled where both, and nothing else; block by block."""
    rows, columns, numbers = 5, 12, 6
    generator = torch.Generator().manual_seed(3)
    query, key = (torch.randn(2, rows * columns, 8, generator=generator) for _ in "qk")
    value = torch.randn(2, rows * columns, numbers, generator=generator)
    scores = query @ key.transpose(1, 2)
    y, x = (torch.arange(rows * columns) // columns), (torch.arange(rows * columns) % columns)
    near = (y[:, None] - y).abs() + (x[:, None] - x).abs() < 5
    best = torch.zeros_like(scores).scatter(2, scores.topk(5, 2).indices, 1).bool()
    dense = (scores * (near.int() + best.int())).masked_fill(~(near | best), -math.inf).softmax(2) @ value
    frame = turtle.Tokens(key, value)
    parts = [turtle.align_rows(part, frame, first, columns) for first, part in
             zip(range(0, 60, 7), query.split(7, 1), strict=True)]  # fmt: skip
    torch.testing.assert_close(torch.cat(parts, 1), dense, rtol=0, atol=1e-5)


def test_strips_and_small_blocks_of_scores_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = parity.load(SMALL, tmp_path)
    frames = SMALL.frames()[:2]
    whole = parity.restore(network, frames)
    monkeypatch.setattr(turtle, "CPU_STRIP", 2**12)
    monkeypatch.setattr(turtle, "ROW_SCORES", 50)
    torch.testing.assert_close(parity.restore(network, frames), whole, rtol=0, atol=3e-6)


def test_black_frames_stay_finite_with_initial_weights() -> None:
    """The reference divides 0 by 0 here."""
    network = Turtle(8, (1, 1, 1), 2, (1, 1, 1), 1)
    restored, _ = network(torch.zeros(1, 3, 64, 64))
    assert restored.isfinite().all()
    restored.sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())


def test_the_authors_tiles() -> None:
    plan = tiles.cut_mean_tiles(720, 1280, 320, 192)
    assert (plan.count, plan.tops[-1], plan.lefts[-1]) == (45, 400, 960)
    assert tiles.cut_mean_tiles(720, 1280, 320, 128).count == 24
    assert tiles.cut_mean_tiles(480, 640, 320, 128).count == 6
    small = tiles.cut_mean_tiles(90, 117, 64, 32)
    assert (small.tops, small.lefts) == ((0, 32), (0, 32, 56))
    values = torch.rand(1, 3, 96, 120)
    torch.testing.assert_close(small.join([small.split(values)]), values)
