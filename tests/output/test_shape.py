"""The shape of pixels, rotation and mirroring reach every container, or a warning says that they do not."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy
import pytest

from tests import clips

H264 = ("-c:v", "libx264", "-preset", "ultrafast")
# Encoder to the containers that hold it and the shape of pixels.
HELD = {
    "h264": ("mp4", "m4v", "mov", "mkv", "avi", "ts", "flv", "nut", "mxf"),
    "hevc": ("mp4", "mov", "mkv", "ts"),
    "vp9": ("webm", "mkv", "mp4", "avi"),
    "vp8": ("webm", "mkv"),
    "av1": ("mp4", "mkv", "webm", "avi"),
    "ffv1": ("mkv", "avi"),
    "prores": ("mov", "mkv", "mxf"),
    "mjpeg": ("mov", "mkv", "avi"),
    "mpeg4": ("mp4", "mkv", "avi", "mov"),
    "mpeg2": ("mpg", "ts", "mkv", "mxf", "vob"),
    "dnxhd": ("mov",),
    "utvideo": ("avi",),
    "huffyuv": ("avi",),
    "ffvhuff": ("avi",),
    "magicyuv": ("mov",),
    "png": ("mov", "avi"),
    "qtrle": ("mov",),
    "rawvideo": ("avi", "mkv", "y4m"),
    "libxvid": ("mp4", "mkv", "avi"),  # external
}
LOST = [("vp9", "nut"), ("ffv1", "nut"), ("dnxhd", "mxf")]
WITHOUT_MATRIX = ["avi", "ts", "flv", "nut", "wmv", "mpg", "mxf", "y4m"]


def _run(vdeblur: Callable, *arguments: object) -> dict[str, str]:
    """Run identity, and return the warnings by code."""
    result = vdeblur("run", *arguments, "-m", "identity", "--json")
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.stdout.splitlines()]
    return {event["code"]: event["message"] for event in events if event["event"] == "warning"}


def _shape(path: Path) -> Fraction:
    """Return the shape of pixels of a file as ffmpeg prints it: the last one counts, and none means square."""
    done = subprocess.run([clips.FFMPEG, "-hide_banner", "-i", path], capture_output=True, text=True, check=False)
    line = next(line for line in done.stderr.splitlines() if "Video:" in line)
    found = re.findall(r"SAR (\d+):(\d+)", line)
    return Fraction(int(found[-1][0]), int(found[-1][1])) if found else Fraction(1)


def _wide(folder: Path, shape: str = "4/3", size: str = "64x48") -> Path:
    return clips.make(folder / "in.mp4", size=size, codec=H264, extra=("-vf", f"setsar={shape}"))


@pytest.mark.parametrize("codec", HELD)
def test_the_shape_of_pixels_is_held(vdeblur, tmp_path: Path, codec: str) -> None:
    source = _wide(tmp_path, size="256x144" if codec == "dnxhd" else "64x48")
    for suffix in HELD[codec]:
        output = tmp_path / f"out.{suffix}"
        warnings = _run(vdeblur, source, output, "--codec", codec, "--preset", "ultrafast", "--segment", "0.2")
        assert "W_PIXEL_SHAPE" not in warnings, suffix
        assert _shape(output) == Fraction(4, 3), suffix
        assert len(clips.frame_hashes(output)) == 10, suffix


def test_lossless_keeps_the_shape_of_pixels(vdeblur, tmp_path: Path) -> None:
    """The frames, sound, chapters and places in the file are those that the muxer wrote; its checksums are right."""
    source = tmp_path / "in.mkv"
    clips.make(source, codec=("-c:v", "ffv1"), audio=("-c:a", "flac"), extra=("-vf", "setsar=8/9"))
    output = tmp_path / "out.mkv"
    assert _run(vdeblur, source, output, "--lossless") == {}
    assert _shape(output) == Fraction(8, 9)
    assert clips.frame_hashes(output) == clips.frame_hashes(source)
    assert clips.packet_hashes(output, "a:0") == clips.packet_hashes(source, "a:0")
    checked = ("-v", "warning", "-err_detect", "crccheck+explode", "-i", output, "-f", "null", "-")
    done = subprocess.run([clips.FFMPEG, *map(str, checked)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    data = output.read_bytes()
    start = data.index(bytes.fromhex("18538067")) + 12  # the Segment's content; its size takes eight bytes
    seeks = re.findall(rb"\x53\xab\x84(....)\x53\xac(\x81.|\x82..)", data[: start + 200], re.DOTALL)
    assert len(seeks) >= 3
    for identifier, place in seeks:
        begin = start + int.from_bytes(place[1:])
        assert data[begin : begin + 4] == identifier


@pytest.mark.parametrize(("shape", "size"), [("16/15", "720x576"), ("40/33", "720x480"), ("1/2", "66x48")])
def test_webm_has_the_shape_in_pixels(vdeblur, tmp_path: Path, shape: str, size: str) -> None:
    source = _wide(tmp_path, shape, size)
    output = tmp_path / "out.webm"
    _run(vdeblur, source, output, "--preset", "ultrafast", "--frames", "2")
    assert _shape(output) == Fraction(shape), "not rounded to whole pixels"


def test_mp4_shows_the_width_of_the_shape(vdeblur, tmp_path: Path) -> None:
    """The track's width in its header is that of ffmpeg, for players that read only this."""
    source, output, reference = _wide(tmp_path), tmp_path / "out.mp4", tmp_path / "reference.mp4"
    _run(vdeblur, source, output, "--codec", "av1", "--preset", "ultrafast")
    clips.ffmpeg("-i", source, "-c", "copy", reference)
    widths = []
    for path in (output, reference):
        data = path.read_bytes()
        place = data.index(b"tkhd") + 4
        widths.append(data[place + 76 : place + 84])
    assert widths[0] == widths[1]


@pytest.mark.parametrize(("codec", "suffix"), LOST)
def test_a_lost_shape_of_pixels_is_reported(vdeblur, tmp_path: Path, codec: str, suffix: str) -> None:
    source = _wide(tmp_path, size="256x144" if codec == "dnxhd" else "64x48")
    output = tmp_path / f"out.{suffix}"
    planned = _run(vdeblur, source, output, "--codec", codec, "--dry-run")
    assert "holds no shape of pixels" in planned["W_PIXEL_SHAPE"]
    assert _run(vdeblur, source, output, "--codec", codec)["W_PIXEL_SHAPE"] == planned["W_PIXEL_SHAPE"]
    assert _shape(output) == 1
    square = clips.make(tmp_path / "square.mp4", size="256x144", codec=H264, frames=2)
    assert "W_PIXEL_SHAPE" not in _run(vdeblur, square, output, "--codec", codec, "-y")


def test_pipes_keep_the_shape_of_pixels(tmp_path: Path) -> None:
    """The header of y4m has it; other formats of a pipe cannot be completed afterwards, so a warning says so."""
    source, output = _wide(tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "vdeblur", "run", str(source), "-", "-m", "identity"]
    done = subprocess.run(command, capture_output=True, check=True)
    output.write_bytes(done.stdout)
    assert _shape(output) == Fraction(4, 3)
    assert len(clips.frame_hashes(output)) == 10
    assert b"warning" not in done.stderr
    done = subprocess.run([*command, "-f", "matroska", "--codec", "ffv1"], capture_output=True, check=True)
    assert b"holds no shape of pixels for ffv1" in done.stderr


def _turned(folder: Path, *turn: object) -> Path:
    plain = clips.make(folder / "plain.mp4", codec=(*H264, "-qp", "4"), frames=3, extra=("-vf", "setsar=4/3"))
    source = folder / "turned.mp4"
    clips.ffmpeg(*turn, "-i", plain, "-c", "copy", source)
    return source


@pytest.mark.parametrize("suffix", WITHOUT_MATRIX)
@pytest.mark.parametrize(
    ("turn", "shape", "word"),
    [
        (("-display_rotation", "90"), (3, 4), "rotation"),
        (("-display_rotation", "180"), (4, 3), "rotation"),
        (("-display_rotation", "0", "-display_hflip"), (4, 3), "mirroring"),
        (("-display_rotation", "90", "-display_hflip"), (3, 4), "mirroring"),
    ],
)
def test_pictures_are_turned_upright(
    vdeblur, tmp_path: Path, suffix: str, turn: tuple[str, ...], shape: tuple[int, int], word: str
) -> None:
    """A container without a display matrix gets pictures as ffmpeg turns them, with the shape that they have then."""
    source, output = _turned(tmp_path, *turn), tmp_path / f"out.{suffix}"
    warnings = _run(vdeblur, source, output, "--crf", "4", "--preset", "ultrafast")
    assert f".{suffix} holds no {word}, so the pictures are turned upright" in warnings["W_ROTATION"]
    wanted, found = clips.ffmpeg_rgb(source), clips.ffmpeg_rgb(output)
    assert wanted.shape == found.shape
    assert numpy.abs(wanted.astype(int) - found).mean() < 3
    assert (_shape(output) == Fraction(*shape)) != ("W_PIXEL_SHAPE" in warnings)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_containers_with_a_matrix_keep_it(vdeblur, tmp_path: Path, suffix: str) -> None:
    source, output = _turned(tmp_path, "-display_rotation", "90", "-display_hflip"), tmp_path / f"out.{suffix}"
    assert "W_ROTATION" not in _run(vdeblur, source, output, "--preset", "ultrafast")
    assert clips.facts(output).size == (64, 48)
    assert clips.ffmpeg_rgb(output).shape == (64, 48, 3)


@pytest.mark.parametrize("degrees", [37, 110])
def test_an_oblique_rotation_is_lost_with_a_warning(vdeblur, tmp_path: Path, degrees: int) -> None:
    source, output = _turned(tmp_path, "-display_rotation", degrees), tmp_path / "out.avi"
    planned = _run(vdeblur, source, output, "--dry-run")
    assert f"so the rotation by {degrees} degrees is lost" in planned["W_ROTATION"]
    assert _run(vdeblur, source, output)["W_ROTATION"] == planned["W_ROTATION"]
    assert clips.facts(output).size == (64, 48)
