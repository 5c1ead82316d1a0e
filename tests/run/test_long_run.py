"""What must not grow with a video's length; benchmarks/long_run.py measures the same on longer ones."""

from fractions import Fraction
from pathlib import Path

import numpy
import pytest
from benchmarks import long_run

from tests import clips

H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "25")


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    """The most that a process holds of a short and of a ten times longer video, which is segmented, too."""
    peaks = []
    for frames in (60, 600):
        source = clips.make(tmp_path / f"{frames}.mp4", size="320x180", frames=frames, codec=H264)
        peaks.append(long_run.peak_bytes(source, tmp_path / f"{frames}_out.mp4", "identity", segment=1))
    assert peaks[1] / peaks[0] < 1.05, [round(peak / 1e6) for peak in peaks]


def test_times_do_not_drift(tmp_path: Path) -> None:
    """Of a rate that no clock of containers divides, with sound: 2,000 frames and every packet of sound."""
    source = clips.make(
        tmp_path / "in.mp4", frames=2000, rate="30000/1001", codec=H264, inputs=("-f", "lavfi", "-i", "sine=d=66"),
        extra=("-map", 0, "-map", 1, "-c:a", "aac"),
    )  # fmt: skip
    output = tmp_path / "out.mp4"
    drift = long_run.measure_drift(source, output, segment=3)
    assert (drift.frames, drift.latest_seconds, drift.same_sound) == (2000, Fraction(0), True)
    assert clips.packet_hashes(output, "a:0") == clips.packet_hashes(source, "a:0")
    times = [Fraction(seconds).limit_denominator(90_000) for seconds in clips.facts(output).seconds]
    assert float(times[-1]) == pytest.approx(1999 * 1001 / 30000, abs=1e-9)
    assert numpy.diff([float(time) for time in times]) == pytest.approx(1001 / 30000, abs=1e-9)
