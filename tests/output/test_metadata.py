"""What a video says about itself beside its samples: tags, captions, cropping, chroma location, views, time code."""

import re
import struct
import subprocess
from pathlib import Path

import pytest

from tests import clips

H264 = ("-c:v", "libx264", "-preset", "ultrafast")
FAST = ("-m", "identity", "--preset", "ultrafast")
# A SEI message with closed captions: ITU-T T.35, ATSC A/53 Part 4, CEA-708 (one pair of bytes: erase the memory).
CAPTIONS = bytes.fromhex("06040eb500314741393403c1fffc942cff80")
SAMPLE_ENTRY = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")


def described(path: Path) -> str:
    """Return what the independent ffmpeg says about a file."""
    command = [clips.FFMPEG, "-hide_banner", "-v", "verbose", "-i", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def into_box(data: bytes, path: tuple[bytes, ...], more: bytes) -> bytes:
    """Add boxes at the end of the first box with this path; the last element of the path is a sample entry's name."""
    made, place = b"", 0
    while place < len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        body = data[place + 8 : place + size]
        if path and kind == path[0]:
            head = 8 if kind == b"stsd" else 0
            body = body + more if len(path) == 1 else body[:head] + into_box(body[head:], path[1:], more)
            path = ()
        made += box(kind, body)
        place += size
    return made


def with_boxes(source: Path, target: Path, entry: bytes, more: bytes) -> Path:
    """Write a copy of an MP4 file with more boxes in its first video's sample entry."""
    target.write_bytes(into_box(source.read_bytes(), (*SAMPLE_ENTRY, entry), more))
    return target


def clean_aperture(width: int, height: int, right: int, down: int) -> bytes:
    """Make the box of a visible part whose middle lies so many samples right of and below the picture's."""
    return box(b"clap", struct.pack(">IIIIiIiI", width, 1, height, 1, right, 1, down, 1))


def with_captions(folder: Path, first: int) -> Path:
    """Make an H.264 clip of six frames that has captions from frame `first` on."""
    plain, marked, path = folder / "plain.h264", folder / "marked.h264", folder / "captions.mp4"
    clips.make(plain, frames=6, codec=(*H264, "-x264-params", "slices=1:bframes=0"), extra=("-bf", 0))
    parts = re.split(rb"(?<=\x00\x00\x01)", plain.read_bytes())
    frame = -1
    for index, part in enumerate(parts):
        if part and part[0] & 31 in (1, 5):  # a slice
            frame += 1
            if frame >= first:
                parts[index] = CAPTIONS + b"\x00\x00\x01" + part
    marked.write_bytes(b"".join(parts))
    clips.ffmpeg("-r", 25, "-f", "h264", "-i", marked, "-c", "copy", path)
    return path


def count_of_captions(path: Path) -> int:
    text = clips.ffmpeg("-i", path, "-vf", "sidedata=mode=select:type=A53_CC", "-f", "framecrc", "-")
    return sum(line.startswith("0,") for line in text.splitlines())


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_captions_are_kept(vdeblur, tmp_path: Path, codec: str) -> None:
    """R17: x265 left out every caption."""
    source, output = with_captions(tmp_path, 0), tmp_path / "out.mp4"
    assert count_of_captions(source) == 6
    result = vdeblur("run", source, output, *FAST, "-c", codec)
    assert result.exit_code == 0, result.output
    assert count_of_captions(output) == 6
    assert "warning" not in result.stderr


@pytest.mark.parametrize("first", [0, 4])
@pytest.mark.parametrize("options", [("-c", "av1"), ("-c", "ffv1")])
def test_lost_captions_are_named(vdeblur, tmp_path: Path, options: tuple[str, str], first: int) -> None:
    """R17: encoders without captions lost them without a word, also those that begin later than the video."""
    source = with_captions(tmp_path, first)
    result = vdeblur("run", source, tmp_path / "out.mkv", *FAST, *options)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("does not carry closed captions") == 1


CHROMA = {"left": 0, "center": 1, "topleft": 2, "top": 3, "bottomleft": 4, "bottom": 5}


@pytest.mark.parametrize(
    ("codec", "location"),
    [("h264", "center"), ("h264", "bottom"), ("hevc", "topleft"), ("hevc", "bottom"), ("ffv1", "center")],
)
def test_chroma_location_is_kept(vdeblur, tmp_path: Path, codec: str, location: str) -> None:
    """R16: every location became left."""
    params = ("-x264-params", f"chromaloc={CHROMA[location]}")
    source = clips.make(tmp_path / "in.mp4", frames=2, codec=(*H264, *params))
    output = tmp_path / "out.mkv"
    result = vdeblur("run", source, output, *FAST, "-c", codec)
    assert result.exit_code == 0, result.output
    for path in (source, output):
        assert re.search(rf"Video: .*\bprogressive, {location}\)|Video: .*[( ]{location}\)", described(path)), path


def test_av1_keeps_the_location_of_hdr(vdeblur, tmp_path: Path) -> None:
    """R16: AV1 knows left and top left alone; UHD's top left was lost."""
    source = clips.make(tmp_path / "in.mp4", frames=2, codec=(*H264, "-x264-params", "chromaloc=2"))
    result = vdeblur("run", source, tmp_path / "out.mp4", *FAST, "-c", "av1")
    assert result.exit_code == 0, result.output
    assert "topleft)" in described(tmp_path / "out.mp4")


@pytest.mark.parametrize(("right", "down"), [(0, 0), (2, 3)])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_hidden_borders_are_cut_off(vdeblur, tmp_path: Path, suffix: str, right: int, down: int) -> None:
    """R15: 64x48 with a clean aperture of 48x36 was shown as 64x48; the witness shows, and converts, 48x36."""
    plain = clips.make(tmp_path / "plain.mp4", frames=3, codec=H264, audio=("-c:a", "aac"))
    source = with_boxes(plain, tmp_path / "clap.mp4", b"avc1", clean_aperture(48, 36, right, down))
    if suffix == "mkv":
        clips.ffmpeg("-i", source, "-c", "copy", tmp_path / "crop.mkv")
        source = tmp_path / "crop.mkv"
    assert "Frame Cropping" in described(source)
    output = tmp_path / f"out.{suffix}"
    options = ("--crf", 0) if suffix == "mp4" else ("--lossless",)
    result = vdeblur("run", source, output, *FAST, *options)
    assert result.exit_code == 0, result.output
    assert clips.facts(output).size == (48, 36)
    assert "Frame Cropping" not in described(output)
    assert clips.frame_hashes(output) == clips.frame_hashes(source)


def test_impossible_cropping_is_ignored(vdeblur, tmp_path: Path) -> None:
    """R15: cropping that leaves nothing is a fault of the file."""
    plain = clips.make(tmp_path / "plain.mp4", frames=2, codec=H264)
    source = with_boxes(plain, tmp_path / "in.mp4", b"avc1", clean_aperture(1, 1, 100, 0))
    result = vdeblur("run", source, tmp_path / "out.mp4", *FAST)
    assert result.exit_code == 0, result.output
    assert clips.facts(tmp_path / "out.mp4").size == (64, 48)
