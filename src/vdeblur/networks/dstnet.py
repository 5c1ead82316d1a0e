"""Deep Discriminative Spatial and Temporal Network for Efficient Video Deblurring (DSTNet).

Pan, Xu, Dong, Ge, Tang, CVPR 2023. Weights: github.com/xuboming8/DSTNet (code MIT).

Haar wavelets split the frames, so that the costly work runs at a half and a quarter of their size. Filters predicted
from each frame filter and gate its channels (channel-wise gated dynamic network), with temporal convolutions over the
neighbouring frames. Then features propagate through the clip, first backward, then forward; a filter predicted for
every pixel fuses each frame's features with the propagated ones. There is no optical flow.

Parts, in the order of use: the wavelets (Sec. 3.3), GatedDynamicBlock (CWGDN, Sec. 3.1), Propagation with PixelFilter
(Sec. 3.2), reconstruction.

Where this differs from the paper, because the published weights do:
1. Two levels of wavelets, where the paper has one: gating at a quarter of the size, propagation at half of it.
2. Five gated blocks, each with layer norm and a residual connection.
3. Propagation starts from zeros, with which the first frame is fused; the paper starts from the first features.
4. The high bands of both levels go through 1x1 convolutions, separate ones for each band.
5. The forward pass sees only the results of the backward pass.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.layers import (
    FewChannelsConv2d,
    Inside,
    Memory,
    Network,
    dtype_of,
    in_channels_last,
    show,
    shown_as,
)

SLOPE = 0.1  # of the leaky ReLUs
BLOCKS = 5  # gated dynamic blocks
EXPANSION = 4  # channels inside these blocks, per channel outside
TAPS = 9  # of a 3x3 kernel
REDUCTION = 8  # kernels are predicted at 1/8 of the size of the features that they filter

Features = tuple[Tensor, Tensor | None]
"""A low band (B, C, H/4, W/4) and processed high bands (B, 3 C, H/4, W/4); None without wavelets."""
FusionKind = Literal["filter", "sum", "blend"]


class DSTNet(Network):
    """Restore a clip.

    features() runs over a clip's frames with a delay of ten frames, propagate_backward() and propagate_forward() over
    as many of its results at once as memory allows, and reconstruct() restores each frame. Gating needs whole frames;
    the rest can run in tiles, but then nothing propagates across their borders.

    Switches of the paper's ablations. gating: number of gated dynamic blocks, 0 for none. fusion: "filter"; "sum", both
    halves as they are, without gates and filter (Eq. 3 and 4); or "blend", a predicted mean of features and state
    (Eq. 11). bands: "wavelet", or "bilinear" resizing without high bands.
    """

    feeding = "bidirectional"
    multiple = 16
    smallest = 16
    half_precision = ("fp16", "bf16")  # 72 and 54 dB against float32 on the parity cases; layer norms are float32
    overlap = 64
    constant_buffers = ("haar",)
    memory = Memory(tile=485, frame=1707, frame_held=128)
    half_memory = Memory(tile=549, frame=1050, frame_held=64)
    shows: ClassVar = {
        "gates": Inside("gates of each block's channels (Sec. 3.1), and of each pass (Sec. 3.2)", "channels"),
        "rnn": Inside("the state of the backward and of the forward pass (Sec. 3.2)", "channels"),
        "features": Inside("features before the passes, and before the reconstruction", "channels"),
    }

    def __init__(
        self,
        channels: int = 64,
        width: int = 64,
        blocks: int = 15,
        gating: int = BLOCKS,
        fusion: FusionKind = "filter",
        bands: Literal["wavelet", "bilinear"] = "wavelet",
    ) -> None:
        super().__init__()
        self.bands = bands
        if gating == 0 and fusion == "sum":
            self.show_all_but("gates")
        # The published large network has 64 channels, too, but 96 in propagation.
        if width > channels:
            self.memory = Memory(tile=485, frame=1215, frame_held=240)
            self.half_memory = Memory(tile=549, frame=963, frame_held=76)
        self.register_buffer("haar", haar_weights(channels))
        self.feature_extraction = nn.Conv2d(3, channels, 3, padding=1)
        self.high_bands = nn.ModuleList(HighBands(channels) for _ in range(2 if bands == "wavelet" else 0))
        self.gating = nn.ModuleList(GatedDynamicBlock(channels) for _ in range(gating))
        self.up = nn.Conv2d(channels, width, 1) if width != channels else nn.Identity()
        self.backward_propagation = Propagation(width, blocks, fusion)
        self.forward_propagation = Propagation(width, blocks, fusion)
        self.down = nn.Conv2d(width, channels, 1) if width != channels else nn.Identity()
        self.reconstruction = FewChannelsConv2d(channels, 3, 3, padding=1)

    def forward(self, clip: Tensor) -> Tensor:
        """Restore a whole clip: (B, T, 3, H, W) RGB in [0, 1] to the same, not clamped."""
        frames = clip.unbind(1)
        backward = self.propagate_backward(list(self.features(frames)))
        propagated, _ = self.propagate_forward(backward, None)
        return torch.stack([self.reconstruct(*pair) for pair in zip(frames, propagated, strict=True)], 1)

    def features(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield each frame's features (B, C, H/2, W/2), ten frames late, from frames (B, 3, H, W), RGB in [0, 1].

        They depend on ten frames on each side: each of five blocks has two temporal convolutions of three taps.
        """
        split: Iterator[Features] = (self._split(frame) for frame in frames)
        for block in self.gating:
            split = block(split)
        for low, high in split:
            merged = enlarge(low, high)
            show(self, "features", merged, "gated")
            yield merged

    def _split(self, frame: Tensor) -> Features:
        """Return the low band of the second level (B, C, H/4, W/4) and its processed high bands (B, 3 C, H/4, W/4)."""
        low_1 = low_band(self._extract(frame))  # a mean of 2x2 cells, as bilinear resizing to half the size is, too
        return low_band(low_1), None if self.bands == "bilinear" else self.high_bands[1](high_band(low_1))

    def _extract(self, frame: Tensor) -> Tensor:
        features: Tensor = self.feature_extraction(in_channels_last(frame.to(dtype_of(self))))
        return features

    def propagate_backward(self, features: Sequence[Tensor], keep: int | None = None) -> list[Tensor]:
        """Propagate features from the last frame to the first: each (B, C, h, w) to (B, P, h, w), in frame order.

        keep: return the results of this many first frames only; the frames after them serve as look-ahead.
        """
        return run_backward(lambda frame, state: self.backward_propagation(self.up(frame), state), features, keep)

    def propagate_forward(self, backward: list[Tensor], state: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """Propagate the results of propagate_backward from the first frame to the last: each (B, P, h, w) to the same.

        state: that of the previous frame, or None at a clip's start. Returns the last state, too. Empties `backward`.
        """
        return run_forward(self.forward_propagation, backward, state)

    def reconstruct(self, frame: Tensor, propagated: Tensor) -> Tensor:
        """Restore a frame, (B, 3, H, W) float32, from its propagated features (B, P, H/2, W/2).

        This computes the high bands of the first level again: to keep them through the propagation would take three
        times the memory of everything else.
        """
        high = None if self.bands == "bilinear" else self.high_bands[0](high_band(self._extract(frame)))
        features = enlarge(self.down(propagated), high)  # (B, C, H, W)
        show(self, "features", features, "reconstruction")
        restored: Tensor = frame + self.reconstruction(features).float()
        return restored

    @staticmethod
    def official_name(name: str) -> str:
        """Return the key in `experiments/*.pth`."""
        part, *rest = name.split(".")
        match part:
            case "haar":
                return "wave.haar_weights"
            case "feature_extraction" | "reconstruction":
                return ".".join(({"f": "feat_extractor", "r": "recons"}[part[0]], *rest))
            case "high_bands":
                return f"x_wave_{int(rest[0]) + 1}_{rest[1].replace('_', '')}.{rest[2]}"
            case "gating":
                inner = ".".join(rest[1:])
                return f"transformer_scale4.{rest[0]}.0.{_renamed(inner, GATING_NAMES)}"
            case "backward_propagation" | "forward_propagation":
                return f"{part}.{_renamed('.'.join(rest), PROPAGATION_NAMES)}"
        return name  # up, down


GATING_NAMES = {
    "norm_": "norm2.body.",
    "expand": "ffn.project_in.weight",
    "contract": "ffn.project_out.weight",
    "bias": "ffn.kerner_conv_channel.bias",
    "near": "ffn.kerner_conv_channel.Block1",
    "far": "ffn.kerner_conv_channel.Block2",
    "to_kernel": "ffn.kerner_conv_channel.tokernel",
}
PROPAGATION_NAMES = {
    "fuse": "conv1",
    "gate_1": "conv2",
    "gate_2": "conv3",
    "filter.near": "kernel_conv_pixel.Block1",
    "filter.far": "kernel_conv_pixel.Block2",
    "filter.to_kernel": "kernel_conv_pixel.tokernel",
    "blocks": "resblock_bcakward2d.main.0",
}


def _renamed(name: str, names: dict[str, str]) -> str:
    ours = next(prefix for prefix in names if name.startswith(prefix))
    return names[ours] + name.removeprefix(ours).replace("conv_", "conv")


class GatedDynamicBlock(nn.Module):
    """Filter half of the channels with kernels predicted from the frame, gate by the other half (CWGDN, Sec. 3.1).

    The convolutions before and after this (`expand`, `contract`) also see the previous and the next frame.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = EXPANSION * channels
        self.norm_weight = nn.Parameter(torch.ones(channels))
        self.norm_bias = nn.Parameter(torch.zeros(channels))
        self.expand = nn.Parameter(torch.empty(2 * inner, channels, 3))  # three taps in time, the earliest first
        self.contract = nn.Parameter(torch.empty(channels, inner, 3))
        for weight in (self.expand, self.contract):
            nn.init.kaiming_uniform_(weight, a=5**0.5)  # nn.Conv2d's default
        self.near = nn.Sequential(*(nn.Conv2d(inner, inner, 3, padding=1, groups=inner) for _ in range(3)))
        self.far = nn.Sequential(*(nn.Conv2d(inner, inner, 3, padding=1, groups=inner) for _ in range(3)))
        self.to_kernel = nn.Conv2d(inner, TAPS * inner, 1)
        self.bias = nn.Parameter(torch.zeros(inner))

    def forward(self, frames: Iterable[Features]) -> Iterator[Features]:
        """Yield a clip's frames two frames late, with the low band (B, C, h, w) processed, the high bands unchanged."""
        late: list[tuple[Features, Tensor]] = []  # frames whose sum over three taps still lacks the next frame's part
        from_previous: Tensor | None = None  # the previous frame's part of this frame's sum
        for pair, gated in self._gate(frames):
            to_previous, to_itself, to_next = self._contract(gated)
            if late:
                (low, high), total = late.pop()
                yield low + (total + to_previous), high
            late.append((pair, to_itself if from_previous is None else to_itself + from_previous))
            from_previous = to_next
        for (low, high), total in late:
            yield low + total, high

    def _gate(self, frames: Iterable[Features]) -> Iterator[tuple[Features, Tensor]]:
        """Yield each frame with its gated features (B, E, h, w), one frame late."""
        previous: Tensor | None = None
        current: tuple[Features, Tensor] | None = None
        for pair in frames:
            following = self._norm(pair[0])
            if current is not None:
                yield current[0], self._filter(previous, current[1], following)
                previous = current[1]
            current = (pair, following)
        if current is not None:
            yield current[0], self._filter(previous, current[1], None)

    def _norm(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(
            x.permute(0, 2, 3, 1).float(), self.norm_weight.shape, self.norm_weight.float(), self.norm_bias.float()
        )
        return normed.permute(0, 3, 1, 2).to(x.dtype)

    def _filter(self, previous: Tensor | None, current: Tensor, following: Tensor | None) -> Tensor:
        zeros = torch.zeros_like(current)
        three = torch.cat(
            (zeros if previous is None else previous, current, zeros if following is None else following), 1
        )
        taps = self.expand.transpose(1, 2).flatten(1)[..., None, None]  # (2 E, 3 C, 1, 1)
        filtered, gate = F.conv2d(in_channels_last(three), taps).chunk(2, 1)
        show(self, "gates", gate)
        return dynamic_filter(filtered, self._kernels(filtered), self.bias) * gate

    def _kernels(self, x: Tensor) -> Tensor:
        """Predict a 3x3 kernel for each channel of each frame: (B, E, 3, 3)."""
        x = F.max_pool2d(self.near(F.avg_pool2d(x, 2)), 2)
        kernel: Tensor = self.to_kernel(self.far(x).mean((2, 3), keepdim=True))  # (B, 9 E, 1, 1)
        return kernel.reshape(x.shape[0], -1, 3, 3)

    def _contract(self, gated: Tensor) -> Sequence[Tensor]:
        """Return the frame's parts of the sums of the previous frame, of itself and of the next: each (B, C, h, w)."""
        taps = self.contract.permute(2, 0, 1).flip(0).flatten(0, 1)[..., None, None]  # (3 C, E, 1, 1)
        return F.conv2d(gated, taps).chunk(3, 1)


def dynamic_filter(x: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """Filter each channel of each frame (B, C, H, W) with a 3x3 kernel of its own (B, C, 3, 3), and add bias (C)."""
    filtered = [
        F.conv2d(frame, kernel[:, None], bias, padding=1, groups=x.shape[1])
        for frame, kernel in zip(x.split(1), kernels, strict=True)
    ]
    return torch.cat(filtered) if len(filtered) > 1 else filtered[0]


Step = Callable[[Tensor, Tensor | None], Tensor]


def run_backward(step: Step, features: Sequence[Tensor], keep: int | None) -> list[Tensor]:
    """Run step from the last frame's features to the first's; return the states at the first `keep`, in order."""
    state: Tensor | None = None
    states: list[Tensor] = []
    for index in range(len(features) - 1, -1, -1):
        with shown_as(index):
            state = step(features[index], state)
        if keep is None or index < keep:
            states.append(state)
    return states[::-1]


def run_forward(step: Step, features: list[Tensor], state: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
    """Run step from the first frame's features to the last's, emptying the list; return all states and the last."""
    states: list[Tensor] = []
    while features:
        state = step(features.pop(0), state)
        states.append(state)
    return states, state


class Propagation(nn.Module):
    """One step of a recurrent pass: fuse a frame's features with the state so far (Sec. 3.2)."""

    def __init__(self, width: int, blocks: int, fusion: FusionKind = "filter") -> None:
        super().__init__()
        self.fusion = fusion
        self.fuse = nn.Conv2d(2 * width, width if fusion == "blend" else 2 * width, 3, padding=1)
        if fusion == "filter":
            self.gate_1 = nn.Conv2d(width, width, 3, padding=1)
            self.gate_2 = nn.Conv2d(width, width, 3, padding=1)
            self.filter = PixelFilter(width)
        self.blocks = nn.Sequential(*(ResidualBlock(width, 0.1) for _ in range(blocks)))

    def forward(self, features: Tensor, state: Tensor | None) -> Tensor:
        """Return the next state (B, P, h, w), which is also the frame's result."""
        state = torch.zeros_like(features) if state is None else state
        result: Tensor = self.blocks(self._fused(features, state))
        show(self, "rnn", result)
        return result

    def _fused(self, features: Tensor, state: Tensor) -> Tensor:
        """Return features and state as one, (B, P, h, w)."""
        fused = self.fuse(torch.cat((features, state), 1))
        if self.fusion == "blend":
            share = fused.sigmoid()
            show(self, "gates", share, "blend")
            return torch.lerp(state, features, share)
        fused = F.leaky_relu(fused, SLOPE, inplace=True)
        half_1, half_2 = (in_channels_last(half) for half in fused.chunk(2, 1))
        if self.fusion == "sum":
            return half_1 + half_2
        gate_1, gate_2 = self.gate_1(half_1).sigmoid(), self.gate_2(half_2).sigmoid()
        show(self, "gates", gate_1, "gate_1")
        show(self, "gates", gate_2, "gate_2")
        filtered: Tensor = self.filter(half_1 * gate_1 + half_2 * gate_2)
        return filtered


class PixelFilter(nn.Module):
    """Filter every pixel of every channel with its own 3x3 kernel, predicted from the same features (Sec. 3.2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.near = nn.Sequential(*(ResidualBlock(width) for _ in range(3)))
        self.far = nn.Sequential(*(ResidualBlock(width) for _ in range(3)))
        self.to_kernel = nn.Conv2d(width, TAPS * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, P, h, w) from x of that shape."""
        kernel = self.kernels(x).unflatten(1, (-1, TAPS))  # (B, P, 9, h/8, w/8)
        padded = F.pad(x, (1, 1, 1, 1))
        # One tap at a time: all kernels at the size of x would take nine times its memory.
        filtered: Tensor | None = None
        for tap in range(TAPS):
            weight = in_channels_last(kernel[:, :, tap])
            weight = F.interpolate(weight, scale_factor=REDUCTION, mode="bilinear", align_corners=False)
            filtered = apply_tap(filtered, weight, padded, tap)
        assert filtered is not None
        return filtered

    def kernels(self, x: Tensor) -> Tensor:
        """Predict the kernels at an eighth of the size, (B, 9 P, h/8, w/8), the nine of a channel together."""
        x = F.max_pool2d(self.near(F.avg_pool2d(x, 4)), 2)
        kernels: Tensor = self.to_kernel(self.far(x))
        return kernels


def apply_tap(filtered: Tensor | None, weight: Tensor, padded: Tensor, tap: int) -> Tensor:
    """Add one of the nine taps of a filter per pixel: weight (B, C, h, w) times the features at that tap.

    padded: the features (B, C, h + 2, w + 2). tap: 3 row + column. filtered: the sum of the earlier taps, if any.
    """
    row, column = divmod(tap, 3)
    shifted = padded[:, :, row : row + weight.shape[2], column : column + weight.shape[3]]
    return weight * shifted if filtered is None else torch.addcmul(filtered, weight, shifted)


class HighBands(nn.Module):
    """Two 1x1 convolutions of the three high bands, with separate weights for each band."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(3 * channels, 3 * channels, 1, groups=3)
        self.conv_2 = nn.Conv2d(3 * channels, 3 * channels, 1, groups=3)

    def forward(self, bands: Tensor) -> Tensor:
        """Return (B, 3 C, h, w) from bands of that shape."""
        processed: Tensor = self.conv_2(F.leaky_relu(self.conv_1(bands), SLOPE, inplace=True))
        return processed


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a leaky ReLU between, added to the input."""

    def __init__(self, channels: int, scale: float | None = None) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        if scale is not None:  # the reference's initial weights in propagation
            for conv in (self.conv_1, self.conv_2):
                nn.init.kaiming_normal_(conv.weight)
                conv.weight.data.mul_(scale)
                conv.bias.data.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) from x of that shape."""
        difference: Tensor = self.conv_2(F.leaky_relu(self.conv_1(x), SLOPE, inplace=True))
        return x + difference


# The Haar patterns on a 2x2 cell, row by row: mean, difference across columns, across rows, across diagonals.
HAAR = ((1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0, -1.0, -1.0, 1.0),)


def haar_weights(channels: int) -> Tensor:
    """Return the Haar patterns as checkpoints hold them, (4 C, 1, 2, 2)."""
    return torch.tensor(HAAR).repeat(channels, 1).reshape(4 * channels, 1, 2, 2)


def low_band(x: Tensor) -> Tensor:
    """Return the low band of x, (B, C, H, W): the means of its 2x2 cells, (B, C, H/2, W/2) (Sec. 3.3)."""
    return F.avg_pool2d(x, 2)


def high_band(x: Tensor) -> Tensor:
    """Return the three high bands of x, (B, C, H, W), for HAAR's differences: (B, 3 C, H/2, W/2) (Sec. 3.3)."""
    a, b = x[:, :, ::2, ::2], x[:, :, ::2, 1::2]
    c, d = x[:, :, 1::2, ::2], x[:, :, 1::2, 1::2]
    upper, upper_change = (a + b) / 4, (a - b) / 4
    lower, lower_change = (c + d) / 4, (c - d) / 4
    high = torch.cat((upper_change + lower_change, upper - lower, upper_change - lower_change), 1)
    return in_channels_last(high)


def enlarge(low: Tensor, high: Tensor | None) -> Tensor:
    """Return features of twice the size, (B, C, 2 h, 2 w): by inverse_haar, or bilinearly where there are no bands."""
    if high is None:
        return F.interpolate(low, scale_factor=2, mode="bilinear", align_corners=False)
    return inverse_haar(low, high)


def inverse_haar(low: Tensor, high: Tensor) -> Tensor:
    """Invert low_band and high_band: (B, C, h, w) and (B, 3 C, h, w) to (B, C, 2 h, 2 w)."""
    columns, rows, diagonals = high.chunk(3, 1)
    batch, channels, height, width = low.shape
    merged = torch.empty(
        (batch, channels, 2 * height, 2 * width), dtype=low.dtype, device=low.device, memory_format=torch.channels_last
    )
    upper, lower = low + rows, low - rows
    upper_change, lower_change = columns + diagonals, columns - diagonals
    merged[:, :, ::2, ::2] = upper + upper_change
    merged[:, :, ::2, 1::2] = upper - upper_change
    merged[:, :, 1::2, ::2] = lower + lower_change
    merged[:, :, 1::2, 1::2] = lower - lower_change
    return merged
