"""Excerpts in `vdeblur compare`: found by their pictures, paired, counted, and named."""

import json
from pathlib import Path

import numpy
import pytest

import vdeblur as api
from tests import clips
from vdeblur.errors import ExitStatus
from vdeblur.look.offset import find_offset
from vdeblur.settings import Cut
from vdeblur.source import video

H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-crf", "12")


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return clips.make(tmp_path / "whole.mp4", codec=H264, size="96x64", frames=150)


def excerpt(whole: Path, name: str, start: str, length: str, *more: str) -> Path:
    path = whole.with_name(name)
    clips.ffmpeg("-ss", start, "-i", whole, "-t", length, *more, *H264, path)
    return path


def found(a: Path, b: Path) -> float:
    sources = [video.open_source(path, Cut(), lambda code, message: None) for path in (a, b)]
    try:
        return float(find_offset(*sources).seconds)
    finally:
        for source in sources:
            source.close()


def test_an_excerpt_is_found(whole: Path) -> None:
    """D5: also where it is blurred, darker, in another container, or the first of the two."""
    plain = excerpt(whole, "plain.mp4", "2.4", "1.6")
    changed = excerpt(whole, "changed.mkv", "3.2", "2", "-vf", "gblur=sigma=1.5,eq=brightness=-0.02")
    assert found(whole, plain) == pytest.approx(2.4, abs=1e-3)
    assert found(plain, whole) == pytest.approx(-2.4, abs=1e-3)
    assert found(whole, changed) == pytest.approx(3.2, abs=1e-3)


def test_what_begins_together_or_is_unlike_has_no_offset(whole: Path, tmp_path: Path) -> None:
    """D5: a shorter video that begins like the longer one, and one that is another scene."""
    other = clips.make(tmp_path / "other.mp4", codec=H264, size="96x64", frames=40, extra=("-vf", "negate"))
    assert found(whole, excerpt(whole, "head.mp4", "0", "2")) == 0
    assert found(whole, other) == 0
    assert found(whole, whole) == 0


def test_the_metrics_of_an_excerpt_are_of_its_frames(vdeblur, whole: Path, tmp_path: Path) -> None:
    """D5: `run -ss 2 -t 1`, compared with its input, paired frame 0 with frame 0."""
    output = tmp_path / "part.mkv"
    assert vdeblur("run", whole, output, "-m", "identity", "--lossless", "-ss", "2", "-t", "1").exit_code == 0
    result = vdeblur("compare", whole, output, "--metrics")
    assert result.exit_code == 0, result.output
    assert "begins at 2.000 s of" in result.output
    assert "mean of 25 frames  inf dB" in result.output
    assert "no counterpart" not in result.output
    facts = json.loads(vdeblur("compare", whole, output, "--json").stdout)
    assert (facts["v"], facts["offset"], facts["frames"], facts["psnr"]) == (1, 2.0, 25, None)
    assert [row["seconds"] for row in facts["per_frame"]] == pytest.approx([2 + n / 25 for n in range(25)])
    turned = json.loads(vdeblur("compare", output, whole, "--json").stdout)
    assert (turned["offset"], turned["frames"], turned["psnr"]) == (-2.0, 25, None)


def test_an_offset_can_be_set(vdeblur, whole: Path, tmp_path: Path) -> None:
    """D5: --offset SECONDS; a wrong one shows in the numbers."""
    part = excerpt(whole, "part.mp4", "1", "1")
    right = json.loads(vdeblur("compare", whole, part, "--json", "--offset", "1").stdout)
    wrong = json.loads(vdeblur("compare", whole, part, "--json", "--offset", "1.2").stdout)
    assert right["frames"] == wrong["frames"] == 25
    assert right["psnr"] > wrong["psnr"] + 5
    for offset in ("soon", "nan", "1e1000000000"):  # the last one took minutes and gigabytes to read
        result = vdeblur("compare", whole, part, "--offset", offset)
        assert result.exit_code == ExitStatus.USAGE
        assert "neither seconds" in result.output


def test_a_video_of_an_excerpt(vdeblur, whole: Path, tmp_path: Path) -> None:
    """D5: side by side, both halves show the same frames; the API finds the offset, too."""
    part = excerpt(whole, "part.mp4", "2", "0.8")
    assert api.compare(whole, part, tmp_path / "side.mkv") == 20
    frames = clips.rgb(tmp_path / "side.mkv")
    assert len(frames) == 20
    assert clips.psnr(frames[:, :, :96], frames[:, :, 96:]) > 30
    assert api.compare(whole, part, tmp_path / "none.mkv", offset=0) == 20
    frames = clips.rgb(tmp_path / "none.mkv")
    assert clips.psnr(frames[:, :, :96], frames[:, :, 96:]) < 25


def test_progress_counts_what_is_compared(whole: Path, tmp_path: Path) -> None:
    """D5: the total was that of the first video."""
    part = excerpt(whole, "part.mp4", "2", "0.8")
    events: list[tuple[str, dict]] = []
    api.compare(whole, part, tmp_path / "side.mkv", notify=lambda name, facts: events.append((name, facts)))
    totals = {facts["frames_estimate"] for name, facts in events if name == "progress"}
    assert totals == {20}
    assert [facts["seconds"] for name, facts in events if name == "offset"] == [2.0]


def test_a_folder_of_pictures_is_an_excerpt(vdeblur, whole: Path, tmp_path: Path) -> None:
    """D5: pictures are paired by their order, from the offset on."""
    (tmp_path / "pictures").mkdir()
    clips.ffmpeg("-i", whole, "-vf", "select=gte(n\\,50)", "-frames:v", 20, "-fps_mode", "passthrough",
                 tmp_path / "pictures" / "%03d.png")  # fmt: skip
    facts = json.loads(vdeblur("compare", whole, tmp_path / "pictures", "--json").stdout)
    assert (facts["offset"], facts["frames"]) == (2.0, 20)
    for wrong in ("1.96", "2.04"):
        assert (
            json.loads(vdeblur("compare", whole, tmp_path / "pictures", "--json", "--offset", wrong).stdout)["psnr"]
            < facts["psnr"] - 2
        ), "sampled chroma differs a little, another frame by far more"


def test_labels_are_drawn(vdeblur, whole: Path, tmp_path: Path) -> None:
    """D5: white on black at the top of each half; on a page the names of the files, or the labels."""
    clip = clips.make(tmp_path / "clip.mkv", size="160x120", frames=2)
    assert vdeblur("compare", clip, clip, "-o", tmp_path / "plain.mkv").exit_code == 0
    result = vdeblur("compare", clip, clip, "-o", tmp_path / "out.mkv", "--labels", "blurry,restored")
    assert result.exit_code == 0, result.output
    plain, frames = clips.rgb(tmp_path / "plain.mkv"), clips.rgb(tmp_path / "out.mkv")
    changed = (numpy.abs(plain.astype(int) - frames).max(-1) > 30).any(0)
    rows, columns = numpy.nonzero(changed)
    assert rows.max() < 12
    assert columns.min() < 10
    assert changed[:, 160:].any()
    for page, words in ((("--labels", "one,two"), ("one", "two")), ((), ("clip.mkv",))):
        assert vdeblur("compare", clip, clip, "-o", tmp_path / "p.html", "-y", *page).exit_code == 0
        text = (tmp_path / "p.html").read_text()
        assert all(f'<span class="side left">{word}' in text or f">{word}</span>" in text for word in words)
    assert vdeblur("compare", clip, clip, "--labels", "one").exit_code == ExitStatus.USAGE
