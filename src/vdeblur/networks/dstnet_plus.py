"""Learning Efficient Deep Discriminative Spatial and Temporal Networks for Video Deblurring (DSTNet+).

Pan, Sun, Xu, Dong, Tang, IEEE TPAMI 2025. Weights: github.com/sunny2109/DSTNet-plus (code Apache-2.0).

A smaller and better DSTNet (dstnet.py): it has no gated blocks before the propagation, so one level of wavelets is
enough; a gate mixes a frame's features with the propagated ones by comparing them; and the filter for every pixel is
predicted from three scales.

Parts, in the order of use: the wavelets and HighBands (dstnet.py), Propagation with Fusion and MultiScaleFilter,
reconstruction.

Only tables of the paper were available, so this follows the published code, as the weights do. Two of its details:
1. Frames are padded to even sides only. Pooling windows and interpolation ratios depend on the frame's size, so more
   padding would change every pixel. For the same reason, tiles begin and end at multiples of 16.
2. The first frame of each pass is fused with a state of zeros.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.dstnet import (
    TAPS,
    HighBands,
    ResidualBlock,
    apply_tap,
    haar_weights,
    high_band,
    inverse_haar,
    low_band,
    run_backward,
    run_forward,
)
from vdeblur.networks.layers import FewChannelsConv2d, Inside, Memory, Network, dtype_of, in_channels_last, show


class DSTNetPlus(Network):
    """Restore a clip; the steps are DSTNet's.

    width: channels. blocks: residual blocks of each pass. filter_blocks: residual blocks of each scale of the filter.
    The large model has 96, 25 and 5.
    """

    feeding = "bidirectional"
    multiple = 2
    tile_multiple = 16  # the wavelets halve the size once, the filter's poolings three times
    smallest = 16
    half_precision = ("fp16", "bf16")
    overlap = 128  # with random weights, a cut 64 pixels away changes pixels by 2e-4, 128 away by 7e-7
    constant_buffers = ("haar",)
    memory = Memory(tile=580, frame=661, frame_held=160)
    half_memory = Memory(tile=147, frame=577, frame_held=84)
    shows: ClassVar = {
        "gates": Inside("how much of the state each pass mixes into the frame's features, 0 to 1", "channels"),
        "rnn": Inside("the state of the backward and of the forward pass", "channels"),
        "features": Inside("features before the passes (the low band), and before the reconstruction", "channels"),
    }

    def __init__(self, width: int = 64, blocks: int = 15, filter_blocks: int = 3) -> None:
        super().__init__()
        if width > 64:
            self.memory = Memory(tile=870, frame=1235, frame_held=173)
            self.half_memory = Memory(tile=260, frame=1037, frame_held=122)
        self.register_buffer("haar", haar_weights(width))
        self.feature_extraction = nn.Conv2d(3, width, 3, padding=1)
        self.high_bands = HighBands(width)
        self.backward_propagation = Propagation(width, blocks, filter_blocks)
        self.forward_propagation = Propagation(width, blocks, filter_blocks)
        self.reconstruction = FewChannelsConv2d(width, 3, 3, padding=1)

    def forward(self, clip: Tensor) -> Tensor:
        """Restore a whole clip: (B, T, 3, H, W) RGB in [0, 1] to the same, not clamped; H and W even."""
        frames = clip.unbind(1)
        backward = self.propagate_backward(list(self.features(frames)))
        propagated, _ = self.propagate_forward(backward, None)
        return torch.stack([self.reconstruct(*pair) for pair in zip(frames, propagated, strict=True)], 1)

    def features(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the low band (B, C, H/2, W/2) of each frame (B, 3, H, W), RGB in [0, 1]."""
        for frame in frames:
            low = low_band(self._extract(frame))
            show(self, "features", low, "low_band")
            yield low

    def _extract(self, frame: Tensor) -> Tensor:
        features: Tensor = self.feature_extraction(in_channels_last(frame.to(dtype_of(self))))
        return features

    def propagate_backward(self, features: Sequence[Tensor], keep: int | None = None) -> list[Tensor]:
        """Propagate features (B, C, h, w) from the last frame to the first; return the first `keep` results."""
        return run_backward(self.backward_propagation, features, keep)

    def propagate_forward(self, backward: list[Tensor], state: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """Propagate the results of propagate_backward onwards from a state; return the last state, too."""
        return run_forward(self.forward_propagation, backward, state)

    def reconstruct(self, frame: Tensor, propagated: Tensor) -> Tensor:
        """Restore a frame, (B, 3, H, W) float32; this computes its high bands again, to save memory."""
        high = self.high_bands(high_band(self._extract(frame)))
        features = inverse_haar(propagated, high)  # (B, C, H, W)
        show(self, "features", features, "reconstruction")
        restored: Tensor = frame + self.reconstruction(features).float()
        return restored

    @staticmethod
    def official_name(name: str) -> str:
        """Return the key in `DSTNetPlus_*.pth`."""
        part, _, rest = name.partition(".")
        if part == "haar":
            return "wave.haar_weights"
        if part == "high_bands":
            return "x_wave_2_" + rest.replace("conv_", "conv")
        if part in ("backward_propagation", "forward_propagation"):
            for ours, theirs in PROPAGATION_NAMES.items():
                if rest.startswith(ours):
                    return f"{part}.{theirs}" + rest.removeprefix(ours).replace("conv_", "conv")
        return {"feature_extraction": "feat_extractor", "reconstruction": "recons"}[part] + "." + rest


PROPAGATION_NAMES = {
    "fusion.compare": "fusion.conv0",
    "fusion.mix": "fusion.conv1",
    "filter.scales.0": "kernel_conv_pixel.Block1",
    "filter.scales.1": "kernel_conv_pixel.Block2",
    "filter.scales.2": "kernel_conv_pixel.Block3",
    "filter.to_kernel": "kernel_conv_pixel.tokernel",
    "blocks": "resblock_bcakward2d.main.0",
}


class Propagation(nn.Module):
    """One step of a recurrent pass: fuse, filter and refine a frame's features."""

    def __init__(self, width: int, blocks: int, filter_blocks: int) -> None:
        super().__init__()
        self.fusion = Fusion(width)
        self.filter = MultiScaleFilter(width, filter_blocks)
        self.blocks = nn.Sequential(*(ResidualBlock(width, 0.1) for _ in range(blocks)))

    def forward(self, features: Tensor, state: Tensor | None) -> Tensor:
        """Return the next state (B, C, h, w), which is also the frame's result."""
        state = torch.zeros_like(features) if state is None else state
        result: Tensor = self.blocks(self.filter(self.fusion(features, state)))
        show(self, "rnn", result)
        return result


class Fusion(nn.Module):
    """Mix the state into the frame's features where both are similar, by a gate for every channel and pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.compare = nn.Conv2d(2 * width, 2 * width, 1)
        self.mix = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        """Return (B, C, h, w) from features and state of that shape."""
        query, key = self.compare(torch.cat((features, state), 1)).chunk(2, 1)
        gate = (query * key).sigmoid()
        show(self, "gates", gate)
        mixed: Tensor = self.mix(torch.lerp(features, state, gate))
        return mixed


class MultiScaleFilter(nn.Module):
    """Filter every pixel of every channel with its own 3x3 kernel, predicted from the features at three scales."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(nn.Sequential(*(ResidualBlock(width) for _ in range(blocks))) for _ in range(3))
        self.to_kernel = nn.Conv2d(3 * width, TAPS * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) from x of that shape."""
        size = x.shape[2:]
        scales, smaller = [], x
        for scale in self.scales:
            smaller = scale(halve(smaller))  # (B, C, h/2, w/2), then /4 and /8, rounded down
            scales.append(F.interpolate(smaller, size, mode="bilinear", align_corners=False))
        scales_together = in_channels_last(torch.cat(scales, 1))  # (B, 3 C, h, w)
        weights = self.to_kernel.weight.unflatten(0, (-1, TAPS))  # (C, 9, 3 C, 1, 1): the nine of a channel together
        biases = self.to_kernel.bias.unflatten(0, (-1, TAPS))  # type: ignore[union-attr]
        padded = F.pad(x, (1, 1, 1, 1))
        # One tap at a time: all kernels would take nine times the memory of x.
        filtered: Tensor | None = None
        for tap in range(TAPS):
            kernel = F.conv2d(scales_together, weights[:, tap], biases[:, tap])
            filtered = apply_tap(filtered, kernel, padded, tap)
        assert filtered is not None
        return filtered


def halve(x: Tensor) -> Tensor:
    """Max-pool with stride 2, in windows of two, or of three along an odd axis: (B, C, h // 2, w // 2)."""
    window = [2 + side % 2 for side in x.shape[2:]]
    return F.max_pool2d(x, window, stride=2)
