"""The verdict at the end of a run: how much changed, and where that is little, the measured reason."""

import json
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy
import pytest
import torch

from tests import clips
from vdeblur.restore import changes
from vdeblur.restore.changes import LITTLE, ChangeMeter, mean_change
from vdeblur.run.pipeline import restore_file
from vdeblur.settings import Cut, EncodeOptions, Settings

FFV1 = EncodeOptions(lossless=True)


def change_of(result) -> dict:
    events = [json.loads(line) for line in result.stdout.splitlines()]
    return next(event for event in events if event["event"] == "file_done")["change"]


def test_the_change_is_that_of_the_samples(vdeblur, tmp_path: Path) -> None:
    """D8: the mean change, against the planes of input and output as the independent ffmpeg decodes them."""
    source = clips.make(tmp_path / "in.mkv", frames=6, extra=("-vf", "gblur=sigma=2"))
    output = tmp_path / "out.mkv"
    result = vdeblur("run", source, output, "--lossless", "-p", "fp32", "--json")
    assert result.exit_code == 0, result.output
    change = change_of(result)
    planes = [_luma(path) for path in (source, output)]
    per_frame = numpy.abs(planes[0] - planes[1]).mean((1, 2))
    assert change["frames"] == 6
    assert change["mean_change"] == pytest.approx(per_frame.mean(), abs=6e-4)
    assert change["little_share"] == pytest.approx((per_frame < LITTLE).mean(), abs=6e-4)
    assert change["little_below"] == LITTLE


def _luma(path: Path) -> numpy.ndarray:
    command = [clips.FFMPEG, "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "yuv420p", "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    frames = numpy.frombuffer(data, numpy.uint8).reshape(-1, 48 * 64 * 3 // 2)
    return frames[:, : 48 * 64].reshape(-1, 48, 64).astype(numpy.float64)


def test_nothing_changed(vdeblur, tmp_path: Path) -> None:
    """D8: identity says so."""
    source = clips.make(tmp_path / "in.mkv", frames=3)
    result = vdeblur("run", source, tmp_path / "out.mkv", "-m", "identity")
    assert "nothing changed" in result.output


def test_segments_count_each_frame_once(tmp_path: Path) -> None:
    """D8: the frames that a network sees around a segment are restored, too, but do not count."""
    source = clips.make(tmp_path / "in.mkv", frames=20)
    settings = Settings(encoding=FFV1, segment=Fraction(1, 5), precision="fp32")
    result = restore_file(source, tmp_path / "out.mkv", settings)
    assert result.change is not None
    assert result.change.frames == 20
    part = restore_file(source, tmp_path / "part.mkv", Settings(encoding=FFV1, cut=Cut(frames=7), model="identity"))
    assert part.change is not None
    assert (part.change.frames, part.change.mean_change, part.change.little_share) == (7, 0.0, 1.0)


@pytest.mark.parametrize(
    ("picture", "word"),
    [
        ("noise", "sharp"),
        ("dark", "dark"),
        ("blurred and still", "still"),
        ("blurred and moving", "soft"),
        ("changed", ""),
    ],
)
def test_the_reason_is_measured(picture: str, word: str) -> None:
    """D8: already sharp, too dark, not motion blur; none where enough changed."""
    meter = ChangeMeter()
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(3, 90, 160, generator=generator)
    smooth = noise[None]
    for _ in range(3):
        smooth = torch.nn.functional.avg_pool2d(smooth, 15, 1, 7, count_include_pad=False)
    smooth = smooth[0]
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    for number in range(4):
        frame = {
            "noise": noise.roll(3 * number, 2),
            "dark": noise.roll(3 * number, 2) * 0.03,
            "blurred and still": smooth,
            "blurred and moving": smooth.roll(20 * number, 2),
            "changed": noise.roll(3 * number, 2),
        }[picture]
        meter.look_at(number, frame)
        meter.note(number, 3.0 if picture == "changed" else 0.1)
    summary = meter.summary()
    assert summary is not None
    assert summary.reason == word, summary
    assert summary.little_share == (0.0 if picture == "changed" else 1.0)


def test_no_frame_has_no_verdict(vdeblur, tmp_path: Path) -> None:
    """D8: a run that only joins finished segments measures nothing, and says nothing."""
    assert ChangeMeter().summary() is None
    planes = [torch.zeros(4, 4, dtype=torch.uint16), torch.zeros(2, 2, dtype=torch.uint16)]
    after = [torch.full((4, 4), 8, dtype=torch.uint16), planes[1]]
    assert float(mean_change(planes, after, bits=10, rgb=False)) == 2.0, "10 bits count as codes of 8"
    assert float(mean_change(planes, after, bits=10, rgb=True)) == 1.0
    assert changes.LITTLE < 2.5, "blurry clips of REDS change more"


def test_a_sharp_clip_is_told_to_be_sharp(vdeblur, tmp_path: Path, shared: Path) -> None:
    """D8: real frames of REDS, sharp ones and the same blurred."""
    words = {}
    for kind in ("sharp", "blur"):
        source = shared / "data" / "pairs" / "reds_wall" / kind
        result = vdeblur("run", source, tmp_path / kind, "--frames", "3", "-p", "fp32", "--json")
        assert result.exit_code == 0, result.output
        words[kind] = change_of(result)
    assert words["sharp"]["reason"] == "sharp"
    assert words["sharp"]["little_share"] > 0.6
    assert words["blur"]["mean_change"] > 2 * words["sharp"]["mean_change"]
    assert words["blur"]["little_share"] == 0.0


def test_the_line_says_it(vdeblur, tmp_path: Path, shared: Path) -> None:
    """D8: in words a person can use."""
    source = shared / "data" / "pairs" / "reds_wall" / "sharp"
    result = vdeblur("run", source, tmp_path / "out", "--frames", "2", "-p", "fp32")
    assert "100% of the frames by less than 1.5" in result.output
    assert "why: they are sharp already (sharpness 0.75 of 1)" in result.output
