"""Times of real files: doubled, missing, wrapped, late, hidden by edit lists; ffmpeg is the witness."""

import json
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import pytest
from click.testing import Result

from tests import clips

H264 = ("-c:v", "libx264", "-preset", "ultrafast")
Run = Callable[..., Result]


@pytest.fixture
def restored(vdeblur: Run, tmp_path: Path) -> Callable[..., tuple[Path, dict[str, str]]]:
    """Return a function that restores a file with `identity`; it returns the output, and code and text of warnings."""

    def run(source: Path, suffix: str, *options: object) -> tuple[Path, dict[str, str]]:
        output = tmp_path / f"out{suffix}"
        result = vdeblur("run", source, output, "-m", "identity", "--preset", "ultrafast", "--json", "-y", *options)
        assert result.exit_code == 0, result.output
        events = [json.loads(line) for line in result.stdout.splitlines()]
        return output, {event["code"]: event["message"] for event in events if event["event"] == "warning"}

    return run


def witness(path: Path) -> list[float]:
    """Return the times of a file's frames as ffmpeg decodes them, in seconds from the start of the file."""
    exact = ("-fps_mode", "passthrough", "-enc_time_base", "demux")
    text = clips.ffmpeg("-i", path, "-map", "0:v:0", *exact, "-f", "framemd5", "-")
    base = next(line for line in text.splitlines() if line.startswith("#tb 0:")).split(": ")[1].split("/")
    lines = [line.split(",") for line in text.splitlines() if line and not line.startswith("#")]
    return [int(line[1]) * int(base[0]) / int(base[1]) for line in lines]


def packets(path: Path, kind: str) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(**{kind: 0}) if packet.size]


def copied(source: Path, output: Path, change: Callable[[av.Packet, int], None]) -> Path:
    """Copy a file without decoding, after changing each packet of video, which is told its number."""
    with av.open(str(source)) as before, av.open(str(output), "w") as after:
        streams = {stream.index: after.add_stream_from_template(stream, opaque=True) for stream in before.streams}
        number = 0
        for packet in before.demux():
            if packet.size:
                if packet.stream.type == "video":
                    change(packet, number)
                    number += 1
                packet.stream = streams[packet.stream.index]
                after.mux(packet)
    return output


def test_empty_packets_do_not_end_the_video(restored, shared: Path) -> None:
    """R2: Theora repeats a frame by an empty packet; the first one ended the decoder, 9 of 22 frames came out."""
    source = shared / "faults" / "theora_dup.ogv"
    output, warnings = restored(source, ".mkv")
    assert clips.facts(output).seconds == pytest.approx(witness(source), abs=1e-3)
    assert len(witness(source)) == 22
    assert "W_INPUT_DAMAGED" not in warnings


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_doubled_time_moves_one_frame(restored, tmp_path: Path, suffix: str) -> None:
    """R3: each doubled time moved all frames after it by 40 ms against the sound."""
    plain = clips.make(tmp_path / "plain.mkv", frames=50, codec=(*H264, "-bf", "0"), audio=("-c:a", "aac"))

    def double(packet: av.Packet, number: int) -> None:
        packet.pts = packet.dts = (number - (number >= 10) - (number >= 20) - (number >= 30)) * 40

    source = copied(plain, tmp_path / "in.mkv", double)
    output, warnings = restored(source, suffix)
    assert "frame 10 has a time that is not after its predecessor's" in warnings["W_TIMESTAMPS"]
    before, after = clips.facts(source).seconds, clips.facts(output).seconds
    moved = [place for place, (a, b) in enumerate(zip(before, after, strict=True)) if abs(a - b) > 1e-3]
    assert moved == [10, 20, 30]
    assert all(a < b for a, b in pairwise(after))
    assert [after[place] - before[place] for place in moved] == pytest.approx([0.02] * 3, abs=1e-3)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("codec", [("libx264", "-preset", "veryfast"), ("libxvid",), ("mpeg4",)], ids=lambda c: c[0])
def test_b_frames_in_avi(restored, tmp_path: Path, codec: tuple[str, ...], suffix: str) -> None:
    """R3: AVI has decoding times only; guesses of the others left a hole, or moved all frames by 40 ms."""
    source = clips.make(tmp_path / "in.avi", frames=25, codec=("-c:v", *codec, "-bf", "2"))
    output, warnings = restored(source, suffix)
    seconds = clips.facts(output).seconds
    assert seconds == pytest.approx(witness(source), abs=1e-3)
    assert [b - a for a, b in pairwise(seconds)] == pytest.approx([0.04] * (len(seconds) - 1), abs=1e-3)
    assert "W_TIMESTAMPS" not in warnings


def test_joined_broadcasts(restored, shared: Path) -> None:
    """R3: a doubled time at the join moved everything after it."""
    source = shared / "faults" / "mixed.ts"
    output, _ = restored(source, ".mkv")
    before, after = clips.facts(source).seconds, clips.facts(output).seconds
    assert sum(abs(a - b) > 1e-3 for a, b in zip(before, after, strict=True)) == 1


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        yield data[place + 4 : place + 8], data[place + 8 : place + size]
        place += size


def _with_two_edits(data: bytes) -> bytes:
    """Return an mp4 (with moov at its end) whose edit lists show 0 to 1 s, then 2 to 3 s."""
    movie_scale = int.from_bytes(data[data.index(b"mvhd") + 16 :][:4], "big")

    def rebuilt(part: bytes, scale: int = 0) -> bytes:
        made = b""
        for kind, body in _boxes(part):
            if kind == b"trak":
                scale = int.from_bytes(body[body.index(b"mdhd") + 16 :][:4], "big")
            if kind in (b"moov", b"trak", b"edts"):
                body = rebuilt(body, scale)
            if kind == b"elst":
                start = struct.unpack(">i", body[12:16])[0]
                edits = [struct.pack(">IiI", movie_scale, start + skip * scale, 1 << 16) for skip in (0, 2)]
                body = struct.pack(">II", 0, 2) + b"".join(edits)
            made += struct.pack(">I", len(body) + 8) + kind + body
        return made

    return rebuilt(data)


@pytest.fixture
def long_gop(tmp_path: Path) -> Path:
    return clips.make(
        tmp_path / "gop60.mp4", frames=90, rate="30000/1001", codec=(*H264, "-g", "60", "-bf", "3"),
        inputs=("-f", "lavfi", "-i", "sine=440:duration=3"), extra=("-c:a", "aac"),
    )  # fmt: skip


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_middle_that_is_cut_out(restored, long_gop: Path, tmp_path: Path, suffix: str) -> None:
    """R4: what the second edit decodes in advance was taken for a join; the picture froze, all ended 1 s too late."""
    source = tmp_path / "two_edits.mp4"
    source.write_bytes(_with_two_edits(long_gop.read_bytes()))
    output, warnings = restored(source, suffix)
    assert warnings == {}
    assert clips.facts(output).seconds == pytest.approx(witness(source), abs=1e-3)
    assert clips.facts(output).seconds[-1] == pytest.approx(1.97, abs=0.01)
    sound = [float(packet.pts * packet.time_base) for packet in packets(output, "audio")]
    assert sound[-1] == pytest.approx(1.975, abs=0.01)
    assert len(sound) <= 2 * 44100 / 1024 + 3, "the middle's sound is gone"


def test_hidden_sound_stays_hidden(restored, long_gop: Path, tmp_path: Path) -> None:
    """R5: 1.02 s of sound that an edit list hides was heard in Matroska, before the picture."""
    source = tmp_path / "trim.mp4"
    clips.ffmpeg("-ss", "1.3", "-i", long_gop, "-t", "1.2", "-c", "copy", source)
    with av.open(str(source)) as container:
        hidden = sum(packet.is_discard for packet in container.demux(audio=0))
    assert hidden > 40
    output, warnings = restored(source, ".mkv")
    assert warnings == {}
    assert packets(output, "audio")[0].pts * packets(output, "audio")[0].time_base > -0.05
    output, warnings = restored(source, ".mp4")
    assert warnings == {}
    sound = packets(output, "audio")
    assert sum(packet.is_discard for packet in sound) == hidden, "MP4 keeps them, and hides them, too"
    first = next(packet for packet in sound if not packet.is_discard)
    assert first.pts * first.time_base == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("start", ["40000", "95442", "25"])  # 95443.7 s: the clock of 33 bits begins anew
def test_clocks_of_mpeg_ts(restored, tmp_path: Path, start: str, suffix: str) -> None:
    """R6: a clock that wraps ended with exit 9 after all the work; a late one gave a video of eleven hours."""
    plain = clips.make(tmp_path / "plain.ts", frames=50, codec=(*H264, "-bf", "2"), audio=("-c:a", "aac"))
    source = tmp_path / "in.ts"
    clips.ffmpeg("-i", plain, "-c", "copy", "-output_ts_offset", start, "-muxdelay", 0, "-muxpreload", 0, source)
    output, warnings = restored(source, suffix)
    assert warnings == {}
    with av.open(str(output)) as container:
        assert container.duration / av.time_base == pytest.approx(2.04, abs=0.06)
        starts = [float(s.start_time * s.time_base) for s in container.streams]
    assert min(starts) == pytest.approx(0, abs=0.09 if suffix == ".ts" else 1e-3)
    times = [clips.facts(path).seconds for path in (source, output)]
    with av.open(str(source)) as container:
        begin = [float(stream.start_time * stream.time_base) for stream in container.streams]
    assert [b - starts[1] for b in times[1]] == pytest.approx([a - begin[1] for a in times[0]], abs=1e-3), "in sync"


def test_a_late_clock_in_another_format(restored, tmp_path: Path) -> None:
    """R6: the same in Matroska, where a stream was copied with its times."""
    plain = clips.make(tmp_path / "plain.mkv", frames=10, codec=H264, audio=("-c:a", "aac"))
    source = tmp_path / "in.mkv"
    clips.ffmpeg("-i", plain, "-c", "copy", "-output_ts_offset", "5000", source)
    output, _ = restored(source, ".mp4", "-ss", "0.08")
    assert clips.facts(output).seconds == pytest.approx([0.04 * index for index in range(8)], abs=1e-3)
    output, _ = restored(source, ".mp4")
    with av.open(str(output)) as container:
        assert container.duration / av.time_base < 1


@pytest.mark.parametrize("suffix", [".mov", ".mp4", ".mkv"])
def test_raw_dv(restored, shared: Path, suffix: str) -> None:
    """R7: FFmpeg's mean rate of short DV files is 60000 fps: after all the work, no time code could be written."""
    output, _ = restored(shared / "faults" / "pal3.dv", suffix)
    assert witness(output) == pytest.approx([0, 0.04, 0.08], abs=1e-3)
    with av.open(str(output)) as container:
        assert container.streams.video[0].average_rate == 25
        tags = {
            key.lower(): value for key, value in {**container.metadata, **container.streams.video[0].metadata}.items()
        }
        assert tags["timecode"] == "00:00:00:00"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(("frames", "bframes"), [(25, "0"), (25, "2"), (1, "0")])
def test_the_last_frame_lasts(restored, tmp_path: Path, frames: int, bframes: str, suffix: str) -> None:
    """R12: a last frame of 4 s was shown for 40 ms, and a video of one picture for 0.1 ms."""
    plain = clips.make(tmp_path / "plain.mp4", frames=frames, codec=(*H264, "-bf", "0"))

    def lengthen(packet: av.Packet, number: int) -> None:
        if number == frames - 1:
            packet.duration = round(4 / packet.time_base)

    source = copied(plain, tmp_path / "in.mp4", lengthen)
    output, _ = restored(source, suffix, "-e", f"bf={bframes}")
    with av.open(str(output)) as container:
        assert container.duration / av.time_base == pytest.approx((frames - 1) * 0.04 + 4, abs=0.02)
    output, _ = restored(source, suffix, "-t", (frames - 1) * 0.04 + 1)
    with av.open(str(output)) as container:
        assert container.duration / av.time_base == pytest.approx((frames - 1) * 0.04 + 1, abs=0.02)


def test_the_last_frame_of_a_gif_lasts(restored, tmp_path: Path) -> None:
    """R12: the pause at the end of a GIF was lost."""
    source = clips.make(tmp_path / "in.gif", frames=4, codec=("-c:v", "gif"), extra=("-final_delay", 300),
                        pix_fmt="rgb8")  # fmt: skip
    output, _ = restored(source, ".mp4", "--pix-fmt", "yuv420p")
    with av.open(str(output)) as container:
        assert container.duration / av.time_base == pytest.approx(3.12, abs=0.02)


def test_a_beginning_before_the_first_keyframe(restored, tmp_path: Path) -> None:
    """R21: most of a recording was undecodable, and nothing was said; now the seconds are."""
    plain = clips.make(tmp_path / "plain.ts", frames=100, codec=(*H264, "-g", "50", "-bf", "0"))
    source = tmp_path / "cut.ts"
    source.write_bytes(plain.read_bytes()[188 * (plain.stat().st_size // 188 // 5) + 77 :])
    output, warnings = restored(source, ".mp4")
    frames = len(clips.facts(output).seconds)
    assert frames == len(witness(source)) == 50
    lost = sum(1 for packet in packets(source, "video")) - frames
    assert f"the first {lost / 25:.2f} s cannot be decoded" in warnings["W_INPUT_DAMAGED"]
    _, warnings = restored(source, ".mp4", "-ss", lost / 25 + 0.2)
    assert warnings == {}
    _, warnings = restored(plain, ".mp4")
    assert warnings == {}


@pytest.mark.parametrize("rate", ["25", "30000/1001", "60"])
def test_avi_has_one_rate(restored, tmp_path: Path, rate: str) -> None:
    """R24: AVI counts frames; its header said 600 fps, and frames were up to 23 ms late."""
    source = clips.make(tmp_path / "in.mp4", frames=20, rate=rate, codec=(*H264, "-bf", "0"), audio=())
    output, warnings = restored(source, ".avi")
    assert warnings == {}
    with av.open(str(output)) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(float(Fraction(rate)), rel=1e-4)
    assert witness(output) == pytest.approx(witness(source), abs=1e-4)


@pytest.mark.parametrize("codec", ["libxvid", "libaom-av1"])
def test_avi_has_one_rate_from_the_ffmpeg_program_too(restored, tmp_path: Path, codec: str) -> None:
    """R24: of encoders that run in the ffmpeg program, the header still said 600 fps."""
    source = clips.make(tmp_path / "in.mp4", frames=12, codec=H264)
    output, _ = restored(source, ".avi", "-c", codec)
    with av.open(str(output)) as container:
        assert container.streams.video[0].average_rate == 25
    assert witness(output) == pytest.approx(witness(source), abs=1e-4)


@pytest.mark.parametrize("sound", [(), ("-c:a", "aac"), ("-c:a", "libmp3lame"), ("-c:a", "pcm_s16le")], ids=str)
@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
def test_order_and_times_in_avi(restored, tmp_path: Path, codec: str, sound: tuple[str, ...]) -> None:
    """R24: AVI stores an order and no times: reordered frames came 80 ms after their sound, or left a hole."""
    inside = ("-c:v", "libx264", "-preset", "veryfast", "-bf", "2")
    moving = ("-vf", "scroll=h=0.1")
    source = clips.make(tmp_path / "in.mp4", frames=25, codec=inside, audio=sound, extra=moving)
    output, warnings = restored(source, ".avi", "--preset", "medium", "--crf", "2", "-c", codec)
    assert "W_TIMING" not in warnings
    assert witness(output) == pytest.approx(witness(source), abs=1e-4)
    before, after = clips.rgb(source).astype(int), clips.rgb(output).astype(int)
    nearest = [min(range(25), key=lambda place: abs(before[place] - frame).mean()) for frame in after]
    assert nearest == list(range(25))
    if sound:
        assert clips.packet_hashes(output, "a:0") == clips.packet_hashes(source, "a:0")
    _, warnings = restored(source, ".avi", "--preset", "medium", "-c", codec, "-e", "bf=2")
    assert "AVI stores no times" in warnings["W_TIMING"]
