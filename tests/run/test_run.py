"""`vdeblur run` on real files, looked at afterwards with an independent ffmpeg."""

import json
import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy
import pytest

from tests import clips
from tests.conftest import ROOT
from vdeblur.errors import ExitStatus

H264 = ("-c:v", "libx264", "-preset", "ultrafast")


@pytest.mark.parametrize(
    ("pix_fmt", "size"),
    [
        ("yuv420p", "64x48"),
        ("yuv420p", "65x49"),
        ("yuv422p10le", "64x48"),
        ("yuv422p10le", "63x47"),
        ("yuv444p", "64x48"),
        ("yuv444p", "33x31"),
        ("yuv420p12le", "64x48"),
        ("yuva420p", "64x48"),
        ("gray", "64x48"),
        ("gbrp", "64x48"),
        ("gbrp", "61x47"),
        ("gbrp10le", "64x48"),
        ("yuv411p", "61x47"),
        ("yuv420p", "16x16"),
    ],
)
def test_identity_lossless_is_exact(vdeblur, tmp_path: Path, pix_fmt: str, size: str) -> None:
    # FFV1 has no 8-bit planar RGB; its bgr0 holds the same samples and is unpacked for gbrp.
    source = clips.make(tmp_path / "in.mkv", size=size, pix_fmt="bgr0" if pix_fmt == "gbrp" else pix_fmt)
    output = tmp_path / "out.mkv"
    result = vdeblur("run", source, output, "-m", "identity", "--lossless")
    assert result.exit_code == 0, result.output
    assert clips.frame_hashes(output) == clips.frame_hashes(source)
    before, after = clips.facts(source), clips.facts(output)
    assert "x".join(map(str, after.size)) == size
    assert after.seconds == before.seconds
    assert after.pix_fmt.replace("yuvj", "yuv") == before.pix_fmt.replace("yuvj", "yuv")


def test_a_single_pixel(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", extra=("-vf", "scale=1:1"))
    for model in ("identity", "lite"):
        output = tmp_path / f"{model}.mkv"
        assert vdeblur("run", source, output, "-m", model, "--lossless").exit_code == 0
        assert clips.facts(output).size == (1, 1)
    assert clips.frame_hashes(tmp_path / "identity.mkv") == clips.frame_hashes(source)


def test_strength_0_is_exact_with_a_real_network(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv")
    output = tmp_path / "out.mkv"
    assert vdeblur("run", source, output, "--strength", "0", "--lossless").exit_code == 0
    assert clips.frame_hashes(output) == clips.frame_hashes(source)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".ts"])
def test_sound_is_copied_and_times_are_kept(vdeblur, tmp_path: Path, suffix: str) -> None:
    source = clips.make(tmp_path / f"in{suffix}", frames=50, codec=H264, audio=("-c:a", "aac"))
    output = tmp_path / f"out{suffix}"
    assert vdeblur("run", source, output, "-m", "identity").exit_code == 0
    assert clips.packet_hashes(output, "a:0") == clips.packet_hashes(source, "a:0")
    before, after = clips.facts(source), clips.facts(output)
    assert after.streams == before.streams
    assert after.seconds == pytest.approx(before.seconds, abs=5e-4 if suffix == ".mkv" else 1e-9)
    with av.open(str(source)) as a, av.open(str(output)) as b:
        assert a.streams.audio[0].start_time == b.streams.audio[0].start_time


def test_uneven_times_are_kept_exactly(vdeblur, tmp_path: Path) -> None:
    source = clips.make(
        tmp_path / "in.mp4", frames=30, codec=(*H264, "-bf", "2", "-preset", "medium"),
        extra=("-vf", "setpts=N*1000+mod(N*N\\,7)*90", "-fps_mode", "vfr", "-enc_time_base", "1/30000"),
    )  # fmt: skip
    output = tmp_path / "out.mp4"
    assert vdeblur("run", source, output, "-m", "identity").exit_code == 0
    before, after = clips.facts(source).seconds, clips.facts(output).seconds
    assert len(set(numpy.diff(before).round(6))) > 2, "the clip is meant to have uneven times"
    assert after == before


def test_other_streams_tags_and_chapters_are_kept(vdeblur, tmp_path: Path) -> None:
    (tmp_path / "subs.srt").write_text("1\n00:00:00,100 --> 00:00:00,900\nhello\n")
    (tmp_path / "meta.txt").write_text(
        ";FFMETADATA1\ntitle=A walk\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=500\ntitle=One\n"
    )
    source = clips.make(
        tmp_path / "in.mkv", frames=25, codec=H264, audio=("-c:a", "flac"),
        inputs=("-i", tmp_path / "subs.srt", "-i", tmp_path / "meta.txt"),
        extra=(*("-map", "0", "-map", "1", "-map", "2", "-map_metadata", "3", "-c:s", "srt"),
               *("-metadata:s:a:0", "language=deu", "-disposition:a:0", "default")),
    )  # fmt: skip
    output = tmp_path / "out.mkv"
    assert vdeblur("run", source, output, "-m", "identity").exit_code == 0
    with av.open(str(output)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio", "subtitle"]
        assert container.metadata["title"] == "A walk"
        assert container.streams.audio[0].language == "deu"
        assert [chapter["metadata"]["title"] for chapter in container.chapters()] == ["One"]
    assert clips.packet_hashes(output, "s:0") == clips.packet_hashes(source, "s:0")


def test_what_the_container_cannot_hold_is_named(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", codec=H264, audio=("-c:a", "libvorbis"))
    result = vdeblur("run", source, tmp_path / "out.mov", "-m", "identity")
    assert result.exit_code == 0
    assert "stream 1 (audio, vorbis) cannot be held by .mov" in result.output
    assert clips.facts(tmp_path / "out.mov").streams == [("video", "h264")]


def test_rotation_aspect_and_colour_tags_are_kept(vdeblur, tmp_path: Path) -> None:
    tags = "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=pc,setsar=4/3"
    plain = clips.make(tmp_path / "plain.mp4", codec=H264, extra=("-vf", tags))
    source = tmp_path / "in.mp4"
    clips.ffmpeg("-display_rotation", "90", "-i", plain, "-c", "copy", source)
    output = tmp_path / "out.mp4"
    assert vdeblur("run", source, output, "-m", "identity").exit_code == 0
    for path in (source, output):
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            video = container.streams.video[0]
            assert abs(frame.rotation) == 90
            assert video.sample_aspect_ratio == Fraction(4, 3)
            assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (1, 2, 1, 1)
            kept = frame.rotation
    with av.open(str(source)) as container:
        assert next(container.decode(video=0)).rotation == kept


def test_untagged_colour_stays_untagged(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mp4", codec=H264)
    output = tmp_path / "out.mp4"
    assert vdeblur("run", source, output, "-m", "identity").exit_code == 0
    with av.open(str(output)) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_primaries, frame.color_trc) == (2, 2, 2)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-ss", "0.4", "-t", "0.4"], range(10, 20)),
        (["-ss", "00:00:01.2"], range(30, 50)),
        (["--to", "200ms"], range(5)),
        (["--frames", "7"], range(7)),
        (["-ss", "1", "--frames", "3"], range(25, 28)),
    ],
)
def test_a_part_is_the_right_part(vdeblur, tmp_path: Path, options: list[str], expected: range) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=50, audio=("-c:a", "flac"))
    output = tmp_path / "out.mkv"
    assert vdeblur("run", source, output, "-m", "identity", "--lossless", *options).exit_code == 0
    hashes = clips.frame_hashes(source)
    assert clips.frame_hashes(output) == [hashes[index] for index in expected]
    assert clips.facts(output).seconds[0] == pytest.approx(0, abs=5e-4)
    with av.open(str(output)) as container:
        sound = [packet.pts * packet.time_base for packet in container.demux(audio=0) if packet.size]
    assert 0 <= sound[0] < 0.11  # FLAC's packets last 0.1 s
    assert sound[-1] < len(expected) / 25


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".h264"])
def test_a_part_between_keyframes(vdeblur, tmp_path: Path, suffix: str) -> None:
    source = clips.make(
        tmp_path / f"in{suffix}", frames=100, codec=(*H264, "-preset", "medium", "-g", "50", "-bf", "2")
    )
    output = tmp_path / "out.mkv"
    result = vdeblur("run", source, output, "-m", "identity", "--lossless", "-ss", "1", "--to", "2.4")
    assert result.exit_code == 0, result.output
    assert clips.frame_hashes(output) == clips.frame_hashes(source)[25:60]


def test_a_number_of_frames_ends_the_sound_too(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=100, audio=("-c:a", "flac"))
    output = tmp_path / "out.mkv"
    assert vdeblur("run", source, output, "-m", "identity", "--frames", "3", "-t", "3").exit_code == 0
    with av.open(str(output)) as container:
        assert all(packet.pts * packet.time_base < 0.12 for packet in container.demux(audio=0) if packet.size)


def test_a_part_of_a_folder(vdeblur, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    clips.ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48", "-frames:v", 20, folder / "f%02d.png")
    for suffix in (".mp4", ".mkv"):
        output = tmp_path / f"out{suffix}"
        options = ("-m", "identity", "-ss", "0.3", "--to", "0.6", "-c", "ffv1" if suffix == ".mkv" else "h264")
        assert vdeblur("run", folder, output, *options).exit_code == 0
        assert len(clips.facts(output).seconds) == 7  # 0.32 to 0.56
    assert vdeblur("run", folder, tmp_path / "part", "-m", "identity", "--frames", "2").exit_code == 0
    assert [path.name for path in sorted((tmp_path / "part").iterdir())] == ["f01.png", "f02.png"]


def test_a_colon_in_a_name(vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clips.make(tmp_path / "10:30.mp4", codec=H264, frames=2)
    assert vdeblur("run", "10:30.mp4", "11:30.mp4", "-m", "identity").exit_code == 0
    assert len(clips.facts(tmp_path / "11:30.mp4").seconds) == 2


def test_two_joined_files_with_sound(vdeblur, tmp_path: Path) -> None:
    """Times start again in the middle; the frames are shifted, sound that goes back in time is left out and named."""
    part = clips.make(tmp_path / "part.ts", frames=50, codec=H264, audio=("-c:a", "aac"))
    source = tmp_path / "in.ts"
    source.write_bytes(part.read_bytes() * 2)
    output = tmp_path / "out.mp4"
    result = vdeblur("run", source, output, "-m", "identity")
    assert result.exit_code == 0, result.output
    assert "frame" in result.output
    assert len(clips.facts(output).seconds) == 100


def test_pictures_in_and_out(vdeblur, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    clips.ffmpeg("-f", "lavfi", "-i", "testsrc2=size=50x38", "-frames:v", 12, folder / "f%d.png")
    output = tmp_path / "sharp.d"  # the slash says that it is a folder
    result = vdeblur("run", folder, str(output) + "/", "-m", "identity")
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in folder.iterdir())
    assert sorted(path.name for path in output.iterdir()) == names
    for name in names:
        assert clips.frame_hashes(output / name) == clips.frame_hashes(folder / name)


def test_natural_order_of_pictures(vdeblur, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    clips.ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25", "-frames:v", 12, folder / "f%d.png")
    output = tmp_path / "out.mkv"
    assert vdeblur("run", folder, output, "-m", "identity", "--lossless").exit_code == 0
    expected = [clips.frame_hashes(folder / f"f{index}.png")[0] for index in range(1, 13)]
    decoded = [clips.ffmpeg("-i", output, "-vf", f"select=eq(n\\,{n})", "-pix_fmt", "rgb24", "-f", "framemd5", "-")
               for n in range(12)]  # fmt: skip
    assert [text.splitlines()[-1].split(",")[-1].strip() for text in decoded] == expected


def test_video_to_pictures_and_16_bit_pictures(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", pix_fmt="gbrp16le", frames=3)
    output = tmp_path / "frames"
    assert vdeblur("run", source, output, "--pictures", "-m", "identity").exit_code == 0
    assert [path.name for path in sorted(output.iterdir())] == ["000001.png", "000002.png", "000003.png"]
    back = clips.ffmpeg("-i", output / "%06d.png", "-pix_fmt", "gbrp16le", "-f", "framemd5", "-")
    assert [line.split(",")[-1].strip() for line in back.splitlines() if line[0] != "#"] == clips.frame_hashes(source)


@pytest.mark.parametrize("frames", [1, 2, 3, 17])
def test_every_frame_comes_out(vdeblur, tmp_path: Path, frames: int) -> None:
    source = clips.make(tmp_path / "in.mp4", frames=frames, codec=H264)
    output = tmp_path / "out.mp4"
    result = vdeblur("run", source, output)
    assert result.exit_code == 0, result.output
    assert clips.facts(output).seconds == clips.facts(source).seconds


def test_codec_family_quality_and_encoder_options(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mp4", frames=20, size="128x96", codec=("-c:v", "libx265", "-x265-params",
                                                                              "log-level=none"))  # fmt: skip
    fine, coarse, avc = tmp_path / "fine.mp4", tmp_path / "coarse.mp4", tmp_path / "avc.mp4"
    assert vdeblur("run", source, fine, "-m", "identity").exit_code == 0
    assert vdeblur("run", source, coarse, "-m", "identity", "--crf", "40", "--preset", "fast").exit_code == 0
    assert vdeblur("run", source, avc, "-m", "identity", "-c", "h264", "-e", "g=5").exit_code == 0
    assert clips.facts(fine).streams == [("video", "hevc")]
    assert coarse.stat().st_size < fine.stat().st_size
    assert clips.facts(avc).streams == [("video", "h264")]
    with av.open(str(avc)) as container:
        assert [p.is_keyframe for p in container.demux(video=0) if p.size].count(True) >= 4
    with av.open(str(fine)) as container:
        assert container.streams.video[0].codec_context.codec_tag == "hvc1"


def test_an_encoder_option_that_does_not_exist_is_refused(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mp4", codec=H264)
    result = vdeblur("run", source, tmp_path / "out.mp4", "-m", "identity", "-e", "no_such_thing=1")
    assert result.exit_code == ExitStatus.OUTPUT
    assert "no_such_thing" in result.output
    assert not (tmp_path / "out.mp4").exists()


def test_tiles_change_little(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", size="200x150", frames=6)
    whole, tiled = tmp_path / "whole.mkv", tmp_path / "tiled.mkv"
    assert vdeblur("run", source, whole, "--lossless", "-p", "fp32").exit_code == 0
    options = ("--lossless", "-p", "fp32", "--tile", "128x96", "--tile-overlap", "32")
    assert vdeblur("run", source, tiled, *options).exit_code == 0
    difference = numpy.abs(clips.rgb(whole).astype(int) - clips.rgb(tiled))
    assert difference.max() > 0, "there were tiles"
    assert difference.mean() < 0.3, "tiles differ from the whole by less than a third of a code on average"


# What goes wrong -------------------------------------------------------------------------------------------------


def _one_line(result, status: ExitStatus) -> str:
    assert result.exit_code == status, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("vdeblur: ")]
    assert len(lines) == 1, result.output
    assert "Traceback" not in result.output
    return lines[0]


def test_faulty_inputs(vdeblur, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    assert "no such file" in _one_line(vdeblur("run", tmp_path / "none.mp4", output), ExitStatus.INPUT)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    assert "is empty (0 bytes)" in _one_line(vdeblur("run", empty, output), ExitStatus.INPUT)
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(bytes(numpy.random.default_rng(0).integers(0, 256, 5000, numpy.uint8)))
    assert "cannot be read as video" in _one_line(vdeblur("run", noise, output), ExitStatus.INPUT)
    tone = tmp_path / "tone.m4a"
    clips.ffmpeg("-f", "lavfi", "-i", "sine=440:duration=0.2", tone)
    assert "has no video stream (only audio)" in _one_line(vdeblur("run", tone, output), ExitStatus.INPUT)
    cover = tmp_path / "cover.mp3"
    clips.ffmpeg("-f", "lavfi", "-i", "sine=440:duration=0.2", "-f", "lavfi", "-i", "color=red:size=16x16:d=0.04",
                 "-map", 0, "-map", 1, "-c:v", "png", "-disposition:v:0", "attached_pic", cover)  # fmt: skip
    assert "has no video stream" in _one_line(vdeblur("run", cover, output), ExitStatus.INPUT)
    bare = tmp_path / "bare"
    bare.mkdir()
    assert "no pictures in this folder" in _one_line(vdeblur("run", bare, output), ExitStatus.INPUT)
    whole = clips.make(tmp_path / "whole.mp4", codec=H264, frames=50)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[:2000])
    assert "incomplete" in _one_line(vdeblur("run", cut, output), ExitStatus.INPUT)
    assert "no frame in the part" in _one_line(vdeblur("run", whole, output, "-ss", "99"), ExitStatus.INPUT)
    left = {"empty.mp4", "noise.mp4", "tone.m4a", "cover.mp3", "bare", "whole.mp4", "cut.mp4"}
    assert {path.name for path in tmp_path.iterdir()} == left, "nothing was written"


def test_faulty_outputs(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mp4", codec=H264)
    before = source.read_bytes()
    there = tmp_path / "there.mp4"
    there.write_bytes(b"precious")
    assert "exists already" in _one_line(vdeblur("run", source, there, "-m", "identity"), ExitStatus.OUTPUT)
    assert there.read_bytes() == b"precious"
    assert vdeblur("run", source, there, "-m", "identity", "-y").exit_code == 0
    assert len(clips.facts(there).seconds) == 10
    assert "is the input itself" in _one_line(vdeblur("run", source, source, "-y"), ExitStatus.OUTPUT)
    link = tmp_path / "link.mp4"
    link.symlink_to(source)
    assert "is the input itself" in _one_line(vdeblur("run", source, link, "-y"), ExitStatus.OUTPUT)
    nowhere = tmp_path / "nowhere" / "out.mp4"
    assert "does not exist" in _one_line(vdeblur("run", source, nowhere), ExitStatus.OUTPUT)
    assert "cannot be written as .xyz" in _one_line(vdeblur("run", source, tmp_path / "out.xyz"), ExitStatus.OUTPUT)
    mp4 = tmp_path / "out.mp4"
    assert "Matroska" in _one_line(vdeblur("run", source, mp4, "--lossless"), ExitStatus.OUTPUT)
    assert "no encoder 'nosuch'" in _one_line(vdeblur("run", source, mp4, "-c", "nosuch"), ExitStatus.OUTPUT)
    assert "does not take" in _one_line(vdeblur("run", source, mp4, "--pix-fmt", "xyz12"), ExitStatus.OUTPUT)
    odd = clips.make(tmp_path / "odd.mkv", size="65x49")
    assert "cannot write 65x49" in _one_line(vdeblur("run", odd, mp4), ExitStatus.OUTPUT)
    assert source.read_bytes() == before
    assert not list(tmp_path.glob(".vdeblur-*"))


def test_faulty_models_and_devices(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mp4", codec=H264)
    output = tmp_path / "out.mp4"
    line = _one_line(vdeblur("run", source, output, "-m", "litte"), ExitStatus.MODEL)
    assert "unknown model 'litte'" in line
    assert "lite" in line
    assert "no device 'cuda:99'" in _one_line(vdeblur("run", source, output, "-d", "cuda:99"), ExitStatus.DEVICE)
    assert "unknown device" in _one_line(vdeblur("run", source, output, "-d", "gpu"), ExitStatus.DEVICE)
    assert "unknown tile" in _one_line(vdeblur("run", source, output, "--tile", "big"), ExitStatus.USAGE)
    assert "too small" in _one_line(vdeblur("run", source, output, "--tile", "40"), ExitStatus.USAGE)
    wide = ("--tile", "1024", "--tile-overlap", "600")
    assert "too small" in _one_line(vdeblur("run", source, output, *wide), ExitStatus.USAGE)
    for option in ("--segment", "--crf"):
        assert "not a finite number" in _one_line(vdeblur("run", source, output, option, "inf"), ExitStatus.USAGE)
    assert vdeblur("run", source, output, "-ss", "x").exit_code == ExitStatus.USAGE
    assert vdeblur("run", source, output, "-t", "1", "--to", "2").exit_code == ExitStatus.USAGE
    assert vdeblur("run", source).exit_code == ExitStatus.USAGE
    assert not output.exists()
    assert not list(tmp_path.glob(".vdeblur-*"))


def test_a_damaged_stream_gives_what_it_has(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.ts", frames=50, size="128x96", codec=(*H264, "-g", "10"))
    data = bytearray(source.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = os.urandom(400)
    source.write_bytes(data)
    result = vdeblur("run", source, tmp_path / "out.ts", "-m", "identity")
    assert result.exit_code == 0, result.output
    assert len(clips.facts(tmp_path / "out.ts").seconds) >= 40


def test_a_change_of_size_is_refused(vdeblur, tmp_path: Path) -> None:
    a = clips.make(tmp_path / "a.ts", codec=H264)
    b = clips.make(tmp_path / "b.ts", codec=H264, size="80x48")
    both = tmp_path / "both.ts"
    both.write_bytes(a.read_bytes() + b.read_bytes())
    line = _one_line(vdeblur("run", both, tmp_path / "out.ts", "-m", "identity"), ExitStatus.INPUT)
    assert "size changes from 64x48 to 80x48" in line
    assert not (tmp_path / "out.ts").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: int, status: int) -> None:
    source = clips.make(tmp_path / "in.mp4", frames=300, codec=H264)
    told = [sys.executable, "-m", "tests.signalled", str(int(number)), "progress", "5"]
    command = [*told, "run", source, tmp_path / "out.mp4", "-m", "identity", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert done.returncode == status
    assert json.loads(done.stdout.splitlines()[-1]) | {"seconds": 0} == {
        "v": 1, "event": "done", "exit": status, "files_ok": 0, "files_failed": 1, "seconds": 0
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir() if not path.is_dir()] == ["in.mp4"]
    assert not list(tmp_path.rglob("*.draft")), "what was finished may be kept, half a segment is not"


def test_events(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", codec=H264, audio=("-c:a", "libvorbis"))
    result = vdeblur("run", source, tmp_path / "out.mov", "-m", "identity", "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(event["v"] == 1 for event in events)
    kinds = [event["event"] for event in events]
    assert list(dict.fromkeys(kinds)) == [
        "start",
        "probe",
        "warning",
        "plan",
        "progress",
        "segment",
        "file_done",
        "done",
    ]
    by_kind = {event["event"]: event for event in events}
    assert by_kind["warning"]["code"] == "W_STREAM_DROPPED"
    assert (by_kind["plan"]["keep"], by_kind["plan"]["drop"]) == ([], ["stream 1 (audio, vorbis)"])
    assert (by_kind["probe"]["width"], by_kind["probe"]["height"]) == (64, 48)
    assert by_kind["file_done"]["frames"] == 10
    assert by_kind["done"]["exit"] == 0
    failed = vdeblur("run", tmp_path / "none.mp4", tmp_path / "x.mp4", "--json")
    last_two = [json.loads(line) for line in failed.stdout.splitlines()][-2:]
    assert [event["event"] for event in last_two] == ["error", "done"]
    assert last_two[0]["exit"] == last_two[1]["exit"] == failed.exit_code == 3


def test_options_from_file_and_environment(vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = clips.make(tmp_path / "in.mkv")
    config = tmp_path / "settings.toml"
    config.write_text('[run]\nmodel = "identity"\nlossless = true\nframes = 4\n')
    assert vdeblur("--config", config, "run", source, tmp_path / "a.mkv").exit_code == 0
    assert len(clips.facts(tmp_path / "a.mkv").seconds) == 4
    monkeypatch.setenv("VDEBLUR_RUN_FRAMES", "3")
    assert vdeblur("--config", config, "run", source, tmp_path / "b.mkv").exit_code == 0
    assert len(clips.facts(tmp_path / "b.mkv").seconds) == 3
    assert vdeblur("--config", config, "run", source, tmp_path / "c.mkv", "--frames", "2").exit_code == 0
    assert len(clips.facts(tmp_path / "c.mkv").seconds) == 2
    monkeypatch.setenv("VDEBLUR_RUN_JSON", "1")
    assert '"event": "done"' in vdeblur("--config", config, "run", source, tmp_path / "d.mkv").stdout
    config.write_text("[run]\nmodle = 'identity'\n")
    result = vdeblur("--config", config, "run", source, tmp_path / "e.mkv")
    assert result.exit_code == ExitStatus.USAGE
    assert "has no option 'modle'" in result.output


def test_names_of_all_kinds(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mp4", codec=H264, frames=2)
    for name in ("größe 'quoted' \"x\".mp4", "100%d_%s.mp4", "a" * 251 + ".mp4", "-dash.mp4"):
        other = tmp_path / "in" / name
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(source.read_bytes())
        result = vdeblur("run", "-m", "identity", "--", other, tmp_path / name)
        assert result.exit_code == 0, result.output
        assert len(clips.facts(tmp_path / name).seconds) == 2
