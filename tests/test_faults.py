"""Faulty inputs, outputs, machines and users, numbered as in the project's list of forty faults.

A test named `test_NN_...` covers fault NN; fault_list.py lists these faults and all that were found later, with the
tests of each in this and other files.
Two are simulated: a GPU that is busy, broken or lost (36), and three hours of video (40), of which
benchmarks/long_run.py runs more than a test has time for.
"""

import ast
import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy
import pytest

from tests import clips
from tests.conftest import ROOT
from tests.fault_list import FAILED, FAULTS, FORESEEN, PLACES
from vdeblur.errors import ExitStatus, InterruptedRunError
from vdeblur.run import pipeline, store
from vdeblur.settings import Cut, EncodeOptions, Settings
from vdeblur.source.video import open_source

H264 = ("-c:v", "libx264", "-preset", "ultrafast")
HEVC = ("-c:v", "libx265", "-x265-params", "log-level=none")
HDR10 = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50):max-cll=1000,400"


@pytest.fixture
def events(vdeblur) -> Callable[..., list[dict]]:
    """Return a function that runs with -m identity, checks the exit status and returns the events."""

    def call(*arguments: object, status: int = 0) -> list[dict]:
        result = vdeblur("run", *arguments, "-m", "identity", "--json")
        assert result.exit_code == status, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]

    return call


def _warnings(events: list[dict]) -> dict[str, str]:
    return {event["code"]: event["message"] for event in events if event["event"] == "warning"}


def _error(events: list[dict]) -> str:
    return next(f"{event['message']} ({event['hint']})" for event in events if event["event"] == "error")


def _one_line(result, status: int) -> str:
    """Check the exit status and return the line of the error, which has a hint and no traceback."""
    lines = [line for line in result.output.splitlines() if line.startswith("vdeblur: ")]
    assert (result.exit_code, len(lines)) == (status, 1), result.output
    assert "Traceback" not in result.output
    assert re.search(r"\(.+\)$", lines[0]), f"there is no hint: {lines[0]}"
    return lines[0]


def test_every_fault_has_its_test() -> None:
    """The numbers have no gap, every place of the lists is covered, and each test that is named is collected."""
    assert [fault.number for fault in FAULTS] == list(range(1, len(FAULTS) + 1))
    assert {place for fault in FAULTS for place in fault.found.split()} == PLACES
    assert FAILED.keys() <= PLACES
    collected: dict[str, set[str]] = {}
    for fault in FAULTS:
        assert fault.tests, fault
        assert bool(fault.found) == (fault.number > FORESEEN) == bool(fault.mended), fault
        for node in fault.tests:
            file, _, name = node.partition("::")
            if file not in collected:
                tree = ast.parse((ROOT / "tests" / file).read_text())
                collected[file] = {part.name for part in tree.body if isinstance(part, ast.FunctionDef)}
            assert name in collected[file], node
    named = {name for fault in FAULTS for node in fault.tests for name in [node.rpartition("::")[2]]}
    here = {name for name in globals() if re.match(r"test_\d\d_", name)}
    assert here <= named, "a numbered test of this file that the list does not name"


def test_02_what_a_file_is_does_not_depend_on_its_name(vdeblur, tmp_path: Path) -> None:
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(bytes(numpy.random.default_rng(0).integers(0, 256, 5000, numpy.uint8)))
    assert "cannot be read as video" in _one_line(vdeblur("run", noise, tmp_path / "x.mkv"), ExitStatus.INPUT)
    source = clips.make(tmp_path / "in.mp4", frames=3, codec=H264)
    for name in ("in.avi", "in.txt", "in"):
        wrong = tmp_path / name
        wrong.write_bytes(source.read_bytes())
        assert vdeblur("run", wrong, tmp_path / f"of_{name}.mkv", "-m", "identity").exit_code == 0
        assert len(clips.facts(tmp_path / f"of_{name}.mkv").seconds) == 3


def test_03_a_folder_without_videos(vdeblur, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    line = _one_line(vdeblur("run", tmp_path / "notes", tmp_path / "out.mp4"), ExitStatus.INPUT)
    assert "no pictures in this folder, and no videos" in line


def test_05_a_file_cut_in_its_middle(events, tmp_path: Path) -> None:
    whole = clips.make(tmp_path / "whole.mkv", frames=50, codec=H264, audio=("-c:a", "aac"))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    assert "ends after" in _warnings(events(cut, tmp_path / "out.mkv"))["W_INPUT_TRUNCATED"]
    with av.open(str(cut)) as a, av.open(str(tmp_path / "out.mkv")) as b:
        stored = sum(bool(packet.size) for packet in a.demux(video=0))
        assert 10 < stored < 45
        assert sum(bool(packet.size) for packet in b.demux(video=0)) == stored
    assert _warnings(events(whole, tmp_path / "whole_out.mkv")) == {}
    assert _warnings(events(cut, tmp_path / "part.mkv", "--to", "0.4")) == {}


@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
def test_06_damaged_packets(events, tmp_path: Path, suffix: str) -> None:
    """All that decodes is restored, the damage is counted, and the sound keeps its times."""
    source = clips.make(tmp_path / f"in{suffix}", frames=50, size="128x96", codec=(*H264, "-g", "10"),
                        audio=("-c:a", "aac"))  # fmt: skip
    data = bytearray(source.read_bytes())
    if suffix == ".ts":
        for position in range(len(data) // 188 // 2 * 188, len(data) // 188 // 2 * 188 + 6 * 188, 188):
            data[position + 1] |= 0x80  # the receiver's mark of a transport error: ISO/IEC 13818-1 Sec. 2.4.3.3
    else:
        with av.open(str(source)) as container:
            packets = [(p.pos or 0, p.size) for p in container.demux(video=0) if p.size]
        for position, size in packets[22:25]:
            data[position + 20 : position + size - 2] = bytes(size - 22)
    source.write_bytes(data)
    output = tmp_path / f"out{suffix}"
    assert "damaged" in _warnings(events(source, output))["W_INPUT_DAMAGED"]
    with av.open(str(source)) as a, av.open(str(output)) as b:
        times = [[float(p.pts * p.time_base) for p in c.demux(audio=0) if p.size] for c in (a, b)]
    assert times[0] == pytest.approx(times[1], abs=1e-3)
    assert len(clips.facts(output).seconds) >= 40


def test_07_sound_or_a_cover_only(events, tmp_path: Path) -> None:
    tone, cover = tmp_path / "tone.m4a", tmp_path / "cover.mp3"
    sine = ("-f", "lavfi", "-i", "sine=440:duration=0.2")
    clips.ffmpeg(*sine, tone)
    clips.ffmpeg(*sine, "-f", "lavfi", "-i", "color=red:size=16x16:d=0.04", "-map", 0, "-map", 1,
                 "-c:v", "png", "-disposition:v:0", "attached_pic", cover)  # fmt: skip
    for path in (tone, cover):
        assert "has no video stream" in _error(events(path, tmp_path / "out.mkv", status=ExitStatus.INPUT))


def test_08_a_codec_without_a_decoder(events, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=2)
    source.write_bytes(source.read_bytes().replace(b"V_FFV1", b"V_NOPE"))
    error = _error(events(source, tmp_path / "out.mkv", status=ExitStatus.INPUT))
    assert "there is no decoder for its video (none)" in error
    davs = clips.make(tmp_path / "avs.mkv", frames=2, codec=("-c:v", "libxavs2", "-log_level", "0"))
    error = _error(events(davs, tmp_path / "out.mkv", status=ExitStatus.INPUT))
    assert "there is no decoder for its video (avs2)" in error


def test_09_encrypted(events, tmp_path: Path) -> None:
    key = ("-encryption_scheme", "cenc-aes-ctr", "-encryption_key", "00112233445566778899aabbccddeeff",
           "-encryption_kid", "a7e61c373e219033c21091fa607bf3b8")  # fmt: skip
    source = clips.make(tmp_path / "in.mp4", codec=H264, extra=key)
    assert "is encrypted" in _error(events(source, tmp_path / "out.mp4", status=ExitStatus.INPUT))


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_10_few_frames(vdeblur, tmp_path: Path, frames: int) -> None:
    source = clips.make(tmp_path / "in.mp4", frames=frames, codec=H264)
    assert vdeblur("run", source, tmp_path / "out.mp4").exit_code == 0
    assert clips.facts(tmp_path / "out.mp4").seconds == clips.facts(source).seconds


def test_11_odd_sizes(events, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", size="65x49", frames=2)
    error = _error(events(source, tmp_path / "out.mp4", status=ExitStatus.OUTPUT))
    assert "cannot write 65x49" in error
    assert "--pix-fmt yuv444p" in error
    events(source, tmp_path / "full.mp4", "--pix-fmt", "yuv444p")
    assert clips.facts(tmp_path / "full.mp4").size == (65, 49)
    small = clips.make(tmp_path / "small.mp4", size="16x16", frames=2, codec=H264)
    events(small, tmp_path / "small_out.mp4")
    assert clips.facts(tmp_path / "small_out.mp4").size == (16, 16)


@pytest.mark.slow
def test_12_a_frame_of_8k(events, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", size="7680x4320", frames=1)
    told = events(source, tmp_path / "out.mkv", "--lossless")
    assert clips.frame_hashes(tmp_path / "out.mkv") == clips.frame_hashes(source)
    assert next(event["tile"] for event in told if event["event"] == "plan")


@pytest.mark.parametrize("size", ["1x10000", "10000x1"])
def test_12_a_strip(vdeblur, tmp_path: Path, size: str) -> None:
    source = clips.make(
        tmp_path / "in.mp4", size=size, frames=2, pix_fmt="yuv444p", codec=("-c:v", "libx264", "-qp", "0")
    )
    for options in (("-m", "identity"), ("--tile", "auto"), ("--tile", "256x128")):
        output = tmp_path / f"{options[1]}.mp4"
        result = vdeblur("run", source, output, "--crf", "0", *options)
        assert result.exit_code == 0, result.output
        assert clips.facts(output).size == clips.facts(source).size
    assert clips.frame_hashes(tmp_path / "identity.mp4") == clips.frame_hashes(source)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_13_and_14_rotation_and_pixel_shape(events, tmp_path: Path, rotation: int) -> None:
    plain = clips.make(tmp_path / "plain.mp4", codec=H264, frames=2, extra=("-vf", "setsar=8/9"))
    for suffix in (".mp4", ".mkv"):
        source, output = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
        clips.ffmpeg("-display_rotation", rotation, "-i", plain, "-c", "copy", source)
        events(source, output)
        looks = []
        for path in (source, output):
            with av.open(str(path)) as container:
                frame = next(container.decode(video=0))
                looks.append((frame.rotation, container.streams.video[0].sample_aspect_ratio))
        assert looks[0] == looks[1]
        assert looks[0][0] % 360 == rotation
        assert looks[0][1] == Fraction(8, 9)


def test_13_a_mirrored_picture(events, tmp_path: Path) -> None:
    plain = clips.make(tmp_path / "plain.mp4", codec=H264, frames=2)
    source, output = tmp_path / "in.mp4", tmp_path / "out.mp4"
    clips.ffmpeg("-display_rotation", "90", "-display_hflip", "-i", plain, "-c", "copy", source)
    events(source, output)
    matrices = []
    for path in (source, output):
        with av.open(str(path)) as container:
            matrices.append(_matrix(next(container.decode(video=0))))
    assert matrices[0] == matrices[1]


def _matrix(frame: av.VideoFrame) -> bytes:
    kinds: Any = frame.side_data
    return next(bytes(data) for data in kinds if data.type.name == "DISPLAYMATRIX")


@pytest.mark.parametrize(("inside", "out"), [(".mkv", ".mkv"), (".mp4", ".mp4"), (".mp4", ".mov"), (".mp4", ".mkv")])
def test_15_uneven_times(events, tmp_path: Path, inside: str, out: str) -> None:
    uneven = ("-vf", "settb=1/25000,setpts=N*1000+mod(N*N\\,7)*90", "-fps_mode", "vfr", "-enc_time_base", "1/25000")
    source = clips.make(tmp_path / f"in{inside}", codec=(*H264, "-bf", "2"), frames=30, extra=uneven)
    output = tmp_path / f"out{out}"
    told = events(source, output, "--segment", "0.4")
    if inside == ".mp4":  # Matroska does not tell
        assert next(event["vfr"] for event in told if event["event"] == "probe")
    before, after = clips.facts(source).seconds, clips.facts(output).seconds
    assert len(before) == 30
    assert numpy.diff(before).std() > 1e-3, "they are uneven"
    assert after == pytest.approx(before, abs=5e-4 if out == ".mkv" else 1e-9)


def test_16_no_time_stamps(events, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.h264", frames=10, codec=H264)
    assert "no time" in _warnings(events(source, tmp_path / "out.mp4"))["W_TIMESTAMPS"]
    assert clips.facts(tmp_path / "out.mp4").seconds == pytest.approx([index / 25 for index in range(10)])


def test_17_starts_and_b_frames(events, tmp_path: Path) -> None:
    """Video that starts at 2 s, sound that starts earlier, negative decoding times: all offsets stay."""
    video = clips.make(tmp_path / "v.mp4", codec=("-c:v", "libx264", "-bf", "3"), frames=20)
    tone = tmp_path / "a.m4a"
    clips.ffmpeg("-f", "lavfi", "-i", "sine=440:duration=3", "-c:a", "aac", tone)
    for suffix in (".mp4", ".mkv", ".mov"):
        source, output = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
        clips.ffmpeg("-itsoffset", "2", "-i", video, "-itsoffset", "0.5", "-i", tone, "-map", "0:v", "-map", "1:a",
                     "-c", "copy", source)  # fmt: skip
        assert _warnings(events(source, output)) == {}
        before, after = clips.facts(source).seconds, clips.facts(output).seconds
        assert len(before) == 20
        assert after == pytest.approx(before, abs=5e-4 if suffix == ".mkv" else 1e-9)
        starts = []
        for path in (source, output):
            with av.open(str(path)) as container:
                starts.append(next(float(p.pts * p.time_base) for p in container.demux(audio=0) if p.size))
        assert starts[0] == pytest.approx(starts[1], abs=1e-3)


def test_18_two_recordings_in_one_file(events, tmp_path: Path) -> None:
    """Times start anew in the middle: what follows is shifted, sound and pictures by the same time."""
    part = clips.make(tmp_path / "part.ts", frames=50, codec=(*H264, "-bf", "0"), audio=("-c:a", "aac"))
    source = tmp_path / "in.ts"
    source.write_bytes(part.read_bytes() * 2)
    output = tmp_path / "out.mp4"
    assert "jump back" in _warnings(events(source, output))["W_TIMESTAMPS"]
    seconds = clips.facts(output).seconds
    assert len(seconds) == 100
    assert numpy.diff(seconds) == pytest.approx(0.04, abs=0.08)
    assert seconds == sorted(seconds)
    with av.open(str(part)) as a, av.open(str(output)) as b:
        lone = sum(1 for packet in a.demux(audio=0) if packet.size)
        sound = [float(packet.pts * packet.time_base) for packet in b.demux(audio=0) if packet.size]
    assert len(sound) >= 2 * lone - 2, "the second recording's sound is kept"
    assert sound == sorted(sound)
    assert abs((sound[-1] - sound[0]) - (seconds[-1] - seconds[0])) < 0.15


def test_18_a_change_of_size(events, tmp_path: Path) -> None:
    a = clips.make(tmp_path / "a.ts", codec=H264)
    b = clips.make(tmp_path / "b.ts", codec=H264, size="80x48")
    source = tmp_path / "both.ts"
    source.write_bytes(a.read_bytes() + b.read_bytes())
    error = _error(events(source, tmp_path / "out.ts", status=ExitStatus.INPUT))
    assert "size changes from 64x48 to 80x48 at frame 10" in error


@pytest.fixture(scope="module")
def interlaced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten interlaced frames of something that moves."""
    path = tmp_path_factory.mktemp("fields") / "in.mkv"
    codec = ("-c:v", "libx264", "-flags", "+ildct+ilme", "-x264-params", "tff=1", "-preset", "veryfast", "-crf", "5")
    weave = ("-vf", "format=yuv420p,tinterlace=interleave_top")
    clips.ffmpeg("-f", "lavfi", "-i", "testsrc2=size=192x144:rate=50", *weave, "-frames:v", 10, *codec, path)
    return path


def test_19_interlaced_frames_are_deinterlaced(events, interlaced: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mkv"
    assert "deinterlaced" in _warnings(events(interlaced, output, "--lossless"))["W_INTERLACED"]
    assert clips.facts(output).seconds == clips.facts(interlaced).seconds
    assert _flags(output) == [False] * 10
    assert _combing(output) < _combing(interlaced) * 0.8  # 0.71 measured; edges that stand still differ, too
    expected = clips.ffmpeg("-i", interlaced, "-vf", "bwdif=send_frame", "-f", "framemd5", "-")
    hashes = [line.split(",")[-1].strip() for line in expected.splitlines() if line[0] != "#"]
    # The first frame has no predecessor, and FFmpeg's versions make one up differently.
    assert clips.frame_hashes(output)[1:] == hashes[1:]


@pytest.mark.parametrize("codec", ["h264", "mpeg2video", "ffv1"])
def test_19_interlaced_frames_are_kept_as_asked(events, interlaced: Path, tmp_path: Path, codec: str) -> None:
    output = tmp_path / "out.mkv"
    warned = _warnings(events(interlaced, output, "--deinterlace", "off", "-c", codec))
    assert "stays so" in warned["W_INTERLACED"]
    assert _flags(output) == [True] * 10
    assert _combing(output) > _combing(interlaced) * 0.9
    if codec == "ffv1":
        assert clips.frame_hashes(output) == clips.frame_hashes(interlaced)


def test_19_progressive_frames_are_left_alone(events, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=4)
    events(source, tmp_path / "auto.mkv", "--lossless")
    assert clips.frame_hashes(tmp_path / "auto.mkv") == clips.frame_hashes(source)
    events(source, tmp_path / "on.mkv", "--lossless", "--deinterlace", "on")
    assert clips.frame_hashes(tmp_path / "on.mkv") != clips.frame_hashes(source)


def _flags(path: Path) -> list[bool]:
    with av.open(str(path)) as container:
        return [frame.interlaced_frame for frame in container.decode(video=0)]


def _combing(path: Path) -> float:
    """Measure how much lines differ from the mean of their neighbours, which are of the other field."""
    luma = clips.rgb(path)[..., 1].astype(float)
    return float(numpy.abs(luma[:, 1:-1] - (luma[:, :-2] + luma[:, 2:]) / 2).mean())


def test_20_transparency(events, tmp_path: Path) -> None:
    alpha = ("-vf", "format=yuva444p,geq=lum='lum(X,Y)':cb='cb(X,Y)':cr='cr(X,Y)':a='X*4'")
    vp9 = ("-c:v", "libvpx-vp9", "-auto-alt-ref", "0", "-lossless", "1")
    prores = ("-c:v", "prores_ks")
    sources = {
        ".webm": clips.make(tmp_path / "in.webm", pix_fmt="yuva420p", codec=vp9, frames=2, extra=alpha),
        ".mov": clips.make(tmp_path / "in.mov", pix_fmt="yuva444p10le", codec=prores, frames=2, extra=alpha),
    }  # fmt: skip
    for suffix, source in sources.items():
        output = tmp_path / f"out{suffix}"
        warned = _warnings(events(source, output))
        assert "W_ALPHA" not in warned
        assert numpy.abs(_alpha(output) - _alpha(source)).mean() < 1
        assert _alpha(source).std() > 50, "there is something to keep"
        pictures = tmp_path / f"pictures{suffix}"
        pictures.mkdir()
        events(source, f"{pictures}/", "--pictures")
        assert numpy.abs(_alpha(pictures / "000001.png") - _alpha(source)).mean() < 1
        without = tmp_path / f"without{suffix}.mp4"
        assert "transparency" in _warnings(events(source, without, "-c", "h264"))["W_ALPHA"]
        assert clips.rgb(without).mean() > 50, "not black"


def _alpha(path: Path) -> numpy.ndarray:
    """Return the first frame's alpha as the independent ffmpeg decodes it: (H, W), 0 to 255."""
    decoder = ("-c:v", "libvpx-vp9") if path.suffix == ".webm" else ()
    target = path.with_suffix(".gray")
    clips.ffmpeg(*decoder, "-i", path, "-vf", "alphaextract,format=gray", "-frames:v", 1, "-f", "rawvideo", target)
    return numpy.frombuffer(target.read_bytes(), numpy.uint8).reshape(48, 64).astype(float)


@pytest.mark.parametrize(
    ("pix_fmt", "codec", "suffix"),
    [
        ("gray", H264, ".mp4"),
        ("gray10le", H264, ".mp4"),
        ("yuv422p10le", H264, ".mp4"),
        ("yuv444p10le", HEVC, ".mp4"),
        ("yuv420p12le", HEVC, ".mp4"),
        ("gbrp10le", HEVC, ".mp4"),
        ("rgb48le", ("-c:v", "ffv1"), ".mkv"),
    ],
)
def test_21_and_22_depth_and_chroma(events, tmp_path: Path, pix_fmt: str, codec: tuple[str, ...], suffix: str) -> None:
    source = clips.make(tmp_path / f"in{suffix}", pix_fmt=pix_fmt, codec=codec, frames=3)
    assert _warnings(events(source, tmp_path / f"out{suffix}", "--preset", "ultrafast")) == {}
    before, after = clips.facts(source), clips.facts(tmp_path / f"out{suffix}")
    assert (after.pix_fmt, after.streams) == (before.pix_fmt, before.streams)


@pytest.mark.parametrize("tags", ["range=pc", "colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=pc", ""])
def test_23_ranges_and_tags(events, tmp_path: Path, tags: str) -> None:
    codec = ("-c:v", "libx264", "-qp", "0")
    extra = ("-vf", f"setparams={tags}") if tags else ()
    source = clips.make(tmp_path / "in.mp4", codec=codec, frames=3, pix_fmt="yuv420p", extra=extra)
    output = tmp_path / "out.mp4"
    events(source, output, "--crf", "0")
    assert clips.frame_hashes(output) == clips.frame_hashes(source)
    colors = []
    for path in (source, output):
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            tagged = frame.format.name.startswith("yuvj") or frame.color_range
            colors.append((frame.colorspace, frame.color_primaries, frame.color_trc, bool(tagged)))
    assert colors[0] == colors[1]


@pytest.fixture(scope="module")
def hdr10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hdr") / "in.mp4"
    tags = "setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc"
    codec = ("-c:v", "libx265", "-x265-params", f"log-level=none:{HDR10}")
    return clips.make(path, pix_fmt="yuv420p10le", frames=3, codec=codec, extra=("-vf", tags))


@pytest.mark.parametrize(("codec", "suffix"), [("hevc", ".mp4"), ("hevc", ".mkv"), ("av1", ".mp4"), ("av1", ".mkv")])
def test_24_hdr10_is_carried(events, hdr10: Path, tmp_path: Path, codec: str, suffix: str) -> None:
    output = tmp_path / f"out{suffix}"
    options = ("-c", codec, "--preset", "ultrafast", *(("-e", "x265-params=keyint=2") if codec == "hevc" else ()))
    assert _warnings(events(hdr10, output, *options)) == {}
    assert _hdr(output) == _hdr(hdr10)
    told = subprocess.run([clips.FFMPEG, "-i", output, "-vf", "showinfo", "-f", "null", "-"],
                                capture_output=True, text=True, check=True).stderr  # fmt: skip
    assert "MaxCLL=1000, MaxFALL=400" in told
    assert "smpte2084" in told


def test_24_hdr10_is_named_where_it_is_lost(events, hdr10: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    assert "mastering display and content light level" in _warnings(events(hdr10, output, "-c", "h264"))["W_HDR"]
    with av.open(str(output)) as container:
        frame = next(container.decode(video=0))
        assert (frame.color_trc, frame.color_primaries, frame.colorspace) == (16, 9, 9)
    assert "W_HDR" in _warnings(events(hdr10, tmp_path / "out.mkv", "--lossless"))


def test_24_hlg_stays_hlg(events, tmp_path: Path) -> None:
    tags = ("-vf", "setparams=color_primaries=bt2020:color_trc=arib-std-b67:colorspace=bt2020nc")
    source = clips.make(tmp_path / "in.mp4", pix_fmt="yuv420p10le", frames=3, codec=HEVC, extra=tags)
    for suffix in (".mp4", ".mkv"):
        assert _warnings(events(source, tmp_path / f"out{suffix}")) == {}
        with av.open(str(tmp_path / f"out{suffix}")) as container:
            frame = next(container.decode(video=0))
            assert (frame.color_trc, frame.color_primaries, frame.colorspace) == (18, 9, 9)


def _hdr(path: Path) -> tuple[object, ...]:
    source = open_source(path, Cut(), lambda code, message: None)
    source.close()
    mastering, light = source.info.hdr.mastering, source.info.hdr.light
    assert mastering is not None
    points = (*mastering.red, *mastering.green, *mastering.blue, *mastering.white, mastering.greatest, mastering.least)
    return tuple(round(float(value), 3) for value in points), light  # AV1 keeps 16 bits of each


def test_25_what_becomes_of_the_rest_is_said_beforehand(events, tmp_path: Path) -> None:
    (tmp_path / "s.srt").write_text("1\n00:00:00,100 --> 00:00:00,300\nhello\n")
    (tmp_path / "f.ttf").write_bytes(bytes(100))
    source = clips.make(
        tmp_path / "in.mkv", codec=H264, inputs=("-i", tmp_path / "s.srt", "-f", "lavfi", "-i", "sine=d=0.4"),
        extra=("-map", 0, "-map", 1, "-map", 2, "-c:s", "srt", "-c:a", "truehd", "-strict", "-2",
               "-attach", tmp_path / "f.ttf", "-metadata:s:t:0", "mimetype=application/x-truetype-font"),
    )  # fmt: skip
    told = events(source, tmp_path / "out.mp4")
    kinds = [event["event"] for event in told]
    assert kinds.index("plan") > max(index for index, kind in enumerate(kinds) if kind == "warning")
    messages = [event["message"] for event in told if event["event"] == "warning"]
    assert any("srt) becomes mov_text" in message for message in messages), messages
    assert any("truehd) cannot be held by .mp4; .mkv can" in message for message in messages), messages
    assert any("f.ttf) cannot be held by .mp4; .mkv can" in message for message in messages), messages
    assert _warnings(events(source, tmp_path / "out.mkv")) == {}


def test_an_encoder_that_only_the_ffmpeg_beside_us_has(events, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mp4", codec=H264, frames=12, audio=("-c:a", "aac"))
    for codec in ("libaom-av1", "librav1e"):
        output = tmp_path / f"{codec}.mp4"
        events(source, output, "-c", codec, "--preset", "ultrafast")
        assert clips.facts(output).seconds == clips.facts(source).seconds
        assert clips.psnr(clips.rgb(output), clips.rgb(source)) > 30
    error = _error(events(source, tmp_path / "x.mp4", "-c", "libaom-av1", "-e", "nosuch=1", status=ExitStatus.OUTPUT))
    assert "libaom-av1 has no option 'nosuch'" in error
    assert not list(tmp_path.glob(".vdeblur-*"))


# Names and places --------------------------------------------------------------------------------------------------


def _run_as_a_process(*arguments: object, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vdeblur", *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)


def test_26_and_37_names_where_the_terminal_has_only_ascii(tmp_path: Path) -> None:
    """Also a name that is no text at all, as old file systems hold them."""
    source = clips.make(tmp_path / "gr\u00f6\u00dfe \u65e5\u672c.mp4", codec=H264, frames=2)
    place = {**os.environ, "LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    bare = {**place, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for environment, name in ((bare, "\u00e4hnlich.mp4"), (place, "\udcff.mp4")):
        output = tmp_path / name
        done = _run_as_a_process("run", source, output, "-m", "identity", env=environment)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        assert output.is_file()
    done = _run_as_a_process("probe", source, env=bare)
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(tmp_path.glob(".vdeblur-*"))


def test_27_the_output_is_the_input(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mp4", codec=H264, frames=2)
    before = source.read_bytes()
    (tmp_path / "soft.mp4").symlink_to(source)
    (tmp_path / "hard.mp4").hardlink_to(source)
    (tmp_path / "folder").symlink_to(tmp_path)
    for output in (source, tmp_path / "soft.mp4", tmp_path / "hard.mp4", tmp_path / "folder" / "in.mp4"):
        for options in ((), ("-y",)):
            line = _one_line(vdeblur("run", source, output, "-m", "identity", *options), ExitStatus.OUTPUT)
            assert "is the input itself" in line
    assert source.read_bytes() == before


@contextlib.contextmanager
def _folding(place: Path):
    """Yield a folder that does not distinguish upper from lower case."""
    (place / "a").touch()
    if (place / "A").exists():
        yield place
        return
    folder = place / "folding"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "casefold", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs a file system that folds case, or the right to mount one")
    try:
        (folder / "inside").mkdir()
        if subprocess.run(["chattr", "+F", folder / "inside"], check=False, capture_output=True).returncode:
            pytest.skip("this file system cannot fold case")
        yield folder / "inside"
    finally:
        subprocess.run(["umount", folder], check=True)


def test_27_the_output_is_the_input_but_for_case(vdeblur, tmp_path: Path) -> None:
    with _folding(tmp_path) as folder:
        source = clips.make(folder / "in.mp4", codec=H264, frames=2)
        before = source.read_bytes()
        line = _one_line(vdeblur("run", source, folder / "IN.MP4", "-m", "identity", "-y"), ExitStatus.OUTPUT)
        assert "is the input itself" in line
        assert source.read_bytes() == before


def test_27_an_output_among_the_inputs(vdeblur, tmp_path: Path) -> None:
    sources = [clips.make(tmp_path / name, codec=H264, frames=2) for name in ("a.mp4", "b.mp4")]
    before = [source.read_bytes() for source in sources]
    for arguments in ((*sources, f"{tmp_path}/", "-y"), (tmp_path, tmp_path, "-y")):
        line = _one_line(vdeblur("run", *arguments, "-m", "identity"), ExitStatus.USAGE)
        assert "is one of the inputs" in line
    assert "is one file" in _one_line(vdeblur("run", *sources, sources[0], "-y"), ExitStatus.USAGE)
    assert [source.read_bytes() for source in sources] == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "b.mp4"}


@contextlib.contextmanager
def _nobody():
    """Be a user without rights, for a while."""
    root = os.geteuid() == 0
    if root:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)


def test_28_places_that_must_not_be_written(vdeblur, tmp_path: Path) -> None:
    """Refused before the model is loaded; a file that must not be written is not, either."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        source = clips.make(folder / "in.mp4", codec=H264, frames=2)
        with _nobody():
            result = vdeblur("run", source, folder / "out.mp4", "-m", "identity", "--json")
        assert result.exit_code == ExitStatus.OUTPUT
        told = [json.loads(line) for line in result.stdout.splitlines()]
        assert "is not writable" in _error(told)
        assert "plan" not in [event["event"] for event in told]
        readonly = folder / "readonly.mp4"
        readonly.write_bytes(b"precious")
        readonly.chmod(0o444)
        assert "exists already" in _one_line(vdeblur("run", source, readonly, "-m", "identity"), ExitStatus.OUTPUT)
        assert readonly.read_bytes() == b"precious"
        source.chmod(0o000)
        with _nobody():
            line = _one_line(vdeblur("run", source, tmp_path / "out.mp4", "-m", "identity"), ExitStatus.INPUT)
        assert "in.mp4" in line


def test_28_overwriting_happens_at_the_end(tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mp4", codec=H264, frames=10)
    output = tmp_path / "out.mp4"
    output.write_bytes(b"precious")
    seen = set()
    settings = Settings(model="identity", segment=Fraction(1, 5), encoding=EncodeOptions(overwrite=True))
    pipeline.restore_file(
        source, output, settings, notify=lambda event, facts: seen.add((event, output.read_bytes()[:8]))
    )
    assert {event for event, content in seen if content != b"precious"} == {"file_done"}


def test_29_a_disk_that_may_become_full_is_told_beforehand(events, tmp_path: Path, monkeypatch) -> None:
    source = clips.make(tmp_path / "in.mp4", codec=H264, frames=10)
    usage = type("Usage", (), {"total": 10**9, "used": 10**9, "free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    told = events(source, tmp_path / "out.mp4")
    kinds = [event["event"] for event in told]
    assert "are free" in _warnings(told)["W_DISK_SPACE"]
    assert kinds.index("warning") < kinds.index("progress")


# Terminals and pipes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["events", "frames"])
def test_37_whoever_reads_has_had_enough(tmp_path: Path, what: str) -> None:
    """Of more than the pipe holds, so that something is left to be written when nobody reads any more."""
    folder, held = tmp_path / "in", 4096
    folder.mkdir()
    source = clips.make(folder / "0.mp4", codec=H264, frames=3, size="320x240")
    for number in range(1, 10):
        (folder / f"{number}.mp4").symlink_to(source)
    output = ("--json", folder, tmp_path / "out") if what == "events" else (source, "-", "-f", "y4m")
    command = [sys.executable, "-m", "vdeblur", "run", "-m", "identity", *output]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pipesize=held, bufsize=0)
    assert process.stdout.read(50)
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == ExitStatus.OUTPUT, said
    assert not re.search(rb"Traceback|Exception", said)
    assert b"\x1b" not in said, "there is no terminal, so nothing is drawn"
    assert len(list((tmp_path / "out").glob("*.mp4"))) < 10


def _on_a_terminal(columns: int, *arguments: object) -> tuple[int, str]:
    """Run on a terminal so many columns wide, with standard input closed; gives the status and what was drawn."""
    terminal, ours = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    command = [sys.executable, "-m", "vdeblur", *(str(argument) for argument in arguments)]
    place = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    process = subprocess.Popen(command, stdout=ours, stderr=ours, env=place, preexec_fn=lambda: os.close(0))
    os.close(ours)
    drawn = b""
    with contextlib.suppress(OSError):  # so a terminal tells that nobody is left
        while data := os.read(terminal, 65536):
            drawn += data
    os.close(terminal)
    return process.wait(), drawn.decode()


def test_37_a_narrow_terminal_and_no_standard_input(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    clips.make(folder / "a name that is a good deal too long.mp4", codec=H264, frames=300)
    clips.make(folder / "b.mp4", codec=H264, frames=20)
    (folder / "bad.mp4").write_bytes(b"x" * 1000)
    status, drawn = _on_a_terminal(40, "run", folder, tmp_path / "out", "-m", "identity")
    assert status == ExitStatus.BATCH
    assert "Traceback" not in drawn
    bars = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part) for part in re.split(r"[\r\n]+", drawn) if "\u2501" in part]
    assert bars
    assert max(len(bar) for bar in bars) <= 40
    assert any(re.search(r" +\d+/300 .*a name.*\u2026.*\.mp4", bar) for bar in bars), bars
    lines = [line.rstrip() for line in drawn.split("\n")]
    assert any(line.endswith("a good deal too long.mp4: restored, 300 frames") for line in lines)
    assert any("bad.mp4: failed" in line for line in lines)
    assert drawn.count("\x1b[?25h") == drawn.count("\x1b[?25l"), "the cursor is there again"


def test_37_every_standard_stream_is_closed(tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mp4", codec=H264, frames=2)
    command = f"{sys.executable} -m vdeblur run {source} {tmp_path}/out.mp4 -m identity <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], check=False).returncode == 0
    assert len(clips.facts(tmp_path / "out.mp4").seconds) == 2


@pytest.mark.parametrize("form", ["y4m", "nut"])
def test_37_pipes_carry_the_frames_and_their_times(tmp_path: Path, form: str) -> None:
    source = clips.make(tmp_path / "in.mp4", codec=H264, frames=12, rate="24000/1001", audio=())
    program = f"{sys.executable} -m vdeblur run"
    script = f"{program} {source} - -f {form} -m identity | tee {tmp_path}/piped | "
    script += f"{program} - {tmp_path}/out.mkv -m identity --lossless"
    subprocess.run(["bash", "-o", "pipefail", "-c", script], check=True, capture_output=True)
    assert clips.frame_hashes(tmp_path / "out.mkv") == clips.frame_hashes(source)
    assert clips.facts(tmp_path / "out.mkv").seconds == pytest.approx(clips.facts(source).seconds, abs=1e-3)
    if form == "y4m":
        assert b" F24000:1001 " in (tmp_path / "piped").read_bytes()[:100]
        with av.open(str(source)) as container:
            assert container.streams.video[0].average_rate == Fraction(24000, 1001)


def test_wrong_usage_is_one_line_or_events(vdeblur, tmp_path: Path) -> None:
    for arguments, words in (
        (("run",), "missing argument 'INPUT... OUTPUT'"),
        (("run", "a", "b", "--modle", "lite"), "no such option '--modle'"),
        (("run", "a", "b", "--strength", "2"), "2.0 is not in the range"),
        (("run", "a", "b", "-ss", "soon"), "'soon' is not a time"),
        (("rum",), "no such command 'rum'"),
        (("probe", "--json"), "missing argument"),
        (("--config", tmp_path / "none.toml", "run", "a", "b"), "does not exist"),
        (("run", "a", "b", "-t", "1", "--to", "2"), "exclude each other"),
    ):
        result = vdeblur(*arguments)
        assert words in _one_line(result, ExitStatus.USAGE)
        assert len(result.output.splitlines()) == 1
    for line in ("run --json", "run a b --json --crf x", "bench --json --nosuch"):
        result = vdeblur(*line.split())
        told = [json.loads(line) for line in result.stdout.splitlines()]
        assert [event["event"] for event in told] == ["start", "error", "done"]
        assert told[1]["code"] == "E_USAGE"
        assert told[1]["hint"]
        assert result.exit_code == told[1]["exit"] == told[2]["exit"] == ExitStatus.USAGE


def test_38_clocks_that_jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input from the future, and a clock that runs back by an hour whenever it is read."""
    source = clips.make(tmp_path / "in.mp4", codec=H264, frames=60)
    os.utime(source, (4e9, 4e9))
    hours = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 1e9 - 3600 * next(hours))
    settings = Settings(model="identity", segment=Fraction(1))
    asked = iter(range(10**9))
    with pytest.raises(InterruptedRunError):
        pipeline.restore_file(
            source, tmp_path / "out.mp4", settings, stop=lambda: ExitStatus(130) if next(asked) > 40 else None
        )
    assert list(store.folder_of(tmp_path / "out.mp4").glob("*.packets"))
    told: list[str] = []
    result = pipeline.restore_file(
        source, tmp_path / "out.mp4", settings, notify=lambda event, facts: told.append(event)
    )
    assert "warning" not in told
    assert told.count("progress") < 60, "what was finished is not made again"
    assert 0 < result.seconds < 3600, "it is not counted by a clock that jumps"
    assert len(clips.facts(tmp_path / "out.mp4").seconds) == 60
