"""BIMNet: blur-invariant motion estimation, optical flow between frames of which either may be blurry.

Son, Lee, Lee, Cho, Lee: Recurrent Video Deblurring with Blur-Invariant Motion Estimation and Pixel Volumes. ACM
Transactions on Graphics 2021, arXiv 2108.09982. Its structure is that of Hui, Tang, Loy: LiteFlowNet: A
Lightweight Convolutional Neural Network for Optical Flow Estimation. CVPR 2018, arXiv 1805.07036.

Blur changes from frame to frame, so the same point looks different in two frames, and flow networks made for sharp
frames fail. BIMNet is such a network, trained further: whichever of two frames are blurry, its flow must warp the
*sharp* previous frame onto the *sharp* current one. It works from coarse to fine. At each of five resolutions the flow
so far warps the previous frame's features onto the current frame's. A first correction is estimated from the
correlation of the two, a second from the warped features themselves. Last, the flow is smoothed, but not across motion
boundaries.

Parts, in the order of use, each with LiteFlowNet's name for it:

- `Pyramid`         features and images of one frame, kept for the next frame as well: feature extraction;
- `BIMNet`          the flow between two frames, from their pyramids;
- `Matching`        flow from the correlation of features, to whole pixels: descriptor matching;
- `Subpixel`        refinement from the features themselves: sub-pixel refinement;
- `Regularization`  smoothing, with a separate filter for every pixel: flow regularization.

At all levels, one unit of flow is 20 pixels of the full resolution. Level 1 is the frame, level L has 1/2^(L-1) of its
size; lists begin with level 2.

Where this differs from LiteFlowNet's paper, because BIMNet's published weights do:

1. Flow is refined down to level 2, half the resolution; the paper ends at level 3.
2. Correlations at levels 2 and 3 are computed at every second pixel, with displacements of 2, 4 and 6 pixels; a
   transposed convolution upsamples them to the level's resolution.
3. 1x1 convolutions widen the features of level 2 before matching and sub-pixel refinement, and those of levels 2 to 4
   before regularization.
4. Frames are RGB in [0, 1], without subtracting a mean; BIMNet's paper says [-1, 1].
5. Sides are cropped to multiples of 32, and the flow of the cropped part is zero, as for the published figures.
   A side shorter than 32 pixels is padded to 32 by repeating its border.

Widths, kernels and the names of the authors' tensors are facts of their checkpoints; none of their code is used. The
initial weights are our own choice: flow is upsampled bilinearly, and smoothing takes a plain weighted mean.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.layers import FewChannelsConv2d, correlate, dtype_of, in_channels_last, sampling_grid, warp

MULTIPLE = 32  # of the sides that flow is computed for: level 6 has 1/32 of them
UNIT = 20.0  # pixels of the full resolution in one unit of flow
LEVELS = (2, 3, 4, 5, 6)
CHANNELS = (32, 64, 96, 128, 192)  # of the features at these levels
KERNELS = (7, 5, 5, 3, 3)  # sides of the last convolution of each step, at these levels
RADIUS = 3  # of correlations, in pixels of their level; at levels 2 and 3 in steps of two pixels
SHIFTS = (2 * RADIUS + 1) ** 2  # displacements of a correlation
SLOPE = 0.1  # of every leaky ReLU
OFFICIAL = {
    "features": "moduleFeatures",
    "matching": "moduleMatching",
    "subpixel": "moduleSubpixel",
    "regularization": "moduleRegularization",
    "widen": "moduleFeat",
    "upsample_flow": "moduleUpflow",
    "upsample_cost": "moduleUpcorr",
    "estimate": "moduleMain",
    "compare": "moduleMain",
    "distance": "moduleDist",
    "mix_x": "moduleScaleX",
    "mix_y": "moduleScaleY",
    "level_1": "moduleOne",
    "level_2": "moduleTwo",
    "level_3": "moduleThr",
    "level_4": "moduleFou",
    "level_5": "moduleFiv",
    "level_6": "moduleSix",
}


class Pyramid(NamedTuple):
    """Images and features of one frame at levels 2 to 6, of the part whose sides are multiples of 32.

    size: height and width of the frame. images: (B, 3, h, w). features: (B, C, h, w). to_match, to_refine: the features
    as Matching and Subpixel take them, which are widened at level 2.
    """

    size: tuple[int, int]
    images: list[Tensor]
    features: list[Tensor]
    to_match: list[Tensor]
    to_refine: list[Tensor]


class BIMNet(nn.Module):
    """Estimate where each pixel of a frame was in the previous frame, whether the frames are blurry or sharp."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Features()
        self.matching = nn.ModuleList(Matching(level) for level in LEVELS)
        self.subpixel = nn.ModuleList(Subpixel(level) for level in LEVELS)
        self.regularization = nn.ModuleList(Regularization(level) for level in LEVELS)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "upsample_flow" in name:  # initially bilinear interpolation
                ramp = parameter.new_tensor((0.25, 0.75, 0.75, 0.25))
                parameter.data.copy_((ramp[:, None] * ramp).expand_as(parameter))
            elif "mix" in name:  # initially a weighted mean
                nn.init.ones_(parameter)
            else:
                nn.init.xavier_uniform_(parameter)

    @staticmethod
    def official_name(name: str) -> str:
        """Return the key of a tensor in the authors' BIMNet.pytorch and in LiteFlowNet's weight files."""
        return ".".join(OFFICIAL.get(part, part) for part in name.split("."))

    def flow(self, current: Tensor, previous: Tensor) -> Tensor:
        """Estimate the flow from a frame to the previous one: (B, 2, H, W), horizontal first, in pixels.

        current, previous: (B, 3, H, W) RGB in [0, 1], of any size.
        """
        return self.match(self.describe(current), self.describe(previous))

    def describe(self, frame: Tensor) -> Pyramid:
        """Compute the pyramid of a frame (B, 3, H, W), which serves as the current and as the previous frame."""
        height, width = frame.shape[2:]
        rows, columns = (max(side // MULTIPLE, 1) * MULTIPLE for side in (height, width))
        part = frame[..., :rows, :columns].to(dtype_of(self))
        part = F.pad(part, (0, columns - part.shape[3], 0, rows - part.shape[2]), mode="replicate")
        features = self.features(in_channels_last(part))
        images = []
        for level in features:
            part = F.interpolate(part, level.shape[2:], mode="bilinear", align_corners=False)
            images.append(part)
        # Level 2 is widened here, once per frame, because widening does not depend on the other frame.
        to_match = [self.matching.get_submodule("0.widen")(features[0]), *features[1:]]
        to_refine = [self.subpixel.get_submodule("0.widen")(features[0]), *features[1:]]
        return Pyramid((height, width), images, features, to_match, to_refine)

    def match(self, current: Pyramid, previous: Pyramid) -> Tensor:
        """Estimate the flow, see flow, from the pyramids of both frames."""
        height, width = current.size
        flow = None
        for i in reversed(range(len(LEVELS))):
            flow = self.matching[i](current.to_match[i], previous.to_match[i], flow)
            flow = self.subpixel[i](current.to_refine[i], previous.to_refine[i], flow)
            flow = self.regularization[i](current.features[i], current.images[i], previous.images[i], flow)
        assert flow is not None
        # Level 2 has half the resolution, but its flow is in pixels of the full resolution.
        flow = F.interpolate(flow.float() * UNIT, scale_factor=2.0, mode="bilinear", align_corners=False)
        flow = flow[..., :height, :width]
        return F.pad(flow, (0, width - flow.shape[3], 0, height - flow.shape[2]))  # (B, 2, H, W)


class Features(nn.Module):
    """Feature extraction: the features of a frame at levels 2 to 6."""

    def __init__(self) -> None:
        super().__init__()
        self.level_1 = _activated(nn.Conv2d(3, 32, 7, padding=3))
        self.level_2 = _activated(_conv(32, 32, stride=2), _conv(32, 32), _conv(32, 32))
        self.level_3 = _activated(_conv(32, 64, stride=2), _conv(64, 64))
        self.level_4 = _activated(_conv(64, 96, stride=2), _conv(96, 96))
        self.level_5 = _activated(_conv(96, 128, stride=2))
        self.level_6 = _activated(_conv(128, 192, stride=2))

    def forward(self, frame: Tensor) -> list[Tensor]:
        """Return (B, C, H/2, W/2), ... (B, C, H/32, W/32), from a frame (B, 3, H, W)."""
        features = [self.level_1(frame)]
        for step in (self.level_2, self.level_3, self.level_4, self.level_5, self.level_6):
            features.append(step(features[-1]))
        return features[1:]


class Matching(nn.Module):
    """Descriptor matching: correct the flow by the correlation of both frames' features."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.scale = _pixels(level)
        self.stride = 2 if level <= 3 else 1
        if level == 2:
            self.widen = _activated(nn.Conv2d(32, 64, 1))
        self.upsample_flow = _upsampling(2) if level < LEVELS[-1] else None
        self.upsample_cost = _upsampling(SHIFTS) if self.stride == 2 else None
        self.estimate = _estimate(SHIFTS, KERNELS[level - 2])

    def forward(self, current: Tensor, previous: Tensor, flow: Tensor | None) -> Tensor:
        """Return the flow (B, 2, h, w) from both frames' features (B, C, h, w) and the flow of the level above."""
        if flow is not None:
            assert self.upsample_flow is not None
            flow = self.upsample_flow(flow)
        # With a stride of 2, positions and displacements are even, so every second pixel of either frame suffices.
        every = (..., slice(None, None, self.stride), slice(None, None, self.stride))
        if flow is None:
            warped = previous[every]
        else:
            grid = sampling_grid(flow * self.scale)[:, every[1], every[2]].to(previous.dtype)
            warped = F.grid_sample(previous, grid, align_corners=True)
        cost = F.leaky_relu(correlate(current[every], warped, RADIUS), SLOPE)  # (B, 49, h/stride, w/stride)
        cost = in_channels_last(cost.to(current.dtype))
        if self.upsample_cost is not None:
            cost = self.upsample_cost(cost)  # (B, 49, h, w)
        correction: Tensor = self.estimate(cost)
        return correction if flow is None else flow + correction


class Subpixel(nn.Module):
    """Sub-pixel refinement: correct the flow by the features that it has warped."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.scale = _pixels(level)
        channels = CHANNELS[level - 2]
        if level == 2:
            channels, self.widen = 64, _activated(nn.Conv2d(channels, 64, 1))
        self.estimate = _estimate(2 * channels + 2, KERNELS[level - 2])

    def forward(self, current: Tensor, previous: Tensor, flow: Tensor) -> Tensor:
        """Return the flow (B, 2, h, w) from both frames' features (B, C, h, w) and the flow so far."""
        warped = warp(previous, flow * self.scale)
        correction: Tensor = self.estimate(_concatenate(current, warped, flow))
        return flow + correction


class Regularization(nn.Module):
    """Flow regularization: smooth the flow by a mean over each pixel's neighbours, weighted by their similarity."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.scale = _pixels(level)
        self.kernel = size = KERNELS[level - 2]
        channels = CHANNELS[level - 2]
        self.widen = None
        if level <= 4:
            self.widen = _activated(nn.Conv2d(channels, 128, 1))
            channels = 128
        widths = ((channels + 3, 128), (128, 128), (128, 64), (64, 64), (64, 32), (32, 32))
        self.compare = _activated(*(_conv(*pair) for pair in widths))
        if level <= 4:  # separable, because these kernels are large
            tall = nn.Conv2d(32, size**2, (size, 1), padding=(size // 2, 0))
            self.distance = nn.Sequential(tall, nn.Conv2d(size**2, size**2, (1, size), padding=(0, size // 2)))
        else:
            self.distance = nn.Sequential(_conv(32, size**2))
        self.mix_x = nn.Conv2d(size**2, 1, 1)
        self.mix_y = nn.Conv2d(size**2, 1, 1)

    def forward(self, features: Tensor, current: Tensor, previous: Tensor, flow: Tensor) -> Tensor:
        """Return the flow (B, 2, h, w) from the current frame's features, both images and the flow so far."""
        with torch.no_grad():  # the root's gradient at zero is infinite
            error = (current - warp(previous, flow * self.scale)).square().sum(1, keepdim=True).sqrt()
        local = flow - flow.mean((2, 3), keepdim=True)  # over the whole frame: this network must not see tiles
        if self.widen is not None:
            features = self.widen(features)
        motion = torch.cat((error, local), 1)  # a single plane has no layout, so alone it would undo channels-last
        distance = self.distance(self.compare(_concatenate(motion, features)))  # (B, K^2, h, w)

        # The neighbours' weights are a softmax. In the published network its denominator also divides the biases of
        # mix_x and mix_y. 1 / denominator is the largest weight, because that one's numerator is 1.
        weights = distance.square().neg_().contiguous().softmax(1)
        largest = weights.amax(1, keepdim=True)
        neighbours = F.unfold(flow, self.kernel, padding=self.kernel // 2).unflatten(1, (2, -1))
        neighbours = neighbours.unflatten(3, flow.shape[2:])  # (B, 2, K^2, h, w)
        smooth = [
            F.conv2d(weights * neighbours[:, axis], mix.weight) + mix.bias * largest
            for axis, mix in enumerate((self.mix_x, self.mix_y))
        ]
        return torch.cat(smooth, 1)


def _pixels(level: int) -> float:
    """Return how many pixels of a level one unit of flow is."""
    return UNIT * 0.5 ** (level - 1)


def _conv(channels: int, to: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, to, size, stride, size // 2)


def _upsampling(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, 4, 2, 1, groups=channels, bias=False)


def _activated(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.LeakyReLU(SLOPE, inplace=True))))


def _estimate(channels: int, size: int) -> nn.Sequential:
    last = FewChannelsConv2d(32, 2, size, padding=size // 2)
    return nn.Sequential(*_activated(_conv(channels, 128), _conv(128, 64), _conv(64, 32)), last)


def _concatenate(*parts: Tensor) -> Tensor:
    return torch.cat([in_channels_last(part) for part in parts], 1)
