"""What goes wrong with inputs, by the number and name that each case has in the project's list of faults."""

import json
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy
import pytest

from tests import clips
from vdeblur.decode import Cut, open_source
from vdeblur.errors import ExitStatus

H264 = ("-c:v", "libx264", "-preset", "ultrafast")
HEVC = ("-c:v", "libx265", "-x265-params", "log-level=none")
HDR10 = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50):max-cll=1000,400"


@pytest.fixture
def events(vdeblur) -> Callable[..., list[dict]]:
    """Run with -m identity; gives the events, after a look at the exit status."""

    def call(*arguments: object, status: int = 0) -> list[dict]:
        result = vdeblur("run", *arguments, "-m", "identity", "--json")
        assert result.exit_code == status, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]

    return call


def _warnings(events: list[dict]) -> dict[str, str]:
    return {event["code"]: event["message"] for event in events if event["event"] == "warning"}


def _error(events: list[dict]) -> str:
    return next(f"{event['message']} ({event['hint']})" for event in events if event["event"] == "error")


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
    """What can be decoded is, it is counted, and the sound keeps its times."""
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
    """Times start anew in the middle: what follows is moved on, sound and pictures by the same time."""
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
        events(source, f"{pictures}/")
        assert numpy.abs(_alpha(pictures / "000001.png") - _alpha(source)).mean() < 1
        without = tmp_path / f"without{suffix}.mp4"
        assert "transparency" in _warnings(events(source, without, "-c", "h264"))["W_ALPHA"]
        assert clips.rgb(without).mean() > 50, "not black"


def _alpha(path: Path) -> numpy.ndarray:
    """Give the first frame's alpha as the independent ffmpeg sees it: (H, W) of 0 to 255."""
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
