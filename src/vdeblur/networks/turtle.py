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
- `PixelNorm`            the norm
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
4. Tokens for comparing are windows of the picture. Tokens of values are grids of pixels over the whole map: token (i, j)
   of ny x nx holds the pixels (a ny + i, b nx + j). So the result depends on the frame's size, and tiles of the size in
   training and in the authors' evaluation are better than whole frames.
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
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.layers import FewChannelsConv2d, Inside, Memory, Network, dtype_of, in_channels_last, show

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

Alignment = Literal["learned", "none", "similarity"]


class KeyValue(NamedTuple):
    """What a history keeps of a frame.

    In channel attention: key and value (B, pixels, channels), and the keys' lengths (B, channels), float32. In a
    history that is aligned: key tokens of length 1 (B heads, tokens, numbers), float32, and value tokens; no lengths.
    """

    key: Tensor
    value: Tensor
    lengths: Tensor | None = None


History = list[KeyValue]  # oldest first
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
    half_precision = ("fp16",)
    float32_parts = ("ending",)
    overlap = 64
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

    def forward(self, frame: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the restored frame (B, 3, H, W), not clamped, and the state for the next frame.

        frame: RGB in [0, 1], float32, any size. state: of the frame before, of the same size; None at a scene's start.
        """
        height, width = frame.shape[2:]
        padded = F.pad(frame, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        histories = iter(([],) * 5 if state is None else state)
        kept: list[History] = []
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
            x = reduce(torch.cat((raised, skips.pop()), 1))
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
            index, _, rest = rest.partition(".")
            number = int(index) + 1 if part == "encoder" else 3 - int(index)
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
        self.norm1, self.norm2 = PixelNorm(channels), PixelNorm(channels)
        self.attn, self.ffn = attention, feed_forward

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) from x of that shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))

    def with_history(self, x: Tensor, history: History) -> tuple[Tensor, History]:
        """Return the same from x and the last frames, and what the next frame needs of them."""
        attended, kept = self.attn(self.norm1(x), history)
        show(self, "history", attended)
        x = x + attended
        return x + self.ffn(self.norm2(x)), kept


class PixelNorm(nn.Module):
    """Normalise the channels of each pixel to mean 0 and variance 1, then scale and shift them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) from x of that shape; PyTorch computes this in float32 even in half precision."""
        normed = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, NORM_EPSILON)
        return normed.permute(0, 3, 1, 2)


def depthwise(channels: int) -> nn.Conv2d:
    """Return a 3x3 convolution of each channel by itself, without bias."""
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)


class LocalFilter(nn.Module):
    """A small convolutional network in the place of attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.conv3 = nn.Conv2d(2 * channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) from x of that shape."""
        return self.beta * self.conv3(F.gelu(self.conv2(self.conv1(x))))


class PointwiseGrowth(nn.Module):
    """A feed-forward of each pixel by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv4 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv5 = nn.Conv2d(2 * channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) from x of that shape."""
        return self.gamma * self.conv5(F.gelu(self.conv4(x)))


class GatedFeedForward(nn.Module):
    """A feed-forward in which half of the channels gate the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 5 * channels, 1, bias=False)
        self.dwconv = depthwise(5 * channels)
        self.project_out = nn.Conv2d(5 * channels // 2, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) from x of that shape."""
        first, second = self.dwconv(self.project_in(x)).chunk(2, 1)
        return self.project_out(F.gelu(first) * second)


class ChannelAttention(nn.Module):
    """Attention between channels, in which every pixel is a coordinate; over the frame and, if given, others.

    Each head has as many channels. Scores are cosines times a temperature.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_dwconv = depthwise(3 * channels)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor, others: Sequence[KeyValue] = ()) -> Tensor:
        """Return (B, C, h, w) from x of that shape, and what to draw from beside it."""
        query, own = self.split(x)
        return self.attend(query, [*others, own], x.shape)

    def split(self, x: Tensor) -> tuple[KeyValue, KeyValue]:
        """Return the queries, in the place of keys and values, and the keys and values of x, (B, C, h, w)."""
        query, key, value = pixels_of(self.qkv_dwconv(self.qkv(x))).chunk(3, 2)
        return measured(query, query), measured(key, value)

    def attend(self, query: KeyValue, frames: Sequence[KeyValue], shape: torch.Size) -> Tensor:
        """Return a map of this shape, (B, C, h, w), drawn from the values of frames."""
        heads, channels = len(self.temperature), shape[1]
        with exactly_float32(query.key):
            scores = torch.cat([cosines(query, frame, heads) for frame in frames], 3)
            weights = (scores * self.temperature.float()).softmax(3)  # (B, heads, C/heads, frames C/heads)
            # Drawing and project_out are one matrix for each frame: (B, C, C).
            project = self.project_out.weight.float().view(channels, heads, -1).transpose(0, 1)
            matrices = [
                (project @ part).transpose(2, 3).flatten(1, 2) for part in weights.chunk(len(frames), 3)
            ]
        drawn: Tensor | None = None
        for frame, matrix in zip(frames, matrices, strict=True):
            matrix = matrix.to(frame.value.dtype)
            drawn = frame.value @ matrix if drawn is None else torch.baddbmm(drawn, frame.value, matrix)
        assert drawn is not None, "a frame attends to itself"
        return drawn.view(shape[0], *shape[2:], channels).permute(0, 3, 1, 2)


class LatentHistory(ChannelAttention):
    """Channel attention over the frame and the last ones, as they are."""

    def forward(self, x: Tensor, history: History) -> tuple[Tensor, History]:  # type: ignore[override]
        """Return (B, C, h, w) from x of that shape, and the history for the next frame."""
        query, own = self.split(x)
        frames = [*history, own]
        attended = self.attend(query, frames, x.shape)
        # Copies, because keys and values are parts of one tensor with the queries.
        frames[-1] = KeyValue(own.key.contiguous(), own.value.contiguous(), own.lengths)
        return attended, frames[-KEPT_LATENT:]


class CausalHistory(nn.Module):
    """Channel attention over the frame and the last ones, which are first aligned to it.

    window: side of a token. kept: frames in the history, the current one among them.
    """

    def __init__(self, channels: int, heads: int, window: int, kept: int, alignment: Alignment) -> None:
        super().__init__()
        self.kept, self.is_aligned = kept, alignment != "none"
        self.align = StateAlign(channels, 1 if alignment == "learned" else heads, window, alignment)
        self.router = ChannelAttention(channels, heads)
        self.kv = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.kv_dwconv = depthwise(2 * channels)

    def forward(self, x: Tensor, history: History) -> tuple[Tensor, History]:
        """Return (B, C, h, w) from x of that shape, and the history for the next frame."""
        values = self.align.v_dwconv(self.align.v(x))
        if not self.is_aligned:
            frames = [*history, self.keys_and_values(values)]
            return self.router(x, frames), frames[-self.kept :]
        query, key = self.align.compare(x)
        columns = x.shape[3] // self.align.window
        frames = [*history, KeyValue(key, self.align.tokens_of(values))]
        aligned = [self.align.map_of(self.align(query, frame, columns), x.shape) for frame in frames]
        for part, frame in (("oldest", aligned[0]), ("newest", aligned[-1])):
            show(self, "aligned", lambda frame=frame: self.align.project_out(frame), part)  # type: ignore[misc]
        return self.router(x, [self.keys_and_values(frame) for frame in aligned]), frames[-self.kept :]

    def keys_and_values(self, aligned: Tensor) -> KeyValue:
        """Return the keys and values of an aligned frame, (B, C, h, w)."""
        both = (self.kv.weight.flatten(1) @ self.align.project_out.weight.flatten(1))[..., None, None]
        key, value = pixels_of(self.kv_dwconv(F.conv2d(aligned, both))).chunk(2, 2)
        return measured(key, value)


class StateAlign(nn.Module):
    """Align a frame of the history to the current one: the State Align Block.

    window: side s of a token. In a map of h x w pixels there are ny x nx = h/s x w/s tokens.
    """

    def __init__(self, channels: int, heads: int, window: int, alignment: Alignment) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qk = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.qk_dwconv = depthwise(2 * channels)
        self.v = nn.Conv2d(channels, channels, 1, bias=False)
        self.v_dwconv = depthwise(channels)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)
        self.is_learned = alignment == "learned"
        if self.is_learned:
            for name in ("q2", "k2"):
                wide = nn.Conv2d(2 * channels, 2 * channels, window, window, 1, groups=2 * channels, bias=False)
                setattr(self, name, nn.Conv2d(channels, 2 * channels, 1, bias=False))
                setattr(self, f"{name}_dwconv", wide)

    def compare(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens of queries and keys, (B heads, tokens, numbers) float32 of length 1."""
        if self.is_learned:
            maps = self.qk_dwconv(self.qk(x)).chunk(2, 1)
            wide = ((self.q2, self.q2_dwconv), (self.k2, self.k2_dwconv))
            found = [self._windows(each, *layers) for each, layers in zip(maps, wide, strict=True)]
        else:
            placed = x + sines(x)
            found = [self.tokens_of(each) for each in self.qk_dwconv(self.qk(placed)).chunk(2, 1)]
        query, key = (F.normalize(tokens.float(), dim=2, eps=LEAST_LENGTH) for tokens in found)
        return query, key

    def _windows(self, x: Tensor, wide: nn.Conv2d, window: nn.Conv2d) -> Tensor:
        """Return tokens (B, ny nx, 2 C) of windows; that of (i, j) begins at row i s - 1 and column j s - 1."""
        kernel = in_channels_last(wide.weight * window.weight)  # (2C, C, 1, 1) and (2C, 1, s, s)
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

    def forward(self, query: Tensor, frame: KeyValue, columns: int) -> Tensor:
        """Return a frame's value tokens, each made anew of those that may stand for it.

        columns: tokens in a row of the map.
        """
        factor = self.temperature.float().flatten() * (1.0 if self.is_learned else 0.5)
        query = query * factor.repeat(len(query) // len(factor))[:, None, None]
        rows = max(1, ROW_SCORES // (query.shape[0] * query.shape[1]))
        parts = [
            align_rows(part, frame, first, columns)
            for first, part in zip(range(0, query.shape[1], rows), query.split(rows, 1), strict=True)
        ]
        return torch.cat(parts, 1)


def align_rows(query: Tensor, frame: KeyValue, first: int, columns: int) -> Tensor:
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


def measured(key: Tensor, value: Tensor) -> KeyValue:
    """Return keys and values, (B, pixels, C), with the keys' lengths over the pixels.

    In float32, the scores are divided by the lengths later. In half precision, sums over the pixels would overflow, so
    the keys are made 1 long here.
    """
    lengths = torch.linalg.vector_norm(key, dim=1, dtype=torch.float32).clamp(min=LEAST_LENGTH)
    if key.dtype == torch.float32:
        return KeyValue(key, value, lengths)
    return KeyValue((key / lengths[:, None]).to(key.dtype), value, torch.ones_like(lengths))


def cosines(query: KeyValue, frame: KeyValue, heads: int) -> Tensor:
    """Return the cosines of queries and keys over the pixels: (B, heads, C / heads, C / heads), float32."""
    assert query.lengths is not None and frame.lengths is not None, "only those of alignment have none"
    ours, theirs = (x.key.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, frame))  # (B, heads, pixels, d)
    products = (ours.transpose(2, 3) @ theirs).float()
    lengths, other_lengths = (x.lengths.unflatten(1, (heads, -1)) for x in (query, frame))
    return products / (lengths[..., None] * other_lengths[:, :, None])


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
