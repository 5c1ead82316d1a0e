"""A frame: its planes, its time, and where it came from."""

from dataclasses import dataclass
from fractions import Fraction

import av
import numpy
from av.filter import Graph


@dataclass(frozen=True)
class PlaneLayout:
    """The layout of a picture in a planar pixel format.

    name: FFmpeg's name. bits: depth of a sample. colors: indices of the planes that hold Y, Cb, Cr, or R, G, B, or
    Y alone, in that order. rgb: whether they are R, G, B. log2_width, log2_height: chroma subsampling. alpha: whether
    there is an alpha plane; `colors` leaves it out, since it passes through unchanged.
    """

    name: str
    bits: int
    colors: tuple[int, ...]
    rgb: bool
    log2_width: int
    log2_height: int
    alpha: bool = False

    @property
    def gray(self) -> bool:
        """Return whether Y is the only colour plane."""
        return len(self.colors) == 1

    @property
    def peak(self) -> int:
        """The largest value of a sample."""
        return (1 << self.bits) - 1


# Packed and mixed formats, with the planar format that holds the same samples.
PLANAR = {
    "nv12": "yuv420p",
    "nv21": "yuv420p",
    "nv16": "yuv422p",
    "nv24": "yuv444p",
    "p010le": "yuv420p10le",
    "p010be": "yuv420p10le",
    "p210le": "yuv422p10le",
    "p410le": "yuv444p10le",
    "p016le": "yuv420p16le",
    "yuyv422": "yuv422p",
    "uyvy422": "yuv422p",
    "yvyu422": "yuv422p",
    "y210le": "yuv422p10le",
    "rgb24": "gbrp",
    "bgr24": "gbrp",
    "rgb0": "gbrp",
    "bgr0": "gbrp",
    "0rgb": "gbrp",
    "0bgr": "gbrp",
    "pal8": "gbrap",
    "rgba": "gbrap",
    "bgra": "gbrap",
    "argb": "gbrap",
    "abgr": "gbrap",
    "rgb48le": "gbrp16le",
    "rgb48be": "gbrp16le",
    "bgr48le": "gbrp16le",
    "bgr48be": "gbrp16le",
    "rgba64le": "gbrap16le",
    "rgba64be": "gbrap16le",
    "monow": "gray",
    "monob": "gray",
    "ya8": "gbrap",
    "ya16le": "gbrap16le",
    "ya16be": "gbrap16le",
    "nv42": "yuv444p",
    "nv20le": "yuv422p10le",
    "nv20be": "yuv422p10le",
    "p012le": "yuv420p12le",
    "p212le": "yuv422p12le",
    "p412le": "yuv444p12le",
    "p216le": "yuv422p16le",
    "p416le": "yuv444p16le",
    "y212le": "yuv422p12le",
    "uyyvyy411": "yuv411p",
    "vuya": "yuva444p",
    "vuyx": "yuv444p",
    "ayuv64le": "yuva444p16le",
    "xv30le": "yuv444p10le",
    "xv36le": "yuv444p12le",
    "xv48le": "yuv444p16le",
    "x2rgb10le": "gbrp10le",
    "x2bgr10le": "gbrp10le",
    **dict.fromkeys(("rgb565le", "rgb565be", "bgr565le", "rgb555le", "rgb555be", "bgr555le", "rgb8", "bgr8"), "gbrp"),
}


def planar_name(name: str) -> str:
    """Return the planar, little-endian format that holds a format's samples without loss; both by FFmpeg's names."""
    if name in PLANAR:
        return PLANAR[name]
    return name[:-2] + "le" if name.endswith("be") else name


def layout_of(name: str) -> PlaneLayout | None:
    """Return the layout of a pixel format; None for packed, big-endian, float or unknown ones."""
    try:
        form = av.VideoFormat(name, 64, 64)
    except ValueError:
        return None
    parts = form.components
    bits = {part.bits for part in parts}
    color = [part for part in parts if not part.is_alpha]
    planes = tuple(part.plane for part in color)
    packed = (
        len({part.plane for part in parts}) != len(parts)
        or form.is_bit_stream
        or form.has_palette
        or form.is_big_endian
    )
    if packed or len(bits) != 1 or max(bits) > 16 or len(color) not in (1, 3) or name.endswith(("f32le", "f16le")):
        return None
    # The chroma planes of a 64x64 picture: 32 is subsampling by 2.
    widths, heights = 64 // form.chroma_width(64), 64 // form.chroma_height(64)
    alpha = len(color) < len(parts)
    return PlaneLayout(name, bits.pop(), planes, form.is_rgb, widths.bit_length() - 1, heights.bit_length() - 1, alpha)


def plane_array(frame: av.VideoFrame, index: int) -> numpy.ndarray:
    """Return a view of plane `index` of a frame: uint8 or uint16 (height, width)."""
    plane = frame.planes[index]
    data: numpy.ndarray = numpy.frombuffer(plane, numpy.uint8)  # type: ignore[call-overload]
    data = data.reshape(-1, plane.line_size)[: plane.height]
    deep = plane.width * 2 <= plane.line_size and max(part.bits for part in frame.format.components) > 8
    return data.view(numpy.uint16)[:, : plane.width] if deep else data[:, : plane.width]


class Copier:
    """Copy pictures with their side data: tags, field flags, captions. Not thread-safe."""

    def __init__(self) -> None:
        self.kind: tuple[int, int, str] | None = None

    def copy(self, picture: av.VideoFrame) -> av.VideoFrame:
        """Return a copy with samples of its own; its time is not kept."""
        kind = (picture.width, picture.height, picture.format.name)
        if kind != self.kind:
            self.kind, self.graph = kind, Graph()
            source = self.graph.add_buffer(
                width=picture.width, height=picture.height, format=picture.format, time_base=Fraction(1, 1000)
            )
            self.graph.link_nodes(source, self.graph.add("null"), self.graph.add("buffersink")).configure()
            self.count = 0
        picture.pts, picture.time_base = self.count, Fraction(1, 1000)
        self.count += 1
        self.graph.push(picture)
        copy = self.graph.pull()
        assert isinstance(copy, av.VideoFrame)
        copy.make_writable()  # before, it shares its memory with the original
        return copy


@dataclass
class Frame:
    """A picture with its time.

    picture: in a planar format, with its colour tags. pts: presentation time in units of time_base seconds. name: of
    its file, where the source is a folder of pictures. duration: by the source, in units of time_base; 0: unknown.
    """

    picture: av.VideoFrame
    pts: int
    time_base: Fraction
    name: str = ""
    duration: int = 0

    @property
    def seconds(self) -> Fraction:
        """The presentation time."""
        return self.pts * self.time_base


def has_alpha(name: str) -> bool:
    """Return whether a pixel format has an alpha plane."""
    layout = layout_of(planar_name(name))
    return layout is not None and layout.alpha
