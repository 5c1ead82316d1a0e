"""Cascaded Deep Video Deblurring Using Temporal Sharpness Prior.

Pan, Bai, Tang, CVPR 2020, arXiv 2004.02501. Weights: github.com/csbhr/CDVD-TSP (code MIT; the weights hold a fine-tuned
PWC-Net, whose start weights are for non-commercial use).

A pixel that is sharp in all of the aligned frames looks the same in each; a blurry one does not. So optical flow warps
both neighbours onto the middle frame, their differences from it give a map of sharpness, and an encoder-decoder
restores the middle frame from all four. A second stage repeats this with the restored frames, because flow between
sharper frames is more accurate.

Parts: PWC-Net (Sec. 3.1, pwcnet.py), sharpness_prior (Sec. 3.2, Eq. 10 and 11), Restoration (Sec. 3.3). The cascade
(Sec. 3.4) is streams.stream_cascade, which runs one stage after the other.

Where this differs from the paper, because the published weights do:
1. The prior compares 5x5 means, and takes a square root of the sum of squares; Eq. 10 and 11 have neither.
2. Pixels that come from outside the frame are zero in the warped frames and in the prior.
3. Both stages share all weights.
4. The network's output is the restored frame itself, not a residual, and nothing is clamped between the stages.
"""

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
    is_inside,
    show,
    warp,
)
from vdeblur.networks.pwcnet import PWCNet, Pyramid

MEAN_SIDE = 5  # pixels, side of the window of the prior's means


class CDVDTSP(Network):
    """Restore the middle one of three frames, with their optical flow and the temporal sharpness prior.

    stages: of the cascade. prior, flow: switches of the paper's ablations. Without flow the neighbours are not warped,
    and the prior compares them as they are.

    Restoration reaches 181 pixels, so tiles that share 184 are exact; pixels more than 64 away have little influence.
    """

    feeding = "cascade"
    multiple = 4
    half_precision = ("fp16",)  # 53 to 56 dB against float32 on the parity cases; bf16 only 41 to 46 dB
    left_out: ClassVar = {("flow", False): ("flow_net",)}
    fit_any_weights = ("stages",)
    float32_parts = ("flow_net",)  # in half precision, flow is off by up to a third of a pixel
    overlap = 64
    memory = Memory(frame=1583)
    half_memory = Memory(frame=1637)
    shows: ClassVar = {
        "flow": Inside("optical flow to both neighbours, in each stage (Sec. 3.1)", "flow", FLOW_PIXELS),
        "warp": Inside("the neighbours, warped onto the frame by the flow", "picture"),
        "prior": Inside("the temporal sharpness prior, 1 where the aligned frames agree (Eq. 11)", "map"),
        "stage1": Inside("the frame as each stage but the last restored it (Sec. 3.4)", "picture"),
        "features": Inside("features of the restoration at a quarter of the size (Sec. 3.3)", "channels"),
    }

    def __init__(
        self, channels: int = 32, blocks: int = 3, stages: int = 2, prior: bool = True, flow: bool = True
    ) -> None:
        super().__init__()
        if stages < 1:
            raise ValueError(f"stages must be 1 or more, not {stages}")
        self.prior = prior
        self.stages = stages  # Sec. 3.4; a second stage gains 0.54 dB on DVD, a third 0.07 dB more (Table 3)
        self.flow_net = PWCNet() if flow else None
        self.restoration = Restoration(3 * 3 + prior, channels, blocks)
        self.show_all_but(*("prior",) * (not prior), *("flow", "warp") * (not flow), *("stage1",) * (stages == 1))

    def forward(self, previous: Tensor, frame: Tensor, following: Tensor) -> Tensor:
        """Compute one stage: three frames (B, 3, H, W), RGB in [0, 1], to the restored middle one, not clamped."""
        pyramids = tuple(self.pyramid(picture) for picture in (previous, frame, following))
        return self.restore(self.align((previous, frame, following), pyramids))

    def pyramid(self, frame: Tensor) -> Pyramid:
        """Compute the features that flow needs of a frame, for all pairs of frames that it belongs to."""
        return {} if self.flow_net is None else self.flow_net.pyramid(frame)

    def align(self, frames: tuple[Tensor, ...], pyramids: tuple[Pyramid, ...]) -> Tensor:
        """Concatenate the warped previous frame, the middle frame, the warped following one and the prior.

        frames: previous, middle and following, each (B, 3, H, W), not tiles, because flow depends on the whole frame.
        pyramids: those of the frames. Result: (B, 10, H, W), float32; without the prior (B, 9, H, W).
        """
        previous, frame, following = frames
        if self.flow_net is None:
            if not self.prior:
                return torch.cat(frames, 1)
            sharpness = sharpness_prior(*frames)
            show(self, "prior", sharpness)
            return torch.cat((*frames, sharpness), 1)
        batch, _, height, width = frame.shape
        # Sec. 3.1: flows from the middle frame to both neighbours, in one batch
        middle = {level: torch.cat((x, x)) for level, x in pyramids[1].items()}
        around = {level: torch.cat((pyramids[0][level], pyramids[2][level])) for level in middle}
        flow = self.flow_net(middle, around, height, width)  # (2 B, 2, H, W)
        inside = is_inside(flow)  # (2 B, 1, H, W)
        warped = warp(torch.cat((frames[0], frames[2])), flow, "border") * inside
        previous, following = warped.split(batch)
        for index, part in enumerate(("to_previous", "to_following")):
            show(self, "flow", flow[index * batch :], part)
        show(self, "warp", previous, "previous")
        show(self, "warp", following, "following")
        if not self.prior:
            return torch.cat((previous, frame, following), 1)
        # Sec. 3.2: zero where either neighbour was warped from outside the frame
        sharpness = sharpness_prior(previous, frame, following) * inside[:batch] * inside[batch:]
        show(self, "prior", sharpness)
        return torch.cat((previous, frame, following, sharpness), 1)

    def restore(self, aligned: Tensor) -> Tensor:
        """Restore the middle frame, (B, 3, H, W) float32, from align's result or a tile of it (Sec. 3.3)."""
        restored: Tensor = self.restoration(in_channels_last(aligned.to(dtype_of(self.restoration))))
        return restored.float()

    @staticmethod
    def official_name(name: str) -> str:
        """Return the key in `CDVD_TSP_*.pt`."""
        part, _, rest = name.partition(".")
        if part == "flow_net":
            return f"flow_net.moduleNetwork.{PWCNet.official_name(rest)}"
        for ours, theirs in BLOCKS.items():
            if rest.startswith(ours + "."):
                return f"recons_net.{theirs}.{rest.removeprefix(ours + '.')}"
        raise KeyError(name)


BLOCKS = {
    "enter": "inBlock",
    "encode_1": "encoder_first",
    "encode_2": "encoder_second",
    "decode_2": "decoder_second",
    "decode_1": "decoder_first",
    "leave": "outBlock",
}


@torch.no_grad()
def sharpness_prior(previous: Tensor, frame: Tensor, following: Tensor) -> Tensor:
    """Compute the temporal sharpness prior of three aligned frames: 1 where they agree, towards 0 where they differ.

    Eq. (10) and (11), with the means and the root that the weights were trained with. Frames: (B, 3, H, W). Result:
    (B, 1, H, W), without gradient: the root's is infinite at 0.
    """
    before, middle, after = (
        F.avg_pool2d(x, MEAN_SIDE, 1, MEAN_SIDE // 2) for x in (previous, frame, following)
    )  # the zeros outside count, so means decrease towards the border
    distance = ((before - middle).square() + (after - middle).square()) / 2
    prior: Tensor = (-distance.sum(1, keepdim=True).sqrt()).exp()
    return prior


class Restoration(nn.Module):
    """Encoder-decoder with residual blocks at three scales and additive skips (Sec. 3.3); 5x5, transposed 3x3."""

    def __init__(self, inputs: int, channels: int, blocks: int) -> None:
        super().__init__()

        def residual(width: int) -> list[nn.Module]:
            return [ResidualBlock(width) for _ in range(blocks)]

        def conv(source: int, target: int, stride: int = 1) -> nn.Module:
            return nn.Sequential(nn.Conv2d(source, target, 5, stride, 2), nn.ReLU(inplace=True))

        def enlarge(source: int, target: int) -> nn.Module:
            up = nn.ConvTranspose2d(source, target, 3, stride=2, padding=1, output_padding=1)
            return nn.Sequential(up, nn.ReLU(inplace=True))

        n = channels
        self.enter = nn.Sequential(conv(inputs, n), *residual(n))
        self.encode_1 = nn.Sequential(conv(n, 2 * n, 2), *residual(2 * n))
        self.encode_2 = nn.Sequential(conv(2 * n, 4 * n, 2), *residual(4 * n))
        self.decode_2 = nn.Sequential(*residual(4 * n), enlarge(4 * n, 2 * n))
        self.decode_1 = nn.Sequential(*residual(2 * n), enlarge(2 * n, n))
        self.leave = nn.Sequential(*residual(n), FewChannelsConv2d(n, 3, 5, padding=2))

    def forward(self, aligned: Tensor) -> Tensor:
        """Return (B, 3, H, W) from (B, inputs, H, W)."""
        full = self.enter(aligned)  # (B, 32, H, W)
        half = self.encode_1(full)  # (B, 64, H/2, W/2)
        quarter = self.encode_2(half)  # (B, 128, H/4, W/4)
        show(self, "features", quarter)
        half = self.decode_2(quarter) + half
        full = self.decode_1(half) + full
        restored: Tensor = self.leave(full)
        return restored


class ResidualBlock(nn.Module):
    """Two 5x5 convolutions with a ReLU between, added to the input; no activation after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 5, padding=2)
        self.conv2 = nn.Conv2d(channels, channels, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) from x of that shape."""
        difference: Tensor = self.conv2(F.relu(self.conv1(x), inplace=True))
        return difference + x
