"""HDR10's static metadata: read it from a frame, and write it as options of the encoders that support it.

The transfer function (PQ, HLG) is a colour tag. Beyond it, HDR10 describes the display on which the video was graded
(SMPTE ST 2086) and the maximum brightness of its pixels and frames (CTA-861.3).
"""

import struct
from dataclasses import dataclass
from fractions import Fraction

import av

from vdeblur.source.side_data import side_data_of

PQ = 16  # AVCOL_TRC_SMPTE2084
HLG = 18  # AVCOL_TRC_ARIB_STD_B67
# AVMasteringDisplayMetadata: x and y of red, green, blue and white, least and greatest luminance, each a numerator and
# a denominator; then whether the colours and whether the luminances are known.
MASTERING = struct.Struct("=20i2i")
LIGHT = struct.Struct("=2I")  # AVContentLightMetadata: MaxCLL, MaxFALL
CHROMATICITY_STEP = Fraction(1, 50000)  # units of HEVC's message, H.265 D.3.28
LUMINANCE_STEP = Fraction(1, 10000)  # cd/m2
DYNAMIC = {"DYNAMIC_HDR_PLUS": "HDR10+", "DYNAMIC_HDR_VIVID": "HDR Vivid", "DOVI_METADATA": "Dolby Vision",
           "DOVI_RPU_BUFFER": "Dolby Vision"}  # fmt: skip


@dataclass(frozen=True)
class Mastering:
    """A display: x and y of red, green, blue and white (CIE 1931), and its least and greatest luminance in cd/m2."""

    red: tuple[Fraction, Fraction]
    green: tuple[Fraction, Fraction]
    blue: tuple[Fraction, Fraction]
    white: tuple[Fraction, Fraction]
    least: Fraction
    greatest: Fraction


@dataclass(frozen=True)
class Hdr:
    """HDR metadata of a frame beyond its colour tags; falsy without any.

    light: MaxCLL and MaxFALL in cd/m2. dynamic: names of metadata that change from frame to frame.
    """

    mastering: Mastering | None = None
    light: tuple[int, int] | None = None
    dynamic: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self != Hdr()

    def x265_params(self) -> dict[str, str]:
        """Return x265's parameters: integers in the steps of HEVC's own message."""
        params = {}
        if self.mastering is not None:
            display = self.mastering
            colors = (("G", display.green), ("B", display.blue), ("R", display.red), ("WP", display.white))
            text = "".join(f"{name}({_steps(x)},{_steps(y)})" for name, (x, y) in colors)
            luminances = (round(value / LUMINANCE_STEP) for value in (display.greatest, display.least))
            params["master-display"] = f"{text}L({','.join(map(str, luminances))})"
        if self.light is not None:
            params["max-cll"] = f"{self.light[0]},{self.light[1]}"
        return params

    def svtav1_params(self) -> dict[str, str]:
        """Return SVT-AV1's parameters: decimal numbers."""
        params = {}
        if self.mastering is not None:
            display = self.mastering
            colors = (("G", display.green), ("B", display.blue), ("R", display.red), ("WP", display.white))
            text = "".join(f"{name}({float(x):.5f},{float(y):.5f})" for name, (x, y) in colors)
            params["mastering-display"] = f"{text}L({float(display.greatest):.4f},{float(display.least):.4f})"
        if self.light is not None:
            params["content-light"] = f"{self.light[0]},{self.light[1]}"
        return params

    @property
    def names(self) -> list[str]:
        """Return the names of the metadata present, for messages."""
        static = ["mastering display"] if self.mastering else []
        return [*static, *(["content light level"] if self.light else []), *self.dynamic]


def read_hdr(picture: av.VideoFrame) -> Hdr:
    """Read the HDR metadata of a decoded frame."""
    found = side_data_of(picture)
    mastering = [_parse_mastering(data) for data in found.get("MASTERING_DISPLAY_METADATA", ())]
    light: list[tuple[int, int]] = [LIGHT.unpack_from(data) for data in found.get("CONTENT_LIGHT_LEVEL", ())]
    dynamic = tuple(dict.fromkeys(DYNAMIC[kind] for kind in DYNAMIC if kind in found))
    return Hdr(mastering[-1] if mastering else None, light[-1] if light and any(light[-1]) else None, dynamic)


def _parse_mastering(data: bytes) -> Mastering | None:
    *numbers, has_colors, has_luminances = MASTERING.unpack_from(data)
    if not (has_colors and has_luminances) or not all(numbers[1::2]):
        return None  # no encoder can write half of it
    values = [Fraction(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
    points = list(zip(values[0:8:2], values[1:8:2], strict=True))
    return Mastering(points[0], points[1], points[2], points[3], values[8], values[9])


def _steps(value: Fraction) -> int:
    return round(value / CHROMATICITY_STEP)
