"""Lite: a compact video deblurring network guided by motion, vdeblur's own default.

Blur is the trace of motion, and a video shows that motion: a point that moves v pixels from frame to frame was smeared
along v while the shutter was open. So Lucas-Kanade, which has no weights, measures the motion first, and each frame is
sampled along it at fixed fractions of v. In these samples the blur has one direction and one scale everywhere, whatever
they are in the picture, and removing it means weighting the samples. Fitted by least squares to synthetic clips, ten
constant weights per clip gain 1 dB, weights for every 40x40 block 1.7 dB. The samples also show how long the shutter
was open: their mean squared differences from the frame, as a function of the lag, show how far the blur reaches. The
network predicts the weights for each pixel, and adds what weighted samples cannot express.

These inputs suit a small network and little training. The first attempt was a recurrent network in the manner of DSTNet
(Pan et al., CVPR 2023); on a CPU it learnt much more slowly (about +0.2 dB in validation after a quarter of an hour).
Its quarter resolution and its long skip from the frame remain.

Parts, in the order of use:

- `look_along_motion` motion, samples, and their energies: everything that needs no weights;
- `Lite`              weights of the samples, per block from the energies alone, then per pixel from all inputs;
- `ResidualBlock`     two 3x3 convolutions inside a skip.

Features have a quarter of the frame's size: pixel-unshuffle by 4 turns each 4x4 block of pixels into channels, so
nothing is lost and a 3x3 convolution sees 12x12 pixels. The result is added to the blurry frame.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks import lucas_kanade
from vdeblur.networks.layers import Memory, Network

SCALE = 4  # side of the block of pixels that becomes one position of the features
SLOPE = 0.1  # of every leaky ReLU
CONTRAST = 4.0  # scales centred pixels to about unit variance; without it, training is slow
DETAIL = 16.0  # the same for differences of samples, which are smaller
LUMA = (0.299, 0.587, 0.114)  # BT.601; only the weights' proportions matter here
# Luma is sampled ahead of and behind each pixel, at these fractions of its motion in a frame interval. An open shutter
# smears over +-0.5 at most; removing that takes as much again on either side.
LAGS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
SAMPLES = len(LAGS) + 2  # the mean of both samples of each lag, and both neighbours, warped onto the frame
BLOCK = SCALE**2
LEVELS = 4  # energies are averaged over windows of 12, 48 and 112 pixels, and over the whole frame
SQUARES = SAMPLES + 2 + len(LAGS)  # of samples, of gradients along and across the motion, of the samples ahead alone
ENERGIES = LEVELS * SQUARES + 2  # and the speed and bend of the motion
WEIGHING = 64  # width of the small network that predicts the samples' weights from their energies
INPUTS = 3 * BLOCK + SAMPLES * BLOCK + 4 + ENERGIES  # RGB, samples, both motions, energies


class Lite(Network):
    """Restore a frame from samples along its motion, measured against its two neighbours.

    channels: width of the features. blocks: residual blocks on them.
    """

    feeding = "neighbours"  # takes a frame with the previous and the next one, see streams.py
    multiple = SCALE
    half_precision = ("fp16", "bf16")  # convolutions only; motion and sampling stay in float32
    memory = Memory(tile=392, frame=118)
    half_memory = Memory(tile=312, frame=119)

    def __init__(self, channels: int = 64, blocks: int = 4) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.Conv2d(ENERGIES, WEIGHING, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(WEIGHING, WEIGHING, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(WEIGHING, WEIGHING, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(WEIGHING, SAMPLES, 1),
        )
        self.extract = nn.Sequential(
            nn.Conv2d(INPUTS, channels, 3, padding=1), *(ResidualBlock(channels) for _ in range(blocks))
        )
        self.reconstruct = nn.Conv2d(channels, 3 * BLOCK + SAMPLES * BLOCK, 3, padding=1)
        for parameter in (*self.reconstruct.parameters(), *self.weigh[-1].parameters()):
            nn.init.zeros_(parameter)  # an untrained network returns its input

    def forward(self, previous: Tensor | None, frame: Tensor, following: Tensor | None) -> Tensor:
        """Restore a frame: (B, 3, H, W) RGB in [0, 1] to the same, not clamped; H and W multiples of 4.

        previous, following: its neighbours, of the same shape; None beyond the ends of a scene.
        """
        seen = look_along_motion(previous, frame, following, self.reconstruct.weight.dtype)
        return frame + self.difference(seen)

    def difference(self, seen: Tensor) -> Tensor:
        """Compute the correction to a frame, (B, 3, H, W) float32, from the result of look_along_motion."""
        seen = seen.contiguous(memory_format=torch.channels_last)
        samples = seen[:, 3 * BLOCK : (3 + SAMPLES) * BLOCK].unflatten(1, (SAMPLES, BLOCK))  # (B, 10, 16, H/4, W/4)
        coarse = self.weigh(seen[:, -ENERGIES:])[:, :, None]  # (B, 10, 1, H/4, W/4)
        result = self.reconstruct(self.extract(seen))  # (B, 48 + 160, H/4, W/4)
        direct, fine = result.split((3 * BLOCK, SAMPLES * BLOCK), 1)
        weighted = (fine.unflatten(1, (SAMPLES, BLOCK)) + coarse) * samples
        along = weighted.sum(1, dtype=torch.float32) / DETAIL  # (B, 16, H/4, W/4), a change of luma
        change = direct.float().unflatten(1, (3, BLOCK)) + along[:, None]  # (B, 3, 16, H/4, W/4)
        correction: Tensor = F.pixel_shuffle(change.flatten(1, 2), SCALE)
        return correction


def luma_of(frame: Tensor) -> Tensor:
    """Return the luma (B, 1, H, W) of a frame (B, 3, H, W)."""
    return torch.einsum("bchw,c->bhw", frame, frame.new_tensor(LUMA))[:, None]


@torch.no_grad()
def look_along_motion(
    previous_frame: Tensor | None, frame: Tensor, following_frame: Tensor | None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Compute the network's input: the frame, samples along its motion, both motions and energies.

    frame: (B, 3, H, W) RGB in [0, 1], float32, and its neighbours. Where one is None, beyond the ends of a scene,
    motion is assumed to continue unchanged. Result: (B, INPUTS, H/4, W/4), in dtype, of about unit variance.
    """
    with torch.autocast(frame.device.type, enabled=False):
        luma = luma_of(frame)
        previous = None if previous_frame is None else luma_of(previous_frame)
        following = None if following_frame is None else luma_of(following_frame)
        forward, backward = _motions(luma, previous, following)  # (B, 2, H/4, W/4), in pixels of that size
        ahead, behind = (
            F.interpolate(motion * SCALE, scale_factor=SCALE, mode="bilinear", align_corners=False)
            for motion in (forward, backward)
        )  # (B, 2, H, W)
        travel = (ahead - behind) / 2  # from frame to frame
        seen = luma.new_empty(luma.shape[0], SQUARES, *luma.shape[-2:])  # filled in place: these are large
        samples, gradients, leading = seen.split((SAMPLES, 2, len(LAGS)), 1)
        here, step = lucas_kanade.pixel_grid(luma), lucas_kanade.grid_units(travel)
        for index, lag in enumerate(LAGS):
            plane = slice(index, index + 1)
            leading[:, plane] = lucas_kanade.sample_at(luma, torch.add(here, step, alpha=lag)).sub_(luma)
            trailing = lucas_kanade.sample_at(luma, torch.add(here, step, alpha=-lag)).sub_(luma)
            torch.add(leading[:, plane], trailing, out=trailing)
            samples[:, plane] = trailing.mul_(0.5)
        samples[:, -2:-1] = 0 if following is None else lucas_kanade.sample(following, ahead).sub_(luma)
        samples[:, -1:] = 0 if previous is None else lucas_kanade.sample(previous, behind).sub_(luma)
        speed = _gradients_along_and_across(luma, travel, gradients)
        energies = _energies(seen, speed, forward + backward)

        pixels = torch.empty(luma.shape[0], 3 + SAMPLES, *luma.shape[-2:], dtype=dtype, device=luma.device)
        pixels[:, :3] = (frame - 0.5) * CONTRAST
        pixels[:, 3:] = samples.mul_(DETAIL)
        rest = torch.cat((forward, backward, energies), 1).to(dtype)
        return torch.cat((F.pixel_unshuffle(pixels, SCALE), rest), 1)


def _gradients_along_and_across(luma: Tensor, travel: Tensor, gradients: Tensor) -> Tensor:
    """Write luma's gradients along and across its motion to gradients (B, 2, H, W); return the speed (B, 1, H, W)."""
    wide = F.pad(luma, (1, 1, 1, 1), mode="replicate")
    gradient_x = (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) / 2
    gradient_y = (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) / 2
    x, y = travel.split(1, 1)
    speed: Tensor = (x * x + y * y).sqrt_().clamp_(min=1e-3)
    gradients[:, :1] = (gradient_x * x + gradient_y * y) / speed
    gradients[:, 1:] = (gradient_x * y - gradient_y * x) / speed
    return speed


def _energies(seen: Tensor, speed: Tensor, bend: Tensor) -> Tensor:
    """Return logarithms of local mean squares of samples and gradients, and of the motion: (B, ENERGIES, H/4, W/4).

    As a function of the lag, the samples' squares are the structure function of the picture along its motion.
    seen: (B, SQUARES, H, W). speed: (B, 1, H, W). bend: (B, 2, H/4, W/4), the sum of the motions to both neighbours,
    0 where motion is uniform.
    """
    squares = F.avg_pool2d(seen.square(), SCALE)
    size = squares.shape[-2:]
    coarse = F.avg_pool2d(squares, SCALE, ceil_mode=True, count_include_pad=False)  # (B, 20, H/16, W/16)
    wider = (F.interpolate(_window_mean(coarse, side), size, mode="bilinear", align_corners=False) for side in (3, 7))
    overall = squares.mean((2, 3), keepdim=True).expand_as(squares)  # exposure is the same in the whole frame
    means = [_window_mean(squares, 3), *wider, overall]
    # Offsets and factors bring the logarithms to about zero mean and unit variance.
    logs = ((torch.cat(means, 1) + 1e-5).log() + 8) / 2
    speed = F.avg_pool2d(speed, SCALE)
    bend = bend.square().sum(1, keepdim=True).sqrt() * SCALE
    return torch.cat((logs, (speed + 0.1).log(), (bend + 0.1).log()), 1)


def _window_mean(values: Tensor, side: int) -> Tensor:
    mean: Tensor = F.avg_pool2d(values, side, 1, side // 2, count_include_pad=False)
    return mean


def _motions(luma: Tensor, previous: Tensor | None, following: Tensor | None) -> tuple[Tensor, Tensor]:
    small = F.avg_pool2d(luma, SCALE)
    forward = None if following is None else lucas_kanade.flow(small, F.avg_pool2d(following, SCALE))
    backward = None if previous is None else lucas_kanade.flow(small, F.avg_pool2d(previous, SCALE))
    if forward is None and backward is None:
        still = small.new_zeros(small.shape[0], 2, *small.shape[-2:])
        return still, still
    if forward is None:
        assert backward is not None
        return -backward, backward
    return forward, -forward if backward is None else backward


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
