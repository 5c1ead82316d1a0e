"""BasicVSR++: Improving Video Super-Resolution with Enhanced Propagation and Alignment.

Chan, Zhou, Xu, Loy, CVPR 2022, arXiv 2104.13371; its use for deblurring, and the weights: the same authors, "On the
Generalization of BasicVSR++ to Video Deblurring and Denoising", 2022, arXiv 2204.05308,
github.com/ckkelvinchan/BasicVSR_PlusPlus (code Apache-2.0).

Features at a quarter of the frame's size propagate through the whole clip four times: backward, forward, backward and
forward. In each pass a deformable convolution aligns the features of the last two frames with the current frame:
optical flow gives the approximate position, and the network adds a residual offset to it, one for each tap of the
kernel and each group of channels.

Parts, in the order of use: feature extraction and SPyNet's flow (spynet.py), both at a quarter of the size, Propagation
(second-order grid propagation), Alignment with deformable_convolution (flow-guided deformable alignment),
reconstruction.

Where this differs from the paper, because the published weights for deblurring do:
1. Strided convolutions shrink the frames first, and reconstruction returns to their own size.
2. The second frame of a pass has no frame two before it; its alignment uses zeros instead.
3. Frames smaller than 256 pixels are accepted; the references refuse them, but no part of the network needs that.
4. The flows of a clip that equals its own time reversal are computed like any other's: the authors' shortcut for such a
   clip gives all later clips wrong forward flows (measured: the result is off by 0.04).
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.layers import (
    FLOW_PIXELS,
    FewChannelsConv2d,
    Inside,
    Memory,
    Network,
    dtype_of,
    in_channels_last,
    show,
    shown_as,
    warp,
)
from vdeblur.networks.spynet import SPyNet

SLOPE = 0.1  # of the leaky ReLUs
PASSES = ("backward_1", "forward_1", "backward_2", "forward_2")
OUTER_BLOCKS = 5  # residual blocks of feature extraction, and of reconstruction
GROUPS = 16  # of channels, each with its own offsets
FARTHEST = 10.0  # largest residual offset from the flow, in pixels at a quarter of the size
TAPS = 9  # of a 3x3 kernel

Analysed = tuple[Tensor, Tensor, Tensor]
"""A frame (B, 3, H, W), its features (B, C, H/4, W/4) and its motion (B, 4, H/4, W/4); BasicVSRPP.analyse yields it."""


class BasicVSRPP(Network):
    """Restore a clip.

    analyse() extracts features and motion from whole frames, one after the other. restore() propagates and reconstructs
    as many of its results at once as memory allows, as whole frames or as tiles.
    """

    feeding = "clip"
    multiple = 4
    padding = "replicate"
    # 65 to 73 dB against float32 on the parity cases; bf16 47 to 56 dB, and no single part accounts for its errors.
    half_precision = ("fp16",)
    float32_parts = ("spynet",)
    overlap = 128
    constant_buffers = ("spynet.mean", "spynet.std")
    memory = Memory(tile=519, frame=8, tile_held=49, frame_held=89)
    half_memory = Memory(tile=573, frame_held=75)
    shows: ClassVar = {
        "flow": Inside(
            "flow to the previous frame, and back from it; zero for a scene's first frame", "flow", FLOW_PIXELS
        ),
        "warp": Inside("the last result of each pass, warped onto the frame by the flow alone", "channels"),
        "gates": Inside("factors of the deformable convolution's samples, 0 to 1", "channels"),
        "rnn": Inside("the results of the four passes", "channels"),
        "features": Inside("the frame's features, and those before upsampling", "channels"),
    }

    def __init__(self, width: int = 64, blocks: int = 15) -> None:
        super().__init__()
        self.spynet = SPyNet()
        self.feature_extraction = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.LeakyReLU(SLOPE, inplace=True),
            Trunk(width, width, OUTER_BLOCKS),
        )
        self.propagation = nn.ModuleDict(
            {name: Propagation(width, blocks, earlier) for earlier, name in enumerate(PASSES)}
        )
        self.reconstruction = Trunk((1 + len(PASSES)) * width, width, OUTER_BLOCKS)
        self.upsample_1 = nn.Conv2d(width, 4 * width, 3, padding=1)
        self.upsample_2 = nn.Conv2d(width, 4 * 64, 3, padding=1)
        self.conv_hr = nn.Conv2d(64, 64, 3, padding=1)
        self.conv_last = FewChannelsConv2d(64, 3, 3, padding=1)
        for conv in (self.upsample_1, self.upsample_2):
            nn.init.kaiming_normal_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, clip: Tensor) -> Tensor:
        """Restore a whole clip: (B, T, 3, H, W) RGB in [0, 1] to the same, not clamped."""
        return torch.stack(list(self.restore(list(self.analyse(clip.unbind(1))))), 1)

    def analyse(self, frames: Iterable[Tensor]) -> Iterator[Analysed]:
        """Yield each frame (B, 3, H, W), RGB in [0, 1], with its features and its motion.

        Motion: two channels of flow to the previous frame, then two of flow back from it; zero for the first frame.
        """
        previous: Tensor | None = None
        for frame in frames:
            features = self.feature_extraction(
                in_channels_last(frame.to(dtype_of(self.feature_extraction)))
            )  # (B, C, H/4, W/4)
            quarter = F.interpolate(frame, scale_factor=0.25, mode="bicubic", align_corners=False)
            if previous is None:
                motion = quarter.new_zeros(quarter.shape[0], 4, *quarter.shape[2:])
            else:
                with torch.autocast(frame.device.type, enabled=False):  # flow stays in float32 in training, too
                    flows = self.spynet(torch.cat((quarter, previous)), torch.cat((previous, quarter)))
                motion = torch.cat(flows.chunk(2), 1)  # (B, 4, H/4, W/4)
            show(self, "flow", motion[:, :2], "to_previous")
            show(self, "flow", motion[:, 2:], "from_previous")
            show(self, "features", features, "extraction")
            yield frame, features, motion
            previous = quarter

    def restore(self, clip: Sequence[Analysed], first: int = 0, last: int | None = None) -> Iterator[Tensor]:
        """Yield the restored frames (B, 3, H, W), float32, from number `first` up to but without `last`.

        The feature maps of a frame are freed as soon as it is restored.
        """
        last = len(clip) if last is None else last
        maps = [[features] for _, features, _ in clip]  # per frame: its features, then each pass's result
        motions = [motion for _, _, motion in clip]
        for name in PASSES[:-1]:
            for index, propagated in self._propagate(name, maps, motions):
                maps[index].append(propagated)
        # The last pass runs forward, so each frame is restored as soon as the pass has reached it.
        for index, propagated in self._propagate(PASSES[-1], maps[:last], motions):
            if index >= first:
                yield self._reconstruct(clip[index][0], [*maps[index], propagated])
            maps[index].clear()

    def _propagate(
        self, name: str, maps: Sequence[Sequence[Tensor]], motions: Sequence[Tensor]
    ) -> Iterator[tuple[int, Tensor]]:
        """Run one pass over a clip; yield the number of each frame and the pass's result for it (B, C, h, w)."""
        past: Past = deque(maxlen=2)
        backward = name.startswith("backward")
        for step in range(len(maps)):
            index = len(maps) - 1 - step if backward else step
            flow: Tensor | None = None
            if step:
                flow = motions[index + 1][:, 2:] if backward else motions[index][:, :2]
            with shown_as(index):
                propagated = self.propagation[name](maps[index], flow, past)
            past.append((propagated, flow))
            yield index, propagated

    def _reconstruct(self, frame: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Restore a frame, (B, 3, H, W) float32, from its features and the passes' results, each (B, C, H/4, W/4)."""
        x = self.reconstruction(torch.cat(tuple(maps), 1))
        show(self, "features", x, "reconstruction")
        for upsample in (self.upsample_1, self.upsample_2):
            x = F.pixel_shuffle(F.leaky_relu(upsample(x), SLOPE, inplace=True), 2)  # to (B, 64, H, W)
        difference = self.conv_last(F.leaky_relu(self.conv_hr(x), SLOPE, inplace=True))
        restored: Tensor = frame + difference.float()
        return restored

    @staticmethod
    def official_name(name: str) -> str:
        """Return the key in `basicvsr_plusplus_deblur_*.pth`, after `generator.`."""
        part, *rest = name.split(".")
        inner = ".".join(rest)
        match part:
            case "spynet":
                return f"spynet.{SPyNet.official_name(inner)}"
            case "feature_extraction":
                return f"feat_extract.{_trunk_name(inner)}"
            case "propagation":
                direction, module, inner = inner.split(".", 2)
                if module == "trunk":
                    return f"backbone.{direction}.{_trunk_name(inner)}"
                return f"deform_align.{direction}.{inner.replace('offsets', 'conv_offset')}"
            case "reconstruction":
                return f"reconstruction.{_trunk_name(inner)}"
            case "upsample_1" | "upsample_2":
                return f"{part.replace('_', '')}.upsample_conv.{inner}"
        return name  # conv_hr, conv_last


def _trunk_name(name: str) -> str:
    name = name.replace("begin.", "main.0.").replace("blocks.", "main.2.")
    return name.replace("conv_1", "conv1").replace("conv_2", "conv2")


Past = deque[tuple[Tensor, Tensor | None]]
"""A pass's results for its last two frames, each with the flow from that frame to the one the pass came from."""


class Propagation(nn.Module):
    """One step of one pass: align the last two results with the frame, and refine them with all its feature maps."""

    def __init__(self, width: int, blocks: int, earlier: int) -> None:
        super().__init__()
        self.alignment = Alignment(width)
        self.trunk = Trunk((2 + earlier) * width, width, blocks)

    def forward(self, maps: Sequence[Tensor], flow: Tensor | None, past: Past) -> Tensor:
        """Return this pass's result for a frame, (B, C, h, w).

        maps: the frame's features and the results of earlier passes, each (B, C, h, w). flow: (B, 2, h, w) float32, to
        the frame that the pass comes from; None at the first frame of the pass.
        """
        aligned = torch.zeros_like(maps[0]) if flow is None else self.alignment(maps[0], flow, past)
        propagated: Tensor = aligned + self.trunk(torch.cat((*maps, aligned), 1))
        show(self, "rnn", propagated)
        return propagated


class Alignment(nn.Module):
    """Flow-guided deformable alignment of a pass's last two results with the current frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (3 * width + 4, width, width):
            layers += (nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(SLOPE, inplace=True))
        self.offsets = nn.Sequential(*layers, nn.Conv2d(width, 3 * TAPS * GROUPS, 3, padding=1))
        nn.init.zeros_(self.offsets[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.offsets[-1].bias)  # type: ignore[arg-type]
        self.weight = nn.Parameter(torch.empty(width, 2 * width, 3, 3))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # nn.Conv2d's default

    def forward(self, features: Tensor, flow: Tensor, past: Past) -> Tensor:
        """Return (B, C, h, w) from features of that shape; flow: (B, 2, h, w) float32, to the frame of past[-1]."""
        first, first_past_flow = past[-1]
        if first_past_flow is None:  # the pass has seen one frame only
            second, second_flow = torch.zeros_like(first), torch.zeros_like(flow)
        else:
            second, second_flow = past[-2][0], flow + warp(first_past_flow, flow)
        exact = torch.promote_types(first.dtype, torch.float32)
        both = torch.cat((first.contiguous(), second.contiguous()), 1).to(exact)  # (B, 2 C, h, w)
        flows = torch.cat((flow, second_flow), 1)  # (B, 4, h, w)

        # Warp by the flow alone, and predict the residual offsets from the result.
        warped = warp(_halves_in_batch(both), _halves_in_batch(flows)).unflatten(0, (-1, 2)).to(features.dtype)
        warped, second_warped = (in_channels_last(part) for part in warped.unbind(1))
        context = torch.cat((warped, features, second_warped, in_channels_last(flows.to(features.dtype))), 1)
        raw = self.offsets(context).contiguous().to(exact)  # (B, 432, h, w)
        residual, mask = raw.split((2 * TAPS * GROUPS, TAPS * GROUPS), 1)
        show(self, "warp", warped)
        show(self, "gates", lambda: mask.sigmoid())

        # The first half of the groups belong to the last frame, the others to the one before; offsets: vertical first.
        flow_offset = flows.unflatten(1, (2, 1, 2)).flip(3)  # (B, 2, 1, 2, h, w)
        residual = residual.unflatten(1, (2, -1, 2)).tanh()  # (B, 2, 72, 2, h, w)
        offset = torch.add(flow_offset, residual, alpha=FARTHEST).flatten(1, 3)  # (B, 288, h, w)
        # The samples of one tap stay in a CPU's cache; a GPU is faster with few calls.
        at_once = TAPS if both.is_cuda else 1
        aligned = deformable_convolution(both, offset, mask.sigmoid(), self.weight, self.bias, at_once)
        return in_channels_last(aligned)


def _halves_in_batch(pair: Tensor) -> Tensor:
    """Move the two halves of the channels into the batch: (B, 2 C, h, w) to (2 B, C, h, w)."""
    batch, channels, height, width = pair.shape
    return pair.reshape(2 * batch, channels // 2, height, width)


def deformable_convolution(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, at_once: int = 1
) -> Tensor:
    """Convolve with a 3x3 kernel whose taps have offsets and factors of their own at every pixel, in G groups.

    x: (B, C, h, w), zero outside, sampled bilinearly. offset: (B, 18 G, h, w), pixels; channels 18 g + 2 t and
    18 g + 2 t + 1 move tap t = 3 row + column of group g down and to the right. mask: (B, 9 G, h, w), factors of the
    samples. weight: (O, C, 3, 3). at_once: taps that are sampled together, 1, 3 or 9. Result: (B, O, h, w), of weight's
    type.
    """
    batch, _, height, width = x.shape
    groups = mask.shape[1] // TAPS
    exact = torch.promote_types(x.dtype, torch.float32)  # half-precision positions are off by up to 1/3 pixel
    x = x.to(exact).reshape(batch * groups, -1, height, width)
    offset = offset.to(exact).reshape(batch * groups, TAPS, 2, height, width)
    mask = mask.to(exact).reshape(batch * groups, TAPS, height, width)
    # Positions of the taps without offsets, for grid_sample without aligned corners: pixels are the middles of cells.
    tap = torch.arange(TAPS, device=x.device, dtype=exact)[:, None]
    row, column = (torch.arange(side, device=x.device, dtype=exact) for side in (height, width))
    regular_y = ((row + tap.div(3, rounding_mode="floor") - 0.5) * (2 / height) - 1)[:, :, None]  # (9, h, 1)
    regular_x = ((column + tap % 3 - 0.5) * (2 / width) - 1)[:, None]  # (9, 1, w)
    result: Tensor = bias.reshape(1, -1, 1)
    for first in range(0, TAPS, at_once):
        taps = slice(first, first + at_once)
        grid_y = torch.add(regular_y[taps], offset[:, taps, 0], alpha=2 / height)
        grid_x = torch.add(regular_x[taps], offset[:, taps, 1], alpha=2 / width)
        grid = torch.stack((grid_x, grid_y), 4).flatten(1, 2)  # (B G, taps h, w, 2)
        sampled = F.grid_sample(x, grid, "bilinear", "zeros", align_corners=False)
        sampled = sampled * mask[:, taps].flatten(1, 2)[:, None]
        columns = sampled.reshape(batch, -1, height * width).to(weight.dtype)  # (B, C taps, h w)
        tap_weights = weight.flatten(2)[:, :, taps].flatten(1)  # (O, C taps)
        result = torch.baddbmm(result, tap_weights.expand(batch, -1, -1), columns)
    return result.reshape(batch, -1, height, width)


class Trunk(nn.Module):
    """A convolution and residual blocks, without a skip around them all."""

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.begin = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) from x, (B, channels, h, w)."""
        y: Tensor = self.blocks(F.leaky_relu(self.begin(x), SLOPE, inplace=True))
        return y


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a ReLU between, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        for conv in (self.conv_1, self.conv_2):  # the reference's initial weights
            nn.init.kaiming_normal_(conv.weight)
            conv.weight.data.mul_(0.1)
            conv.bias.data.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) from x of that shape."""
        difference: Tensor = self.conv_2(F.relu_(self.conv_1(x)))
        return x + difference
