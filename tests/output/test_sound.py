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
