"""BasicVSR++: Improving Video Super-Resolution with Enhanced Propagation and Alignment.

Chan, Zhou, Xu, Loy, CVPR 2022, arXiv 2104.13371; its use for deblurring, and the weights: the same authors, "On the
Generalization of BasicVSR++ to Video Deblurring and Denoising", 2022, arXiv 2204.05308,
github.com/ckkelvinchan/BasicVSR_PlusPlus (code Apache-2.0).

Features of a quarter of the frame's size travel through the whole clip four times, twice backward and twice forward.
Each time what arrives from the last two frames is brought into place by a deformable convolution: optical flow says
roughly where to look, and the network adds a residual to it, for every tap and every group of channels its own.

Parts, in the order of use: features at a quarter of the size and SPyNet's flow (spynet.py), Propagation (second-order
grid propagation), Alignment with deformable_convolution (flow-guided deformable alignment), reconstruction.

Where this differs from the paper, because the published weights for deblurring do:
1. Frames are made smaller by strided convolutions first, and reconstruction gives their own size again.
2. The second frame of a pass, which has no frame two before it, is aligned with zeros in its place.
3. Frames smaller than 256 pixels are taken as they are; the references refuse them, though nothing needs it.
4. A clip that is its own mirror image gets its flows like any other: the authors' shortcut for it spoils later clips.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.layers import FewChannelsConv2d, Memory, Network, dtype_of, in_channels_last, warp
from vdeblur.networks.spynet import SPyNet

SLOPE = 0.1  # of the leaky ReLUs
PASSES = ("backward_1", "forward_1", "backward_2", "forward_2")
OUTER_BLOCKS = 5  # residual blocks of feature extraction, and of reconstruction
GROUPS = 16  # of channels that are sampled at places of their own
FARTHEST = 10.0  # pixels of a quarter-size frame that an offset may differ from the flow
TAPS = 9  # of a 3x3 kernel

Analysed = tuple[Tensor, Tensor, Tensor]
"""A frame (B, 3, H, W), its features (B, C, H/4, W/4) and its motion (B, 4, H/4, W/4), see BasicVSRPP.analyse."""


class BasicVSRPP(Network):
    """Restore a clip.

    analyse() looks at whole frames, one after the other; restore() takes as many of its results as memory allows, of
    whole frames or of tiles.
    """

    feeding = "clip"
    multiple = 4
    padding = "replicate"
    # 65 to 73 dB on the parity cases; bf16 gives 47 to 56, and no part of the network alone is to blame.
    half_precision = ("fp16",)
    float32_parts = ("spynet",)
    overlap = 128
    constant_buffers = ("spynet.mean", "spynet.std")
    memory = Memory(tile=519, frame=8, tile_held=49, frame_held=89)
    half_memory = Memory(tile=573, frame_held=75)

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
        """Restore a clip as one: (B, T, 3, H, W) RGB in [0, 1] to the same, not clamped."""
        return torch.stack(list(self.restore(list(self.analyse(clip.unbind(1))))), 1)

    def analyse(self, frames: Iterable[Tensor]) -> Iterator[Analysed]:
        """Give each frame (B, 3, H, W), RGB in [0, 1], with its features and its motion.

        The motion: two channels of flow to the frame before, and two of flow from there; zero for the first frame.
        """
        before: Tensor | None = None
        for frame in frames:
            features = self.feature_extraction(
                in_channels_last(frame.to(dtype_of(self.feature_extraction)))
            )  # (B, C, H/4, W/4)
            quarter = F.interpolate(frame, scale_factor=0.25, mode="bicubic", align_corners=False)
            if before is None:
                motion = quarter.new_zeros(quarter.shape[0], 4, *quarter.shape[2:])
            else:
                with torch.autocast(frame.device.type, enabled=False):  # flow stays in float32 in training, too
                    both = self.spynet(torch.cat((quarter, before)), torch.cat((before, quarter)))
                motion = torch.cat(both.chunk(2), 1)  # (B, 4, H/4, W/4)
            yield frame, features, motion
            before = quarter

    def restore(self, clip: Sequence[Analysed], first: int = 0, last: int | None = None) -> Iterator[Tensor]:
        """Give the restored frames (B, 3, H, W) float32 from number `first` to the one before `last`.

        What the passes found for a frame is freed as soon as it is restored.
        """
        last = len(clip) if last is None else last
        maps = [[features] for _, features, _ in clip]  # of each frame: its features, then what each pass found
        motions = [motion for _, _, motion in clip]
        for name in PASSES[:-1]:
            for index, found in self._propagate(name, maps, motions):
                maps[index].append(found)
        # The last pass goes forward, so that its frames can be restored as it goes.
        for index, found in self._propagate(PASSES[-1], maps[:last], motions):
            if index >= first:
                yield self._reconstruct(clip[index][0], [*maps[index], found])
            maps[index].clear()

    def _propagate(
        self, name: str, maps: Sequence[Sequence[Tensor]], motions: Sequence[Tensor]
    ) -> Iterator[tuple[int, Tensor]]:
        """Let features travel through a clip once; give frames' numbers, and what is found there (B, C, h, w)."""
        past: Past = deque(maxlen=2)
        backward = name.startswith("backward")
        for step in range(len(maps)):
            index = len(maps) - 1 - step if backward else step
            flow: Tensor | None = None
            if step:
                flow = motions[index + 1][:, 2:] if backward else motions[index][:, :2]
            found = self.propagation[name](maps[index], flow, past)
            past.append((found, flow))
            yield index, found

    def _reconstruct(self, frame: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Give the restored frame (B, 3, H, W) float32 from its five maps (B, C, H/4, W/4)."""
        x = self.reconstruction(torch.cat(tuple(maps), 1))
        for upsample in (self.upsample_1, self.upsample_2):
            x = F.pixel_shuffle(F.leaky_relu(upsample(x), SLOPE, inplace=True), 2)  # to (B, 64, H, W)
        difference = self.conv_last(F.leaky_relu(self.conv_hr(x), SLOPE, inplace=True))
        restored: Tensor = frame + difference.float()
        return restored

    @staticmethod
    def official_name(name: str) -> str:
        """Give the name in `basicvsr_plusplus_deblur_*.pth`, after `generator.`."""
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
"""What a pass found for the last two frames, each with the flow that led from that frame to the one before it."""


class Propagation(nn.Module):
    """One step of one pass: align what arrives with the frame, and add what all that is known of the frame says."""

    def __init__(self, width: int, blocks: int, earlier: int) -> None:
        super().__init__()
        self.alignment = Alignment(width)
        self.trunk = Trunk((2 + earlier) * width, width, blocks)

    def forward(self, maps: Sequence[Tensor], flow: Tensor | None, past: Past) -> Tensor:
        """Give what this pass finds for a frame, (B, C, h, w).

        maps: the frame's features and what earlier passes found, each (B, C, h, w). flow: (B, 2, h, w) float32, to the
        frame that the pass comes from, None at its beginning.
        """
        aligned = torch.zeros_like(maps[0]) if flow is None else self.alignment(maps[0], flow, past)
        found: Tensor = aligned + self.trunk(torch.cat((*maps, aligned), 1))
        return found


class Alignment(nn.Module):
    """Flow-guided deformable alignment of the last two frames' maps with a frame."""

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
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # what convolutions begin with

    def forward(self, features: Tensor, flow: Tensor, past: Past) -> Tensor:
        """Give (B, C, h, w) from features of that shape; flow: (B, 2, h, w) float32, to the frame before."""
        found, flow_before = past[-1]
        if flow_before is None:  # there is no frame two before
            second, second_flow = torch.zeros_like(found), torch.zeros_like(flow)
        else:
            second, second_flow = past[-2][0], flow + warp(flow_before, flow)
        exact = torch.promote_types(found.dtype, torch.float32)
        arriving = torch.cat((found.contiguous(), second.contiguous()), 1).to(exact)  # (B, 2 C, h, w)
        flows = torch.cat((flow, second_flow), 1)  # (B, 4, h, w)

        # Where to look: roughly by flow, and what is found there tells where exactly.
        warped = warp(_unfold(arriving), _unfold(flows)).unflatten(0, (-1, 2)).to(features.dtype)
        warped, second_warped = (in_channels_last(part) for part in warped.unbind(1))
        context = torch.cat((warped, features, second_warped, in_channels_last(flows.to(features.dtype))), 1)
        raw = self.offsets(context).contiguous().to(exact)  # (B, 432, h, w)
        residual, mask = raw.split((2 * TAPS * GROUPS, TAPS * GROUPS), 1)

        # The first half of the groups are the frame before, the others the one before that; offsets are vertical first.
        towards = flows.unflatten(1, (2, 1, 2)).flip(3)  # (B, 2, 1, 2, h, w)
        residual = residual.unflatten(1, (2, -1, 2)).tanh()  # (B, 2, 72, 2, h, w)
        offset = torch.add(towards, residual, alpha=FARTHEST).flatten(1, 3)  # (B, 288, h, w)
        # Tap by tap the samples of all groups stay in a processor's cache; a GPU wants few calls.
        at_once = TAPS if arriving.is_cuda else 1
        aligned = deformable_convolution(arriving, offset, mask.sigmoid(), self.weight, self.bias, at_once)
        return in_channels_last(aligned)


def _unfold(pair: Tensor) -> Tensor:
    """Put the halves of the channels along the batch: (B, 2 C, h, w) to (2 B, C, h, w)."""
    batch, channels, height, width = pair.shape
    return pair.reshape(2 * batch, channels // 2, height, width)


def deformable_convolution(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, at_once: int = 1
) -> Tensor:
    """Convolve as a 3x3 kernel would whose taps lie anywhere, for every pixel and group of channels elsewhere.

    x: (B, C, h, w), zero outside, sampled bilinearly. offset: (B, 18 G, h, w), pixels; the two channels from 18 g + 2 t
    say how far down and to the right of its usual place tap t = 3 row + column of group g lies. mask: (B, 9 G, h, w),
    what a sample is multiplied by. weight: (O, C, 3, 3). at_once: taps that are sampled together, 1, 3 or 9. Result:
    (B, O, h, w), of weight's type.
    """
    batch, _, height, width = x.shape
    groups = mask.shape[1] // TAPS
    exact = torch.promote_types(x.dtype, torch.float32)  # a place in half precision would be off by a third of a pixel
    x = x.to(exact).reshape(batch * groups, -1, height, width)
    offset = offset.to(exact).reshape(batch * groups, TAPS, 2, height, width)
    mask = mask.to(exact).reshape(batch * groups, TAPS, height, width)
    # Where grid_sample without aligned corners finds each tap, without its offset: pixels are the middles of cells.
    tap = torch.arange(TAPS, device=x.device, dtype=exact)[:, None]
    row, column = (torch.arange(side, device=x.device, dtype=exact) for side in (height, width))
    usual_y = ((row + tap.div(3, rounding_mode="floor") - 0.5) * (2 / height) - 1)[:, :, None]  # (9, h, 1)
    usual_x = ((column + tap % 3 - 0.5) * (2 / width) - 1)[:, None]  # (9, 1, w)
    result: Tensor = bias.reshape(1, -1, 1)
    for first in range(0, TAPS, at_once):
        taps = slice(first, first + at_once)
        grid_y = torch.add(usual_y[taps], offset[:, taps, 0], alpha=2 / height)
        grid_x = torch.add(usual_x[taps], offset[:, taps, 1], alpha=2 / width)
        grid = torch.stack((grid_x, grid_y), 4).flatten(1, 2)  # (B G, taps h, w, 2)
        sampled = F.grid_sample(x, grid, "bilinear", "zeros", align_corners=False)
        sampled = sampled * mask[:, taps].flatten(1, 2)[:, None]
        columns = sampled.reshape(batch, -1, height * width).to(weight.dtype)  # (B, C taps, h w)
        taken = weight.flatten(2)[:, :, taps].flatten(1)  # (O, C taps)
        result = torch.baddbmm(result, taken.expand(batch, -1, -1), columns)
    return result.reshape(batch, -1, height, width)


class Trunk(nn.Module):
    """A convolution and residual blocks, without a skip over all."""

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.begin = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """Give (B, C, h, w) from x, (B, channels, h, w)."""
        y: Tensor = self.blocks(F.leaky_relu(self.begin(x), SLOPE, inplace=True))
        return y


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a ReLU between, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        for conv in (self.conv_1, self.conv_2):  # as the reference begins
            nn.init.kaiming_normal_(conv.weight)
            conv.weight.data.mul_(0.1)
            conv.bias.data.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Give (B, C, h, w) from x of that shape."""
        difference: Tensor = self.conv_2(F.relu_(self.conv_1(x)))
        return x + difference
