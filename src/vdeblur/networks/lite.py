"""Lite: a compact recurrent video deblurring network led by motion, vdeblur's own default.

Blur is the trace of motion, and in a video the motion can be seen: a point that travels v pixels from frame to frame
was smeared along v while the shutter was open. So motion is measured first, by Lucas-Kanade without weights, and each
frame is sampled along it at fixed fractions of v. Through these samples the blur has one direction and one scale
everywhere, whatever they are in the picture, and undoing it is a matter of weighting them: least squares over whole
synthetic clips with ten constant weights each gains 1 dB, with weights for every 40x40 block 1.7 dB. How long the
shutter was open shows in the samples, too: their mean squared differences to the frame, as a function of the shift,
are flat as far as the blur reaches. The network's work is to find the weights for each pixel, and to add what they
cannot give.

Then, in the spirit of DSTNet (Pan et al., "Deep Discriminative Spatial and Temporal Network for Efficient Video
Deblurring", CVPR 2023), features are propagated over the clip backward and forward in time, fused with each frame's
own by gates that let sharp content through and hold blurry content back. There are no deformable convolutions,
wavelets or layer norms: all of them run badly on a CPU, which is where this network has to be useful.

Parts, in the order of use:

- `look_along_motion` motion, samples, and their energies, all without weights;
- `Lite`             extraction, the two propagations, reconstruction;
- `Propagation`      one step of a propagation: gated fusion, then residual blocks;
- `GatedFusion`      two halves of a fused feature, each weighted by a sigmoid of itself
                     (the idea of DSTNet's discriminative fusion, Sec. 3.2);
- `ResidualBlock`    two 3x3 convolutions around a skip.

Features have a quarter of the frame's size: pixel-unshuffle by 4 makes channels out of a 4x4 block of pixels, so
nothing is thrown away and a 3x3 convolution sees 12x12 pixels. What comes out is added to the blurry frame.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks import lucas_kanade
from vdeblur.networks.layers import Network

SCALE = 4  # side of the block of pixels that becomes one position of the features
SLOPE = 0.1  # of every leaky ReLU
CONTRAST = 4.0  # brings pixels to about zero mean and unit variance, without which training is slow
DETAIL = 16.0  # does the same for differences of samples, which are smaller
LUMA = (0.299, 0.587, 0.114)  # BT.601; only the weights' proportions matter here
# Where luma is sampled along the motion of a frame interval. An open shutter smears over at most +-0.5; undoing that
# takes somewhat more on either side.
SHIFTS = (-0.75, -0.5, -0.25, -0.125, 0.125, 0.25, 0.5, 0.75)
SAMPLES = len(SHIFTS) + 2  # and the neighbours, each moved onto the frame
BLOCK = SCALE**2
LEVELS = 4  # energies are averaged over windows of 12, 48 and 112 pixels, and over the whole frame
ENERGIES = LEVELS * (SAMPLES + 2) + 2  # of samples and gradients, and of the motion itself
WEIGHING = 64  # width of the small network that weighs the samples by their energies
INPUTS = 3 * BLOCK + SAMPLES * BLOCK + 4 + ENERGIES  # RGB, samples, both motions, energies


class State(NamedTuple):
    """What goes from one frame to the next: the forward propagation's state (B, C, h, w) and the frame's luma."""

    feature: Tensor
    luma: Tensor


class Lite(Network):
    """Restore a clip from samples along its motion, by backward, then forward propagation of gated features.

    channels: width of features and states. blocks: residual blocks in each propagation step.
    """

    feeding = "clip"  # wants a run of frames at once, see streams.py
    multiple = SCALE  # height and width must be divisible by this
    half_precision = True  # convolutions only; motion and sampling stay in float32

    def __init__(self, channels: int = 48, blocks: int = 5, extraction_blocks: int = 2) -> None:
        super().__init__()
        self.extract = nn.Sequential(
            nn.Conv2d(INPUTS, channels, 3, padding=1),
            *(ResidualBlock(channels) for _ in range(extraction_blocks)),
        )
        self.backward_propagation = Propagation(channels, blocks)
        self.forward_propagation = Propagation(channels, blocks)
        self.weigh = nn.Sequential(
            nn.Conv2d(ENERGIES, WEIGHING, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(WEIGHING, WEIGHING, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(WEIGHING, WEIGHING, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(WEIGHING, SAMPLES, 1),
        )
        self.reconstruct = nn.Conv2d(2 * channels, 3 * BLOCK + SAMPLES * BLOCK, 3, padding=1)
        for parameter in (*self.reconstruct.parameters(), *self.weigh[-1].parameters()):
            nn.init.zeros_(parameter)  # an untrained network returns its input

    def forward(self, blurry: Tensor) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) RGB in [0, 1] to the same shape, not clamped; H and W multiples of 4."""
        return self.restore(blurry, blurry.shape[1], None)[0]

    def restore(self, blurry: Tensor, keep: int, state: State | None) -> tuple[Tensor, State]:
        """Restore the first `keep` frames of a clip (see forward), the others being there to be looked at.

        state: after the frame before the clip; None at a beginning.
        Gives the frames, in the clip's precision, and the state after the last of them.
        """
        time = blurry.shape[1]
        weights = blurry.new_tensor(LUMA)
        lumas = [torch.einsum("bchw,c->bhw", frame, weights)[:, None] for frame in blurry.unbind(1)]  # T x (B, 1, H, W)
        features, samples, energies = [], [], []  # T x (B, C, h, w), T x (B, 160, h, w), T x (B, 50, h, w)
        for index, (frame, luma) in enumerate(zip(blurry.unbind(1), lumas, strict=True)):
            previous = lumas[index - 1] if index else None if state is None else state.luma
            following = lumas[index + 1] if index + 1 < time else None
            seen = look_along_motion(frame, luma, previous, following, self.reconstruct.weight.dtype)
            seen = seen.contiguous(memory_format=torch.channels_last)
            features.append(self.extract(seen))
            samples.append(seen[:, 3 * BLOCK : -4 - ENERGIES])
            energies.append(seen[:, -ENERGIES:])

        # Backward in time: what the future shows sharply travels to the past.
        future = torch.zeros_like(features[0])
        futures: list[Tensor] = []
        for feature in reversed(features):
            future = self.backward_propagation(feature, future)
            futures.append(future)
        futures.reverse()

        # Forward in time, fed with the backward states, so that both ends of the clip reach every frame.
        past = torch.zeros_like(features[0]) if state is None else state.feature
        differences: list[Tensor] = []
        kept = zip(features[:keep], futures[:keep], samples[:keep], energies[:keep], strict=True)
        for feature, future, views, energy in kept:
            past = self.forward_propagation(future, past)
            result = self.reconstruct(torch.cat((past, feature), 1))  # (B, 48 + 160, H/4, W/4)
            freely, fine = result.split((3 * BLOCK, SAMPLES * BLOCK), 1)
            coarse = self.weigh(energy)[:, :, None]  # (B, 10, 1, H/4, W/4), from what the samples show by themselves
            weighted = (fine.unflatten(1, (SAMPLES, BLOCK)) + coarse) * views.unflatten(1, (SAMPLES, BLOCK))
            along = weighted.sum(1, dtype=torch.float32) / DETAIL  # (B, 16, H/4, W/4)
            difference = freely.float().unflatten(1, (3, BLOCK)) + along[:, None]  # (B, 3, 16, H/4, W/4)
            differences.append(F.pixel_shuffle(difference.flatten(1, 2), SCALE))
        return blurry[:, :keep] + torch.stack(differences, 1), State(past, lumas[keep - 1])


@torch.no_grad()
def look_along_motion(
    frame: Tensor, luma: Tensor, previous: Tensor | None, following: Tensor | None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Give a frame with what its motion shows: (B, INPUTS, H/4, W/4) in dtype, scaled to about unit variance.

    frame: (B, 3, H, W) RGB in [0, 1], float32. luma: its luma (B, 1, H, W). previous, following: its neighbours'
    lumas, None beyond the ends of the clip, where motion is taken to go on as it was.
    """
    with torch.autocast(frame.device.type, enabled=False):
        forward, backward = _motions(luma, previous, following)  # (B, 2, H/4, W/4), in pixels of that size
        ahead, behind = (
            F.interpolate(motion * SCALE, scale_factor=SCALE, mode="bilinear", align_corners=False)
            for motion in (forward, backward)
        )  # (B, 2, H, W)
        travel = (ahead - behind) / 2  # from frame to frame
        seen = luma.new_empty(luma.shape[0], SAMPLES + 2, *luma.shape[-2:])  # filled in place: these are large
        here, step = lucas_kanade.places(luma), lucas_kanade.steps(travel)
        for index, shift in enumerate(SHIFTS):
            seen[:, index : index + 1] = lucas_kanade.look(luma, torch.add(here, step, alpha=shift))
        seen[:, -4:-3] = luma if following is None else lucas_kanade.sample(following, ahead)
        seen[:, -3:-2] = luma if previous is None else lucas_kanade.sample(previous, behind)
        samples = seen[:, :SAMPLES].sub_(luma)
        speed = _gradients_along_and_across(luma, travel, seen[:, -2:])
        energies = _energies(seen, speed, forward + backward)

        pixels = torch.empty(luma.shape[0], 3 + SAMPLES, *luma.shape[-2:], dtype=dtype, device=luma.device)
        pixels[:, :3] = (frame - 0.5) * CONTRAST
        pixels[:, 3:] = samples.mul_(DETAIL)
        rest = torch.cat((forward, backward, energies), 1).to(dtype)
        return torch.cat((F.pixel_unshuffle(pixels, SCALE), rest), 1)


def _gradients_along_and_across(luma: Tensor, travel: Tensor, gradients: Tensor) -> Tensor:
    """Write luma's gradients along and across its motion to gradients (B, 2, H, W); give the speed (B, 1, H, W)."""
    wide = F.pad(luma, (1, 1, 1, 1), mode="replicate")
    gradient_x = (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) / 2
    gradient_y = (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) / 2
    x, y = travel.split(1, 1)
    speed = (x * x + y * y).sqrt_().clamp_(min=1e-3)
    gradients[:, :1] = (gradient_x * x + gradient_y * y) / speed
    gradients[:, 1:] = (gradient_x * y - gradient_y * x) / speed
    return speed


def _energies(seen: Tensor, speed: Tensor, bend: Tensor) -> Tensor:
    """Give logarithms of local mean squares: of samples and gradients, and of the motion: (B, ENERGIES, H/4, W/4).

    As a function of the shift, the samples' squares are the structure function of the picture along its motion.
    seen: (B, 12, H, W). speed: (B, 1, H, W). bend: by how much the motions to both neighbours differ, at a quarter.
    """
    squares = F.avg_pool2d(seen.square(), SCALE)
    size = squares.shape[-2:]
    coarse = F.avg_pool2d(squares, SCALE, ceil_mode=True, count_include_pad=False)  # (B, 12, H/16, W/16)
    wider = (F.interpolate(_window_mean(coarse, side), size, mode="bilinear", align_corners=False) for side in (3, 7))
    everywhere = squares.mean((2, 3), keepdim=True).expand_as(squares)  # the shutter is the same in the whole frame
    means = [_window_mean(squares, 3), *wider, everywhere]
    # Offsets and factors bring the logarithms to about zero mean and unit variance.
    logs = ((torch.cat(means, 1) + 1e-5).log() + 8) / 2
    speed = F.avg_pool2d(speed, SCALE)
    bend = bend.norm(dim=1, keepdim=True) * SCALE
    return torch.cat((logs, (speed + 0.1).log(), (bend + 0.1).log()), 1)


def _window_mean(values: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(values, side, 1, side // 2, count_include_pad=False)


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


class Propagation(nn.Module):
    """One step in time: fuse a frame's feature with the travelling state, then refine the sum."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.fuse = GatedFusion(channels)
        self.refine = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))

    def forward(self, feature: Tensor, state: Tensor) -> Tensor:
        """Give the new state (B, C, h, w) from feature and state of that shape."""
        refined: Tensor = self.refine(self.fuse(feature, state))
        return refined


class GatedFusion(nn.Module):
    """Fuse two features, each half of their mixture weighted by a sigmoid gate of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)
        self.gate_a = nn.Conv2d(channels, channels, 3, padding=1)
        self.gate_b = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, feature: Tensor, state: Tensor) -> Tensor:
        """Give (B, C, h, w) from feature and state of that shape."""
        mixed = F.leaky_relu(self.mix(torch.cat((feature, state), 1)), SLOPE)
        a, b = mixed.chunk(2, 1)
        return feature + a * torch.sigmoid(self.gate_a(a)) + b * torch.sigmoid(self.gate_b(b))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a leaky ReLU between, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        # Ten blocks a frame, through all frames of a clip: begin near the identity, or large rates explode.
        self.conv_2.weight.data.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Give (B, C, h, w) from x of that shape."""
        difference: Tensor = self.conv_2(F.leaky_relu(self.conv_1(x), SLOPE))
        return x + difference
