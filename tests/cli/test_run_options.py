"""Options of `vdeblur run` that newcomers asked for, through the real command line."""

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import vdeblur as api
from tests import clips
from vdeblur.cli.main import main
from vdeblur.errors import ExitStatus, UsageError
from vdeblur.settings import EncodeOptions, parse_bitrate

H264 = ("-c:v", "libx264", "-preset", "ultrafast")
FAST = ("-m", "identity", "--preset", "ultrafast")


def events_of(result) -> list[dict]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return clips.make(tmp_path / "clip.mp4", codec=H264, frames=25)


# Quality and size


def test_a_bitrate_sets_the_size(vdeblur, tmp_path: Path) -> None:
    """D4: --bitrate; the size follows it, and CRF does not."""
    source = clips.make(tmp_path / "in.mp4", codec=H264, size="320x240", frames=75)
    sizes = []
    for rate in ("200k", "1M"):
        output = tmp_path / f"{rate}.mp4"
        result = vdeblur("run", source, output, "-m", "identity", "--preset", "veryfast", "--bitrate", rate)
        assert result.exit_code == 0, result.output
        sizes.append(output.stat().st_size * 8 / 3)  # bits per second of 3 seconds
    assert 120_000 < sizes[0] < 320_000
    assert 600_000 < sizes[1] < 1_500_000


def test_a_bitrate_of_the_encoder_replaces_crf(vdeblur, tmp_path: Path) -> None:
    """D4: `-e b=` beside the default CRF had no effect."""
    source = clips.make(tmp_path / "in.mp4", codec=H264, size="320x240", frames=75)
    result = vdeblur("run", source, tmp_path / "out.mp4", *FAST, "-e", "b=200k", "--json")
    assert result.exit_code == 0, result.output
    plan = next(event for event in events_of(result) if event["event"] == "plan")
    assert plan["quality"].startswith("200k bit/s")
    assert (tmp_path / "out.mp4").stat().st_size * 8 / 3 < 400_000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--crf", "20", "--bitrate", "8M"), "--crf and --bitrate both choose the quality"),
        (("--crf", "16", "--bitrate", "8M"), "--crf and --bitrate both choose the quality"),
        (("--crf", "20", "-e", "b=8M"), "--crf and -e b both choose the quality"),
        (("--bitrate", "8M", "-e", "b=8M"), "both choose the quality"),
        (("--bitrate", "8M", "--lossless"), "both choose the quality"),
        (("--bitrate", "fast"), "bitrate 'fast' is not between 1k and 2G"),
        (("--bitrate", "8"), "is not between 1k and 2G"),
        (("--crf", "60"), "--crf 60 is out of range for libx264 (use 0 to 51"),
        (("--crf", "60", "-c", "hevc"), "--crf 60 is out of range for libx265 (use 0 to 51"),
        (("--crf", "64", "-c", "av1"), "--crf 64 is out of range for libsvtav1 (use 0 to 63"),
        (("--preset", "8"), "libx264 has no preset '8' (choose from ultrafast, "),
        (("--preset", "p4", "-c", "hevc"), "libx265 has no preset 'p4' (choose from ultrafast, "),
        (("--preset", "20", "-c", "av1"), "libsvtav1 has no preset '20' (choose from ultrafast, "),
    ],
)
def test_quality_is_checked_by_name(vdeblur, clip: Path, tmp_path: Path, options: tuple, words: str) -> None:
    """D4: two ways at once, ranges and presets of other encoders are told before the work."""
    result = vdeblur("run", clip, tmp_path / "out.mp4", "-m", "identity", *options)
    assert result.exit_code == ExitStatus.USAGE, result.output
    assert words in result.output
    assert len(result.output.splitlines()) == 1
    assert not (tmp_path / "out.mp4").exists()


def test_a_bitrate_replaces_the_crf_of_a_file(clip: Path, tmp_path: Path) -> None:
    """D4: the command line wins over a configuration file, whichever of the two it has."""
    config = tmp_path / "config.toml"
    config.write_text("[run]\ncrf = 30\n")
    arguments = ["--config", config, "run", clip, tmp_path / "out.mp4", *FAST, "--json", "--dry-run", "--bitrate", "1M"]
    plan = next(e for e in events_of(CliRunner().invoke(main, [str(a) for a in arguments])) if e["event"] == "plan")
    assert plan["quality"].startswith("1000000 bit/s")


def test_bitrates_in_python() -> None:
    """D4: the same in the API."""
    assert [parse_bitrate(value) for value in ("8M", "800k", 128000, "1.5m")] == [
        8_000_000,
        800_000,
        128_000,
        1_500_000,
    ]
    with pytest.raises(UsageError, match="both choose the quality"):
        EncodeOptions(crf=20, bitrate="8M")


@pytest.mark.parametrize(
    ("name", "found"), [("x264", "h264"), ("H.264", "h264"), ("x265", "hevc"), ("HEVC", "hevc"), ("h265", "hevc")]
)
def test_usual_names_of_codecs(vdeblur, clip: Path, tmp_path: Path, name: str, found: str) -> None:
    """D6: --codec x265 was unknown."""
    result = vdeblur("run", clip, tmp_path / "out.mp4", *FAST, "--frames", "3", "-c", name)
    assert result.exit_code == 0, result.output
    assert clips.facts(tmp_path / "out.mp4").streams == [("video", found)]


# Parts


def test_to_has_the_spelling_of_ffmpeg(vdeblur, clip: Path, tmp_path: Path) -> None:
    """D6: -to."""
    result = vdeblur("run", clip, tmp_path / "out.mp4", *FAST, "-ss", "0.2", "-to", "0.6")
    assert result.exit_code == 0, result.output
    assert len(clips.facts(tmp_path / "out.mp4").seconds) == 10


def test_samples_have_the_length_asked_for(vdeblur, tmp_path: Path) -> None:
    """D6: --sample-seconds."""
    source = clips.make(tmp_path / "in.mp4", codec=H264, frames=100)
    result = vdeblur("run", source, tmp_path / "out.mp4", *FAST, "--sample", "--sample-seconds", "0.4")
    assert result.exit_code == 0, result.output
    assert len(clips.facts(tmp_path / "out.mp4").seconds) == 30
    result = vdeblur("run", source, tmp_path / "no.mp4", *FAST, "--sample", "--sample-seconds", "0")
    assert result.exit_code == ExitStatus.USAGE


# Inputs


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """A folder with videos in folders, and pictures in one."""
    folder = tmp_path / "in"
    (folder / "day 1" / "raw").mkdir(parents=True)
    (folder / "day 2").mkdir()
    (folder / ".hidden").mkdir()
    first = clips.make(folder / "top.mp4", codec=H264, frames=2)
    for name in ("day 1/a.mp4", "day 1/raw/a.mp4", ".hidden/b.mp4"):
        (folder / name).write_bytes(first.read_bytes())
    clips.make(folder / "day 2" / "%03d.png", pix_fmt="rgb24", frames=2, codec=("-c:v", "png"))
    (folder / "day 1" / "cover.png").write_bytes((folder / "day 2" / "001.png").read_bytes())
    return folder


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_folders_within_folders(vdeblur, nested: Path, tmp_path: Path) -> None:
    """D6: --recursive; the output repeats the tree."""
    plain = vdeblur("run", nested.parent / "in" / "day 1" / "raw" / "..", tmp_path / "no", *FAST)
    assert plain.exit_code == ExitStatus.INPUT
    result = vdeblur("run", nested, tmp_path / "out", *FAST, "--recursive")
    assert result.exit_code == 0, result.output
    assert tree(tmp_path / "out") == {"top.mp4", "day 1/a.mp4", "day 1/raw/a.mp4", "day 2/001.png", "day 2/002.png"}
    again = vdeblur("run", nested, nested / "sharp", *FAST, "--recursive")
    assert again.exit_code == 0, again.output
    third = vdeblur("run", nested, nested / "sharp", *FAST, "--recursive", "--skip-existing")
    assert "5 files: 4 skipped" in third.output or "4 files: 4 skipped" in third.output, "outputs are no inputs"


@pytest.mark.parametrize("place", ["list.txt", "-"])
def test_inputs_from_a_list(clip: Path, tmp_path: Path, place: str) -> None:
    """D6: --files-from FILE or -."""
    second = tmp_path / "two words.mp4"
    second.write_bytes(clip.read_bytes())
    names = f"{clip}\n\n{second}\r\n"
    (tmp_path / "list.txt").write_text(names)
    given = "-" if place == "-" else str(tmp_path / place)
    arguments = ["run", "--files-from", given, f"{tmp_path}/out/", *FAST, "--frames", "2"]
    result = CliRunner().invoke(main, arguments, input=names)
    assert result.exit_code == 0, result.output
    assert tree(tmp_path / "out") == {"clip.mp4", "two words.mp4"}


def test_a_list_that_is_missing_or_empty(vdeblur, tmp_path: Path) -> None:
    """D6: one line, the right status."""
    (tmp_path / "empty").write_text("\n\n")
    for name, words in (("none", "cannot be read"), ("empty", "names no file")):
        result = vdeblur("run", "--files-from", tmp_path / name, f"{tmp_path}/out/", *FAST)
        assert result.exit_code == ExitStatus.INPUT
        assert words in result.output


@pytest.mark.parametrize("url", ["https://example.org/a.mp4", "rtsp://camera/1", "http://x/y?z=1"])
def test_urls_are_refused_as_urls(vdeblur, clip: Path, tmp_path: Path, url: str) -> None:
    """D6: a URL was "no such file"."""
    for words in (("run", url, tmp_path / "out.mp4"), ("probe", url), ("compare", url, clip)):
        result = vdeblur(*words)
        assert result.exit_code == ExitStatus.INPUT
        assert "is a URL, and vdeblur reads files" in result.output
    result = vdeblur("run", clip, url, *FAST)
    assert result.exit_code == ExitStatus.OUTPUT
    assert "is a URL, and vdeblur writes files" in result.output
    with pytest.raises(api.InputError, match="is a URL"):
        api.deblur(url, tmp_path / "out.mp4")


# Replacing


def test_no_overwrite_wins_over_a_configured_overwrite(clip: Path, tmp_path: Path) -> None:
    """D6: -n."""
    config, output = tmp_path / "config.toml", tmp_path / "out.mp4"
    config.write_text("[run]\noverwrite = true\n")
    output.write_bytes(b"precious")
    arguments = ["--config", str(config), "run", str(clip), str(output), *FAST, "--frames", "2"]
    result = CliRunner().invoke(main, [*arguments, "-n"])
    assert result.exit_code == ExitStatus.OUTPUT
    assert output.read_bytes() == b"precious"
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert output.read_bytes() != b"precious"


# Reports


def test_quiet_prints_errors_only(vdeblur, clip: Path, tmp_path: Path) -> None:
    """D6: -q."""
    result = vdeblur("run", clip, tmp_path / "out.mp4", *FAST, "-q", "--frames", "2")
    assert (result.exit_code, result.output) == (0, "")
    result = vdeblur("run", clip, tmp_path / "out.mp4", *FAST, "-q")
    assert result.exit_code == ExitStatus.OUTPUT
    assert result.output.startswith("vdeblur: ")


def test_verbose_prints_decisions_with_reasons(vdeblur, clip: Path, tmp_path: Path) -> None:
    """D6: -v."""
    result = vdeblur("run", clip, tmp_path / "out.mp4", *FAST, "-v", "-d", "cpu", "--segment", "0.5")
    assert result.exit_code == 0, result.output
    for words in (
        "device cpu: as named", "encoder libx264: the input is h264", "pixel format yuv420p: the input's",
        "segments 2: 0.5 s each", "segment 0: frames 0 to ", "container mp4: by the output's suffix",
    ):  # fmt: skip
        assert words in result.output, result.output


def test_help_is_grouped(vdeblur) -> None:
    """D6: the options of run in groups, each once."""
    text = vdeblur("run", "--help").output
    for title in ("Inputs and outputs:", "Part of the video:", "Restoration:", "Encoding:", "Work:", "Reports:"):
        assert f"\n{title}\n" in text
    named = [
        line.split()[0] for line in text.partition("Inputs and outputs:")[2].splitlines() if line.startswith("  -")
    ]
    assert len(named) == len(set(named))
    others = text.partition("\nOthers:\n")[2].split("\n\n")[0]
    assert [line.split()[0] for line in others.splitlines() if line.startswith("  -")] == ["-h,"]


@pytest.mark.parametrize("command", ["train", "synth", "bench"])
def test_help_of_other_long_commands_is_grouped(vdeblur, command: str) -> None:
    """D6: no option is left over but --help."""
    text = vdeblur(command, "--help").output
    others = text.partition("\nOthers:\n")[2].split("\n\n")[0]
    assert [line.split()[0] for line in others.splitlines() if line.startswith("  -")] == ["-h,"]


# Several files


def test_files_are_counted_and_summed(vdeblur, clip: Path, tmp_path: Path) -> None:
    """D6: "file 2 of 3", a total, and a status for each file."""
    others = [tmp_path / "b.mp4", tmp_path / "c.mp4"]
    others[0].write_bytes(b"no video")
    others[1].write_bytes(clip.read_bytes())
    arguments = ("run", clip, *others, f"{tmp_path}/out/", *FAST, "--frames", "3")
    result = vdeblur(*arguments)
    assert result.exit_code == ExitStatus.BATCH
    assert f"file 2 of 3: {others[0]}" in result.output
    assert "3 files: 2 restored, 1 failed; 6 frames in 0:" in result.output
    events = events_of(vdeblur(*arguments, "--skip-existing", "--json"))
    batch = next(event for event in events if event["event"] == "batch")
    assert [row["status"] for row in batch["files"]] == ["skipped", "failed", "skipped"]
    assert (batch["total"]["files"], batch["total"]["skipped"], batch["total"]["failed"]) == (3, 2, 1)
    assert [event["number"] for event in events if event["event"] == "file"] == [1, 2, 3]


def test_the_same_bad_file_fails_the_batch_again(vdeblur, clip: Path, tmp_path: Path) -> None:
    """D6: with --skip-existing, when one bad file of several remains, the exit code was 3, not 8."""
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    arguments = ("run", clip, bad, f"{tmp_path}/out/", *FAST, "--frames", "2", "--skip-existing")
    for _ in range(2):
        result = vdeblur(*arguments)
        assert result.exit_code == ExitStatus.BATCH, result.output


def test_a_log_has_a_line_for_each_file(vdeblur, clip: Path, tmp_path: Path) -> None:
    """D6: --log; settings, model and digest of its weights, frames, warnings, seconds."""
    bad, log = tmp_path / "=bad.mp4", tmp_path / "log.csv"
    bad.write_bytes(b"no video")
    arguments = ("run", clip, bad, f"{tmp_path}/out/", "--frames", "2", "--log", log, "--strength", "0.5")
    assert vdeblur(*arguments).exit_code == ExitStatus.BATCH
    with log.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["restored", "failed"]
    assert (rows[0]["model"], rows[0]["frames"]) == ("lite", "2")
    assert len(rows[0]["weights_sha256"]) == 64
    assert "strength=0.5" in rows[0]["settings"]
    assert float(rows[0]["seconds"]) > 0
    assert "not a video" in rows[1]["reason"] or "cannot be read" in rows[1]["reason"]
    assert vdeblur("run", clip, tmp_path / "one.mp4", *FAST, "--frames", "2", "--log", log).exit_code == 0
    with log.open(newline="", encoding="utf-8") as file:
        assert len(list(csv.reader(file))) == 4
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    result = vdeblur("run", clip, tmp_path / "two.mp4", *FAST, "--log", tmp_path / "other.csv")
    assert result.exit_code == ExitStatus.OUTPUT
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"


# Frames


def test_frames_are_counted_not_believed(vdeblur, tmp_path: Path) -> None:
    """D5: an AVI's header said 1234 frames where there were 30, and progress and plan believed it."""
    source = clips.make(tmp_path / "in.avi", codec=("-c:v", "mjpeg"), pix_fmt="yuvj420p", frames=30)
    data = bytearray(source.read_bytes())
    for place, name in ((16, b"avih"), (32, b"strh")):  # dwTotalFrames, dwLength
        at = data.index(name) + 8 + place
        assert int.from_bytes(data[at : at + 4], "little") == 30
        data[at : at + 4] = (1234).to_bytes(4, "little")
    source.write_bytes(data)
    result = vdeblur("run", source, tmp_path / "out.mkv", *FAST, "--json")
    events = events_of(result)
    for event in events:
        if "frames_estimate" in event:
            assert event["frames_estimate"] == 30, event
    assert next(event for event in events if event["event"] == "file_done")["frames"] == 30
    result = vdeblur("run", source, tmp_path / "sample.mkv", *FAST, "--sample", "--sample-seconds", "0.24", "--json")
    assert next(event for event in events_of(result) if event["event"] == "sample")["frames"] == 18
    part = events_of(vdeblur("run", source, tmp_path / "part.mkv", *FAST, "--json", "-ss", "0.4", "-t", "0.4"))
    assert next(event for event in part if event["event"] == "plan")["frames_estimate"] == 10
