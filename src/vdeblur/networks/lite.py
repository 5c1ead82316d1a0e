"""Lite: a compact recurrent video deblurring network, vdeblur's own default.

In the spirit of DSTNet (Pan et al., "Deep Discriminative Spatial and Temporal Network for Efficient Video
Deblurring", CVPR 2023): two propagations over the clip, one backward and one forward in time, whose states are
fused with each frame's features by channel-wise gates that let sharp content through and hold blurry content
back. Unlike DSTNet there is no deformable alignment, no wavelet transform and no layer norm. All of them run
badly on a CPU, which is where this network has to be useful.

Parts, in the order of use:

- `Lite`             feature extraction, the two propagations, reconstruction;
- `Propagation`      one step of a propagation: gated fusion, then residual blocks;
- `GatedFusion`      two halves of a fused feature, each weighted by a sigmoid of itself
                     (the idea of DSTNet's discriminative fusion, Sec. 3.2);
- `ResidualBlock`    two 3x3 convolutions around a skip.

Everything happens at a quarter of the frame's size: pixel-unshuffle by 4 makes 48 channels out of a 4x4 block of
RGB, so nothing is thrown away and a 3x3 convolution sees 12x12 pixels. The result is added to the blurry frame.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCALE = 4  # side of the block of pixels that becomes one position of the features
SLOPE = 0.1  # of every leaky ReLU
CONTRAST = 4.0  # brings pixels to about zero mean and unit variance, without which training is slow


class Lite(nn.Module):
    """Restore a clip by backward, then forward propagation of gated features.

    channels: width of features and states. blocks: residual blocks in each propagation step.
    """

    feeding = "clip"  # wants a run of frames at once, see streams.py
    multiple = SCALE  # height and width must be divisible by this
    half_precision = True  # bf16: restored frames differ by less than an 8-bit code on average (see MODEL_CARD.md)

    def __init__(self, channels: int = 48, blocks: int = 5, extraction_blocks: int = 2) -> None:
        super().__init__()
        self.extract = nn.Sequential(
            nn.Conv2d(3 * SCALE**2, channels, 3, padding=1),
            *(ResidualBlock(channels) for _ in range(extraction_blocks)),
        )
        self.backward_propagation = Propagation(channels, blocks)
        self.forward_propagation = Propagation(channels, blocks)
        self.reconstruct = nn.Conv2d(2 * channels, 3 * SCALE**2, 3, padding=1)
        nn.init.zeros_(self.reconstruct.weight)  # an untrained network returns its input
        nn.init.zeros_(self.reconstruct.bias)

    def forward(self, blurry: Tensor) -> Tensor:
        """Restore a clip: (B, T, 3, H, W) RGB in [0, 1] to the same shape, not clamped; H and W multiples of 4."""
        return self.restore(blurry, blurry.shape[1], None)[0]

    def restore(self, blurry: Tensor, keep: int, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Restore the first `keep` frames of a clip (see forward), the others being there to be looked at.

        state: of the forward propagation after the frame before the clip, (B, C, H/4, W/4); None at a beginning.
        Gives the frames, in the clip's precision, and the state after the last of them.
        """
        batch, time = blurry.shape[:2]
        pixels = F.pixel_unshuffle((blurry.flatten(0, 1) - 0.5) * CONTRAST, SCALE)  # (B T, 48, H/4, W/4)
        pixels = pixels.to(self.reconstruct.weight.dtype, memory_format=torch.channels_last)
        features = self.extract(pixels).unflatten(0, (batch, time)).unbind(1)  # T x (B, C, H/4, W/4)

        # Backward in time: what the future shows sharply travels to the past.
        future = torch.zeros_like(features[0])
        futures: list[Tensor] = []
        for feature in reversed(features):
            future = self.backward_propagation(feature, future)
            futures.append(future)
        futures.reverse()

        # Forward in time, fed with the backward states, so that both ends of the clip reach every frame.
        state = torch.zeros_like(features[0]) if state is None else state
        differences: list[Tensor] = []
        for feature, future in zip(features[:keep], futures[:keep], strict=True):
            state = self.forward_propagation(future, state)
            difference = self.reconstruct(torch.cat((state, feature), 1))  # (B, 48, H/4, W/4)
            differences.append(F.pixel_shuffle(difference, SCALE))
        return blurry[:, :keep] + torch.stack(differences, 1), state


class Propagation(nn.Module):
    """One step in time: fuse a frame's feature with the travelling state, then refine the sum."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.fuse = GatedFusion(channels)
        self.refine = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))

    def forward(self, feature: Tensor, state: Tensor) -> Tensor:
        """Give the new state (B, C, h, w) from feature and state of that shape."""
        refined: Tensor = self.refine(self.fuse(feature, state))
        return refined


class GatedFusion(nn.Module):
    """Fuse two features, each half of their mixture weighted by a sigmoid gate of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)
        self.gate_a = nn.Conv2d(channels, channels, 3, padding=1)
        self.gate_b = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, feature: Tensor, state: Tensor) -> Tensor:
        """Give (B, C, h, w) from feature and state of that shape."""
        mixed = F.leaky_relu(self.mix(torch.cat((feature, state), 1)), SLOPE)
        a, b = mixed.chunk(2, 1)
        return feature + a * torch.sigmoid(self.gate_a(a)) + b * torch.sigmoid(self.gate_b(b))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a leaky ReLU between, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        # Ten blocks a frame, through all frames of a clip: begin near the identity, or large rates explode.
        self.conv_2.weight.data.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Give (B, C, h, w) from x of that shape."""
        return x + self.conv_2(F.leaky_relu(self.conv_1(x), SLOPE))
