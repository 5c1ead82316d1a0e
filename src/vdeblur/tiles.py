"""Frames to overlapping tiles and back.

All tiles have one size, so that they can be stacked along the batch and a recurrent network's state is per tile for
free. They are placed evenly, so the overlap is at least the one asked for. Where tiles overlap they are blended with
weights that fall linearly towards each tile's edge; the weights are divided by their sum once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class TilePlan:
    """How frames of one size are cut up.

    size: height and width of the frame. tile: of each tile, in pixels, multiples of what the network needs.
    tops, lefts: where tiles begin in the padded frame.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @property
    def count(self) -> int:
        """Tiles of a frame."""
        return len(self.tops) * len(self.lefts)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the frame after padding."""
        return self.tops[-1] + self.tile[0], self.lefts[-1] + self.tile[1]

    def split(self, picture: Tensor) -> Tensor:
        """Give (tiles, C, h, w) of a frame (C, H, W), its right and bottom continued by mirroring."""
        height, width = self.padded
        picture = pad_to(picture, height, width)
        rows, columns = self.tile
        if self.count == 1:
            return picture[None]
        return torch.stack([picture[:, y : y + rows, x : x + columns] for y in self.tops for x in self.lefts])

    def join(self, tiles: Tensor) -> Tensor:
        """Blend (tiles, C, h, w) to a frame (C, H, W)."""
        height, width = self.size
        if self.count == 1:
            return tiles[0, :, :height, :width]
        rows, columns = self.tile
        whole = tiles.new_zeros(tiles.shape[1], *self.padded)
        weights = tiles.new_zeros(self.padded)
        window = _ramp(rows, tiles)[:, None] * _ramp(columns, tiles)
        places = [(y, x) for y in self.tops for x in self.lefts]
        for tile, (y, x) in zip(tiles, places, strict=True):
            whole[:, y : y + rows, x : x + columns] += tile * window
            weights[y : y + rows, x : x + columns] += window
        return (whole / weights)[:, :height, :width]


def plan_tiles(height: int, width: int, tile: tuple[int, int] | None, overlap: int, multiple: int) -> TilePlan:
    """Plan tiles of at most `tile` (height, width) pixels for frames of this size; None: one tile, the whole frame."""
    sides, starts = [], []
    for length, wanted in zip((height, width), tile or (height, width), strict=True):
        side = min(_round_up(wanted, multiple), _round_up(length, multiple))
        count = 1 if side >= length else -(-(length - overlap) // max(side - overlap, multiple))
        last = _round_up(max(length - side, 0), multiple)
        # Starts on the network's grid, so that a tile is seen as the whole frame would be.
        places = [round(k * last / max(count - 1, 1) / multiple) * multiple for k in range(count)]
        sides.append(side)
        starts.append(tuple(sorted(set(places))))
    return TilePlan((height, width), (sides[0], sides[1]), starts[0], starts[1])


def pad_to(picture: Tensor, height: int, width: int) -> Tensor:
    """Continue (C, H, W) to the right and the bottom by mirroring, as often as it takes."""
    while picture.shape[1] < height or picture.shape[2] < width:
        down = min(height - picture.shape[1], picture.shape[1] - 1)
        right = min(width - picture.shape[2], picture.shape[2] - 1)
        one_line, one_column = picture.shape[1] == 1, picture.shape[2] == 1
        if one_line or one_column:  # nothing to mirror
            pad = (0, width - picture.shape[2] if one_column else 0, 0, height - picture.shape[1] if one_line else 0)
            picture = F.pad(picture[None], pad, mode="replicate")[0]
        else:
            picture = F.pad(picture[None], (0, right, 0, down), mode="reflect")[0]
    return picture


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _ramp(length: int, like: Tensor) -> Tensor:
    """Weights across a tile: rising linearly from its edge to its middle, never zero."""
    position = torch.arange(length, device=like.device, dtype=like.dtype)
    return torch.minimum(position + 0.5, length - 0.5 - position)
