"""PVDNet: recurrent video deblurring with a pixel volume.

Son, Lee, Lee, Cho, Lee: Recurrent Video Deblurring with Blur-Invariant Motion Estimation and Pixel Volumes. ACM
Transactions on Graphics 2021, arXiv 2108.09982.

The previous frame is already restored, so it is the best source for the current one, once it is aligned. Blur-invariant
motion estimation aligns it, but makes errors. So the restored frame is not warped just once: for every pixel, 25
candidates are stacked, found by applying the motion of each pixel in its 5x5 neighbourhood to it. Where motion is
smooth they agree, and where some are wrong most are right. From this pixel volume and the blurry frame with its
neighbours, a small U-net predicts the residual that is added to the frame.

Parts, in the order of use:

- `PVDNet.align`     motion and pixel volume of the whole frame;
- `bimnet.BIMNet`    blur-invariant motion estimation, see bimnet.py;
- `pixel_volume`     the candidates;
- `PVDNet.forward`   the U-net, which can run tile by tile.

Where this differs from the paper, because the published weights do:

1. The volume and the residual use pictures in [-1, 1], but motion is estimated in [0, 1].
2. "Large" is not the one of Table 3, which doubles all widths: it has 192 channels and 24 blocks at a quarter of the
   resolution, and the usual widths elsewhere (its file has 23.4 million parameters, not 25.0).
3. In the volume, displaced coordinates are truncated toward zero, neither rounded nor floored. The outermost rows and
   columns count as outside. There the current frame replaces the previous one; where the neighbour itself is outside,
   the value is zero (measured on random weights: floor instead of truncation changes results by up to 0.04).
4. The motion of the last rows and columns beyond a multiple of 32 is zero, see bimnet.py.

Two computations differ from the authors' code, with the same result: the features of a frame are kept for the next
step, and the volume is built from integer coordinates, by 25 look-ups in one plane.

The authors' code is under the AGPL-3.0, and none of it is used here. Their weights come without a licence of their own;
those of LiteFlowNet, from which BIMNet's training started, are for research only.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.bimnet import BIMNet, Pyramid
from vdeblur.networks.layers import (
    FLOW_PIXELS,
    FewChannelsConv2d,
    Inside,
    Memory,
    Network,
    dtype_of,
    in_channels_last,
    show,
    warp,
)

GRAY = (0.2989, 0.5870, 0.1140)  # weights of red, green and blue; their sum is 0.9999
RADIUS = 2  # of the 5x5 neighbourhood
CANDIDATES = (2 * RADIUS + 1) ** 2
WIDTH = 64  # at full and half resolution
OFFICIAL = {
    "volume_features": "PV_dec",
    "frame_features": "img_dec",
    "level_1": "d0",
    "level_2": "d1",
    "level_3": "temp",
    "blocks": "RBs",
    "blocks_end": "RB_end",
    "upsample_2": "dconv1",
    "decode_2": "dconv1_end",
    "upsample_1": "dconv2",
    "decode_1": "dconv2_end",
    "reconstruct": "end",
}


def _volume(radius: int) -> Inside:
    around = range(-radius, radius + 1)
    return Inside(
        f"the pixel volume: {len(around) ** 2} grey candidates from the restored previous frame",
        "channels",
        "grey in [-1, 1]",
        tuple(f"{i},{j}" for i in around for j in around),
    )


WARPED = Inside("the restored previous frame, warped onto the frame by the flow, grey beyond its edges", "picture")


class PVDNet(Network):
    """Restore a frame from itself, its two neighbours and the restored previous frame.

    channels, blocks: width and number of the residual blocks at a quarter of the resolution; "large" has 192 and 24.
    Switches of the paper's ablations: width, at full and half resolution. motion: how the restored previous frame is
    aligned: "volume", by the pixel volume; "warp", by bilinear warping of the RGB frame; "none": it is not. side: of
    the neighbourhood whose candidates the volume holds, k in the paper, odd.
    """

    feeding = "recurrent"  # takes align's volume, a frame and its neighbours, see streams.py
    multiple = 4
    # The U-net only; coordinates and the sum with the frame are float32, too. With random weights, bf16 is off by 0.8 %
    # of the network's change on average, fp16 by 0.1 %, in the 14th frame as much as in the first.
    half_precision = ("fp16", "bf16")
    float32_parts = ("bimnet",)
    left_out: ClassVar = {("motion", "none"): ("bimnet",)}
    # The U-net reaches 136 pixels each way, "large" 232, but with random weights, pixels beyond 55 change the result by
    # less than 1e-4 of the peak. Motion and volume are always computed from the whole frame.
    overlap = 64
    memory = Memory(tile=772, frame=1358)  # the larger of both sizes' memory
    half_memory = Memory(frame=1468)
    shows: ClassVar = {
        "flow": Inside("flow from the frame to the previous one, by BIMNet", "flow", FLOW_PIXELS),
        "volume": _volume(RADIUS),
        "rnn": Inside("the restored previous frame, which the next step starts from", "picture"),
        "features": Inside("features after the residual blocks, and after each step of the decoder", "channels"),
    }

    def __init__(
        self,
        channels: int = 128,
        blocks: int = 12,
        width: int = WIDTH,
        motion: Literal["volume", "warp", "none"] = "volume",
        side: int = 2 * RADIUS + 1,
    ) -> None:
        super().__init__()
        if side % 2 == 0:
            raise ValueError(f"side must be odd, to have a middle, not {side}")
        if width < 2:
            raise ValueError(f"width must be 2 or more, because some layers have half of it, not {width}")
        self.motion, self.side = motion, side
        self.shows = {**type(self).shows, "volume": _volume(side // 2), "warp": WARPED}  # type: ignore[misc]
        absent = {"volume": ("warp",), "warp": ("volume",), "none": ("flow", "warp", "volume")}
        self.show_all_but(*absent[motion])
        # Trained separately, before: no gradient passes the volume
        self.bimnet = None if motion == "none" else BIMNet().requires_grad_(False)
        aligned, half = side**2 if motion == "volume" else 3, width // 2
        self.volume_features = _activated(_conv(aligned, width, 3), _conv(width, width, 3))
        self.frame_features = _activated(_conv(9, half, 3), _conv(half, half, 3))
        self.level_1 = _conv(width + half, width)
        self.level_2 = nn.Sequential(_conv(width, width, stride=2), nn.ReLU(True), _conv(width, width))
        self.level_3 = _activated(_conv(width, 2 * width, stride=2), _conv(2 * width, channels))
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.blocks_end = _activated(_conv(channels, channels, 3))
        self.upsample_2 = nn.ConvTranspose2d(channels, width, 4, 2, 1)
        self.decode_2 = nn.Sequential(nn.ReLU(True), _conv(width, width), nn.ReLU(True))
        self.upsample_1 = nn.ConvTranspose2d(width, width, 4, 2, 1)
        self.decode_1 = nn.Sequential(nn.ReLU(True), _conv(width, width), nn.ReLU(True))
        self.reconstruct = FewChannelsConv2d(width, 3, 5, padding=2)
        for name, parameter in self.named_parameters():
            if not name.startswith("bimnet"):
                (nn.init.zeros_ if name.endswith("bias") else nn.init.xavier_uniform_)(parameter)

    @staticmethod
    def official_name(name: str) -> str:
        """Return the key of a tensor in the authors' checkpoints, without the leading `module.`."""
        part, _, rest = name.partition(".")
        if part == "bimnet":
            return f"BIMNet.{BIMNet.official_name(rest)}"
        return f"PVDNet.{OFFICIAL[part]}.{rest}"

    def align(self, restored: Tensor, frame: Tensor, before: Pyramid | None) -> tuple[Tensor, Pyramid | None]:
        """Compute the pixel volume (B, 25, H, W) of a frame; return it with the frame's pyramid, for the next frame.

        restored: the restored previous frame. frame: the current one. Both are (B, 3, H, W) RGB in [0, 1], not tiles.
        before: the pyramid of the previous frame; None at the start of a scene, where the current frame's replaces it.
        """
        if self.bimnet is None:
            return self.stack(restored, frame, None), None
        with torch.no_grad(), torch.autocast(frame.device.type, enabled=False):
            pyramid = self.bimnet.describe(frame)
            flow = self.bimnet.match(pyramid, pyramid if before is None else before)
        return self.stack(restored, frame, flow), pyramid

    def stack(self, restored: Tensor, frame: Tensor, flow: Tensor | None) -> Tensor:
        """Return the volume (B, 25, H, W), or what replaces it, from frames as align takes them.

        flow: (B, 2, H, W) from the frame to the previous one; it gets no gradient. None if motion is "none".
        """
        dtype = dtype_of(self.level_1)
        show(self, "rnn", restored)
        if flow is None:
            return (restored * 2 - 1).to(dtype)
        show(self, "flow", flow)
        if self.motion == "warp":
            warped = warp(restored * 2 - 1, flow.detach())
            show(self, "warp", lambda: (warped + 1) / 2)
            return warped.to(dtype)
        volume = pixel_volume(gray_of(restored).to(dtype), gray_of(frame).to(dtype), flow, self.side // 2)
        show(self, "volume", volume)
        return volume

    def forward(self, volume: Tensor, previous: Tensor, frame: Tensor, following: Tensor) -> Tensor:
        """Restore a frame: (B, 3, H, W) RGB in [0, 1], float32, to the same, not clamped; H and W multiples of 4.

        volume: align's. previous, following: the blurry neighbours; at the ends of a scene, the frame itself.
        """
        blurry = torch.cat((frame, previous, following), 1) * 2 - 1
        volume, blurry = (in_channels_last(x.to(self.level_1.weight.dtype)) for x in (volume, blurry))

        # Encoder; levels 1 and 2 end without an activation. (B, 64, H, W), (B, 64, H/2, W/2), (B, c, H/4, W/4)
        level_1 = self.level_1(torch.cat((self.volume_features(volume), self.frame_features(blurry)), 1))
        level_2 = self.level_2(level_1)
        level_3 = self.level_3(level_2)

        # Residual blocks around a long skip
        deep = self.blocks_end(self.blocks(level_3)) + level_3  # (B, c, H/4, W/4)

        # Decoder, with the encoder's levels added
        half = self.decode_2(self.upsample_2(deep) + level_2)  # (B, 64, H/2, W/2)
        full = self.decode_1(self.upsample_1(half) + level_1)  # (B, 64, H, W)
        for part, features in (("blocks", deep), ("decoder_half", half), ("decoder_full", full)):
            show(self, "features", features, part)
        residual = self.reconstruct(full)  # (B, 3, H, W), for pictures in [-1, 1]
        restored: Tensor = frame + residual.float() / 2
        return restored


class ResidualBlock(nn.Sequential):
    """Two convolutions, each followed by a ReLU, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__(*_activated(_conv(channels, channels, 3), _conv(channels, channels, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) from x of that shape."""
        difference: Tensor = super().forward(x)
        return x + difference


def gray_of(frame: Tensor) -> Tensor:
    """Return the gray plane (B, 1, H, W), in [-1, 1], of a frame (B, 3, H, W) in [0, 1]."""
    return torch.einsum("bchw,c->bhw", frame * 2 - 1, frame.new_tensor(GRAY))[:, None]


def pixel_volume(previous: Tensor, current: Tensor, flow: Tensor, radius: int = RADIUS) -> Tensor:
    """Stack (2 r + 1)^2 candidates, 25 for a radius r of 2, from the previous frame for each pixel: (B, 25, H, W).

    previous, current: gray planes (B, 1, H, W). flow: (B, 2, H, W) float32, pixels, from current to previous; it gets
    no gradient. radius: r of the neighbourhood, 2 in the paper. The result has the planes' type. Channel
    (2 r + 1) (i + r) + j + r at pixel p follows the flow of the neighbour q = p - (i, j), i and j from -r to r: it is
    the previous frame at q + flow(q), truncated toward zero, plus (i, j). Where that is on or beyond the outermost
    pixels, it is the current frame at p. Where q is outside the frame, it is 0.
    """
    batch, _, height, width = previous.shape
    volume = previous.new_zeros(batch, (2 * radius + 1) ** 2, height, width)
    edge = 2 * radius  # padding: positions are at most radius outside the frame, and (i, j) adds another radius
    stride = width + 2 * edge
    plane = F.pad(previous, (edge,) * 4).flatten(1)
    # Coordinates are float32: at 1280, half precision has steps of a whole pixel.
    x = _truncated(torch.arange(width, device=flow.device) + flow[:, 0].float(), width, radius)
    y = _truncated(torch.arange(height, device=flow.device)[:, None] + flow[:, 1].float(), height, radius)
    position = ((y + edge) * stride + x + edge).flatten(1)  # (B, H W)
    shifts = range(-radius, radius + 1)
    inside_x = [(x > -i) & (x < width - 1 - i) for i in shifts]
    inside_y = [(y > -j) & (y < height - 1 - j) for j in shifts]
    for channel, (i, j) in enumerate((i, j) for i in shifts for j in shifts):
        looked_up = plane.gather(1, position + (j * stride + i)).view(batch, height, width)
        inside = inside_x[i + radius] & inside_y[j + radius]
        # From the neighbours' positions to the pixels'
        rows, columns = _overlap(j, height), _overlap(i, width)
        from_rows, from_columns = _overlap(-j, height), _overlap(-i, width)
        volume[:, channel, rows, columns] = torch.where(
            inside[:, from_rows, from_columns],
            looked_up[:, from_rows, from_columns],
            current[:, 0, rows, columns],
        )
    return volume


def _truncated(coordinate: Tensor, length: int, radius: int) -> Tensor:
    """Truncate toward zero, and clamp to radius outside the frame: such positions stay outside after adding (i, j)."""
    return coordinate.nan_to_num(-radius).clamp(-radius, length - 1 + radius).long()


def _overlap(shift: int, length: int) -> slice:
    """Return the positions p within the length for which p - shift is within it, too."""
    return slice(max(shift, 0), max(length + min(shift, 0), 0))


def _conv(channels: int, to: int, size: int = 5, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, to, size, stride, size // 2)


def _activated(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU(inplace=True))))
