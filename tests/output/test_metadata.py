"""What a video says about itself beside its samples: tags, captions, cropping, chroma location, views, time code."""

import re
import struct
import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import pytest

from tests import clips
from vdeblur.errors import ExitStatus

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


def test_captions_survive_conversion(vdeblur, tmp_path: Path) -> None:
    """R17: captions of frames that are converted to another pixel format."""
    source, output = with_captions(tmp_path, 0), tmp_path / "out.mp4"
    result = vdeblur("run", source, output, *FAST, "--pix-fmt", "yuv422p", "--deinterlace", "on")
    assert result.exit_code == 0, result.output
    assert count_of_captions(output) == 6


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


HEVC = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error:bframes=0", "-tag:v", "hvc1")


def dolby_vision(profile: int, compatibility: int) -> bytes:
    """Make the box of Dolby Vision's configuration: level 1, with metadata and a base layer."""
    numbers = profile << 9 | 1 << 3 | 0b101
    return box(b"dvcC", struct.pack(">BBHI16x", 1, 0, numbers, compatibility << 28))


def metadata_of_profile_5() -> bytes:
    """Make a NAL unit with Dolby Vision's metadata (RPU): it changes nothing, but its range is full, as profile 5's."""

    def ue(number: int) -> str:  # Exp-Golomb
        bits = f"{number + 1:b}"
        return "0" * (len(bits) - 1) + bits

    def fixed(number: int, length: int) -> str:
        return f"{number:0{length}b}"

    bits = fixed(25, 8) + fixed(2, 6) + fixed(18, 11) + fixed(0, 8) + "1"  # prefix, type, format, profile, level
    bits += "0" + "00" + ue(23) + "01" + "1" + ue(2) + ue(2) + ue(4) + "0" + "000" + "0" + "1" + "0" + "0"
    bits += ue(0) * 3 + (ue(0) + fixed(0, 10) + fixed(1023, 10)) * 3 + ue(0) * 2
    bits += (ue(0) + ue(0) + "0" + ue(0) + fixed(0, 23) + "010" + fixed(0, 23)) * 3  # 0 + 1 x
    bits += "0" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big") + bytes(4) + b"\x80"
    return b"\x7c\x01" + re.sub(rb"\x00\x00(?=[\x00-\x03])", b"\x00\x00\x03", data)


@pytest.mark.parametrize("kind", ["configuration", "metadata alone"])
def test_colours_of_dolby_vision_5_are_refused(vdeblur, tmp_path: Path, kind: str) -> None:
    """R23: its base layer, which is in Dolby's own colours, came out purple and green with exit 0."""
    source = tmp_path / "in.mp4"
    if kind == "configuration":
        plain = clips.make(tmp_path / "plain.mp4", frames=2, pix_fmt="yuv420p10le", codec=HEVC)
        with_boxes(plain, source, b"hvc1", dolby_vision(5, 0))
    else:
        plain = clips.make(tmp_path / "plain.hevc", frames=2, pix_fmt="yuv420p10le", codec=HEVC[:-2])
        parts = re.split(rb"(?<=\x00\x00\x01)", plain.read_bytes())
        after = [
            part[:-3].rstrip(b"\0") + b"\0\0\1" + metadata_of_profile_5() + b"\0\0\1"
            if part[0] >> 1 & 63 < 32
            else part
            for part in parts[1:]
        ]
        (tmp_path / "rpu.hevc").write_bytes(b"".join((parts[0], *after)))
        clips.ffmpeg("-f", "hevc", "-i", tmp_path / "rpu.hevc", "-c", "copy", "-tag:v", "dvh1", source)
    result = vdeblur("run", source, tmp_path / "out.mp4", *FAST)
    assert result.exit_code == ExitStatus.INPUT, result.output
    assert "is Dolby Vision profile 5" in result.stderr
    assert not list(tmp_path.glob("*out*"))


def test_dolby_vision_with_a_usable_base_layer(vdeblur, tmp_path: Path) -> None:
    """R23: profile 8 has an HDR10 picture below."""
    plain = clips.make(tmp_path / "plain.mp4", frames=2, pix_fmt="yuv420p10le", codec=HEVC)
    source = with_boxes(plain, tmp_path / "in.mp4", b"hvc1", dolby_vision(8, 1))
    assert vdeblur("run", source, tmp_path / "out.mp4", *FAST).exit_code == 0


TAGS = {
    "com.apple.quicktime.make": "Apple",
    "com.apple.quicktime.model": "iPhone 15 Pro",
    "com.apple.quicktime.location.ISO6709": "+48.8577+002.2950+035.000/",
    "com.apple.quicktime.creationdate": "2024-03-09T12:34:56+0100",
    "firmware": "HD9.01.01.60.00",
    "title": "Été",
}


def tags_of(path: Path) -> dict[str, str]:
    """Return the tags of a file by their names in lower case, as the independent ffmpeg reads them."""
    text = clips.ffmpeg("-i", path, "-f", "ffmetadata", "-")
    lines = [line.partition("=") for line in text.split("[STREAM]")[0].splitlines() if not line.startswith(";")]
    return {key.replace("\\", "").lower(): value.replace("\\", "") for key, _, value in lines}


@pytest.mark.parametrize("out", ["mov", "mp4", "m4v", "mkv"])
@pytest.mark.parametrize("inside", ["mov", "mkv"])
def test_tags_of_cameras_are_kept(vdeblur, tmp_path: Path, inside: str, out: str) -> None:
    """R13: .mov and .mp4 lost every tag that FFmpeg does not write unasked, such as camera and place."""
    given = [part for key, value in TAGS.items() for part in ("-metadata", f"{key}={value}")]
    extra = ("-movflags", "use_metadata_tags", *given, "-metadata", "creation_time=2024-03-09T11:34:56Z")
    source = clips.make(tmp_path / f"in.{inside}", frames=4, codec=H264, audio=("-c:a", "aac"), extra=extra)
    output = tmp_path / f"out.{out}"
    result = vdeblur("run", source, output, *FAST)
    assert result.exit_code == 0, result.output
    found = tags_of(output)
    assert {key: found.get(key.lower()) for key in TAGS} == TAGS
    assert clips.frame_hashes(output)  # no sample has moved
    assert clips.packet_hashes(output, "a:0") == clips.packet_hashes(source, "a:0")


@pytest.mark.parametrize("options", [(), ("--deterministic",), ("-ss", "0.08")])
@pytest.mark.parametrize("out", ["mov", "mp4", "mkv", "webm"])
def test_creation_time_is_kept(vdeblur, tmp_path: Path, out: str, options: tuple[str, ...]) -> None:
    """D6: photo libraries sort by it."""
    extra = ("-metadata", "creation_time=2024-03-09T11:34:56Z")
    source = clips.make(tmp_path / "in.mp4", frames=4, codec=H264, extra=extra)
    output = tmp_path / f"out.{out}"
    result = vdeblur("run", source, output, *FAST, *options)
    assert result.exit_code == 0, result.output
    assert re.search(r"^    creation_time +: 2024-03-09T11:34:56", described(output), re.MULTILINE)


def spherical_video() -> bytes:
    projection = box(b"proj", box(b"prhd", bytes(4) + struct.pack(">iii", 0, 90 << 16, 0)) + box(b"equi", bytes(20)))
    return box(b"sv3d", box(b"svhd", bytes(4) + b"test\0") + projection)


def views_of(path: Path) -> list[str]:
    return re.findall(r"^ +(Stereo 3D: [\w ]+|Spherical Mapping: .*\S)", described(path), re.MULTILINE)


@pytest.mark.parametrize("out", ["mp4", "mov"])
def test_spherical_and_3d_stay_marked(vdeblur, tmp_path: Path, out: str) -> None:
    """R14: FFmpeg's muxer leaves out both boxes, so players showed the warped picture."""
    plain = clips.make(tmp_path / "plain.mp4", frames=3, codec=H264)
    boxes = box(b"st3d", struct.pack(">IB", 0, 1)) + spherical_video()
    source, output = with_boxes(plain, tmp_path / "in.mp4", b"avc1", boxes), tmp_path / f"out.{out}"
    result = vdeblur("run", source, output, *FAST)
    assert result.exit_code == 0, result.output
    assert views_of(output) == views_of(source)
    assert len(views_of(source)) == 2
    assert len(clips.frame_hashes(output)) == 3  # ffmpeg 9 fails where the stream has the mark, too
    assert boxes in output.read_bytes()


def test_spherical_video_of_version_1(vdeblur, tmp_path: Path) -> None:
    """R14: many cameras still mark spherical video by XML in a box of the track."""
    facts = {"Spherical": "true", "Stitched": "true", "StitchingSoftware": "test"}
    facts |= {"ProjectionType": "equirectangular", "StereoMode": "top-bottom"}
    words = "".join(f"<GSpherical:{name}>{value}</GSpherical:{name}>" for name, value in facts.items())
    xml = f"<rdf:SphericalVideo>{words}</rdf:SphericalVideo>"
    mark = box(b"uuid", bytes.fromhex("ffcc8263f8554a938814587a02521fdd") + xml.encode())
    plain = clips.make(tmp_path / "plain.mp4", frames=2, codec=H264, audio=("-c:a", "aac"))
    source, output = tmp_path / "in.mp4", tmp_path / "out.mp4"
    source.write_bytes(into_box(plain.read_bytes(), (b"moov", b"trak"), mark))
    result = vdeblur("run", source, output, *FAST)
    assert result.exit_code == 0, result.output
    assert views_of(output) == views_of(source)
    assert len(views_of(source)) == 2
    assert "not marked" not in result.stderr
    assert clips.frame_hashes(output)


def test_views_between_containers(vdeblur, tmp_path: Path) -> None:
    """R14: Matroska keeps the views; that it loses the sphere is said; from Matroska, MP4 gets new boxes."""
    plain = clips.make(tmp_path / "plain.mp4", frames=2, codec=H264)
    boxes = box(b"st3d", struct.pack(">IB", 0, 2)) + spherical_video()
    source = with_boxes(plain, tmp_path / "in.mp4", b"avc1", boxes)
    result = vdeblur("run", source, tmp_path / "out.mkv", *FAST)
    assert views_of(tmp_path / "out.mkv") == ["Stereo 3D: side by side"]
    assert "not marked as spherical" in result.stderr
    clips.ffmpeg("-i", source, "-c", "copy", tmp_path / "in.mkv")
    result = vdeblur("run", tmp_path / "in.mkv", tmp_path / "back.mp4", *FAST)
    assert result.exit_code == 0, result.output
    assert [view.split("(")[0] for view in views_of(tmp_path / "back.mp4")] == [
        "Stereo 3D: side by side",
        "Spherical Mapping: equirectangular",
    ]
    assert "W_VIEWS" not in result.stderr
    assert "not marked" not in result.stderr


def seconds_of(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]


def time_code_of(path: Path) -> list[str]:
    return re.findall(r"^ +timecode +: (\S+)", described(path), re.MULTILINE | re.IGNORECASE)


@pytest.mark.parametrize("out", ["mov", "mp4", "mkv"])
@pytest.mark.parametrize("code", ["01:00:00;00", "01:00:00:00"])
def test_time_code_at_an_uneven_rate(vdeblur, tmp_path: Path, code: str, out: str) -> None:
    """R20: with frames left out, 29.97 fps average 26.5, at which no time code counts; it was lost."""
    extra = ("-vf", "select='not(eq(mod(n,8),7))'", "-fps_mode", "passthrough", "-timecode", code)
    source = clips.make(tmp_path / "in.mov", frames=30, rate="30000/1001", codec=H264, extra=extra)
    assert "26.4" in described(source) or "26.5" in described(source)
    output = tmp_path / f"out.{out}"
    result = vdeblur("run", source, output, *FAST)
    assert result.exit_code == 0, result.output
    assert time_code_of(source)[0] == code
    assert time_code_of(output)[:1] == [code]
    assert seconds_of(output) == pytest.approx(seconds_of(source), abs=0.0006)


def test_a_time_code_without_a_rate_is_named(vdeblur, tmp_path: Path) -> None:
    """R20: no time code leaves out frames at 15 fps; .mp4 lost it without a word."""
    tags = ("-metadata:s:v", "timecode=01:00:00;00")
    source = clips.make(tmp_path / "in.mkv", frames=4, rate="15", codec=H264, extra=tags)
    result = vdeblur("run", source, tmp_path / "out.mp4", *FAST)
    assert result.exit_code == 0, result.output
    assert "holds no time code 01:00:00;00 at 15 fps" in result.stderr


@pytest.mark.parametrize("out", ["mp4", "mkv"])
def test_subtitles_without_a_decoder(vdeblur, tmp_path: Path, out: str) -> None:
    """R24: TTML was left out of .mp4, which holds it; Matroska holds none."""
    srt = tmp_path / "s.srt"
    srt.write_text("1\n00:00:00,000 --> 00:00:00,200\nhello\n")
    extra = ("-map", 0, "-map", 1, "-c:s", "ttml", "-metadata:s:s:0", "language=fra")
    source = clips.make(tmp_path / "in.mp4", codec=H264, inputs=("-i", srt), extra=extra)
    output = tmp_path / f"out.{out}"
    result = vdeblur("run", source, output, *FAST)
    assert result.exit_code == 0, result.output
    if out == "mkv":
        assert "cannot be held by .mkv" in result.stderr
        return
    assert "warning" not in result.stderr
    assert re.search(r"\(fra\).*Subtitle: ttml", described(output))
    assert clips.packet_hashes(output, "s:0") == clips.packet_hashes(source, "s:0")


def test_without_the_ffmpeg_program(vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R16: the program only adds what PyAV does not show; a run needs none."""

    def missing() -> str:
        raise RuntimeError("No ffmpeg exe could be found")

    source = clips.make(tmp_path / "in.mp4", frames=2, codec=H264)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    assert vdeblur("run", source, tmp_path / "out.mp4", *FAST).exit_code == 0
