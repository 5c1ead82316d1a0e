"""Lite: a compact video deblurring network guided by motion, vdeblur's own default (2026; no paper).

Blur is the trace of motion, and a video shows that motion: a point that moves v pixels from frame to frame was smeared
along v while the shutter was open. So Lucas-Kanade, which has no weights, measures the motion first, and each frame is
sampled along it at fixed fractions of v. In these samples the blur has one direction and one scale everywhere, whatever
they are in the picture, and removing it means weighting the samples.

Blur averages light, not coded values, so the samples are computed in linear light. Three of them are the result of one
Richardson-Lucy step (W. H. Richardson, 1972; L. B. Lucy, 1974) along the motion, for three lengths of the exposure:
where the exposure fits, the step alone removes a part of the blur. The network predicts for each block of pixels which
samples to trust and how much, and adds what weighted samples cannot express. docs/lite.md has what was tried.

Parts, in the order of use:

- `look_along_motion` motion, samples, and their energies: everything that needs no weights;
- `Lite`              weights of the samples per block, and a correction of each pixel;
- `ResidualBlock`     two 3x3 convolutions inside a skip.

Features have a quarter of the frame's size: the first convolution turns each 4x4 block of pixels into one position, so
a 3x3 convolution sees 12x12 pixels. The result is added to the blurry frame.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks import lucas_kanade
from vdeblur.networks.layers import FLOW_PIXELS, Inside, Memory, Network, show

SCALE = 4  # side of the block of pixels that becomes one position of the features
SLOPE = 0.1  # of every leaky ReLU
CONTRAST = 4.0  # scales centred pixels to about unit variance; without it, training is slow
DETAIL = 16.0  # the same for differences of samples, which are smaller
LUMA = (0.299, 0.587, 0.114)  # BT.601; only the weights' proportions matter here
GAMMA = 2.2  # of coded values; 2.2 to 3.0 explain real blur equally well
DARKEST = 1e-3  # least coded luma: quotients of smaller values would be noise
# Luma is sampled ahead of and behind each pixel, at these fractions of its motion in a frame interval.
LAGS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
# A Richardson-Lucy step averages along an exposure of 2, 3 or 4 of these lags on each side: 0.5, 0.75 or 1 interval.
REACHES = (2, 3, 4)
MEANS = (1, 3, 4, 5)  # lags, by index, of which the mean of both samples is a sample of its own
QUOTIENT_FLOOR = 1e-4  # linear light; keeps a step's quotient finite in the dark
STRIP = 1 << 16  # pixels that are sampled at once, at most
BRIGHTEST = 1.2  # linear light after a step, above white
SAMPLES = len(REACHES) + len(MEANS) + 2  # and both neighbours, warped onto the frame
LEVELS = 4  # energies are averaged over windows of 12, 48 and 112 pixels, and over the whole frame
SQUARES = SAMPLES + len(LAGS) + 2  # of samples, of the samples ahead alone, of gradients along and across the motion
MOTION = 4 + 2  # both motions, and the speed and bend of the motion
COARSE = LEVELS * SQUARES + MOTION
NAMES = (
    *(f"step {LAGS[reach - 1] * 2:g}" for reach in REACHES),
    *(f"mean {LAGS[index]:g}" for index in MEANS),
    *("following", "previous"),
)  # of the samples, by the exposure or the lag in frame intervals
WEIGHING = 64  # width of the small network that predicts the samples' weights from their energies


class View(NamedTuple):
    """A frame, and its samples along the motion.

    pixels: (B, 3 + SAMPLES, H, W), RGB and samples, of about unit variance. coarse: (B, COARSE, H/4, W/4), both
    motions, in pixels of that size, then energies, speed and bend.
    """

    pixels: Tensor
    coarse: Tensor


class Lite(Network):
    """Restore a frame from samples along its motion, measured against its two neighbours.

    channels: width of the features. blocks: residual blocks on them.
    """

    feeding = "view"  # looks at a frame with its neighbours, then restores tiles; see streams.py
    looks_ahead = True
    multiple = SCALE
    overlap = 64  # in tiles of 256 pixels, 8-bit results then differ from the whole frame's by 0.2 at most
    half_precision = ("fp16", "bf16")  # convolutions only; motion and sampling stay in float32
    memory = Memory(tile=85, frame=428)  # with the next frame's look beside
    half_memory = Memory(tile=37, frame=450)
    shows: ClassVar = {
        "flow": Inside("motion to both neighbours at 1/4 of the size, by Lucas-Kanade", "flow", FLOW_PIXELS),
        "samples": Inside("luma sampled along the motion, minus the frame's own, times 16", "channels", "", NAMES),
        "weights": Inside("the weight of each sample, per block of pixels", "channels", "", NAMES),
        "features": Inside("features after the residual blocks", "channels"),
    }

    def __init__(self, channels: int = 64, blocks: int = 4) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.Conv2d(COARSE - 4, WEIGHING, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(WEIGHING, WEIGHING, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(WEIGHING, SAMPLES, 1),
        )
        self.extract = nn.Conv2d(3 + SAMPLES, channels, SCALE, SCALE)
        self.extract_coarse = nn.Conv2d(COARSE, channels, 1)
        self.refine = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.reconstruct = nn.Conv2d(channels, 3 * SCALE**2 + SAMPLES, 1)
        for parameter in (*self.reconstruct.parameters(), *self.weigh[-1].parameters()):
            nn.init.zeros_(parameter)  # an untrained network returns its input

    def forward(self, previous: Tensor | None, frame: Tensor, following: Tensor | None) -> Tensor:
        """Restore a frame: (B, 3, H, W) RGB in [0, 1] to the same, not clamped; H and W multiples of 4.

        previous, following: its neighbours, of the same shape; None beyond the ends of a scene.
        """
        return frame + self.difference(*self.look(previous, frame, following))

    @staticmethod
    def look(previous: Tensor | None, frame: Tensor, following: Tensor | None) -> View:
        """Return what `difference` needs of a frame; see look_along_motion."""
        return look_along_motion(previous, frame, following)

    def difference(self, pixels: Tensor, coarse: Tensor) -> Tensor:
        """Compute the correction to a frame, (B, 3, H, W) float32, from the parts of its view."""
        dtype = self.reconstruct.weight.dtype
        coarse = coarse.to(dtype).contiguous(memory_format=torch.channels_last)
        features = self.extract(pixels.to(dtype)) + self.extract_coarse(coarse)
        features = self.refine(features)
        direct, fine = self.reconstruct(features).split((3 * SCALE**2, SAMPLES), 1)
        weights = (fine + self.weigh(coarse[:, 4:])).float()  # (B, SAMPLES, H/4, W/4)
        show(self, "features", features)
        show(self, "weights", weights)
        weights = F.interpolate(weights, scale_factor=SCALE, mode="bilinear", align_corners=False)
        along = weights.mul_(pixels[:, 3:]) if not weights.requires_grad else weights * pixels[:, 3:]
        change = F.pixel_shuffle(direct.float().contiguous(), SCALE) * (CONTRAST / DETAIL)
        return change + along.sum(1, keepdim=True) / DETAIL  # weighted samples change luma, so all channels alike


def luma_of(frame: Tensor) -> Tensor:
    """Return the luma (B, 1, H, W) of a frame (B, 3, H, W)."""
    return torch.einsum("bchw,c->bhw", frame, frame.new_tensor(LUMA))[:, None]


@torch.no_grad()
def look_along_motion(previous_frame: Tensor | None, frame: Tensor, following_frame: Tensor | None) -> View:
    """Measure a frame's motion, and sample the frame along it.

    frame: (B, 3, H, W) RGB in [0, 1], float32, and its neighbours. Where one is None, beyond the ends of a scene,
    motion is assumed to continue unchanged. Everything is float32.
    """
    with torch.autocast(frame.device.type, enabled=False):
        luma = luma_of(frame)
        previous = None if previous_frame is None else luma_of(previous_frame)
        following = None if following_frame is None else luma_of(following_frame)
        forward, backward = _motions(luma, previous, following)  # (B, 2, H/4, W/4), in pixels of that size
        here = lucas_kanade.pixel_grid(luma)
        ahead, behind = (
            lucas_kanade.grid_units(
                F.interpolate(motion * SCALE, scale_factor=SCALE, mode="bilinear", align_corners=False)
            )
            for motion in (forward, backward)
        )  # (B, H, W, 2)
        travel = (ahead - behind).div_(2)  # from frame to frame
        pixels = luma.new_empty(len(luma), 3 + SAMPLES, *luma.shape[-2:])  # filled in place: these are large
        samples = pixels[:, 3:]
        leading = _sample(luma, here, travel, samples[:, :-2])
        _sample_neighbour(luma, following, ahead.add_(here), samples[:, -2:-1])
        _sample_neighbour(luma, previous, behind.add_(here), samples[:, -1:])
        gradients, speed = _gradients_along_and_across(luma, travel)
        energies = _energies(torch.cat((_thinned(samples), leading, gradients), 1), speed, forward + backward)
        torch.mul(torch.sub(frame, 0.5, out=pixels[:, :3]), CONTRAST, out=pixels[:, :3])
        samples.mul_(DETAIL)
        show(None, "flow", forward, "to_following")
        show(None, "flow", backward, "to_previous")
        show(None, "samples", samples)
        return View(pixels, torch.cat((forward, backward, energies), 1))


def _sample(luma: Tensor, here: Tensor, travel: Tensor, samples: Tensor) -> Tensor:
    """Sample luma along its motion in linear light; write differences from luma, in coded values.

    luma: (B, 1, H, W). here, travel: (B, H, W, 2), each pixel's place in a grid, and its motion in a frame interval.
    samples: (B, SAMPLES - 2, H, W), results of Richardson-Lucy steps and means of both samples of a lag. Returns the
    samples ahead alone, thinned: (B, len(LAGS), H/2, W/2).
    """
    coded = luma.clamp(DARKEST)
    light = coded.pow(GAMMA)
    quotients = light.new_empty(len(light), len(REACHES), *light.shape[-2:])
    leading = luma.new_empty(len(luma), len(LAGS), luma.shape[-2] // 2, luma.shape[-1] // 2)
    line = _Line(here, travel)
    for rows in line.strips:
        _blur_strip(light, coded, line, rows, samples, quotients, leading)
    for rows in line.strips:
        _restore_strip(quotients, light, coded, line, rows, samples)
    return leading


class _Line:
    """Positions along the motion, as sample_at takes them, for some rows at a time.

    In strips, intermediate results stay in a processor's cache, and memory does not grow with the frame.
    """

    def __init__(self, here: Tensor, travel: Tensor) -> None:
        self.here, self.travel = here, travel
        batch, height, width = travel.shape[:3]
        length = max(STRIP // (batch * width), 1) * 2
        self.strips = [slice(first, min(first + length, height)) for first in range(0, height, length)]

    def at(self, rows: slice, lag: float) -> tuple[Tensor, Tensor]:
        """Return the positions ahead of and behind each pixel of these rows, (B, rows, W, 2) each."""
        here, travel = self.here[:, rows], self.travel[:, rows]
        return torch.add(here, travel, alpha=lag), torch.sub(here, travel, alpha=lag)


def _blur_strip(
    light: Tensor, coded: Tensor, line: _Line, rows: slice, samples: Tensor, quotients: Tensor, leading: Tensor
) -> None:
    """Write the means of each lag, and the quotients of light and blurred light of each exposure, of some rows."""
    own, own_coded = light[:, :, rows], coded[:, :, rows]
    halves = slice(rows.start // 2, rows.stop // 2)
    total = own.clone()
    for index, lag in enumerate(LAGS):
        ahead, behind = (lucas_kanade.sample_at(light, grid) for grid in line.at(rows, lag))
        coded_ahead = _thinned(ahead).contiguous().pow_(1 / GAMMA)
        torch.sub(coded_ahead, _thinned(own_coded), out=leading[:, index : index + 1, halves])
        ahead += behind
        if index in MEANS:
            place = len(REACHES) + MEANS.index(index)
            torch.sub(ahead.mul(0.5).pow_(1 / GAMMA), own_coded, out=samples[:, place : place + 1, rows])
        if index < REACHES[-1]:
            total += ahead
            if index + 1 in REACHES:
                place = REACHES.index(index + 1)
                blurred = total / (2 * index + 3)
                torch.div(own, blurred.add_(QUOTIENT_FLOOR), out=quotients[:, place : place + 1, rows])


def _restore_strip(quotients: Tensor, light: Tensor, coded: Tensor, line: _Line, rows: slice, samples: Tensor) -> None:
    """Write the result of a Richardson-Lucy step for each exposure: light times the mean of quotients."""
    means = quotients[:, :, rows].clone()
    for index in range(REACHES[-1]):
        first = sum(reach <= index for reach in REACHES)  # exposures that do not reach this lag stay as they are
        for grid in line.at(rows, LAGS[index]):
            means[:, first:].add_(lucas_kanade.sample_at(quotients[:, first:], grid))
    taps = means.new_tensor([2 * reach + 1 for reach in REACHES]).view(1, -1, 1, 1)
    restored = means.div_(taps).mul_(light[:, :, rows]).clamp_(0, BRIGHTEST).pow_(1 / GAMMA)
    torch.sub(restored, coded[:, :, rows], out=samples[:, : len(REACHES), rows])


def _thinned(planes: Tensor) -> Tensor:
    """Return one pixel of each 2x2: (B, C, H/2, W/2). Means over windows do not need the others."""
    return planes[..., ::2, ::2]


def _sample_neighbour(luma: Tensor, neighbour: Tensor | None, grid: Tensor, sample: Tensor) -> None:
    """Write the difference between a neighbour, sampled at a grid, and the frame's luma; 0 without neighbour."""
    if neighbour is None:
        sample.zero_()
    else:
        torch.sub(lucas_kanade.sample_at(neighbour, grid), luma, out=sample)


def _gradients_along_and_across(luma: Tensor, travel: Tensor) -> tuple[Tensor, Tensor]:
    """Return luma's gradients along and across its motion, (B, 2, H/2, W/2), and the speed, (B, 1, H/2, W/2).

    travel: see _sample.
    """
    wide = F.pad(luma, (1, 1, 1, 1), mode="replicate")
    gradient_x = (wide[..., 1:-1:2, 2::2] - wide[..., 1:-1:2, :-2:2]) / 2
    gradient_y = (wide[..., 2::2, 1:-1:2] - wide[..., :-2:2, 1:-1:2]) / 2
    height, width = luma.shape[-2:]
    x, y = (travel[:, None, ::2, ::2, axis] * (length / 2) for axis, length in enumerate((width, height)))
    speed = (x * x + y * y).sqrt_().clamp_(min=1e-3)
    along, across = gradient_x * x + gradient_y * y, gradient_x * y - gradient_y * x
    return torch.cat((along, across), 1) / speed, speed


def _energies(seen: Tensor, speed: Tensor, bend: Tensor) -> Tensor:
    """Return logarithms of local mean squares of samples and gradients, and of the motion: (B, COARSE - 4, H/4, W/4).

    As a function of the lag, the samples' squares are the structure function of the picture along its motion.
    seen: (B, SQUARES, H/2, W/2), samples and gradients, thinned. speed: (B, 1, H/2, W/2). bend: (B, 2, H/4, W/4), the
    sum of the motions to both neighbours, 0 where motion is uniform.
    """
    seen = seen.square_()
    rows = seen[..., ::2, :] + seen[..., 1::2, :]
    squares = (rows[..., ::2] + rows[..., 1::2]).div_(4)  # as avg_pool2d, which takes longer
    size = squares.shape[-2:]
    coarse = F.avg_pool2d(squares, SCALE, ceil_mode=True, count_include_pad=False)  # (B, SQUARES, H/16, W/16)
    wider = (
        F.interpolate(lucas_kanade.window_mean(coarse, side), size, mode="bilinear", align_corners=False)
        for side in (3, 7)
    )
    overall = squares.mean((2, 3), keepdim=True).expand_as(squares)  # exposure is the same in the whole frame
    means = [lucas_kanade.window_mean(squares, 3), *wider, overall]
    # Offsets and factors bring the logarithms to about zero mean and unit variance.
    logs = torch.cat(means, 1).add_(1e-5).log_().add_(8).mul_(0.5)
    speed = F.avg_pool2d(speed, SCALE // 2)
    bend = bend.square().sum(1, keepdim=True).sqrt() * SCALE
    return torch.cat((logs, (speed + 0.1).log(), (bend + 0.1).log()), 1)


def _motions(luma: Tensor, previous: Tensor | None, following: Tensor | None) -> tuple[Tensor, Tensor]:
    small = F.avg_pool2d(luma, SCALE)
    others = [F.avg_pool2d(other, SCALE) for other in (following, previous) if other is not None]
    if not others:
        still = small.new_zeros(len(small), 2, *small.shape[-2:])
        return still, still
    flows = lucas_kanade.flow(small.repeat(len(others), 1, 1, 1), torch.cat(others)).split(len(small))
    if following is None:
        return -flows[0], flows[0]
    return flows[0], -flows[0] if previous is None else flows[1]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a leaky ReLU between, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        # Start near the identity; otherwise training diverges at high learning rates.
        self.conv_2.weight.data.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) from x of that shape."""
        difference: Tensor = self.conv_2(F.leaky_relu(self.conv_1(x), SLOPE))
        return x + difference
