"""Neighbouring sharp frames to blurry ones, as a long exposure: which frames, with which weights, in which light.

As GoPro was made (S. Nah, T. H. Kim, K. M. Lee, "Deep Multi-scale Convolutional Neural Network for Dynamic Scene
Deblurring", CVPR 2017, Sec. 3): the mean of 7 to 13 neighbours at 240 frames a second, their middle one as truth; once
plainly (`blur`), once after gamma 2.2 was undone (`blur_gamma`). As DVD was made (S. Su et al., "Deep Video Deblurring
for Hand-Held Cameras", CVPR 2017): frames are interpolated between neighbours first, there by optical flow, here by
cross-fading.
"""

import math
from collections import deque
from dataclasses import dataclass

import numpy

from vdeblur.synth.clips import GAMMA, Coder

LIGHT = (numpy.arange(256) / 255.0) ** GAMMA  # of each code
BAND = 1 << 15  # samples that are averaged at once; their sums, of 8 bytes, stay in a processor's cache


@dataclass(frozen=True)
class Window:
    """Weights of consecutive sharp frames, an odd number: weights[i] / total; the middle one is the truth."""

    weights: tuple[int, ...]

    @property
    def total(self) -> int:
        """Give what the weights are shares of."""
        return sum(self.weights)


def plain_window(frames: int, duty: float) -> Window:
    """Average the middle share `duty` of this odd number of frames: an odd number again, at least one."""
    return Window((1,) * (2 * math.floor((frames * duty - 1) / 2 + 0.5) + 1 if frames * duty > 1 else 1))


def faded_window(frames: int, duty: float, steps: int) -> Window:
    """Average frames and what is cross-faded between them, at steps of 1/steps of a frame.

    To average cross-fades is to weigh the frames that they are made of, so none has to be drawn.
    """
    reach = max(math.floor(steps * (frames * duty - 1) / 2 + 0.5), 0)  # in steps, to either side
    radius = -(-reach // steps)
    weights = [0] * (2 * radius + 1)
    for place in range(-reach, reach + 1):
        before, rest = divmod(place, steps)
        weights[radius + before] += steps - rest
        if rest:
            weights[radius + before + 1] += rest
    divisor = math.gcd(*weights)
    return Window(tuple(weight // divisor for weight in weights))


class Exposures:
    """Sharp frames in turn to windows of them."""

    def __init__(self, window: Window, stride: int) -> None:
        """Begin; stride: frames from the beginning of a window to that of the next."""
        self.window, self.stride = window, stride
        self.recent: deque[numpy.ndarray] = deque(maxlen=len(window.weights))
        self.count = 0

    def push(self, frame: numpy.ndarray) -> list[numpy.ndarray] | None:
        """Take the next frame, uint8 (H, W, 3); gives the frames of a window where it is the last one of it."""
        self.recent.append(frame)
        self.count += 1
        over = self.count - len(self.window.weights)
        return list(self.recent) if over >= 0 and over % self.stride == 0 else None


def average(frames: list[numpy.ndarray], window: Window, kind: str) -> numpy.ndarray:
    """Average uint8 frames (H, W, 3) to float64 codes, 0 to 255, not rounded. kind: `blur` or `blur_gamma`."""
    mean = numpy.empty(frames[0].shape, numpy.float64)
    rows = max(BAND // mean[0].size, 1)
    for top in range(0, len(mean), rows):
        bands = [frame[top : top + rows] for frame in frames]
        mean[top : top + rows] = (_mean_code if kind == "blur" else _mean_light)(bands, window)
    return mean


def _mean_code(frames: list[numpy.ndarray], window: Window) -> numpy.ndarray:
    whole = numpy.min_scalar_type(255 * window.total)  # holds every sum
    total = numpy.zeros(frames[0].shape, whole)
    for frame, weight in zip(frames, window.weights, strict=True):
        total += frame if weight == 1 else numpy.multiply(frame, weight, dtype=whole)
    mean: numpy.ndarray = total / window.total
    return mean


def _mean_light(frames: list[numpy.ndarray], window: Window) -> numpy.ndarray:
    tables = {weight: weight * LIGHT for weight in window.weights}
    total = numpy.zeros(frames[0].shape, numpy.float64)
    part = numpy.empty_like(total)
    for frame, weight in zip(frames, window.weights, strict=True):
        total += numpy.take(tables[weight], frame, out=part, mode="clip")  # faster than to raise, and none is outside
    mean: numpy.ndarray = 255.0 * (total / window.total) ** (1 / GAMMA)
    return mean


class Sensor:
    """What a camera adds to blurry frames, one after the other: noise, rounding, compression."""

    def __init__(self, noise: tuple[float, float], crf: int | None, seed: tuple[int, ...]) -> None:
        """Make one. noise: standard deviation, in codes of 255, of reading, and of the light's own in full light."""
        self.noise, self.crf = noise, crf
        self.rng = numpy.random.default_rng(seed)
        self.coder: Coder | None = None

    def push(self, frame: numpy.ndarray) -> list[numpy.ndarray]:
        """Take codes, float64 (H, W, 3); gives the uint8 frames that are ready."""
        read, shot = self.noise
        if read or shot:
            sigma = numpy.sqrt(read**2 + shot**2 * frame / 255)
            frame = frame + sigma * self.rng.standard_normal(frame.shape)
        rounded = numpy.floor(frame + 0.5).clip(0, 255).astype(numpy.uint8)
        if self.crf is None:
            return [rounded]
        height, width = self.size = rounded.shape[:2]
        even = numpy.pad(rounded, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self.coder is None:
            self.coder = Coder(width + width % 2, height + height % 2, self.crf)
        return self._cut(self.coder.push(numpy.ascontiguousarray(even)))

    def end(self) -> list[numpy.ndarray]:
        """Give the rest."""
        return [] if self.coder is None else self._cut(self.coder.end())

    def _cut(self, frames: list[numpy.ndarray]) -> list[numpy.ndarray]:
        height, width = self.size
        return [frame[:height, :width] for frame in frames]
