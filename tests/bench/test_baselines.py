"""FFmpeg's sharpening filters as baselines, against an ffmpeg that is not ours."""

from fractions import Fraction
from pathlib import Path

import av
import numpy
import pytest

from tests import clips
from vdeblur.bench import baselines

FILTERS = {"unsharp": "unsharp=5:5:1:5:5:0", "cas": "cas=0.5"}


def decoded(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


@pytest.mark.parametrize(
    ("name", "pix_fmt"),
    [("unsharp", "yuv420p"), ("unsharp", "yuv444p"), ("cas", "yuv420p"), ("cas", "yuv422p10le"), ("cas", "gray")],
)
def test_equals_ffmpegs_own(tmp_path: Path, name: str, pix_fmt: str) -> None:
    tags = ("-colorspace", "bt709", "-color_range", "tv")
    source = clips.make(tmp_path / "in.mkv", size="66x50", pix_fmt=pix_fmt, extra=tags)
    clips.ffmpeg("-i", source, "-vf", FILTERS[name], "-c:v", "ffv1", tmp_path / "theirs.mkv")
    before, theirs = decoded(source), decoded(tmp_path / "theirs.mkv")
    ours = list(baselines.BASELINES[name](iter(before)))
    assert [frame.pts for frame in ours] == [frame.pts for frame in before]
    for mine, other, old in zip(ours, theirs, before, strict=True):
        assert mine.format.name == pix_fmt
        assert (mine.colorspace, mine.color_range) == (old.colorspace, old.color_range)
        assert (mine.to_ndarray() == other.to_ndarray()).all()
        assert (mine.to_ndarray() != old.to_ndarray()).any()


@pytest.mark.parametrize("name", FILTERS)
def test_equals_ffmpegs_own_on_pictures(tmp_path: Path, name: str) -> None:
    clips.make(tmp_path / "%d.png", pix_fmt="rgb24", frames=3, codec=("-c:v", "png"))
    clips.ffmpeg("-i", tmp_path / "%d.png", "-vf", FILTERS[name], "-pix_fmt", "rgb24", tmp_path / "theirs_%d.png")
    before = [decoded(tmp_path / f"{number}.png")[0] for number in (1, 2, 3)]
    for number, mine in enumerate(baselines.BASELINES[name](iter(before)), 1):
        theirs = decoded(tmp_path / f"theirs_{number}.png")[0]
        assert mine.format.name == "rgb24"
        assert (mine.to_ndarray() == theirs.to_ndarray()).all()
        assert (mine.to_ndarray() != before[number - 1].to_ndarray()).any()


def test_depth_does_not_weaken_unsharp() -> None:
    """As FFmpeg 8 does at 10 bits and more."""
    noise = numpy.random.default_rng(0).integers(100, 150, (48, 64, 3))
    changes = []
    for form, samples in (("rgb24", noise.astype(numpy.uint8)), ("rgb48le", (noise * 257).astype(numpy.uint16))):
        frame = av.VideoFrame.from_ndarray(samples, format=form)
        frame.pts, frame.time_base = 7, Fraction(1, 50)
        (sharpened,) = baselines.BASELINES["unsharp"](iter([frame]))
        assert (sharpened.pts, sharpened.time_base, sharpened.format.name) == (7, Fraction(1, 50), form)
        changes.append(numpy.abs(sharpened.to_ndarray().astype(float) - samples).mean() / samples.max())
    assert changes[1] == pytest.approx(changes[0], rel=0.05)


def test_a_change_of_size_is_followed() -> None:
    sizes = ((48, 64, 3), (32, 40, 3))
    frames = [av.VideoFrame.from_ndarray(numpy.full(size, 77, numpy.uint8)) for size in sizes]
    for name in FILTERS:
        for frame, same in zip(frames, baselines.BASELINES[name](iter(frames)), strict=True):
            assert (same.to_ndarray() == frame.to_ndarray()).all(), "there is nothing to sharpen in one colour"
