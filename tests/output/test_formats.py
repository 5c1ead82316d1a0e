"""Pixel formats, colour tags and encoders: outputs play, look right, and refusals are sentences."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy
import pytest

from tests import clips
from vdeblur.cli.report import JsonReporter
from vdeblur.errors import ExitStatus, OutputError
from vdeblur.frame import Frame, convert_picture, has_alpha, plane_array
from vdeblur.output import external
from vdeblur.output.codecs import ENCODERS
from vdeblur.output.encoding import VideoEncoding
from vdeblur.settings import EncodeOptions
from vdeblur.source.info import SourceInfo

IDENTITY = ("-m", "identity", "--preset", "ultrafast")
TICK = Fraction(1, 25)
H264 = ("-c:v", "libx264", "-preset", "ultrafast")
# What FFmpeg says among itself: functions, numbers, placeholders, addresses.
RAW = re.compile(r"avcodec_open2|Errno|<none>|0x[0-9a-f]{4}|returned \d+|-strict|Traceback|internal error")


def described(path: Path) -> str:
    """Return the independent ffmpeg's line about the video stream, with pixel format, range and matrix."""
    done = subprocess.run([clips.FFMPEG, "-hide_banner", "-i", str(path)], capture_output=True, text=True, check=False)
    return next(line for line in done.stderr.splitlines() if "Video:" in line)


def run(vdeblur, *arguments: object) -> str:
    """Run, check that it worked, and return what it said on one line."""
    result = vdeblur("run", *arguments, *IDENTITY)
    assert result.exit_code == 0, result.output
    assert not RAW.search(result.output), result.output
    return " ".join(result.stderr.split())


def smooth(path: Path, pix_fmt: str, *codec: str) -> Path:
    """Make a clip of slow colour waves, whose chroma survives subsampling."""
    waves = "geq=r='128+100*sin(X/20)':g='128+100*sin(Y/17)':b='128+100*cos((X+Y)/25)':a='64+X+Y'"
    drawing = f"color=black:s=64x48:r=25:d=0.2,format=gbrap,{waves}"
    clips.ffmpeg("-f", "lavfi", "-i", drawing, "-pix_fmt", pix_fmt, *codec, path)
    return path


def alpha_of(path: Path) -> numpy.ndarray:
    """Decode the alpha channel of the first frame with the independent ffmpeg: uint8, (48, 64)."""
    decoder = ("-c:v", "libvpx-vp9") if path.suffix == ".webm" else ()
    command = [clips.FFMPEG, "-v", "error", *decoder, "-i", str(path), "-frames:v", "1"]
    command += ["-vf", "format=yuva444p,alphaextract", "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    return numpy.frombuffer(data, numpy.uint8).reshape(48, 64)


TRANSPARENT = {
    "png.mkv": ("rgba", "-c:v", "png"),
    "qtrle.mov": ("argb", "-c:v", "qtrle"),
    "p4444.mov": ("yuva444p10le", "-c:v", "prores_ks"),
    "ffv1.mkv": ("yuva420p", "-c:v", "ffv1"),
    "deep.mkv": ("gbrap12le", "-c:v", "ffv1"),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparency_goes_into_webm_by_itself(vdeblur, tmp_path: Path, name: str) -> None:
    """R18: RGBA, ProRes 4444 and GIF to .webm ended with FFmpeg's "avcodec_open2 returned 22"."""
    pix_fmt, *codec = TRANSPARENT[name]
    source, output = smooth(tmp_path / name, pix_fmt, *codec), tmp_path / "out.webm"
    run(vdeblur, source, output)
    assert "yuv420p" in described(output)
    tags = clips.ffmpeg("-i", output, "-f", "ffmetadata", "-map_metadata", "0:s:v", "-")
    assert "alpha_mode=1" in tags.lower()
    assert abs(alpha_of(output).astype(int) - alpha_of(source)).mean() < 3
    assert clips.psnr(clips.rgb(source), clips.rgb(output)) > 30


def test_gif_and_pictures_with_transparency_go_into_webm(vdeblur, tmp_path: Path) -> None:
    """R18: a folder of RGBA pictures, with and without --pix-fmt, and a GIF."""
    folder = tmp_path / "rgba"
    folder.mkdir()
    clips.ffmpeg("-i", smooth(tmp_path / "in.mkv", "rgba", "-c:v", "png"), folder / "f%04d.png")
    gif = clips.make(tmp_path / "a.gif", frames=3, pix_fmt="rgb8", codec=())
    for index, arguments in enumerate(((folder,), (folder, "--pix-fmt", "yuva420p"), (gif,))):
        output = tmp_path / f"{index}.webm"
        run(vdeblur, arguments[0], output, *arguments[1:])
        assert "yuv420p" in described(output)


PLAYED = [(suffix, codec) for suffix in (".mp4", ".mov") for codec in ("", "h264", "hevc")]


@pytest.mark.parametrize(("suffix", "codec"), [*PLAYED, (".mp4", "av1"), (".mp4", "vp9")])
def test_rgb_in_mp4_becomes_what_players_show(vdeblur, tmp_path: Path, suffix: str, codec: str) -> None:
    """A4: RGB became H.264 in 4:4:4 GBR, which phones, browsers and QuickTime do not play."""
    source, output = smooth(tmp_path / "screen.mkv", "bgr0", "-c:v", "ffv1"), tmp_path / f"out{suffix}"
    said = run(vdeblur, source, output, *(("-c", codec) if codec else ()), "--crf", 4)
    assert "RGB becomes yuv420p" in said
    line = described(output)
    assert re.search(r"yuv420p\(tv, smpte170m", line), line
    assert clips.psnr(clips.rgb(source), clips.rgb(output)) > 32, "the tags and the samples agree"


def test_rgb_stays_rgb_where_it_is_asked_for(vdeblur, tmp_path: Path) -> None:
    """A4: outside MP4, or with an encoder for RGB, RGB stays as it is."""
    source = smooth(tmp_path / "screen.mkv", "bgr0", "-c:v", "ffv1")
    for name, codec in (("a.mp4", ("-c", "libx264rgb")), ("b.mkv", ("-c", "h264", "--crf", 1)), ("c.mkv", ())):
        run(vdeblur, source, tmp_path / name, *codec)
        assert re.search(r"gbrp|bgr0", described(tmp_path / name))
        assert clips.psnr(clips.rgb(source), clips.rgb(tmp_path / name)) > 35
    odd = clips.make(tmp_path / "odd.gif", size="61x47", frames=2, pix_fmt="rgb8", codec=())
    said = run(vdeblur, odd, tmp_path / "odd.mp4")
    assert "common players do not show RGB" in said
    assert clips.facts(tmp_path / "odd.mp4").size == (61, 47)


@pytest.mark.parametrize("size", ["64x48", "1280x720"])
@pytest.mark.parametrize("codec", ["h264", "hevc", "ffv1", "vp9"])
def test_subsampled_rgb_has_a_matrix_that_is_allowed(vdeblur, tmp_path: Path, size: str, codec: str) -> None:
    """R19: with --pix-fmt yuv420p, RGB was tagged GBR, which H.264 and HEVC allow in 4:4:4 only."""
    source, output = tmp_path / "in.mkv", tmp_path / "out.mkv"
    waves = "geq=r='128+100*sin(X/20)':g='128+100*sin(Y/17)':b='128+100*cos((X+Y)/25)'"
    drawing = f"color=black:s={size}:r=25,format=gbrp,{waves}"
    clips.ffmpeg("-f", "lavfi", "-i", drawing, "-frames:v", 1, "-pix_fmt", "bgr0", "-c:v", "ffv1", source)
    run(vdeblur, source, output, "--pix-fmt", "yuv420p", "-c", codec, "--crf", 4)
    matrix = "bt709" if size == "1280x720" else "smpte170m"
    assert re.search(rf"yuv420p\(tv, {matrix}", described(output)), described(output)
    assert clips.psnr(clips.rgb(source), clips.rgb(output)) > 32


def test_yuv_as_rgb_is_tagged_rgb(vdeblur, tmp_path: Path) -> None:
    """R19: the other way round, RGB samples kept the tags of the Y'CbCr input."""
    tags = ("-color_range", "tv", "-colorspace", "bt709")
    source = clips.make(tmp_path / "in.mkv", codec=("-c:v", "ffv1"), pix_fmt="yuv444p", extra=tags, frames=2)
    output = tmp_path / "out.mkv"
    run(vdeblur, source, output, "--pix-fmt", "gbrp10le", "-c", "ffv1")
    assert re.search(r"gbrp10le\(pc, gbr", described(output)), described(output)
    assert clips.psnr(clips.rgb(source), clips.rgb(output)) > 38


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mxf", "mpeg2video"), (".ogv", "vp8"), (".ivf", "vp9"), (".hevc", "hevc")]
)
def test_containers_choose_an_encoder_that_fits(vdeblur, tmp_path: Path, suffix: str, codec: str) -> None:
    """R24: .mxf and .ogv ended with "'<none>' returned 22"."""
    source = clips.make(tmp_path / "in.mkv", codec=H264, size="128x96", frames=5)
    run(vdeblur, source, tmp_path / f"out{suffix}")
    assert f"Video: {codec}" in described(tmp_path / f"out{suffix}")
    assert len(clips.frame_hashes(tmp_path / f"out{suffix}")) == 5


def test_mpeg2_in_its_own_containers_is_not_warned_of(vdeblur, tmp_path: Path) -> None:
    """R24: "mpeg2video is not written by itself; using mpeg2video"."""
    source = clips.make(tmp_path / "in.mpg", codec=("-c:v", "mpeg2video", "-q:v", "2"), size="128x96")
    for suffix in (".mpg", ".mxf"):
        assert "mpeg2video is not used" not in run(vdeblur, source, tmp_path / f"out{suffix}")


REFUSED = [
    ("out.gif", (), "holds no video that vdeblur can write"),
    ("out.mp3", (), "holds no video that vdeblur can write"),
    ("out.mp4", ("-c", "prores"), "prores_ks"),
    ("out.webm", ("-c", "h264"), "libx264"),
    ("out.mp4", ("-c", "h264", "-e", "profile=nonsense"), "check -e profile"),
    ("out.mkv", ("-c", "av1", "--pix-fmt", "yuv444p16le"), "does not take"),
]


@pytest.mark.parametrize(("name", "options", "words"), REFUSED)
def test_refusals_are_sentences(vdeblur, tmp_path: Path, name: str, options: tuple[str, ...], words: str) -> None:
    """A5: FFmpeg's raw errors never reach a person."""
    source = clips.make(tmp_path / "in.mkv", codec=H264, frames=2)
    result = vdeblur("run", source, tmp_path / name, *options, "-m", "identity")
    assert result.exit_code == ExitStatus.OUTPUT, result.output
    assert not RAW.search(result.output), result.output
    assert words in result.output
    assert not (tmp_path / name).exists()


def test_a_silent_external_encoder_is_not_complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """B: an encoder that was silent at its end counted as complete."""
    monkeypatch.setattr(external, "WAIT_SECONDS", 0.2)
    color = {"primaries": 2, "transfer": 2, "matrix": 2, "range": 0}
    info = SourceInfo(tmp_path, 64, 48, "yuv444p", "ffv1", Fraction(1, 25), Fraction(25), 1, None, color=color)
    encoder = external.ExternalEncoder(info, "libaom-av1", "yuv420p", {"cpu-used": "8"})
    encoder.stand_alone("matroska")
    sleeper = "import sys, time; sys.stdin.buffer.read(); time.sleep(60)"
    monkeypatch.setattr(encoder, "_command", lambda: [sys.executable, "-c", sleeper])
    picture = av.VideoFrame(64, 48, "yuv420p")
    picture.pts = 0
    encoder.encode(picture)
    with pytest.raises(OutputError, match="has written nothing"):
        encoder.encode(None)
    encoder.close()


def test_an_external_encoder_that_loses_pictures_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """B: where ffmpeg ended early but without an error, its last pictures were missing."""
    color = {"primaries": 2, "transfer": 2, "matrix": 2, "range": 0}
    info = SourceInfo(tmp_path, 64, 48, "yuv444p", "ffv1", Fraction(1, 25), Fraction(25), 1, None, color=color)
    encoder = external.ExternalEncoder(info, "libaom-av1", "yuv420p", {"cpu-used": "8"})
    encoder.stand_alone("matroska")
    command = encoder._command()
    shorter = [*command[:-3], "-frames:v", "2", *command[-3:]]
    monkeypatch.setattr(encoder, "_command", lambda: shorter)
    with pytest.raises(OutputError, match=r"pictures missing|failed"):
        encode_all(encoder, 5)
    encoder.close()


def encode_all(encoder: external.ExternalEncoder, count: int) -> None:
    for pts in range(count):
        picture = av.VideoFrame(64, 48, "yuv420p")
        picture.pts = pts
        encoder.encode(picture)
    encoder.encode(None)


def ycgco(tmp_path: Path) -> tuple[Path, Path]:
    """Make the same pictures as RGB and as YCgCo, 4:4:4, full range, with FFmpeg's matrix tag 8."""
    source, target = smooth(tmp_path / "rgb.mkv", "bgr0", "-c:v", "ffv1"), tmp_path / "ycgco.mkv"
    rgb = clips.rgb(source).astype(numpy.float64)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    luma, cg, co = red / 4 + green / 2 + blue / 4, green / 2 - red / 4 - blue / 4, red / 2 - blue / 2
    raw = numpy.stack([luma, cg + 128, co + 128], 1).round().clip(0, 255).astype(numpy.uint8)
    (tmp_path / "raw.yuv").write_bytes(raw.tobytes())
    form = ("-f", "rawvideo", "-pix_fmt", "yuv444p", "-s", "64x48", "-r", 25)
    coded = ("-c:v", "libx264", "-qp", 0, "-x264-params", "colormatrix=YCgCo:fullrange=on")
    clips.ffmpeg(*form, "-i", tmp_path / "raw.yuv", *coded, target)
    return source, target


def samples(path: Path) -> numpy.ndarray:
    with av.open(str(path)) as container:
        return numpy.stack([frame.to_ndarray() for frame in container.decode(video=0)])


def test_ycgco_is_read_as_ycgco(vdeblur, tmp_path: Path) -> None:
    """B: YCgCo was claimed, but read as BT.601: networks and comparisons saw other colours."""
    import vdeblur as package

    source, coded = ycgco(tmp_path)
    with package.open(coded) as video:
        seen = numpy.stack([255 * frame.rgb().permute(1, 2, 0).numpy() for frame in video])
    assert abs(seen - clips.rgb(source)).max() < 2
    run(vdeblur, coded, tmp_path / "pictures", "--pictures")
    run(vdeblur, coded, tmp_path / "rgb10.mkv", "--pix-fmt", "gbrp10le", "-c", "ffv1")
    run(vdeblur, coded, tmp_path / "same.mkv", "--lossless")
    assert clips.psnr(clips.rgb(source), clips.rgb(tmp_path / "rgb10.mkv")) > 45
    assert "ycgco" in described(tmp_path / "same.mkv")
    assert (samples(tmp_path / "same.mkv") == samples(coded)).all()
    assert clips.psnr(clips.ffmpeg_rgb(tmp_path / "pictures" / "000001.png")[None], clips.rgb(source)[:1]) > 45


def test_infinite_numbers_are_valid_json(capsys: pytest.CaptureFixture[str]) -> None:
    """B: infinite PSNR, as of frames that stay as they are, made invalid JSON."""
    JsonReporter().notify("validation", {"psnr": float("inf"), "scores": ({"loss": float("nan")}, 1.5)})
    line = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (line["psnr"], line["scores"]) == (None, [{"loss": None}, 1.5])


FORMATS = ["gbrap", "yuva444p12le", "gbrp16le", "gray16le", "yuv410p", "yuv440p12le", "yuvj420p", "gray", "yuva420p"]
HOMES = {"prores_ks": ".mov", "qtrle": ".mov", "rawvideo": ".nut", "mpeg2video": ".mpg", "libvpx": ".webm"}
PLAIN = sorted(ENCODERS.keys() - {"libaom-av1", "librav1e", "libsvtav1"})  # of PyAV, and fast to open


def recorder(warned: list[tuple[str, str]]) -> Callable[[str, str], None]:
    """Return a Warn that keeps code and message."""

    def warn(code: str, message: str) -> None:
        warned.append((code, message))

    return warn


@pytest.mark.parametrize("name", PLAIN)
def test_every_encoder_chooses_a_format_that_works(tmp_path: Path, name: str) -> None:
    """A5: mjpeg took no video at all, and libvpx and libvpx-vp9 listed formats that they refuse."""
    for source in FORMATS:
        rgb = source.startswith("gb")
        color = {"primaries": 2, "transfer": 2, "matrix": 0 if rgb else 2, "range": 2 if rgb else 0}
        info = SourceInfo(tmp_path / "x.mkv", 256, 128, source, "ffv1", TICK, 1 / TICK, 2, None, color=color)
        warned: list[tuple[str, str]] = []
        options = EncodeOptions(codec=name, preset="ultrafast")
        encoding = VideoEncoding(info, HOMES.get(name, ".mkv"), options, recorder(warned))
        encoder = encoding.open()
        encoder.stand_alone(encoding.container_name)
        picture = av.VideoFrame(256, 128, source)
        for plane in picture.planes:
            plane.update(bytes(plane.buffer_size))
        picture.colorspace, picture.color_range = color["matrix"], color["range"]
        packets = [*encoder.encode(encoding.prepare(Frame(picture, 0, TICK))), *encoder.encode(None)]
        encoder.close()
        assert len(packets) == 1, source
        assert has_alpha(encoding.format) == has_alpha(source) or "W_ALPHA" in dict(warned), (source, encoding.format)


def test_motion_jpeg_has_the_right_range(vdeblur, tmp_path: Path) -> None:
    """A5: Motion JPEG has full range; -c mjpeg ended with "avcodec_open2 returned 22"."""
    source = smooth(tmp_path / "in.mkv", "yuv420p", "-c:v", "ffv1")
    run(vdeblur, source, tmp_path / "out.avi", "-c", "mjpeg", "--crf", 4)
    assert re.search(r"yuvj420p\(pc", described(tmp_path / "out.avi"))
    assert clips.psnr(clips.rgb(source), clips.rgb(tmp_path / "out.avi")) > 32


def test_tags_follow_the_format(tmp_path: Path) -> None:
    """R19: what the encoder is told and what the samples are is one thing."""
    color = {"primaries": 2, "transfer": 2, "matrix": 0, "range": 2}
    info = SourceInfo(tmp_path, 64, 48, "gbrp", "png", Fraction(1, 25), Fraction(25), 1, None, color=color)
    encoding = VideoEncoding(info, ".mkv", EncodeOptions(pix_fmt="yuv420p"), lambda code, message: None)
    assert (encoding.info.color["matrix"], encoding.info.color["range"]) == (6, 1)
    white = av.VideoFrame(64, 48, "gbrp")
    for index in range(3):
        plane_array(white, index)[:] = 255
    picture = convert_picture(white, "yuv420p")
    assert plane_array(picture, 0).max() == 235
    assert int(picture.colorspace) == 6


@pytest.mark.parametrize("size", ["34x18", "48x30", "40x24"])
def test_sizes_that_crash_x265_are_refused(vdeblur, tmp_path: Path, size: str) -> None:
    """R24: x265 wrote beyond its memory, and the process ended by a signal, with its hidden folder left behind."""
    source = clips.make(tmp_path / "in.mkv", frames=2, size=size)
    result = vdeblur("run", source, tmp_path / "out.mp4", *IDENTITY, "-c", "hevc")
    assert result.exit_code == ExitStatus.OUTPUT
    assert f"libx265 crashes on frames of {size} (use --codec h264" in result.stderr
    assert not list(tmp_path.glob(".vdeblur-*"))
    run(vdeblur, source, tmp_path / "out.mp4", "-c", "h264")
