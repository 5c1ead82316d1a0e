"""Y'CbCr planes to RGB and, only as a difference, back.

The network gets RGB, converted with the frame's own matrix and range. Its output does not replace the frame: output
minus input in RGB becomes differences of Y', Cb and Cr, which are averaged onto the chroma grid and added to the
original planes at their own depth. Samples that the network leaves alone stay bit-exact.

Matrices: ITU-T H.273, table 4 (Kr, Kb). Ranges: H.273, equations 26-31 of Sec. 8.3. Subsampled chroma is taken from
where the frame says that it lies (frame.CHROMA_LOCATIONS), and put back there.
"""

from dataclasses import dataclass

import av
import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.frame import CHROMA_LOCATIONS, USUAL_CHROMA, YCGCO, Frame, PlaneLayout, layout_of, plane_array

BT709, BT601 = (0.2126, 0.0722), (0.299, 0.114)
# FFmpeg's number of the matrix (AVCOL_SPC_*): (Kr, Kb). For a difference, the nearest matrix is good enough for
# constant luminance (10): the network's picture is then off in hue, but the frame is not.
MATRICES = {1: BT709, 4: (0.30, 0.11), 5: BT601, 6: BT601, 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
FULL_RANGE = 2  # AVCOL_RANGE_JPEG


@dataclass(frozen=True)
class ColorSpace:
    """The meaning of the samples in the planes: format, matrix, range and chroma location.

    across, down: where chroma lies; see frame.CHROMA_LOCATIONS. ycgco: kr and kb do not count, chroma is Cg and Co.
    """

    layout: PlaneLayout
    kr: float
    kb: float
    full_range: bool
    across: float = CHROMA_LOCATIONS[USUAL_CHROMA][0]
    down: float = CHROMA_LOCATIONS[USUAL_CHROMA][1]
    ycgco: bool = False

    @classmethod
    def of(cls, picture: av.VideoFrame, chroma_location: str = USUAL_CHROMA) -> "ColorSpace":
        """Return the colour space of a picture in a planar format. chroma_location: the frame's.

        Untagged pictures: BT.709 from 1280 pixels of width or above 576 lines, else BT.601, as in players.
        """
        layout = layout_of(picture.format.name)
        assert layout is not None, picture.format.name
        untagged = BT709 if picture.width >= 1280 or picture.height > 576 else BT601
        kr, kb = MATRICES.get(int(picture.colorspace), untagged)
        full = int(picture.color_range) == FULL_RANGE or layout.name.startswith("yuvj") or layout.rgb
        ycgco = int(picture.colorspace) == YCGCO and not layout.rgb
        return cls(layout, kr, kb, full, *CHROMA_LOCATIONS[chroma_location], ycgco)

    @property
    def luma(self) -> tuple[float, float]:
        """Return the code of black, and the number of codes from black to white."""
        step = 1 << (self.layout.bits - 8)
        return (0.0, float(self.layout.peak)) if self.full_range else (16.0 * step, 219.0 * step)

    @property
    def chroma(self) -> tuple[float, float]:
        """Return the code of no colour, and the number of codes from -0.5 to 0.5."""
        step = 1 << (self.layout.bits - 8)
        if self.ycgco:
            return 128.0 * step, self.luma[1]  # computed from codes of R'G'B', not from the signals
        return 128.0 * step, float(self.layout.peak) if self.full_range else 224.0 * step


def planes_of(frame: Frame, space: ColorSpace, device: torch.device) -> list[Tensor]:
    """Upload the colour planes unchanged: uint8 or uint16 (h, w) tensors in the layout's order.

    Copies to a CUDA device are asynchronous.
    """
    arrays = [numpy.ascontiguousarray(plane_array(frame.picture, index)) for index in space.layout.colors]
    if device.type == "cuda":
        return [torch.from_numpy(array).pin_memory().to(device, non_blocking=True) for array in arrays]
    return [torch.from_numpy(array).to(device) for array in arrays]


def to_rgb(planes: list[Tensor], space: ColorSpace) -> Tensor:
    """Convert planes (see planes_of) to RGB: float32 (3, H, W), clipped to [0, 1]."""
    black, extent = space.luma
    first = (planes[0].float() - black) / extent
    if space.layout.gray:
        return first.clamp(0, 1).expand(3, -1, -1)
    if space.layout.rgb:
        return torch.stack([plane.float() / extent for plane in planes])
    neutral, swing = space.chroma
    chroma = torch.stack([(plane.float() - neutral) / swing for plane in planes[1:]])
    cb, cr = _upsample(chroma, space, first.shape[-2:])
    if space.ycgco:  # H.273, equations 55 to 57: Cg and Co stand in the planes of Cb and Cr
        base = first - cb
        return torch.stack((base + cr, first + cb, base - cr)).clamp_(0, 1)
    red = first + cr * (2 * (1 - space.kr))
    blue = first + cb * (2 * (1 - space.kb))
    green = (first - space.kr * red - space.kb * blue) / (1 - space.kr - space.kb)
    return torch.stack((red, green, blue)).clamp_(0, 1)


def add_difference(planes: list[Tensor], difference: Tensor, space: ColorSpace) -> list[Tensor]:
    """Add a difference of RGB pictures, float32 (3, H, W), to planes; return planes of the same shapes and types."""
    extent = space.luma[1]
    if space.layout.gray:
        return [_added(planes[0], difference.mean(0) * extent, space.layout.peak)]
    if space.layout.rgb:
        return [_added(p, d * extent, space.layout.peak) for p, d in zip(planes, difference, strict=True)]
    red, green, blue = difference
    if space.ycgco:
        others = (red + blue) / 4
        luma, chroma = green / 2 + others, torch.stack((green / 2 - others, (red - blue) / 2))
    else:
        luma = space.kr * red + (1 - space.kr - space.kb) * green + space.kb * blue
        chroma = torch.stack(((blue - luma) / (2 * (1 - space.kb)), (red - luma) / (2 * (1 - space.kr))))
    chroma = _downsample(chroma, space) * space.chroma[1]
    changes = (luma * extent, *chroma)
    return [_added(p, change, space.layout.peak) for p, change in zip(planes, changes, strict=True)]


def _added(plane: Tensor, change: Tensor, peak: int) -> Tensor:
    return (plane.float() + change).round_().clamp_(0, peak).to(plane.dtype)


def _upsample(chroma: Tensor, space: ColorSpace, size: torch.Size) -> Tensor:
    """Upsample chroma, (2, h, w), to the luma grid, linearly; constant beyond the first and the last sample."""
    height, width = size
    if space.layout.log2_height:
        chroma = _stretch(chroma, 1, 1 << space.layout.log2_height, space.down)
    if space.layout.log2_width:
        chroma = _stretch(chroma, 2, 1 << space.layout.log2_width, space.across)
    return chroma[:, :height, :width]


def _stretch(chroma: Tensor, axis: int, scale: int, place: float) -> Tensor:
    """Upsample an axis. place: of each sample among its `scale` luma samples, 0 to 1."""
    length = chroma.shape[axis]
    before = torch.cat((chroma.narrow(axis, 0, 1), chroma.narrow(axis, 0, length - 1)), axis)
    after = torch.cat((chroma.narrow(axis, 1, length - 1), chroma.narrow(axis, length - 1, 1)), axis)
    phases = []
    for index in range(scale):
        distance = (index - place * (scale - 1)) / scale  # from the chroma sample, in chroma samples
        low, high = (before, chroma) if distance < 0 else (chroma, after)
        phases.append(torch.lerp(low, high, distance % 1))
    return torch.stack(phases, axis + 1).flatten(axis, axis + 1)


def _downsample(chroma: Tensor, space: ColorSpace) -> Tensor:
    """Average (2, H, W) onto the chroma grid, sizes rounded up."""
    if space.layout.log2_height:
        chroma = _shrink(chroma, 1, 1 << space.layout.log2_height, space.down)
    if space.layout.log2_width:
        chroma = _shrink(chroma, 2, 1 << space.layout.log2_width, space.across)
    return chroma


def _shrink(chroma: Tensor, axis: int, scale: int, place: float) -> Tensor:
    """Average an axis around each chroma sample: by a box in the middle of its luma samples, else by a triangle."""
    rest = -chroma.shape[axis] % scale
    if place == 0.5:
        boxes: Tensor = _extend(chroma, axis, 0, rest).unflatten(axis, (-1, scale))
        return boxes.mean(axis + 1)
    center = round(place * (scale - 1))
    padded = _extend(chroma, axis, scale - 1 - center, center + rest)
    count = (chroma.shape[axis] + rest) // scale
    total = torch.zeros_like(padded.narrow(axis, 0, count))
    for first in range(2 * scale - 1):
        weight = 1 - abs(first - scale + 1) / scale
        taps = padded[:, first:, :] if axis == 1 else padded[:, :, first:]
        taps = taps[:, ::scale, :] if axis == 1 else taps[:, :, ::scale]
        total += weight * taps.narrow(axis, 0, count)
    return total / scale


def _extend(chroma: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Repeat the first and the last line or column."""
    widths = (0, 0, before, after) if axis == 1 else (before, after, 0, 0)
    return F.pad(chroma[None], widths, mode="replicate")[0]


def with_planes(
    picture: av.VideoFrame, planes: list[Tensor], space: ColorSpace, places: list[tuple[slice, slice]] | None = None
) -> av.VideoFrame:
    """Write colour planes into a picture, in place, and return it; its metadata stays.

    places: rows and columns of the planes in the picture's, if they are a part of it.
    """
    for number, (index, plane) in enumerate(zip(space.layout.colors, planes, strict=True)):
        place = (slice(None), slice(None)) if places is None else places[number]
        plane_array(picture, index)[place] = plane.cpu().numpy()
    picture.pict_type = av.video.frame.PictureType.NONE  # the input's choice of keyframes is not the encoder's
    return picture
