"""Compose two frames into one picture: side by side, split, wiped, or their difference."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import av
import av.error
import numpy

from vdeblur.frame import Frame, layout_of, plane_array, with_tags
from vdeblur.restore import color
from vdeblur.source.info import SourceInfo

GAIN = 4  # of differences: 16 steps of 256 become a quarter of the way from grey to white
WIPE_SECONDS = 4  # to and fro
WIPE_REACH = 0.45  # of the width, to either side of the middle
LINE_SHARE = 400  # the divider's width is the picture's over this
Planes = list[numpy.ndarray]


def upright_size(info: SourceInfo) -> tuple[int, int]:
    """Return width and height after rotation, as players show the video."""
    return (info.height, info.width) if info.rotation % 180 else (info.width, info.height)


def composed_info(info: SourceInfo, frame: Frame) -> SourceInfo:
    """Return the info of a video of frames like this one, which `compose` made from a source."""
    aspect = info.sample_aspect_ratio
    if aspect and info.rotation % 180:
        aspect = 1 / aspect
    picture = frame.picture
    return replace(
        info,
        width=picture.width,
        height=picture.height,
        picture_format=picture.format.name,
        rotation=0,
        display_matrix=(),
        sample_aspect_ratio=aspect,
    )


def compose(a: Frame, b: Frame, mode: "Composer", rotation_a: int, rotation_b: int, seconds: float) -> Frame:
    """Compose one frame from two, with the first one's time, format and colour tags.

    rotation_a, rotation_b: degrees by which players turn them, counterclockwise; the result needs none. seconds: since
    the first frame, for dividers that move.
    """
    picture_a = _upright(a.picture, rotation_a)
    picture_b = _in_colors_of(picture_a, _upright(b.picture, rotation_b))
    space = color.ColorSpace.of(picture_a)
    pair = ComposedFrames(_whole_planes(picture_a, space), _whole_planes(picture_b, space), space, seconds)
    return replace(a, picture=_picture(mode(pair), picture_a, space))


@dataclass(frozen=True)
class ComposedFrames:
    """Two pictures as planes of the same format and size, with alpha, padded to whole blocks of chroma."""

    a: Planes
    b: Planes
    space: color.ColorSpace
    seconds: float

    def level(self, index: int, share: float) -> float:
        """Return the code of a grey between black (0) and white (1) in a plane."""
        layout = self.space.layout
        if index not in layout.colors or layout.rgb:
            return share * layout.peak
        black, extent = self.space.luma
        return black + share * extent if index == layout.colors[0] else self.space.chroma[0]

    def divided(self, share: float) -> Planes:
        """Return a's picture left of a white line at this share of the width, and b's right of it."""
        block = 1 << self.space.layout.log2_width
        width = max(plane.shape[1] for plane in self.a)
        line = max(round(width / LINE_SHARE / block), 1) * block
        begin = round((share * width - line / 2) / block) * block
        joined = []
        for index, (a, b) in enumerate(zip(self.a, self.b, strict=True)):
            scale = width // a.shape[1]
            plane = a.copy()
            plane[:, begin // scale :] = b[:, begin // scale :]
            plane[:, begin // scale : (begin + line) // scale] = round(self.level(index, 1))
            joined.append(plane)
        return joined


def join_sides(pair: ComposedFrames) -> Planes:
    """Join two pictures side by side."""
    return [numpy.concatenate(both, 1) for both in zip(pair.a, pair.b, strict=True)]


def _split(pair: ComposedFrames) -> Planes:
    return pair.divided(0.5)


def _wipe(pair: ComposedFrames) -> Planes:
    return pair.divided(0.5 - WIPE_REACH * math.cos(2 * math.pi * pair.seconds / WIPE_SECONDS))


def _difference(pair: ComposedFrames) -> Planes:
    planes = []
    for index, (a, b) in enumerate(zip(pair.a, pair.b, strict=True)):
        changed = pair.level(index, 0.5) + GAIN * (b.astype(numpy.float32) - a)
        seen = index in pair.space.layout.colors
        planes.append(changed.round().clip(0, pair.space.layout.peak).astype(a.dtype) if seen else a)
    return planes


Composer = Callable[[ComposedFrames], Planes]
MODES: dict[str, Composer] = {"side": join_sides, "split": _split, "wipe": _wipe, "diff": _difference}


def _upright(picture: av.VideoFrame, rotation: int) -> av.VideoFrame:
    """Turn a picture by quarter turns, as players do; chroma that is subsampled along one axis only becomes 4:4:4."""
    turns = rotation // 90 % 4
    if not turns:
        return picture
    layout = layout_of(picture.format.name)
    assert layout is not None, picture.format.name
    if layout.log2_width != layout.log2_height:
        finer = picture.format.name
        for chroma in ("422", "440", "411"):
            finer = finer.replace(chroma, "444")
        picture = with_tags(picture.reformat(format=finer), picture)
    size = (picture.height, picture.width) if turns % 2 else (picture.width, picture.height)
    turned = av.VideoFrame(*size, picture.format.name)
    for index in range(len(picture.planes)):
        plane_array(turned, index)[:] = numpy.rot90(plane_array(picture, index), turns)
    return with_tags(turned, picture)


def _in_colors_of(like: av.VideoFrame, picture: av.VideoFrame) -> av.VideoFrame:
    """Convert a picture to the format, matrix and range of another one."""
    form = like.format.name
    wanted, own = color.ColorSpace.of(like), color.ColorSpace.of(picture)
    if form == picture.format.name and (wanted.kr, wanted.full_range) == (own.kr, own.full_range):
        return picture
    converted = picture.reformat(
        format=form,
        src_colorspace=_matrix(own),
        dst_colorspace=_matrix(wanted),
        src_color_range=2 if own.full_range else 1,
        dst_color_range=2 if wanted.full_range else 1,
    )
    return with_tags(converted, like)


def _matrix(space: color.ColorSpace) -> int:
    """Return FFmpeg's number of the matrix with this first coefficient."""
    return next(number for number, (kr, _) in color.MATRICES.items() if kr == space.kr)


def _whole_planes(picture: av.VideoFrame, space: color.ColorSpace) -> Planes:
    """Copy the planes; repeat the last column and line to complete blocks of chroma."""
    layout = space.layout
    planes = []
    for index in range(len(picture.planes)):
        plane = plane_array(picture, index)
        if index not in layout.colors[1:] or layout.rgb:
            rows, columns = -plane.shape[0] % (1 << layout.log2_height), -plane.shape[1] % (1 << layout.log2_width)
            plane = numpy.pad(plane, ((0, rows), (0, columns)), mode="edge")
        planes.append(plane)
    return planes


def _picture(planes: Planes, like: av.VideoFrame, space: color.ColorSpace) -> av.VideoFrame:
    first = planes[space.layout.colors[0]]
    picture = av.VideoFrame(first.shape[1], first.shape[0], like.format.name)
    for index, plane in enumerate(planes):
        plane_array(picture, index)[:] = plane
    return with_tags(picture, like)
