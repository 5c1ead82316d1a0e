"""Encode frames as picture files."""

import re
from fractions import Fraction
from pathlib import Path

import av
import av.error

from vdeblur.frame import Frame, layout_of, planar_name
from vdeblur.source.info import SourceInfo

NUMBER = re.compile(r"%0?[0-9]*d")  # of a pattern for numbered pictures, as FFmpeg writes it: %06d


class PictureEncoding:
    """The encoding of frames as numbered pictures: TIFF where the input is TIFF, else PNG; both are lossless.

    names: a pattern for their names, as %06d.png, whose suffix then decides; "" for the usual names.
    """

    def __init__(self, info: SourceInfo, names: str = "") -> None:
        self.names = names
        is_tiff = names.lower().endswith((".tif", ".tiff")) if names else info.codec == "tiff"
        self.codec = "tiff" if is_tiff else "png"
        self.suffix = ".tiff" if is_tiff else ".png"
        layout = layout_of(info.picture_format)
        assert layout is not None
        deep, alpha = layout.bits > 8, layout.alpha
        end = "le" if self.codec == "tiff" else "be"
        if layout.gray:
            self.format = f"gray16{end}" if deep else "gray"
        else:
            self.format = f"{'rgba64' if alpha else 'rgb48'}{end}" if deep else "rgba" if alpha else "rgb24"

    def name_of(self, frame: Frame, number: int) -> str:
        """Return a frame's file name: by the pattern, else that of the input's picture, else its number, from 1."""
        if self.names:
            return NUMBER.sub(lambda part: part[0] % number, self.names)
        return Path(frame.name).with_suffix(self.suffix).name if frame.name else f"{number:06}{self.suffix}"

    def encode(self, frame: Frame) -> bytes:
        """Encode a frame; return the file's content."""
        return picture_bytes(convert_picture(frame.picture, self.format), self.codec)


def picture_bytes(picture: av.VideoFrame, codec: str = "png") -> bytes:
    """Encode a picture in its own pixel format; return the file's content. codec: png or tiff."""
    encoder = av.CodecContext.create(codec, "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, picture.format.name
    encoder.time_base = Fraction(1, 25)
    picture.pts, picture.time_base = None, Fraction(1, 25)
    return b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode(None)])


def convert_picture(picture: av.VideoFrame, name: str) -> av.VideoFrame:
    """Convert a picture to another pixel format with its own matrix and range; equal samples are copied."""
    if planar_name(name) == picture.format.name.replace("yuvj", "yuv"):
        converted = picture.reformat(format=name)
    else:
        is_untagged = int(picture.colorspace) == 2
        matrix = (1 if picture.width >= 1280 or picture.height > 576 else 5) if is_untagged else int(picture.colorspace)
        converted = picture.reformat(format=name, src_colorspace=matrix, dst_colorspace=matrix)
    converted.colorspace, converted.color_range = picture.colorspace, picture.color_range
    return converted
