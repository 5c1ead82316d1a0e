"""Frames to overlapping tiles and back.

All tiles have one size, so that they stack along the batch, and a recurrent network keeps a state per tile. They are
evenly spaced and share at least the overlap. There they are blended: a tile's outermost pixels, which lack context, are
not used; further in, its weight grows linearly. The weighted sum is divided once by the sum of weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.networks.layers import Network

UNUSED = 1e-6  # weight of a pixel in the margin; it still counts where no other tile has that pixel


@dataclass(frozen=True)
class TileNeeds:
    """A network's requirements for frames and tiles; layers.Network explains them."""

    multiple: int = 1
    smallest: int = 1
    padding: str = "reflect"
    reach: int | None = None
    tile_multiple: int | None = None

    @classmethod
    def of(cls, network: Network) -> "TileNeeds":
        """Return what a network declares."""
        return cls(network.multiple, network.smallest, network.padding, network.reach, network.tile_multiple)


@dataclass(frozen=True)
class TilePlan:
    """A plan that cuts frames of one size into tiles.

    size: height and width of the frame. tile: height and width of each tile, multiples of what the network needs.
    tops, lefts: where tiles begin in the padded frame. padding: how frames are padded, see pad_to.
    at_once: how many tiles are computed together. margin: pixels at a tile's edge that are not used if another tile
    has them. window: how many frames a network with a window holds; None is its default. is_mean: where tiles overlap,
    all count alike.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    padding: str = "reflect"
    at_once: int = 1
    margin: int = 0
    window: int | None = None
    is_mean: bool = False

    @property
    def count(self) -> int:
        """Return the number of tiles of a frame."""
        return len(self.tops) * len(self.lefts)

    @property
    def padded(self) -> tuple[int, int]:
        """Return height and width of the frame after padding."""
        return self.tops[-1] + self.tile[0], self.lefts[-1] + self.tile[1]

    @property
    def name(self) -> str:
        """Return the tiles' size as --tile takes it."""
        return f"{self.tile[1]}x{self.tile[0]}" if self.count > 1 else "none"

    def pad(self, frame: Tensor) -> Tensor:
        """Pad a frame (B, C, H, W) on the right and the bottom to the padded size."""
        return pad_to(frame, *self.padded, self.padding)

    def crop(self, padded: Tensor) -> Tensor:
        """Remove the padding."""
        return padded[..., : self.size[0], : self.size[1]]

    def groups(self) -> list[slice]:
        """Return the tiles that are computed together, as slices of their numbers."""
        return [slice(first, min(first + self.at_once, self.count)) for first in range(0, self.count, self.at_once)]

    def split(self, padded: Tensor, group: slice = slice(None)) -> Tensor:
        """Return the tiles (tiles, C, h, w) of a padded frame (1, C, H, W), or of a map at a fraction of its size.

        A plan of one tile returns its input, with any batch.
        """
        if self.count == 1:
            return padded
        fraction = self.padded[0] // padded.shape[2]
        rows, columns = (side // fraction for side in self.tile)
        places = [(y // fraction, x // fraction) for y, x in self._places()[group]]
        return torch.cat([padded[:, :, y : y + rows, x : x + columns] for y, x in places])

    def join(self, tiles: Sequence[Tensor]) -> Tensor:
        """Blend tiles, each (C, h, w) or stacked (B, C, h, w), to a padded frame (1, C, H, W).

        The sum is computed in float32; the result has the tiles' dtype.
        """
        stacks = [tile if tile.ndim == 4 else tile[None] for tile in tiles]
        if self.count == 1:
            return stacks[0]
        fraction = self.tile[0] // stacks[0].shape[2]
        rows, columns = stacks[0].shape[2:]
        size = tuple(side // fraction for side in self.padded)
        total = stacks[0].new_zeros(1, stacks[0].shape[1], *size, dtype=torch.float32)
        weights = total.new_zeros(size)
        margin = self.margin // fraction
        window = _ramp(rows, margin, total)[:, None] * _ramp(columns, margin, total)
        window = torch.ones_like(window) if self.is_mean else window
        tile_of = (tile for stack in stacks for tile in stack)
        for tile, (top, left) in zip(tile_of, self._places(), strict=True):
            y, x = top // fraction, left // fraction
            total[0, :, y : y + rows, x : x + columns] += tile * window
            weights[y : y + rows, x : x + columns] += window
        return (total / weights).to(stacks[0].dtype)

    def apply(self, function: Callable[..., Tensor], *padded: Tensor | None) -> Tensor:
        """Apply function to tiles of padded frames or maps (1, C, H, W), or None, and blend the results."""
        if self.count == 1:
            return function(*padded)
        return self.join(
            [
                function(*(None if part is None else self.split(part, group) for part in padded))
                for group in self.groups()
            ]
        )

    def _places(self) -> list[tuple[int, int]]:
        return [(y, x) for y in self.tops for x in self.lefts]


def cut_tiles(
    height: int, width: int, tile: tuple[int, int] | None, overlap: int, needs: TileNeeds, at_once: int = 1
) -> TilePlan:
    """Plan tiles of at most `tile` (height, width) pixels for frames of this size; None: one tile, the whole frame.

    Neighbours share at least `overlap` pixels if tiles leave room for a step. If that is more than twice the network's
    reach, tiles give the same result as the whole frame.
    """
    reach, multiple = needs.reach, needs.multiple
    margin = reach if reach is not None and overlap > 2 * reach else overlap // 4
    if tile is not None and needs.tile_multiple is not None and (height > tile[0] or width > tile[1]):
        multiple = needs.tile_multiple
    sides, starts = [], []
    for length, wanted in zip((height, width), tile or (height, width), strict=True):
        side = max(min(_round_up(wanted, multiple), _round_up(length, multiple)), _round_up(needs.smallest, multiple))
        last = _round_up(max(length - side, 0), multiple)
        # Tiles start on the network's grid, so that it sees each as it would see the whole frame. They are evenly
        # spaced, but never so far apart that they share less than the overlap.
        step = max((side - overlap) // multiple, 1) * multiple
        count = -(-last // step) + 1
        places = [min(-(-k * last // max(count - 1, 1) // multiple) * multiple, k * step) for k in range(count)]
        sides.append(side)
        starts.append(tuple(sorted({*places[:-1], last})))
    return TilePlan((height, width), (sides[0], sides[1]), starts[0], starts[1], needs.padding, at_once, margin)


def cut_mean_tiles(height: int, width: int, side: int, overlap: int, multiple: int = 8) -> TilePlan:
    """Plan square tiles as Turtle's authors do, who take the plain mean where tiles overlap.

    Frames are padded by reflection to multiples of 8. Tiles begin at multiples of their side less the overlap, the last
    where it ends with the frame; none is larger than the frame's smaller side.
    """
    sides = [_round_up(length, multiple) for length in (height, width)]
    side = min(side, *sides)
    tops, lefts = ([*range(0, length - side, max(side - overlap, 1)), length - side] for length in sides)
    return TilePlan((height, width), (side, side), tuple(tops), tuple(lefts), is_mean=True)


def pad_to(picture: Tensor, height: int, width: int, mode: str = "reflect") -> Tensor:
    """Pad a picture (B, C, H, W) on the right and the bottom.

    mode: "reflect" mirrors it, repeatedly if needed; "replicate" repeats its last pixels; or "zeros".
    """
    if mode == "zeros":
        return F.pad(picture, (0, width - picture.shape[3], 0, height - picture.shape[2]))
    while picture.shape[2] < height or picture.shape[3] < width:
        down, right = height - picture.shape[2], width - picture.shape[3]
        if mode == "reflect":
            one_line, one_column = picture.shape[2] == 1, picture.shape[3] == 1
            if one_line or one_column:  # nothing to mirror
                pad = (0, right if one_column else 0, 0, down if one_line else 0)
                picture = F.pad(picture, pad, mode="replicate")
                continue
            down, right = min(down, picture.shape[2] - 1), min(right, picture.shape[3] - 1)
        picture = F.pad(picture, (0, right, 0, down), mode=mode)
    return picture


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _ramp(length: int, margin: int, like: Tensor) -> Tensor:
    """Return weights along a tile: almost zero in the margins, then rising linearly to the middle."""
    position = torch.arange(length, device=like.device, dtype=like.dtype)
    return (torch.minimum(position + 0.5, length - 0.5 - position) - margin).clamp(min=UNUSED)
