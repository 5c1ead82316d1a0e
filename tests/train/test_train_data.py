"""Training clips: every pixel encodes its column, row, sequence and frame, and whether it is sharp."""

import colorsys
import dataclasses
import itertools
import os
import pickle
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import numpy
import pytest
import torch

from tests.datasets.test_datasets import LAYOUTS
from vdeblur import files as vdeblur_files
from vdeblur.datasets import known, layouts, pictures
from vdeblur.datasets.known import NumberSpan
from vdeblur.datasets.layouts import Sequence
from vdeblur.errors import DeviceError, ExitStatus, InputError, InterruptedRunError, OutputError, UsageError
from vdeblur.events import Talk
from vdeblur.train import data, sets
from vdeblur.train.augment import AUGMENTATIONS, Augmentation, add_noise, turn_hue
from vdeblur.train.data import Loader, Plan, Sampler, WorkerShare
from vdeblur.train.objectives.base import Batch, Clip

SIZES = {"one": (48, 80), "ten": (64, 40), "two": (40, 40)}  # height and width; one of them stands upright
FRAMES = {"one": 9, "ten": 7, "two": 5}
OFFLINE = Talk(offline=True)


def picture(name: str, frame: int, sharp: bool) -> torch.Tensor:
    """Red is the column, green the row, blue all else."""
    height, width = SIZES[name]
    columns, rows = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    blue = torch.full((height, width), 128 * sharp + 32 * list(SIZES).index(name) + frame)
    return torch.stack([columns, rows, blue]).to(torch.uint8)


def fill(root: Path, blurry: str = "train/{0}/blur", sharp: str = "train/{0}/sharp", names=tuple(SIZES)) -> Path:
    for name, (kind, folder) in itertools.product(names, enumerate((blurry, sharp))):
        for frame in range(FRAMES[name]):
            pictures.write_png(root / folder.format(name) / f"{frame:06}.png", picture(name, frame, bool(kind)))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("set"))


def refuse(code: str, message: str) -> None:
    raise AssertionError(message)


def sequences(root: Path, split: str = "train") -> tuple[Sequence, ...]:
    return layouts.open_dataset(str(root), split=split, talk=OFFLINE, warn=refuse).sequences


def source(root: Path, plan: Plan, cache: Path | None = None, talk: Talk = OFFLINE, warn=refuse) -> data.ClipSource:
    return data.open_clips(sequences(root), plan, cache=cache, talk=talk, warn=warn)


def as_it_is(clip: Clip, rng: numpy.random.Generator) -> Batch:
    return {"blurry": clip.blurry, "sharp": clip.sharp, "drawn": torch.tensor(rng.random())}


def clips(root: Path, plan: Plan, prepare=as_it_is, seed: int = 0, **options) -> data.Clips:
    return data.training_clips(source(root, plan, **options), plan, prepare, seed)


def check(clip: Clip, name: str, frames: tuple[int, ...]) -> None:
    """Check that a clip is one crop of these frames."""
    top, left = int(clip.blurry[0, 1, 0, 0]), int(clip.blurry[0, 0, 0, 0])
    height, width = clip.blurry.shape[2:]
    for sharp, part in enumerate((clip.blurry, clip.sharp)):
        expected = torch.stack([picture(name, frame, bool(sharp)) for frame in frames])
        assert torch.equal(part, expected[..., top : top + height, left : left + width])


# Which frames


def test_a_sample_is_a_crop_of_its_frames(root: Path) -> None:
    made = clips(root, Plan(3, 32, margin=1))
    for number in range(len(made.sampler)):
        sample, (clip, _) = made.sampler[number], made.clip(number)
        check(clip, list(SIZES)[sample.sequence], sample.frames)
        region = made.augmentation.region(*made.source.sizes[sample.sequence], sample.rng)
        assert clip.blurry[0, :2, 0, 0].tolist() == [region.left, region.top]


def test_crops_lie_everywhere() -> None:
    rng = numpy.random.default_rng(0)
    regions = [Augmentation(32).region(34, 33, rng) for _ in range(200)]
    assert {(region.top, region.left) for region in regions} == set(itertools.product(range(3), range(2)))
    assert {region.side for region in regions} == {32}
    assert {Augmentation(32, ("scale",)).region(34, 33, rng).side for _ in range(50)} == {32, 33}, "no larger than it"


def runs(plan: Plan, lengths: tuple[int, ...] = (9, 7, 5), epoch: int = 0, seed: int = 0) -> list[tuple]:
    sampler = Sampler(lengths, plan, seed)
    samples = (sampler[number] for number in range(epoch * len(sampler), (epoch + 1) * len(sampler)))
    return [(sample.sequence, *sample.frames) for sample in samples]


def test_windows_are_all_runs_of_frames() -> None:
    expected = [(s, f, f + 1, f + 2) for s, n in enumerate((9, 7, 5)) for f in range(n - 2)]
    assert sorted(runs(Plan(3, 8))) == expected


def test_windows_beyond_the_ends_repeat_the_edge_frame() -> None:
    assert sorted(runs(Plan(5, 8, ends="repeat"), (4, 1))) == [
        (0, 0, 0, 0, 1, 2),
        (0, 0, 0, 1, 2, 3),
        (0, 0, 1, 2, 3, 3),
        (0, 1, 2, 3, 3, 3),
        (1, 0, 0, 0, 0, 0),
    ]


def test_a_grid_begins_at_multiples_and_margins_stop_at_the_ends() -> None:
    assert sorted(runs(Plan(3, 8, "grid", margin=1), (9, 7))) == [
        (0, 0, 0, 1, 2, 3),
        (0, 2, 3, 4, 5, 6),
        (0, 5, 6, 7, 8, 8),
        (1, 0, 0, 1, 2, 3),
        (1, 2, 3, 4, 5, 6),
    ]


def test_clips_take_each_sequence_once_at_any_place() -> None:
    firsts: dict[int, set[int]] = {0: set(), 1: set()}
    for epoch in range(100):
        drawn = runs(Plan(3, 8, "clips"), (6, 3), epoch)
        assert sorted(sequence for sequence, *_ in drawn) == [0, 1]
        for sequence, *frames in drawn:
            assert frames == list(range(frames[0], frames[0] + 3))
            firsts[sequence].add(frames[0])
    assert firsts == {0: {0, 1, 2, 3}, 1: {0}}


def test_every_frame_is_a_start_and_those_too_late_are_redrawn() -> None:
    """DSTNet's rule; 4 frames of 6 in a run: frames 0 to 2 once each, and thrice one of them."""
    counts: Counter[int] = Counter()
    for epoch in range(300):
        firsts = Counter(first for _, first, *_ in runs(Plan(4, 8, "starts"), (6,), epoch))
        assert firsts.total() == 6
        assert set(firsts) == {0, 1, 2}
        counts += firsts
    assert max(counts.values()) < 1.15 * min(counts.values())


def test_a_limit_leaves_the_rest_of_a_sequence_out(root: Path) -> None:
    made = clips(root, Plan(3, 8, limit=5))
    assert made.source.lengths == (5, 5, 5)
    assert max(max(made.sampler[number].frames) for number in range(len(made.sampler))) == 4


def test_epochs_are_orders_of_their_own() -> None:
    epochs = [runs(Plan(3, 8), epoch=epoch) for epoch in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert runs(Plan(3, 8), seed=1) != epochs[0]


def test_a_sample_depends_on_seed_and_number_alone(root: Path) -> None:
    plan = Plan(3, 32, "clips", augment=("turn", "channels", "scale"), noise=5)
    backwards, again, other = clips(root, plan), clips(root, plan), clips(root, plan, seed=1)
    expected = [again[number] for number in range(8)]
    for number in reversed(range(8)):
        assert same(backwards[number], expected[number])
    assert not any(same(other[number], expected[number]) for number in range(8))
    assert len({float(again[number]["drawn"]) for number in range(40)}) == 40


def same(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampling": "all"}, "unknown sampling 'all'"),
        ({"ends": "open"}, "unknown ends 'open'"),
        ({"sampling": "grid", "ends": "repeat"}, "does not go beyond the ends"),
    ],
)
def test_plans_that_are_none(changes: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Plan(3, 32, **changes)


# Augmentations


GROUP: dict[str, Callable[[numpy.ndarray], dict[Any, numpy.ndarray]]] = {
    "flip_horizontal": lambda a: {"as it was": a, "mirrored": a[..., ::-1]},
    "flip_vertical": lambda a: {"as it was": a, "mirrored": a[..., ::-1, :]},
    "transpose": lambda a: {"as it was": a, "transposed": numpy.moveaxis(a, -1, -2)},
    "rot90": lambda a: {"as it was": a, "turned": numpy.moveaxis(a, -1, -2)[..., ::-1, :]},
    "turn": lambda a: {turns: numpy.rot90(a, turns, axes=(-2, -1)) for turns in range(4)},
    "reverse": lambda a: {"as it was": a, "backwards": a[:, ::-1]},
    "channels": lambda a: {order: a[:, :, order] for order in itertools.permutations(range(3))},
}


@pytest.mark.parametrize("name", GROUP)
def test_an_augmentation_is_the_same_for_all_pictures_of_a_pair(name: str) -> None:
    """Each is one of the maps that it can be, of the whole clip, and all of them come equally often."""
    frames = numpy.stack(
        [[picture("two", frame, sharp)[:, :32, :32].numpy() for frame in range(4)] for sharp in (False, True)]
    )
    expected = GROUP[name](frames)
    seen: Counter = Counter()
    draws = 100 * len(expected)
    for seed in range(draws):
        clip = Augmentation(32, (name,)).clip(frames, numpy.random.default_rng(seed))
        pair = torch.stack([clip.blurry, clip.sharp]).numpy()
        seen.update(key for key, value in expected.items() if numpy.array_equal(pair, value))
    assert seen.total() == draws
    assert all(70 < seen[key] < 130 for key in expected)


def test_every_augmentation_is_tested() -> None:
    assert {*GROUP, "colour", "any_of_seven"} == AUGMENTATIONS.keys()


def test_any_of_seven_changes_nothing_half_the_time() -> None:
    frames = numpy.arange(4 * 3, dtype=numpy.uint8).reshape(1, 1, 1, 4, 3).repeat(2, 0).repeat(3, 2)[..., :3, :]
    eight = {turned.tobytes() for k in range(4) for turned in (numpy.rot90(frames, k, (-2, -1)),
             numpy.rot90(frames[..., ::-1], k, (-2, -1)))}  # fmt: skip
    rng = numpy.random.default_rng(1)
    seen = Counter(AUGMENTATIONS["any_of_seven"](frames, rng).tobytes() for _ in range(1400))
    assert seen.keys() == eight
    assert 620 < seen.pop(frames.tobytes()) < 780
    assert all(60 < count < 140 for count in seen.values())


def test_colours_change_alike_in_all_pictures_of_a_clip() -> None:
    """Equal pixels stay equal, blurry or sharp; different clips change differently, and by no more than is allowed."""
    palette = numpy.random.default_rng(1).integers(0, 256, (2, 3, 3, 4, 4), numpy.uint8)
    frames = numpy.concatenate([palette[:1], palette[:1]])  # the sharp pictures equal the blurry ones
    frames[:, 1:] = frames[:, :1]
    changed = [Augmentation(4, ("colour",)).clip(frames, numpy.random.default_rng(seed)) for seed in range(20)]
    for clip in changed:
        assert torch.equal(clip.blurry, clip.sharp)
        assert torch.equal(clip.blurry[0], clip.blurry[2])
    assert len({clip.blurry.numpy().tobytes() for clip in changed}) == 20
    # A gray picture has neither saturation nor hue, and its contrast is around itself: only brightness remains.
    gray = numpy.full((2, 1, 3, 4, 4), 100, numpy.uint8)
    found = [Augmentation(4, ("colour",)).clip(gray, numpy.random.default_rng(s)).blurry for s in range(300)]
    assert all(bool((clip == clip.flatten()[0]).all()) for clip in found)
    levels = [int(clip.flatten()[0]) for clip in found]
    assert 80 <= min(levels) < 83
    assert 117 < max(levels) <= 120


def test_a_turned_hue_against_colorsys() -> None:
    colours = numpy.random.default_rng(2).random((3, 5, 7)).astype(numpy.float32)
    colours[:, 0] = colours[:1, 0]  # gray
    colours[:2, 1] = 1.0  # yellow: two channels are the largest
    for turn in (-0.7, -0.1, 0.03, 0.5, 1.2):
        turned = colours.copy()
        turn_hue(torch.from_numpy(turned), turn)
        for row, column in itertools.product(range(5), range(7)):
            hue, saturation, value = colorsys.rgb_to_hsv(*(float(x) for x in colours[:, row, column]))
            expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
            assert turned[:, row, column] == pytest.approx(expected, abs=1e-5)


def test_noise_may_have_one_strength_for_all_clips() -> None:
    frames = torch.full((3, 3, 64, 64), 128, dtype=torch.uint8)
    spreads = {
        drawn: [
            float((add_noise(frames, 2.0, numpy.random.default_rng(seed), drawn=drawn) - 128.0).std())
            for seed in range(5)
        ]
        for drawn in (False, True)
    }
    assert all(spread == pytest.approx(2.0, rel=0.02) for spread in spreads[False])
    assert min(spreads[True]) < 1.5


def test_scale_reduces_by_up_to_a_half_what_fits(root: Path) -> None:
    made = clips(root, Plan(1, 20, augment=("scale",)))
    steps = []
    for number in range(3 * len(made.sampler)):
        clip, _ = made.clip(number)
        assert clip.blurry.shape == (1, 3, 20, 20)
        assert torch.equal(clip.blurry[:, :2], clip.sharp[:, :2])
        across, down = (clip.sharp[0, channel].float() for channel in (0, 1))
        steps.append(float(across[:, -3].mean() - across[:, 2].mean()) / 15)
        assert float(down[-3].mean() - down[2].mean()) / 15 == pytest.approx(steps[-1], abs=0.1)
        assert int(across.max()) < 80
    assert min(steps) == pytest.approx(1, abs=0.1)
    assert max(steps) == pytest.approx(2, abs=0.1)


def test_reduced_pictures_have_no_alias() -> None:
    """White noise through the triangle (1, 3, 3, 1) / 8 in both directions; two neighbours alone would keep a half."""
    grain = numpy.random.default_rng(0).integers(0, 256, (2, 1, 3, 128, 128), numpy.uint8)
    clip = Augmentation(64, ("scale",)).clip(grain, numpy.random.default_rng(0))
    assert clip.sharp.shape == (1, 3, 64, 64)
    assert float(clip.sharp.float().std()) == pytest.approx(20 / 64 * grain.std(), rel=0.03)


def test_noise_is_neither_clipped_nor_rounded() -> None:
    dark = numpy.zeros((2, 2, 3, 32, 32), numpy.uint8)
    strengths = []
    for seed in range(100):
        clip = Augmentation(32, (), 50).clip(dark, numpy.random.default_rng(seed))
        assert clip.blurry.dtype == torch.float32
        assert not clip.sharp.any()
        assert float(clip.blurry.min()) < 0
        strengths.append(float(clip.blurry.std()))
        assert float(clip.blurry[0].std()) == pytest.approx(float(clip.blurry[1].std()), rel=0.1)
    assert numpy.mean(strengths) == pytest.approx(25, rel=0.15)
    assert max(strengths) < 52


def test_an_unknown_augmentation_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown augmentation 'blur' \(choose flip_horizontal, .*, scale\)"):
        Augmentation(32, ("blur",))


# Sets and files


@pytest.mark.parametrize("name", ["GoPro", "DVD", "REDS", "BSD"])
def test_a_layout_is_read(name: str, tmp_path: Path) -> None:
    """Of all sizes, so also upright ones."""
    parts = [part.replace("test", "train").replace("val", "train") for part in LAYOUTS[name]]
    blurry, sharp = parts[0], parts[2 if name == "GoPro" else 1]
    made = clips(fill(tmp_path, blurry, sharp), Plan(5, 40))
    assert made.source.sizes == tuple(SIZES.values())
    for number in range(len(made.sampler)):
        sample = made.sampler[number]
        check(made.clip(number)[0], list(SIZES)[sample.sequence], sample.frames)


def test_sequences_that_are_too_short_or_small_are_left_out(root: Path) -> None:
    said: list[str] = []
    kept = source(root, Plan(7, 41), warn=lambda code, message: said.append(message))
    assert [sequence.name for sequence in kept.sequences] == ["one"]
    assert said == ["left out of the training: ten is 40x64, the crop 41x41; two has 5 frames of 7"]
    with pytest.raises(InputError, match="no sequence is long and large enough: one has 9 frames of 10; ten has 7"):
        source(root, Plan(10, 8))


def test_a_frame_of_another_size_is_named(tmp_path: Path) -> None:
    odd = fill(tmp_path) / "train/two/sharp/000002.png"
    pictures.write_png(odd, picture("one", 2, True))
    with pytest.raises(InputError, match=r"sharp/000002.png is 80x48, its sequence 40x40"):
        list(itertools.islice(Loader(clips(tmp_path, Plan(3, 32)), WorkerShare(1)).batches(), 30))


def names_of(sets: tuple) -> list[list[str]]:
    return [[sequence.name for sequence in part.sequences] for part in sets]


@pytest.mark.parametrize(("folders", "split"), [(("valid", "test"), "valid"), (("test",), "test")])
def test_validation_is_on_a_split_of_its_own(folders: tuple[str, ...], split: str, tmp_path: Path) -> None:
    fill(tmp_path, names=("one", "ten"))
    for folder in folders:
        fill(tmp_path, folder + "/{0}/blur", folder + "/{0}/sharp", names=("two",))
    training, validation = sets.open_sets(str(tmp_path), data=None, blur="blur", talk=OFFLINE, warn=refuse)
    assert names_of((training, validation)) == [["one", "ten"], ["two"]]
    assert validation.sequences[0].pairs[0].blurry.relative_to(tmp_path).parts[0] == split


def test_without_a_split_a_tenth_is_kept_apart(tmp_path: Path) -> None:
    fill(tmp_path, "{0}/blur", "{0}/sharp")
    said: list[str] = []
    found = sets.open_sets(str(tmp_path), data=None, blur="blur", talk=OFFLINE, warn=lambda _, text: said.append(text))
    training, validation = names_of(found)
    assert sorted(training + validation) == ["one", "ten", "two"]
    assert len(validation) == 1
    assert said == [f"not trained on, to validate: {validation[0]}"]


def test_one_sequence_cannot_validate_itself(tmp_path: Path) -> None:
    fill(tmp_path, "{0}/blur", "{0}/sharp", names=("one",))
    with pytest.raises(InputError, match="has one sequence, and none to validate on"):
        sets.open_sets(str(tmp_path), data=None, blur="blur", talk=OFFLINE, warn=refuse)


def test_dvd_is_known_by_its_folder_and_not_trained_on_its_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both splits lie in one folder."""
    dvd = known.known_sets()["dvd"]
    splits = {"test": {"two": NumberSpan(5)}, "train": {"one": NumberSpan(9), "ten": NumberSpan(7)}}
    for module in (layouts, sets):
        monkeypatch.setattr(module, "known_sets", lambda: {"dvd": dataclasses.replace(dvd, splits=splits)})
    fill(tmp_path, "quantitative_datasets/{0}/input", "quantitative_datasets/{0}/GT")
    for wanted, folder in ((str(tmp_path), None), ("dvd", tmp_path)):
        found = sets.open_sets(wanted, data=folder, blur="blur", talk=OFFLINE, warn=refuse)
        assert names_of(found) == [["one", "ten"], ["two"]]


def test_what_is_held_out_follows_from_names() -> None:
    many = [Sequence(f"{number:03}", ()) for number in range(300)]
    kept, held_out = sets.split_sequences(many)
    assert 15 < len(held_out) < 45
    assert sorted(sequence.name for sequence in (*kept, *held_out)) == [sequence.name for sequence in many]
    assert sets.split_sequences(many[:150])[1] == tuple(sequence for sequence in held_out if int(sequence.name) < 150)
    for count in range(2, 30):
        assert all(sets.split_sequences(many[:count])), "neither part is empty"


# Memory maps


def mapped(root: Path, cache: Path, **options) -> data.Clips:
    return clips(root, Plan(3, 32, margin=1, limit=6), cache=cache, **options)


def test_maps_give_what_files_give(root: Path, tmp_path: Path) -> None:
    direct, made = clips(root, Plan(3, 32, margin=1, limit=6)), mapped(root, tmp_path / "cache")
    for number in range(len(direct.sampler)):
        assert same(made[number], direct[number])
    files = sorted((tmp_path / "cache").glob("*.npy"))
    assert [numpy.load(file).shape for file in files] == [
        (2, FRAMES[name], 3, *SIZES[name]) for name in ("one", "ten", "two")
    ]


def test_maps_are_made_once_and_anew_where_a_picture_changed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "set")
    cache = tmp_path / "cache"
    mapped(tmp_path / "set", cache)
    before = {file.name: file.stat().st_mtime_ns for file in cache.glob("*.npy")}
    with monkeypatch.context() as patched:
        patched.setattr(data, "_write_map", refuse)
        mapped(tmp_path / "set", cache)
    changed = tmp_path / "set/train/ten/sharp/000001.png"
    pictures.write_png(changed, picture("ten", 30, True))
    made = mapped(tmp_path / "set", cache)
    after = {file.name: file.stat().st_mtime_ns for file in cache.glob("*.npy")}
    assert len(after) == 3
    assert {name[:4] for name in before.keys() - after.keys()} == {"ten-"}
    assert all(after[name] == before[name] for name in before.keys() & after.keys())
    [index] = [index for index, sequence in enumerate(made.source.sequences) if sequence.name == "ten"]
    region = Augmentation(32).region(*SIZES["ten"], numpy.random.default_rng(0))
    assert made.source.read(index, [1], region)[1, 0, 2, 0, 0] == 128 + 32 + 30


def test_maps_need_room(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10_000))
    with pytest.raises(OutputError, match=r"the decoded frames need 0.0 GB, and .* has 0.0 GB free"):
        mapped(root, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*-*"))


def test_a_map_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    broken = fill(tmp_path / "set") / "train/two/sharp/000004.png"
    broken.write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"000004\.png cannot be read as a picture"):
        mapped(tmp_path / "set", tmp_path / "cache")
    left = {file.name.partition("-")[0] for file in (tmp_path / "cache").glob("*-*")}
    assert left == {"one", "ten"}
    with pytest.raises(InterruptedRunError):
        mapped(tmp_path / "set", tmp_path / "other", talk=Talk(stop=lambda: ExitStatus.INTERRUPTED))
    assert not list((tmp_path / "other").glob("*-*"))


def test_a_cache_that_cannot_be_written_is_an_output_error(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be written: .*directory"):
        mapped(root, tmp_path / "file" / "cache")


def test_a_second_process_waits_for_the_first(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    mapped(root, cache)
    file = next(iter(cache.glob("one-*.npy")))
    away = file.replace(tmp_path / "away.npy")
    monkeypatch.setattr(vdeblur_files, "LOCK_POLL_SECONDS", 0.05)
    monkeypatch.setattr(data, "_write_map", refuse)
    waits = threading.Event()
    talk = Talk(notify=lambda event, facts: waits.set() if facts.get("code") == "W_LOCKED" else None)
    with filelock.FileLock(cache / ".lock"):
        thread = threading.Thread(target=mapped, args=(root, cache), kwargs={"talk": talk})
        thread.start()
        assert waits.wait(10)
        away.replace(file)
    thread.join(10)
    assert not thread.is_alive()


def test_a_map_that_goes_while_it_is_read(root: Path, tmp_path: Path) -> None:
    made = mapped(root, tmp_path)
    for file in tmp_path.glob("*.npy"):
        file.unlink()
    with pytest.raises(InputError, match="is gone"):
        made[0]


# Loading


PLAN = Plan(3, 32, augment=("flip_horizontal", "turn", "reverse", "channels", "scale"))


def take(loader: Loader, count: int, first: int = 0) -> list[Batch]:
    return list(itertools.islice(loader.batches(first), count))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_that_goes_on_sees_what_it_would_have_seen(root: Path, workers: int) -> None:
    """Four batches of five from the second one on, over the end of an epoch of 15."""
    samples = [clips(root, PLAN)[number] for number in range(20)]
    state = torch.get_rng_state()
    tail = take(Loader(clips(root, PLAN), WorkerShare(5), workers=workers), 3, first=1)
    assert torch.equal(torch.get_rng_state(), state), "networks may draw from it"
    assert [set(batch) for batch in tail] == [{"blurry", "sharp", "drawn"}] * 3
    for index, batch in enumerate(tail, start=1):
        expected = samples[5 * index : 5 * index + 5]
        assert same(batch, {name: torch.stack([sample[name] for sample in expected]) for name in batch})


def test_processes_and_parts_share_a_batch(root: Path) -> None:
    made = clips(root, PLAN)
    batches = take(Loader(made, WorkerShare(8)), 2, first=3)
    parts = [take(Loader(made, WorkerShare(8, rank, ranks=2, parts=2)), 4, first=3) for rank in range(2)]
    for index, batch in enumerate(batches):
        micro = [part for process in parts for part in process[2 * index : 2 * index + 2]]
        assert [len(part["sharp"]) for part in micro] == [2] * 4
        assert same(batch, {name: torch.cat([part[name] for part in micro]) for name in batch})
    with pytest.raises(UsageError, match="a batch of 8 cannot be divided among 3 processes in 1 parts"):
        WorkerShare(8, ranks=3)


def test_workers_can_be_started_without_fork(root: Path, tmp_path: Path) -> None:
    """Clips can be pickled."""
    made = mapped(root, tmp_path)
    assert same(pickle.loads(pickle.dumps(made))[3], made[3])


def test_workers_compute_on_one_thread_and_leave_ctrl_c_to_others(root: Path) -> None:
    def prepare(clip: Clip, rng: numpy.random.Generator) -> Batch:
        return {"threads": torch.tensor([torch.get_num_threads(), signal.getsignal(signal.SIGINT), os.getpid()])}

    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        [batch] = take(Loader(clips(root, PLAN, prepare), WorkerShare(1), workers=1), 1)
    finally:
        signal.signal(signal.SIGINT, ours)
    assert batch["threads"][0].tolist()[:2] == [1, signal.SIG_IGN]
    assert batch["threads"][0, 2] != os.getpid()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_while_reading_keeps_its_words(workers: int, tmp_path: Path) -> None:
    broken = fill(tmp_path, names=("one", "two")) / "train/two/blur/000002.png"
    broken.write_bytes(b"not a picture")
    with pytest.raises(InputError) as caught:
        take(Loader(clips(tmp_path, Plan(3, 32)), WorkerShare(2), workers=workers), 10)
    assert caught.value.message.startswith(f"{broken} cannot be read as a picture")
    assert caught.value.hint == "remove or replace it"
    assert "worker" not in str(caught.value)


def test_a_worker_that_is_killed_is_said(root: Path) -> None:
    def prepare(clip: Clip, rng: numpy.random.Generator) -> Batch:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    with pytest.raises(DeviceError, match="a process that reads training data died"):
        take(Loader(clips(root, PLAN, prepare), WorkerShare(1), workers=1), 1)


def test_our_own_mistake_in_a_worker_stays_one(root: Path) -> None:
    def prepare(clip: Clip, rng: numpy.random.Generator) -> Batch:
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        take(Loader(clips(root, PLAN, prepare), WorkerShare(1), workers=1), 1)


def test_waiting_is_measured(root: Path) -> None:
    def prepare(clip: Clip, rng: numpy.random.Generator) -> Batch:
        time.sleep(0.02)
        return {}

    loader = Loader(clips(root, Plan(1, 8), prepare), WorkerShare(2))
    assert 10 < data.measure_rate(loader, 5) < 50
    assert 0.24 < loader.waited_seconds < 2


@pytest.mark.cuda
def test_batches_are_pinned(root: Path) -> None:
    for batch in take(Loader(clips(root, PLAN), WorkerShare(2), workers=2, pin=True), 2):
        assert all(value.is_pinned() for value in batch.values())
