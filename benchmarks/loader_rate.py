"""Measure how fast training clips load: from PNGs and from memory maps, with several numbers of processes.

    python -m benchmarks.loader_rate            # a few minutes; prints a table for benchmarks/README.md

It makes its own sequences of 1280x720 PNGs, with files as large as GoPro's. A clip is five frames, cropped to 256x256,
mirrored and rotated. All ways are measured in turn, so that ratios hold on a machine whose speed varies.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from torch.nn import functional as F

from vdeblur.datasets import pictures
from vdeblur.datasets.layouts import open_dataset
from vdeblur.events import Talk
from vdeblur.train import data
from vdeblur.train.objectives.base import Batch, Clip

SEQUENCES, FRAMES = 2, 24
GRAIN = 1.2  # of the noise in 8-bit steps, so that a PNG has about the size of GoPro's
PLAN = data.Plan(5, 256, augment=("flip_horizontal", "flip_vertical", "rot90"))


def make_set(root: Path) -> None:
    """Write sequences of soft pictures with grain, shifted from frame to frame."""
    generator = torch.Generator().manual_seed(0)
    for sequence in range(SEQUENCES):
        coarse = torch.rand(1, 3, 46, 86, generator=generator)
        whole = F.interpolate(coarse, (736, 1376), mode="bicubic")[0] * 255
        for frame in range(FRAMES):
            for kind in ("blur", "sharp"):
                cut = whole[:, 8:728, 4 * frame : 4 * frame + 1280]
                grain = GRAIN * torch.randn(cut.shape, generator=generator)
                path = root / "train" / f"sequence{sequence}" / kind / f"{frame:06}.png"
                pictures.write_png(path, (cut + grain).clamp(0, 255).to(torch.uint8))


def prepare(clip: Clip, rng: object) -> Batch:
    """Prepare a batch as most objectives do."""
    return {"blurry": clip.blurry, "sharp": clip.sharp}


def warn(code: str, message: str) -> None:
    """Print a warning; none is expected."""
    print(code, message)


def main() -> None:
    """Print the clips per second of each way, and the ratio to PNGs without processes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often to measure everything")
    parser.add_argument(
        "--batches",
        type=int,
        default=20,
        help="batches of two clips per measurement of PNGs; ten times as many of maps",
    )
    parser.add_argument("--workers", default="0,1,2", help="numbers of processes, separated by commas")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_set(root / "set")
        sizes = [path.stat().st_size for path in root.rglob("*.png")]
        print(f"{len(sizes)} PNGs of {statistics.mean(sizes) / 1e6:.2f} MB on average")
        talk = Talk(offline=True)
        sequences = open_dataset(str(root / "set"), split="train", talk=talk, warn=warn).sequences
        rates: dict[tuple[str, int], list[float]] = {}
        for _ in range(options.rounds):
            for workers in map(int, options.workers.split(",")):
                for name, cache, factor in (("PNG", None, 1), ("maps", root / "cache", 10)):
                    source = data.open_clips(sequences, PLAN, cache=cache, talk=talk, warn=warn)
                    clips = data.training_clips(source, PLAN, prepare, 0)
                    loader = data.Loader(clips, data.WorkerShare(2), workers=workers)
                    rate = data.measure_rate(loader, factor * options.batches)
                    rates.setdefault((name, workers), []).append(rate)
        base = statistics.median(next(iter(rates.values())))
        print("| read from | processes | clips/s | of PNGs without processes |\n| --- | --- | --- | --- |")
        for (name, workers), found in rates.items():
            rate = statistics.median(found)
            spread = f"{min(found):.1f} to {max(found):.1f}"
            print(f"| {name} | {workers} | {rate:.1f} ({spread}) | {rate / base:.1f} |")


if __name__ == "__main__":
    main()
