"""`vdeblur probe`: what it says of files whose properties are known, and that what it suggests works."""

import json
import re
import shlex
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy
import pytest
from torch.nn import functional as F

from tests import clips
from tests.conftest import ROOT
from tests.measure.test_shutter import scene
from vdeblur.source import times as source_times

H264 = ("-c:v", "libx264", "-preset", "ultrafast")


@pytest.fixture
def probed(vdeblur):
    """Probe a file; gives the JSON object."""

    def call(path: Path, *options: str) -> dict:
        result = vdeblur("probe", "--json", *options, path)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return call


def codes(facts: dict) -> set[str]:
    return {warning["code"] for warning in facts["warnings"]}


def test_a_plain_video(probed, tmp_path: Path) -> None:
    tags = "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv,setsar=4/3"
    facts = probed(clips.make(tmp_path / "in.mp4", frames=40, codec=H264, extra=("-vf", tags)))
    expected = {
        "width": 64, "height": 48, "codec": "h264", "pixel_format": "yuv420p", "bits": 8, "chroma": "4:2:0",
        "sample_aspect_ratio": "4:3", "rotation": 0, "interlaced": False, "rate": 25, "variable_rate": False,
        "gaps": 0, "duration": 1.6, "frames": 40, "frames_counted": True, "streams": [], "warnings": [],
    }  # fmt: skip
    assert {key: facts[key] for key in expected} == expected
    assert facts["color"] == {
        "primaries": "bt709",
        "transfer": "bt709",
        "matrix": "bt709",
        "range": "limited",
        "hdr": None,
    }
    output = {"file": str(tmp_path / "in_sharp.mp4"), "encoder": "libx264", "pixel_format": "yuv420p"}
    assert facts["output"] == output


def test_the_documentation_names_every_key(probed, tmp_path: Path) -> None:
    facts = probed(clips.make(tmp_path / "in.mp4", codec=H264))
    text = (ROOT / "docs" / "json.md").read_text("utf-8")
    section = text[text.index("### `probe`") : text.index("### `doctor`")]
    for key in facts:
        assert f"`{key}`" in section, key


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_uneven_times_are_seen_in_packets(probed, tmp_path: Path, suffix: str) -> None:
    even = clips.make(tmp_path / f"even{suffix}", frames=60, rate="30000/1001", codec=(*H264, "-bf", "2"))
    uneven = clips.make(
        tmp_path / f"uneven{suffix}", frames=60, codec=(*H264, "-bf", "2"),
        extra=("-vf", "settb=1/30000,setpts=N*1000+mod(N*N\\,7)*90", "-fps_mode", "vfr", "-enc_time_base", "1/30000"),
    )  # fmt: skip
    assert not probed(even)["variable_rate"]
    assert probed(even)["rate"] == pytest.approx(29.97, rel=2e-3)
    facts = probed(uneven)
    assert facts["variable_rate"]
    least, _, most = facts["interval_seconds"]
    assert least < 0.033 < most < 0.06


def test_a_gap_is_no_variable_rate(probed, tmp_path: Path) -> None:
    extra = ("-vf", "select='not(between(n\\,20\\,22))'", "-fps_mode", "vfr")
    facts = probed(clips.make(tmp_path / "in.mp4", frames=50, codec=H264, extra=extra))
    assert (facts["variable_rate"], facts["gaps"], facts["rate"]) == (False, 1, 25)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_large_files_are_sampled(vdeblur, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Twenty seconds whose last tenth has another rhythm: only who looks at the end sees it.
    uneven = "settb=1/30000,setpts='if(lt(N,450),N*1200,450*1200+(N-450)*1200+mod(N*N,7)*100)'"
    source = clips.make(
        tmp_path / f"in{suffix}", frames=500,
        codec=("-c:v", "libx264", "-preset", "veryfast", "-x264-params", "open-gop=1:keyint=25:bframes=3"),
        extra=("-vf", uneven, "-fps_mode", "vfr", "-enc_time_base", "1/30000"),
    )  # fmt: skip
    complete = json.loads(vdeblur("probe", "--json", source).stdout)
    monkeypatch.setattr(source_times, "WHOLE_BYTES", 0)
    monkeypatch.setattr(source_times, "WINDOW_PACKETS", 40)
    sampled = json.loads(vdeblur("probe", "--json", source).stdout)
    for facts in (complete, sampled):
        assert facts["variable_rate"]
        assert codes(facts) == set()
    assert (complete["frames"], complete["frames_counted"], sampled["frames_counted"]) == (500, True, False)


def test_streams_are_planned_and_a_suffix_suggested(probed, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", codec=H264, audio=("-c:a", "libvorbis"),
                        extra=("-metadata:s:a:0", "language=deu"))  # fmt: skip
    (stream,) = probed(source)["streams"]
    assert [stream[key] for key in ("index", "type", "codec", "language", "action")] == [
        1, "audio", "vorbis", "deu", "keep",
    ]  # fmt: skip
    (stream,) = probed(source, "--output-suffix", "mov")["streams"]
    assert stream["action"] != "keep"
    assert ".mov" in stream["reason"] or "mov" in stream["reason"]
    assert probed(source)["suggestion"]["command"].endswith("_sharp.mkv")


def test_what_it_suggests_works(vdeblur, probed, tmp_path: Path) -> None:
    folder = tmp_path / "a folder's clips"
    (folder / "frames").mkdir(parents=True)
    video = clips.make(folder / "clip one.avi", frames=3, codec=("-c:v", "mpeg4"), audio=("-c:a", "mp2"))
    clips.ffmpeg("-i", video, folder / "frames" / "%03d.png")
    for source in (video, folder / "frames"):
        facts = probed(source)
        words = shlex.split(facts["suggestion"]["command"])
        assert words[:2] == ["vdeblur", "run"]
        assert facts["suggestion"]["network_seconds"] > 0
        result = vdeblur(*words[1:], "-m", "identity")
        assert result.exit_code == 0, result.output
        assert Path(facts["output"]["file"]).exists()


def test_hdr_interlaced_and_rotation(probed, tmp_path: Path) -> None:
    tags = "setparams=color_primaries=bt2020:color_trc=arib-std-b67:colorspace=bt2020nc"
    hlg = clips.make(tmp_path / "hlg.mp4", pix_fmt="yuv420p10le", codec=("-c:v", "libx264"), extra=("-vf", tags))
    color = probed(hlg)["color"]
    assert (color["hdr"], color["primaries"], color["matrix"]) == ("HLG", "bt2020", "bt2020nc")
    fields = clips.make(tmp_path / "fields.mkv", frames=10, codec=(*H264, "-flags", "+ilme+ildct"), extra=(
        "-vf", "setfield=tff"))  # fmt: skip
    facts = probed(fields)
    assert facts["interlaced"]
    assert "W_INTERLACED" in codes(facts)
    turned = tmp_path / "turned.mp4"
    clips.ffmpeg("-display_rotation", "90", "-i", clips.make(tmp_path / "plain.mp4", codec=H264), "-c", "copy", turned)
    assert abs(probed(turned)["rotation"]) == 90


def test_damage_is_seen(probed, tmp_path: Path) -> None:
    intact = clips.make(tmp_path / "whole.mkv", frames=100, codec=(*H264, "-g", "10"), size="320x240")
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(intact.read_bytes()[: intact.stat().st_size // 2])
    assert codes(probed(intact)) == set()
    facts = probed(cut)
    assert "W_INPUT_TRUNCATED" in codes(facts)
    assert 20 < facts["frames"] < 80
    for frames in (30, 61, 100):
        assert codes(probed(clips.make(tmp_path / f"{frames}.ts", frames=frames, codec=H264))) == set()
    raw = probed(clips.make(tmp_path / "raw.h264", frames=700, codec=H264))
    assert codes(raw) == {"W_TIMESTAMPS", "W_SAMPLED_BEGINNING"}
    assert raw["sharpness"]["parts"][-1]["end"] == 600 / 25


def test_what_would_be_refused_is_said(probed, tmp_path: Path) -> None:
    facts = probed(clips.make(tmp_path / "odd.mkv", size="63x47"), "--output-suffix", ".mp4")
    assert "E_OUTPUT" in codes(facts)
    assert facts["output"]["encoder"] is None


def moving(share: float, disk: int = 1, noise: float = 0, speed: float = 6, frames: int = 6) -> list[numpy.ndarray]:
    """Return frames (192, 256) of a moving scene. share: of the interval that each exposure lasts. noise: in codes."""
    random = numpy.random.default_rng(4)
    light = F.avg_pool2d(scene(192 + disk - 1, 256 + 80) ** 2.2, disk, 1)[0, 0].numpy()
    made = []
    for frame in range(frames):
        moments = [frame + share * (step / 12 - 0.5) for step in range(13)]
        places = [round(40 + speed * (moment - frames / 2)) for moment in moments]
        codes = 255 * numpy.mean([light[:, place : place + 256] for place in places], 0) ** (1 / 2.2)
        made.append((codes + random.normal(0, noise or 1e-9, codes.shape)).clip(0, 255).round().astype(numpy.uint8))
    return made


def written(path: Path, frames: list[numpy.ndarray], codec: str = "ffv1", **options: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = frames[0].shape
        stream.pix_fmt = "gray" if codec == "ffv1" else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode(None))
    return path


def test_kinds_of_blur_are_told_part_by_part(vdeblur, probed, tmp_path: Path) -> None:
    parts = [moving(0, speed=1), moving(0.9), moving(0, disk=5, speed=1), moving(0, noise=15, speed=1)]
    source = written(tmp_path / "in.mkv", [frame for part in parts for frame in part])
    found = probed(source)["sharpness"]["parts"]
    assert [part["kind"] for part in found] == ["sharp", "motion blur", "defocus", "noise"]
    assert [part["begin"] for part in found[1:]] == [part["end"] for part in found[:-1]]
    assert [part["word"] for part in found[:3]] == ["sharp", "strongly blurred", "strongly blurred"]
    sharp, motion, defocus, noise = found
    assert motion["motion_pixels"] == pytest.approx(6, abs=1)
    assert motion["slope_across"] > motion["slope_along"] + 0.3
    assert defocus["slope_across"] == pytest.approx(defocus["slope_along"], abs=0.15)
    assert noise["noise"] > 3 > 1 > sharp["noise"]
    text = vdeblur("probe", source).stdout
    assert re.search(r"0\.24 s -  0\.48 s  motion blur, moves by [5-7] pixels a frame\n", text)
    assert re.search(r"0\.48 s -  0\.72 s  out of focus\n", text)
    assert "removing motion blur does not help; a sharpening filter does a little (1 of 4 parts)" in text
    assert "remove the noise first" in text


def test_compression_is_a_guess_from_the_packets(vdeblur, probed, tmp_path: Path) -> None:
    frames = moving(0, speed=1, frames=24)
    fine, coarse = (written(tmp_path / f"{crf}.mkv", frames, "libx264", crf=crf) for crf in ("18", "42"))
    assert {part["kind"] for part in probed(fine)["sharpness"]["parts"]} == {"sharp"}
    kinds = [part["kind"] for part in probed(coarse)["sharpness"]["parts"]]
    assert kinds.count("compression") >= 2, kinds  # what moves is smeared along its motion
    assert "sharp" not in kinds
    assert "perhaps soft by compression" in vdeblur("probe", coarse).stdout


def test_a_shutter_is_fitted_beside_sharp_frames(vdeblur, probed, tmp_path: Path) -> None:
    sharp, blurred = moving(0), moving(0.6)
    source = written(tmp_path / "in.mkv", [*sharp[:2], blurred[2], *sharp[3:]])
    (part,) = probed(source)["sharpness"]["parts"]
    assert part["shutter"] == pytest.approx(0.6, abs=0.15)
    assert re.search(r"shutter about 1/(3|4|5)\d s", vdeblur("probe", source).stdout)


def test_frames_of_one_colour_have_no_blur(vdeblur, probed, tmp_path: Path) -> None:
    black = clips.make(tmp_path / "black.mkv", extra=("-vf", "lutyuv=16:128:128"))
    (part,) = probed(black)["sharpness"]["parts"]
    assert (part["word"], part["kind"], part["value"]) == ("nothing to see", None, None)
    assert "nothing to see" in vdeblur("probe", black).stdout


def test_real_pairs_are_told_apart(probed, shared: Path) -> None:
    found: dict[str, list[str]] = {"blur": [], "sharp": []}
    for scene_folder in sorted((shared / "data" / "pairs").iterdir()):
        for kind, kinds in found.items():
            kinds += [part["kind"] for part in probed(scene_folder / kind)["sharpness"]["parts"]]
    assert set(found["sharp"]) == {"sharp"}
    assert set(found["blur"]) == {"motion blur"}


@pytest.mark.slow  # 14 s: decoding, mostly
def test_real_clips_get_the_right_kinds(probed, shared: Path) -> None:
    def kinds(name: str) -> list[str]:
        return [part["kind"] for part in probed(shared / "data" / name)["sharpness"]["parts"]]

    assert set(kinds("sharp/walk_gopro_max.mp4")) == {"sharp"}
    assert set(kinds("sharp/trees_1080p30.mp4")) == {"sharp"}, "a phone's 1080p: soft only at its full size"
    assert set(kinds("natural/gopro_square_blurry")) == {"motion blur"}
    assert kinds("natural/cars_topdown.mp4").count("compression") >= 5
    assert kinds("natural/rooftop_pan_360p.mp4").count("sharp") >= 7


def test_real_frames_out_of_focus(probed, shared: Path, tmp_path: Path) -> None:
    clip = shared / "data" / "natural" / "rooftop_pan_360p.mp4"
    clips.ffmpeg("-i", clip, "-vf", "select='between(n,74,78)'", "-fps_mode", "passthrough", "-frames:v", 5,
                 "-c:v", "ffv1", tmp_path / "soft.mkv")  # fmt: skip
    (part,) = probed(tmp_path / "soft.mkv")["sharpness"]["parts"]
    assert part["kind"] == "defocus"
    assert part["slope_along"] == pytest.approx(-2.2, abs=0.1)


def test_words_for_people(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=50, codec=H264, audio=("-c:a", "flac"))
    text = vdeblur("probe", source).stdout
    assert "64x48, h264, yuv420p, 8 bit, 4:2:0" in text
    assert re.search(r"25 fps, evenly spaced, 2\.\d+ s, 50 frames", text)
    assert "keep audio, flac" in text
    assert "of each part, as five of its frames show it" in text
    assert f"try       vdeblur run {source}" in text


def test_bad_inputs(vdeblur, tmp_path: Path) -> None:
    good = clips.make(tmp_path / "good.mkv", frames=2)
    cut = clips.make(tmp_path / "cut.mp4", codec=H264)
    cut.write_bytes(cut.read_bytes()[:1500])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder").mkdir()
    clips.ffmpeg("-f", "lavfi", "-i", "sine=duration=0.2", tmp_path / "sound.mp3")
    cases = [("cut.mp4", "no index"), ("empty.mp4", "0 bytes"), ("folder", "no pictures"), ("sound.mp3", "no video")]
    for name, message in [*cases, ("none.mp4", "no such file")]:
        result = vdeblur("probe", tmp_path / name)
        assert result.exit_code == 3, result.output
        assert message in result.stderr
    assert vdeblur("probe", good, "--output-suffix", ".xyz").exit_code == 4
    assert vdeblur("probe").exit_code == 2
    assert vdeblur("probe", "-").exit_code == 2
    result = vdeblur("probe", "--json", tmp_path / "none.mp4", good)
    assert result.exit_code == 8
    assert json.loads(result.stdout)["input"] == str(good), "the others are told all the same"
    assert "1 of 2" in result.stderr


def test_the_input_is_left_alone(vdeblur, tmp_path: Path) -> None:
    source = shutil.copy(clips.make(tmp_path / "a.mkv"), tmp_path / "b.mkv")
    before = source.read_bytes()
    assert vdeblur("probe", source).exit_code == 0
    assert source.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.mkv", "b.mkv"}


def test_intervals() -> None:
    def times(*milliseconds: int) -> source_times.PacketTimes:
        return source_times.PacketTimes(intervals=[Fraction(m, 1000) for m in milliseconds], tick=Fraction(1, 1000))

    assert not times(33, 33, 34, 33, 34).variable, "Matroska's clock rounds"
    assert times(33, 33, 66, 66, 33).variable
    assert not times(*[40] * 60, 120, *[40] * 60).variable
    assert times(*[40] * 60, 90, *[40] * 60).variable, "no multiple of the rhythm"
    assert times(*[40] * 60, 20, *[40] * 60).variable, "no gap"
    assert times(*[40] * 60, 120, *[40] * 60).rate == 25
    assert times().rate is None
    assert not times().variable
