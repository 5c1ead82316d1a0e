"""What a dry run shows, and where outputs go: nothing is written before the work, and nothing beside it."""

import json
from pathlib import Path

import pytest

import vdeblur as api
from tests import clips
from vdeblur.errors import ExitStatus, UsageError

H264 = ("-c:v", "libx264", "-preset", "ultrafast")
AAC = ("-c:a", "aac")
FAST = ("-m", "identity", "--preset", "ultrafast")


def plan_of(result) -> dict:
    return next(event for event in events_of(result) if event["event"] == "plan")


def events_of(result) -> list[dict]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "no-config" not in path.parts}


@pytest.mark.parametrize("name", ["there", "new/"])
def test_a_video_keeps_its_name_and_sound_in_a_folder(vdeblur, tmp_path: Path, name: str) -> None:
    """D2: `run clip.mp4 dir/` wrote pictures without sound."""
    source = clips.make(tmp_path / "clip.mp4", codec=H264, frames=4, audio=AAC)
    (tmp_path / "there").mkdir()
    result = vdeblur("run", source, f"{tmp_path}/{name}", *FAST)
    assert result.exit_code == 0, result.output
    output = tmp_path / name.rstrip("/") / "clip.mp4"
    assert clips.facts(output).streams == [("video", "h264"), ("audio", "aac")]
    assert clips.packet_hashes(output, "a:0") == clips.packet_hashes(source, "a:0")
    assert tree(output.parent) == {"clip.mp4"}


def test_an_output_without_suffix_that_is_no_folder_is_refused(vdeblur, tmp_path: Path) -> None:
    """D2: a name without suffix became a folder of pictures unasked."""
    source = clips.make(tmp_path / "clip.mp4", codec=H264, frames=2)
    result = vdeblur("run", source, tmp_path / "sharp", *FAST)
    assert result.exit_code == ExitStatus.USAGE
    assert "has no suffix and is no folder" in result.output
    assert len(result.output.splitlines()) == 1
    with pytest.raises(UsageError, match="no suffix"):
        api.deblur(source, tmp_path / "sharp", model="identity")
    assert tree(tmp_path) == {"clip.mp4"}


@pytest.mark.parametrize(
    ("output", "options", "names"),
    [
        ("frames/%04d.png", (), {"0001.png", "0002.png", "0003.png"}),
        ("frames/a_%d.tif", (), {"a_1.tif", "a_2.tif", "a_3.tif"}),
        ("frames", ("--pictures",), {"000001.png", "000002.png", "000003.png"}),
    ],
)
def test_pictures_out_of_a_video(vdeblur, tmp_path: Path, output: str, options: tuple, names: set[str]) -> None:
    """D2: a pattern, or --pictures, asks for pictures; each is its frame, as the independent ffmpeg reads it."""
    source = clips.make(tmp_path / "clip.mkv", pix_fmt="bgr0", frames=3)
    result = vdeblur("run", source, tmp_path / output, "-m", "identity", *options)
    assert result.exit_code == 0, result.output
    assert tree(tmp_path / "frames") == names
    for frame, name in zip(clips.rgb(source), sorted(names), strict=True):
        assert (clips.rgb(tmp_path / "frames" / name)[0] == frame).all()
    again = vdeblur("run", source, tmp_path / output, "-m", "identity", *options, "--skip-existing")
    assert "exists already, skipped" in again.output


def test_a_pattern_of_a_lossy_kind_is_refused(vdeblur, tmp_path: Path) -> None:
    """D2: what a pattern cannot be is said before the work."""
    source = clips.make(tmp_path / "clip.mp4", codec=H264, frames=2)
    result = vdeblur("run", source, tmp_path / "%04d.jpg", *FAST)
    assert result.exit_code == ExitStatus.USAGE
    assert "%04d.png" in result.output
    result = vdeblur("run", source, source, tmp_path / "%04d.png", *FAST)
    assert result.exit_code == ExitStatus.USAGE
    assert "pictures of one video" in result.output


def test_a_folder_of_pictures_becomes_a_folder_of_pictures(vdeblur, tmp_path: Path) -> None:
    """D2: and a video only where OUTPUT is a file."""
    (tmp_path / "in").mkdir()
    clips.make(tmp_path / "in" / "%03d.png", pix_fmt="rgb24", frames=3, codec=("-c:v", "png"))
    for output in ("sharp", "other/"):
        assert vdeblur("run", tmp_path / "in", f"{tmp_path}/{output}", "-m", "identity").exit_code == 0
        assert tree(tmp_path / output.rstrip("/")) == {"001.png", "002.png", "003.png"}


def test_a_dry_run_shows_the_plan_and_creates_nothing(vdeblur, tmp_path: Path) -> None:
    """D3: output, container, encoder, pixel format, quality, frames, estimates, streams; the same in JSON."""
    source = clips.make(tmp_path / "clip.mp4", codec=H264, frames=30, audio=AAC)
    before = tree(tmp_path)
    result = vdeblur("run", source, f"{tmp_path}/new/", "--dry-run", "--crf", "20")
    assert result.exit_code == 0, result.output
    text = result.output
    for words in (
        "new/clip.mp4 (mp4)", "encoder: libx264, yuv420p, crf 20, preset medium", "frames: 30\n", "time: about 0:",
        "size: about ", "; the input has ", "keep: stream 1 (audio, aac)",
    ):  # fmt: skip
        assert words in text, text
    assert tree(tmp_path) == before
    plan = plan_of(vdeblur("run", source, f"{tmp_path}/new/", "--dry-run", "--json", "--pix-fmt", "yuv444p"))
    assert tree(tmp_path) == before
    assert plan["output"] == str(tmp_path / "new" / "clip.mp4")
    assert (plan["container"], plan["encoder"], plan["pixel_format"]) == ("mp4", "libx264", "yuv444p")
    assert (plan["quality"], plan["frames_estimate"], plan["frames_counted"]) == ("crf 16, preset medium", 30, True)
    assert plan["input_bytes"] == source.stat().st_size
    assert plan["seconds_estimate"] > 0
    assert plan["reasons"]["pixel_format"] == "--pix-fmt"


def test_the_expected_size_is_near_the_real_one(vdeblur, tmp_path: Path) -> None:
    """D3: the estimate of a dry run, against the file that the run then writes."""
    source = clips.make(tmp_path / "clip.mp4", codec=H264, size="160x120", frames=150, audio=AAC)
    plan = plan_of(vdeblur("run", source, tmp_path / "out.mp4", *FAST, "--dry-run", "--json"))
    assert vdeblur("run", source, tmp_path / "out.mp4", *FAST).exit_code == 0
    real = (tmp_path / "out.mp4").stat().st_size
    assert 0.6 * real < plan["bytes_estimate"] < 1.6 * real


def test_a_dry_run_of_several_creates_no_folder_and_says_planned(vdeblur, tmp_path: Path) -> None:
    """D3, B: its table said "restored 0", and the folder was made."""
    sources = [clips.make(tmp_path / name, codec=H264, frames=4) for name in ("a.mp4", "b.mp4")]
    result = vdeblur("run", *sources, tmp_path / "out", *FAST, "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.output.count("planned") == 3  # two rows, and the total
    assert "restored" not in result.output
    events = events_of(vdeblur("run", *sources, tmp_path / "out", *FAST, "--dry-run", "--json"))
    batch = next(event for event in events if event["event"] == "batch")
    assert [(row["status"], row["frames"]) for row in batch["files"]] == [("planned", 4)] * 2
    assert tree(tmp_path) == {"a.mp4", "b.mp4"}


def test_a_dry_run_leaves_the_download_to_the_run(vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D3: a plan fetched the model's weights."""
    from vdeblur.models import cache

    def refuse(*_: object) -> None:
        raise AssertionError("a dry run downloads nothing")

    monkeypatch.setattr(cache, "_download", refuse)
    source = clips.make(tmp_path / "clip.mp4", codec=H264, frames=2)
    result = vdeblur("run", source, tmp_path / "out.mp4", "-m", "dstnet", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    plan = plan_of(result)
    assert plan["model"] == "dstnet"
    assert plan["download_megabytes"] is None or plan["download_megabytes"] > 0
    assert tree(tmp_path) - {"cache"} == {"clip.mp4"}


def test_a_dry_run_to_a_pipe_writes_no_video(vdeblur, tmp_path: Path, capfdbinary: pytest.CaptureFixture) -> None:
    """B: --dry-run to a pipe wrote the video."""
    source = clips.make(tmp_path / "clip.mp4", codec=H264, frames=4)
    result = vdeblur("run", source, "-", *FAST, "--dry-run")
    assert result.exit_code == 0, result.output
    assert capfdbinary.readouterr().out == b""


def test_streams_that_are_dropped_have_their_reason(vdeblur, tmp_path: Path) -> None:
    """D3: what is kept, converted, dropped, each with its reason."""
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:00,100\nhello\n")
    source = clips.make(
        tmp_path / "clip.mkv", codec=H264, frames=5, audio=AAC, inputs=("-i", tmp_path / "a.srt"),
        extra=("-map", "0", "-map", "1", "-map", "2", "-c:s", "srt"),
    )  # fmt: skip
    result = vdeblur("run", source, f"{tmp_path}/frames", "--pictures", "-m", "identity", "--dry-run", "--json")
    plan = plan_of(result)
    assert (plan["container"], plan["encoder"], plan["quality"]) == ("pictures", "png", "lossless")
    assert vdeblur("run", source, tmp_path / "p" / "%03d.png", "-m", "identity", "--frames", "1").exit_code == 0
    result = vdeblur("run", tmp_path / "p" / "001.png", tmp_path / "a.jpg", "-m", "identity", "--dry-run", "--json")
    assert plan_of(result)["quality"] == "quantiser scale 2 of 2 to 31"
    assert plan["drop_reasons"] == ["has no place in pictures"] * 2
    plan = plan_of(vdeblur("run", source, tmp_path / "out.mp4", *FAST, "--dry-run", "--json"))
    assert any("becomes mov_text" in stream for stream in plan["convert"])
