"""Losses: differences between restored and sharp frames, and those of flows and discriminators."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.layers import warp
from vdeblur.networks.spn import gradient_magnitude

LOG_ERROR_FLOOR = 1e-4  # a PSNR of 40 dB
PSNR_FLOOR = 1e-8  # NAFNet's: 80 dB
CHARBONNIER_EPSILON = 1e-3  # where the square becomes an absolute value; a quarter of an 8-bit step
HARD_SHARE = 0.5  # CDVD-TSP: the share of a sample's pixels that have the largest errors
CHANCE_SHARE = 0.1  # and a share drawn at random


def charbonnier(restored: Tensor, sharp: Tensor, epsilon: float = CHARBONNIER_EPSILON) -> Tensor:
    """Return the mean of sqrt(d^2 + eps^2), a smooth absolute difference; both (..., H, W) in float32.

    With an epsilon of 0 it is the mean absolute difference, whose gradient at 0 is 0.
    """
    if epsilon == 0:
        return F.l1_loss(restored, sharp)
    return ((restored - sharp).square() + epsilon**2).sqrt().mean()


def colour_distance(restored: Tensor, sharp: Tensor, epsilon: float) -> Tensor:
    """Return the mean over pixels of sqrt(mean over channels of d^2 + eps^2); both (..., 3, H, W) in float32.

    As in ESTRNN: a smooth distance of colours, where charbonnier compares each channel on its own.
    """
    return ((restored - sharp).square().mean(-3) + epsilon**2).sqrt().mean()


def spectral(restored: Tensor, sharp: Tensor) -> Tensor:
    """Return the mean absolute difference of the pictures' orthonormal Fourier transforms (real and imaginary)."""
    difference = torch.fft.rfft2(restored - sharp, norm="ortho")
    return torch.view_as_real(difference).abs().mean()


def spectral_modulus(restored: Tensor, sharp: Tensor) -> Tensor:
    """Return the mean modulus of the difference of the pictures' Fourier transforms, as in DSTNet and DSTNet+.

    restored, sharp: (..., H, W) in float32. The transforms are not normalised; of their symmetric halves one counts,
    (..., H, W/2 + 1).
    """
    difference: Tensor = torch.fft.rfft2(restored - sharp)
    return difference.abs().mean()


def hard_examples(
    restored: Tensor, sharp: Tensor, hard: float = HARD_SHARE, chance: float = CHANCE_SHARE
) -> tuple[Tensor, Tensor]:
    """Return the mean absolute difference of hard pixels, and their mask (B, 1, H, W), as in CDVD-TSP.

    restored, sharp: (B, C, H, W); a pixel's error is summed over its channels, of all outputs. Hard are the share
    `hard` of a sample's pixels with the largest errors, and a share `chance` of all, drawn by torch's generator. The
    mean is over all elements; other pixels count as zeros.
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
    """Return the mean over frames of log(mean squared error), the PSNR up to a factor; both (..., 3, H, W).

    Each frame counts alike, however strong its blur. The floor keeps sharp frames from dominating.
    """
    error = (restored - sharp).square().mean((-1, -2, -3))
    return (error + LOG_ERROR_FLOOR).log().mean()


def negative_psnr(restored: Tensor, sharp: Tensor) -> Tensor:
    """Return the mean over frames of 10 log10(mean squared error), minus the PSNR in dB: NAFNet's loss.

    restored, sharp: (..., 3, H, W) in [0, 1], not clamped. The floor is far below visible errors.
    """
    error = (restored - sharp).square().mean((-1, -2, -3))
    return 10 * (error + PSNR_FLOOR).log10().mean()


def carrying_over(flows: Sequence[Tensor], current: Tensor, neighbour: Tensor) -> Tensor:
    """Return the error of the neighbour warped onto the current frame: flow-rnn's flow loss, Eq. (14).

    current, neighbour: (B, 3, H, W). flows: from current to neighbour at 1/4, 1/8, ... of the size, in pixels of their
    own resolution. Mean squares are weighted by 4^-s, so that a level counts by its number of pixels.
    """
    total = current.new_zeros(())
    for level, flow in enumerate(flows, 2):
        small_current, small_neighbour = (F.avg_pool2d(frame, 2**level) for frame in (current, neighbour))
        total = total + 4.0**-level * F.mse_loss(warp(small_neighbour, flow), small_current)
    return total


def fooling(
    discriminator: nn.Module,
    restored: Tensor,
    saturating: bool = True,
    view: Callable[[Tensor], Tensor] = gradient_magnitude,
) -> Tensor:
    """Return a generator's adversarial loss, log(1 - D(gradient image)), the mean over the batch.

    discriminator: returns logits (B, 2) for restored and sharp. restored: luma (B, 1, H, W), not clamped. saturating:
    the form of the paper (SPGAN), whose gradient vanishes where the discriminator is certain; else -log D. view: what
    the discriminator sees of luma. No gradients reach its weights, and its running statistics do not change.
    """
    fixed = {name: weight.detach() for name, weight in discriminator.named_parameters()}
    fixed |= {name: statistics.clone() for name, statistics in discriminator.named_buffers()}
    logits = torch.func.functional_call(discriminator, fixed, (view(restored),))
    restored_or_sharp = F.log_softmax(logits.float(), 1)  # stable, unlike the logarithm of a softmax, which may be 0
    return restored_or_sharp[:, 0].mean() if saturating else -restored_or_sharp[:, 1].mean()


def telling_apart(
    discriminator: nn.Module, restored: Tensor, sharp: Tensor, view: Callable[[Tensor], Tensor] = gradient_magnitude
) -> Tensor:
    """Return the cross-entropy of a discriminator of gradient images; no gradients reach the generator.

    restored, sharp: luma (B, 1, H, W), in two passes, since batch normalisation would mix them. view: see fooling.
    """
    made = F.log_softmax(discriminator(view(restored.detach())).float(), 1)[:, 0]
    real = F.log_softmax(discriminator(view(sharp)).float(), 1)[:, 1]
    return -(made.mean() + real.mean()) / 2


def motion_error(flow: Tensor, sharp: Tensor, sharp_before: Tensor, masked: bool = True) -> Tensor:
    """Return the mean squared difference of a sharp frame and the previous one warped onto it; both (B, 3, H, W).

    flow: (B, 2, H, W), from the frame to the previous one, in pixels. masked: positions outside the frame do not
    count, and those at its borders in part, as in the authors' code; otherwise they count as zeros, as in the paper's
    Eq. (1). It trains PVDNet's BIMNet, whichever frames the flow was estimated from.
    """
    if not masked:
        return F.mse_loss(warp(sharp_before, flow), sharp)
    with torch.no_grad():
        inside = warp(torch.ones_like(sharp), flow)
    return (warp(sharp_before, flow) - sharp * inside).square().sum() / inside.sum()
