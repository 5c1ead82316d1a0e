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


# FFmpeg's names of the places of subsampled chroma (ITU-T H.273, Fig. 7): where a chroma sample lies on the way from
# the first to the last of its luma samples, across and down.
CHROMA_LOCATIONS = {
    "left": (0.0, 0.5),
    "center": (0.5, 0.5),
    "topleft": (0.0, 0.0),
    "top": (0.5, 0.0),
    "bottomleft": (0.0, 1.0),
    "bottom": (0.5, 1.0),
}
USUAL_CHROMA = "left"  # of MPEG-2 and all later codecs, if they say nothing

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


UNTAGGED = 2  # AVCOL_SPC_UNSPECIFIED
LIMITED, FULL = 1, 2  # AVCOL_RANGE_MPEG, AVCOL_RANGE_JPEG
BT709, BT601, SMPTE170M = 1, 5, 6  # AVCOL_SPC_*; the last two are one matrix
YCGCO = 8  # AVCOL_SPC_YCGCO
# Tags to the numbers by which PyAV knows swscale's matrices. swscale refuses all others; of these, BT.2020's is nearest
# to constant luminance and ICtCp (10, 14).
SWSCALE = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9, 14: 9}


def usual_matrix(width: int, height: int) -> int:
    """Return the matrix that players assume in untagged video of this size: BT.709 for HD, else BT.601."""
    return BT709 if width >= 1280 or height > 576 else SMPTE170M


def is_rgb(name: str) -> bool:
    """Return whether a pixel format holds R, G and B."""
    return bool(av.VideoFormat(name).is_rgb)


def is_always_full(name: str) -> bool:
    """Return whether a pixel format has full range whatever the tags say, as swscale reads and writes it."""
    return name.startswith(("yuvj", "gray")) or is_rgb(name)


def to_planar(picture: av.VideoFrame, name: str) -> av.VideoFrame:
    """Convert to a format of the same samples; colour tags stay."""
    matrix = None if int(picture.colorspace) in (0, UNTAGGED) else BT601  # any that swscale knows: it is not applied
    planar = picture.reformat(format=name, src_colorspace=matrix, dst_colorspace=matrix)
    return with_tags(planar, picture)


def with_tags(picture: av.VideoFrame, source: av.VideoFrame) -> av.VideoFrame:
    """Copy the colour tags of another picture into this one, and return it."""
    picture.colorspace, picture.color_range = source.colorspace, source.color_range
    picture.color_primaries, picture.color_trc = source.color_primaries, source.color_trc
    return picture


def convert_picture(picture: av.VideoFrame, name: str) -> av.VideoFrame:
    """Convert a picture to another pixel format; equal samples are copied. Side data stay.

    Y'CbCr keeps its matrix and range. RGB becomes Y'CbCr of the usual matrix for its size, limited range. The result's
    tags say so.
    """
    if planar_name(name) == picture.format.name.replace("yuvj", "yuv"):
        return to_planar(picture, name)
    from_rgb, into_rgb = is_rgb(picture.format.name), is_rgb(name)
    own = int(picture.colorspace)
    if own == YCGCO and into_rgb and not from_rgb:
        return convert_picture(_rgb_of_ycgco(picture), name)
    source = usual_matrix(picture.width, picture.height) if own == UNTAGGED or from_rgb else own
    full = is_always_full(name) or (not from_rgb and int(picture.color_range) == FULL)
    matrix = SWSCALE.get(source, BT601)
    converted = picture.reformat(
        format=name,
        src_colorspace=None if from_rgb else matrix,
        dst_colorspace=matrix,
        dst_color_range=None if into_rgb else FULL if full else LIMITED,
    )
    with_tags(converted, picture)
    if from_rgb != into_rgb:
        converted.colorspace = 0 if into_rgb else source
    if full or into_rgb or from_rgb:
        converted.color_range = FULL if full or into_rgb else LIMITED
    return converted


def _rgb_of_ycgco(picture: av.VideoFrame) -> av.VideoFrame:
    """Convert YCgCo (H.273, equations 55 to 57) to RGB of the same depth, which swscale cannot."""
    layout = layout_of(picture.format.name)
    assert layout is not None
    end = "" if layout.bits == 8 else f"{layout.bits}le"
    fine = picture.reformat(
        format=f"yuv{'a' * layout.alpha}444p{end}",
        src_colorspace=BT601,
        dst_colorspace=BT601,
        dst_color_range=FULL if int(picture.color_range) == FULL else LIMITED,
    )
    full, step = int(picture.color_range) == FULL or picture.format.name.startswith("yuvj"), 1 << (layout.bits - 8)
    black, extent, swing = (0, layout.peak, layout.peak) if full else (16 * step, 219 * step, 224 * step)
    levels = ((black, extent), (128 * step, swing), (128 * step, swing))
    luma, green_part, orange_part = (
        (plane_array(fine, index).astype(numpy.float64) - zero) / one for index, (zero, one) in enumerate(levels)
    )
    rgb = picture.reformat(format=f"gbr{'a' * layout.alpha}p{end}", src_colorspace=BT601, dst_colorspace=BT601)
    base = luma - green_part
    for index, plane in enumerate((luma + green_part, base - orange_part, base + orange_part)):  # G, B, R
        target = plane_array(rgb, index)
        target[:] = (plane * layout.peak).round().clip(0, layout.peak).astype(target.dtype)
    with_tags(rgb, picture)
    rgb.colorspace, rgb.color_range = 0, FULL
    return rgb


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
    its file, where the source is a folder of pictures. chroma_location: a key of CHROMA_LOCATIONS. duration: by the
    source, in units of time_base; 0: unknown. is_guarded: the network failed in parts of it, which stayed as they were.
    strength: the share of its restoration that it gets, 0 to 1; below 1 with --only-blurred.
    """

    picture: av.VideoFrame
    pts: int
    time_base: Fraction
    name: str = ""
    chroma_location: str = USUAL_CHROMA
    duration: int = 0
    is_guarded: bool = False
    strength: float = 1.0

    @property
    def seconds(self) -> Fraction:
        """The presentation time."""
        return self.pts * self.time_base


def has_alpha(name: str) -> bool:
    """Return whether a pixel format has an alpha plane."""
    layout = layout_of(planar_name(name))
    return layout is not None and layout.alpha
