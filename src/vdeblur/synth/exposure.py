"""Blurry frames as means of neighbouring sharp ones, like a long exposure: windows, weights, gamma, the sensor.

Like GoPro (S. Nah, T. H. Kim, K. M. Lee, "Deep Multi-scale Convolutional Neural Network for Dynamic Scene Deblurring",
CVPR 2017, Sec. 3): the mean of 7 to 13 neighbours at 240 frames a second, with the middle one as truth; `blur` averages
encoded values, `blur_gamma` linear light (gamma 2.2). Like DVD (S. Su et al., "Deep Video Deblurring for Hand-Held
Cameras", CVPR 2017): frames are interpolated between neighbours first, by optical flow there, by cross-fading here.
"""

import math
from collections import deque
from dataclasses import dataclass

import numpy

from vdeblur.synth.clips import GAMMA
from vdeblur.train.coder import Coder

LIGHT = (numpy.arange(256) / 255.0) ** GAMMA  # linear light of each 8-bit code
BAND = 1 << 15  # samples averaged at once; their sums, of 8 bytes, stay in a processor's cache


@dataclass(frozen=True)
class Window:
    """Weights of consecutive sharp frames, an odd number: weights[i] / total; the middle one is the truth."""

    weights: tuple[int, ...]

    @property
    def total(self) -> int:
        """The sum of the weights."""
        return sum(self.weights)


def plain_window(frames: int, duty: float) -> Window:
    """Return equal weights for the frames in the middle: the odd number nearest to frames * duty, at least 1."""
    return Window((1,) * (2 * math.floor((frames * duty - 1) / 2 + 0.5) + 1 if frames * duty > 1 else 1))


def faded_window(frames: int, duty: float, steps: int) -> Window:
    """Return the weights for averaging frames and cross-fades between them, at steps of 1/steps of a frame.

    An average of cross-fades is a weighted average of their frames, so no cross-fade needs to be computed.
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
    """Collects sharp frames into windows."""

    def __init__(self, window: Window, stride: int) -> None:
        """Start without frames. stride: frames from the start of a window to that of the next."""
        self.window, self.stride = window, stride
        self.recent: deque[numpy.ndarray] = deque(maxlen=len(window.weights))
        self.count = 0

    def push(self, frame: numpy.ndarray) -> list[numpy.ndarray] | None:
        """Add a frame, uint8 (H, W, 3); return the frames of the window that it completes, if any."""
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
    sum_type = numpy.min_scalar_type(255 * window.total)  # holds every sum
    total = numpy.zeros(frames[0].shape, sum_type)
    for frame, weight in zip(frames, window.weights, strict=True):
        total += frame if weight == 1 else numpy.multiply(frame, weight, dtype=sum_type)
    mean: numpy.ndarray = total / window.total
    return mean


def _mean_light(frames: list[numpy.ndarray], window: Window) -> numpy.ndarray:
    tables = {weight: weight * LIGHT for weight in window.weights}
    total = numpy.zeros(frames[0].shape, numpy.float64)
    part = numpy.empty_like(total)
    for frame, weight in zip(frames, window.weights, strict=True):
        total += numpy.take(
            tables[weight], frame, out=part, mode="clip"
        )  # no code is out of range, and "clip" is faster than "raise"
    mean: numpy.ndarray = 255.0 * (total / window.total) ** (1 / GAMMA)
    return mean


class Sensor:
    """Adds a camera's noise, rounding and compression to blurry frames."""

    def __init__(self, noise: tuple[float, float], crf: int | None, seed: tuple[int, ...]) -> None:
        """Start without frames. noise: standard deviations, in codes of 255, of read noise and of shot noise at 255."""
        self.noise, self.crf = noise, crf
        self.rng = numpy.random.default_rng(seed)
        self.coder: Coder | None = None

    def push(self, frame: numpy.ndarray) -> list[numpy.ndarray]:
        """Add a frame of codes, float64 (H, W, 3); return the finished frames, uint8."""
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
        """Return the remaining frames."""
        return [] if self.coder is None else self._cut(self.coder.end())

    def _cut(self, frames: list[numpy.ndarray]) -> list[numpy.ndarray]:
        height, width = self.size
        return [frame[:height, :width] for frame in frames]
