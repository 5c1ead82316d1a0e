"""How near a restored picture is to the sharp one: PSNR, SSIM in two kinds, and Koehler's alignment, in float64.

Pictures are (B, C, H, W) in 0..255, of any type and on any device that knows float64; every function gives one number
per picture, (B,). Definitions, their sources and test vectors: the evaluation scripts of the papers, as protocols.py
names them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

PEAK = 255.0
RADIUS, SIGMA = 5, 1.5  # of SSIM's window: 11 taps
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2  # Wang et al., "Image Quality Assessment", TIP 2004, Sec. III-B
LUMA = (0.299, 0.587, 0.114)  # of R, G, B, ITU-R BT.601


def crop(pictures: Tensor, pixels: int) -> Tensor:
    """Cut so many pixels off every side."""
    return pictures[..., pixels : pictures.shape[-2] - pixels, pixels : pictures.shape[-1] - pixels]


def to_luma(pictures: Tensor) -> Tensor:
    """Give (B, 1, H, W) of RGB pictures, float64, not rounded."""
    weights = torch.tensor(LUMA, dtype=torch.float64, device=pictures.device)
    return (pictures.double() * weights[:, None, None]).sum(1, keepdim=True)


def psnr(restored: Tensor, sharp: Tensor) -> Tensor:
    """Give 10 log10(255^2 / mean squared difference over all pixels and channels), in dB; infinite for equal pictures.

    0 dB is a difference of 255 everywhere; restored video lies at 20 to 40.
    """
    error = (restored.double() - sharp.double()).square().mean((1, 2, 3))
    return 10 * torch.log10(PEAK**2 / error)


def ssim_2d(restored: Tensor, sharp: Tensor) -> Tensor:
    """Give the structural similarity, each channel by itself, where the window fits; 1 for equal pictures, at least -1.

    Gaussian window of 11x11, sigma 1.5, population variances, mean over positions and channels: Wang et al., TIP 2004.
    The same as scikit-image's structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=255).

    Raises: ValueError where the pictures are smaller than the window.
    """
    return _map_of(_statistics(restored, sharp, padded=False)).mean((1, 2, 3))


def ssim_3d(restored: Tensor, sharp: Tensor) -> Tensor:
    """Give the structural similarity of the H x W x C array as one volume, as MATLAB's ssim takes an RGB picture.

    The window's 11 taps run along all three axes, edges repeated, so the channels mix: clearly higher than ssim_2d on
    pictures, and not to be compared with it.
    """
    return _map_of(_mix_channels(_statistics(restored, sharp, padded=True))).mean((1, 2, 3))


def ssim_both(restored: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
    """Give ssim_2d and ssim_3d, at the price of one."""
    statistics = _statistics(restored, sharp, padded=True)
    # Where the window fits, no repeated edge is in it.
    return _map_of(crop(statistics, RADIUS)).mean((1, 2, 3)), _map_of(_mix_channels(statistics)).mean((1, 2, 3))


def _statistics(restored: Tensor, sharp: Tensor, padded: bool) -> Tensor:
    """Blur x, y, xx, yy and xy by SSIM's window in the picture's plane: (5, B, C, H, W); smaller unless padded."""
    if min(restored.shape[-2:]) < 2 * RADIUS + 1:
        raise ValueError("pictures must be at least 11 pixels high and wide for SSIM")
    blurred = []
    for x, y in zip(restored.double(), sharp.double(), strict=True):  # one by one: it stays in a CPU's caches
        for plane in (x, y, x * x, y * y, x * y):
            if padded:
                plane = F.pad(plane[None], (RADIUS,) * 4, mode="replicate")[0]
            blurred.append(_blur(_blur(plane, -2), -1))
    stacked = torch.stack(blurred)
    return stacked.view(-1, 5, *stacked.shape[1:]).transpose(0, 1)


def _window() -> list[float]:
    taps = torch.exp(-torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64).square() / (2 * SIGMA**2))
    return [float(tap) for tap in taps / taps.sum()]


def _blur(x: Tensor, axis: int) -> Tensor:
    """Weigh neighbours along an axis; it gets shorter by 10. As fast as memory, which no float64 convolution is."""
    length = x.shape[axis] - 2 * RADIUS
    taps = _window()
    blurred = x.narrow(axis, 0, length) * taps[0]
    for offset, tap in enumerate(taps[1:], 1):
        blurred.add_(x.narrow(axis, offset, length), alpha=tap)
    return blurred


def _mix_channels(statistics: Tensor) -> Tensor:
    """Blur along the channels, (5, B, C, H, W), the first and the last one repeated beyond the ends."""
    channels = statistics.shape[2]
    mixing = torch.zeros(channels, channels, dtype=torch.float64)
    for to in range(channels):
        for offset, tap in enumerate(_window(), -RADIUS):
            mixing[to, min(max(to + offset, 0), channels - 1)] += tap
    return torch.einsum("tc,sbchw->sbthw", mixing.to(statistics.device), statistics)


def _map_of(statistics: Tensor) -> Tensor:
    """Give SSIM at every position out of the means and the mean products: Wang et al., Eq. (13)."""
    x, y, xx, yy, xy = statistics.unbind()
    means = (2 * x * y + C1) / (x.square() + y.square() + C1)
    return means * (2 * (xy - x * y) + C2) / (xx - x.square() + yy - y.square() + C2)


@dataclass(frozen=True)
class Aligned:
    """A result brought onto the truth: both (1, 3, H, W) float64, and what was done to the result.

    scale: what its values were multiplied with. shift: rows and columns by which it was moved, down and right.
    """

    restored: Tensor
    sharp: Tensor
    scale: float
    shift: tuple[int, int]


def align(restored: Tensor, sharp: Tensor) -> Aligned:
    """Bring one picture (1, 3, H, W) onto the sharp one in brightness and by whole pixels.

    Of Koehler et al., "Recording and Playback of Camera Shake", ECCV 2012, as PVDNet's evaluation has it: scale by
    least squares, then the peak of the cross-correlation of the channels' means; what is moved in is zero in both.
    That evaluation also transposes portrait frames, which changes none of the figures.
    """
    z, x = restored.double(), sharp.double()
    scale = (x * z).sum() / z.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    z = z * scale
    spectrum = torch.fft.fft2(x.mean(1)) * torch.fft.fft2(z.mean(1)).conj()
    correlation = torch.fft.ifft2(spectrum).real[0]
    height, width = correlation.shape
    peak = int(correlation.argmax())
    down = (peak // width + height // 2) % height - height // 2  # beyond the middle are the negative ones
    right = (peak % width + width // 2) % width - width // 2
    inside = torch.zeros_like(x[:, :1])
    inside[..., max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = 1
    return Aligned(torch.roll(z, (down, right), (-2, -1)) * inside, x * inside, float(scale), (down, right))
