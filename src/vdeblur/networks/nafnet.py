"""Nonlinear Activation Free Network (NAFNet), with local pooling (TLC).

Simple Baselines for Image Restoration
L. Chen, X. Chu, X. Zhang, J. Sun; ECCV 2022, arXiv 2204.04676. Weights: github.com/megvii-research/NAFNet (code MIT)

Improving Image Restoration by Revisiting Global Information Aggregation
X. Chu, L. Chen, C. Chen, X. Lu; ECCV 2022, arXiv 2112.04491

How little does it take to restore a picture? A U-shaped network with one skip a level, whose blocks have no activation
function: what bends is the product of two halves of the channels, and a layer norm over the channels of each pixel
keeps that from running away. Each channel is also scaled by what all channels are on average over the picture. In
training that is an average over a crop of 256 pixels, whereas a whole frame shows much that a crop does not. So (the
second paper) averages are taken over a window about each pixel, a little larger than a crop; there are no weights for
this, and on frames up to the window's size nothing changes.

Parts, in the order of use:

- `NAFNet`            the U, and what happens where it fails
- `Block`             layer norm, gate, attention, gate (Sec. 4)
- `ChannelNorm`       the layer norm
- `gate`              SimpleGate, Sec. 4
- `ChannelAttention`  Simplified Channel Attention, Sec. 4, over the frame or over windows
- `mean_over_windows`, `mean_over_sparse_windows`, `spread`   its windows: exact, approximate, and back to every pixel
- `shift_of_light`    by which failures are noticed

Where this differs from the paper, 1 to 3 because the published weights do:

1. The order of blocks is 1, 1, 1, 28 on the way down, 1 at the bottom and 1 a level on the way up.
2. Going up, a 1x1 convolution without bias doubles the channels, a pixel shuffle quarters them; the skip is added.
3. Frames are continued with zeros to multiples of 16, and these count in all averages.
4. The 1x1 convolution of the attention comes before border values are repeated: of 720x1280 windows of 384x384,
   337x897 differ. The result is the same.
5. Windows on an axis that has one position only have that one for their mean; `tlc="fast"` as published divides by 0.
6. A frame that local averages spoil is computed again with those of the whole frame, see `NAFNet`.
"""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.layers import Memory, Network, dtype_of, in_channels_last

NORM_EPSILON = 1e-6  # under the root of the layer norm
LEVELS = 4  # each of half the size of the one above, and twice its channels
WINDOW = (3, 2)  # side of the window, as a fraction of the crop's
STEPS = (5, 4, 3, 2, 1)  # in approximate windows every so many positions count, the first that divides the side
CACHED = 2**19  # numbers that a processor's cache may be expected to hold
# Blur spreads light over some 50 pixels and keeps its sum, so over blocks of 64 pixels the mean stays: an edge from
# black to white, blurred over 50 pixels, brings 50 / 8 / 64 = 0.1 over a block's side. More than 0.25 is no deblurring.
BLOCK_PIXELS = 64
MOST_LIGHT = 0.25


class NAFNet(Network):
    """Restore a frame by itself; it knows nothing of its neighbours, so errors may flicker.

    width: channels at full size, 32 or 64. encoder, middle, decoder: blocks of each level. tlc: what the attention
    averages over, "exact" or "fast" windows (as approximated by the authors), or "off", the whole frame. train_size:
    side of the crops in training, of which the window is 1.5 times; divisible by 32, so that it is whole on all levels.

    The authors saw local averages turn rare frames into mosaics of colour, and whole-frame averages never. So in
    evaluation a frame that comes out not finite, or whose light has moved more than blur can move it, is computed again
    without windows. What this costs is one question to the device per forward pass.

    Convolutions reach about 280 pixels, averages further, so tiles are never exact: better whole frames. With the
    weights of a parity case, tiles of 512 pixels with windows in them were off by 2 % of what the network changes, by
    4 % where they meet, and tiles of 256 or less, averaged as a whole, by 6 to 11 %, everywhere.
    """

    feeding = "frame"
    multiple = 16
    padding = "zeros"
    # On the parity cases fp16 is 62 to 67 dB from float32, bf16 41 to 49 dB, of which rounding the weights alone leaves
    # 42 to 51. Layer norms and averages sum up in float32 in any case. Whether trained weights keep within float16's
    # range could not be tried; where they do not, it does not pass unnoticed, since what comes out is not finite.
    half_precision = ("fp16",)
    overlap = 128
    memory = Memory(tile=1530, frame=543)  # at width 64
    half_memory = Memory(tile=954, frame=369)

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
            raise ValueError(f"there are {LEVELS} levels, not {len(encoder)} and {len(decoder)}")
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
        """Restore frames: (B, 3, H, W) RGB in [0, 1] to the same, not clamped; H and W multiples of 16."""
        # Sides are multiples of 16, so at every level the window fits in or does not alike.
        local = self.tlc != "off" and max(blurry.shape[2:]) > self.window
        restored = self.restore(blurry, local)
        if local and not self.training:
            failed = ~(shift_of_light(blurry, restored) <= MOST_LIGHT)  # not a number, too
            if failed.any():
                restored[failed] = self.restore(blurry[failed], local=False)
        return restored

    def restore(self, blurry: Tensor, local: bool) -> Tensor:
        """Give what forward gives, with averages over windows or over the whole frame, whatever comes of it."""
        x = self.intro(in_channels_last(blurry.to(dtype_of(self))))  # (B, width, H, W)

        skips = []
        for blocks, down in zip(self.encoder, self.down, strict=True):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, local)
            skips.append(x)
            x = down(x)  # (B, 2 C, h/2, w/2)

        for block in self.middle:
            x = block(x, local)  # (B, 16 width, H/16, W/16)

        for up, blocks in zip(self.up, self.decoder, strict=True):
            x = in_channels_last(up(x)) + skips.pop()  # (B, C/2, 2 h, 2 w)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, local)

        restored: Tensor = blurry + self.ending(x).to(blurry.dtype)
        return restored

    @staticmethod
    def official_name(name: str) -> str:
        """Give the name in `NAFNet-*.pth`."""
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
    """Look around and at the whole, then at each pixel by itself; both are added (Sec. 4).

    beta and gamma begin with zeros, so an untrained block passes on what it gets.
    """

    def __init__(self, channels: int, window: int, steps: int) -> None:
        super().__init__()
        self.norm_1 = ChannelNorm(channels)
        self.expand_1 = nn.Conv2d(channels, 2 * channels, 1)
        self.look_around = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.attention = ChannelAttention(channels, window, steps)
        self.contract_1 = nn.Conv2d(channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.norm_2 = ChannelNorm(channels)
        self.expand_2 = nn.Conv2d(channels, 2 * channels, 1)
        self.contract_2 = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor, local: bool) -> Tensor:
        """Give (B, C, h, w) from x of that shape; local: the attention averages over windows."""
        z = gate(self.look_around(self.expand_1(self.norm_1(x))))
        x = torch.addcmul(x, self.beta, self.contract_1(self.attention(z, local)))
        z = gate(self.expand_2(self.norm_2(x)))
        return torch.addcmul(x, self.gamma, self.contract_2(z))


class ChannelNorm(nn.Module):
    """Bring the channels of each pixel to mean 0 and variance 1, then scale and shift them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Give (B, C, h, w) from x of that shape; in half precision, too, PyTorch computes this in float32."""
        normed = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, NORM_EPSILON)
        return normed.permute(0, 3, 1, 2)


def gate(x: Tensor) -> Tensor:
    """Multiply the first half of the channels with the second: SimpleGate, Sec. 4."""
    first, second = x.chunk(2, 1)
    return first * second


class ChannelAttention(nn.Module):
    """Scale each channel by a linear map of all channels' means: Simplified Channel Attention, Sec. 4.

    window: side of what is averaged over where that is local. steps: 0 for exact windows, else the most that
    approximate ones leave out, see mean_over_sparse_windows.
    """

    def __init__(self, channels: int, window: int, steps: int) -> None:
        super().__init__()
        self.window, self.steps = window, steps
        self.weigh = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, local: bool) -> Tensor:
        """Give (B, C, h, w) from x of that shape."""
        if not local:
            weights: Tensor = self.weigh(x.mean((2, 3), keepdim=True))  # (B, C, 1, 1)
            return x * weights
        steps = (1, 1)
        if self.steps:
            means, steps = mean_over_sparse_windows(x, self.window, self.steps)
        else:
            means = mean_over_windows(x, self.window)
        weights = spread(self.weigh(means.to(x.dtype)), x.shape[2], x.shape[3], steps)  # (B, C, h, w)
        return x * weights


def mean_over_windows(x: Tensor, window: int) -> Tensor:
    """Give the mean over each square window inside x: (B, C, h - k + 1, w - k + 1) float32, k a side's window.

    x: (B, C, h, w). A window that is larger than a side spans that side.
    """
    height, width = (min(window, side) for side in x.shape[2:])
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return sums_along(sums_along(x, height, 2), width, 3) / (height * width)


def sums_along(x: Tensor, length: int, axis: int) -> Tensor:
    """Give the sums of `length` neighbours along an axis, as many as there are.

    x: (B, C, h, w), summed along axis 2 or 3. Sums of 2, 4, 8, ... neighbours are made one from the other, and those
    that make up `length` are put together. No term exceeds the result, as a cumulative sum's do, and on a CPU it takes
    a third of the time.
    """
    if x.is_cpu and x.numel() > CACHED:  # strip by strip, which for 720x1280 takes a third of the time again
        across = 5 - axis
        strips = x.split(max(1, CACHED * x.shape[across] // x.numel()), across)
        if len(strips) > 1:
            return torch.cat([sums_along(strip, length, axis) for strip in strips], across)
    count = x.shape[axis] - length + 1
    total: Tensor | None = None
    done, run = 0, 1  # neighbours in total, and in each element of x
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
    """Give means as mean_over_windows does, of every second, third, ... position, and how many lie between them.

    x: (B, C, h, w). most: the largest step. A window has one position less than the side at most, and the first
    position is in none of them.
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
    """Give each pixel what belongs to its window: (B, C, height, width).

    windows: (B, C, h, w), for every so many pixels as steps says. The window of a pixel has one more behind it than
    before it where its side is even; near the border it is moved inside.
    """
    if steps != (1, 1):
        windows = F.interpolate(windows, scale_factor=steps, mode="nearest")
    down, right = height - windows.shape[2], width - windows.shape[3]
    return F.pad(windows, (right // 2, right - right // 2, down // 2, down - down // 2), mode="replicate")


def shift_of_light(blurry: Tensor, restored: Tensor) -> Tensor:
    """Give by how much the mean of a channel over a block of about 64x64 pixels has changed at most: (B).

    blurry, restored: (B, 3, H, W). A side that is no multiple of 64 has larger blocks, all of its pixels count.
    """
    rows, columns = (max(1, side // BLOCK_PIXELS) for side in blurry.shape[2:])
    return F.adaptive_avg_pool2d(restored - blurry, (rows, columns)).abs().amax((1, 2, 3))
