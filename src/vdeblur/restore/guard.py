"""Keep the input where a network clearly failed: in blocks whose light or colour changed more than blur can explain.

Networks fail on some frames that are unlike their training's, with mosaics of colour, spots or garbage; NAFNet's users
report it (megvii-research/NAFNet, issues 13, 25, 83, 121 and 189). Each block of the difference that a network adds is
measured. Largest values, in codes of 255, of REDS' sharp minus blurry frames, which a perfect restorer would add:
block mean 32, mean absolute change of chroma 30 (of `lite` 22 and 8). Mosaics of +-40 change chroma by 35 (median),
while their block means are only 4 to 13, and the energy of fine detail is no measure: the truth changes it more.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

ACROSS = 12  # blocks along the shorter side of a frame; along the longer one, blocks of the same size
LEAST_SIDE = 15  # pixels; the smallest blocks that were measured, and means over fewer pixels vary more
# Change of a block's mean in any channel, of the range: 1.5 times the truth's largest. Blur keeps the sum of light, so
# deblurring hardly changes means: an edge from black to white, blurred over 50 pixels, moves 50 / 8 / 64 = 0.1 of the
# range across the side of a block of 64 pixels.
MOST_LIGHT = 48 / 255
MOST_CHROMA = 32 / 255  # mean absolute change of R-G and B-G
LOWEST, HIGHEST = -0.5, 1.5  # of restored values; a sharp edge overshoots by less
# Shorter side of the smallest frames that are judged: of smaller ones, a block and its eight neighbours are more than
# a quarter.
SMALLEST_FRAME = 96
MOST_FAILED = 0.25  # share of the blocks; with more, the whole frame stays as it was


@dataclass(frozen=True)
class Guard:
    """Blocks of pictures of one size. rows, columns: where blocks begin, and where the last one ends."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @classmethod
    def of(cls, height: int, width: int, shorter: int) -> "Guard":
        """Divide pictures into blocks. shorter: the frame's shorter side; the pictures may be a part of it."""
        side = max(shorter // ACROSS, LEAST_SIDE)
        return cls(_edges(height, side), _edges(width, side))

    def measure(self, difference: Tensor) -> Tensor:
        """Return the means of a difference of RGB pictures, float32 (3, H, W), in each block: (4, rows, columns).

        These are the means of R, G and B, and of the absolute differences of R-G and B-G.
        """
        sums = []
        for top, bottom in pairwise(self.rows):  # a row of blocks stays in a processor's cache
            strip = difference[:, top:bottom]
            chroma = (strip[::2] - strip[1]).abs_()
            sums.append(torch.cat((strip.sum(1), chroma.sum(1))) / (bottom - top))
        along = torch.stack(sums, 1)  # (5, rows, W)
        means = torch.stack([along[..., left:right].mean(-1) for left, right in pairwise(self.columns)], -1)
        return torch.cat((means[:3], means[3:].mean(0, keepdim=True)))

    def failed(self, means: Tensor, picture: Tensor, lowest: float, highest: float) -> Tensor:
        """Return which blocks failed: bool (rows, columns), on the means' device.

        means: see measure. picture: the restored one, (3, H, W), and its lowest and highest value.
        """
        failed = (means[:3].abs() > MOST_LIGHT).any(0) | (means[3] > MOST_CHROMA)
        if lowest < LOWEST or highest > HIGHEST:
            outside = ((picture < LOWEST) | (picture > HIGHEST)).any(0)
            failed |= self.any_in_blocks(outside).to(failed.device)
        return failed

    def any_in_blocks(self, pixels: Tensor) -> Tensor:
        """Return which blocks have a pixel of a bool map (H, W): bool (rows, columns)."""
        rows = torch.stack([pixels[top:bottom].any(0) for top, bottom in pairwise(self.rows)])
        return torch.stack([rows[:, left:right].any(1) for left, right in pairwise(self.columns)], 1)

    def weights(self, failed: Tensor) -> Tensor | None:
        """Return how much of the difference to add, float32 (H, W), 0 to 1; None: none of it.

        0 in failed blocks and the eight around each, rising to 1 over half a block beyond them.
        """
        if float(failed.float().mean()) > MOST_FAILED:
            return None
        blank = failed.clone()
        for axis in (0, 1):
            length = blank.shape[axis] - 1
            before, after = blank.narrow(axis, 0, length).clone(), blank.narrow(axis, 1, length).clone()
            blank.narrow(axis, 1, length).logical_or_(before)
            blank.narrow(axis, 0, length).logical_or_(after)
        # Weights at the edges and in the middle of each block, two places a block; bilinear between them.
        places = torch.ones(2 * blank.shape[0] + 1, 2 * blank.shape[1] + 1, device=blank.device)
        for row, column in blank.nonzero().tolist():
            places[2 * row : 2 * row + 3, 2 * column : 2 * column + 3] = 0
        down, across = (_bilinear(edges).to(places) for edges in (self.rows, self.columns))
        return down @ places @ across.T


def _edges(length: int, side: int) -> tuple[int, ...]:
    """Divide a length into blocks of at least `side` pixels, or one block, as evenly as possible."""
    count = max(length // side, 1)
    return tuple(length * index // count for index in range(count + 1))


def _bilinear(edges: tuple[int, ...]) -> Tensor:
    """Return the matrix (length, 2 blocks + 1) that interpolates between the edges and middles of blocks."""
    matrix = torch.zeros(edges[-1], 2 * len(edges) - 1)
    for index, (begin, end) in enumerate(pairwise(edges)):
        place = 2 * index + 2 * (torch.arange(end - begin) + 0.5) / (end - begin)
        low = place.floor().long()
        rows = torch.arange(begin, end)
        matrix[rows, low] = 1 - (place - low)
        matrix[rows, low + 1] = place - low
    return matrix
