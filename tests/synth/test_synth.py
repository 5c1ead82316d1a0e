"""`vdeblur synth`: pairs of known truth from sharp footage, against independent computations."""

import errno
import json
import math
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch

from tests import clips
from vdeblur.datasets import layouts
from vdeblur.datasets.held_out import is_held_out
from vdeblur.datasets.pictures import read_rgb, write_png
from vdeblur.errors import ExitStatus, InterruptedRunError
from vdeblur.restore import color
from vdeblur.source.pictures import read_picture
from vdeblur.synth import exposure, footage, make, sequences
from vdeblur.synth import manifest as pairs_manifest
from vdeblur.synth.clips import ClipShape, render_clip, to_bytes

SIZE = "64x48"


def ignore(*args: object, **words: object) -> None:
    """Ignore an event, or a warning."""


def stack(folder: Path) -> numpy.ndarray:
    """Read the pictures of a folder: uint8 (T, H, W, 3)."""
    return numpy.stack([read_rgb(file).permute(1, 2, 0).numpy() for file in layouts.pictures_in(folder)])


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty frames of RGB, whose conversion leaves nothing to choose."""
    return clips.make(tmp_path_factory.mktemp("sharp") / "sharp.mkv", size=SIZE, frames=40, pix_fmt="gbrp")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, some of which are for test by their names."""
    folder = tmp_path_factory.mktemp("photographs")
    for index in range(12):
        drawing = f"mandelbrot=size=96x96:start_x={-0.7 + index * 0.01}:start_scale=0.5"
        clips.ffmpeg("-f", "lavfi", "-i", drawing, "-frames:v", 1, folder / f"p{index}.png")
    return folder


def test_gopros_way_is_the_mean_of_neighbours(vdeblur, video: Path, tmp_path: Path) -> None:
    """Both kinds of blur equal a mean that numpy computes of what another ffmpeg decoded; the truth is its middle."""
    result = vdeblur("synth", video, tmp_path / "o", "--average", 5, "--test-share", 0)
    assert result.exit_code == 0, result.output
    frames = clips.rgb(video)
    windows = frames.reshape(8, 5, *frames.shape[1:]).astype(numpy.float64)
    folder = tmp_path / "o" / "train" / "sharp_00"
    assert numpy.array_equal(stack(folder / "sharp"), frames[2::5])
    assert numpy.array_equal(stack(folder / "blur"), numpy.rint(windows.mean(1)))
    light = ((windows / 255) ** 2.2).mean(1) ** (1 / 2.2) * 255
    assert numpy.array_equal(stack(folder / "blur_gamma"), numpy.rint(light))
    assert [file.name for file in layouts.pictures_in(folder / "blur")] == [f"{k:06}.png" for k in range(1, 9)]


def test_duty_and_stride(vdeblur, video: Path, tmp_path: Path) -> None:
    """Of nine frames' time the shutter is open for a third; blurry frames begin every four."""
    options = ["--average", 9, "--duty", 0.34, "--stride", 4, "--blur", "blur", "--test-share", 0]
    assert vdeblur("synth", video, tmp_path / "o", *options).exit_code == 0
    frames = clips.rgb(video)
    means = [numpy.rint(frames[k : k + 3].mean(0, dtype=numpy.float64)) for k in range(0, 38, 4)]
    folder = tmp_path / "o" / "train" / "sharp_00"
    assert numpy.array_equal(stack(folder / "blur"), means)
    assert not (folder / "blur_gamma").exists()


def test_cross_fades_are_averaged() -> None:
    """The weights equal those of frames that are really drawn in between."""
    rng = numpy.random.default_rng(0)
    frames = [rng.integers(0, 256, (4, 5, 3), dtype=numpy.uint8) for _ in range(5)]
    window = exposure.faded_window(5, 0.7, 4)
    reach = round(4 * (5 * 0.7 - 1) / 2)
    drawn = []
    for place in range(-reach, reach + 1):
        at = 2 + place / 4
        before, part = math.floor(at), at - math.floor(at)
        drawn.append(frames[before] * (1 - part) + frames[min(before + 1, 4)] * part)
    middle = 2 - len(window.weights) // 2
    found = exposure.average(frames[middle : middle + len(window.weights)], window, "blur")
    assert numpy.allclose(found, numpy.mean(drawn, 0), atol=1e-9)
    assert exposure.faded_window(7, 1.0, 1) == exposure.plain_window(7, 1.0)


@pytest.mark.parametrize("steps", [1, 8, 300])
def test_bands_and_whole_numbers_average_exactly(steps: int) -> None:
    """Sums of 16, 32 and more bits, in several bands, equal plain sums in float64 to the last bit."""
    window = exposure.faded_window(5, 0.9, steps)
    frames = [numpy.full((40, 500, 3), 255, numpy.uint8) for _ in window.weights]
    rng = numpy.random.default_rng(steps)
    for frame in frames:
        frame[1:] = rng.integers(0, 256, (39, 500, 3), dtype=numpy.uint8)
    assert frames[0].size > exposure.BAND
    shares = numpy.array(window.weights, numpy.float64)[:, None, None, None]
    codes = (shares * frames).sum(0) / window.total
    assert numpy.array_equal(exposure.average(frames, window, "blur"), codes)
    light = (shares * (numpy.array(frames) / 255.0) ** 2.2).sum(0) / window.total
    assert numpy.allclose(exposure.average(frames, window, "blur_gamma"), 255 * light ** (1 / 2.2), rtol=0, atol=1e-10)


def test_dvds_way(vdeblur, video: Path, tmp_path: Path) -> None:
    options = ["--way", "dvd", "--average", 3, "--duty", 0.8, "--steps", 4, "--frames", 4, "--clips", 2]
    assert vdeblur("synth", video, tmp_path / "o", *options, "--test-share", 0).exit_code == 0
    record = manifest(tmp_path / "o")["sequences"][1]
    weights = numpy.array(record["weights"])
    assert len(weights) == 3
    assert weights[0] == weights[2] < weights[1]
    frames = clips.rgb(video)[record["first_frame"] :]
    mean = (frames[:3] * weights[:, None, None, None]).sum(0) / weights.sum()
    assert abs(stack(tmp_path / "o" / "train" / "sharp_01" / "blur")[0] - mean).max() <= 0.5 + 1e-9


def test_colour_rotation_and_depth_are_those_of_players(vdeblur, tmp_path: Path, shared: Path) -> None:
    """A turned phone video stands upright, and its colours are those of another ffmpeg."""
    source = shared / "data" / "odd" / "h264_rot90.mov"
    options = ["--average", 3, "--frames", 2, "--clips", 1, "--test-share", 0]
    assert vdeblur("synth", source, tmp_path / "o", *options).exit_code == 0
    clips.ffmpeg("-i", source, "-frames:v", 4, tmp_path / "%d.png")
    theirs = read_rgb(tmp_path / "2.png").numpy().astype(int)
    ours = read_rgb(tmp_path / "o" / "train" / "h264_rot90_00" / "sharp" / "000001.png").numpy().astype(int)
    assert ours.shape == theirs.shape
    assert abs(ours - theirs).mean() < 1.5


@pytest.mark.parametrize("form", ["yuv420p", "yuv422p10le", "yuv410p", "yuv444p", "gray", "gbrp"])
def test_stretches_of_rows_join_without_a_seam(tmp_path: Path, form: str) -> None:
    """Of a frame that is higher than a stretch, they are what the conversion of the whole gives."""
    path = clips.make(tmp_path / "high.mkv", size="32x194", frames=1, pix_fmt=form)
    source = footage.open_footage(footage.Footage(path, "video"), ignore)
    frame = next(iter(source.frames()))
    space = color.ColorSpace.of(frame.picture)
    planes = color.planes_of(frame, space, torch.device("cpu"))
    assert frame.picture.height > 3 * footage.ROWS
    assert torch.equal(footage._to_bytes(planes, space), to_bytes(color.to_rgb(planes, space)))
    source.close()


def test_scale_and_size_reduce_by_areas(vdeblur, video: Path, tmp_path: Path) -> None:
    small = ["--average", 3, "--frames", 2, "--clips", 1, "--test-share", 0]
    assert vdeblur("synth", video, tmp_path / "a", "--scale", 0.5, *small).exit_code == 0
    frames = clips.rgb(video)[1].astype(numpy.float64)
    areas = frames.reshape(24, 2, 32, 2, 3).mean((1, 3))
    sharp = stack(tmp_path / "a" / "train" / "sharp_00" / "sharp")[0]
    assert abs(sharp - areas).max() <= 0.5 + 1e-9
    assert vdeblur("synth", video, tmp_path / "b", "--size", "20x24", *small).exit_code == 0
    middle = stack(tmp_path / "b" / "train" / "sharp_00" / "sharp")[0]
    assert numpy.array_equal(middle, sharp[:, 6:26])


def test_noise_is_as_strong_as_asked_for(vdeblur, tmp_path: Path) -> None:
    """On grey of code 100 reading adds 3, light 4 x the root of 100/255; the truth has none."""
    source = tmp_path / "grey.mkv"
    clips.ffmpeg("-f", "lavfi", "-i", "color=0x646464:size=128x96,format=gbrp", "-frames:v", 9, "-c:v", "ffv1", source)
    assert vdeblur("synth", source, tmp_path / "o", "--average", 3, "--noise", "3/4", "--test-share", 0).exit_code == 0
    folder = tmp_path / "o" / "train" / "grey_00"
    blurry = stack(folder / "blur").astype(numpy.float64)
    assert blurry.std() == pytest.approx(math.sqrt(9 + 16 * 100 / 255 + 1 / 12), rel=0.02)
    assert blurry.mean() == pytest.approx(100, abs=0.1)
    assert stack(folder / "sharp").std() == 0


def test_compression_touches_blurry_frames_only(vdeblur, video: Path, tmp_path: Path) -> None:
    plain, coded = tmp_path / "plain", tmp_path / "coded"
    options = ["--average", 3, "--size", "61x47", "--test-share", 0, "--blur", "blur"]
    assert vdeblur("synth", video, plain, *options).exit_code == 0
    assert vdeblur("synth", video, coded, *options, "--compress", "20..24").exit_code == 0
    crf = manifest(coded)["sequences"][0]["crf"]
    assert 20 <= crf <= 24
    name = Path("train") / "sharp_00"
    assert numpy.array_equal(stack(plain / name / "sharp"), stack(coded / name / "sharp"))
    before, after = stack(plain / name / "blur"), stack(coded / name / "blur")
    assert 20 < clips.psnr(before, after) < 50


def test_the_same_command_gives_the_same_bytes_elsewhere(vdeblur, video: Path, tmp_path: Path) -> None:
    """And so do two processes; another seed does not."""
    other = video.parent / "other.mkv"
    if not other.exists():
        clips.make(other, size=SIZE, frames=30, pix_fmt="gbrp", extra=("-vf", "hflip"))
    options = ["--average", "3..7", "--frames", 3, "--noise", 1, "--compress", 25, "--duty", "0.5..1"]
    for name, more in (("a", []), ("b", ["-j", 2]), ("c", ["--seed", 1])):
        result = vdeblur("synth", video, other, tmp_path / name, *options, *more)
        assert result.exit_code == 0, result.output
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert manifest(tmp_path / "a")["sequences"] != manifest(tmp_path / "c")["sequences"]
    assert str(tmp_path) not in (tmp_path / "a" / "manifest.json").read_text()
    assert str(video.parent) not in (tmp_path / "a" / "manifest.json").read_text()
    assert not [name for name in tree(tmp_path / "a") if "/." in name or name.startswith(".")]


def test_interrupted_and_resumed_equals_uninterrupted(vdeblur, video: Path, tmp_path: Path) -> None:
    """A signal in the second sequence; the first one is kept, and untouched by the same command."""
    options = sequences.Options(average=(3, 3), frames=3, test_share=0.0, blur="blur")
    calls: Iterator[int] = iter(range(1000))

    def stop() -> ExitStatus | None:
        return ExitStatus.TERMINATED if next(calls) == 14 else None

    with pytest.raises(InterruptedRunError, match="kept"):
        make.make_pairs([video], tmp_path / "a", options, notify=ignore, stop=stop)
    assert [path.name for path in (tmp_path / "a" / "train").iterdir()] == ["sharp_00"]
    assert not manifest(tmp_path / "a")["complete"]
    first = tmp_path / "a" / "train" / "sharp_00" / "sequence.json"
    before = first.stat().st_mtime_ns
    arguments = ["--average", 3, "--frames", 3, "--test-share", 0, "--blur", "blur"]
    for name in "ab":
        assert vdeblur("synth", video, tmp_path / name, *arguments).exit_code == 0
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert first.stat().st_mtime_ns == before
    assert manifest(tmp_path / "a")["complete"]


def test_bench_reads_what_is_made(vdeblur, video: Path, tmp_path: Path) -> None:
    options = ["--average", 3, "--frames", 5, "--clips", 2, "--test-share", 1]
    assert vdeblur("synth", video, tmp_path / "pairs", *options).exit_code == 0
    for kind in ("blur", "blur_gamma"):
        dataset = layouts.open_dataset(str(tmp_path / "pairs"), blur=kind, talk=None, warn=ignore)
        assert dataset.split == "test"
        assert dataset.blur == kind
        assert dataset.layout.startswith("GoPro")
        assert [(s.name, len(s.pairs)) for s in dataset.sequences] == [("sharp_00", 5), ("sharp_01", 5)]


def test_no_sequence_reaches_over_a_cut(vdeblur, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, drawing in enumerate(["color=black:size=64x48", "color=white:size=64x48"]):
        source = f"{drawing},format=rgb24"
        clips.ffmpeg("-f", "lavfi", "-i", source, "-frames:v", 16, "-start_number", index * 16, folder / "%02d.png")
    assert vdeblur("synth", folder, tmp_path / "o", "--average", 3, "--frames", 4, "--test-share", 0).exit_code == 0
    rows = manifest(tmp_path / "o")["sequences"]
    assert [(row["first_frame"], row["last_frame"]) for row in rows] == [(0, 11), (16, 27)]
    blurry = stack(tmp_path / "o" / "train" / "frames_01" / "blur")
    assert set(numpy.unique(blurry)) == {255}


def test_sources_for_test_are_never_in_train(vdeblur, photographs: Path, tmp_path: Path) -> None:
    options = ["--way", "camera", "--size", 32, "--frames", 2, "--clips", 2, "--test-share", 0.4]
    assert vdeblur("synth", photographs, tmp_path / "o", *options).exit_code == 0
    split_of: dict[str, set[str]] = {}
    for row in manifest(tmp_path / "o")["sequences"]:
        split_of.setdefault(row["source_sha256"], set()).add(row["split"])
        assert (tmp_path / "o" / row["split"] / row["name"] / "blur").is_dir()
    assert len(split_of) == 12
    assert all(len(splits) == 1 for splits in split_of.values())
    assert set.union(*split_of.values()) == {"train", "test"}


def test_shares_hold_and_nest() -> None:
    names = [f"clip_{index}.mp4" for index in range(2000)]
    kept = [{name for name in names if is_held_out(name, share)} for share in (0.0, 0.1, 0.35, 1.0)]
    assert [len(some) / 2000 for some in kept] == pytest.approx([0, 0.1, 0.35, 1], abs=0.03)
    assert kept[0] < kept[1] < kept[2] < kept[3]


def test_cameras_way_blurs_along_its_path(vdeblur, photographs: Path, tmp_path: Path) -> None:
    """Fast cameras blur more than slow ones, and what is sharp is as detailed either way."""
    errors = []
    for name, speed in (("slow", "1"), ("fast", "12")):
        options = ["--way", "camera", "--size", 32, "--frames", 3, "--speed", speed, "--test-share", 0]
        assert vdeblur("synth", photographs, tmp_path / name, *options).exit_code == 0
        folders = list((tmp_path / name / "train").iterdir())
        pairs = [(stack(folder / "blur_gamma"), stack(folder / "sharp")) for folder in folders]
        errors.append(numpy.mean([abs(a.astype(float) - b).mean() for a, b in pairs]))
    assert 0 < 1.5 * errors[0] < errors[1]


def test_random_clips_are_a_function_of_seed_and_number(vdeblur, photographs: Path, tmp_path: Path) -> None:
    """As `lite`'s were made: drawn by (seed, hundred, number in it) from the sorted photographs of the split."""
    options = ["--way", "random", "--size", 32, "--frames", 3, "--clips", 12, "--seed", 5]
    assert vdeblur("synth", photographs, tmp_path / "o", *options).exit_code == 0
    shape = ClipShape(3, 32)
    for split, held_out in (("train", False), ("test", True)):
        files = [path for path in sorted(photographs.iterdir()) if is_held_out(path.name) == held_out]
        arrays = [read_picture(path)[0].to_ndarray(format="rgb24") for path in files]
        stills = [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]
        for number in range(12 if split == "train" else 2):
            mixed = numpy.random.SeedSequence((5, 0, number)).generate_state(1, numpy.uint64)[0]
            generator = torch.Generator().manual_seed(int(mixed) >> 1)
            pair = render_clip(generator, stills, shape)
            folder = tmp_path / "o" / split / f"clip_{number:05}"
            for kind, clip in zip(("blur", "sharp"), pair, strict=True):
                assert numpy.array_equal(stack(folder / kind), clip.permute(0, 2, 3, 1).numpy())


def test_any_stretch_of_a_take_can_be_had(tmp_path: Path) -> None:
    """From keyframes in the middle, too, it is what reading from the beginning gives."""
    path = tmp_path / "take.mp4"
    clips.make(path, size=SIZE, frames=60, codec=("-c:v", "libx264", "-g", "12", "-bf", "2"))
    take = footage.Take(footage.Footage(path, "video"), ignore)
    assert take.shape == (60, 3, 48, 64)
    every = torch.stack([take._small(frame) for frame in take.source.frames()])
    for first, stop in ((0, 5), (30, 41), (47, 60), (11, 13)):
        assert torch.equal(take[first:stop], every[first:stop])


def test_what_is_held_of_a_video_is_a_window(vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it is: no more frames live at once than are averaged, and a few on their way."""
    seen: list[weakref.ref] = []
    most = 0
    push = exposure.Exposures.push

    def counted(self: exposure.Exposures, frame: numpy.ndarray) -> list[numpy.ndarray] | None:
        nonlocal most
        seen.append(weakref.ref(frame))
        most = max(most, sum(reference() is not None for reference in seen))
        return push(self, frame)

    monkeypatch.setattr(exposure.Exposures, "push", counted)
    long = clips.make(tmp_path / "long.mkv", size=SIZE, frames=150)
    assert vdeblur("synth", long, tmp_path / "o", "--average", 5, "--test-share", 0, "--blur", "blur").exit_code == 0
    assert len(stack(tmp_path / "o" / "train" / "long_00" / "blur")) == 30
    assert 5 <= most <= 10


def test_the_preview(vdeblur, video: Path, tmp_path: Path) -> None:
    """Six pairs, four in a row: the middle frames, blurry above sharp."""
    sheet = tmp_path / "sheet.png"
    options = ["--average", 3, "--frames", 2, "--test-share", 0, "--blur", "blur", "--preview", sheet]
    assert vdeblur("synth", video, tmp_path / "o", *options).exit_code == 0
    assert len(manifest(tmp_path / "o")["sequences"]) == 6
    picture = read_rgb(sheet).permute(1, 2, 0).numpy()
    assert picture.shape == (4 + 4 * 52, 4 + 4 * 68, 3)
    folder = tmp_path / "o" / "train" / "sharp_05"
    assert numpy.array_equal(picture[4 + 2 * 52 : 52 + 2 * 52, 72:136], stack(folder / "blur")[1])
    assert numpy.array_equal(picture[4 + 3 * 52 : 52 + 3 * 52, 72:136], stack(folder / "sharp")[1])
    again = vdeblur("synth", video, tmp_path / "o", *options)
    assert again.exit_code == 4
    assert "sheet.png exists already" in again.output.replace("\n", "")


def test_steps_are_warned_of(vdeblur, tmp_path: Path) -> None:
    """A texture that moves by four pixels from frame to frame: yes; by a quarter of one: no."""
    coarse = torch.rand(1, 3, 30, 60, generator=torch.Generator().manual_seed(0))
    wide = torch.nn.functional.interpolate(coarse, (240, 480), mode="bicubic").clamp(0, 1)[0]
    found = {}
    for name, step in (("fast", 16), ("slow", 1)):
        folder = tmp_path / name
        for index in range(4):
            moved = torch.nn.functional.avg_pool2d(wide[:, :, step * index : step * index + 384], 4)
            write_png(folder / f"{index}.png", (moved * 255).round().to(torch.uint8))
        result = vdeblur("synth", folder, tmp_path / f"{name}_o", "--dry-run", "--json")
        events = [json.loads(line) for line in result.stdout.splitlines()]
        assert result.exit_code == 0, result.output
        assert not (tmp_path / f"{name}_o").exists()
        found[name] = [event for event in events if event.get("code") == "W_STEPS"]
    assert len(found["fast"]) == 1
    assert "--way dvd" in found["fast"][0]["message"]
    assert "--scale" in found["fast"][0]["message"]
    assert found["slow"] == []


def warnings_of(result) -> list[tuple[str, str]]:
    events = [json.loads(line) for line in result.stdout.splitlines()]
    return [(event["code"], event["message"]) for event in events if event["event"] == "warning"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ("setparams=color_trc=smpte2084", {"W_HDR": "HDR (PQ)"}),
        ("setparams=color_trc=arib-std-b67", {"W_HDR": "HDR (HLG)"}),
        ("settb=1/30000,setpts=N*1000+mod(N*N\\,7)*90", {"W_VFR": "variable frame rate"}),
        ("setparams=color_trc=bt709", {}),
    ],
)
def test_hdr_and_uneven_times_are_named(vdeblur, tmp_path: Path, filters: str, expected: dict[str, str]) -> None:
    source = tmp_path / "phone.mp4"
    timing = ("-fps_mode", "vfr", "-enc_time_base", "1/30000", "-video_track_timescale", "30000")
    clips.make(source, frames=20, codec=("-c:v", "libx264"), extra=("-vf", filters, *timing))
    clips.ffmpeg("-i", source, "-frames:v", 1, tmp_path / "still.png")
    for way in (["--average", 3], ["--way", "random", "--size", 32, "--frames", 2, "--clips", 1]):
        sharp = [source, tmp_path / "still.png"] if "random" in way else [source]
        result = vdeblur("synth", *sharp, tmp_path / "o", *way, "--test-share", 0, "--dry-run", "--json")
        assert result.exit_code == 0, result.output
        found = {code: message for code, message in warnings_of(result) if code in ("W_HDR", "W_VFR")}
        assert found.keys() == expected.keys()
        assert all("phone.mp4" in found[code] and words in found[code] for code, words in expected.items())


@pytest.mark.parametrize(
    ("frames", "asked", "expected"),
    [
        (5, 3, "no scene for a sequence of 3 pairs, only for 1 pair (--frames 1,"),
        (8, 3, "no scene for a sequence of 3 pairs, only for 2 pairs (--frames 2,"),
        (9, 3, None),
        (1, 1, "only 1 frame in a scene, and 3 are averaged; it is left out"),
    ],
)
def test_short_sequences_are_named(vdeblur, tmp_path: Path, frames: int, asked: int, expected: str | None) -> None:
    source = clips.make(tmp_path / "brief.mkv", frames=frames)
    long = clips.make(tmp_path / "long.mkv", frames=9)
    options = ["--average", 3, "--frames", asked, "--test-share", 0]
    result = vdeblur("synth", source, long, tmp_path / "o", *options, "--json")
    assert result.exit_code == 0, result.output
    short = [message for code, message in warnings_of(result) if code == "W_SHORT"]
    assert len(short) == (expected is not None)
    assert all(f"brief.mkv has {expected}" in message for message in short)


def test_scenes_that_are_too_short_are_named(vdeblur, tmp_path: Path) -> None:
    """Three pairs, a cut, and none: neither scene is kept."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, shade in enumerate(["black", "white"]):
        source = f"color={shade}:size=64x48,format=rgb24"
        clips.ffmpeg(
            "-f", "lavfi", "-i", source, "-frames:v", 9 - 7 * index, "-start_number", index * 9, folder / "%d.png"
        )
    long = clips.make(tmp_path / "long.mkv", frames=12)
    options = ["--average", 3, "--frames", 4, "--test-share", 0]
    result = vdeblur("synth", folder, long, tmp_path / "o", *options, "--json")
    assert result.exit_code == 0, result.output
    short = [message for code, message in warnings_of(result) if code == "W_SHORT"]
    assert len(short) == 1
    assert "frames has no scene for a sequence of 4 pairs, only for 3 pairs; it is left out" in short[0]


def test_one_pair_is_one_pair(vdeblur, video: Path, tmp_path: Path) -> None:
    result = vdeblur("synth", video, tmp_path / "o", "--average", 3, "--frames", 1, "--clips", 1, "--test-share", 0)
    assert "1 sequence for train, 0 for test; 1 pair in" in result.output.replace("\n", " ")


def test_an_output_is_not_replaced_unasked(vdeblur, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    options = ["--frames", 2, "--clips", 1, "--test-share", 0]
    assert vdeblur("synth", video, out, *options, "--average", 3).exit_code == 0
    first = tree(out)
    refused = vdeblur("synth", video, out, *options, "--average", 5)
    assert refused.exit_code == 4
    assert "--average" in refused.output
    assert vdeblur("synth", video, out, *options, "--average", 3, "--no-resume").exit_code == 4
    assert tree(out) == first
    (out / "notes.txt").write_text("mine")
    assert vdeblur("synth", video, out, *options, "--average", 5, "-y").exit_code == 0
    assert manifest(out)["sequences"][0]["average"] == 5
    assert (out / "notes.txt").read_text() == "mine"
    (tmp_path / "holiday" / ".drafts").mkdir(parents=True)
    for name in ("a.txt", ".lock", ".drafts/b.txt"):
        (tmp_path / "holiday" / name).write_text("mine")
    before = tree(tmp_path / "holiday")
    foreign = vdeblur("synth", video, tmp_path / "holiday", "-y")
    assert foreign.exit_code == 4
    assert "has no manifest.json" in foreign.output.replace("\n", " ")
    assert tree(tmp_path / "holiday") == before


@pytest.fixture
def made(vdeblur, video: Path, tmp_path: Path) -> Path:
    """Two sequences of three pairs."""
    options = ["--average", 3, "--frames", 3, "--clips", 2, "--blur", "blur", "--test-share", 0]
    assert vdeblur("synth", video, tmp_path / "o", *options).exit_code == 0
    return tmp_path / "o"


def test_what_cannot_be_made_anew_is_kept(vdeblur, video: Path, made: Path) -> None:
    """After a failure, and after a signal between two sequences, every byte is as it was."""
    before = tree(made)
    failed = vdeblur("synth", video, made, "--average", 999, "--test-share", 0, "-y")
    assert failed.exit_code == 3
    assert "not one sequence" in failed.output.replace("\n", " ")
    assert tree(made) == before
    calls: Iterator[int] = iter(range(1000))

    def stop() -> ExitStatus | None:
        return ExitStatus.TERMINATED if next(calls) == 14 else None

    events: list[str] = []
    options = sequences.Options(average=(3, 3), frames=3, test_share=0.0, blur="blur", seed=1)
    with pytest.raises(InterruptedRunError) as stopped:
        make.make_pairs([video], made, options, overwrite=True, notify=lambda name, _: events.append(name), stop=stop)
    assert "sequence_made" in events
    assert stopped.value.message == "stopped; the earlier data set is back in place"
    assert tree(made) == before


def test_a_set_is_put_back_after_a_kill(vdeblur, video: Path, made: Path, tmp_path: Path) -> None:
    """Wherever it came: while the old set is moved aside, while the new one is made, while the old one is put back."""
    before = tree(made)
    options = ["--average", 3, "--frames", 3, "--clips", 2, "--blur", "blur", "--test-share", 0]
    aside = made / ".earlier"

    def half_aside() -> None:
        (aside / "train").mkdir(parents=True)
        (made / "train" / "sharp_00").rename(aside / "train" / "sharp_00")

    def half_made() -> None:
        assert vdeblur("synth", video, tmp_path / "new", *options, "--seed", 1).exit_code == 0
        pairs_manifest.move_aside(made)
        (made / "train").mkdir()
        (tmp_path / "new" / "train" / "sharp_00").rename(made / "train" / "sharp_00")
        (tmp_path / "new" / "manifest.json").rename(made / "manifest.json")

    def half_back() -> None:
        half_aside()
        (made / ".drafts" / "train").mkdir(parents=True)
        (made / ".drafts" / "train" / "leftover").write_text("of the new set")

    for kill in (half_aside, half_made, half_back):
        kill()
        assert tree(made) != before
        result = vdeblur("synth", video, made, *options)
        assert result.exit_code == 0, result.output
        assert tree(made) == before


def test_a_disk_that_fails_is_named(vdeblur, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is read, not the folder that is written to; and the other way round."""
    pictures_of = footage.pictures_of

    def failing(source: footage.FootageSource) -> Iterator[torch.Tensor]:
        yield next(pictures_of(source))
        raise OSError(errno.EIO, "Input/output error")

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(footage, "pictures_of", failing)
        unread = vdeblur("synth", video, tmp_path / "a", "--average", 3)
    assert unread.exit_code == 3
    assert "sharp.mkv cannot be read: Input/output error" in unread.output.replace("\n", " ")
    monkeypatch.setattr(pairs_manifest, "write_whole", full)
    unwritten = vdeblur("synth", video, tmp_path / "b", "--average", 3)
    assert unwritten.exit_code == 4
    assert "b cannot be written: No space left" in unwritten.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        (["missing.mp4", "o"], 3, "no such file"),
        (["text.mp4", "o"], 3, "cannot be read as video"),
        (["empty", "o"], 3, "no sharp frames"),
        (["short.mkv", "o"], 3, "only 3 frames"),
        (["short.mkv", "o", "--size", "640x480"], 3, "smaller than 640x480"),
        (["short.mkv"], 2, "there is no OUT_DIR"),
        (["short.mkv", "o", "--average", "8"], 2, "no middle one"),
        (["short.mkv", "o", "--way", "camera"], 2, "photograph"),
        (["short.mkv", "o", "--way", "random"], 2, "needs photographs"),
        (["short.mkv", "o", "--steps", "4"], 2, "does not use --steps"),
        (["short.mkv", "o", "--duty", "0.9..0.2"], 2, "lowest first"),
        (["short.mkv", "o", "--noise", "much"], 2, "READ/SHOT"),
        (["one.png", "o"], 2, "one picture"),
        (["pictures", "pictures/o"], 2, "lies within"),
        (["short.mkv", "o", "--preview", "p.jpg"], 2, "name it *.png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors(vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words, status: int, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    clips.make(tmp_path / "short.mkv", size=SIZE, frames=3)
    (tmp_path / "text.mp4").write_text("no video at all, but long enough to be looked at by a demuxer")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pictures").mkdir()
    clips.ffmpeg("-f", "lavfi", "-i", "color=red:size=64x48", "-frames:v", 1, tmp_path / "one.png")
    (tmp_path / "pictures" / "1.png").write_bytes((tmp_path / "one.png").read_bytes())
    result = vdeblur("synth", *words)
    assert result.exit_code == status, result.output
    assert expected in result.output.replace("\n", " ")
    assert not (tmp_path / "o" / "train").exists()


def test_events(vdeblur, video: Path, tmp_path: Path) -> None:
    result = vdeblur("synth", video, tmp_path / "o", "--json", "--average", 3, "--frames", 4, "--test-share", 0)
    events = [json.loads(line) for line in result.stdout.splitlines()]
    names = [event["event"] for event in events]
    assert names[0] == "start"
    assert names[-1] == "done"
    assert names.count("sequence_made") == 3
    done = next(event for event in events if event["event"] == "synth_done")
    assert (done["train"], done["test"], done["frames"]) == (3, 0, 12)
