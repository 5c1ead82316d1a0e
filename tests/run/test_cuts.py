"""Parts of a video: -ss, -t and --to cut exactly, at any time, on constant and variable rates."""

from collections.abc import Callable, Collection, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy
import pytest
from click.testing import Result

from tests import clips
from vdeblur.errors import VerificationError
from vdeblur.run import assemble
from vdeblur.settings import Cut
from vdeblur.source.video import VideoSource, open_source

H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "12", "-bf", "2")
UNEVEN = ("-vf", "settb=1/30000,setpts=N*1000+mod(N*N\\,7)*90", "-fps_mode", "vfr", "-enc_time_base", "1/30000")
LATE = ("-output_ts_offset", "1.234")
# Name: suffix, rate, further options of ffmpeg.
KINDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "25 fps": (".mp4", "25", ()),
    "29.97 fps": (".mp4", "30000/1001", ()),
    "23.976 fps in Matroska": (".mkv", "24000/1001", ()),
    "uneven": (".mp4", "25", UNEVEN),
    "uneven in Matroska": (".mkv", "25", UNEVEN),
    "MPEG-TS": (".ts", "30000/1001", ()),
    "late start": (".mp4", "30000/1001", LATE),
}

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cuts")
    found = {}
    for number, (name, (suffix, rate, extra)) in enumerate(KINDS.items()):
        sound = ("-f", "lavfi", "-i", "sine=440:duration=2.5")
        found[name] = clips.make(
            folder / f"in{number}{suffix}", size="32x32", frames=60, rate=rate, codec=H264,
            inputs=sound, extra=(*extra, "-c:a", "aac", "-shortest"),
        )  # fmt: skip
    return found


def _ticks(path: Path) -> tuple[list[int], Fraction, int]:
    """Return the times of all frames, their unit, and the video's start in the header."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [frame.pts for frame in container.decode(video=0) if frame.pts is not None]
        return times, stream.time_base or Fraction(0), stream.start_time or 0


def mostly_slow(kinds: Iterable[str], quick: Collection[str]) -> list[Any]:
    """Mark all kinds slow but the quick ones."""
    return [kind if kind in quick else pytest.param(kind, marks=pytest.mark.slow) for kind in kinds]


@pytest.mark.parametrize("kind", mostly_slow(KINDS, ("uneven", "29.97 fps")))
def test_a_part_holds_the_frames_of_its_time(made: dict[str, Path], kind: str) -> None:
    """D1: at fifty cut times, a frame belongs to the part from its time on, by the source's own clock."""
    times, base, start = _ticks(made[kind])
    for number in range(50):
        begin, length = Fraction(number * 46, 1000), Fraction(1 + number % 7 * 40, 1000)
        first, last = start + round(begin / base), start + round((begin + length) / base)
        wanted = [time - first for time in times if first <= time < last]
        source = open_source(made[kind], Cut(begin, begin + length), lambda code, message: None)
        try:
            assert source.cut_begin is not None
            found = [round((frame.seconds - source.cut_begin) / base) for frame in source.frames()] if wanted else []
        finally:
            source.close()
        assert found == wanted, f"-ss {float(begin)} -t {float(length)}"


# Where a keyframe is decoded before, and shown after, frames that need the keyframe before it; indexes of MP4 and AVI
# know decoding times only. Name: suffix, options of ffmpeg.
REORDERED: dict[str, tuple[str, tuple[str, ...]]] = {
    "open HEVC": (".mp4", ("-c:v", "libx265", "-x265-params", "keyint=8:open-gop=1:bframes=3:log-level=none")),
    "open H.264": (".mov", ("-c:v", "libx264", "-bf", "3", "-x264-params", "open-gop=1:keyint=8:b-adapt=0")),
    "closed H.264 in AVI": (".avi", ("-c:v", "libx264", "-bf", "3", "-g", "8")),
    "pyramid in AVI": (".avi", ("-c:v", "libx264", "-bf", "3", "-x264-params", "b-pyramid=normal:open-gop=1:keyint=8")),
    "MPEG-4": (".mp4", ("-c:v", "mpeg4", "-bf", "2", "-g", "8")),
    "MPEG-2 in AVI": (".avi", ("-c:v", "mpeg2video", "-bf", "2", "-g", "8")),
    "open HEVC in Matroska": (".mkv", ("-c:v", "libx265", "-x265-params", "keyint=8:open-gop=1:log-level=none")),
}


@pytest.mark.parametrize("kind", mostly_slow(REORDERED, ("open H.264", "closed H.264 in AVI", "open HEVC")))
def test_reordered_frames_at_the_cut_are_kept(tmp_path: Path, kind: str) -> None:
    """D1: up to five frames at the cut were lost, since reading began at a keyframe that is shown after them."""
    suffix, codec = REORDERED[kind]
    path = clips.make(tmp_path / f"in{suffix}", size="64x48", frames=36, rate="25", codec=codec)

    def frames(start: Fraction | None, seek: Fraction | None = None) -> list[tuple[Fraction, bytes]]:
        source = open_source(path, Cut(start), lambda code, message: None)
        try:
            return [(frame.seconds, frame.picture.to_ndarray().tobytes()) for frame in source.frames(seek)]
        finally:
            source.close()

    whole = frames(None)
    source = open_source(path, Cut(), lambda code, message: None)
    assert isinstance(source, VideoSource)
    start = source.start_seconds
    source.close()
    for number in range(1, 35):
        time = whole[number][0]
        assert frames(time - start) == whole[number:], f"-ss at frame {number}"
        assert [frame for frame in frames(None, time) if frame[0] >= time] == whole[number:], f"seek to frame {number}"


@pytest.mark.parametrize("kind", ["open HEVC", "open H.264", "MPEG-4", "open HEVC in Matroska"])
def test_a_late_cut_decodes_only_what_is_near(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    suffix, codec = REORDERED[kind]
    path = clips.make(tmp_path / f"in{suffix}", size="64x48", frames=300, rate="25", codec=codec)
    decoded: list[object] = []
    decode = VideoSource._decoded

    def counted(self: VideoSource, with_packets: bool) -> Iterator[av.VideoFrame | av.Packet]:
        for item in decode(self, with_packets):
            decoded.append(item)
            yield item

    monkeypatch.setattr(VideoSource, "_decoded", counted)
    source = open_source(path, Cut(Fraction(10)), lambda code, message: None)
    try:
        assert len(list(source.frames())) == 50
    finally:
        source.close()
    assert len(decoded) < 90, "of 300"


CUTS = ("0.5", "0.834", "0.8341", "1.001", "1.2346")  # among them: just before, just after and at a frame


@pytest.mark.parametrize("start", CUTS)
@pytest.mark.parametrize("kind", ["29.97 fps", "uneven", "MPEG-TS", "late start"])
def test_every_cut_is_finished(vdeblur: Run, made: dict[str, Path], tmp_path: Path, kind: str, start: str) -> None:
    """D1: a frame up to 1 ms before the cut got a negative time, and after all its work the run failed."""
    output = tmp_path / "out.mp4"
    result = vdeblur("run", made[kind], output, "-ss", start, "-t", "0.6", "-m", "identity", "--preset", "ultrafast")
    assert result.exit_code == 0, result.output
    times, base, origin = _ticks(made[kind])
    first = origin + round(Fraction(start) / base)
    last = first + round(Fraction("0.6") / base)
    wanted = [float((time - first) * base) for time in times if first <= time < last]
    assert clips.facts(output).seconds == pytest.approx(wanted, abs=1e-9)


def test_the_right_pictures(vdeblur: Run, tmp_path: Path) -> None:
    """D1: the pictures of a part are those that ffmpeg cuts out, to the bit."""
    source = clips.make(tmp_path / "in.mkv", size="32x32", frames=40, rate="30000/1001")
    for start in ("0.3", "0.334", "0.7007"):
        output = tmp_path / f"{start}.mkv"
        assert vdeblur("run", source, output, "-ss", start, "-t", "0.4", "-m", "identity").exit_code == 0
        witness = tmp_path / "witness.mkv"
        clips.ffmpeg("-ss", start, "-i", source, "-t", "0.4", "-c:v", "ffv1", witness)
        assert clips.frame_hashes(output)[:12] == clips.frame_hashes(witness)[:12]


def test_what_the_end_refuses_shows_on_the_first_segment(
    vdeblur: Run, made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D1: a refusal came after all the work, and again at every further run; now it comes after one segment."""
    checked: list[int] = []

    def refuse(draft: Path, output: Path, records: list[object], *rest: object) -> None:
        checked.append(len(records))
        raise VerificationError(f"{output}: frames are up to 32.540 ms off their times", "try another container")

    monkeypatch.setattr(assemble, "_check", refuse)
    for run in (1, 2):
        command = ("run", made["25 fps"], tmp_path / "out.mp4", "-m", "identity", "--segment", "0.4", "--json")
        result = vdeblur(*command)
        assert result.exit_code == 9
        assert checked == [1] * run, "before the second segment was joined"
    assert not (tmp_path / "out.mp4").exists()


def test_the_first_segment_is_tried_with_the_sound(
    vdeblur: Run, made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D1: the trial is written as the output will be, and leaves nothing behind."""
    tried: list[tuple[int, int]] = []
    check = assemble._check

    def look(draft: Path, *rest: object) -> None:
        with av.open(str(draft)) as container:
            packets = [packet.stream.type for packet in container.demux() if packet.size]
        tried.append((packets.count("video"), packets.count("audio")))
        check(draft, *rest)

    monkeypatch.setattr(assemble, "_check", look)
    source = made["29.97 fps"]
    assert vdeblur("run", source, tmp_path / "out.mp4", "-m", "identity", "--segment", "0.4").exit_code == 0
    assert [video for video, _ in tried] == [12, 60]
    assert tried[0][1] == pytest.approx(0.4 * 44100 / 1024, abs=3)
    assert numpy.diff(clips.facts(tmp_path / "out.mp4").seconds) == pytest.approx(1001 / 30000)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".vdeblur")] == []


@pytest.mark.parametrize("option", [("-ss", "1:-30"), ("--to", "0:-1"), ("--segment", "nan"), ("--segment", "inf")])
def test_times_that_are_none(vdeblur: Run, made: dict[str, Path], tmp_path: Path, option: tuple[str, str]) -> None:
    """B: -ss 1:-30 was 30 s, and a segment of nan or inf seconds an internal error."""
    result = vdeblur("run", made["25 fps"], tmp_path / "out.mp4", "-m", "identity", *option)
    assert result.exit_code == 2, result.output
    assert option[1] in result.output
    assert not (tmp_path / "out.mp4").exists()
