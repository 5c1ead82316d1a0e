"""Everything in, everything out: what becomes of each stream, and that what is kept is kept to the bit."""

import itertools
import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import pytest

from tests import clips
from vdeblur.output.carry import container_format, plan_streams
from vdeblur.output.muxer import Muxer, other_packets
from vdeblur.output.tracks import MuxOptions
from vdeblur.settings import Cut
from vdeblur.source.video import open_source

H264 = ("-c:v:0", "libx264", "-preset", "ultrafast")
SRT = "1\n00:00:00,100 --> 00:00:00,200\n<i>hello</i>\n\n2\n00:00:00,250 --> 00:00:00,390\nworld & co\n"
CHAPTERS = """;FFMETADATA1
title=A walk
artist=Somebody
[CHAPTER]
TIMEBASE=1/1000
START=0
END=200
title=One
[CHAPTER]
TIMEBASE=1/1000
START=200
END=400
title=Two
"""


@dataclass(frozen=True)
class Clips:
    """One clip per container, with all that people put into it."""

    mkv: Path
    mp4: Path
    mov: Path
    webm: Path
    ts: Path
    avi: Path


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    folder = tmp_path_factory.mktemp("full")
    srt, chapters, font, cover = (folder / name for name in ("s.srt", "m.txt", "font.ttf", "cover.png"))
    srt.write_text(SRT)
    chapters.write_text(CHAPTERS)
    font.write_bytes(bytes(range(256)) * 4)
    clips.ffmpeg("-f", "lavfi", "-i", "color=red:size=16x16:d=0.04", "-frames:v", 1, cover)
    tone = ("-f", "lavfi", "-i", "sine=440:duration=0.4")
    rich = (*tone, *tone, "-i", srt, "-i", chapters)
    mapped = ("-map", 0, "-map", 1, "-map", 2, "-map", 3, "-map_metadata", 4)
    words = ("-metadata:s:a:0", "language=deu", "-metadata:s:a:1", "language=eng", "-metadata:s:s:0", "language=fra",
             "-disposition:a:0", "0", "-disposition:a:1", "default")  # fmt: skip

    def make(name: str, codec: tuple[str, ...], inputs: tuple[object, ...], extra: tuple[object, ...]) -> Path:
        return clips.make(folder / name, codec=codec, inputs=inputs, extra=extra)

    mkv = ("-c:a:0", "flac", "-c:a:1", "aac", "-c:s", "srt", "-metadata:s:a:0", "title=Ton", "-attach", font,
           "-metadata:s:t:0", "mimetype=application/x-truetype-font", "-attach", cover,
           "-metadata:s:t:1", "mimetype=image/png")  # fmt: skip
    mp4 = ("-c:a:0", "alac", "-c:a:1", "aac", "-c:s", "mov_text", "-timecode", "01:00:00:00")
    mov = ("-c:a:0", "pcm_s24le", "-c:a:1", "aac", "-c:s", "mov_text")
    sound = ("-map", 0, "-map", 1)
    # ffmpeg cuts all streams down to the cover's one frame where it encodes that beside them.
    plain, with_cover = make("plain.mp4", H264, rich, (*mapped, *words, *mp4)), folder / "full.mp4"
    kinds = ("-map", "0:v", "-map", "0:a", "-map", "0:s", "-map", 1, "-timecode", "01:00:00:00")
    clips.ffmpeg("-i", plain, "-i", cover, *kinds, "-c", "copy", "-disposition:v:1", "attached_pic", with_cover)
    return Clips(
        make("full.mkv", H264, rich, (*mapped, *words, *mkv)),
        with_cover,
        make("full.mov", ("-c:v:0", "prores_ks"), rich, (*mapped, *words, *mov)),
        make("full.webm", ("-c:v", "libvpx-vp9"), (*tone, "-i", srt),
             (*sound, "-map", 2, "-c:a", "libopus", "-c:s", "webvtt")),
        make("full.ts", H264, tone, (*sound, "-c:a", "aac")),
        make("full.avi", ("-c:v", "mpeg4"), tone, (*sound, "-c:a", "pcm_s16le")),
    )  # fmt: skip


# Container of the input, of the output: what becomes of the streams after the first, k(ept), c(onverted), d(ropped).
# mkv: flac, aac, srt, font, cover; mp4: alac, aac, mov_text, chapters, two time codes, cover; mov: pcm, aac, mov_text,
# chapters; webm: opus, webvtt; ts: aac; avi: pcm.
TABLE = {
    ("mkv", "mkv"): "kkkkk", ("mkv", "mp4"): "kkcdk", ("mkv", "mov"): "ckcdd", ("mkv", "webm"): "ddcdd",
    ("mkv", "ts"): "dkddd", ("mkv", "avi"): "kkddd",
    ("mp4", "mkv"): "kkckcck", ("mp4", "mp4"): "kkkkkkk", ("mp4", "mov"): "kkkkkkd", ("mp4", "webm"): "ddcdddd",
    ("mov", "mkv"): "kkck", ("mov", "mp4"): "kkkk", ("mov", "mov"): "kkkk",
    ("webm", "webm"): "kk", ("webm", "mkv"): "kk", ("webm", "mp4"): "kc", ("webm", "mov"): "dc", ("webm", "ts"): "kd",
    ("ts", "ts"): "k", ("ts", "mkv"): "k", ("ts", "mp4"): "k", ("ts", "webm"): "d",
    ("avi", "avi"): "k", ("avi", "mkv"): "k", ("avi", "ts"): "d",
}  # fmt: skip


@pytest.mark.parametrize(("inside", "out"), TABLE, ids=str)
def test_the_plan(full: Clips, inside: str, out: str) -> None:
    source = open_source(getattr(full, inside), Cut(), lambda code, message: None)
    try:
        plans = plan_streams(source, container_format(Path(f"x.{out}")), MuxOptions())
    finally:
        source.close()
    assert "".join(plan.action[0] for plan in plans) == TABLE[inside, out], plans
    assert all(plan.reason for plan in plans if plan.action != "keep")


@pytest.mark.parametrize(("inside", "out"), [("mkv", "mkv"), ("mkv", "mp4"), ("mp4", "mkv"), ("mp4", "mp4"),
                                             ("mkv", "mov"), ("mov", "mov"), ("webm", "webm"), ("webm", "mp4"),
                                             ("ts", "mp4"), ("ts", "ts"), ("avi", "mkv")], ids=str)  # fmt: skip
def test_what_is_kept_is_the_same(vdeblur, full: Clips, tmp_path: Path, inside: str, out: str) -> None:
    source, output = getattr(full, inside), tmp_path / f"out.{out}"
    result = vdeblur("run", source, output, "-m", "identity", "--json")
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.stdout.splitlines()]
    plan = next(event for event in events if event["event"] == "plan")
    actions = TABLE[inside, out]
    assert len(plan["keep"]) == actions.count("k") + actions.count("c")
    assert len(plan["drop"]) == actions.count("d")
    assert _times(output) == pytest.approx(_times(source), abs=5e-4 if out == "mkv" else 1e-9)
    with av.open(str(source)) as a, av.open(str(output)) as b:
        sounds = [stream for stream in a.streams.audio if actions[stream.index - 1] == "k"]
        assert len(b.streams.audio) == sum(actions[stream.index - 1] != "d" for stream in a.streams.audio)
        named = [stream.language for stream in a.streams.audio if actions[stream.index - 1] != "d"]
        if out != "ts":
            names = [{"ger": "deu"}.get(stream.language, stream.language) for stream in b.streams.audio]  # mov's name
            assert [name or "und" for name in names] == [name or "und" for name in named]
            assert [chapter["metadata"] for chapter in b.chapters()] == [c["metadata"] for c in a.chapters()]
            assert [int(c["start"] * c["time_base"] * 1000) for c in b.chapters()] == [0, 200][: len(a.chapters())]
        if inside in ("mkv", "mp4") and out == inside:
            defaults = [bool(stream.disposition & 1) for stream in b.streams.audio]
            assert defaults == [bool(stream.disposition & 1) for stream in a.streams.audio]
        titles = {key.lower(): value for key, value in b.metadata.items()}
        assert titles.get("title") == a.metadata.get("title")
        order = [stream.index for stream in a.streams.audio]
        for stream in sounds:
            number = order.index(stream.index)
            if (inside, out) not in (("ts", "mp4"),):  # MP4 keeps AAC's headers in one place
                assert clips.packet_hashes(output, f"a:{number}") == clips.packet_hashes(source, f"a:{number}")


def _times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]


def test_files_in_the_file(vdeblur, full: Clips, tmp_path: Path) -> None:
    for source in (full.mkv, full.mp4):
        output = tmp_path / f"{source.suffix[1:]}.mkv"
        assert vdeblur("run", source, output, "-m", "identity").exit_code == 0
        with av.open(str(output)) as container:
            covers = [stream for stream in container.streams.video if stream.disposition & 1024]
            assert len(covers) == 1
            fonts = [stream for stream in container.streams if stream.type == "attachment"]
            if source is full.mkv:
                assert [(font.metadata["filename"], getattr(font, "data", b"")) for font in fonts] == [
                    ("font.ttf", bytes(range(256)) * 4)
                ]
        assert _cover(output) == _cover(source)
    assert vdeblur("run", full.mp4, tmp_path / "again.mp4", "-m", "identity").exit_code == 0
    assert _cover(tmp_path / "again.mp4") == _cover(full.mp4)


def _cover(path: Path) -> bytes:
    with av.open(str(path)) as container:
        cover = next(stream for stream in container.streams.video if stream.disposition & 1024)
        return next(bytes(packet) for packet in container.demux(cover) if packet.size)


def test_a_time_code_is_kept(vdeblur, full: Clips, tmp_path: Path) -> None:
    for out in ("mp4", "mov", "mkv"):
        output = tmp_path / f"out.{out}"
        assert vdeblur("run", full.mp4, output, "-m", "identity").exit_code == 0
        with av.open(str(output)) as container:
            tags = {key.lower(): value for key, value in container.streams.video[0].metadata.items()}
            assert tags["timecode"] == "01:00:00:00"


@pytest.mark.parametrize(("inside", "out"), [("mkv", "mp4"), ("mkv", "mov"), ("mp4", "mkv"), ("webm", "mp4"),
                                             ("mkv", "webm")])  # fmt: skip
def test_converted_subtitles_say_the_same_at_the_same_time(
    vdeblur, full: Clips, tmp_path: Path, inside: str, out: str
) -> None:
    source, output = getattr(full, inside), tmp_path / f"out.{out}"
    assert vdeblur("run", source, output, "-m", "identity").exit_code == 0
    assert _subtitles(output) == _subtitles(source)


def _subtitles(path: Path) -> list[str]:
    """Return the texts with their times, as the independent ffmpeg reads them, without a format's own colours."""
    text = clips.ffmpeg("-copyts", "-i", path, "-map", "0:s:0", "-f", "srt", "-")
    return [line for line in text.replace("\r", "").splitlines() if line]


def test_converted_sound_is_the_same_sound(vdeblur, full: Clips, tmp_path: Path) -> None:
    output = tmp_path / "out.mov"
    assert vdeblur("run", full.mkv, output, "-m", "identity").exit_code == 0
    samples = [clips.ffmpeg("-i", path, "-map", "0:a:0", "-f", "md5", "-c:a", "pcm_s32le", "-")
               for path in (full.mkv, output)]  # fmt: skip
    assert samples[0] == samples[1]
    with av.open(str(output)) as container:
        assert container.streams.audio[0].codec_context.name == "alac"


def test_no_audio_and_no_subtitles(vdeblur, full: Clips, tmp_path: Path) -> None:
    output = tmp_path / "out.mkv"
    result = vdeblur("run", full.mkv, output, "-m", "identity", "--no-audio", "--no-subtitles")
    assert result.exit_code == 0
    assert "warning" not in result.output
    with av.open(str(output)) as container:
        assert [stream.type for stream in container.streams] == ["video", "attachment", "video"]


@pytest.mark.parametrize("out", ["mkv", "mp4"])
def test_deterministic_gives_the_same_bytes(vdeblur, full: Clips, tmp_path: Path, out: str) -> None:
    for name in ("a", "b"):
        options = ("-m", "identity", "--deterministic")
        assert vdeblur("run", full.mkv, tmp_path / f"{name}.{out}", *options).exit_code == 0
    assert (tmp_path / f"a.{out}").read_bytes() == (tmp_path / f"b.{out}").read_bytes()


def test_chapters_after_the_part_are_left_out(vdeblur, full: Clips, tmp_path: Path) -> None:
    """No container takes one that ends before it begins; that was found out after all the work."""
    output = tmp_path / "out.mkv"
    result = vdeblur("run", full.mkv, output, "-m", "identity", "-t", "0.12")
    assert result.exit_code == 0, result.output
    with av.open(str(output)) as container:
        chapters = [(c["start"] * c["time_base"], c["end"] * c["time_base"]) for c in container.chapters()]
    assert chapters == [(0, Fraction(12, 100))]


def test_chapters_and_subtitles_of_a_part(vdeblur, full: Clips, tmp_path: Path) -> None:
    output = tmp_path / "out.mkv"
    assert vdeblur("run", full.mkv, output, "-m", "identity", "-ss", "0.24", "-t", "0.12").exit_code == 0
    with av.open(str(output)) as container:
        chapters = [(c["start"] * c["time_base"], c["end"] * c["time_base"]) for c in container.chapters()]
        assert chapters == [(0, Fraction(12, 100))]
        assert [c["metadata"]["title"] for c in container.chapters()] == ["Two"]
    assert _subtitles(output)[2:] == ["world & co"]


def test_a_second_video_is_kept(vdeblur, shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "odd" / "two_video_two_audio_two_subs.mp4"
    output = tmp_path / "out.mp4"
    assert vdeblur("run", source, output, "-m", "identity", "--to", "1").exit_code == 0
    with av.open(str(output)) as container:
        kinds = [stream.type for stream in container.streams]
        assert sorted(kinds) == ["audio", "audio", "subtitle", "subtitle", "video", "video"]
        assert [stream.width for stream in container.streams.video] == [320, 480]


@pytest.mark.parametrize("out", ["mkv", "mp4", "mov"])
def test_video_encoded_elsewhere_beside_the_rest_of_the_input(full: Clips, tmp_path: Path, out: str) -> None:
    """The video comes as packets, the other streams are read from the input once more and put between them."""
    output = tmp_path / f"out.{out}"
    source = open_source(full.mkv, Cut(), lambda code, message: None)
    with av.open(str(full.mkv)) as encoded:

        def add_video(container: av.container.OutputContainer) -> av.VideoStream:
            return container.add_stream_from_template(encoded.streams.video[0], opaque=True)

        form = container_format(output)
        plans = plan_streams(source, form, MuxOptions(), add_video)
        muxer = Muxer(str(output), form, source, plans, add_video, MuxOptions())
        muxer.take_others(other_packets(source, None, None))
        for packet in encoded.demux(video=0):
            if packet.size:
                muxer.mux_video([packet])
        muxer.close()
    source.close()
    assert muxer.misplaced == 0
    assert clips.packet_hashes(output, "a:1") == clips.packet_hashes(full.mkv, "a:1")
    assert clips.frame_hashes(output) == clips.frame_hashes(full.mkv)
    assert _times(output) == pytest.approx(_times(full.mkv), abs=1e-9)
    assert _subtitles(output) == _subtitles(full.mkv)
    with av.open(str(output)) as container:
        order = [packet.dts * packet.time_base for packet in container.demux() if packet.dts is not None]
    assert max(before - after for before, after in itertools.pairwise(order)) < 0.2, "well interleaved"


def test_a_part_of_the_rest_of_the_input(full: Clips) -> None:
    source = open_source(full.mkv, Cut(), lambda code, message: None)
    times = [packet.pts * packet.time_base for packet in other_packets(source, Fraction(1, 5), Fraction(3, 10))]
    source.close()
    assert times
    assert all(Fraction(1, 5) <= time < Fraction(3, 10) for time in times)


# Codecs, depths and times ----------------------------------------------------------------------------------------

EXACT = {
    "h264 with B-frames": (".mp4", "yuv420p", ("-c:v", "libx264", "-bf", "2")),
    "hevc 10 bit": (".mkv", "yuv420p10le", ("-c:v", "libx265", "-x265-params", "log-level=none")),
    "hevc 12 bit 4:4:4": (".mp4", "yuv444p12le", ("-c:v", "libx265", "-x265-params", "log-level=none")),
    "vp9 with alpha": (".webm", "yuva420p", ("-c:v", "libvpx-vp9", "-auto-alt-ref", "0", "-cpu-used", "8")),
    "vp8": (".webm", "yuv420p", ("-c:v", "libvpx", "-cpu-used", "8")),
    "av1 10 bit": (".mp4", "yuv420p10le", ("-c:v", "libsvtav1", "-preset", "12", "-svtav1-params", "lp=1")),
    "av1 gray": (".mkv", "gray", ("-c:v", "libaom-av1", "-cpu-used", "8")),
    "mpeg4": (".avi", "yuv420p", ("-c:v", "mpeg4")),
    "mpeg2": (".ts", "yuv420p", ("-c:v", "mpeg2video", "-bf", "2")),
    "prores 4444 with alpha": (".mov", "yuva444p10le", ("-c:v", "prores_ks", "-alpha_bits", "16")),
    "png with alpha": (".mov", "rgba", ("-c:v", "png")),
    "ffv1 gray 10 bit": (".mkv", "gray10le", ("-c:v", "ffv1")),
    "ffv1 rgb 12 bit": (".mkv", "gbrp12le", ("-c:v", "ffv1")),
    "nv12 raw": (".nut", "nv12", ("-c:v", "rawvideo")),
    "packed yuyv": (".avi", "yuyv422", ("-c:v", "rawvideo")),
}


@pytest.mark.parametrize("name", EXACT)
def test_identity_lossless_into_matroska(vdeblur, tmp_path: Path, name: str) -> None:
    suffix, pix_fmt, codec = EXACT[name]
    alpha = ("-vf", "geq=r='r(X,Y)':g='g(X,Y)':b='b(X,Y)':a='X*4'") if "alpha" in name else ()
    source = clips.make(tmp_path / f"in{suffix}", pix_fmt=pix_fmt, codec=codec, frames=5, extra=alpha)
    output = tmp_path / "out.mkv"
    result = vdeblur("run", source, output, "-m", "identity", "--lossless")
    assert result.exit_code == 0, result.output
    # Both are compared in the format of the output, which only lays the input's samples out in another way.
    with av.open(str(output)) as container:
        form = container.streams.video[0].codec_context.pix_fmt
    decoder = ("-c:v", "libvpx-vp9") if name == "vp9 with alpha" else ()
    expected = clips.ffmpeg(*decoder, "-i", source, "-pix_fmt", form, "-fps_mode", "passthrough", "-f", "framemd5", "-")
    assert clips.frame_hashes(output) == [
        line.split(",")[-1].strip() for line in expected.splitlines() if line[0] != "#"
    ]
    assert ("a" in form) == ("alpha" in name) or "gray" in form
    before, after = clips.facts(source).seconds, clips.facts(output).seconds
    assert after == pytest.approx(before, abs=5e-4)


@pytest.mark.parametrize(
    ("suffix", "pix_fmt", "codec", "expected"),
    [
        (".mov", "yuv422p10le", ("-c:v", "prores_ks"), ("prores", "yuv422p10le")),
        (".webm", "yuva420p", ("-c:v", "libvpx-vp9", "-auto-alt-ref", "0"), ("libvpx-vp9", "yuva420p")),
        (".webm", "yuv420p10le", ("-c:v", "libvpx-vp9"), ("vp9", "yuv420p10le")),
        (".webm", "yuv420p", ("-c:v", "libvpx"), ("vp8", "yuv420p")),
        (".mkv", "yuv444p10le", ("-c:v", "libaom-av1", "-cpu-used", "8"), ("libdav1d", "yuv444p10le")),
        (".mov", "rgba", ("-c:v", "png"), ("png", "gbrap")),
        (".mkv", "yuv420p", ("-c:v", "huffyuv", "-pix_fmt", "yuv422p"), ("ffv1", "yuv422p")),
    ],
)
def test_the_family_is_kept_with_its_depth(
    vdeblur, tmp_path: Path, suffix: str, pix_fmt: str, codec: tuple[str, ...], expected: tuple[str, str]
) -> None:
    source = clips.make(tmp_path / f"in{suffix}", pix_fmt=pix_fmt, codec=codec, frames=3)
    output = tmp_path / f"out{suffix}"
    result = vdeblur("run", source, output, "-m", "identity", "--preset", "ultrafast")
    assert result.exit_code == 0, result.output
    assert "warning" not in result.output
    checked = open_source(output, Cut(), lambda code, message: None)
    found = (checked.decoder.name, next(iter(checked.items())).picture.format.name)
    checked.close()
    assert found == expected


def test_dnxhr_stays_dnxhr(vdeblur, tmp_path: Path) -> None:
    codec = ("-c:v", "dnxhd", "-profile:v", "dnxhr_hq")
    source = clips.make(tmp_path / "in.mov", size="256x128", pix_fmt="yuv422p", codec=codec, frames=2)
    assert vdeblur("run", source, tmp_path / "out.mov", "-m", "identity").exit_code == 0
    assert clips.facts(tmp_path / "out.mov").streams == [("video", "dnxhd")]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".ts", ".mkv"])
def test_times_of_edit_lists_late_starts_and_uneven_frames(vdeblur, tmp_path: Path, suffix: str) -> None:
    plain = clips.make(
        tmp_path / f"plain{suffix}", frames=15, codec=("-c:v", "libx264", "-bf", "2"), audio=("-c:a", "aac"),
        extra=("-vf", "settb=1/30000,setpts=N*1200+mod(N*N\\,7)*90", "-fps_mode", "vfr", "-enc_time_base", "1/30000"),
    )  # fmt: skip
    source, output = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    clips.ffmpeg("-itsoffset", "1.5", "-i", plain, "-c", "copy", "-muxpreload", "0", "-muxdelay", "0", source)
    assert vdeblur("run", source, output, "-m", "identity").exit_code == 0
    exact = 5e-4 if suffix == ".mkv" else 1e-9
    assert clips.facts(output).seconds == pytest.approx(clips.facts(source).seconds, abs=exact)
    with av.open(str(source)) as a, av.open(str(output)) as b:
        starts = [[packet.pts * packet.time_base for packet in c.demux(audio=0) if packet.size] for c in (a, b)]
        assert [float(time) for time in starts[1]] == pytest.approx([float(time) for time in starts[0]], abs=1e-3)


# Real files ------------------------------------------------------------------------------------------------------

ODD = {  # what becomes of the streams after the first in the input's own container, and which warnings there are
    "h264_ac3_srt_rate1000.mkv": ("kk", []),
    "h264_breaks_after_28.mp4": ("", ["W_INPUT_DAMAGED"]),
    "h264_full_range_709.mp4": ("", []),
    "h264_rot90.mov": ("", []),
    "h264_sar_start10s.mp4": ("", []),
    "h264_yuv444_chapters.mkv": ("k", []),
    "hevc10_hlg_rot_editlist.mp4": ("kdd", ["W_HDR", "W_STREAM_DROPPED", "W_STREAM_DROPPED"]),
    "hevc10_pq_vfr.mp4": ("k", ["W_HDR"]),
    "mpeg2_1080p_gap.ts": ("k", ["W_CODEC"]),
    "two_video_two_audio_two_subs.mp4": ("kkkkk", []),
    "vp9_161x121.webm": ("", []),
    "vp9_alpha.webm": ("k", []),
}


SLOW = ("hevc10_hlg_rot_editlist.mp4", "hevc10_pq_vfr.mp4")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in ODD])
def test_odd_files(vdeblur, shared: Path, tmp_path: Path, name: str) -> None:
    source = shared / "data" / "odd" / name
    output = tmp_path / f"out{source.suffix}"
    few = () if "breaks" in name else ("--frames", "3")
    result = vdeblur("run", source, output, "-m", "identity", "--preset", "ultrafast", "--json", *few)
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.stdout.splitlines()]
    actions, codes = ODD[name]
    assert sorted(event["code"] for event in events if event["event"] == "warning") == codes
    plan = next(event for event in events if event["event"] == "plan")
    assert (len(plan["keep"]), len(plan["drop"])) == (actions.count("k"), actions.count("d"))
    before, after = _first_frames(source), _first_frames(output)
    assert len(after) == 3 if few else len(after) >= len(before) == 28, "a damaged packet does not end it"
    for (a, *look), (b, *same) in zip(before, after, strict=False):
        assert float(b) == pytest.approx(float(a), abs=6e-4)
        assert same == look


def _first_frames(path: Path) -> list[tuple[object, ...]]:
    """Return time, size, rotation, pixel shape and colour of a file's first frames."""
    frames: list[tuple[object, ...]] = []
    with av.open(str(path)) as container:
        aspect = container.streams.video[0].sample_aspect_ratio or 1
        try:
            for frame in container.decode(video=0):
                look = (frame.width, frame.height, frame.rotation, aspect, frame.colorspace, frame.color_trc)
                frames.append((frame.pts * frame.time_base, *look))
        except av.error.FFmpegError:
            pass
    return frames
