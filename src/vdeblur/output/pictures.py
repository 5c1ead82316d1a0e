"""Encode frames as picture files."""

import re
from fractions import Fraction
from pathlib import Path

import av
import av.error

from vdeblur.errors import OutputError
from vdeblur.events import Warn
from vdeblur.frame import Frame, PlaneLayout, convert_picture, layout_of, planar_name
from vdeblur.source.info import SourceInfo
from vdeblur.source.upright import matrix_orientation, turn_upright

# Suffix of a picture to write: FFmpeg's encoder. Folders of pictures are PNG or TIFF.
PICTURE_ENCODERS = {".png": "png", ".tif": "tiff", ".tiff": "tiff", ".jpg": "mjpeg", ".jpeg": "mjpeg", ".bmp": "bmp",
                    ".webp": "libwebp"}  # fmt: skip
# JPEG's quantiser scale, 2 to 31: 2 is the finest that FFmpeg recommends. WebP is written without loss.
PICTURE_OPTIONS = {"mjpeg": {"qmin": "2", "qmax": "2"}, "libwebp": {"lossless": "1"}}
JPEG_CHROMA = {(0, 0): "yuvj444p", (1, 0): "yuvj422p", (1, 1): "yuvj420p"}  # log2 of its subsampling

NUMBER = re.compile(r"%0?[0-9]*d")  # of a pattern for numbered pictures, as FFmpeg writes it: %06d


class PictureEncoding:
    """The encoding of frames as upright pictures.

    Without a suffix they are numbered pictures in a folder, without loss: TIFF where the input is TIFF, else PNG. With
    one, a single picture of that kind. names: a pattern for the names in a folder, as %06d.png, whose suffix then
    decides; "" for the usual names.
    """

    def __init__(self, info: SourceInfo, warn: Warn, suffix: str = "", names: str = "") -> None:
        self.names = names
        self.is_single = bool(suffix)
        self.suffix = suffix or Path(names).suffix or (".tiff" if info.codec == "tiff" else ".png")
        self.codec = PICTURE_ENCODERS[self.suffix.lower()]
        self.orientation = matrix_orientation(info.display_matrix)
        layout = layout_of(info.picture_format)
        assert layout is not None
        self.format = _format_for(self.codec, layout)
        held = layout_of(planar_name(self.format))
        if layout.alpha and (held is None or not held.alpha):
            warn("W_ALPHA", f"{self.suffix} has no transparency, so it is lost (.png keeps it)")
        if layout.bits > 8 and (held is None or held.bits == 8):
            warn("W_PIX_FMT", f"{self.suffix} holds 8 bits of the {layout.bits} (.png and .tiff hold 16)")

    @property
    def quality(self) -> str:
        """The quality in words."""
        return f"quantiser scale {PICTURE_OPTIONS['mjpeg']['qmax']} of 2 to 31" if self.codec == "mjpeg" else "lossless"

    def name_of(self, frame: Frame, number: int) -> str:
        """Return a frame's file name: by the pattern, else that of the input's picture, else its number, from 1."""
        if self.names:
            return NUMBER.sub(lambda part: part[0] % number, self.names)
        return self.renamed(frame.name) if frame.name else f"{number:06}{self.suffix}"

    def renamed(self, name: str) -> str:
        """Return the name of the output for an input picture of this name."""
        return Path(name).with_suffix(self.suffix).name

    def check_names(self, names: list[str]) -> None:
        """Refuse pictures that would be written under the same name; by a pattern, all names differ.

        Raises: OutputError.
        """
        written: dict[str, str] = {}
        for name in names if not self.names else []:
            other = written.setdefault(self.renamed(name), name)
            if other != name:
                raise OutputError(f"{other} and {name} would both be written as {self.renamed(name)}", "rename one")

    def encode(self, frame: Frame) -> bytes:
        """Encode a frame; return the file's content."""
        picture = turn_upright(frame.picture, self.orientation)
        return picture_bytes(convert_picture(picture, self.format), self.codec)


def _format_for(codec: str, layout: PlaneLayout) -> str:
    """Return the pixel format of an encoder that holds a layout's depth, alpha and colours, as far as it can."""
    if codec == "mjpeg":
        chroma = (0, 0) if layout.rgb or layout.gray else (layout.log2_width, layout.log2_height)
        return JPEG_CHROMA.get(chroma, "yuvj444p")
    if codec == "libwebp":
        return "bgra"  # its other formats are Y'CbCr 4:2:0
    deep, alpha = layout.bits > 8 and codec != "bmp", layout.alpha
    if codec == "bmp":
        return "bgra" if alpha else "gray" if layout.gray else "bgr24"
    end = "le" if codec == "tiff" else "be"
    if layout.gray and not alpha:
        return f"gray16{end}" if deep else "gray"
    return f"{'rgba64' if alpha else 'rgb48'}{end}" if deep else "rgba" if alpha else "rgb24"


def picture_bytes(picture: av.VideoFrame, codec: str = "png") -> bytes:
    """Encode a picture in its own pixel format; return the file's content. codec: FFmpeg's name of the encoder."""
    encoder = av.CodecContext.create(codec, "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, picture.format.name
    encoder.time_base = Fraction(1, 25)
    encoder.color_range, encoder.colorspace = picture.color_range, picture.colorspace
    encoder.color_primaries, encoder.color_trc = picture.color_primaries, picture.color_trc
    encoder.options = dict(PICTURE_OPTIONS.get(codec, {}))
    picture.pts, picture.time_base = None, Fraction(1, 25)
    return b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode(None)])
