"""Speed and memory of `vdeblur run`, and the share of what its parts allow.

    python -m benchmarks.run_speed [--model lite] [--size 1280x720] [--frames 60] [--memory]

The clip is examples/square.mp4, repeated forth and back to the length asked for. Each part (decoding, the network
with colour and tiles, encoding) is measured alone in this process, then the whole in a process of its own; all in
one run, so that the ratio holds on a machine whose speed varies. Where all share the same cores, the parts allow the
rate of their summed times; with a GPU, the smallest of their rates. `--memory` adds the peak of 60 and 600 frames.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tests.clips import ffmpeg

from vdeblur import decode, device, pipeline, weights
from vdeblur.encode import EncodeOptions, VideoWriter
from vdeblur.frame import Frame
from vdeblur.plan import plan_tiles
from vdeblur.restore import Restorer
from vdeblur.settings import Settings

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "square.mp4"


def make_clip(path: Path, size: str, frames: int) -> Path:
    """Repeat the example forth and back."""
    turn = "[0]split[a][b];[b]reverse[c];[a][c]concat,loop=-1:20,setpts=N/24/TB"
    scale = f"scale={size.replace('x', ':')}"
    options = ["-c:v", "libx264", "-crf", "18", "-preset", "veryfast", "-pix_fmt", "yuv420p"]
    ffmpeg("-i", EXAMPLE, "-filter_complex", f"{turn},{scale}", "-frames:v", frames, *options, path)
    return path


def quiet(code: str, message: str) -> None:
    """Take a warning and do nothing with it."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="lite")
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Measure the parts, the whole, and the memory."""
    clip = make_clip(folder / "clip.mp4", options.size, options.frames)
    settings = Settings(model=options.model, encoding=EncodeOptions(overwrite=True))
    chosen = device.choose_device("auto")

    begun = time.perf_counter()
    source = decode.open_source(clip, settings.cut, quiet)
    frames = [item for item in source.items() if isinstance(item, Frame)]
    decoding = (time.perf_counter() - begun) / len(frames)

    network = weights.load_model(options.model)
    precision = device.choose_precision("auto", chosen, network)
    network = device.place(network, chosen, precision)
    plan = plan_tiles(settings, source.info.height, source.info.width, network, chosen)
    restorer = Restorer(network, plan, chosen, settings)
    list(restorer.restore(iter(frames[:4])))  # warm-up
    restorer = Restorer(network, plan, chosen, settings)
    begun = time.perf_counter()
    restored = list(restorer.restore(iter(frames)))
    restoring = (time.perf_counter() - begun) / len(frames)

    writer = VideoWriter(folder / "alone.mp4", source, settings.cut, settings.encoding, quiet)
    begun = time.perf_counter()
    for frame in restored:
        writer.write(frame)
    writer.finish()
    encoding = (time.perf_counter() - begun) / len(frames)

    def whole() -> Iterator[float]:
        for _ in range(2):
            begun = time.perf_counter()
            pipeline.run(clip, folder / "whole.mp4", settings)
            yield (time.perf_counter() - begun) / len(frames)

    times = sorted(whole())
    allowed = decoding + restoring + encoding if chosen.type == "cpu" else max(decoding, restoring, encoding)
    threads = torch.get_num_threads()
    print(f"{options.model} on {chosen} in {precision}, {options.size}, {len(frames)} frames, {threads} threads")
    for name, seconds in (("decoding", decoding), ("restoring", restoring), ("encoding", encoding)):
        print(f"  {name:10} {1 / seconds:8.2f} frames/s alone")
    print(
        f"  pipeline   {1 / times[0]:8.2f} frames/s, the better of 2; {allowed / times[0]:.2f} of what the parts allow"
    )
    if options.memory:
        peaks = [peak_memory(folder, options, frames) for frames in (60, 600)]
        print(
            f"  memory     {peaks[0]:.0f} MB for 60 frames, {peaks[1]:.0f} MB for 600, ratio {peaks[1] / peaks[0]:.3f}"
        )


def peak_memory(folder: Path, options: argparse.Namespace, frames: int) -> float:
    """Run the command line on so many frames; gives the peak of its resident memory in MB."""
    clip = make_clip(folder / f"{frames}.mp4", options.size, frames)
    command = [sys.executable, "-m", "vdeblur", "run", clip, folder / "memory.mp4", "-y", "-m", options.model]
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.DEVNULL)
    _, status, usage = wait_with_usage(process.pid)
    assert status == 0
    return usage.ru_maxrss / 1024


def wait_with_usage(pid: int) -> tuple[int, int, resource.struct_rusage]:
    """Wait for a process; gives what the system counted for it."""
    return os.wait4(pid, 0)


if __name__ == "__main__":
    main()
