"""SPN: restores the luma of a frame from windows of one, three and five frames; with SPGAN's discriminator.

Video Deblurring via Spatiotemporal Pyramid Network and Adversarial Gradient Prior
T. Wang, X. Zhang, R. Jiang, L. Zhao, H. Chen, W. Luo; Computer Vision and Image Understanding, 2021
https://doi.org/10.1016/j.cviu.2020.103135

How many neighbouring frames help to restore a blurred area differs from area to area. So the network analyses the
window at several scales at once: the middle frame alone, the three frames around it, all five. Their features are
fused, and an encoder, residual blocks and a decoder predict a correction to the middle frame's luma. Its colour
differences stay unchanged. SPGAN is the same network, trained further against a discriminator that sees gradient images
only, because sharp and blurry pictures differ in their gradients.

Parts, in the order of use:

- `SPN`                 the generator, which serves both models: pyramid, fusion, encoder, decoder; Eq. (1)
- `ResidualBlock`       two convolutions inside a skip, at a quarter of the size
- `luma`                the plane that is restored
- `Discriminator`       Table 1; in training only
- `gradient_magnitude`  Eq. (2), the discriminator's input

Where this differs from the paper, or may differ. The paper gives an outline and results, but no number of parameters;
there is no public code and there are no public weights. So these are our choices; the authors' layers will differ:

1. Kernels: 3x3, except 7x7 in the last layer and 4x4 in the transposed ones. The 7x7 is that of the ResNet generators
   with the same plan (DeblurGAN, CycleGAN); 4 is divisible by the stride, which avoids checkerboard artefacts.
2. A path's 3D convolution spans all its frames and is not padded in time, so that one layer ends at the 16 channels
   that the paper names. Such a 3D convolution equals a 2D one with the frames as channels, and is computed as that.
3. Batch normalisation in the residual blocks, where the paper names only ReLU; `residual_norm="none"` removes it.
   None in the decoder, where it would lose the absolute level.
4. Luma is full-range BT.601 in [0, 1], not rounded, so that tanh spans exactly what a residual can need. Colour
   differences are kept, so a change of luma changes R, G and B equally, and no inverse colour transform is needed.
5. The discriminator: the paper gives no stride and no pooling. Here 2x2 max pooling ends each of the four groups, and
   average pooling to 4x4 makes the patch size free. ReLUs separate the fully connected layers, which would otherwise be
   a single linear map.
6. Gradients are forward differences, zero in the last column and row.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdeblur.networks.layers import Inside, Memory, Network, dtype_of, in_channels_last, show

LUMA = (0.299, 0.587, 0.114)  # BT.601, of R, G and B
WEIGHT_SPREAD = 0.01  # standard deviation of all initial weights; with 0.1 the tanh saturates at once
FLAT = 1e-12  # added under the root of the gradient's magnitude, whose derivative at 0 is infinite
FIELDS = 4  # side of the map to which the discriminator's features are averaged


class SPN(Network):
    """Restore the middle frame of a window.

    scales: lengths of the paths' windows, odd, as in the paper's ablation; the longest is the network's window.
    residual_norm: "batch" or "none", in the residual blocks. pyramid_channels (of each path), channels (of the fusion)
    and blocks: the paper's numbers.

    A pixel depends only on pixels at most 62 away, so tiles that share 128 are exact: the outer 62 pixels of each tile
    are then not used.
    """

    feeding = "window"
    multiple = 4
    overlap = 128
    reach = 62
    # Against float32, with random weights that change the frame by 0.05 (RMS): 54 dB in bf16 (0.009 at most), 71 dB in
    # fp16 (0.0014). Only the residual is rounded, never the frame.
    half_precision = ("fp16", "bf16")
    memory = Memory(tile=1098, frame=179)
    half_memory = Memory(tile=612, frame=140)
    shows: ClassVar = {
        "gradient": Inside("gradient images of the frame and of the result, as SPGAN's prior sees them (Eq. 2)", "map"),
        "features": Inside("features of each path of the pyramid, of their fusion, and of the last block", "channels"),
    }

    def __init__(
        self,
        scales: tuple[int, ...] = (1, 3, 5),
        residual_norm: Literal["batch", "none"] = "batch",
        pyramid_channels: int = 16,
        channels: int = 64,
        blocks: int = 6,
    ) -> None:
        super().__init__()
        if any(scale % 2 == 0 for scale in scales):
            raise ValueError(f"scales must be odd, to have a frame in the middle, not {scales}")
        self.radius = max(scales) // 2
        self.scales = tuple(scales)
        self.pyramid = nn.ModuleList(nn.Conv2d(scale, pyramid_channels, 3, padding=1) for scale in self.scales)
        self.fusion = nn.Conv2d(pyramid_channels * len(self.scales), channels, 3, padding=1)
        self.encoder = nn.Sequential(_downsampling(channels, 2 * channels), _downsampling(2 * channels, 4 * channels))
        self.residual = nn.Sequential(*(ResidualBlock(4 * channels, residual_norm) for _ in range(blocks)))
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(4 * channels, 2 * channels, 4, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, 1, 7, padding=3),
            nn.Tanh(),
        )
        self.apply(_initialise)

    def forward(self, window: Tensor) -> Tensor:
        """Restore the middle frame: (B, 2 radius + 1, 3, H, W) RGB in [0, 1] to (B, 3, H, W), not clamped.

        H and W are multiples of 4. The residual is the same for R, G and B.
        """
        middle = self.radius
        y = in_channels_last(luma(window).to(dtype_of(self)))  # (B, T, H, W)

        # Pyramid: each path sees its scale's frames around the middle
        paths = [
            F.relu_(path(y[:, middle - scale // 2 : middle + scale // 2 + 1]))
            for path, scale in zip(self.pyramid, self.scales, strict=True)
        ]
        for scale, path_features in zip(self.scales, paths, strict=True):
            show(self, "features", path_features, f"path_of_{scale}")
        features = F.relu_(self.fusion(torch.cat(paths, 1)))  # (B, 64, H, W)
        show(self, "features", features, "fusion")

        # Reconstruction of the residual
        features = self.residual(self.encoder(features))  # (B, 256, H/4, W/4)
        difference = self.decoder(features)  # (B, 1, H, W)
        restored: Tensor = window[:, middle] + difference.to(window.dtype)
        show(self, "features", features, "residual")
        show(self, "gradient", lambda: gradient_magnitude(luma(window[:, middle]))[:, None], "blurry")
        show(self, "gradient", lambda: gradient_magnitude(luma(restored))[:, None], "restored")
        return restored


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a ReLU between, added to the input."""

    def __init__(self, channels: int, norm: Literal["batch", "none"]) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none")
        self.norm_1 = nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none")
        self.norm_2 = nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) from x of that shape."""
        inner = F.relu_(self.norm_1(self.conv_1(x)))
        difference: Tensor = self.norm_2(self.conv_2(inner))
        return x + difference


def luma(rgb: Tensor) -> Tensor:
    """Return the luma (..., H, W) of RGB (..., 3, H, W), in the same range."""
    return torch.einsum("...chw,c->...hw", rgb, rgb.new_tensor(LUMA))


class Discriminator(nn.Module):
    """Distinguish gradient images of sharp pictures from those of restored ones: Table 1.

    width: channels of the first group, 64 in the paper; all other layers are in proportion.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for channels, count in ((width, 2), (2 * width, 3), (4 * width, 4), (8 * width, 5)):
            for _ in range(count):
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
                before = channels
            layers.append(nn.MaxPool2d(2))
        self.convolutions = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(before * FIELDS**2, 64 * width),
            nn.ReLU(inplace=True),
            nn.Linear(64 * width, 64 * width),
            nn.ReLU(inplace=True),
            nn.Linear(64 * width, 2),
        )
        self.apply(_initialise)

    def forward(self, gradients: Tensor) -> Tensor:
        """Return logits (B, 2) for restored and sharp, in this order, from gradient images (B, 1, H, W), H, W >= 16."""
        features = F.adaptive_avg_pool2d(self.convolutions(gradients), FIELDS)  # (B, 512, 4, 4)
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


def gradient_magnitude(luma: Tensor, eps: float = FLAT) -> Tensor:
    """Compute the gradient's magnitude at each pixel, sqrt(dx^2 + dy^2 + eps), in float32 at least: Eq. (2).

    luma: (..., H, W). Forward differences, 0 in the last column (dx) and row (dy). Half precision would round eps to 0,
    and training would get NaN gradients in flat areas, so luma is converted to float32 first.
    """
    luma = luma.to(torch.promote_types(luma.dtype, torch.float32))
    dx = F.pad(luma[..., :, 1:] - luma[..., :, :-1], (0, 1, 0, 0))
    dy = F.pad(luma[..., 1:, :] - luma[..., :-1, :], (0, 0, 0, 1))
    return (dx.square() + dy.square() + eps).sqrt()


def _downsampling(before: int, after: int) -> nn.Sequential:
    """Return an encoder block: convolution with stride 2 (no bias before the norm), batch norm, ReLU."""
    conv = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, std=WEIGHT_SPREAD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
