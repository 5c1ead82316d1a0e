"""Restore only a part of the picture: a region, or what a mask shows white.

The network gets the part alone, with as many pixels around it as neighbouring tiles share, so a small part is fast.
Samples outside stay bit-exact. At the edge of the part the restoration rises over some pixels, so no seam is visible.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.errors import InputError, UsageError
from vdeblur.frame import Frame, PlaneLayout, convert_picture, layout_of, planar_name, plane_array
from vdeblur.networks.layers import Network
from vdeblur.restore import color
from vdeblur.settings import Settings
from vdeblur.source.info import SourceInfo
from vdeblur.source.picture_header import read_header
from vdeblur.source.pictures import PICTURE_SUFFIXES, is_picture, read_picture
from vdeblur.source.upright import matrix_orientation

EDGE = 8  # pixels inside the part over which its weight rises
COARSEST_CHROMA = 4  # luma samples that share one chroma sample along an axis, at most
NEARLY = 0.02  # of the range: JPEG's black and white are off by some codes


@dataclass(frozen=True)
class Area:
    """The part of each frame that is restored.

    rows, columns: what the network gets. weights: of the restoration there, float32 (rows, columns), 0 to 1. share: of
    the frame that is restored; filled: of what the network gets.
    """

    rows: slice
    columns: slice
    weights: Tensor
    share: float
    filled: float

    @classmethod
    def of(cls, wanted: Tensor, network: Network, context: int) -> "Area":
        """Choose what the network gets. wanted: weights of a whole frame. context: pixels that it needs around."""
        grid = math.lcm(network.tile_multiple or network.multiple, COARSEST_CHROMA)
        inside = wanted > 0
        around = max(context, EDGE)
        rows, columns = (
            _extent(inside.any(1 - axis), around, network.smallest, grid) for axis in (0, 1)
        )  # a network sees each pixel on the same grid as in the whole frame
        share, filled = (float(part.float().mean()) for part in (inside, inside[rows, columns]))
        return cls(rows, columns, _softened(wanted[rows, columns]), share, filled)

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of what the network gets."""
        return self.weights.shape[0], self.weights.shape[1]

    def to(self, device: torch.device) -> "Area":
        """Return the area with its weights on a device."""
        return replace(self, weights=self.weights.to(device))

    def cut(self, rgb: Tensor) -> Tensor:
        """Cut the part out of a picture (3, H, W)."""
        return rgb[:, self.rows, self.columns].contiguous()

    def cut_planes(self, planes: Sequence[Tensor], layout: PlaneLayout) -> list[Tensor]:
        """Cut the part out of the planes of a frame, in the layout's order."""
        return [plane[place] for plane, place in zip(planes, self.places(layout), strict=True)]

    def places(self, layout: PlaneLayout) -> list[tuple[slice, slice]]:
        """Return rows and columns of the part in each plane."""
        chroma = (_coarser(self.rows, layout.log2_height), _coarser(self.columns, layout.log2_width))
        is_subsampled = not (layout.rgb or layout.gray)
        return [chroma if index and is_subsampled else (self.rows, self.columns) for index in range(len(layout.colors))]

    def keep_outside(self, before: list[Tensor], after: list[Tensor], layout: PlaneLayout) -> list[Tensor]:
        """Return the part's planes after restoration, but as before where a chroma sample reaches out of the area.

        Other samples outside are the same already, because their weight is 0.
        """
        if layout.rgb or layout.gray or not (layout.log2_width or layout.log2_height):
            return after
        block = (1 << layout.log2_height, 1 << layout.log2_width)
        outside = F.max_pool2d((self.weights == 0).float()[None, None], block, ceil_mode=True)[0, 0] > 0
        kept = [torch.where(outside, old, new) for old, new in zip(before[1:], after[1:], strict=True)]
        return [after[0], *kept]


def wanted_weights(settings: Settings, info: SourceInfo) -> Tensor | None:
    """Return the weights that --region and --mask ask for, float32 (H, W) as frames are stored; None: all is wanted.

    Both are given for the upright picture, as players show it.

    Raises: UsageError if they do not fit the picture or leave nothing, InputError if the mask cannot be read.
    """
    if settings.region is None and settings.mask is None:
        return None
    orientation = matrix_orientation(info.display_matrix)
    width, height = (info.height, info.width) if orientation >= 5 else (info.width, info.height)
    wanted = torch.ones(height, width) if settings.mask is None else _read_mask(settings.mask, width, height)
    if settings.region is not None:
        wide, high, left, top = settings.region
        if left + wide > width or top + high > height:
            raise UsageError(
                f"--region {wide}x{high}+{left}+{top} reaches out of {info.path}, which is {width}x{height}",
                "give width x height + left + top, in pixels of the upright picture",
            )
        of_region = torch.zeros(height, width)
        of_region[top : top + high, left : left + wide] = wanted[top : top + high, left : left + wide]
        wanted = of_region
        if not wanted.any():
            raise UsageError(f"{settings.mask} is black in all of --region", "make white what is to be restored")
    return _as_stored(wanted, orientation).contiguous()


def _read_mask(path: Path, width: int, height: int) -> Tensor:
    """Return a mask's weights, float32 (height, width): 1 where it is white and opaque, 0 where it is black.

    Raises: InputError if it cannot be read, UsageError for another size or if nothing is white.
    """
    try:
        is_readable = path.is_file() and is_picture(path)
        header = read_header(path) if is_readable else None
    except OSError as error:
        raise InputError(f"--mask {path} cannot be read: {error.strerror}", "check the path") from error
    if not path.exists():
        raise InputError(f"--mask {path} does not exist", "check the path")
    if header is None:
        kinds = ", ".join(sorted(PICTURE_SUFFIXES))
        raise InputError(f"--mask {path} is no still picture that can be read", f"use one of {kinds}")
    # Before it is decoded: a small file may hold an enormous picture.
    _check_size(path, header.upright_size, (width, height))
    picture, _ = read_picture(path)
    _check_size(path, (picture.width, picture.height), (width, height))
    mask = _brightness(Frame(picture, 0, Fraction(1)))
    mask[mask < NEARLY] = 0
    mask[mask > 1 - NEARLY] = 1
    if not mask.any():
        raise UsageError(
            f"--mask {path} is all black, so nothing would be restored", "make white what is to be restored"
        )
    return mask


def _check_size(path: Path, found: tuple[int, int], wanted: tuple[int, int]) -> None:
    if found != wanted:
        raise UsageError(
            f"--mask {path} is {found[0]}x{found[1]}, and the upright picture is {wanted[0]}x{wanted[1]}",
            "draw it over a frame of the video, which vdeblur still CLIP --at 0 -o frame.png writes",
        )


def _brightness(frame: Frame) -> Tensor:
    """Return the mean of R, G and B, times the opacity, of a picture: float32 (H, W), 0 to 1.

    Raises: InputError for a pixel format that is not supported.
    """
    picture = frame.picture
    name = planar_name(picture.format.name)
    if name != picture.format.name:
        picture = convert_picture(picture, name)
    layout = layout_of(name)
    if layout is None:
        raise InputError(f"a mask of pixel format {name} is not supported", "convert it to an 8-bit PNG")
    space = color.ColorSpace.of(picture)
    planes = color.planes_of(replace(frame, picture=picture), space, torch.device("cpu"))
    brightness = color.to_rgb(planes, space).mean(0)
    if layout.alpha:
        (opacity,) = set(range(len(picture.planes))) - set(layout.colors)
        brightness = brightness * (torch.from_numpy(plane_array(picture, opacity).copy()).float() / layout.peak)
    return brightness


def _as_stored(upright: Tensor, orientation: int) -> Tensor:
    """Turn a map of the upright picture (H, W) as frames are stored. orientation: EXIF's, 1 to 8, of the frames."""
    turned = {
        1: upright,
        2: upright.flip(1),
        3: upright.flip(0, 1),
        4: upright.flip(0),
        5: upright.T,
        6: torch.rot90(upright, 1),  # players turn the frames clockwise
        7: upright.T.flip(0, 1),
        8: torch.rot90(upright, -1),
    }
    return turned[orientation]


def _extent(inside: Tensor, around: int, smallest: int, grid: int) -> slice:
    """Return what the network gets along an axis. inside: which lines hold a part of the area."""
    lines = inside.nonzero()
    begin = max(min(int(lines[0]) - around, len(inside) - smallest), 0) // grid * grid
    end = max(int(lines[-1]) + 1 + around, begin + smallest)
    return slice(begin, min(-(-end // grid) * grid, len(inside)))


def _softened(wanted: Tensor) -> Tensor:
    """Let weights (H, W) rise from the edge of the area inward; the picture's border is no edge.

    They rise over EDGE pixels, or over half of what fits into a narrow area, so that its middle is restored entirely.
    """
    inside = (wanted > 0).float()[None, None]
    layers = [inside]
    while len(layers) < 2 * EDGE:
        inside = 1 - F.max_pool2d(1 - inside, 3, 1, 1)  # pads with -inf, so what lies beyond the border is no outside
        if not inside.any():
            break
        layers.append(inside)
    rise = (len(layers) + 1) // 2
    return wanted * torch.stack(layers[:rise]).mean(0)[0, 0]


def _coarser(lines: slice, log2: int) -> slice:
    return slice(lines.start >> log2, -(-lines.stop >> log2))
