"""`run --only-blurred`: sharp frames pass to the bit, blurred ones are restored, and resuming changes nothing."""

import dataclasses
import itertools
import json
import subprocess
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy
import pytest
import torch

from tests import clips
from tests.run.test_segments import stop_after
from vdeblur.cli.lines import lines_of
from vdeblur.errors import InterruptedRunError
from vdeblur.measure import blur
from vdeblur.restore.only_blurred import (
    AROUND,
    MOST_MEASURES,
    OnlyBlurred,
    SceneSlopes,
    SceneStart,
    scene_starts,
    scenes_as_json,
    scenes_from_json,
)
from vdeblur.restore.strength import SMOOTHED, highest_slope, raw_strength, smoothed_strength
from vdeblur.run import pipeline
from vdeblur.run.segments import Divider, Division
from vdeblur.run.store import folder_of
from vdeblur.settings import EncodeOptions, Settings
from vdeblur.source.video import open_source

CPU = torch.device("cpu")
WIDTH, HEIGHT, STEP = 160, 96, 6  # pixels; the picture moves by STEP from frame to frame
FRAMES, BLURRED = 24, range(12, 16)
# Networks that lower the contrast, and write a line for each call.
CODE = """
from pathlib import Path
from vdeblur.networks.layers import Network

class Counting(Network):
    def turned(self, frame):
        with (Path(__file__).parent / "calls").open("a") as file:
            file.write("call\\n")
        return 0.8 * frame + 0.1

class OfFrames(Counting):
    feeding = "frame"
    def forward(self, frame):
        return self.turned(frame)

class OfWindows(Counting):
    feeding, radius = "window", 2
    def forward(self, window):
        return self.turned(window[:, 2])

class WithState(Counting):
    feeding = "recurrent"
    def align(self, restored, current, seen):
        return restored, seen
    def forward(self, aligned, previous, current, following):
        return self.turned(current)
"""


def texture(seed: int, width: int) -> numpy.ndarray:
    """Return noise with as much detail at each scale as pictures have: float, (HEIGHT, width), 0 to 1."""
    generator = numpy.random.default_rng(seed)
    total = numpy.zeros((HEIGHT, width))
    for side in (1, 2, 4, 8, 16):
        coarse = generator.normal(size=(HEIGHT // side + 1, width // side + 1))
        total += side**0.5 * numpy.kron(coarse, numpy.ones((side, side)))[:HEIGHT, :width]
    return (0.5 + 0.12 * total).clip(0, 1)


def moving(seed: int = 0, blurred: range = BLURRED, frames: int = FRAMES, smear: int = STEP) -> numpy.ndarray:
    """Return a camera's pan over a texture, uint8 (T, H, W), with some frames smeared along the motion, in pixels."""
    large = texture(seed, WIDTH + STEP * (frames + 2))
    pictures = []
    for number in range(frames):
        shifts = range(smear) if number in blurred else (0,)
        parts = [large[:, STEP * number + shift :][:, :WIDTH] for shift in shifts]
        pictures.append(255 * numpy.mean(parts, 0))
    return numpy.stack(pictures).round().astype(numpy.uint8)


def write(path: Path, pictures: numpy.ndarray) -> Path:
    command = [clips.FFMPEG, "-v", "error", "-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{WIDTH}x{HEIGHT}"]
    command += ["-r", "25", "-i", "-", "-c:v", "ffv1", "-g", "1", "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, input=pictures.tobytes(), check=True)
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(CODE)
    return write(tmp_path / "in.mkv", moving())


def calls_in(folder: Path) -> int:
    path = folder / "calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


def told(result, event: str) -> list[dict]:
    return [found for line in result.stdout.splitlines() if (found := json.loads(line))["event"] == event]


# What comes out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["OfWindows", "WithState"])
def test_sharp_frames_pass_to_the_bit(vdeblur, clip: Path, tmp_path: Path, network: str) -> None:
    """A network without a state is not even called for them; one with a state sees every frame."""
    output = tmp_path / "out.mkv"
    result = vdeblur(
        "run", clip, output, "-m", f"{tmp_path / 'net.py'}:{network}", "--only-blurred", "--lossless", "--json"
    )
    assert result.exit_code == 0, result.output
    pairs = list(zip(clips.frame_hashes(clip), clips.frame_hashes(output), strict=True))
    changed = [place for place, (before, after) in enumerate(pairs) if before != after]
    assert changed == list(range(BLURRED.start - SMOOTHED, BLURRED.stop + SMOOTHED))
    facts = told(result, "file_done")[0]["only_blurred"]
    assert (facts["frames"], facts["restored"]) == (FRAMES, len(changed))
    assert 4 / FRAMES < facts["mean_strength"] < len(changed) / FRAMES
    assert calls_in(tmp_path) == (FRAMES if network == "WithState" else len(changed))
    assert told(result, "plan")[0]["only_blurred"] is True
    assert len(told(result, "first_pass")) == 1
    progress = told(result, "first_pass_progress")[0]
    assert (progress["frame"], progress["frames_estimate"]) == (1, FRAMES)
    (line,) = lines_of("first_pass_progress", {**progress, "eta_seconds": 6})
    assert line.startswith(f"  {clip}: first pass, frame 1 of {FRAMES}, ")
    assert line.endswith(" fps, 0:06 left")


def test_the_summary_says_it_in_words(vdeblur, clip: Path, tmp_path: Path) -> None:
    options = ("-m", f"{tmp_path / 'net.py'}:OfFrames", "--lossless")
    result = vdeblur("run", clip, tmp_path / "out.mkv", *options, "--only-blurred")
    assert "restored 10 of 24 frames, at a mean strength of 0." in result.output, result.output
    without = vdeblur("run", clip, tmp_path / "all.mkv", *options)
    assert "mean strength" not in without.output
    assert calls_in(tmp_path) == 10 + FRAMES, "off by default"


def test_the_registry_turns_it_on(vdeblur, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = tmp_path / "registry.toml"
    registry.write_text(
        '[altering]\nnetwork = "identity"\ndescription = "a test"\nlicense = "MIT"\nalters_sharp = true\n'
    )
    monkeypatch.setenv("VDEBLUR_REGISTRY", str(registry))
    for options, expected in (((), True), (("--no-only-blurred",), False)):
        result = vdeblur("run", clip, tmp_path / "out.mkv", "-m", "altering", "--dry-run", "--json", *options)
        assert result.exit_code == 0, result.output
        plan = told(result, "plan")[0]
        assert plan["only_blurred"] is expected
        assert plan["reasons"]["only_blurred"] == ("altering alters sharp frames" if expected else "as named")
    registry.write_text(registry.read_text().replace("true", "1"))
    assert "alters_sharp is 1, which is of the wrong kind" in vdeblur("models", "list").output


def test_samples_show_the_strength(vdeblur, clip: Path, tmp_path: Path) -> None:
    """A label at the top of the right half, in black and white; none without --only-blurred."""
    corners = []
    for name, option in (("on", "--only-blurred"), ("off", "--no-only-blurred")):
        output = tmp_path / f"{name}.mkv"
        options = ("-m", "identity", "--lossless", "--sample", "--sample-seconds", "0.4", option)
        result = vdeblur("run", clip, output, *options)
        assert result.exit_code == 0, result.output
        corners.append(clips.rgb(output)[:, :4, WIDTH : WIDTH + 60])
    assert [set(numpy.unique(corner[..., 0])) == {0, 255} for corner in corners] == [True, False]


# Resuming, dividing ---------------------------------------------------------------------------------------------------


def test_resumed_and_shared_runs_equal_an_uninterrupted_one(clip: Path, tmp_path: Path) -> None:
    """The borders of the segments of 0.28 s, seven frames, lie within and beside the blurred part."""
    settings = Settings(
        model=f"{tmp_path / 'net.py'}:OfWindows",
        segment=Fraction(7, 25),
        only_blurred=True,
        encoding=EncodeOptions(lossless=True),
    )
    whole, undivided, resumed, shared = (tmp_path / f"{name}.mkv" for name in ("whole", "one", "resumed", "shared"))
    result = pipeline.restore_file(clip, whole, settings)
    pipeline.restore_file(clip, undivided, dataclasses.replace(settings, segment=None))
    assert clips.frame_hashes(whole) == clips.frame_hashes(undivided)
    events: list[str] = []
    with pytest.raises(InterruptedRunError) as stop:  # after one segment: the first pass asks for signals, too
        pipeline.restore_file(clip, resumed, settings, stop=stop_after(FRAMES + 12))
    assert "finished and kept" in stop.value.message
    scenes = json.loads((folder_of(resumed) / "state.json").read_text())["plan"]["scenes"]
    assert len(scenes) == 1
    after = pipeline.restore_file(clip, resumed, settings, notify=lambda event, facts: events.append(event))
    assert "first_pass" not in events, "the plan holds its result"
    assert clips.frame_hashes(resumed) == clips.frame_hashes(whole)
    assert after.strengths == result.strengths, "frames of earlier runs count, too"
    for number in (2, 1):
        pipeline.restore_file(clip, shared, dataclasses.replace(settings, share=(number, 2)))
    pipeline.restore_file(clip, shared, settings)
    assert clips.frame_hashes(shared) == clips.frame_hashes(whole)


def test_a_share_uses_the_first_pass_of_another(clip: Path, tmp_path: Path) -> None:
    """Also of one that has made it since this share was planned."""
    settings = Settings(model="identity", segment=Fraction(7, 25), only_blurred=True)
    output, events = tmp_path / "out.mkv", []

    def note(event: str, facts: dict[str, object]) -> None:
        events.append(event)
        if event == "plan":
            pipeline.restore_file(clip, output, dataclasses.replace(settings, share=(2, 2)))

    pipeline.restore_file(clip, output, dataclasses.replace(settings, share=(1, 2)), notify=note)
    assert "segment" in events
    assert "first_pass" not in events


def test_scenes_that_a_plan_cannot_have() -> None:
    """The plan lies beside the output, where others can write."""
    scenes = [SceneStart(0, -1.6), SceneStart(40, -1.4)]
    assert scenes_from_json(json.loads(json.dumps(scenes_as_json(scenes)))) == scenes
    assert scenes_from_json(scenes_as_json(None)) is None
    for junk in (7, [7], [[1]], [[1, 2]], [["a", -1.6]], [[1, float("nan")]], [[1 << 63, -1.6]]):
        with pytest.raises((TypeError, ValueError)):
            scenes_from_json(junk)


# Strengths ------------------------------------------------------------------------------------------------------------


def test_strengths_change_slowly_and_look_three_frames_far() -> None:
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(200, generator=generator) > 0.7).double().tolist()
    smoothed = [smoothed_strength(values, place) for place in range(200)]
    assert max(abs(a - b) for a, b in pairwise(smoothed)) <= 0.34
    assert all(0 <= value <= 1 for value in smoothed)
    assert min(after for before, after in zip(values, smoothed, strict=True) if before == 1) >= 7 / 9
    for place in range(200):
        first = max(place - SMOOTHED, 0)
        assert smoothed_strength(values[first : place + SMOOTHED + 1], place - first) == smoothed[place]
    assert smoothed_strength([1.0], 0) == 1.0
    assert [smoothed_strength([0.0] * 4 + [1.0], place) for place in range(5)] == [0, 1 / 9, 3 / 9, 6 / 9, 8 / 9]


def strengths_of(path: Path, scenes: list[SceneStart] | None) -> list[float]:
    source = open_source(path, Settings().cut, lambda *_: None)
    found = [frame.strength for frame in OnlyBlurred(scenes, CPU).with_strengths(source.frames())]
    source.close()
    return found


def test_a_cut_resets_the_strength(tmp_path: Path) -> None:
    """Both with the scenes of a first pass and for a pipe, which has none."""
    pictures = numpy.concatenate((moving(1, range(12), 12) // 2 + 128, moving(2, range(0), 12) // 2))
    path = write(tmp_path / "cut.mkv", pictures)
    source = open_source(path, Settings().cut, lambda *_: None)
    scenes = scene_starts(source.frames(), CPU, detects_scenes=True)
    source.close()
    assert len(scenes) == 2
    for known in (scenes, None):
        assert strengths_of(path, known) == [1.0] * 12 + [0.0] * 12
    one = scene_starts(open_source(path, Settings().cut, lambda *_: None).frames(), CPU, detects_scenes=False)
    assert 0 < strengths_of(path, one)[12] < 1


def test_a_part_of_a_scene_has_the_same_strengths(clip: Path) -> None:
    """With AROUND frames before and after it."""
    scenes = [SceneStart(0, -1.6)]
    frames = list(open_source(clip, Settings().cut, lambda *_: None).frames())
    whole = [frame.strength for frame in OnlyBlurred(scenes, CPU).with_strengths(iter(frames))]
    for first in range(8, 16, 3):
        part = frames[first - AROUND : first + 3 + AROUND]
        found = [frame.strength for frame in OnlyBlurred(scenes, CPU).with_strengths(iter(part))]
        assert found[AROUND : AROUND + 3] == whole[first : first + 3]


def test_segments_of_a_pipe_have_the_strengths_of_the_whole(tmp_path: Path) -> None:
    """Though the limit depends on all frames of the scene before: only they show that others are slightly blurred."""
    pictures = numpy.concatenate((moving(1, range(6, 20), smear=3), moving(2, range(4, 9))))
    frames = list(open_source(write(tmp_path / "in.mkv", pictures), Settings().cut, lambda *_: None).frames())
    whole = [frame.strength for frame in OnlyBlurred(None, CPU).with_strengths(iter(frames))]
    assert min(whole) == 0.0
    assert min(whole[8:18]) > 0.3
    for around, length in ((AROUND, Fraction(7, 25)), (AROUND + 3, Fraction(2, 25))):
        divider = Divider(iter(frames), Division(Fraction(0), length), around, around)
        blurred = OnlyBlurred(None, CPU)
        found: list[float] = []
        while len(found) < len(frames):
            segment = divider.segment()
            strengths = [frame.strength for frame in blurred.with_strengths(segment.frames)]
            found += strengths[segment.lead :][: segment.own_frames]
        assert found == whole


def test_a_region_is_measured_by_itself(vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The left half is sharp, the right one blurred; regions that are too small are measured as the whole frame."""
    (tmp_path / "net.py").write_text(CODE)
    halves = moving(1, range(0), 8)[..., : WIDTH // 2], moving(2, range(8), 8)[..., : WIDTH // 2]
    path, output = write(tmp_path / "halves.mkv", numpy.concatenate(halves, 2)), tmp_path / "out.mkv"
    options = ("-m", f"{tmp_path / 'net.py'}:OfFrames", "--lossless", "--only-blurred", "--json", "-y")
    means = []
    for least, left in ((32, 0), (32, 128), (128, 0), (128, 128)):
        monkeypatch.setattr("vdeblur.restore.only_blurred.LEAST_SIDE", least)
        result = vdeblur("run", path, output, *options, "--region", f"32x96+{left}+0")
        assert result.exit_code == 0, result.output
        means.append(told(result, "file_done")[0]["only_blurred"]["mean_strength"])
    assert means[0] == 0.0
    assert means[1] > 0.9
    assert means[2] == means[3]


def test_frames_that_are_called_sharp_are_not_restored() -> None:
    """Unless their blur has a direction, or their scene has much sharper frames."""
    sharp = blur.BlurMeasure(slope_along=-1.89, slope_across=-1.8, motion=5.0, noise=0.5, alikeness=0.9)
    assert raw_strength(sharp, -1.6, True) == 0.0
    directed = dataclasses.replace(sharp, slope_across=-1.6)
    assert raw_strength(directed, -1.6, True) == pytest.approx(0.725)
    assert raw_strength(dataclasses.replace(directed, motion=1.0), -1.6, True) == 0.0
    assert raw_strength(sharp, -1.4, True) == pytest.approx(0.475)
    assert raw_strength(dataclasses.replace(sharp, slope_along=-1.95), -1.6, True) == pytest.approx(0.4375)


@pytest.mark.parametrize("name", ["driving_720p25", "sam2_03_blocks"])
def test_a_sharp_clip_stays_as_it_is(shared: Path, name: str) -> None:
    """Of the first, these frames have slopes of -1.90 to -1.77, lower than those of most sharp clips."""
    source = open_source(shared / f"data/sharp/{name}.mp4", Settings().cut, lambda *_: None)
    first = 28 if name.startswith("driving") else 0
    frames = itertools.islice(source.frames(), first, first + 8)
    assert [frame.strength for frame in OnlyBlurred(None, CPU).with_strengths(frames)] == [0.0] * 8
    source.close()


def test_noise_and_still_defocus_need_no_restoration() -> None:
    blurry = blur.BlurMeasure(slope_along=-2.4, slope_across=-2.0, motion=5.0, noise=0.5, alikeness=0.9)
    still = dataclasses.replace(blurry, slope_across=-2.4, motion=0.3)
    assert raw_strength(blurry, -1.6, True) == 1.0
    assert raw_strength(dataclasses.replace(blurry, noise=3.0, alikeness=0.2), -1.6, True) == 0.0
    assert raw_strength(still, -1.6, True) == 0.0
    assert raw_strength(still, -1.6, False) == 1.0, "a single picture has no motion to tell by"
    assert raw_strength(dataclasses.replace(blurry, slope_along=-1.65), -1.6, True) == 0.0, "sharp frames differ so"
    crisp = dataclasses.replace(blurry, slope_along=-1.6)
    assert raw_strength(crisp, -1.1, True) == pytest.approx(0.5)
    assert raw_strength(dataclasses.replace(crisp, motion=0), -1.1, True) == 0.0, "the limit is of slopes along motion"


def test_the_sharpest_frames_of_a_scene_set_the_limit() -> None:
    assert highest_slope([]) == highest_slope([-1.9] * 10) == blur.HIGHEST
    assert highest_slope([-1.3] * 9 + [-1.0]) == pytest.approx(-1.37, abs=1e-6)


def test_long_scenes_are_sampled(monkeypatch: pytest.MonkeyPatch, clip: Path) -> None:
    """In the first pass, every second frame is measured between its neighbours, and fewer in long scenes."""
    measured: list[tuple[int | None, int, int | None]] = []

    def note(*frames: torch.Tensor | None) -> blur.BlurMeasure:
        numbers = [None if frame is None else int(frame) for frame in frames]
        measured.append((numbers[0], numbers[1], numbers[2]))
        return blur.BlurMeasure(-1.5, -1.5, 1.0, 0.0, 1.0)

    monkeypatch.setattr(blur, "blur_of", note)
    monkeypatch.setattr("vdeblur.restore.only_blurred.measured_luma", lambda frame, *_: torch.tensor(frame.pts))
    frame = next(open_source(clip, Settings().cut, lambda *_: None).frames())
    slopes = SceneSlopes(0)
    for number in range(8 * MOST_MEASURES):
        slopes.add(dataclasses.replace(frame, pts=number), CPU)
    assert slopes.end() == SceneStart(0, -1.6)
    assert all(before == number - 1 for before, number, _ in measured)
    assert all(after == number + 1 for _, number, after in measured[:-1])
    places = [number for _, number, _ in measured]
    assert places[:3] == [1, 3, 5]
    assert {b - a for a, b in pairwise(places)} == {2, 4, 8}
    assert len(measured) <= 2.2 * MOST_MEASURES
