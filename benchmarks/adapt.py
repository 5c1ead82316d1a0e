"""Adapt `lite` to a clip by its own sharp frames, and measure whether that helps: docs/adapt.md has the results.

    python -m benchmarks.adapt SEQUENCE... [--camera] [--recipe NAME ...] [--seeds 0,1,2]
    python -m benchmarks.adapt --videos VIDEO...

A SEQUENCE is a folder with blur (or blur_gamma) and sharp, each with ten or more frames of the same names; the first
ten count. Frames 1, 3, 6 and 8 of the blurred ones are replaced by their sharp partners: a clip of which four frames
happen to be sharp. Sharp frames, moved onto the blurred ones near them, are labels for further training; one of them,
frame 3, with its pairs judges whether the new weights are better. The true sharp frames serve for the tables alone.

- gain: change of the blurred frames' RGB PSNR by adapting, in dB. matched: after each frame's mean is matched to the
  true one's. high-pass: of the frames minus their Gaussian blur of sigma 2. contrast: the share that comes back of the
  gradient that blur took, before and after.
- judge: what a user could measure, the change of the masked PSNR against the moved sharp frame that was held out, after
  a high-pass of sigma 8. taken: trainings that would have been accepted. kept: PSNR of the held-out sharp frame against
  itself, before and after.

--camera sharpens all frames and compresses the mixed clip (x264, CRF 27), as phones do. --videos counts the sharp and
blurred frames of real footage, by vdeblur.measure.blur, and the pairs that adapting could use.
"""

import argparse
import copy
import math
import random
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.lite_quality import gradient, high_pass, matched, psnr
from vdeblur.datasets.pictures import of_frame, read_rgb
from vdeblur.events import ignore
from vdeblur.measure.blur import STILL, blur_of, luma_from_rgb, reduced_luma, strength_of
from vdeblur.measure.temporal import is_seen
from vdeblur.models import weights
from vdeblur.networks import lucas_kanade
from vdeblur.networks.lite import Lite, View, look_along_motion, luma_of
from vdeblur.settings import Cut
from vdeblur.source.video import VideoSource

FRAMES, SHARP, HELD_OUT = 10, (1, 3, 6, 8), 3
AMONG = 20  # frames of which the sharpest fifth may be labels, where they are sharp
NEAR = 2  # frames between a blurred frame and the sharp one that becomes its label
VALID = 0.3  # least share of a label that is seen in both frames
STEPS, BATCH, CROP, RATE = 80, 12, 96, 3e-4
FLOOR = 1e-4  # of the squared error in the loss: 40 dB
HALF_WAY = 0.5  # between the old weights and the trained ones
LEAST_RISE, LEAST_SHARE = 0.1, 0.6  # of the judge in dB, and of its pairs that rise
KEPT, LARGEST_LOSS = 45.0, 6.0  # dB, of the sharp frame held out
# Shares of the samples: blurred frames with moved sharp ones as labels, blurred frames whose label is what the network
# returned before ("anchor"), sharp frames that must stay. "truth" replaces the labels by the true frames, as a bound.
RECIPES = {"labels": (2, 2, 1), "no anchor": (2, 0, 1), "no labels": (0, 2, 1), "truth": (2, 2, 1)}


@dataclass(frozen=True)
class Pair:
    """A blurred frame and a sharp one: label (3, H, W), the sharp frame moved onto it; mask (1, H, W), 0 or 1."""

    blurred: int
    sharp: int
    label: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Clip:
    """A mixed clip and the true frames, (T, 3, H, W) in [0, 1]; its views; what the network returns, and all pairs."""

    name: str
    frames: Tensor
    truth: Tensor
    views: list[View]
    restored: Tensor
    pairs: list[Pair]

    @property
    def blurred(self) -> list[int]:
        """Return the places of the blurred frames."""
        return [place for place in range(FRAMES) if place not in SHARP]


def smooth(frames: Tensor, sigma: float) -> Tensor:
    """Return frames (B, C, H, W) after a Gaussian blur."""
    reach = round(3 * sigma)
    taps = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * sigma**2))
    taps = (taps / taps.sum()).expand(frames.shape[1], 1, 1, -1)
    across = F.conv2d(F.pad(frames, (reach, reach, 0, 0), "reflect"), taps, groups=frames.shape[1])
    return F.conv2d(F.pad(across, (0, 0, reach, reach), "reflect"), taps.mT, groups=frames.shape[1])


def as_by_a_phone(frames: Tensor) -> Tensor:
    """Return frames after sharpening and H.264 in one video."""
    height, width = frames.shape[2:]
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24")
    program = (imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y")
    with tempfile.TemporaryDirectory() as folder:
        video = f"{folder}/video.mp4"
        coding = ("-pix_fmt", "yuv420p", "-c:v", "libx264", "-crf", "27", video)
        pixels = (sharpened(frames) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        subprocess.run(
            [*program, *raw, "-s", f"{width}x{height}", "-i", "-", *coding], input=pixels.tobytes(), check=True
        )
        decoded = subprocess.run([*program, "-i", video, *raw, "-"], capture_output=True, check=True).stdout
    array = numpy.frombuffer(decoded, numpy.uint8).reshape(pixels.shape)
    return torch.from_numpy(array.copy()).permute(0, 3, 1, 2).float() / 255


def sharpened(frames: Tensor) -> Tensor:
    """Return frames after an unsharp mask of sigma 1."""
    return (2 * frames - smooth(frames, 1.0)).clamp(0, 1)


def read_clip(folder: Path, network: Lite, is_by_phone: bool) -> Clip:
    """Read a sequence, mix its frames, restore them, and move sharp frames onto the blurred ones."""
    blurry = folder / "blur" if (folder / "blur").is_dir() else folder / "blur_gamma"
    frames, truth = (
        torch.stack([read_rgb(path) for path in sorted(each.glob("*.png"))[:FRAMES]]).float() / 255
        for each in (blurry, folder / "sharp")
    )
    height, width = (length // 4 * 4 for length in frames.shape[2:])
    frames, truth = frames[..., :height, :width], truth[..., :height, :width]
    frames[list(SHARP)] = truth[list(SHARP)]
    if is_by_phone:
        frames, truth = as_by_a_phone(frames), sharpened(truth)
    singles = [None, *frames.split(1), None]
    views = [look_along_motion(singles[t], frames[t : t + 1], singles[t + 2]) for t in range(FRAMES)]
    clip = Clip(folder.name, frames, truth, views, frames, [])
    restored = restore(network, clip)
    pairs = [moved(restored, frames, k, j) for k in clip.blurred for j in SHARP if abs(k - j) <= NEAR]
    return Clip(folder.name, frames, truth, views, restored, [pair for pair in pairs if pair.mask.mean() >= VALID])


def moved(restored: Tensor, frames: Tensor, blurred: int, sharp: int) -> Pair:
    """Move a sharp frame onto a blurred one: the restored frame is aligned, not the blurred one."""
    here, there = luma_of(restored[blurred : blurred + 1]), luma_of(frames[sharp : sharp + 1])
    forward, backward = lucas_kanade.flow(here, there), lucas_kanade.flow(there, here)
    label = lucas_kanade.sample(frames[sharp : sharp + 1], forward)
    return Pair(blurred, sharp, label[0], is_seen(forward, backward)[0])


@torch.no_grad()
def restore(network: Lite, clip: Clip) -> Tensor:
    """Restore all frames of a clip."""
    changes = [network.difference(*view) for view in clip.views]
    return (clip.frames + torch.cat(changes)).clamp(0, 1)


def drawn(clip: Clip, recipe: str, kind: str, rng: random.Random) -> list[Tensor]:
    """Draw a sample: a crop of the previous frame, the frame, the following one, label and mask."""
    whole = torch.ones(1, *clip.frames.shape[2:])
    pair = rng.choice([pair for pair in clip.pairs if pair.sharp != HELD_OUT])
    if kind == "label":
        place, label, mask = pair.blurred, pair.label, pair.mask
        if recipe == "truth":
            label, mask = clip.truth[place], whole
    elif kind == "anchor":
        place = rng.choice(clip.blurred)
        label, mask = clip.restored[place], whole
    else:
        place = rng.choice([place for place in SHARP if place != HELD_OUT])
        label, mask = clip.frames[place], whole
    neighbours = [max(place - 1, 0), min(place + 1, FRAMES - 1)]
    if kind == "label" and rng.random() < 0.5:  # blurred neighbours instead of sharp ones: else networks learn to copy
        before, after = ([k for k in clip.blurred if k < place], [k for k in clip.blurred if k > place])
        neighbours = [before[-1] if before else neighbours[0], after[0] if after else neighbours[1]]
    if rng.random() < 0.5:
        neighbours.reverse()
    top, left = (rng.randrange(length - CROP + 1) for length in clip.frames.shape[2:])
    sample = [clip.frames[neighbours[0]], clip.frames[place], clip.frames[neighbours[1]], label, mask]
    sample = [each[:, top : top + CROP, left : left + CROP] for each in sample]
    for axes in ((-1,), (-2,)):
        if rng.random() < 0.5:
            sample = [each.flip(axes) for each in sample]
    return [each.mT for each in sample] if rng.random() < 0.5 else sample


def adapted(start: Lite, clip: Clip, recipe: str, seed: int) -> Lite:
    """Train a copy of a network on a clip, and return the weights half-way."""
    network, rng = copy.deepcopy(start).train(), random.Random(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0)
    shares = zip(("label", "anchor", "same"), RECIPES[recipe], strict=True)
    kinds = [kind for kind, share in shares for _ in range(share)]
    waiting: list[str] = []
    for step in range(STEPS):
        samples = []
        for _ in range(BATCH):
            waiting = waiting or rng.sample(kinds, len(kinds))
            samples.append(drawn(clip, recipe, waiting.pop(), rng))
        previous, frame, following, label, mask = (torch.stack(each) for each in zip(*samples, strict=True))
        restored = frame + network.difference(*look_along_motion(previous, frame, following))
        error = ((restored - label).square() * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3))).clamp(min=1)
        is_label = mask.mean((1, 2, 3)) > 0.1
        loss = ((error + FLOOR).log() * is_label).sum() / is_label.sum().clamp(min=1)
        optimiser.param_groups[0]["lr"] = RATE * (0.05 + 0.475 * (1 + math.cos(math.pi * step / STEPS)))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    old = start.state_dict()
    network.load_state_dict({name: old[name].lerp(new, HALF_WAY) for name, new in network.state_dict().items()})
    return network.eval()


def judged(restored: Tensor, clip: Clip) -> Tensor:
    """Return the masked high-pass PSNR of each pair with the sharp frame that was held out."""
    scores = []
    for pair in clip.pairs:
        if pair.sharp == HELD_OUT:
            error = restored[pair.blurred] - pair.label
            error = error - smooth(error[None], 8.0)[0]
            scores.append(-10 * ((error.square() * pair.mask).sum() / (3 * pair.mask.sum())).log10())
    return torch.stack(scores)


def figures(network: Lite, clip: Clip) -> list[float]:
    """Return gain, matched, high-pass, contrast, the judge's rise, 1 if the weights are taken, and kept."""
    after, held = restore(network, clip), slice(HELD_OUT, HELD_OUT + 1)
    true, frames = clip.truth[clip.blurred], clip.frames[clip.blurred]
    old, new = clip.restored[clip.blurred], after[clip.blurred]
    rise = judged(after, clip) - judged(clip.restored, clip)
    kept_before, kept = (float(psnr(each[held], clip.frames[held])) for each in (clip.restored, after))
    is_kept = kept >= kept_before - LARGEST_LOSS and (kept >= KEPT or kept_before < KEPT)
    is_up = rise.mean() >= LEAST_RISE and (rise > 0).float().mean() >= LEAST_SHARE
    return [
        float((psnr(new, true) - psnr(old, true)).mean()),
        float((psnr(matched(new, true), true) - psnr(matched(old, true), true)).mean()),
        float((psnr(high_pass(new), high_pass(true)) - psnr(high_pass(old), high_pass(true))).mean()),
        float(((gradient(new) - gradient(frames)) / (gradient(true) - gradient(frames))).mean()),
        float(rise.mean()),
        float(is_up and is_kept),
        kept,
    ]


def print_adapted(folders: list[Path], recipes: list[str], seeds: list[int], is_by_phone: bool) -> None:
    """Print a row for each recipe, the clip that the weights were adapted to, and the clip that they restore."""
    start = weights.load_model("lite").eval()
    if not isinstance(start, Lite):
        raise TypeError(type(start).__name__)
    clips = [read_clip(folder, start, is_by_phone) for folder in folders]
    heads = ["recipe", "adapted to", "measured on", "gain dB (range)", "matched", "high-pass", "contrast"]
    heads += ["judge", "taken", "kept"]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    own = [figures(start, clip) for clip in clips]
    for recipe in recipes:
        for source in clips:
            networks = [adapted(start, source, recipe, seed) for seed in seeds]
            for clip, before in zip(clips, own, strict=True):
                rows = numpy.array([figures(network, clip) for network in networks])
                gain, flat, high, contrast, rise, _, kept = rows.mean(0)
                spread = f"{gain:+.2f} ({rows[:, 0].min():+.2f} to {rows[:, 0].max():+.2f})"
                cells = f"{flat:+.2f} | {high:+.2f} | {before[3]:.2f} to {contrast:.2f} | {rise:+.2f}"
                taken = f"{int(rows[:, 5].sum())} of {len(rows)}"
                cells = f"{spread} | {cells} | {taken} | {before[6]:.1f} to {kept:.1f}"
                print(f"| {recipe} | {source.name} | {clip.name} | {cells} |", flush=True)


def frames_of(path: Path) -> Iterator[Tensor]:
    """Read a video or a folder of PNGs, at most 600 frames: (1, 3, H, W) in [0, 1]."""
    if path.is_dir():
        pictures = (read_rgb(each) for each in sorted(path.glob("*.png")))
    else:
        pictures = (of_frame(frame.picture) for frame in VideoSource(path, Cut(frames=600), ignore).frames())
    for picture in pictures:
        yield picture[None].float() / 255


def print_videos(paths: list[Path]) -> None:
    """Print how many frames of a video are sharp or blurred by motion, and how many pairs they make."""
    print("| video | frames | sharp | blurred by motion | pairs |\n| --- | --- | --- | --- | --- |")
    for path in paths:
        lumas = [reduced_luma(luma_from_rgb(frame)) for frame in frames_of(path)]
        around = [None, *lumas, None]
        measures = [blur_of(around[t], luma, around[t + 2]) for t, luma in enumerate(lumas)]
        slopes = [measure.slope_along for measure in measures]
        highest = max(numpy.quantile(slopes, 0.9) - 0.1, -1.6)
        sharpest = [numpy.quantile(slopes[t // AMONG * AMONG :][:AMONG], 0.8) for t in range(len(slopes))]
        sharp = [t for t, slope in enumerate(slopes) if slope >= max(-1.8, sharpest[t])]
        blurred = [
            t for t, each in enumerate(measures) if strength_of(slopes[t], highest) >= 0.5 and each.motion >= 2 * STILL
        ]
        pairs = sum(abs(k - j) <= NEAR for k in blurred for j in sharp)
        print(f"| {path.name} | {len(lumas)} | {len(sharp)} | {len(blurred)} | {pairs} |", flush=True)


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sequences", type=Path, nargs="*")
    parser.add_argument("--camera", action="store_true")
    parser.add_argument("--recipe", nargs="*", choices=list(RECIPES), default=["labels", "no labels"])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--videos", type=Path, nargs="*", default=[])
    given = parser.parse_args()
    if given.sequences:
        seeds = [int(seed) for seed in given.seeds.split(",")]
        print_adapted(given.sequences, given.recipe, seeds, given.camera)
    if given.videos:
        print_videos(given.videos)


if __name__ == "__main__":
    main()
