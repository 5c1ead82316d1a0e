"""Measure what must not grow with a video's length: memory, drift of times, threads and open files.

    python -m benchmarks.long_run            # some minutes; prints a table for benchmarks/README.md

The ffmpeg of imageio-ffmpeg makes the clips. Memory is the peak of a separate process that restores one clip; drift
compares the time of every frame, and every audio packet, of input and output.
"""

import multiprocessing
import resource
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import psutil

from vdeblur.run import batch, jobs, pipeline
from vdeblur.settings import Settings

KILO = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss, in bytes


@dataclass(frozen=True)
class Drift:
    """frames: in the output. latest_seconds: the largest difference of a frame's time. same_sound: packet by packet."""

    frames: int
    latest_seconds: Fraction
    same_sound: bool


def make_clip(path: Path, size: str, frames: int, *options: str) -> Path:
    """Write a clip of ffmpeg's moving test picture with a tone."""
    picture = ("-f", "lavfi", "-i", f"testsrc2=size={size}:rate=30000/1001")
    tone = ("-f", "lavfi", "-i", f"sine=440:duration={frames * 1001 / 30000:.3f}")
    codecs = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-c:a", "aac")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *picture, *tone, "-frames:v", str(frames), *codecs]
    subprocess.run([*command, *options, path], check=True)
    return path


def peak_bytes(source: Path, output: Path, model: str, segment: float = 10) -> int:
    """Restore in a process of its own; return its peak resident memory in bytes."""
    context = multiprocessing.get_context("spawn")
    read, write = context.Pipe(duplex=False)
    process = context.Process(target=_report_peak, args=(source, output, model, segment, write))
    process.start()
    write.close()
    peak: int = read.recv()
    process.join()
    return peak


def _report_peak(
    source: Path, output: Path, model: str, segment: float, answer: "multiprocessing.connection.Connection"
) -> None:
    pipeline.restore_file(source, output, Settings(model=model, segment=Fraction(segment)))
    answer.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KILO)


def measure_drift(source: Path, output: Path, segment: float = 10) -> Drift:
    """Restore with identity; compare times and sound of input and output."""
    pipeline.restore_file(source, output, Settings(model="identity", segment=Fraction(segment)))
    before, after = _times(source), _times(output)
    latest = max(abs(a - b) for a, b in zip(before, after, strict=True))
    return Drift(len(after), latest, _sound(source) == _sound(output))


def _times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        return [(frame.pts or 0) * (frame.time_base or Fraction(0)) for frame in container.decode(video=0)]


def _sound(path: Path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        packets = (packet for packet in container.demux(audio=0) if packet.size)
        return [((packet.pts or 0) * packet.time_base, bytes(packet)) for packet in packets]


def handles_and_threads(folder: Path, files: int) -> list[tuple[int, int]]:
    """Restore a folder of this many short files; return open handles and threads after two of them, and after all."""
    first = make_clip(folder / "0.mp4", "64x48", 4)
    for number in range(1, files):
        (folder / f"{number}.mp4").write_bytes(first.read_bytes())
    settings = Settings(model="identity")
    planned = jobs.plan_jobs([str(folder)], str(folder.parent / "out"), None, settings)
    counts = []
    for part in (planned[:2], planned[2:]):
        batch.check_outcomes(batch.run_jobs(part, settings))
        counts.append((psutil.Process().num_fds(), threading.active_count()))
    return counts


def main() -> None:
    """Measure and print everything."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size, model in (("320x180", "lite"), ("1280x720", "identity")):
            peaks = []
            for frames in (60, 600):
                source = make_clip(folder / f"{frames}.mp4", size, frames)
                peaks.append(peak_bytes(source, folder / f"{frames}_{model}.mp4", model))
            words = ", ".join(
                f"{frames} frames {peak / 1e6:.0f} MB" for frames, peak in zip((60, 600), peaks, strict=True)
            )
            print(f"memory, {size}, {model}: {words}, ratio {peaks[1] / peaks[0]:.3f}", flush=True)
        drift = measure_drift(make_clip(folder / "long.mp4", "320x180", 2000), folder / "long_out.mp4")
        same = "equal" if drift.same_sound else "NOT equal"
        print(f"drift: {drift.frames} frames, at most {float(drift.latest_seconds)} s; audio packets {same}")
        (folder / "in").mkdir()
        counts = handles_and_threads(folder / "in", 50)
        print("open handles and threads after 2 and 50 files: " + " and ".join(f"{a}, {b}" for a, b in counts))


if __name__ == "__main__":
    main()
