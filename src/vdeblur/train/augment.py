"""Crops and augmentations: the same for all frames of a clip, and for its blurry and sharp pictures.

Random values come from the sample's own generator, in the order of the recipe's augmentations.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F

from vdeblur.errors import UsageError
from vdeblur.train.objectives.base import Clip

SMALLEST_SCALE = 0.5  # flow-RNN's paper gives no range for its "resize"; this one is ours

# Of brightness, contrast, saturation and hue: STFAN's configuration, to which CDVD-TSP's paper refers
COLOUR_JITTER = (0.2, 0.15, 0.3, 0.1)

Pictures = numpy.ndarray  # uint8 (2, T, 3, H, W): blurry, then sharp; RGB


@dataclass(frozen=True)
class Region:
    """A square of a picture, in pixels."""

    top: int
    left: int
    side: int


def _is_heads(rng: Generator) -> bool:
    return bool(rng.random() < 0.5)


def _flip_horizontal(pictures: Pictures, rng: Generator) -> Pictures:
    return pictures[..., ::-1] if _is_heads(rng) else pictures


def _flip_vertical(pictures: Pictures, rng: Generator) -> Pictures:
    return pictures[..., ::-1, :] if _is_heads(rng) else pictures


def _transpose(pictures: Pictures, rng: Generator) -> Pictures:
    return pictures.swapaxes(-2, -1) if _is_heads(rng) else pictures


def _rot90(pictures: Pictures, rng: Generator) -> Pictures:
    return numpy.rot90(pictures, int(_is_heads(rng)), axes=(-2, -1))


def _turn(pictures: Pictures, rng: Generator) -> Pictures:
    return numpy.rot90(pictures, int(rng.integers(4)), axes=(-2, -1))


def _any_of_seven(pictures: Pictures, rng: Generator) -> Pictures:
    """Change nothing half the time, else apply one of the seven other flips and quarter turns (Turtle)."""
    if _is_heads(rng):
        return pictures
    flips, quarters = divmod(int(rng.integers(1, 8)), 4)
    return numpy.rot90(pictures[..., ::-1] if flips else pictures, quarters, axes=(-2, -1))


def _reverse(pictures: Pictures, rng: Generator) -> Pictures:
    return pictures[:, ::-1] if _is_heads(rng) else pictures


def _channels(pictures: Pictures, rng: Generator) -> Pictures:
    return pictures[:, :, rng.permutation(3)]


def _colour(pictures: Pictures, rng: Generator) -> Pictures:
    """Change brightness, contrast, saturation and hue by random factors, in random order, as STFAN does."""
    brightness, contrast, saturation = (rng.uniform(1 - most, 1 + most) for most in COLOUR_JITTER[:3])
    turn = rng.uniform(-COLOUR_JITTER[3], COLOUR_JITTER[3])
    changed = torch.from_numpy(numpy.ascontiguousarray(pictures)).flatten(0, 1) / 255
    for step in rng.permutation(4):
        # Around one mean gray, so that equal pixels of a clip stay equal
        mean = float(_gray(changed.mean((0, 2, 3)))) if step == 1 else 0.0
        for frame in changed:  # one at a time, in place: a frame fits into the processor's cache
            if step == 0:
                frame.mul_(brightness)
            elif step == 1:
                frame.sub_(mean).mul_(contrast).add_(mean)
            elif step == 2:
                gray = _gray(frame)
                frame.sub_(gray).mul_(saturation).add_(gray)
            else:
                turn_hue(frame, turn)
            frame.clamp_(0, 1)
    rounded: Pictures = changed.mul_(255).round_().byte().view(pictures.shape).numpy()
    return rounded


def _gray(rgb: Tensor) -> Tensor:
    """Return the luma (...) of colours (3, ...)."""
    return (rgb[0] * 0.299).add_(rgb[1], alpha=0.587).add_(rgb[2], alpha=0.114)


def turn_hue(rgb: Tensor, turn: float) -> None:
    """Turn the hue of a picture by a part of the full circle, in place; HSV value and saturation stay.

    rgb: (3, H, W) float32 in [0, 1].
    """
    red, green, blue = rgb
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    safe = spread.clamp_min(1e-12)  # of grays, whose hue has no effect
    # HSV's hue in sixths of the circle, from 0 to below 6: red 0, green 2, blue 4. torch.lerp with weights of 0 and 1
    # chooses in a tenth of the time of torch.where.
    not_red, not_green = (value - red).sign_(), (value - green).sign_()
    of_red, of_green = (green - blue).div_(safe), (blue - red).div_(safe).add_(2)
    hue = torch.lerp(of_green, (red - green).div_(safe).add_(4), not_green)
    hue = torch.lerp(of_red, hue, not_red).add_(6 * turn)
    hue.sub_((hue / 6).floor_().mul_(6))
    for channel, own in zip(rgb, (0, 2, 4), strict=True):
        # value - spread * clamp(d - 1, 0, 1), with d the distance on the circle from the channel's own hue, in sixths;
        share = hue.sub(own).abs_().sub_(3).abs_().neg_().add_(2).clamp_(0, 1)  # d = 3 - ||difference| - 3|
        torch.addcmul(value, spread, share, value=-1, out=channel)


# Each with probability 1/2, except turn (any of four quarter turns), channels (any order of R, G and B) and colour.
AUGMENTATIONS: dict[str, Callable[[Pictures, Generator], Pictures]] = {
    "flip_horizontal": _flip_horizontal,
    "flip_vertical": _flip_vertical,
    "transpose": _transpose,
    "rot90": _rot90,
    "turn": _turn,
    "any_of_seven": _any_of_seven,
    "reverse": _reverse,
    "channels": _channels,
    "colour": _colour,
}
SCALE = "scale"  # reduces the frame to between half and its full size before the crop


@dataclass(frozen=True)
class Augmentation:
    """Crop, augmentations and noise of a sample.

    crop: side of the square in pixels. names: of AUGMENTATIONS, or "scale". noise: highest standard deviation of the
    noise in blurry frames, in 8-bit steps. noise_drawn: draw each clip's own up to that one; otherwise all have it.

    Raises: UsageError for an unknown name.
    """

    crop: int
    names: tuple[str, ...] = ()
    noise: float = 0.0
    noise_drawn: bool = True

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in (*AUGMENTATIONS, SCALE)]
        if unknown:
            raise UsageError(f"unknown augmentation {unknown[0]!r}", f"choose {', '.join((*AUGMENTATIONS, SCALE))}")

    def region(self, height: int, width: int, rng: Generator) -> Region:
        """Draw the region to read of frames of this size.

        A crop of a reduced frame equals a reduced larger crop, so only that is read and resized.
        """
        side = self.crop
        if SCALE in self.names:
            side = min(round(self.crop / rng.uniform(SMALLEST_SCALE, 1)), height, width)
        return Region(int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side)

    def clip(self, pictures: Pictures, rng: Generator) -> Clip:
        """Augment a region's pictures; with noise the blurry frames are float32, 0 to 255."""
        if pictures.shape[-1] != self.crop:
            pictures = _resize(pictures, self.crop)
        for name in self.names:
            if name != SCALE:
                pictures = AUGMENTATIONS[name](pictures, rng)
        blurry, sharp = torch.from_numpy(numpy.ascontiguousarray(pictures))
        if self.noise:
            blurry = add_noise(blurry, self.noise, rng, drawn=self.noise_drawn)
        return Clip(blurry, sharp)


def _resize(pictures: Pictures, side: int) -> Pictures:
    frames = torch.from_numpy(pictures).flatten(0, 1)
    small = F.interpolate(frames, (side, side), mode="bilinear", antialias=True)
    return small.reshape(*pictures.shape[:3], side, side).numpy()


def add_noise(frames: Tensor, highest: float, rng: Generator, *, drawn: bool = True) -> Tensor:
    """Add Gaussian noise of one strength to all frames of a clip: uint8 in, float32 out, neither clipped nor rounded.

    Its standard deviation is drawn uniformly from 0 to highest, as in DSTNet+'s denoising; or it is the highest.
    """
    noise = rng.standard_normal(frames.shape, numpy.float32)
    noise *= numpy.float32(rng.uniform(0, highest) if drawn else highest)
    return frames + torch.from_numpy(noise)
