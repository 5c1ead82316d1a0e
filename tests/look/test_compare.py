"""`vdeblur compare`: what is put together, when, and where it goes."""

import json
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy
import pytest

from tests import clips
from vdeblur.errors import ExitStatus, InterruptedRunError
from vdeblur.frame import Frame, plane_array
from vdeblur.look import compare, compose
from vdeblur.settings import COMPARE_MODES as MODES

H264 = ("-c:v", "libx264", "-preset", "ultrafast")


def gray(path: Path, level: int, frames: int = 4, size: str = "64x48", rate: int = 25) -> Path:
    source = f"color=c=0x{level:02x}{level:02x}{level:02x}:s={size}:r={rate},format=gray"
    clips.ffmpeg("-f", "lavfi", "-i", source, "-frames:v", frames, "-c:v", "ffv1", "-pix_fmt", "yuv420p", path)
    return path


def luma(path: Path) -> numpy.ndarray:
    with av.open(str(path)) as container:
        return numpy.stack([plane_array(frame, 0).copy() for frame in container.decode(video=0)])


@pytest.fixture
def dark_and_light(tmp_path: Path) -> tuple[Path, Path]:
    return gray(tmp_path / "dark.mkv", 40), gray(tmp_path / "light.mkv", 200)


def test_the_modes_are_those_of_the_command_line() -> None:
    assert {*MODES} == {*compose.MODES, "html"}


@pytest.mark.parametrize("size", ["64x48", "63x47"])
def test_side_and_split_show_both(vdeblur, tmp_path: Path, size: str) -> None:
    a, b = gray(tmp_path / "a.mkv", 40, size=size), gray(tmp_path / "b.mkv", 200, size=size)
    dark, light = luma(a)[0, 0, 0], luma(b)[0, 0, 0]
    for mode, expected in (("side", (48, 128)), ("split", (48, 64))):
        output = tmp_path / f"{mode}.mkv"
        assert vdeblur("compare", a, b, "--mode", mode, "-o", output).exit_code == 0
        shown = luma(output)
        assert shown.shape == (4, *expected)
        middle = expected[1] // 2
        assert (shown[:, :, : middle - 2] == dark).all()
        assert (shown[:, :, middle + 2 :] == light).all()
        if mode == "split":
            assert (shown[:, :, middle : middle + 2] == 235).all()


def test_the_divide_of_a_wipe_goes_to_and_fro(vdeblur, tmp_path: Path) -> None:
    a, b = (gray(tmp_path / f"{level}.mkv", level, frames=9, rate=2) for level in (40, 200))
    output = tmp_path / "wipe.mkv"
    assert vdeblur("compare", a, b, "--mode", "wipe", "-o", output).exit_code == 0
    shares = (luma(output) == luma(a)[0, 0, 0]).mean((1, 2))
    assert shares[0] < 0.1
    assert shares[4] > 0.9
    assert list(shares[:5]) == sorted(shares[:5])
    assert shares[8] == shares[0]


def test_differences_stand_around_grey(vdeblur, tmp_path: Path) -> None:
    a, b, output = gray(tmp_path / "a.mkv", 100), gray(tmp_path / "b.mkv", 105), tmp_path / "diff.mkv"
    step = int(luma(b)[0, 0, 0]) - int(luma(a)[0, 0, 0])
    for first, second, expected in ((a, b, 126 + 4 * step), (b, a, 126 - 4 * step), (a, a, 126)):
        assert vdeblur("compare", first, second, "--mode", "diff", "-o", output, "-y").exit_code == 0
        with av.open(str(output)) as container:
            planes = next(container.decode(video=0)).to_ndarray()
        assert abs(int(planes[0, 0]) - expected) <= 1, "grey is halfway between 16 and 235"
        assert (planes[48:] == 128).all()


def test_times_colour_and_sound_are_the_first_videos(vdeblur, tmp_path: Path) -> None:
    tags = "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
    uneven = "settb=1/30000,setpts=N*1000+mod(N*N\\,7)*90"
    times = ("-fps_mode", "vfr", "-enc_time_base", "1/30000")
    a = clips.make(
        tmp_path / "a.mp4", frames=20, codec=H264, audio=("-c:a", "aac"), extra=("-vf", f"{tags},{uneven}", *times)
    )
    b = clips.make(tmp_path / "b.mkv", frames=20, extra=("-vf", f"negate,{uneven}", *times))
    output = tmp_path / "side.mp4"
    result = vdeblur("compare", a, b, "-o", output)
    assert result.exit_code == 0, result.output
    assert "warning" not in result.output
    assert clips.facts(output).seconds == clips.facts(a).seconds
    with av.open(str(output)) as copied, av.open(str(a)) as original:
        sounds = [[(packet.pts, bytes(packet)) for packet in file.demux(audio=0)] for file in (copied, original)]
    assert len(sounds[0]) > 20
    assert sounds[0] == sounds[1]
    with av.open(str(output)) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (1, 1, 1, 1)


def test_what_is_filmed_upright_stands_upright(vdeblur, tmp_path: Path) -> None:
    plain, turned, output = (tmp_path / name for name in ("plain.mp4", "turned.mp4", "side.mp4"))
    clips.make(plain, codec=(*H264, "-qp", "0"), frames=1)
    clips.ffmpeg("-display_rotation", "90", "-i", plain, "-c", "copy", turned)
    assert vdeblur("compare", turned, turned, "-o", output).exit_code == 0
    upright, both = clips.ffmpeg_rgb(turned), clips.ffmpeg_rgb(output)
    assert upright.shape == (64, 48, 3)
    assert both.shape == (64, 96, 3)
    for half in (both[:, :48], both[:, 48:]):
        assert clips.psnr(half[None], upright[None]) > 30, "the other quarter turn has 10 dB"


def test_ten_bits_stay_ten_bits(vdeblur, tmp_path: Path) -> None:
    a = clips.make(tmp_path / "a.mkv", pix_fmt="yuv422p10le", frames=2)
    b = clips.make(tmp_path / "b.mkv", pix_fmt="yuv420p", frames=2)
    output = tmp_path / "side.mkv"
    assert vdeblur("compare", a, b, "-o", output).exit_code == 0
    assert clips.facts(output).pix_fmt == "yuv422p10le"
    with av.open(str(output)) as both, av.open(str(a)) as original:
        shown, alone = next(both.decode(video=0)), next(original.decode(video=0))
        assert (shown.to_ndarray()[..., 0][:, :64] == alone.to_ndarray()[..., 0]).all()


def frames_at(*milliseconds: int) -> list[Frame]:
    picture = av.VideoFrame(16, 16, "gray")
    return [Frame(picture, time, Fraction(1, 1000), str(time)) for time in milliseconds]


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ([0, 40, 80], [0, 40, 80], [(0, 0), (40, 40), (80, 80)]),
        ([0, 40, 80], [1000, 1040, 1080], [(0, 1000), (40, 1040), (80, 1080)]),
        ([0, 40, 80], [0, 80], [(0, 0), (80, 80)]),
        ([0, 40, 80], [0, 21, 41, 61, 79], [(0, 0), (40, 41), (80, 79)]),
        ([0, 80], [0, 40, 80, 120], [(0, 0), (80, 80)]),
        ([0, 33, 67], [0, 34, 66], [(0, 0), (33, 34), (67, 66)]),
        ([0, 40], [], []),
        ([], [0, 40], []),
    ],
)
def test_the_nearest_frame_in_time_is_taken(left: list[int], right: list[int], expected: list) -> None:
    pairs = compare.matched(iter(frames_at(*left)), iter(frames_at(*right)), Fraction(20, 1000))
    assert [(a.pts, b.pts) for a, b in pairs] == expected


def test_frames_without_a_counterpart_are_counted(vdeblur, tmp_path: Path, dark_and_light) -> None:
    result = vdeblur("compare", gray(tmp_path / "a.mkv", 40, frames=7), dark_and_light[1], "-o", tmp_path / "o.mkv")
    assert result.exit_code == 0
    assert re.search(r"3 frames of \S+a.mkv and 0 of \S+light.mkv have no counterpart", result.output)
    assert len(luma(tmp_path / "o.mkv")) == 4


def test_damage_is_told(vdeblur, tmp_path: Path, shared: Path) -> None:
    broken = shared / "data" / "odd" / "h264_breaks_after_28.mp4"
    intact = clips.make(tmp_path / "a.mkv", size="1280x720", rate="10", frames=50)
    result = vdeblur("compare", intact, broken, "-o", tmp_path / "page.html")
    assert result.exit_code == 0
    assert "is damaged in 2 places" in result.output
    assert "1 frames of" in result.output


def test_metrics_equal_the_independent_ffmpegs(vdeblur, tmp_path: Path) -> None:
    a = clips.make(tmp_path / "a.mkv", pix_fmt="bgr0", frames=3)
    b = clips.make(tmp_path / "b.mkv", pix_fmt="bgr0", frames=3, extra=("-vf", "boxblur=1"))
    result = vdeblur("compare", a, b, "--metrics")
    rows = [[float(cell) for cell in line.split()] for line in result.stdout.splitlines()[1:4]]
    log = tmp_path / "psnr.log"
    clips.ffmpeg("-i", a, "-i", b, "-lavfi", f"[0]format=gbrp[a];[1]format=gbrp[b];[a][b]psnr={log}", "-f", "null", "-")
    expected = [float(value) for value in re.findall(r"psnr_avg:(\S+)", log.read_text())]
    assert [row[2] for row in rows] == pytest.approx(expected, abs=0.006), "both are rounded to a hundredth"
    assert all(0.2 < row[3] < 0.999 for row in rows)
    assert f"mean of 3 frames  {sum(expected) / 3:.2f} dB" in result.stdout
    assert not list(tmp_path.glob("*_side*")), "nothing is written"


def test_folders_of_pictures_by_their_order(vdeblur, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    video = clips.make(tmp_path / "in.mkv", rate="50", pix_fmt="bgr0", frames=3)
    clips.ffmpeg("-i", video, tmp_path / "frames" / "%d.png")
    result = vdeblur("compare", tmp_path / "frames", video, "--metrics")
    assert result.stdout.count(" inf  1.0000") == 3


def test_the_page_stands_alone(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "a <b>.mkv", frames=40)
    output = tmp_path / "page.html"
    assert vdeblur("compare", source, source, "-o", output).exit_code == 0
    text = output.read_text("utf-8")
    assert "a &lt;b&gt;.mkv" in text
    assert not re.search(r"""(src|href)=["'](?!data:)""", text), "nothing is loaded"
    pictures = text.count("data:image/")
    assert pictures == 2 * 10, "40 frames, every fourth"
    assert text.count('type="range"') == 10, "which keyboards move, too"


@pytest.mark.parametrize(("length", "expected"), [(0, []), (5, [0, 1, 2, 3, 4]), (12, [*range(12)])])
def test_evenly_keeps_few_whole(length: int, expected: list[int]) -> None:
    assert compare.evenly(iter(range(length)), 12) == expected


@pytest.mark.parametrize("length", [13, 24, 25, 100, 1000])
def test_evenly_spaces_what_it_keeps(length: int) -> None:
    kept = compare.evenly(iter(range(length)), 12)
    assert 6 < len(kept) <= 12
    assert len(set(numpy.diff(kept))) == 1
    assert kept[0] == 0
    assert kept[-1] + numpy.diff(kept)[0] >= length


def test_what_cannot_be_compared(vdeblur, tmp_path: Path, dark_and_light) -> None:
    a, b = dark_and_light
    small = gray(tmp_path / "small.mkv", 40, size="32x32")
    (tmp_path / "text.mkv").write_text("no video")
    (tmp_path / "there.mkv").write_text("kept")
    cases = [
        (a, small, ("-o", tmp_path / "o.mkv"), 3, "dark.mkv is 64x48, "),
        (a, tmp_path / "none.mkv", (), 3, "no such file"),
        (tmp_path / "text.mkv", a, (), 3, "cannot be read as video"),
        ("-", a, (), 2, "cannot read a pipe"),
        (a, b, ("-o", tmp_path / "there.mkv"), 4, "exists already"),
        (a, b, ("-o", a, "-y"), 4, "is the input itself"),
        (a, b, ("-o", b, "-y"), 4, "is the input itself"),
        (a, b, ("-o", tmp_path / "o.xyz"), 4, "cannot be written"),
        (a, b, ("-o", tmp_path / "o.html", "--mode", "wipe"), 4, "is not a video format"),
        (a, b, ("-o", tmp_path / "o.mp4", "--mode", "html"), 4, "named *.html"),
        (a, b, ("-o", tmp_path / "none" / "o.mp4"), 4, "does not exist"),
    ]
    before = sorted(tmp_path.iterdir())
    for first, second, options, status, message in cases:
        result = vdeblur("compare", first, second, *options)
        assert result.exit_code == status, result.output
        assert message in result.output
        assert result.stderr.strip().count("\n") == 0, "one line"
    assert sorted(tmp_path.iterdir()) == before, "no draft is left"
    assert (tmp_path / "there.mkv").read_text() == "kept"


def test_a_signal_leaves_nothing(tmp_path: Path, dark_and_light) -> None:
    a, b = dark_and_light
    asked = iter([None, None, ExitStatus.INTERRUPTED])
    output = tmp_path / "o.mkv"
    with pytest.raises(InterruptedRunError):
        compare.write_comparison(a, b, output, "side", overwrite=False, stop=lambda: next(asked))
    assert {path.name for path in tmp_path.iterdir()} <= {"dark.mkv", "light.mkv"}


def test_progress_and_warnings_are_told(tmp_path: Path, dark_and_light) -> None:
    a, b = dark_and_light
    events: list[tuple[str, dict]] = []
    output = tmp_path / "o.mkv"
    notify = lambda event, facts: events.append((event, facts))  # noqa: E731
    assert compare.write_comparison(a, b, output, "split", overwrite=False, notify=notify) == 4
    assert [event for event, _ in events] == ["progress"] * 4
    assert events[-1][1]["frame"] == 4
    json.dumps(events)
