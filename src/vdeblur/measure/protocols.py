"""The ways in which papers measure, so that scores can be compared with their tables.

For the same output their tables differ by a decibel and more: they leave out frames, crop pixels, align, measure luma
instead of RGB, and use two kinds of SSIM. Each protocol does what the authors' own evaluation does.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vdeblur.measure import metrics

# Frames that the authors restore at once, by network and data set ("" is any other); `run` uses overlapping windows
# instead, or carries the state on.
CHUNKS = {
    "dstnet": {"gopro": 30, "dvd": 25, "bsd": 30},
    "dstnet-plus": {"gopro": 50, "dvd": 25, "bsd": 30},
    "estrnn": {"": 20},
}
OTHER_CHUNK = 30  # for other data sets
# Turtle's authors always cut frames into square tiles, and take the plain mean where they overlap. What tiles share
# depends on their script: by network and data set, in pixels.
TILE_SIDE = 320
TILE_OVERLAPS = {"turtle": {"gopro": 192, "bsd": 128}}
OTHER_OVERLAP = 128  # for other data sets


@dataclass(frozen=True)
class Protocol:
    """One way to measure.

    source: its paper. blur: which of GoPro's blurry folders; other sets have only one. first, last: frames at the ends
    of a sequence that are restored, but not counted. crop: pixels cut off each side. aligned: Koehler's alignment, and
    luma instead of RGB. ssim: the kind in the paper's tables, "2D", "3D" or "both". truncate: convert to 8 bit by
    truncating instead of rounding. chunks: networks that restore as many frames at once as the authors do. tiles: cut
    frames as the authors do. mirrored: compute 3-D SSIM as ssim_3d_mirrored. precision: of the networks, unless the
    user names one: the authors compute in float32.
    """

    name: str
    source: str
    blur: str = "blur"
    first: int = 0
    last: int = 0
    crop: int = 0
    aligned: bool = False
    ssim: str = "both"
    truncate: bool = False
    chunks: tuple[str, ...] = ()
    tiles: bool = False
    mirrored: bool = False
    precision: str = "fp32"

    @property
    def description(self) -> str:
        """The protocol in one line."""
        ends = [f"the first {self.first}" if self.first > 1 else "the first"] if self.first else []
        ends += [f"the last {self.last}" if self.last > 1 else "the last"] if self.last else []
        parts = [
            f"without {' and '.join(ends)} of each sequence" if ends else "all frames",
            f"{self.crop} px cropped" if self.crop else "nothing cropped",
            "aligned (Koehler), luma" if self.aligned else "not aligned, RGB",
            f"8 bit {'truncated' if self.truncate else 'rounded'}{' before that, not after' if self.aligned else ''}",
            f"SSIM {'2D and 3D' if self.ssim == 'both' else self.ssim}{', mirrored' if self.mirrored else ''}",
            "mean over all frames",
        ]
        fed = [name for name, is_so in (("chunks", self.chunks), ("tiles", self.tiles)) if is_so]
        return f"{', '.join(parts)}{f'; fed in the {fed[0]} of its authors' if fed else ''}"

    def chunk_of(self, network: str, dataset: str) -> int | None:
        """Return how many frames of this set the network restores at once; None: as `run` does.

        dataset: its name in datasets.toml, empty for other sets.
        """
        chunks = CHUNKS[network] if network in self.chunks else None
        name = dataset.partition("-")[0]  # bsd has three exposures
        return None if chunks is None else chunks.get(name, chunks.get("", OTHER_CHUNK))

    def overlap_of(self, network: str, dataset: str) -> int | None:
        """Return how many pixels the network's tiles of TILE_SIDE share on this set, as chunk_of; None: as `run`."""
        overlaps = TILE_OVERLAPS.get(network) if self.tiles else None
        return None if overlaps is None else overlaps.get(dataset.partition("-")[0], OTHER_OVERLAP)

    def counts(self, index: int, frames: int) -> bool:
        """Return whether the frame at this index of a sequence with this many frames counts."""
        return self.first <= index < frames - self.last

    def to_8bit(self, restored: Tensor) -> Tensor:
        """Quantise values in 0..255 to uint8 as the authors do."""
        integers = restored.floor() if self.truncate else restored.round()
        return integers.clamp(0, 255).to(torch.uint8)

    def measure(self, restored: Tensor, sharp: Tensor) -> "list[Quality]":
        """Measure each of the RGB pictures, (B, 3, H, W) uint8.

        Raises: ValueError if they are too small.
        """
        restored, sharp = metrics.crop(restored, self.crop), metrics.crop(sharp, self.crop)
        if self.aligned:
            return [self._measure_aligned(z, x) for z, x in zip(restored.split(1), sharp.split(1), strict=True)]
        two, three = metrics.ssim_both(restored, sharp)
        if self.mirrored:
            three = metrics.ssim_3d_mirrored(restored, sharp)
        rows = zip(metrics.psnr(restored, sharp).tolist(), two.tolist(), three.tolist(), strict=True)
        return [Quality(*row) for row in rows]

    def _measure_aligned(self, restored: Tensor, sharp: Tensor) -> "Quality":
        aligned = metrics.align(restored, sharp)
        z, x = metrics.to_luma(aligned.restored), metrics.to_luma(aligned.sharp)
        return Quality(metrics.psnr(z, x).item(), metrics.ssim_2d(z, x).item(), None)


@dataclass(frozen=True)
class Quality:
    """PSNR in dB (infinite for equal pictures), and SSIM; None if the protocol does not measure this kind."""

    psnr: float
    ssim_2d: float | None
    ssim_3d: float | None


def mean(qualities: list[Quality]) -> Quality:
    """Return the mean of each score; there must be at least one quality."""

    def mean_of_known(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return math.fsum(known) / len(known) if known else None

    psnr = mean_of_known([quality.psnr for quality in qualities])
    assert psnr is not None
    return Quality(
        psnr,
        mean_of_known([quality.ssim_2d for quality in qualities]),
        mean_of_known([quality.ssim_3d for quality in qualities]),
    )


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("plain", "nobody's in particular: every frame, every pixel", precision="auto"),
        Protocol("cdvd-tsp", "CDVD-TSP, CVPR 2020", first=2, last=2, crop=4, ssim="2D"),
        Protocol("pvdnet", "PVDNet, TOG 2021", blur="blur_gamma", first=1, crop=16, aligned=True, ssim="2D"),
        Protocol("dstnet", "DSTNet, CVPR 2023", ssim="3D", chunks=("dstnet", "dstnet-plus")),
        Protocol("estrnn", "ESTRNN and BSD, IJCV 2023", first=2, last=2, ssim="2D", truncate=True, chunks=("estrnn",)),
        Protocol("vrt", "VRT and RVRT, the papers' tables", ssim="3D"),
        Protocol("turtle", "Turtle, NeurIPS 2024", ssim="3D", tiles=True, mirrored=True),
        # Its SSIM routine is not in the release. Portrait videos are turned there, which changes no score of ours.
        Protocol("flow-rnn", "Flow-RNN, TCSVT 2023", last=1),
    )
}
