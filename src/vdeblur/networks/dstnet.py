"""Deep Discriminative Spatial and Temporal Network for Efficient Video Deblurring (DSTNet).

Pan, Xu, Dong, Ge, Tang, CVPR 2023. Weights: github.com/xuboming8/DSTNet (code MIT).

Frames are split by Haar wavelets, so that the costly work is done at a half and a quarter of their size. Channels are
gated by filters made from each frame (channel-wise gated dynamic network), with a look at the neighbouring frames; then
features travel through the clip, backward and after that forward, and each frame's are fused with those that arrive by
a filter made for every pixel. No optical flow anywhere.

Parts, in the order of use: the wavelets (Sec. 3.3), GatedDynamicBlock (CWGDN, Sec. 3.1), Propagation with PixelFilter
(Sec. 3.2), reconstruction.

Where this differs from the paper, because the published weights do:
1. Two levels of wavelets: gating at a quarter of the size, propagation at half of it.
2. Five gated blocks, each with layer norm and a residual.
3. Propagation starts from zeros, and the first frame is fused with them, too.
4. High bands pass 1x1 convolutions, each band its own.
5. The forward pass sees the backward pass's results only.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.layers import FewChannelsConv2d, Memory, Network, dtype_of, in_channels_last

SLOPE = 0.1  # of the leaky ReLUs
BLOCKS = 5  # gated dynamic blocks
EXPANSION = 4  # of their channels inside
TAPS = 9  # of a 3x3 kernel
REDUCTION = 8  # kernels are predicted at this fraction of the features they filter

Features = tuple[Tensor, Tensor]


class DSTNet(Network):
    """Restore a clip.

    features() runs over a clip's frames with a delay of ten frames, propagate_backward() and propagate_forward() over
    as many of its results as memory allows, and reconstruct() gives each frame. Gating sees whole frames; the rest can
    be tiled, at the price of what propagation carries over the tiles' borders.
    """

    feeding = "bidirectional"
    multiple = 16
    smallest = 16
    half_precision = ("fp16", "bf16")  # 72 and 54 dB on the parity cases; layer norms stay in float32
    overlap = 64
    constant_buffers = ("haar",)
    memory = Memory(tile=485, frame=1707, frame_held=128)
    half_memory = Memory(tile=549, frame=1050, frame_held=64)

    def __init__(self, channels: int = 64, width: int = 64, blocks: int = 15) -> None:
        super().__init__()
        # The published large network has 64 channels, too, and propagates 96 of them.
        if width > channels:
            self.memory = Memory(tile=485, frame=1215, frame_held=240)
            self.half_memory = Memory(tile=549, frame=963, frame_held=76)
        self.register_buffer("haar", haar_weights(channels))
        self.feature_extraction = nn.Conv2d(3, channels, 3, padding=1)
        self.high_bands = nn.ModuleList(HighBands(channels) for _ in range(2))
        self.gating = nn.ModuleList(GatedDynamicBlock(channels) for _ in range(BLOCKS))
        self.up = nn.Conv2d(channels, width, 1) if width != channels else nn.Identity()
        self.backward_propagation = Propagation(width, blocks)
        self.forward_propagation = Propagation(width, blocks)
        self.down = nn.Conv2d(width, channels, 1) if width != channels else nn.Identity()
        self.reconstruction = FewChannelsConv2d(channels, 3, 3, padding=1)

    def forward(self, clip: Tensor) -> Tensor:
        """Restore a clip as one: (B, T, 3, H, W) RGB in [0, 1] to the same, not clamped."""
        frames = clip.unbind(1)
        backward = self.propagate_backward(list(self.features(frames)))
        propagated, _ = self.propagate_forward(backward, None)
        return torch.stack([self.reconstruct(*pair) for pair in zip(frames, propagated, strict=True)], 1)

    def features(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        """Give each frame's features (B, C, H/2, W/2), with ten frames' delay; frames (B, 3, H, W), RGB in [0, 1].

        They know ten frames to either side: five blocks that look one frame ahead twice.
        """
        split: Iterator[Features] = (self._split(frame) for frame in frames)
        for block in self.gating:
            split = block(split)
        for low, high in split:
            yield inverse_haar(low, high)

    def _split(self, frame: Tensor) -> Features:
        """Give the low band of the second level (B, C, H/4, W/4) and its processed high bands (B, 3 C, H/4, W/4)."""
        low_1 = low_band(self._extract(frame))
        return low_band(low_1), self.high_bands[1](high_band(low_1))

    def _extract(self, frame: Tensor) -> Tensor:
        features: Tensor = self.feature_extraction(in_channels_last(frame.to(dtype_of(self))))
        return features

    def propagate_backward(self, features: Sequence[Tensor], keep: int | None = None) -> list[Tensor]:
        """Let features travel from the last frame to the first: each (B, C, h, w) to (B, P, h, w), in frame order.

        keep: give the first so many only; those after them serve as look-ahead.
        """
        return travel_backward(lambda frame, state: self.backward_propagation(self.up(frame), state), features, keep)

    def propagate_forward(self, backward: list[Tensor], state: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """Let what propagate_backward gave travel onwards: each (B, P, h, w) to the same.

        state: of the frame before, or None at a clip's start. Gives the last state, too. Empties `backward`.
        """
        return travel_forward(self.forward_propagation, backward, state)

    def reconstruct(self, frame: Tensor, propagated: Tensor) -> Tensor:
        """Give the restored frame (B, 3, H, W) float32.

        The high bands of the first level are made again here: kept through the propagation they would take three
        times the memory of all else.
        """
        high = self.high_bands[0](high_band(self._extract(frame)))
        features = inverse_haar(self.down(propagated), high)  # (B, C, H, W)
        restored: Tensor = frame + self.reconstruction(features).float()
        return restored

    @staticmethod
    def official_name(name: str) -> str:
        """Give the name in `experiments/*.pth`."""
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
    """Filter one half of the channels with kernels made from the frame, and gate with the other (CWGDN, Sec. 3.1).

    Going in and coming out look at the frame before and the one after.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = EXPANSION * channels
        self.norm_weight = nn.Parameter(torch.ones(channels))
        self.norm_bias = nn.Parameter(torch.zeros(channels))
        self.expand = nn.Parameter(torch.empty(2 * inner, channels, 3))  # three taps in time, the earliest first
        self.contract = nn.Parameter(torch.empty(channels, inner, 3))
        for weight in (self.expand, self.contract):
            nn.init.kaiming_uniform_(weight, a=5**0.5)  # what convolutions begin with
        self.near = nn.Sequential(*(nn.Conv2d(inner, inner, 3, padding=1, groups=inner) for _ in range(3)))
        self.far = nn.Sequential(*(nn.Conv2d(inner, inner, 3, padding=1, groups=inner) for _ in range(3)))
        self.to_kernel = nn.Conv2d(inner, TAPS * inner, 1)
        self.bias = nn.Parameter(torch.zeros(inner))

    def forward(self, frames: Iterable[Features]) -> Iterator[Features]:
        """Pass the low bands (B, C, h, w) of a clip's frames through, two frames late; what comes with them stays."""
        late: list[tuple[Features, Tensor]] = []  # frames whose sum over three taps lacks the frame after them
        ahead: Tensor | None = None  # the first tap of the frame before
        for pair, gated in self._gate(frames):
            past, present, future = self._contract(gated)
            if late:
                (low, high), total = late.pop()
                yield low + (total + past), high
            # A tap that looks back is applied to a frame for the sake of the next one, and the other way round.
            late.append((pair, present if ahead is None else present + ahead))
            ahead = future
        for (low, high), total in late:
            yield low + total, high

    def _gate(self, frames: Iterable[Features]) -> Iterator[tuple[Features, Tensor]]:
        """Give each frame with its gated features (B, E, h, w), one frame late."""
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
        beyond = torch.zeros_like(current)
        three = torch.cat(
            (beyond if previous is None else previous, current, beyond if following is None else following), 1
        )
        taps = self.expand.transpose(1, 2).flatten(1)[..., None, None]  # (2 E, 3 C, 1, 1)
        filtered, gate = F.conv2d(in_channels_last(three), taps).chunk(2, 1)
        return dynamic_filter(filtered, self._kernels(filtered), self.bias) * gate

    def _kernels(self, x: Tensor) -> Tensor:
        """Give a 3x3 kernel for each channel of each frame: (B, E, 3, 3)."""
        x = F.max_pool2d(self.near(F.avg_pool2d(x, 2)), 2)
        kernel: Tensor = self.to_kernel(self.far(x).mean((2, 3), keepdim=True))  # (B, 9 E, 1, 1)
        return kernel.reshape(x.shape[0], -1, 3, 3)

    def _contract(self, gated: Tensor) -> Sequence[Tensor]:
        """Give what a frame adds to the one before it, to itself, and to the one after it: each (B, C, h, w)."""
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


def travel_backward(step: Step, features: Sequence[Tensor], keep: int | None) -> list[Tensor]:
    """Take steps from the last frame's features to the first's; give the states at the first `keep`, in order."""
    state: Tensor | None = None
    states: list[Tensor] = []
    for index in range(len(features) - 1, -1, -1):
        state = step(features[index], state)
        if keep is None or index < keep:
            states.append(state)
    return states[::-1]


def travel_forward(step: Step, features: list[Tensor], state: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
    """Take steps from the first frame's features to the last's, emptying the list; give all states and the last."""
    states: list[Tensor] = []
    while features:
        state = step(features.pop(0), state)
        states.append(state)
    return states, state


class Propagation(nn.Module):
    """One step of a recurrent pass: fuse a frame's features with the state that arrives (Sec. 3.2)."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.gate_1 = nn.Conv2d(width, width, 3, padding=1)
        self.gate_2 = nn.Conv2d(width, width, 3, padding=1)
        self.filter = PixelFilter(width)
        self.blocks = nn.Sequential(*(ResidualBlock(width, 0.1) for _ in range(blocks)))

    def forward(self, features: Tensor, state: Tensor | None) -> Tensor:
        """Give the next state (B, P, h, w), which is the frame's result, too."""
        state = torch.zeros_like(features) if state is None else state
        fused = F.leaky_relu(self.fuse(torch.cat((features, state), 1)), SLOPE, inplace=True)
        one, two = (in_channels_last(half) for half in fused.chunk(2, 1))
        fused = one * self.gate_1(one).sigmoid() + two * self.gate_2(two).sigmoid()
        result: Tensor = self.blocks(self.filter(fused))
        return result


class PixelFilter(nn.Module):
    """Filter every pixel of every channel with a 3x3 kernel of its own, made from the features themselves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.near = nn.Sequential(*(ResidualBlock(width) for _ in range(3)))
        self.far = nn.Sequential(*(ResidualBlock(width) for _ in range(3)))
        self.to_kernel = nn.Conv2d(width, TAPS * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Give (B, P, h, w) from x of that shape."""
        kernel = self.kernels(x).unflatten(1, (-1, TAPS))  # (B, P, 9, h/8, w/8)
        padded = F.pad(x, (1, 1, 1, 1))
        # A tap at a time: all kernels at full size would be nine times the features.
        filtered: Tensor | None = None
        for tap in range(TAPS):
            weight = in_channels_last(kernel[:, :, tap])
            weight = F.interpolate(weight, scale_factor=REDUCTION, mode="bilinear", align_corners=False)
            filtered = apply_tap(filtered, weight, padded, tap)
        assert filtered is not None
        return filtered

    def kernels(self, x: Tensor) -> Tensor:
        """Give the kernels at an eighth of the size, (B, 9 P, h/8, w/8), the nine of a channel together."""
        x = F.max_pool2d(self.near(F.avg_pool2d(x, 4)), 2)
        kernels: Tensor = self.to_kernel(self.far(x))
        return kernels


def apply_tap(filtered: Tensor | None, weight: Tensor, padded: Tensor, tap: int) -> Tensor:
    """Add one of the nine taps of a filter for every pixel: weight (B, C, h, w) times the features beside it.

    padded: the features (B, C, h + 2, w + 2). tap: 3 row + column. filtered: the sum so far.
    """
    row, column = divmod(tap, 3)
    beside = padded[:, :, row : row + weight.shape[2], column : column + weight.shape[3]]
    return weight * beside if filtered is None else torch.addcmul(filtered, weight, beside)


class HighBands(nn.Module):
    """Two 1x1 convolutions for the three high bands, each band its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(3 * channels, 3 * channels, 1, groups=3)
        self.conv_2 = nn.Conv2d(3 * channels, 3 * channels, 1, groups=3)

    def forward(self, bands: Tensor) -> Tensor:
        """Give (B, 3 C, h, w) from bands of that shape."""
        processed: Tensor = self.conv_2(F.leaky_relu(self.conv_1(bands), SLOPE, inplace=True))
        return processed


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a leaky ReLU between, added to the input."""

    def __init__(self, channels: int, scale: float | None = None) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        if scale is not None:  # as the reference begins its propagation
            for conv in (self.conv_1, self.conv_2):
                nn.init.kaiming_normal_(conv.weight)
                conv.weight.data.mul_(scale)
                conv.bias.data.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Give (B, C, h, w) from x of that shape."""
        difference: Tensor = self.conv_2(F.leaky_relu(self.conv_1(x), SLOPE, inplace=True))
        return x + difference


# The wavelets on a 2x2 cell, row by row: mean, and differences across columns, rows and diagonals.
HAAR = ((1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0, -1.0, -1.0, 1.0),)


def haar_weights(channels: int) -> Tensor:
    """Give the patterns as checkpoints hold them, (4 C, 1, 2, 2)."""
    return torch.tensor(HAAR).repeat(channels, 1).reshape(4 * channels, 1, 2, 2)


def low_band(x: Tensor) -> Tensor:
    """Give the wavelets' low band of (B, C, H, W): the means of its 2x2 cells, (B, C, H/2, W/2) (Sec. 3.3)."""
    return F.avg_pool2d(x, 2)


def high_band(x: Tensor) -> Tensor:
    """Give the wavelets' three high bands of (B, C, H, W): (B, 3 C, H/2, W/2)."""
    a, b = x[:, :, ::2, ::2], x[:, :, ::2, 1::2]
    c, d = x[:, :, 1::2, ::2], x[:, :, 1::2, 1::2]
    upper, upper_change = (a + b) / 4, (a - b) / 4
    lower, lower_change = (c + d) / 4, (c - d) / 4
    high = torch.cat((upper_change + lower_change, upper - lower, upper_change - lower_change), 1)
    return in_channels_last(high)


def inverse_haar(low: Tensor, high: Tensor) -> Tensor:
    """Undo low_band and high_band: (B, C, h, w) and (B, 3 C, h, w) to (B, C, 2 h, 2 w)."""
    columns, rows, diagonals = high.chunk(3, 1)
    batch, channels, height, width = low.shape
    whole = torch.empty(
        (batch, channels, 2 * height, 2 * width), dtype=low.dtype, device=low.device, memory_format=torch.channels_last
    )
    upper, lower = low + rows, low - rows
    upper_change, lower_change = columns + diagonals, columns - diagonals
    whole[:, :, ::2, ::2] = upper + upper_change
    whole[:, :, ::2, 1::2] = upper - upper_change
    whole[:, :, 1::2, ::2] = lower + lower_change
    whole[:, :, 1::2, 1::2] = lower - lower_change
    return whole
