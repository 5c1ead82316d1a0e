"""Two measures beside PSNR: how steady a restored video is, and how sharp a frame is without a reference.

Warping error: W.-S. Lai, J.-B. Huang, O. Wang, E. Shechtman, E. Yumer, M.-H. Yang, "Learning Blind Video Temporal
Consistency", ECCV 2018, Sec. 4.2; its masks: M. Ruder, A. Dosovitskiy, T. Brox, "Artistic Style Transfer for Videos",
GCPR 2016, Sec. 4.2. Lai et al. estimate motion with FlowNet 2; this file uses Lucas-Kanade (networks/lucas_kanade.py),
which needs no weights. So its numbers can be compared with each other, not with the paper's.

Sharpness: F. Crété, T. Dolmière, P. Ladret, M. Nicolas, "The blur effect: perception and estimation with a new
no-reference perceptual blur metric", Human Vision and Electronic Imaging 2007. On the 30 real pairs of REDS at 320x180
every sharp frame scored higher (0.734 to 0.760) than any blurry one (0.525 to 0.727), across scenes. Variance of the
Laplacian and energy of gradients also separate the two of a pair, but depend on the scene more than on blur.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.networks import lucas_kanade

LUMA = (0.299, 0.587, 0.114)  # BT.601
REBLUR = 9  # samples of the averaging filter, as in the paper


@torch.no_grad()
def warping_error(frames: Tensor, reference: Tensor) -> float:
    """Return the mean squared difference between each frame and the next one moved onto it.

    frames, reference: (T, 3, H, W) RGB in [0, 1]. reference: the frames whose motion is used, the sharp ones if there
    are any, so that all models are judged by the same motion. The mean is over the channels and all pixels visible in
    both frames, then over the T - 1 pairs. 0 is steady; noise of variance v adds up to 2 v, less where moving a frame
    averages it. NaN if there is no pair.
    """
    if len(frames) < 2:
        return math.nan
    luma = _luma(reference.float())
    errors = []
    for t in range(len(frames) - 1):
        forward = lucas_kanade.flow(luma[t : t + 1], luma[t + 1 : t + 2])
        backward = lucas_kanade.flow(luma[t + 1 : t + 2], luma[t : t + 1])
        seen = is_seen(forward, backward)
        moved = lucas_kanade.sample(frames[t + 1 : t + 2].float(), forward)
        squared = (frames[t : t + 1].float() - moved).square().mean(1, keepdim=True)
        errors.append(float((squared * seen).sum(dtype=torch.float64) / seen.sum().clamp(min=1)))
    return sum(errors) / len(errors)


def is_seen(forward: Tensor, backward: Tensor) -> Tensor:
    """Return which pixels of a frame are visible in the next one: 0 or 1, float (B, 1, H, W).

    forward, backward: (B, 2, H, W) pixels, from the frame to the next one and back. Left out are pixels that leave the
    picture, that do not return to their place (covered in the next frame), and edges of motion, where flow is
    unreliable; Ruder et al., equations (3) to (5).
    """
    height, width = forward.shape[-2:]
    back = lucas_kanade.sample(backward, forward)
    round_trip = (forward + back).square().sum(1, keepdim=True)
    lengths = forward.square().sum(1, keepdim=True) + back.square().sum(1, keepdim=True)
    covered = round_trip > 0.01 * lengths + 0.5

    down = F.pad(forward.diff(dim=2), (0, 0, 0, 1)).square()
    right = F.pad(forward.diff(dim=3), (0, 1, 0, 0)).square()
    edge = (down + right).sum(1, keepdim=True) > 0.01 * forward.square().sum(1, keepdim=True) + 0.002

    x = torch.arange(width, device=forward.device) + forward[:, :1]
    y = torch.arange(height, device=forward.device)[:, None] + forward[:, 1:]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return (inside & ~covered & ~edge).float()


@torch.no_grad()
def sharpness(frames: Tensor) -> Tensor:
    """Return the sharpness of frames without a reference: (B,) float64, from 0 (blurred completely) to 1.

    frames: (B, 3, H, W) RGB in [0, 1]. It is the share of the differences between neighbouring pixels that an average
    over nine pixels removes: nearly all in a sharp picture, little in a blurred one. Measured on luma along columns and
    along rows; the smaller value counts, as motion blurs in one direction. Noise counts as sharp. A direction without
    any difference is ignored; a picture of one colour gets 0.
    """
    luma = _luma(frames.double())
    along = []
    for axis in (2, 3):
        lines = luma if axis == 3 else luma.transpose(2, 3)
        averaged = F.avg_pool2d(F.pad(lines, (REBLUR // 2, REBLUR // 2, 0, 0), mode="replicate"), (1, REBLUR), 1)
        before, after = lines.diff(dim=3).abs(), averaged.diff(dim=3).abs()
        lost = (before - after).clamp(min=0).sum((1, 2, 3))
        along.append(lost / before.sum((1, 2, 3)))  # 0/0 is NaN
    least = torch.fmin(*along)  # ignores NaN
    return torch.where(least.isnan(), 0, least)


def _luma(frames: Tensor) -> Tensor:
    return torch.einsum("bchw,c->bhw", frames, frames.new_tensor(LUMA))[:, None]
