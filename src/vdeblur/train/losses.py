"""Losses: how far restored frames are from the sharp ones."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.layers import warp
from vdeblur.networks.spn import gradient_magnitude

LOG_ERROR_FLOOR = 1e-4  # a PSNR of 40 dB
PSNR_FLOOR = 1e-8  # NAFNet's: 80 dB
CHARBONNIER_EPSILON = 1e-3  # where the square turns into the absolute value; a quarter of an 8-bit step
HARD_SHARE = 0.5  # CDVD-TSP: of a sample's pixels, those with the largest errors
CHANCE_SHARE = 0.1  # and so many anywhere


def charbonnier(restored: Tensor, sharp: Tensor, epsilon: float = CHARBONNIER_EPSILON) -> Tensor:
    """Give the mean of sqrt(d^2 + eps^2), a smooth absolute difference; both (..., H, W) in float32."""
    return ((restored - sharp).square() + epsilon**2).sqrt().mean()


def spectral(restored: Tensor, sharp: Tensor) -> Tensor:
    """Give the mean absolute difference of the orthonormal Fourier transforms of the pictures (real and imaginary)."""
    difference = torch.fft.rfft2(restored - sharp, norm="ortho")
    return torch.view_as_real(difference).abs().mean()


def spectral_modulus(restored: Tensor, sharp: Tensor) -> Tensor:
    """Give the mean modulus of the difference of the pictures' Fourier transforms, as DSTNet and DSTNet+ weigh it.

    restored, sharp: (..., H, W) in float32. The transforms are not normalised, and of a real picture's only the half
    that determines the other counts, (..., H, W/2 + 1).
    """
    difference: Tensor = torch.fft.rfft2(restored - sharp)
    return difference.abs().mean()


def hard_examples(
    restored: Tensor, sharp: Tensor, hard: float = HARD_SHARE, chance: float = CHANCE_SHARE
) -> tuple[Tensor, Tensor]:
    """Give the mean absolute difference of hard pixels, and the mask (B, 1, H, W) that tells them: CDVD-TSP's.

    restored, sharp: (B, C, H, W); what is restored at a pixel counts together, whichever output it is of. Hard are the
    pixels of a sample whose errors exceed that at place `hard` of its pixels by error, and a share `chance` of all,
    drawn by torch's generator. The mean is over all elements, those of other pixels are zeros in it.
    """
    difference = (restored - sharp).abs()
    with torch.no_grad():
        error = difference.sum(1).flatten(1)  # (B, H W)
        pixels = error.shape[1]
        limit = error.kthvalue(pixels - int(hard * pixels), 1, keepdim=True).values
        drawn = torch.rand_like(error).topk(int(chance * pixels), 1).indices
        mask = (error > limit).scatter(1, drawn, value=True).view(error.shape[0], 1, *restored.shape[2:])
    return (difference * mask).mean(), mask


def log_error(restored: Tensor, sharp: Tensor) -> Tensor:
    """Give the mean over frames of log(mean squared error), the PSNR but for a factor; both (..., 3, H, W).

    Each frame counts alike, however strongly it is blurred. The floor keeps what is sharp already from ruling.
    """
    error = (restored - sharp).square().mean((-1, -2, -3))
    return (error + LOG_ERROR_FLOOR).log().mean()


def negative_psnr(restored: Tensor, sharp: Tensor) -> Tensor:
    """Give the mean over frames of 10 log10(mean squared error), so minus the PSNR in dB: NAFNet's loss.

    restored, sharp: (..., 3, H, W) in [0, 1], not clamped. Errors count down to where nothing is left to see.
    """
    error = (restored - sharp).square().mean((-1, -2, -3))
    return 10 * (error + PSNR_FLOOR).log10().mean()


def carrying_over(flows: Sequence[Tensor], current: Tensor, neighbour: Tensor) -> Tensor:
    """Give how far the neighbour, warped by flows, is from the current frame: flow-rnn's flow loss, Eq. (14).

    current, neighbour: (B, 3, H, W). flows: from current to neighbour at 1/4, 1/8, ... of the size, in pixels of their
    own resolution. Mean squares are weighed by 4^-s, so that a level counts by its number of pixels.
    """
    total = current.new_zeros(())
    for level, flow in enumerate(flows, 2):
        here, there = (F.avg_pool2d(frame, 2**level) for frame in (current, neighbour))
        total = total + 4.0**-level * F.mse_loss(warp(there, flow), here)
    return total


def fooling(discriminator: nn.Module, restored: Tensor, saturating: bool = True) -> Tensor:
    """Give the adversarial loss of a generator, log(1 - D(gradients of what it made)), the mean over the batch.

    discriminator: gives logits (B, 2) for restored and sharp. restored: luma (B, 1, H, W), not clamped. saturating:
    the paper's (SPGAN) form, which hardly tells how to go on where the discriminator is sure; else -log D. No
    gradients reach the discriminator's weights, and its running statistics stay as they are.
    """
    fixed = {name: weight.detach() for name, weight in discriminator.named_parameters()}
    fixed |= {name: statistics.clone() for name, statistics in discriminator.named_buffers()}
    logits = torch.func.functional_call(discriminator, fixed, (gradient_magnitude(restored),))
    restored_or_sharp = F.log_softmax(logits.float(), 1)  # never the logarithm of a softmax, which may be 0
    return restored_or_sharp[:, 0].mean() if saturating else -restored_or_sharp[:, 1].mean()


def telling_apart(discriminator: nn.Module, restored: Tensor, sharp: Tensor) -> Tensor:
    """Give the cross-entropy of a discriminator of gradient images; no gradients reach what made restored.

    restored, sharp: luma (B, 1, H, W). They go through apart, since batch normalisation would mix them.
    """
    made = F.log_softmax(discriminator(gradient_magnitude(restored.detach())).float(), 1)[:, 0]
    real = F.log_softmax(discriminator(gradient_magnitude(sharp)).float(), 1)[:, 1]
    return -(made.mean() + real.mean()) / 2


def motion_error(flow: Tensor, sharp: Tensor, sharp_before: Tensor) -> Tensor:
    """Give the mean squared difference of a sharp frame and the one before it, moved onto it; both (B, 3, H, W).

    flow: (B, 2, H, W), from the frame to the one before, in pixels. What it leads out of the frame does not count, and
    at its borders counts as far as it is inside. PVDNet's BIMNet is trained so, whichever frames the flow is found in.
    """
    with torch.no_grad():
        inside = warp(torch.ones_like(sharp), flow)
    return (warp(sharp_before, flow) - sharp * inside).square().sum() / inside.sum()
