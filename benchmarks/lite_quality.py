"""lite against simpler methods: gains on pairs, contrast brought back, sharp footage, flicker.

    python -m benchmarks.lite_quality PAIRS [--weights FILE] [--clips VALIDATION] [--sharp VIDEO ...]

PAIRS holds sequences with blur/ and sharp/ folders of PNG frames. Frames at a sequence's ends count, too.

- gain: of RGB PSNR over the blurry frame, in dB. matched: after each frame's mean is matched to the sharp one's, per
  channel, since the blurry frames of some cameras are brighter. high-pass: of the frames minus their Gaussian blur of
  sigma 2.
- contrast: the share that comes back of the gradient (mean absolute difference of neighbouring pixels) that blur took.
- flicker: warping error, the RMS difference of a frame and the next one, warped onto it by the sharp frames' motion, in
  8-bit steps; blurry and sharp beside it.
"""

import argparse
import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.datasets.pictures import of_frame, read_rgb
from vdeblur.events import ignore
from vdeblur.models import weights
from vdeblur.networks import lucas_kanade
from vdeblur.networks.lite import DARKEST, GAMMA, luma_of
from vdeblur.restore import streams, tiles
from vdeblur.settings import Cut
from vdeblur.source.video import VideoSource

BINS = (0, 22, 26, 30, 34, 40, 60)  # dB, of the blurry frame
TAPS = (-0.5, -0.25, 0.0, 0.25, 0.5)
EXPOSURE, STEPS = 0.75, 3  # of plain Richardson-Lucy

Method = Callable[[Tensor], Tensor]  # frames (T, 3, H, W) in [0, 1] to the same


def by_network(path: Path | None) -> Method:
    """Return lite with the package's weights, or those of a file."""
    network = weights.load_model("lite", path).eval()

    def restore(frames: Tensor) -> Tensor:
        height, width = (-(-length // network.multiple) * network.multiple for length in frames.shape[2:])
        padded = F.pad(frames, (0, width - frames.shape[3], 0, height - frames.shape[2]), mode="reflect")
        plan = tiles.cut_tiles(height, width, None, 0, tiles.TileNeeds(network.multiple))
        restored = torch.cat(list(streams.stream(network, iter(padded.split(1)), plan)))
        return restored[..., : frames.shape[2], : frames.shape[3]].clamp(0, 1)

    return restore


def by_filter(text: str) -> Method:
    """Return one of FFmpeg's filters."""

    def restore(frames: Tensor) -> Tensor:
        height, width = frames.shape[2:]
        pixels = (frames * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        raw = ("-f", "rawvideo", "-pix_fmt", "rgb24")
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *raw, "-s", f"{width}x{height}", "-i", "-"]
        command += ["-vf", f"format=gbrp,{text},format=rgb24", *raw, "-"]
        done = subprocess.run(command, input=pixels.tobytes(), capture_output=True, check=True).stdout
        array = numpy.frombuffer(done, numpy.uint8).reshape(pixels.shape)
        return torch.from_numpy(array.copy()).permute(0, 3, 1, 2).float() / 255

    return restore


def richardson_lucy(frames: Tensor) -> Tensor:
    """Sharpen along the measured motion, in linear light, without anything learnt."""
    luma = luma_of(frames)
    small = F.avg_pool2d(luma, 4)
    forward, backward = (lucas_kanade.flow(small, small.roll(shift, 0)) for shift in (-1, 1))
    forward[-1], backward[0] = -backward[-1], -forward[0]
    travel = F.interpolate((forward - backward) * 2, scale_factor=4, mode="bilinear", align_corners=False)
    coded = luma.clamp(DARKEST)
    light = restored = coded.pow(GAMMA)

    def blurred(x: Tensor) -> Tensor:
        return torch.stack([lucas_kanade.sample(x, travel * (tap * EXPOSURE)) for tap in TAPS]).mean(0)

    for _ in range(STEPS):
        restored = (restored * blurred(light / (blurred(restored) + 1e-4))).clamp(0, 1.2)
    return (frames + restored.pow(1 / GAMMA) - coded).clamp(0, 1)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the PSNR of each frame in dB."""
    return -10 * (a - b).square().mean((1, 2, 3)).clamp(1e-10).log10()


def matched(frames: Tensor, sharp: Tensor) -> Tensor:
    """Shift each frame's channels to the means of the sharp one's."""
    return frames - frames.mean((2, 3), keepdim=True) + sharp.mean((2, 3), keepdim=True)


def high_pass(frames: Tensor) -> Tensor:
    """Subtract from frames their Gaussian blur of sigma 2."""
    steps = torch.arange(-8, 9)
    kernel = torch.exp(-steps.square() / 8)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    wide = F.pad(frames, (8, 8, 8, 8), mode="reflect")
    return frames - F.conv2d(F.conv2d(wide, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def gradient(frames: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels, across and down, of each frame."""
    across, down = frames[..., 1:] - frames[..., :-1], frames[..., 1:, :] - frames[..., :-1, :]
    return across.abs().mean((1, 2, 3)) + down.abs().mean((1, 2, 3))


def flicker(frames: Tensor, sharp: Tensor) -> float:
    """Return the warping error in 8-bit steps, with the sharp frames' motion."""
    luma = luma_of(sharp)
    motion = lucas_kanade.flow(luma[:-1], luma[1:])
    difference = lucas_kanade.sample(frames[1:], motion) - frames[:-1]
    agrees = (lucas_kanade.sample(luma[1:], motion) - luma[:-1]).abs() < 0.1  # not where something is hidden
    return float(((difference * agrees).square().sum() / (3 * agrees.sum())).sqrt() * 255)


def gains(restored: Tensor, blurry: Tensor, sharp: Tensor) -> list[float]:
    """Return the gain, matched, after a high-pass, and the share of contrast that comes back."""
    figures = [
        psnr(restored, sharp) - psnr(blurry, sharp),
        psnr(matched(restored, sharp), sharp) - psnr(matched(blurry, sharp), sharp),
        psnr(high_pass(restored), high_pass(sharp)) - psnr(high_pass(blurry), high_pass(sharp)),
        (gradient(restored) - gradient(blurry)) / (gradient(sharp) - gradient(blurry)),
    ]
    return [float(figure.mean()) for figure in figures]


def read(folder: Path) -> Tensor:
    """Read a folder of frames: (T, 3, H, W) in [0, 1]."""
    return torch.stack([read_rgb(path) for path in sorted(folder.glob("*.png"))]).float() / 255


def print_pairs(folder: Path, methods: dict[str, Method]) -> None:
    """Print a row for each sequence and method."""
    print("| sequence | method | gain dB | matched | high-pass | contrast | flicker (blurry, sharp) |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    means: dict[str, list[list[float]]] = {}
    for sequence in sorted(path for path in folder.iterdir() if path.is_dir()):
        blurry, sharp = read(sequence / "blur"), read(sequence / "sharp")
        for name, method in methods.items():
            restored = (method(blurry) * 255).round() / 255
            figures = gains(restored, blurry, sharp)
            means.setdefault(name, []).append(figures)
            row = " | ".join(f"{figure:+.2f}" for figure in figures)
            shown = (f"{flicker(frames, sharp):.2f}" for frames in (restored, blurry, sharp))
            print(f"| {sequence.name} | {name} | {row} | {'{} ({}, {})'.format(*shown)} |")
    for name, rows in means.items():
        row = " | ".join(f"{figure:+.2f}" for figure in numpy.mean(rows, 0))
        print(f"| **mean** | {name} | {row} | |")


def print_bins(folder: Path, methods: dict[str, Method]) -> None:
    """Print the gain of the middle frames of clips, by the blurry frame's PSNR, and the contrast that comes back."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    lost = 0.0
    returned = dict.fromkeys(methods, 0.0)
    for sequence in sorted(path for path in folder.iterdir() if path.is_dir()):
        blurry, sharp = read(sequence / "blur"), read(sequence / "sharp")
        middle = len(blurry) // 2
        before = float(psnr(blurry, sharp)[middle])
        missing = (gradient(sharp) - gradient(blurry))[middle]
        lost += float(missing) * (before < BINS[4])
        for name, method in methods.items():
            restored = method(blurry)
            found[name].append((before, float(psnr(restored, sharp)[middle]) - before))
            returned[name] += float((gradient(restored) - gradient(blurry))[middle]) * (before < BINS[4])
    heads = [f"{low} to {high}" for low, high in itertools.pairwise(BINS)]
    print(f"| blurry PSNR, dB | {' | '.join(heads)} | below 34 | contrast below 34 |\n|{' --- |' * (len(heads) + 3)}")
    for name, pairs in found.items():
        limits = [*itertools.pairwise(BINS), (0, 34)]
        rows = [[gain for before, gain in pairs if low <= before < high] for low, high in limits]
        cells = [f"{numpy.mean(row):+.2f} ({len(row)})" if row else "" for row in rows]
        print(f"| {name} | {' | '.join(cells)} | {returned[name] / lost:+.2f} |")


def print_sharp(videos: list[Path], restore: Method) -> None:
    """Print how much sharp video, reduced to half its size, changes."""
    for path in videos:
        source = VideoSource(path, Cut(frames=24), ignore)
        frames = torch.stack([of_frame(frame.picture) for frame in source.frames()]).float() / 255
        small = (F.interpolate(frames, scale_factor=0.5, mode="area") * 255).round() / 255
        print(f"sharp video {path.stem}: {float(psnr((restore(small) * 255).round() / 255, small).mean()):.1f} dB")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--clips", type=Path)
    parser.add_argument("--sharp", type=Path, nargs="*", default=[])
    given = parser.parse_args()
    restore = by_network(given.weights)
    methods = {
        "lite": restore,
        "Richardson-Lucy": richardson_lucy,
        "unsharp": by_filter("unsharp=5:5:1:5:5:0"),
        "cas": by_filter("cas=0.8"),
    }
    with torch.inference_mode():
        print_pairs(given.pairs, methods)
        if given.clips:
            print_bins(given.clips, methods)
        print_sharp(given.sharp, restore)


if __name__ == "__main__":
    main()
