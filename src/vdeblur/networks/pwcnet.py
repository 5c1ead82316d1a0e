"""PWC-Net: CNNs for Optical Flow Using Pyramid, Warping, and Cost Volume.

Sun, Yang, Liu, Kautz, CVPR 2018, arXiv 1709.02371. This is the variant inside CDVD-TSP, with the structure that the
PyTorch ports of the "default" model share.

Flow is estimated from coarse to fine. At every level of a pyramid of learned features, the flow so far warps the second
frame's features, which are compared with the first frame's in a small neighbourhood (cost volume); a dense stack of
convolutions estimates the level's flow. A stack of dilated convolutions refines the finest flow.

Parts: the extractor (Sec. 3, feature pyramid), Decoder (warping, cost volume and flow estimator), the refiner (context
network).

Where this differs from the paper, because the weights that CDVD-TSP ships do:
1. The finest level is a quarter of the frame's size; its flow is upsampled bilinearly.
2. The cost volume is a mean over channels, and a leaky ReLU follows it.
3. Frames are RGB, as in CDVD-TSP's fine-tuning, not BGR.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.layers import correlate, dtype_of, in_channels_last, is_inside, warp

SLOPE = 0.1  # of the leaky ReLUs
WIDTHS = (16, 32, 64, 96, 128, 196)  # channels of the pyramid's levels 1 to 6, each half as large as the one before
DENSE = (128, 128, 96, 64, 32)  # channels that each step of a decoder adds
RADIUS = 4  # of the cost volume, in pixels of a level
COSTS = (2 * RADIUS + 1) ** 2  # channels of the cost volume
REFINING = ((128, 1), (128, 2), (128, 4), (96, 8), (64, 16), (32, 1))  # channels and dilations of the context network
FLOW_SCALE = 20.0  # pixels of the full resolution in one unit of the network's flow
MULTIPLE = 64  # six halvings

Pyramid = dict[int, Tensor]


class PWCNet(nn.Module):
    """Optical flow between two frames.

    pyramid() is computed once per frame, forward() once per pair.
    """

    def __init__(self) -> None:
        super().__init__()
        self.extractor = nn.ModuleList(
            nn.Sequential(*_conv(below, width, stride=2), *_conv(width, width), *_conv(width, width))
            for below, width in zip((3, *WIDTHS), WIDTHS, strict=False)
        )
        self.decoders = nn.ModuleDict({str(level): Decoder(level) for level in (6, 5, 4, 3, 2)})
        channels = Decoder.features_at(2)
        layers: list[nn.Module] = []
        for width, dilation in REFINING:
            layers += _conv(channels, width, dilation=dilation)
            channels = width
        self.refiner = nn.Sequential(*layers, nn.Conv2d(channels, 2, 3, padding=1))

    def pyramid(self, frame: Tensor) -> Pyramid:
        """Compute the features of a frame (B, 3, H, W), RGB in [0, 1], at levels 2 to 6: (B, C, h, w) by level."""
        size = [-(-side // MULTIPLE) * MULTIPLE for side in frame.shape[2:]]
        x = frame if list(frame.shape[2:]) == size else F.interpolate(frame, size, mode="bilinear", align_corners=False)
        x = in_channels_last(x.to(dtype_of(self)))
        levels: Pyramid = {}
        for level, extract in enumerate(self.extractor, 1):
            x = extract(x)
            levels[level] = x
        del levels[1]
        return levels

    def forward(self, first: Pyramid, second: Pyramid, height: int, width: int) -> Tensor:
        """Estimate the flow from first to second, (B, 2, height, width) float32, in pixels of that size.

        first, second: the frames' pyramids.
        """
        flow: Tensor | None = None
        features: Tensor | None = None
        for level in (6, 5, 4, 3, 2):
            flow, features = self.decoders[str(level)](first[level], second[level], flow, features)
        assert flow is not None
        assert features is not None
        flow = (flow + self.refiner(features)).float() * FLOW_SCALE  # (B, 2, h, w) at a quarter of the padded size
        inner_height, inner_width = (4 * side for side in flow.shape[2:])
        flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)
        return flow * flow.new_tensor((width / inner_width, height / inner_height))[:, None, None]

    @staticmethod
    def official_name(name: str) -> str:
        """Return the key of a tensor in the ports' own checkpoints (`network-default.pytorch`)."""
        part, index, *rest = name.split(".")
        if part == "extractor":
            return ".".join((f"moduleExtractor.module{NUMBERS[int(index)]}", *rest))
        if part == "refiner":
            return ".".join(("moduleRefiner.moduleMain", index, *rest))
        decoder = f"module{NUMBERS[int(index) - 1]}"
        if rest[0] == "dense":  # dense.<step>.0.weight
            return ".".join((decoder, f"module{NUMBERS[int(rest[1])]}", *rest[2:]))
        own = {"to_flow": "moduleSix.0", "upsample_flow": "moduleUpflow", "upsample_features": "moduleUpfeat"}
        return ".".join((decoder, own[rest[0]], *rest[1:]))


class Decoder(nn.Module):
    """Estimate the flow at one level from the features of both frames and the flow of the level above."""

    def __init__(self, level: int) -> None:
        super().__init__()
        channels = COSTS
        self.scale = FLOW_SCALE / 2**level  # pixels of this level in one unit of flow
        if level < 6:
            self.upsample_flow = nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1)
            self.upsample_features = nn.ConvTranspose2d(self.features_at(level + 1), 2, 4, stride=2, padding=1)
            channels += WIDTHS[level - 1] + 2 + 2
        self.dense = nn.ModuleList()
        for width in DENSE:
            self.dense.append(nn.Sequential(*_conv(channels, width)))
            channels += width
        self.to_flow = nn.Conv2d(channels, 2, 3, padding=1)

    @staticmethod
    def features_at(level: int) -> int:
        """Return the number of feature channels that a level's decoder returns."""
        return COSTS + sum(DENSE) + (WIDTHS[level - 1] + 2 + 2 if level < 6 else 0)

    def forward(
        self, first: Tensor, second: Tensor, flow: Tensor | None, features: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the flow (B, 2, h, w) in the network's units, and the features (B, C, h, w) it is computed from.

        first, second: (B, C, h, w). flow, features: of the level above, at half the size; None at the top.
        """
        if flow is None:
            x = _costs(first, second)
        else:
            flow = self.upsample_flow(flow)
            # The flow enters x in the network's units; only warping needs pixels.
            displacement = flow.float() * self.scale
            warped = warp(second, displacement) * is_inside(displacement).to(second.dtype)
            x = torch.cat((_costs(first, warped), first, flow, self.upsample_features(features)), 1)
        for step in self.dense:
            x = torch.cat((step(x), x), 1)
        return self.to_flow(x), x


NUMBERS = ("One", "Two", "Thr", "Fou", "Fiv", "Six")  # how the ports number levels and steps


def _costs(first: Tensor, second: Tensor) -> Tensor:
    return F.leaky_relu(correlate(first, second, RADIUS), SLOPE).to(first.dtype)


def _conv(channels: int, width: int, stride: int = 1, dilation: int = 1) -> tuple[nn.Module, nn.Module]:
    return (
        nn.Conv2d(channels, width, 3, stride, padding=dilation, dilation=dilation),
        nn.LeakyReLU(SLOPE, inplace=True),
    )
