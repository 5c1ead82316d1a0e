"""Clips made while training: one path gives motion and blur, in linear light; batches repeat; files do not mix."""

import json
from itertools import islice
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

from vdeblur.datasets.held_out import is_held_out
from vdeblur.datasets.pictures import read_rgb, write_png
from vdeblur.errors import ExitStatus, InputError, UsageError
from vdeblur.networks import lucas_kanade
from vdeblur.networks.lite import luma_of
from vdeblur.train.data import WorkerShare
from vdeblur.train.mixture import Mixture, make_clips
from vdeblur.train.mixture_loader import MixtureLoader, write_validation
from vdeblur.train.objectives.base import Batch, unit_range
from vdeblur.train.sharp_pictures import SharpPictures, pyramid

SMALL = Mixture(clips=4, frames=3, side=48, window=96, uses=2, kept=3, validation=1)
CPU = torch.device("cpu")
NAMES = [f"photograph_{number}.png" for number in range(30)]


def texture(seed: int) -> Tensor:
    """Draw smooth blobs of a few pixels with strong contrast, uint8 (3, 160, 200)."""
    noise = torch.rand(1, 3, 54, 67, generator=torch.Generator().manual_seed(seed))
    large = torch.nn.functional.interpolate(noise, (160, 200), mode="bicubic", align_corners=False)
    return (large[0].clamp(0, 1) * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharp")
    for seed, name in enumerate(NAMES):
        write_png(folder / "stills" / name, texture(seed))
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def sharp(footage: Path) -> SharpPictures:
    return SharpPictures(footage, SMALL.window)


def test_validation_pictures_never_train(footage: Path, sharp: SharpPictures) -> None:
    kept = SharpPictures(footage, SMALL.window, validates=True)
    assert len(sharp.pyramids) + len(kept.pyramids) == len(NAMES)
    assert len(kept.pyramids) == sum(map(is_held_out, NAMES)) > 0
    with pytest.raises(InputError, match="no photographs"):
        SharpPictures(footage / "stills" / "none", SMALL.window)


def test_pyramids_keep_the_light() -> None:
    levels = pyramid(texture(0), 64)
    assert [tuple(level.shape[1:]) for level in levels] == [(160, 200), (107, 134), (72, 89)]
    light = [float((level.float() / 255).pow(2.2).mean()) for level in levels]
    assert light == pytest.approx([light[0]] * 3, rel=0.01)
    assert tuple(pyramid(texture(0), 320)[0].shape[1:]) == (320, 400), "a small picture is enlarged"


def test_clips_are_a_function_of_their_seed(sharp: SharpPictures) -> None:
    first, second, other = (make_clips(SMALL, sharp, seed, CPU) for seed in (1, 1, 2))
    assert first.shape == (4, 2, 3, 3, 48, 48)
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_sharp_frame_is_the_middle_of_the_blur(sharp: SharpPictures) -> None:
    """Measured by Lucas-Kanade, blurry and sharp frames do not move against each other, whatever the path."""
    offsets = []
    for seed in range(6):
        blurry, truth = unit_range(make_clips(SMALL, sharp, seed, CPU)[:, :, 1]).unbind(1)
        motion = lucas_kanade.flow(luma_of(truth), luma_of(blurry))[..., 12:-12, 12:-12]
        offsets += motion.mean((2, 3)).tolist()
    assert abs(numpy.mean(offsets)) < 0.1
    assert numpy.median(numpy.abs(offsets)) < 0.25


def test_light_is_averaged_linearly(sharp: SharpPictures) -> None:
    """Averaged in linear light, bright parts win: coded blurry frames are brighter than coded sharp ones."""
    pairs = torch.cat([make_clips(SMALL, sharp, seed, CPU)[:, :, 1, :, 8:-8, 8:-8] for seed in range(10)])
    blurry, truth = unit_range(pairs).unbind(1)
    blurred = (blurry - truth).square().mean((1, 2, 3)) > 1e-3
    brighter = (blurry - truth)[blurred].mean((1, 2, 3))
    assert len(brighter) > 5
    assert (brighter > 0).float().mean() > 0.7


@pytest.mark.parametrize(("key", "value"), [("frames", 2), ("side", 50), ("window", 60)])
def test_sizes_that_do_not_fit_are_refused(key: str, value: int) -> None:
    with pytest.raises(UsageError, match="mixture"):
        Mixture(**{"frames": 3, "side": 48, "window": 96, key: value})


def loader(sharp: SharpPictures, share: WorkerShare, workers: int = 0) -> MixtureLoader:
    return MixtureLoader(SMALL, sharp, share, 5, CPU, workers)


def equal(first: list[Batch], second: list[Batch]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a["blurry"], b["blurry"]) and torch.equal(a["sharp"], b["sharp"]) for a, b in pairs)


def test_batches_repeat_from_any_number_on(sharp: SharpPictures) -> None:
    """A batch is alike after a resume, with worker processes, and in parts of several processes."""
    complete = list(islice(loader(sharp, WorkerShare(4)).batches(), 9))
    assert complete[0]["blurry"].shape == (4, 3, 3, 48, 48)
    assert complete[0]["sharp"].shape == (4, 3, 48, 48)
    assert equal(list(islice(loader(sharp, WorkerShare(4), workers=2).batches(6), 3)), complete[6:])
    for rank in range(2):
        parts = list(islice(loader(sharp, WorkerShare(4, rank, 2, 2)).batches(), 2))
        rows = [complete[0][name][2 * rank + part] for part in range(2) for name in ("blurry", "sharp")]
        found = [parts[part][name][0] for part in range(2) for name in ("blurry", "sharp")]
        assert all(torch.equal(a, b) for a, b in zip(rows, found, strict=True))


def test_a_batch_draws_from_late_chunks_only(sharp: SharpPictures) -> None:
    made = loader(sharp, WorkerShare(4))
    assert made._window(0) == (5, 7)
    assert made.batches_per_chunk == 2
    assert made._window(9) == (9, 11)


def test_validation_clips_are_written_once(sharp: SharpPictures, tmp_path: Path) -> None:
    sequences = write_validation(SMALL, sharp, tmp_path)
    files = sorted(tmp_path.rglob("*.png"))
    assert len(sequences) == SMALL.clips
    assert len(files) == 2 * SMALL.clips * SMALL.frames
    assert read_rgb(sequences[0].pairs[1].blurry).shape == (3, 48, 48)
    files[0].write_bytes(b"kept")
    assert write_validation(SMALL, sharp, tmp_path) == sequences
    assert files[0].read_bytes() == b"kept"


SIZES = ("mixture.clips=4", "mixture.frames=3", "mixture.side=48", "mixture.window=96", "mixture.validation=1")


def test_lite_trains_on_sharp_footage(vdeblur, footage: Path, tmp_path: Path) -> None:
    """Interrupted and resumed, it gives the weights of an uninterrupted training."""
    values = [part for value in (*SIZES, "mixture.kept=2") for part in ("--set", value)]
    command = ("train", "-m", "lite", "--dataset", footage, "--batch", 2, "--workers", 0, "--device", "cpu", *values)
    command += ("--iterations", 4, "--validate-every", 2, "--json")
    outs = [("whole",), ("parts", "--stop-at", 2), ("parts", "--resume")]
    results = [vdeblur(*command, "--out", tmp_path / name, *more) for name, *more in outs]
    assert [result.exit_code for result in results] == [0, 0, 0], results[0].output
    begun = next(json.loads(line) for line in results[2].stdout.splitlines() if '"training"' in line)
    assert begun["sequences"] == len(NAMES) - sum(map(is_held_out, NAMES))
    first, second = (tmp_path / name / "last.safetensors" for name in ("whole", "parts"))
    assert first.read_bytes()[-5000:] == second.read_bytes()[-5000:]


def test_options_of_pairs_do_not_apply_to_sharp_footage(vdeblur, footage: Path, tmp_path: Path) -> None:
    result = vdeblur("train", "-m", "lite", "--dataset", footage, "--limit", 3, "--out", tmp_path / "out")
    assert result.exit_code == ExitStatus.USAGE
    assert "clips are made" in result.output
