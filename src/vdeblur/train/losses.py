"""Losses: how far restored frames are from the sharp ones."""

import torch
from torch import Tensor

LOG_ERROR_FLOOR = 1e-4  # a PSNR of 40 dB
CHARBONNIER_EPSILON = 1e-3  # where the square turns into the absolute value; a quarter of an 8-bit step


def charbonnier(restored: Tensor, sharp: Tensor) -> Tensor:
    """Give the mean of sqrt(d^2 + eps^2), a smooth absolute difference; both (..., H, W) in float32."""
    return ((restored - sharp).square() + CHARBONNIER_EPSILON**2).sqrt().mean()


def spectral(restored: Tensor, sharp: Tensor) -> Tensor:
    """Give the mean absolute difference of the orthonormal Fourier transforms of the pictures (real and imaginary)."""
    difference = torch.fft.rfft2(restored - sharp, norm="ortho")
    return torch.view_as_real(difference).abs().mean()


def log_error(restored: Tensor, sharp: Tensor) -> Tensor:
    """Give the mean over frames of log(mean squared error), the PSNR but for a factor; both (..., 3, H, W).

    Each frame counts alike, however strongly it is blurred. The floor keeps what is sharp already from ruling.
    """
    error = (restored - sharp).square().mean((-1, -2, -3))
    return (error + LOG_ERROR_FLOOR).log().mean()
