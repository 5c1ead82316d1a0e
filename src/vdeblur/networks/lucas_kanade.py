"""Dense optical flow without weights: coarse-to-fine Lucas-Kanade.

B. D. Lucas and T. Kanade, "An Iterative Image Registration Technique with an Application to Stereo Vision", IJCAI
1981; the pyramid as in J.-Y. Bouguet, "Pyramidal Implementation of the Affine Lucas Kanade Feature Tracker", Intel
2001. Computed at every position instead of at chosen features: sums over windows are box filters, so a level costs a
few dozen passes over a small picture. Blur has little effect on it, because neighbouring frames are blurred alike.

Everything is computed in float32, whatever the precision of the network around it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW = 7  # side of the window in which motion is assumed constant
ITERATIONS = 3  # on each level
SMALLEST = 8  # no level has a side shorter than this
NOISE = 1e-4  # added to the squared gradients: flat areas keep the motion of the level above
LARGEST_STEP = 1.0  # of an iteration, in pixels of its level; the linearisation does not hold farther


def flow(a: Tensor, b: Tensor) -> Tensor:
    """Estimate where each position of a lies in b: (B, 2, h, w) pixels, horizontal first.

    a, b: (B, 1, h, w) luma in [0, 1], float32.
    """
    pyramid = [(a, b)]
    while min(pyramid[-1][0].shape[-2:]) >= 2 * SMALLEST and len(pyramid) < 5:
        pyramid.append((_halve(pyramid[-1][0]), _halve(pyramid[-1][1])))
    result = a.new_zeros(a.shape[0], 2, *pyramid[-1][0].shape[-2:])
    for level, (first, second) in enumerate(reversed(pyramid)):
        if level:
            result = F.interpolate(result, first.shape[-2:], mode="bilinear", align_corners=False) * 2
        result = _refine(first, second, result)
    return result


def sample(picture: Tensor, motion: Tensor) -> Tensor:
    """Sample picture where motion points, bilinearly; beyond the border, repeat the border.

    picture: (B, C, h, w). motion: (B, 2, h, w) in pixels, horizontal first. Result: picture's shape.
    """
    return sample_at(picture, pixel_grid(motion) + grid_units(motion))


def sample_at(picture: Tensor, grid: Tensor) -> Tensor:
    """Sample picture (B, C, h, w) at the positions of a grid, see pixel_grid and grid_units."""
    return F.grid_sample(picture, grid, padding_mode="border", align_corners=False)


def pixel_grid(like: Tensor) -> Tensor:
    """Return each pixel's position, (1, h, w, 2): -1 to 1 from the first pixel's outer edge to the last one's."""
    height, width = like.shape[-2:]
    y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) * (2 / width) - 1
    return _interleaved(x.expand(height, -1), y[:, None].expand(-1, width))[None]


def grid_units(motion: Tensor) -> Tensor:
    """Convert a motion (B, 2, h, w) from pixels to the units of pixel_grid, (B, h, w, 2)."""
    height, width = motion.shape[-2:]
    return _interleaved(motion[:, 0] * (2 / width), motion[:, 1] * (2 / height))


def _interleaved(x: Tensor, y: Tensor) -> Tensor:
    """Return x and y, each (..., w), side by side: (..., w, 2). On CPUs, torch.stack takes several times as long."""
    return torch.view_as_real(torch.complex(x, y))


def window_mean(values: Tensor, side: int = WINDOW) -> Tensor:
    """Average values (B, C, h, w) over windows of side x side; beyond the border, there is nothing to average."""
    return _mean_along(_mean_along(values, side, -1), side, -2)


def _mean_along(values: Tensor, side: int, dim: int) -> Tensor:
    """Average each `side` values along a dimension. Sums of shifted copies take less time than avg_pool2d."""
    half, length = side // 2, values.shape[dim]
    padded = F.pad(values, (half, half) if dim == -1 else (0, 0, half, half))
    total = padded.narrow(dim, 0, length) + padded.narrow(dim, 1, length)
    for shift in range(2, side):
        total += padded.narrow(dim, shift, length)
    place = torch.arange(length, device=values.device)
    count = place.clamp(max=half) + place.flip(0).clamp(max=half) + 1
    return total.div_(count if dim == -1 else count[:, None])


def _refine(a: Tensor, b: Tensor, motion: Tensor) -> Tensor:
    """Improve motion by Gauss-Newton steps: in each window, least squares of a - b(x + motion + step)."""
    gradient_x, gradient_y = _gradient(a)
    products = torch.cat((gradient_x * gradient_x, gradient_y * gradient_y, gradient_x * gradient_y), 1)
    xx, yy, xy = window_mean(products).unbind(1)
    xx, yy = xx + NOISE, yy + NOISE
    determinant = xx * yy - xy * xy
    for _ in range(ITERATIONS):
        difference = a - sample(b, motion)
        xt, yt = window_mean(torch.cat((gradient_x * difference, gradient_y * difference), 1)).unbind(1)
        step = torch.stack((yy * xt - xy * yt, xx * yt - xy * xt), 1) / determinant[:, None]
        motion = window_mean(motion + step.clamp(-LARGEST_STEP, LARGEST_STEP), 3)
    return motion


def _gradient(picture: Tensor) -> tuple[Tensor, Tensor]:
    wide = F.pad(picture, (1, 1, 1, 1), mode="replicate")
    return (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) / 2, (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) / 2


def _halve(picture: Tensor) -> Tensor:
    height, width = picture.shape[-2:]
    return F.avg_pool2d(F.pad(picture, (0, width % 2, 0, height % 2), mode="replicate"), 2)
