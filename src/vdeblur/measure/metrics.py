"""PSNR, two kinds of SSIM, and Koehler's alignment, in float64.

Pictures are (B, C, H, W) in 0..255, of any dtype, on any device with float64; the measures return one number per
picture, (B,). They follow the evaluation scripts of the papers that protocols.py names.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

PEAK = 255.0
RADIUS, SIGMA = 5, 1.5  # of SSIM's window: 11 taps
MIRRORED_RADIUS = 6  # of ssim_3d_mirrored: scipy ends its window at 4 sigma
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2  # Wang et al., "Image Quality Assessment", TIP 2004, Sec. III-B
LUMA = (0.299, 0.587, 0.114)  # of R, G, B, ITU-R BT.601


def crop(pictures: Tensor, pixels: int) -> Tensor:
    """Cut this many pixels off every side."""
    return pictures[..., pixels : pictures.shape[-2] - pixels, pixels : pictures.shape[-1] - pixels]


def to_luma(pictures: Tensor) -> Tensor:
    """Return the luma of RGB pictures: (B, 1, H, W) float64, not rounded."""
    weights = torch.tensor(LUMA, dtype=torch.float64, device=pictures.device)
    return (pictures.double() * weights[:, None, None]).sum(1, keepdim=True)


def psnr(restored: Tensor, sharp: Tensor) -> Tensor:
    """Return 10 log10(255^2 / mean squared difference over pixels and channels), in dB; infinite for equal pictures.

    0 dB is a difference of 255 everywhere; restored video has 20 to 40 dB.
    """
    error = (restored.double() - sharp.double()).square().mean((1, 2, 3))
    return 10 * torch.log10(PEAK**2 / error)


def ssim_2d(restored: Tensor, sharp: Tensor) -> Tensor:
    """Return the structural similarity of the channels: 1 for equal pictures, at least -1.

    Wang et al., TIP 2004: Gaussian window of 11x11, sigma 1.5, population variances, mean over channels and over the
    positions where the window fits. Equals scikit-image's structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255).

    Raises: ValueError if the pictures are smaller than the window.
    """
    return _map_of(_statistics(restored, sharp, padded=False)).mean((1, 2, 3))


def ssim_3d(restored: Tensor, sharp: Tensor) -> Tensor:
    """Return the structural similarity of the H x W x C array as one volume, as MATLAB's ssim treats an RGB picture.

    The window's 11 taps run along all three axes, with edges repeated, so the channels mix: it is clearly higher than
    ssim_2d, and the two cannot be compared.

    Raises: ValueError if the pictures are smaller than the window.
    """
    return _map_of(_mix_channels(_statistics(restored, sharp, padded=True))).mean((1, 2, 3))


def ssim_3d_mirrored(restored: Tensor, sharp: Tensor) -> Tensor:
    """Return ssim_3d as scipy's Gaussian filter computes it, for Turtle's tables: slightly higher than ssim_3d.

    The window has 13 taps instead of 11, and all three axes are mirrored at their ends, with the edge repeated.
    """
    pictures = zip(restored.double(), sharp.double(), strict=True)
    return torch.stack([_map_of(_mirrored_statistics(x, y)).mean() for x, y in pictures])


def _mirrored_statistics(x: Tensor, y: Tensor) -> Tensor:
    """Blur x, y, xx, yy and xy, (C, H, W), along all axes: (5, C, H, W)."""
    statistics = torch.stack((x, y, x * x, y * y, x * y))
    for axis in (1, 2, 3):
        length = statistics.shape[axis]
        places = torch.arange(-MIRRORED_RADIUS, length + MIRRORED_RADIUS, device=x.device) % (2 * length)
        places = torch.minimum(places, 2 * length - 1 - places)
        statistics = _blur(statistics.index_select(axis, places), axis, MIRRORED_RADIUS)
    return statistics


def ssim_both(restored: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
    """Return ssim_2d and ssim_3d at the cost of one.

    Raises: ValueError if the pictures are smaller than the window.
    """
    statistics = _statistics(restored, sharp, padded=True)
    # Where the window fits, it contains no repeated edge.
    return _map_of(crop(statistics, RADIUS)).mean((1, 2, 3)), _map_of(_mix_channels(statistics)).mean((1, 2, 3))


def _statistics(restored: Tensor, sharp: Tensor, padded: bool) -> Tensor:
    """Blur x, y, xx, yy and xy with SSIM's window in the picture's plane: (5, B, C, H, W); smaller unless padded."""
    if min(restored.shape[-2:]) < 2 * RADIUS + 1:
        raise ValueError("pictures must be at least 11 pixels high and wide for SSIM")
    blurred = []
    for x, y in zip(restored.double(), sharp.double(), strict=True):  # one at a time fits into a CPU's caches
        for plane in (x, y, x * x, y * y, x * y):
            if padded:
                plane = F.pad(plane[None], (RADIUS,) * 4, mode="replicate")[0]
            blurred.append(_blur(_blur(plane, -2), -1))
    stacked = torch.stack(blurred)
    return stacked.view(-1, 5, *stacked.shape[1:]).transpose(0, 1)


def _window(radius: int = RADIUS) -> list[float]:
    taps = torch.exp(-torch.arange(-radius, radius + 1, dtype=torch.float64).square() / (2 * SIGMA**2))
    return [float(tap) for tap in taps / taps.sum()]


def _blur(x: Tensor, axis: int, radius: int = RADIUS) -> Tensor:
    """Blur along an axis, which gets two radii shorter.

    Limited by memory bandwidth, so faster than any float64 convolution.
    """
    length = x.shape[axis] - 2 * radius
    taps = _window(radius)
    blurred = x.narrow(axis, 0, length) * taps[0]
    for offset, tap in enumerate(taps[1:], 1):
        blurred.add_(x.narrow(axis, offset, length), alpha=tap)
    return blurred


def _mix_channels(statistics: Tensor) -> Tensor:
    """Blur (5, B, C, H, W) along the channels; the first and the last channel are repeated beyond the ends."""
    channels = statistics.shape[2]
    mixing = torch.zeros(channels, channels, dtype=torch.float64)
    for to in range(channels):
        for offset, tap in enumerate(_window(), -RADIUS):
            mixing[to, min(max(to + offset, 0), channels - 1)] += tap
    return torch.einsum("tc,sbchw->sbthw", mixing.to(statistics.device), statistics)


def _map_of(statistics: Tensor) -> Tensor:
    """Return SSIM at every position from the means and the mean products: Wang et al., Eq. (13)."""
    x, y, xx, yy, xy = statistics.unbind()
    means = (2 * x * y + C1) / (x.square() + y.square() + C1)
    return means * (2 * (xy - x * y) + C2) / (xx - x.square() + yy - y.square() + C2)


@dataclass(frozen=True)
class Aligned:
    """A restored picture aligned with the sharp one: both (1, 3, H, W) float64.

    scale: the factor of the restored values. shift: the rows and columns that it was moved down and right.
    """

    restored: Tensor
    sharp: Tensor
    scale: float
    shift: tuple[int, int]


def align(restored: Tensor, sharp: Tensor) -> Aligned:
    """Align one picture (1, 3, H, W) with the sharp one in brightness and by whole pixels.

    Koehler et al., "Recording and Playback of Camera Shake", ECCV 2012, as in PVDNet's evaluation: scale by least
    squares, then shift to the peak of the cross-correlation of the channels' means; pixels moved in are zero in both.
    That evaluation also transposes portrait frames, which changes no score.
    """
    z, x = restored.double(), sharp.double()
    scale = (x * z).sum() / z.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    z = z * scale
    spectrum = torch.fft.fft2(x.mean(1)) * torch.fft.fft2(z.mean(1)).conj()
    correlation = torch.fft.ifft2(spectrum).real[0]
    height, width = correlation.shape
    peak = int(correlation.argmax())
    down = (peak // width + height // 2) % height - height // 2  # shifts beyond the middle are negative
    right = (peak % width + width // 2) % width - width // 2
    inside = torch.zeros_like(x[:, :1])
    inside[..., max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = 1
    return Aligned(torch.roll(z, (down, right), (-2, -1)) * inside, x * inside, float(scale), (down, right))
