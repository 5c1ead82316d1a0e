"""Nonlinear Activation Free Network (NAFNet), with local pooling (TLC).

Simple Baselines for Image Restoration
L. Chen, X. Chu, X. Zhang, J. Sun; ECCV 2022, arXiv 2204.04676. Weights: github.com/megvii-research/NAFNet (code MIT)

Improving Image Restoration by Revisiting Global Information Aggregation
X. Chu, L. Chen, C. Chen, X. Lu; ECCV 2022, arXiv 2112.04491

NAFNet is as simple as a network can be that restores a picture well: U-shaped, with one skip per level, and blocks
without activation functions. Its only nonlinearities are the product of two halves of the channels, and a layer norm
over the channels of each pixel, which keeps the products bounded. Each channel is also scaled by a linear map of all
channels' means over the picture. In training that is the mean over a crop of 256 pixels, but a whole frame shows much
that a crop does not. So (the second paper) the means are taken over a window around each pixel, 1.5 times as large as a
crop; this needs no weights, and changes nothing on frames up to the window's size.

Parts, in the order of use:

- `NAFNet`            the U
- `Block`             layer norm, gate, attention, gate (Sec. 4)
- `gate`              SimpleGate, Sec. 4
- `ChannelAttention`  Simplified Channel Attention, Sec. 4, over the frame or over windows
- `mean_over_windows`, `mean_over_sparse_windows`, `spread`   its windows: exact, approximate, and back to every pixel

Where this differs from the paper, 1 to 3 because the published weights do:

1. There are 1, 1, 1 and 28 blocks on the way down, 1 at the bottom and 1 per level on the way up.
2. On the way up, a 1x1 convolution without bias doubles the channels, a pixel shuffle quarters them; the skip is added.
3. Frames are padded with zeros to multiples of 16, and the zeros count in all means.
4. The 1x1 convolution of the attention comes before border values are repeated, because only 337x897 of the windows of
   384x384 in a 720x1280 frame differ. The result is the same.
5. On an axis with a single position, the mean of a window is that position; the published `tlc="fast"` divides by 0.
"""

from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.layers import ChannelNorm, Inside, Memory, Network, dtype_of, in_channels_last, show

NORM_EPSILON = 1e-6  # added to the variance in the layer norm
LEVELS = 4  # each with half the size of the one above and twice its channels
WINDOW = (3, 2)  # the window's side is 3/2 of the crop's
STEPS = (5, 4, 3, 2, 1)  # approximate windows use every n-th position, n the first of these that divides the side
CACHED = 2**19  # elements that a CPU's cache can be expected to hold


class NAFNet(Network):
    """Restore each frame by itself; its neighbours are not used, so errors may flicker.

    width: channels at full size, 32 or 64. encoder, middle, decoder: blocks of each level. tlc: what the attention
    averages over, "exact" or "fast" windows (the authors' approximation), or "off", the whole frame. train_size: side
    of the crops in training; the window's side is 1.5 times that. Divisible by 32, so that the window's side is an
    integer at all levels.

    The authors saw local means turn rare frames into mosaics of colour, but never means over the whole frame. The guard
    of `run` (restore/guard.py) finds such blocks and keeps the input there.

    Convolutions reach about 280 pixels, means farther, so tiles are never exact and whole frames are better. With the
    weights of a parity case, tiles of 512 pixels, which contain windows, were off by 2 % of the network's change to the
    frame, by 4 % where they meet; tiles of 256 or less, averaged as a whole, by 6 to 11 % everywhere.
    """

    feeding = "frame"
    multiple = 16
    padding = "zeros"
    # Against float32 on the parity cases: fp16 62 to 67 dB, bf16 41 to 49 dB; rounding only the weights to bf16 already
    # gives 42 to 51 dB. Layer norms and means accumulate in float32 in any case. Whether trained weights stay within
    # float16's range could not be tested; if they do not, the result is not finite, and `run` repeats it in float32.
    half_precision = ("fp16",)
    overlap = 128
    memory = Memory(tile=1530, frame=543)  # at width 64
    half_memory = Memory(tile=954, frame=369)
    shows: ClassVar = {
        "gates": Inside("factors of the channels in each block's attention (Sec. 4)", "channels"),
        "features": Inside("features at the end of each level, on the way down and up", "channels"),
    }

    def __init__(
        self,
        width: int = 32,
        encoder: tuple[int, ...] = (1, 1, 1, 28),
        middle: int = 1,
        decoder: tuple[int, ...] = (1, 1, 1, 1),
        tlc: Literal["exact", "fast", "off"] = "exact",
        train_size: int = 256,
    ) -> None:
        super().__init__()
        if train_size % 32:
            raise ValueError(f"train_size must be divisible by 32, not {train_size}")
        if not len(encoder) == len(decoder) == LEVELS:
            raise ValueError(f"encoder and decoder need {LEVELS} levels each, not {len(encoder)} and {len(decoder)}")
        if width <= 32:
            self.memory, self.half_memory = Memory(tile=788, frame=336), Memory(tile=821, frame=88)
        self.window = train_size * WINDOW[0] // WINDOW[1]
        self.tlc = tlc

        def blocks(count: int, level: int) -> nn.ModuleList:
            steps = max(1, STEPS[0] * (train_size >> level) // train_size) if tlc == "fast" else 0
            return nn.ModuleList(Block(width << level, self.window >> level, steps) for _ in range(count))

        channels = [width << level for level in range(LEVELS + 1)]
        up_channels = channels[::-1]
        self.intro = nn.Conv2d(3, width, 3, padding=1)
        self.encoder = nn.ModuleList(blocks(count, level) for level, count in enumerate(encoder))
        self.down = nn.ModuleList(nn.Conv2d(above, below, 2, stride=2) for above, below in pairwise(channels))
        self.middle = blocks(middle, LEVELS)
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(below, 4 * above, 1, bias=False), nn.PixelShuffle(2))
            for below, above in pairwise(up_channels)
        )
        self.decoder = nn.ModuleList(blocks(count, LEVELS - 1 - index) for index, count in enumerate(decoder))
        self.ending = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, blurry: Tensor) -> Tensor:
        """Restore frames: (B, 3, H, W) RGB in [0, 1] to the same, not clamped; H and W are multiples of 16."""
        # Sides are multiples of 16, so whether the window fits inside is the same at all levels.
        local = self.tlc != "off" and max(blurry.shape[2:]) > self.window
        x = self.intro(in_channels_last(blurry.to(dtype_of(self))))  # (B, width, H, W)

        skips: list[Tensor] = []
        for blocks, down in zip(self.encoder, self.down, strict=True):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, local)
            show(self, "features", x, f"encoder.{len(skips)}")
            skips.append(x)
            x = down(x)  # (B, 2 C, h/2, w/2)

        for block in self.middle:
            x = block(x, local)  # (B, 16 width, H/16, W/16)
        show(self, "features", x, "middle")

        for up, blocks in zip(self.up, self.decoder, strict=True):
            x = in_channels_last(up(x)) + skips.pop()  # (B, C/2, 2 h, 2 w)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, local)
            show(self, "features", x, f"decoder.{LEVELS - 1 - len(skips)}")

        restored: Tensor = blurry + self.ending(x).to(blurry.dtype)
        return restored

    @staticmethod
    def official_name(name: str) -> str:
        """Return the key in `NAFNet-*.pth`."""
        part, _, rest = name.partition(".")
        for ours, theirs in BLOCK_NAMES.items():
            rest = rest.replace(ours, theirs)
        return f"{PART_NAMES.get(part, part)}.{rest}"


PART_NAMES = {"encoder": "encoders", "down": "downs", "middle": "middle_blks", "up": "ups", "decoder": "decoders"}
BLOCK_NAMES = {
    "norm_": "norm",
    "expand_1": "conv1",
    "look_around": "conv2",
    "attention.weigh": "sca.1",
    "contract_1": "conv3",
    "expand_2": "conv4",
    "contract_2": "conv5",
}


class Block(nn.Module):
    """Process neighbouring pixels with channel attention, then each pixel by itself, each inside a skip (Sec. 4).

    beta and gamma are initially zero, so an untrained block returns its input.
    """

    def __init__(self, channels: int, window: int, steps: int) -> None:
        super().__init__()
        self.norm_1 = ChannelNorm(channels, NORM_EPSILON)
        self.expand_1 = nn.Conv2d(channels, 2 * channels, 1)
        self.look_around = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.attention = ChannelAttention(channels, window, steps)
        self.contract_1 = nn.Conv2d(channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.norm_2 = ChannelNorm(channels, NORM_EPSILON)
        self.expand_2 = nn.Conv2d(channels, 2 * channels, 1)
        self.contract_2 = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor, local: bool) -> Tensor:
        """Return (B, C, h, w) from x of that shape; local: the attention averages over windows."""
        z = gate(self.look_around(self.expand_1(self.norm_1(x))))
        x = torch.addcmul(x, self.beta, self.contract_1(self.attention(z, local)))
        z = gate(self.expand_2(self.norm_2(x)))
        return torch.addcmul(x, self.gamma, self.contract_2(z))


def gate(x: Tensor) -> Tensor:
    """Multiply the first half of the channels by the second: SimpleGate, Sec. 4."""
    first, second = x.chunk(2, 1)
    return first * second


class ChannelAttention(nn.Module):
    """Scale each channel by a linear map of all channels' means: Simplified Channel Attention, Sec. 4.

    window: side of the windows, where means are local. steps: 0 for exact windows, else the largest step of approximate
    ones, see mean_over_sparse_windows.
    """

    def __init__(self, channels: int, window: int, steps: int) -> None:
        super().__init__()
        self.window, self.steps = window, steps
        self.weigh = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, local: bool) -> Tensor:
        """Return (B, C, h, w) from x of that shape."""
        if not local:
            weights: Tensor = self.weigh(x.mean((2, 3), keepdim=True))  # (B, C, 1, 1)
            show(self, "gates", weights)
            return x * weights
        steps = (1, 1)
        if self.steps:
            means, steps = mean_over_sparse_windows(x, self.window, self.steps)
        else:
            means = mean_over_windows(x, self.window)
        weights = spread(self.weigh(means.to(x.dtype)), x.shape[2], x.shape[3], steps)  # (B, C, h, w)
        show(self, "gates", weights)
        return x * weights


def mean_over_windows(x: Tensor, window: int) -> Tensor:
    """Return the mean over each window inside x: (B, C, h - min(h, k) + 1, w - min(w, k) + 1), float32, k = window.

    x: (B, C, h, w). A window that is larger than a side spans that side.
    """
    height, width = (min(window, side) for side in x.shape[2:])
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return sums_along(sums_along(x, height, 2), width, 3) / (height * width)


def sums_along(x: Tensor, length: int, axis: int) -> Tensor:
    """Return the sums of all runs of `length` neighbours along an axis.

    x: (B, C, h, w), summed along axis 2 or 3. Sums of 2, 4, 8, ... neighbours are computed from each other, and those
    that make up `length` are added. Unlike in a cumulative sum, no term exceeds the result; on a CPU this takes a third
    of the time.
    """
    if x.is_cpu and x.numel() > CACHED:  # strip by strip, which for 720x1280 cuts the time to a third again
        across = 5 - axis
        strips = x.split(max(1, CACHED * x.shape[across] // x.numel()), across)
        if len(strips) > 1:
            return torch.cat([sums_along(strip, length, axis) for strip in strips], across)
    count = x.shape[axis] - length + 1
    total: Tensor | None = None
    done, run = 0, 1  # neighbours summed in total, and in each element of x
    while True:
        if length & run:
            part = x.narrow(axis, done, count)
            total = part if total is None else total + part
            done += run
        if done == length:
            assert total is not None
            return total
        pairs = x.shape[axis] - run
        x = x.narrow(axis, 0, pairs) + x.narrow(axis, run, pairs)
        run *= 2


def mean_over_sparse_windows(x: Tensor, window: int, most: int) -> tuple[Tensor, tuple[int, int]]:
    """Return means as mean_over_windows does, but over and at every n-th position, and n for both axes.

    x: (B, C, h, w). most: the largest n. As in the authors' approximation, a window spans at most one position less
    than the side, and no window contains the first position.
    """
    steps = tuple(min(most, next(step for step in STEPS if side % step == 0)) for side in x.shape[2:])
    x = x[:, :, :: steps[0], :: steps[1]]
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    taps = 1
    for axis, step in enumerate(steps, 2):
        side = x.shape[axis]
        if side > 1:
            length = min(side - 1, window // step)
            x = sums_along(x.narrow(axis, 1, side - 1), length, axis)
            taps *= length
    return x / taps, (steps[0], steps[1])


def spread(windows: Tensor, height: int, width: int, steps: tuple[int, int] = (1, 1)) -> Tensor:
    """Return the value of each pixel's window: (B, C, height, width).

    windows: (B, C, h, w), one for every steps[0] x steps[1] pixels. If a window's side is even, it has one pixel more
    after its pixel than before it; near the border the window is moved inside.
    """
    if steps != (1, 1):
        windows = F.interpolate(windows, scale_factor=steps, mode="nearest")
    down, right = height - windows.shape[2], width - windows.shape[3]
    return F.pad(windows, (right // 2, right - right // 2, down // 2, down - down // 2), mode="replicate")
