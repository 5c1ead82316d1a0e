"""The shape of pixels, rotation and mirroring reach every container, or a warning says that they do not."""

import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy
import pytest

from tests import clips
from vdeblur.output import encoders, encoding
from vdeblur.output.avi import LARGEST_START, shape_avi
from vdeblur.output.matroska import shape_matroska
from vdeblur.output.muxer import Muxer
from vdeblur.output.y4m import Y4mFile

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


def test_a_stretched_picture_is_not_called_a_rotation(vdeblur, tmp_path: Path) -> None:
    """A display matrix that widens the picture without a turn was "the rotation by 0 degrees"."""
    source = clips.make(tmp_path / "in.mp4", codec=H264, frames=3)
    data = bytearray(source.read_bytes())
    place = data.index(b"tkhd") + 44  # the matrix, which begins with the scale across
    data[place : place + 4] = struct.pack(">i", 2 << 16)
    source.write_bytes(data)
    message = _run(vdeblur, source, tmp_path / "out.avi", "--dry-run")["W_ROTATION"]
    assert "so the display matrix, which stretches or skews the picture, is lost" in message
    assert "degrees" not in message


@pytest.mark.parametrize("mode", ["left_right", "top_bottom"])
@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "ffv1"), ("webm", "vp9")])
def test_two_views_keep_the_shape_of_pixels(vdeblur, tmp_path: Path, mode: str, suffix: str, codec: str) -> None:
    """Matroska's size for display is that of one view; the shape was 21:8 side by side."""
    source = tmp_path / "in.mkv"
    stereo = ("-vf", "setsar=21/16", "-metadata:s:v", f"stereo_mode={mode}")
    clips.make(source, frames=3, extra=stereo)
    assert _shape(source) == Fraction(21, 16)
    output = tmp_path / f"out.{suffix}"
    assert "W_PIXEL_SHAPE" not in _run(vdeblur, source, output, "--codec", codec, "--preset", "ultrafast")
    assert _shape(output) == Fraction(21, 16)


def test_an_external_encoder_gets_the_exact_shape(vdeblur, tmp_path: Path) -> None:
    """Its ffmpeg rounded the shape to terms of at most 100."""
    source, output = _wide(tmp_path, "118/81:max=65535"), tmp_path / "out.nut"
    assert _shape(source) == Fraction(118, 81)
    _run(vdeblur, source, output, "--codec", "libxvid")
    data = output.read_bytes()
    assert _volume_shape(data) == (118, 81)


def _volume_shape(data: bytes) -> tuple[int, int]:
    """Return par_width and par_height of MPEG-4's video object layer (ISO/IEC 14496-2, 6.2.3)."""
    place = re.search(rb"\x00\x00\x01[\x20-\x2f]", data)
    assert place is not None
    bits = "".join(f"{byte:08b}" for byte in data[place.end() : place.end() + 16])
    at = 9  # after random_accessible_vol and the type
    at += 8 if bits[at] == "1" else 1  # is_object_layer_identifier, with version and priority
    assert bits[at : at + 4] == "1111", "the shape is one of its own"
    return int(bits[at + 4 : at + 12], 2), int(bits[at + 12 : at + 20], 2)


def test_an_extreme_shape_ends_no_run(vdeblur, tmp_path: Path) -> None:
    """MP4 has 16 bits for the width as shown, in pixels; a wider picture was an internal error."""
    source, output = _wide(tmp_path, "250/1:max=65535", "512x256"), tmp_path / "out.mp4"
    assert _shape(source) == 250
    warnings = _run(vdeblur, source, output, "--codec", "mpeg4", "--frames", "2")
    assert (_shape(output) == 250) != ("W_PIXEL_SHAPE" in warnings)


@pytest.mark.parametrize("aspect", [Fraction(100_000), Fraction(1, 100_000)])
def test_avi_holds_no_extreme_shape(tmp_path: Path, aspect: Fraction) -> None:
    path = clips.make(tmp_path / "in.avi", frames=1)
    before = path.read_bytes()
    assert not shape_avi(path, aspect, 64, 48, Fraction(25))
    assert path.read_bytes() == before


def _chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body


def test_an_avi_with_frames_far_behind_stays_as_it_is(tmp_path: Path) -> None:
    """Its empty chunk was shortened to what had been read, so that the frames were not found any more."""
    headers = b"hdrl" + _chunk(b"LIST", b"strl" + _chunk(b"strh", b"vids" + bytes(52)))
    frames = _chunk(b"LIST", b"movi" + _chunk(b"00dc", b"frame "))
    whole = b"AVI " + _chunk(b"LIST", headers) + _chunk(b"JUNK", bytes(LARGEST_START)) + frames
    path = tmp_path / "a.avi"
    path.write_bytes(_chunk(b"RIFF", whole))
    before = path.read_bytes()
    assert not shape_avi(path, Fraction(4, 3), 64, 48, Fraction(25))
    assert path.read_bytes() == before


def _element(kind: str, body: bytes) -> bytes:
    return bytes.fromhex(kind) + (len(body) | 1 << 28).to_bytes(4) + body


@pytest.mark.parametrize("fault", ["a child ends beyond the file", "a place is too large"])
def test_a_damaged_matroska_stays_as_it_is(tmp_path: Path, fault: str) -> None:
    video = _element("B0", b"\x40") + _element("BA", b"\x30") + _element("EC", bytes(99))
    track = _element("AE", _element("83", b"\x01") + _element("E0", video))
    seek, empty = b"", _element("EC", bytes(95))
    if fault == "a place is too large":  # the tracks begin at the last place that one byte holds, and become shorter
        seek = _element("114D9B74", _element("4DBB", _element("53AC", b"\xff")))
        empty = _element("EC", bytes(255 - len(seek) - 5))
        video = _element("B0", b"\x40") + _element("BA", b"\x30")
        video += b"".join(_element(kind, bytes(7) + b"\x01") for kind in ("54B0", "54BA", "54B2"))
        track = _element("AE", _element("83", b"\x01") + _element("E0", video))
    else:
        track = track[:1] + (len(track) + 50 | 1 << 28).to_bytes(4) + track[5:]
    body = seek + empty + _element("1654AE6B", track)
    path = tmp_path / "a.mkv"
    path.write_bytes(bytes.fromhex("18538067") + (len(body) | 1 << 56).to_bytes(8) + body)
    before = path.read_bytes()
    done = shape_matroska(path, Fraction(4, 3), 64, 48, is_webm=False)
    assert (path.read_bytes() != before) == done
    assert len(path.read_bytes()) == len(before)
    assert not done


@pytest.mark.parametrize("place", ["open", "close"])
def test_y4m_is_closed_where_the_container_fails(
    vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    files = []

    class Recorded(Y4mFile):
        def __init__(self, target: str, aspect: Fraction) -> None:
            super().__init__(target, aspect)
            files.append(self)

    class Failing(Muxer):
        def __init__(self, *arguments: object, **options: object) -> None:
            if place == "open":
                raise OSError("full")
            super().__init__(*arguments, **options)
            self.container = _Unclosable(self.container)  # type: ignore[assignment]

    monkeypatch.setattr(encoding, "Y4mFile", Recorded)
    monkeypatch.setattr(encoding, "Muxer", Failing)
    assert vdeblur("run", _wide(tmp_path), tmp_path / "out.y4m", "-m", "identity").exit_code != 0
    assert files
    assert all(file.file.closed for file in files)


class _Unclosable:
    """A container that fails when it is closed, as on a full disk."""

    def __init__(self, container: object) -> None:
        self.container = container

    def __getattr__(self, name: str) -> object:
        return getattr(self.container, name)

    def close(self) -> None:
        raise OSError("full")


def test_one_encoder_is_open_at_a_time(vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardware opens few encoders at once; the trial of the pixels' shape opened a second one."""
    source, opened, largest = _wide(tmp_path), [], 0
    original = encoders.open_encoder

    def recorded(*arguments: object) -> object:
        nonlocal largest
        encoder = original(*arguments)
        opened.append(encoder)
        largest = max(largest, len(opened))
        monkeypatch.setattr(encoder, "close", lambda: opened.remove(encoder))
        return encoder

    monkeypatch.setattr(encoding, "open_encoder", recorded)
    _run(vdeblur, source, tmp_path / "out.mp4", "--dry-run")
    assert largest == 1
