"""Sound is never dropped where the container holds it: what `ffmpeg -c copy` keeps, `run` keeps, too."""

import json
from collections.abc import Callable
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


def sound_packets(path: Path) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(audio=0) if packet.size]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_doubled_times_of_sound(restored, tmp_path: Path, suffix: str) -> None:
    """R11: packets of sound with the time of the one before were left out, every fifth of a live recording."""
    plain = clips.make(tmp_path / "plain.flv", frames=25, codec=(*H264, "-bf", "0"), audio=("-c:a", "aac"))
    data, place, number, last = bytearray(plain.read_bytes()), 13, 0, bytes(4)
    while place < len(data):  # the tags of FLV: kind, size (3 bytes), time (4 bytes), and its size again at the end
        if data[place] == 8:
            if number % 5 == 4:
                data[place + 4 : place + 8] = last
            last, number = bytes(data[place + 4 : place + 8]), number + 1
        place += 15 + int.from_bytes(data[place + 1 : place + 4], "big")
    source = tmp_path / "live.flv"
    source.write_bytes(data)
    before = sound_packets(source)
    assert sum(a.dts == b.dts for a, b in pairwise(before)) >= 8
    output, warnings = restored(source, suffix)
    assert warnings == {}
    after = sound_packets(output)
    assert [bytes(packet) for packet in after] == [bytes(packet) for packet in before]
    moved = [float(b.pts * b.time_base - a.pts * a.time_base) for a, b in zip(before, after, strict=True)]
    assert moved == pytest.approx([0] * len(before), abs=1.1e-3)


def test_doubled_times_in_fragments(restored, tmp_path: Path) -> None:
    """R11: the same in a fragmented MP4, where FFmpeg marks such packets as hidden."""
    extra = ("-movflags", "frag_every_frame+empty_moov")
    source = clips.make(tmp_path / "in.mp4", frames=75, codec=H264, audio=("-c:a", "aac"), extra=extra)
    before = sound_packets(source)
    assert any(packet.is_discard for packet in before)
    output, warnings = restored(source, ".mp4")
    assert warnings == {}
    assert [bytes(packet) for packet in sound_packets(output)] == [bytes(packet) for packet in before]


def samples(path: Path) -> str:
    """Return a digest of the decoded sound, by the independent ffmpeg."""
    return clips.ffmpeg("-i", path, "-map", "0:a:0", "-c:a", "pcm_s16le", "-f", "md5", "-")


def sound_of(path: Path) -> tuple[str, str]:
    """Return the codec and the layout of the sound."""
    with av.open(str(path)) as container:
        context = container.streams.audio[0].codec_context
        return context.name, context.layout.name


# Suffix and encoder of the sound, and what it is in .mp4, .mov and .mkv; "" where it is left out, as by ffmpeg -c copy.
SOUND = {
    (".avi", "pcm_u8", "mono"): ("alac", "pcm_u8", "pcm_u8"),
    (".avi", "pcm_s16le", "stereo"): ("pcm_s16le", "pcm_s16le", "pcm_s16le"),
    (".avi", "pcm_s16le", "mono"): ("pcm_s16le", "pcm_s16le", "pcm_s16le"),
    (".avi", "adpcm_ms", "mono"): ("alac", "alac", "adpcm_ms"),
    (".avi", "adpcm_ima_wav", "stereo"): ("alac", "alac", "adpcm_ima_wav"),
    (".avi", "pcm_mulaw", "mono"): ("alac", "pcm_mulaw", "pcm_mulaw"),
    (".avi", "pcm_alaw", "stereo"): ("alac", "pcm_alaw", "pcm_alaw"),
    (".mov", "pcm_alaw", "mono"): ("alac", "pcm_alaw", "flac"),
    (".avi", "wmav1", "stereo"): ("", "", "wmav1"),
    (".asf", "wmav2", "mono"): ("", "", "wmav2"),
    (".m2ts", "pcm_bluray", "stereo"): ("alac", "alac", "flac"),
    (".vob", "pcm_dvd", "stereo"): ("alac", "alac", "flac"),
}


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("kind", SOUND, ids=lambda kind: "-".join(kind))
def test_no_sound_is_lost(restored, tmp_path: Path, kind: tuple[str, str, str], suffix: str) -> None:
    """R8, R9: without a channel mask, or where PyAV refuses what FFmpeg's muxer takes, the sound was dropped."""
    inside, codec, layout = kind
    rate = 48000 if codec in ("pcm_bluray", "pcm_dvd") else 22050
    video = ("-c:v", "mpeg2video") if inside in (".m2ts", ".vob") else ("-c:v", "mpeg4")
    sound = ("-c:a", codec, "-ar", str(rate), "-ac", str(1 + (layout == "stereo")))
    source = clips.make(tmp_path / f"in{inside}", frames=25, codec=video, audio=sound)
    output, warnings = restored(source, suffix)
    expected = SOUND[kind][(".mp4", ".mov", ".mkv").index(suffix)]
    warnings.pop("W_CODEC", None)
    if not expected:
        assert ".mkv can" in warnings["W_STREAM_DROPPED"]
        return
    found, channels = sound_of(output)
    assert found == expected
    assert channels in (layout, f"{1 + (layout == 'stereo')} channels")
    assert samples(output) == samples(source)
    assert ("W_STREAM_CONVERTED" in warnings) == (expected != codec)
    starts = [
        float(packets[0].pts * packets[0].time_base) for packets in (sound_packets(source), sound_packets(output))
    ]
    assert starts[1] == pytest.approx(starts[0], abs=1.1e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_that_begins_late(restored, tmp_path: Path, suffix: str) -> None:
    """R10: sound from the eighth second on was dropped, because FFmpeg looks at the first seconds only."""
    source = tmp_path / "late.ts"
    clips.ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=5:d=12", "-itsoffset", 8, "-f", "lavfi", "-i", "sine=440:d=2",
                 "-map", 0, "-map", 1, *H264, "-g", 5, "-c:a", "aac", source)  # fmt: skip
    output, warnings = restored(source, suffix)
    assert warnings == {}
    assert len(sound_packets(output)) == pytest.approx(2 * 44100 / 1024, abs=2)
    begin = sound_packets(output)[0]
    with av.open(str(output)) as container:
        video = container.streams.video[0]
        assert float(begin.pts * begin.time_base - video.start_time * video.time_base) == pytest.approx(8, abs=0.05)


def test_a_late_second_track(restored, tmp_path: Path) -> None:
    """R10: VOB lists no streams; a track from the ninth second on was announced as left out."""
    source = tmp_path / "in.vob"
    drawn, tones = ("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=12"), ("-f", "lavfi", "-i", "sine=440:d=12")
    late, codecs = ("-itsoffset", 9, "-f", "lavfi", "-i", "sine=880:d=2"), ("-c:v", "mpeg2video", "-c:a", "ac3")
    clips.ffmpeg(*drawn, *tones, *late, "-map", 0, "-map", 1, "-map", 2, *codecs, "-b:v", "200k", source)
    output, warnings = restored(source, ".mkv")
    assert set(warnings) <= {"W_CODEC"}
    assert clips.facts(output).streams[1:] == [("audio", "ac3")] * 2


@pytest.mark.parametrize("tracks", [1, 2])
def test_sound_in_mxf(restored, tmp_path: Path, tracks: int) -> None:
    """R24: MXF takes no sound without a video, so tried alone, every track was "cannot be held by mxf"."""
    tones = [word for place in range(tracks) for word in ("-f", "lavfi", "-i", f"sine={440 + 220 * place}:r=48000:d=1")]
    maps = [word for place in range(1 + tracks) for word in ("-map", place)]
    source = tmp_path / "in.mxf"
    clips.ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=1", *tones, *maps, "-c:v", "mpeg2video", "-c:a",
                 "pcm_s16le", source)  # fmt: skip
    output, warnings = restored(source, ".mxf")
    assert warnings == {}
    for place in range(tracks):
        assert clips.packet_hashes(output, f"a:{place}") == clips.packet_hashes(source, f"a:{place}")


@pytest.mark.parametrize("suffix", [".m2ts", ".ts"])
def test_sound_of_discs_in_their_own_container(restored, tmp_path: Path, suffix: str) -> None:
    """R9: .m2ts holds LPCM of Blu-ray discs, as ffmpeg -c copy shows, but it was left out; .ts holds none."""
    video, sound = ("-c:v", "mpeg2video"), ("-c:a", "pcm_bluray", "-ar", "48000", "-ac", "2")
    source = clips.make(tmp_path / "in.m2ts", frames=25, codec=video, audio=sound)
    output, warnings = restored(source, suffix)
    if suffix == ".ts":
        assert "cannot be held by .ts" in warnings["W_STREAM_DROPPED"]
    else:
        assert "W_STREAM_DROPPED" not in warnings
        assert clips.packet_hashes(output, "a:0") == clips.packet_hashes(source, "a:0")
