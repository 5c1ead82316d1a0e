"""Turtle: truncated causal history.

Learning Truncated Causal History Model for Video Restoration
A. Ghasemabadi, M. K. Janjua, M. Salameh, D. Niu; NeurIPS 2024, arXiv 2410.03936.
Weights: github.com/Ascend-Research/Turtle (code MIT)

Turtle restores one frame after the other and never looks ahead. A U-shaped network restores the frame; seven eighths of
it see that frame alone. At five places it also uses what it kept of the last frames: keys and values of the same place.
In `turtle`, histories are first aligned to the current frame: each of its tokens is made anew from the kept tokens that
resemble it or are near it. A channel attention then draws from all of them. What is kept comes from before the
attention, so nothing is passed on for ever: frame t depends on frames t - 14 to t, and on no others.

Parts, in the order of use:

- `Turtle`               the U, and the five histories (Fig. 2)
- `Block`                norm, attention, norm, feed-forward
- `LocalFilter`, `PointwiseGrowth`   attention and feed-forward of the encoder's first two levels
- `GatedFeedForward`     the feed-forward of all others
- `ChannelAttention`     attention between channels, over one frame or several: the Frame History Router
- `LatentHistory`        it with the last frames' keys and values
- `CausalHistory`        it with the last frames, aligned: the Causal History Model
- `StateAlign`           the alignment: tokens, and which of them may be used
- `align_rows`, `near_tokens`, `weighted_rows`   its steps

Where this differs from the paper, 1 to 7 because the published weights do:

1. Level 3 of the encoder has channel attention; the paper's encoder has none.
2. The deepest level keeps keys and values without alignment.
3. A token may use the five tokens that resemble it most and those near it, and doubles the score of those that are
   both; in the paper, the five alone.
4. Tokens for comparing are windows of the picture. Tokens of values are grids of pixels over the whole map: of ny x nx
   tokens, (i, j) holds the pixels (a ny + i, b nx + j). So the result depends on the frame's size, and tiles near the
   size of the training's crops are better than whole frames.
5. The full resolution keeps two frames, the others three.
6. `alignment="none"` leaves the alignment out. The released code for BSD's weights computes it and then overwrites the
   result, so its query and key weights have no effect. "similarity" is the same without overwriting.
7. Frames are padded with zeros to multiples of 32, and the zeros take part in everything.
8. The reference excludes scores that are exactly 0, and so divides by 0 where a window is black; here masks exclude.
9. Only allowed tokens are added up, and linear steps in a row are one: `project_out` with `kv`, the attention with its
   `project_out`, a 1x1 convolution with the depthwise one that makes tokens. The result is the same.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.layers import (
    ChannelNorm,
    FewChannelsConv2d,
    Inside,
    Memory,
    Network,
    dtype_of,
    in_channels_last,
    show,
)

NORM_EPSILON = 1e-5  # added to the variance in the norms
LEAST_LENGTH = 1e-12  # keys and queries are divided by at least this
HEADS = (1, 2, 4, 8)  # at full, half, a quarter and an eighth of the size
KEPT_LATENT = 3  # frames, the current one among them
KEPT = (3, 3, 2)  # in the decoder, from the deepest level to full size
WINDOWS = (4, 8, 16)  # sides of tokens there; at every level a token is 16 pixels of the frame
BEST = 5  # tokens that resemble a token most
NEAR = 4  # rows and columns together, at most, between a token and those near it
ROW_SCORES = 2**22  # scores that are computed at once; all of a 720p frame would be 3680^2
MULTIPLE = 32  # of height and width
CPU_STRIP, GPU_STRIP = 2**21, 2**27  # numbers; see in_strips
FOLDED = 16  # see pointwise

Alignment = Literal["learned", "none", "similarity"]


class KeyValue(NamedTuple):
    """Of a frame, for channel attention: keys and values (B, pixels, C), and the keys' lengths (B, C) float32."""

    key: Tensor
    value: Tensor
    lengths: Tensor


class Tokens(NamedTuple):
    """Of a frame, for alignment: tokens (B heads, tokens, numbers) of keys, float32 and 1 long, and of values."""

    key: Tensor
    value: Tensor


History = list[KeyValue] | list[Tokens]  # oldest first
State = tuple[History, ...]  # of the latent's first and last block and the decoder's levels, from the deepest


class Turtle(Network):
    """Restore a frame from itself and what was kept of the last frames.

    channels: at full size. encoder_blocks: of three levels, from full size. middle_blocks: at an eighth of the size,
    the first and the last with a history. decoder_blocks: of three levels, from the deepest; the last of each has a
    history. alignment: of the decoder's histories, see the header.

    Tiles are no parts of the whole frame's result: channel attention sums over a tile, and with alignment, tokens are
    grids over the tile. The authors measure in tiles of 320 pixels.
    """

    feeding = "causal"
    earlier = 2 * KEPT_LATENT + sum(KEPT)
    multiple = MULTIPLE
    tile_multiple = MULTIPLE
    padding = "zeros"
    # With the weights of parity cases, against float32: fp16 62 to 65 dB, bf16 44 to 50 dB.
    half_precision = ("fp16",)
    float32_parts = ("ending",)
    overlap = 64
    # Kept of earlier frames are 378 numbers per pixel of each tile; without alignment 640.
    memory = Memory(tile=6500, frame=3500)
    half_memory = Memory(tile=3300, frame=1900)
    whole_pixels = 2**31  # without alignment, as long as memory allows: no tile is a part of the whole frame's result
    shows: ClassVar = {
        "features": Inside("features at the end of each level, on the way down and up", "channels"),
        "aligned": Inside("the oldest and the newest frame of a history, aligned to the current one", "channels"),
        "history": Inside("what attention over the history returns", "channels"),
    }

    def __init__(
        self,
        channels: int = 64,
        encoder_blocks: tuple[int, ...] = (2, 6, 10),
        middle_blocks: int = 11,
        decoder_blocks: tuple[int, ...] = (10, 6, 2),
        refinement_blocks: int = 2,
        alignment: Alignment = "learned",
    ) -> None:
        super().__init__()
        if not len(encoder_blocks) == len(decoder_blocks) == 3:
            raise ValueError(f"encoder and decoder need 3 levels, not {len(encoder_blocks)} and {len(decoder_blocks)}")
        if middle_blocks < 2:
            raise ValueError(f"middle_blocks must be at least 2, a history at each end, not {middle_blocks}")
        if channels % 2:
            raise ValueError(f"channels must be even, not {channels}")
        widths = [channels << level for level in range(4)]

        def local(width: int) -> Block:
            return Block(width, LocalFilter(width), PointwiseGrowth(width))

        def attentive(level: int) -> Block:
            width = widths[level]
            return Block(width, ChannelAttention(width, HEADS[level]), GatedFeedForward(width))

        def latent(index: int) -> Block:
            if index not in (0, middle_blocks - 1):
                return attentive(3)
            return Block(widths[3], LatentHistory(widths[3], HEADS[3]), GatedFeedForward(widths[3]))

        def decoding(count: int, level: int) -> nn.ModuleList:
            history = CausalHistory(widths[level], HEADS[level], WINDOWS[2 - level], KEPT[2 - level], alignment)
            last = Block(widths[level], history, GatedFeedForward(widths[level]))
            return nn.ModuleList([*(attentive(level) for _ in range(count - 1)), last])

        self.input_projection = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.encoder = nn.ModuleList(
            nn.ModuleList(local(widths[level]) if level < 2 else attentive(level) for _ in range(count))
            for level, count in enumerate(encoder_blocks)
        )
        self.down = nn.ModuleList(nn.Conv2d(width, width // 2, 3, padding=1, bias=False) for width in widths[:3])
        self.latent = nn.ModuleList(latent(index) for index in range(middle_blocks))
        upper = widths[:3][::-1]
        self.up = nn.ModuleList(nn.Conv2d(2 * width, 4 * width, 3, padding=1, bias=False) for width in upper)
        self.reduce = nn.ModuleList(nn.Conv2d(2 * width, width, 1, bias=False) for width in upper)
        self.decoder = nn.ModuleList(decoding(count, 2 - index) for index, count in enumerate(decoder_blocks))
        self.refinement = nn.ModuleList(
            Block(channels, LocalFilter(channels), GatedFeedForward(channels)) for _ in range(refinement_blocks)
        )
        self.ending = FewChannelsConv2d(channels, 3, 3, padding=1)
        if alignment == "none":
            self.show_all_but("aligned")
            self.memory, self.half_memory = Memory(tile=4400, frame=3200), Memory(tile=2300, frame=1700)
        else:
            self.best_tile = 320

    def forward(self, frame: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the restored frame (B, 3, H, W), not clamped, and the state for the next frame.

        frame: RGB in [0, 1], float32, any size. state: of the frame before, of the same size; None at a scene's start.
        """
        height, width = frame.shape[2:]
        padded = F.pad(frame, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        histories = iter(([],) * 5 if state is None else state)
        kept: list[History] = []
        level: Any
        block: Any
        up: Any
        reduce: Any
        x = self.input_projection(in_channels_last(padded.to(dtype_of(self))))  # (B, C, H, W)

        skips = []
        for level, down in zip(self.encoder, self.down, strict=True):
            for block in level:
                x = block(x)
            show(level, "features", x)
            skips.append(x)
            x = in_channels_last(F.pixel_unshuffle(down(x), 2))  # (B, 2C, H/2, W/2), ..., (B, 8C, H/8, W/8)

        for index, block in enumerate(self.latent):
            if index in (0, len(self.latent) - 1):
                x, history = block.with_history(x, next(histories))
                kept.append(history)
            else:
                x = block(x)
        show(self.latent, "features", x)

        for level, up, reduce in zip(self.decoder, self.up, self.reduce, strict=True):
            raised = in_channels_last(F.pixel_shuffle(up(x), 2))  # (B, 4C, H/4, W/4), ..., (B, C, H, W)
            x = pointwise(torch.cat((raised, skips.pop()), 1), reduce)
            for block in level[:-1]:
                x = block(x)
            x, history = level[-1].with_history(x, next(histories))
            kept.append(history)
            show(level, "features", x)

        for block in self.refinement:
            x = block(x)
        show(self.refinement, "features", x)
        restored = padded + self.ending(x.to(self.ending.weight.dtype))
        return restored[..., :height, :width], tuple(kept)

    @staticmethod
    def official_name(name: str) -> str:
        """Return the key of this network's tensor `name` in its authors' checkpoints."""
        part, _, rest = name.partition(".")
        if part in ("encoder", "decoder"):
            first, _, rest = rest.partition(".")
            number = int(first) + 1 if part == "encoder" else 3 - int(first)
            part = f"{part}_level{number}"
        elif part in ("down", "up", "reduce"):
            index = int(rest[0])
            names = {"down": f"down{index + 1}_{index + 2}", "up": f"up{4 - index}_{3 - index}"}
            return f"{names[part]}.body.0.weight" if part in names else f"reduce_chan_level{3 - index}.weight"
        elif part not in ("latent", "refinement"):
            return name
        for ours, theirs in (("norm1.", "norm1.body."), ("norm2.", "norm2.body."), (".align.", ".spatial_aligner.")):
            rest = rest.replace(ours, theirs)
        return f"{part}.transformer_blocks.{rest.replace('.router.', '.ChanAttn.')}"


class Block(nn.Module):
    """Add an attention of the normed features, and then a feed-forward of the normed sum."""

    def __init__(self, channels: int, attention: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(channels, NORM_EPSILON), ChannelNorm(channels, NORM_EPSILON)
        self.attn: Any = attention
        self.ffn: Any = feed_forward

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) from x of that shape."""
        if isinstance(self.attn, LocalFilter):
            return self._feed_forward(in_strips(lambda part: part + self.attn(self.norm1(part)), x, self.attn.widest))
        return self._feed_forward(x + self.attn(self.norm1(x)))

    def with_history(self, x: Tensor, history: History) -> tuple[Tensor, History]:
        """Return the same from x and the last frames, and what the next frame needs of them."""
        attended, kept = self.attn(self.norm1(x), history)
        show(self, "history", attended)
        return self._feed_forward(x + attended), kept

    def _feed_forward(self, x: Tensor) -> Tensor:
        return in_strips(lambda part: part + self.ffn(self.norm2(part)), x, self.ffn.widest)


def depthwise(channels: int, bias: bool = False) -> nn.Conv2d:
    """Return a 3x3 convolution of each channel by itself."""
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=bias)


class LocalFilter(nn.Module):
    """A small convolutional network in the place of attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widest = 2 * channels
        self.conv1 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv2 = depthwise(2 * channels, bias=True)
        self.conv3 = nn.Conv2d(2 * channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) from x of that shape."""
        return self.beta * pointwise(F.gelu(self.conv2(pointwise(x, self.conv1))), self.conv3)


class PointwiseGrowth(nn.Module):
    """A feed-forward of each pixel by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widest = 2 * channels
        self.conv4 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv5 = nn.Conv2d(2 * channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) from x of that shape."""
        return self.gamma * pointwise(F.gelu(pointwise(x, self.conv4)), self.conv5)


class GatedFeedForward(nn.Module):
    """A feed-forward in which half of the channels gate the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widest = 5 * channels
        self.project_in = nn.Conv2d(channels, 5 * channels, 1, bias=False)
        self.dwconv = depthwise(5 * channels)
        self.project_out = nn.Conv2d(5 * channels // 2, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) from x of that shape."""
        first, second = self.dwconv(pointwise(x, self.project_in)).chunk(2, 1)
        return pointwise(F.gelu(first) * second, self.project_out)


class ChannelAttention(nn.Module):
    """Attention between channels, in which every pixel is a coordinate; over the frame and, if given, others.

    All heads have as many channels. Scores are cosines times a temperature.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_dwconv = depthwise(3 * channels)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor, others: Sequence[KeyValue] = ()) -> Tensor:
        """Return (B, C, h, w) from x of that shape, and what to draw from beside it."""
        return self.draw(x, others)[0]

    def draw(self, x: Tensor, others: Sequence[KeyValue], keep: bool = False) -> tuple[Tensor, KeyValue]:
        """Return the same, and x's own keys and values; without `keep`, the keys are missing."""
        channels, width = x.shape[1], x.shape[3]
        sums: list[Tensor] = []  # over the pixels of all strips so far

        def take(mixed: Tensor, rows: slice) -> Tensor:
            query, key, _ = pixels_of(mixed).chunk(3, 2)
            pixels = slice(rows.start * width, rows.stop * width)
            keys = [*(other.key[:, pixels] for other in others), key]
            found = [squares(query), squares(key), *(self._products(query, each) for each in keys)]
            sums[:] = [before + now for before, now in zip(sums, found, strict=True)] if sums else found
            return mixed[:, channels:] if keep else mixed[:, 2 * channels :]

        kept = in_strips(lambda part: self.qkv_dwconv(pointwise(part, self.qkv)), x, 3 * channels, take)
        kept = in_channels_last(kept) if keep else kept  # not a part of a tensor that has the queries, too
        lengths, own_lengths = map(roots, sums[:2])
        own = KeyValue(pixels_of(kept[:, :-channels]), pixels_of(kept[:, -channels:]), own_lengths)
        frames = [*others, own]
        drawn: Tensor | None = None
        for frame, matrix in zip(frames, self._matrices(sums[2:], lengths, frames), strict=True):
            matrix = matrix.to(frame.value.dtype)
            drawn = frame.value @ matrix if drawn is None else torch.baddbmm(drawn, frame.value, matrix)
        assert drawn is not None, "a frame draws from itself"
        return drawn.view(len(x), *x.shape[2:], channels).permute(0, 3, 1, 2), own

    def _products(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the products of queries and keys, (B, pixels, C), over the pixels: (B, heads, d, d) float32.

        In half precision, the sums would exceed its range.
        """
        heads = (len(self.temperature), -1)
        query, key = (x.float().unflatten(2, heads).transpose(1, 2) for x in (query, key))  # (B, heads, pixels, d)
        with torch.autocast(query.device.type, enabled=False):
            return query.transpose(2, 3) @ key

    def _matrices(self, products: Sequence[Tensor], lengths: Tensor, frames: Sequence[KeyValue]) -> list[Tensor]:
        """Return for each frame what its values are multiplied with: (B, C, C) float32.

        products: see _products. lengths: of the queries, (B, C). project_out is part of the matrices.
        """
        heads = (len(self.temperature), -1)
        ours = lengths.unflatten(1, heads)[..., None]
        scores = [
            product / (ours * frame.lengths.unflatten(1, heads)[:, :, None])
            for product, frame in zip(products, frames, strict=True)
        ]
        weights = (torch.cat(scores, 3) * self.temperature.float()).softmax(3)  # (B, heads, d, frames d)
        project = self.project_out.weight.float().flatten(1).unflatten(1, heads).transpose(0, 1)  # (heads, C, d)
        with exactly_float32(weights):
            return [(project @ part).transpose(2, 3).flatten(1, 2) for part in weights.chunk(len(frames), 3)]


class LatentHistory(ChannelAttention):
    """Channel attention over the frame and the last ones, as they are."""

    def forward(self, x: Tensor, history: list[KeyValue]) -> tuple[Tensor, list[KeyValue]]:  # type: ignore[override]
        """Return (B, C, h, w) from x of that shape, and the history for the next frame."""
        attended, own = self.draw(x, history, keep=True)
        return attended, [*history, own][-KEPT_LATENT:]


class CausalHistory(nn.Module):
    """Channel attention over the frame and the last ones, which are first aligned to it.

    window: side of a token. kept: frames in the history, the current one among them.
    """

    def __init__(self, channels: int, heads: int, window: int, kept: int, alignment: Alignment) -> None:
        super().__init__()
        self.kept, self.is_aligned = kept, alignment != "none"
        self.align = StateAlign(channels, 1 if alignment == "learned" else heads, window, alignment == "learned")
        self.router = ChannelAttention(channels, heads)
        self.kv = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.kv_dwconv = depthwise(2 * channels)

    def forward(self, x: Tensor, history: Any) -> tuple[Tensor, History]:
        """Return (B, C, h, w) from x of that shape, and the history for the next frame."""
        values = self.align.values(x)
        if not self.is_aligned:
            known = [*history, self.keys_and_values(values)]
            return self.router(x, known), known[-self.kept :]
        query, key = self.align.compare(x)
        frames = [*history, Tokens(key, self.align.tokens_of(values))]
        aligned: list[KeyValue] = []
        for index, frame in enumerate(frames):
            moved = self.align(query, frame, x.shape)
            for part, place in (("oldest", 0), ("newest", len(frames) - 1)):
                if index == place:
                    show(self, "aligned", functools.partial(self.align.project_out, moved), part)
            aligned.append(self.keys_and_values(moved))
        return self.router(x, aligned), frames[-self.kept :]

    def keys_and_values(self, aligned: Tensor) -> KeyValue:
        """Return the keys and values of an aligned frame, (B, C, h, w)."""
        both = self.kv.weight.flatten(1) @ self.align.project_out.weight.flatten(1)
        channels = aligned.shape[1]
        kept = in_strips(lambda part: self.kv_dwconv(pointwise(part, both[..., None, None])), aligned, 2 * channels)
        key, value = pixels_of(kept).chunk(2, 2)
        return KeyValue(key, value, roots(squares(key)))


class StateAlign(nn.Module):
    """Align a frame of the history to the current one: the State Align Block.

    window: side s of a token. In a map of h x w pixels there are ny x nx = h/s x w/s tokens. is_learned: windows for
    comparing have weights of their own.
    """

    def __init__(self, channels: int, heads: int, window: int, is_learned: bool) -> None:
        super().__init__()
        self.window, self.heads, self.is_learned = window, heads, is_learned
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qk = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.qk_dwconv = depthwise(2 * channels)
        self.v = nn.Conv2d(channels, channels, 1, bias=False)
        self.v_dwconv = depthwise(channels)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)
        if is_learned:
            wide = 2 * channels
            self.q2, self.k2 = (nn.Conv2d(channels, wide, 1, bias=False) for _ in "qk")
            self.q2_dwconv, self.k2_dwconv = (
                nn.Conv2d(wide, wide, window, window, padding=1, groups=wide, bias=False) for _ in "qk"
            )

    def values(self, x: Tensor) -> Tensor:
        """Return the map of values, (B, C, h, w), of x of that shape."""
        return in_strips(lambda part: self.v_dwconv(pointwise(part, self.v)), x, x.shape[1])

    def compare(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens of queries and keys of x, (B heads, tokens, numbers) float32, 1 long."""
        placed = x if self.is_learned else x + sines(x)
        mixed = in_strips(lambda part: self.qk_dwconv(pointwise(part, self.qk)), placed, 2 * x.shape[1])
        query, key = mixed.chunk(2, 1)
        if self.is_learned:
            found = self._windows(query, self.q2, self.q2_dwconv), self._windows(key, self.k2, self.k2_dwconv)
        else:
            found = self.tokens_of(query), self.tokens_of(key)
        query, key = (F.normalize(tokens.float(), dim=2, eps=LEAST_LENGTH) for tokens in found)
        return query, key

    def _windows(self, x: Tensor, wide: nn.Conv2d, window: nn.Conv2d) -> Tensor:
        """Return tokens (B, ny nx, 2 C) of windows; that of (i, j) begins at row i s - 1 and column j s - 1."""
        kernel = in_channels_last(wide.weight * window.weight)  # of (2C, C, 1, 1) and (2C, 1, s, s)
        return pixels_of(F.conv2d(x, kernel, stride=self.window, padding=1))

    def tokens_of(self, x: Tensor) -> Tensor:
        """Return the tokens (B heads, ny nx, s s C / heads) of a map (B, C, h, w), see number 4 of the header."""
        side, rows, columns = self.window, x.shape[2] // self.window, x.shape[3] // self.window
        cells = x.permute(0, 2, 3, 1).reshape(len(x), side, rows, side, columns, self.heads, -1)
        return cells.permute(0, 5, 2, 4, 1, 3, 6).reshape(len(x) * self.heads, rows * columns, -1)

    def map_of(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        """Return the map of this shape, (B, C, h, w), whose tokens these are."""
        side, rows, columns = self.window, shape[2] // self.window, shape[3] // self.window
        cells = tokens.view(shape[0], self.heads, rows, columns, side, side, -1).permute(0, 4, 2, 5, 3, 1, 6)
        return cells.reshape(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2)

    def forward(self, query: Tensor, frame: Tokens, shape: torch.Size) -> Tensor:
        """Return the map of a frame's values, of this shape, (B, C, h, w): each token is made of those it may use.

        query: see compare.
        """
        factor = self.temperature.float() * (1 if self.is_learned else 0.5)
        query = (query.unflatten(0, (-1, self.heads)) * factor).flatten(0, 1)
        columns = shape[3] // self.window
        rows = max(1, ROW_SCORES // (query.shape[0] * query.shape[1]))
        parts = [
            align_rows(part, frame, first, columns)
            for first, part in zip(range(0, query.shape[1], rows), query.split(rows, 1), strict=True)
        ]
        return self.map_of(torch.cat(parts, 1) if len(parts) > 1 else parts[0], shape)


def align_rows(query: Tensor, frame: Tokens, first: int, columns: int) -> Tensor:
    """Return value tokens for some of the queries: (B heads, rows, numbers).

    query: (B heads, rows, numbers), times temperature; its first is the token `first` of the map. columns: tokens in a
    row of the map. A token may draw from the BEST that resemble it most and from those near it.
    """
    tokens = frame.key.shape[1]
    with exactly_float32(query):
        scores = query @ frame.key.transpose(1, 2)  # (B heads, rows, tokens)
    near, is_inside = near_tokens(tokens // columns, columns, query.device)
    near, is_inside = near[first : first + query.shape[1]], is_inside[first : first + query.shape[1]]
    near = near.expand(len(query), -1, -1)
    best_scores, best = scores.topk(min(BEST, tokens), 2)
    near_scores = scores.gather(2, near)
    is_both = (near[..., None] == best[:, :, None]) & is_inside[..., None]  # (B heads, rows, near, best)
    near_scores = (near_scores * (1 + is_both.any(3))).masked_fill(~is_inside, -math.inf)
    best_scores = best_scores.masked_fill(is_both.any(2), -math.inf)  # they count among those near
    weights = torch.cat((near_scores, best_scores), 2).softmax(2)
    return weighted_rows(frame.value, torch.cat((near, best), 2), weights)


@functools.lru_cache(maxsize=8)
def near_tokens(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the tokens near each token of a map, (tokens, 41), and whether they exist; those that do not are token 0.

    Near are those at most NEAR rows and columns away, counted together.
    """
    with torch.inference_mode(False):  # kept, so that training may meet them, too
        reach = range(-NEAR, NEAR + 1)
        offsets = [(y, x) for y in reach for x in reach if abs(y) + abs(x) <= NEAR]
        y = torch.arange(rows).repeat_interleave(columns)[:, None] + torch.tensor([y for y, _ in offsets])
        x = torch.arange(columns).repeat(rows)[:, None] + torch.tensor([x for _, x in offsets])
        is_inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
        return ((y * columns + x) * is_inside).to(device), is_inside.to(device)


def weighted_rows(rows: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Return sums of rows times weights: (B, M, numbers).

    rows: (B, N, numbers). indices: (B, M, K), of rows. weights: (B, M, K), float32, 0 where a row does not count.
    """
    batch, count, numbers = rows.shape
    weights = weights.to(rows.dtype)
    if rows.device.type not in ("cpu", "cuda"):  # not every backend has an embedding_bag with weights
        return torch.stack([w[:, None] @ r[i] for r, i, w in zip(rows, indices, weights, strict=True)])[:, :, 0]
    offsets = torch.arange(0, batch * count, count, device=rows.device)[:, None, None]
    flat = (indices + offsets).flatten(0, 1), rows.reshape(-1, numbers)
    summed = F.embedding_bag(*flat, mode="sum", per_sample_weights=weights.flatten(0, 1))
    return summed.view(batch, -1, numbers)


def pixels_of(x: Tensor) -> Tensor:
    """Return a map (B, C, h, w) as (B, h w, C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def squares(x: Tensor) -> Tensor:
    """Return the sums of squares of x, (B, pixels, C), over the pixels: (B, C), float32."""
    strips = [part.float().square().sum(1) for part in x.split(max(1, strip_size(x) // x.shape[2]), 1)]
    return torch.stack(strips).sum(0) if len(strips) > 1 else strips[0]


def roots(squared: Tensor) -> Tensor:
    """Return the roots of squared lengths, at least LEAST_LENGTH; at 0 they have a gradient, 0."""
    return squared.clamp(min=LEAST_LENGTH**2).sqrt()


def pointwise(x: Tensor, layer: nn.Conv2d | Tensor) -> Tensor:
    """Return the result of a 1x1 convolution, or of one with these weights, (B, D, h, w), of x, (B, C, h, w).

    On one thread, PyTorch 2 computes such convolutions of fewer than 16 pictures without oneDNN, in twice the time. As
    pixels are independent, 16 parts of a picture can stand for 16 pictures.
    """
    convolve = functools.partial(F.conv2d, weight=layer) if isinstance(layer, Tensor) else layer
    batch, _, height, width = x.shape
    if x.device.type != "cpu" or torch.get_num_threads() > 1 or batch * height * width % FOLDED:
        return convolve(x)
    folded = x.permute(0, 2, 3, 1).reshape(FOLDED, -1, 1, x.shape[1]).permute(0, 3, 1, 2)
    result: Tensor = convolve(folded)
    return result.permute(0, 2, 3, 1).reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def in_strips(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    widest: int,
    take: Callable[[Tensor, slice], Tensor] = lambda part, rows: part,
) -> Tensor:
    """Return function(x), (B, D, h, w), computed strip by strip, which fits into caches and needs less memory.

    function: sees at most one pixel farther, and beyond the frame zeros. x: (B, C, h, w). widest: channels of its
    largest intermediate result. take: gets each strip's result and its rows, and returns what to keep of it. With
    gradients there is one strip, because they need all intermediate results.
    """
    height = x.shape[2]
    rows = max(4, strip_size(x) // (len(x) * widest * x.shape[3]) // 4 * 4)
    if rows >= height or torch.is_grad_enabled():
        return take(function(x), slice(0, height))
    whole: Tensor | None = None
    for first in range(0, height, rows):
        last, above = min(first + rows, height), min(first, 1)
        part = function(x[:, :, first - above : last + 1])[:, :, above : above + last - first]
        part = take(part, slice(first, last))
        if whole is None:
            shape = (len(x), part.shape[1], height, x.shape[3])
            whole = torch.empty(shape, dtype=part.dtype, device=x.device, memory_format=torch.channels_last)
        whole[:, :, first:last] = part
    assert whole is not None, "a map has rows"
    return whole


def strip_size(x: Tensor) -> int:
    """Return how many numbers an intermediate result of a strip should have on x's device."""
    return CPU_STRIP if x.device.type == "cpu" else GPU_STRIP


def sines(x: Tensor) -> Tensor:
    """Return sine positions (1, C, h, w) of a map (B, C, h, w): half of the channels of columns, half of rows."""
    channels, height, width = x.shape[1:]
    frequencies = 10000.0 ** (-torch.arange(0, channels // 2, 2, device=x.device) * (2 / channels))

    def waves(length: int) -> Tensor:
        angles = torch.arange(length, device=x.device)[:, None] * frequencies
        return torch.stack((angles.sin(), angles.cos()), 2).flatten(1)  # (length, C / 2)

    across = waves(width).expand(height, -1, -1)
    down = waves(height)[:, None].expand(-1, width, -1)
    return torch.cat((across, down), 2).permute(2, 0, 1)[None].to(x.dtype)


@contextlib.contextmanager
def exactly_float32(x: Tensor) -> Iterator[None]:
    """Compute matrix products of float32 in float32 while the block runs: neither in TF32 nor by autocast in half."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(x.device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
