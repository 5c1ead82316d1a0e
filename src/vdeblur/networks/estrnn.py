"""Real-world Video Deblurring: A Benchmark Dataset and an Efficient Recurrent Neural Network (ESTRNN, BSD).

Zhong, Gao, Zheng, Zheng, Sato; International Journal of Computer Vision 131, 2023; arXiv 2106.16028. First as:
Efficient Spatio-Temporal Recurrent Neural Network for Video Deblurring; Zhong, Gao, Zheng, Zheng; ECCV 2020.
Weights: github.com/zzh-tech/ESTRNN (code MIT), learned from BSD, whose blur is real.

A small recurrent cell of dense blocks runs over the frames, forward only. It keeps a state at a quarter of the size,
and returns features of each frame. A frame is restored from the features of five frames. Those of its neighbours are
weighted by gates, which a small network predicts from the means of the features over the whole frame.

Parts, in the order of use, with the names of the authors' code:

- `ESTRNN.step`  the cell: `F_B` extracts features of the frame, `F_R` fuses them with the state into h, `F_h` computes
  the next state from h
- `DenseBlock`   a residual dense block
- `ESTRNN.look`  the gates of the global spatio-temporal attention
- `ESTRNN.fuse`  attention and reconstruction, whose convolutions are merged to one for inference: see Merged

Where this differs from the papers, because the published weights do, or because a tool for video needs it (the text of
the papers was not at hand):

1. Pictures are BGR, from -0.5 to 0.5, and the output is the picture itself: nothing is added to the input.
2. The GELU is the exact one. With its approximation by tanh the output changes by 3e-4.
3. The authors restore chunks of 20 frames and return no result for the first and the last two frames of a clip. Here
   the state continues through a scene, and a scene is extended at both ends by two frames, reflected in time.
4. The papers count multiply-adds of a transposed convolution at its output positions, four times too many.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.layers import FewChannelsConv2d, Inside, Memory, Network, dtype_of, in_channels_last, show

RADIUS = 2  # past and future frames of the attention
DENSE_LAYERS = 3  # of a dense block
# Rows of the frame whose full-size features are computed together, and the rows around them that they depend on: 17,
# rounded up to the network's multiple. A dense block of the whole frame would need most of the memory, and take longer:
# 990 ms for the features of 1280x720 instead of 600 to 830, on one thread.
BAND, AROUND = 128, 20


class ESTRNN(Network):
    """Restore a clip in one pass.

    features: n, channels at full size; all others are multiples of it. blocks: residual dense blocks of the cell. The
    authors' name of a size is C(5 n)B(blocks): C80B15 has published weights.
    """

    feeding = "cell"
    radius = RADIUS
    multiple = 4
    smallest = 4
    # 69 and 51 dB against float32 on the parity cases. Nothing is added to the input, so the picture itself passes
    # through half precision; gates and the last layer are exact.
    half_precision = ("fp16", "bf16")
    float32_parts = ("gate", "reconstruction.2")
    overlap = 128  # at 32 pixels from a tile's edge features are off by 5e-3, at 64 by 8e-5
    memory = Memory(tile=412, frame=339)
    half_memory = Memory(tile=185, frame=261)
    shows: ClassVar = {
        "features": Inside("features of the frame, before the recurrence (F_B), and h (F_R)", "channels"),
        "rnn": Inside("the state after the frame (F_h)", "channels"),
        "gates": Inside("gates of the channels of h and a neighbour's h: t-2, t-1, t+1, t+2", "channels"),
    }

    def __init__(self, features: int = 16, blocks: int = 15) -> None:
        super().__init__()
        if features < 1 or blocks < 1:
            raise ValueError(f"features and blocks must be 1 or more, not {features} and {blocks}")
        n, c = features, 5 * features
        self.channels = c
        self.extract_1 = nn.Conv2d(3, n, 5, padding=2)
        self.extract_2 = nn.Sequential(DenseBlock(n, n), nn.Conv2d(n, 2 * n, 5, 2, 2))
        self.extract_3 = nn.Sequential(DenseBlock(2 * n, 3 * n // 2), nn.Conv2d(2 * n, 4 * n, 5, 2, 2))
        self.blocks = nn.ModuleList(DenseBlock(c, 2 * n) for _ in range(blocks))
        self.gather = nn.Conv2d(blocks * c, c, 1)
        self.smooth = nn.Conv2d(c, c, 3, padding=1)
        self.to_state = nn.Sequential(nn.Conv2d(c, n, 3, padding=1), DenseBlock(n, n), nn.Conv2d(n, n, 3, padding=1))
        self.gate = nn.Sequential(nn.Linear(2 * c, 4 * c), nn.GELU(), nn.Linear(4 * c, 2 * c))
        self.project = nn.Sequential(nn.Conv2d(2 * c, 4 * c, 1), nn.Conv2d(4 * c, 2 * c, 1))
        self.condense = nn.Conv2d(2 * c, c, 1)
        self.fusion = nn.Conv2d((2 * RADIUS + 1) * c, 5 * c, 1)
        self.reconstruction = nn.Sequential(
            nn.ConvTranspose2d(5 * c, 2 * n, 3, 2, 1, 1),
            nn.ConvTranspose2d(2 * n, n, 3, 2, 1, 1),
            FewChannelsConv2d(n, 3, 5, padding=2),
        )

    def forward(self, clip: Tensor) -> Tensor:
        """Restore a clip, (B, T, 3, H, W) RGB in [0, 1], but for its first and last two frames: (B, T - 4, 3, H, W).

        Not clamped. H and W are multiples of 4.
        """
        state: Tensor | None = None
        features = []
        for frame in clip.unbind(1):
            found, state = self.step(frame, state)
            features.append(found)
        begun = self.begin()
        windows = [features[first : first + 2 * RADIUS + 1] for first in range(len(features) - 2 * RADIUS)]
        return torch.stack([self.fuse(self.look(begun, window), *window) for window in windows], 1)

    def step(self, frame: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return h of a frame, (B, C, H/4, W/4), and the next state, (B, n, H/4, W/4); whole frames or tiles.

        frame: (B, 3, H, W) RGB in [0, 1]. state: after the frame before; None before the first.
        """
        x = self._extract(in_channels_last((frame.flip(1) - 0.5).to(dtype_of(self))))  # (B, 4 n, H/4, W/4)
        show(self, "features", x, "F_B")
        if state is None:
            state = x.new_zeros(x.shape[0], self.channels // 5, *x.shape[2:])
        x = in_channels_last(torch.cat((x, state), 1))  # (B, C, H/4, W/4)

        # F_R gathers the results of all blocks by a 1x1 convolution. Its sum is computed block by block, in float32, so
        # that they are never held together: 276 MB for 1280x720.
        gathered: Tensor | None = None
        for block, weight in zip(self.blocks, self.gather.weight.split(self.channels, 1), strict=True):
            x = block(x)
            part = F.conv2d(x, weight).float()
            gathered = part if gathered is None else gathered + part
        assert gathered is not None
        assert self.gather.bias is not None
        h: Tensor = self.smooth((gathered + self.gather.bias.float()[:, None, None]).to(x.dtype))
        show(self, "features", h, "F_R")
        state = self.to_state(h)
        show(self, "rnn", state)
        return h, state

    def _extract(self, picture: Tensor) -> Tensor:
        """Return F_B's features of a picture (B, 3, H, W): (B, 4 n, H/4, W/4), computed in bands of rows."""
        height = picture.shape[2]
        bands = []
        for top in range(0, height, BAND):
            bottom = min(top + BAND, height)
            first, last = max(top - AROUND, 0), min(bottom + AROUND, height)
            x = self.extract_3(self.extract_2(self.extract_1(picture[:, :, first:last])))
            bands.append(x[:, :, (top - first) // 4 : (bottom - first) // 4])
        return torch.cat(bands, 2) if len(bands) > 1 else bands[0]

    def begin(self) -> "Merged | None":
        """Return the merged weights for inference; None while gradients are recorded."""
        return None if torch.is_grad_enabled() else Merged.of(self)

    def look(self, begun: "Merged | None", window: Sequence[Tensor]) -> Tensor:
        """Return what fuse needs of five whole frames: their gates, or with merged weights the kernel that they give.

        window: h of frames t-2 to t+2, each (B, C, H/4, W/4). Result: (B, 4, 2 C), or (B, 5 C + 1, 2 n, 3, 3).
        """
        means = [h.to(dtype_of(self.gate)).mean((2, 3)) for h in window]
        centre = means.pop(RADIUS)
        gates = self.gate(torch.stack([torch.cat((centre, mean), 1) for mean in means], 1)).sigmoid()  # (B, 4, 2 C)
        for index, name in enumerate(("t-2", "t-1", "t+1", "t+2")):
            show(self, "gates", lambda index=index: gates[:, index, :, None, None], name)  # type: ignore[misc]
        return gates if begun is None else begun.kernel(gates)

    def fuse(self, looked: Tensor, *window: Tensor) -> Tensor:
        """Return the restored middle frame of a window, (B, 3, H, W) RGB, not clamped; whole frames or tiles.

        looked: what look returned. window: h of frames t-2 to t+2.
        """
        enlarged = self._fuse_in_steps(looked, window) if looked.ndim == 3 else self._fuse_merged(looked, window)
        picture = self.reconstruction[2](self.reconstruction[1](enlarged).float())
        restored: Tensor = picture.flip(1) + 0.5
        return restored

    def _fuse_in_steps(self, gates: Tensor, window: Sequence[Tensor]) -> Tensor:
        """Return the features at half the size, (B, 2 n, H/2, W/2), as the authors compute them."""
        neighbours = list(window)
        centre = neighbours.pop(RADIUS)
        condensed = [
            self.condense(gates[:, index, :, None, None].to(h.dtype) * self.project(torch.cat((centre, h), 1)))
            for index, h in enumerate(neighbours)
        ]
        enlarged: Tensor = self.reconstruction[0](self.fusion(torch.cat((*condensed, centre), 1)))
        return enlarged

    def _fuse_merged(self, kernels: Tensor, window: Sequence[Tensor]) -> Tensor:
        """Return the same from merged kernels, one for each clip, or one for all tiles of a clip."""
        ones = window[0].new_ones(window[0].shape[0], 1, *window[0].shape[2:])
        stacked = in_channels_last(torch.cat((*window, ones), 1))  # (B, 5 C + 1, H/4, W/4)
        first = self.reconstruction[0]
        assert isinstance(first, nn.ConvTranspose2d)
        parts = [stacked] if len(kernels) == 1 else stacked.split(1)
        enlarged = [F.conv_transpose2d(x, k, first.bias, 2, 1, 1) for x, k in zip(parts, kernels, strict=True)]
        return torch.cat(enlarged) if len(enlarged) > 1 else enlarged[0]

    @staticmethod
    def official_name(name: str) -> str:
        """Return the key in the authors' checkpoints, without their leading `module.model.`."""
        ours = next(prefix for prefix in NAMES if name.startswith(prefix))
        inner = re.sub(r"layers\.(\d+)", r"dense_layers.\1.conv", name.removeprefix(ours))
        return NAMES[ours] + inner.replace("join.", "conv1x1.")


NAMES = {
    "extract_1.": "cell.F_B0.",
    "extract_2.0.": "cell.F_B1.rdb.",
    "extract_2.1.": "cell.F_B1.down_sampling.",
    "extract_3.0.": "cell.F_B2.rdb.",
    "extract_3.1.": "cell.F_B2.down_sampling.",
    "blocks.": "cell.F_R.RDBs.",
    "gather.": "cell.F_R.conv1x1.",
    "smooth.": "cell.F_R.conv3x3.",
    "to_state.": "cell.F_h.",
    "gate.": "fusion.F_f.",
    "project.": "fusion.F_p.",
    "condense.": "fusion.condense.",
    "fusion.": "fusion.fusion.",
    "reconstruction.": "recons.model.",
}


class DenseBlock(nn.Module):
    """A residual dense block (RDB): each of three convolutions sees the input and all earlier results."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(channels + index * growth, growth, 3, padding=1) for index in range(DENSE_LAYERS)
        )
        self.join = nn.Conv2d(channels + DENSE_LAYERS * growth, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) from x of that shape."""
        seen = x
        for layer in self.layers:
            seen = torch.cat((seen, F.gelu(layer(seen))), 1)
        joined: Tensor = self.join(seen)
        return joined + x


@dataclass(frozen=True)
class Merged:
    """The attention and the first transposed convolution as one.

    But for the gates g, everything from h on is linear: c_j = Q (g_j (A_c h_t + A_n h_j + b)) + q for each neighbour j,
    then `fusion`, then the transposed convolution. So for given gates it is a single transposed convolution of h of
    five frames, whose kernel is a product of the weights with the gates. That kernel takes 18 million multiply-adds for
    C80, for any size of frame; to fuse the features in steps takes 2540 million for 256x256. A last input channel of
    ones has the sum of all biases: added after the convolution, it would be wrong at the borders.

    centre, neighbour: A_c and A_n, transposed, (C, 2 C). bias: b, (2 C). condensed: the kernel of c_j, times Q,
    (4, 2 C, K), with K = 2 n * 9. own: the kernel of h_t itself, (C, K). constant: from all other biases, (K).
    """

    centre: Tensor
    neighbour: Tensor
    bias: Tensor
    condensed: Tensor
    own: Tensor
    constant: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, network: ESTRNN) -> "Merged":
        """Merge a network's weights in float64; those of float32, if it was converted to half precision."""
        exact = network.float32_weights or network.state_dict()
        device = network.condense.weight.device

        def of(name: str) -> Tensor:
            return exact[name].detach().to("cpu", torch.float64).squeeze((2, 3) if exact[name].ndim == 4 else ())

        c = network.channels
        first, second = of("project.0.weight"), of("project.1.weight")
        product = second @ first  # (2 C, 2 C): A_c and A_n beside each other
        kernel = exact["reconstruction.0.weight"].detach().to("cpu", torch.float64).flatten(1)  # (5 C, K)
        fused = of("fusion.weight").T @ kernel  # for c_j and h_t
        parts = fused.split(c)
        constant = of("fusion.bias") @ kernel + sum(of("condense.bias") @ part for part in parts[: 2 * RADIUS])
        merged = {
            "centre": product[:, :c].T,
            "neighbour": product[:, c:].T,
            "bias": second @ of("project.0.bias") + of("project.1.bias"),
            "condensed": torch.stack([of("condense.weight").T @ part for part in parts[: 2 * RADIUS]]),
            "own": parts[-1],
            "constant": constant,
        }
        return cls(**{name: value.float().to(device) for name, value in merged.items()}, dtype=dtype_of(network))

    def kernel(self, gates: Tensor) -> Tensor:
        """Return the kernels for gates (B, 4, 2 C): (B, 5 C + 1, 2 n, 3, 3), for h of t-2 to t+2 and for ones."""
        gated = gates.float()[..., None] * self.condensed  # (B, 4, 2 C, K)
        total = gated.sum(1)
        neighbours = self.neighbour @ gated  # (B, 4, C, K)
        own = self.own + self.centre @ total
        constant = self.constant + self.bias @ total
        parts = (*neighbours[:, :RADIUS].unbind(1), own, *neighbours[:, RADIUS:].unbind(1), constant[:, None])
        kernels: Tensor = torch.cat(parts, 1).to(self.dtype).unflatten(2, (-1, 3, 3))
        return kernels
