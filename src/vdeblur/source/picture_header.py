"""Read size and orientation from the header of a picture file, without decoding it.

A folder may hold thousands of pictures; their headers take a moment, their samples minutes. PNG, JPEG, TIFF, WebP and
BMP are recognised by their first bytes, not by their names. The orientation is EXIF's tag of that name (EXIF 3.0,
Sec. 4.6.5; TIFF 6.0, p. 36), which tells how a camera was held.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
EXIF_MAGIC = b"Exif\0\0"
MOST_EXIF_BYTES = 1 << 20  # in JPEG at most 64 KiB; in PNG and WebP as long as the file says
MOST_JPEG_BYTES = 1 << 28  # read to find the end; larger files count as complete
MOST_ENTRIES = 4096  # of a TIFF directory; real ones have some dozens
# TIFF's tags.
WIDTH, HEIGHT, BITS, PHOTOMETRIC, ORIENTATION, SAMPLES, EXTRA, SAMPLE_FORMAT, SUBSAMPLING = (
    256, 257, 258, 262, 274, 277, 338, 339, 530,
)  # fmt: skip
TYPE_BYTES = {1: 1, 3: 2, 4: 4}  # TIFF's integer types: BYTE, SHORT, LONG


@dataclass(frozen=True)
class PictureHeader:
    """The header of a picture.

    width, height: as stored. orientation: 1 to 8, EXIF's; 1 is upright. kind: pictures of the same kind decode to the
    same pixel format. animated: whether more than one picture follows. complete: False where the file is shorter than
    it says; of JPEG only is_cut_off knows.
    """

    width: int
    height: int
    orientation: int
    kind: tuple[object, ...]
    animated: bool = False
    complete: bool = True

    @property
    def upright_size(self) -> tuple[int, int]:
        """Return width and height after the picture is turned upright."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_header(path: Path) -> PictureHeader | None:
    """Return a picture's header; None where it is damaged or of another kind.

    Raises: OSError.
    """
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        try:
            if head.startswith(PNG_MAGIC):
                return _png(file)
            if head.startswith(b"\xff\xd8\xff"):
                return _jpeg(file)
            if head[:4] == b"RIFF" and head[8:] == b"WEBP":
                return _webp(file)
            if head[:4] in (b"II*\0", b"MM\0*"):
                return _tiff(file)
            if head[:2] == b"BM":
                return _bmp(file)
        except (struct.error, IndexError, KeyError):  # the file ends too early, or a field has an impossible value
            pass
    return None


def _png(file: BinaryIO) -> PictureHeader | None:
    file.seek(len(PNG_MAGIC))
    size, kind, orientation = (0, 0), (0, 0), 1
    has_transparency = is_animated = is_complete = False
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        begin = file.tell()
        if name == b"IHDR":
            *size_read, depth, color = struct.unpack(">IIBB", file.read(10))
            size, kind = (size_read[0], size_read[1]), (depth, color)
        elif name == b"eXIf":
            orientation = exif_orientation(file.read(min(length, MOST_EXIF_BYTES)))
        has_transparency |= name == b"tRNS"
        is_animated |= name == b"acTL"
        is_complete |= name == b"IEND"
        file.seek(begin + length + 4)  # past the checksum
    if not all(size):
        return None
    return PictureHeader(*size, orientation, ("png", *kind, has_transparency), is_animated, is_complete)


def _jpeg(file: BinaryIO) -> PictureHeader | None:
    file.seek(2)
    orientation: int | None = None
    adobe = -1  # its transform: whether three components are RGB or Y'CbCr
    frame: tuple[int, int, tuple[object, ...]] | None = None
    while True:
        if file.read(1) != b"\xff":
            break
        while (marker := file.read(1)) == b"\xff":  # fill bytes
            pass
        code = marker[0]
        if code in (0xD9, 0xDA):  # end of image, start of scan
            break
        if code == 0x01 or 0xD0 <= code <= 0xD7:  # have no length
            continue
        (length,) = struct.unpack(">H", file.read(2))
        begin = file.tell()
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):  # a start of frame
            bits, height, width, count = struct.unpack(">BHHB", file.read(6))
            parts = [struct.unpack("BBB", file.read(3))[:2] for _ in range(count)]  # identifier, sampling factors
            frame = (width, height, (code >= 0xC3, bits, *parts))
        elif code == 0xE1 and orientation is None:
            data = file.read(length - 2)
            if data.startswith(EXIF_MAGIC):
                orientation = exif_orientation(data)
        elif code == 0xEE:
            data = file.read(length - 2)
            adobe = data[11] if data.startswith(b"Adobe") else adobe
        file.seek(begin + length - 2)
    if frame is None or not all(frame[:2]):
        return None
    return PictureHeader(frame[0], frame[1], orientation or 1, ("jpeg", adobe, *frame[2]))


def _webp(file: BinaryIO) -> PictureHeader | None:
    file.seek(4)
    (length,) = struct.unpack("<I", file.read(4))  # of everything after this field
    is_complete = file.seek(0, 2) >= 8 + length - length % 2
    file.seek(12)
    size, orientation = (0, 0), 1
    coding, has_alpha, is_animated = "", False, False
    while len(head := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", head)
        begin = file.tell()
        if name == b"VP8X":
            flags, rest = file.read(1)[0], file.read(9)
            size = (1 + int.from_bytes(rest[3:6], "little"), 1 + int.from_bytes(rest[6:9], "little"))
            has_alpha |= bool(flags & 0x10)
            is_animated |= bool(flags & 0x02)
        elif name == b"VP8 " and not coding:
            coding = "lossy"
            width, height = struct.unpack("<HH", file.read(10)[6:])
            size = size if all(size) else (width & 0x3FFF, height & 0x3FFF)
        elif name == b"VP8L" and not coding:
            coding = "lossless"
            bits = int.from_bytes(file.read(5)[1:], "little")
            size = size if all(size) else (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
            has_alpha |= bool(bits >> 28 & 1)
        elif name == b"EXIF":
            orientation = exif_orientation(file.read(min(length, MOST_EXIF_BYTES)))
        file.seek(begin + length + length % 2)
    if not all(size):
        return None
    return PictureHeader(*size, orientation, ("webp", coding, has_alpha), is_animated, is_complete)


def is_cut_off(path: Path) -> bool:
    """Return whether a file is a JPEG without an end: decoders fill the rest of its picture, and report nothing.

    In the samples a byte 0xFF is followed by 0, so the first end of image after a start of scan is the real one.

    Raises: OSError.
    """
    with path.open("rb") as file:
        if file.read(3) != b"\xff\xd8\xff":
            return False
        file.seek(0)
        data = file.read(MOST_JPEG_BYTES)
    place = 2
    while data[place : place + 1] == b"\xff" and place + 4 <= len(data):
        code = data[place + 1]
        if code == 0xDA:
            return len(data) < MOST_JPEG_BYTES and data.find(b"\xff\xd9", place) < 0
        has_length = code not in (0x01, 0xFF) and not 0xD0 <= code <= 0xD8
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big") if has_length else 2 - (code == 0xFF)
    return True


def _tiff(file: BinaryIO) -> PictureHeader | None:
    order = "<" if file.read(2) == b"II" else ">"
    file.seek(4)
    (place,) = struct.unpack(f"{order}I", file.read(4))
    file.seek(place)
    (count,) = struct.unpack(f"{order}H", file.read(2))
    entries = file.read(12 * min(count, MOST_ENTRIES))
    tags: dict[int, tuple[int, ...]] = {}
    for tag, kind, values, data in struct.iter_unpack(f"{order}HHI4s", entries):
        if kind not in TYPE_BYTES or values > MOST_ENTRIES:
            continue
        length = values * TYPE_BYTES[kind]
        if length > 4:
            file.seek(struct.unpack(f"{order}I", data)[0])
            data = file.read(length)
        tags[tag] = struct.unpack(f"{order}{values}{'BHI'[(1, 3, 4).index(kind)]}", data[:length])
    meaning = tuple(tags.get(tag) for tag in (BITS, PHOTOMETRIC, SAMPLES, EXTRA, SAMPLE_FORMAT, SUBSAMPLING))
    orientation = _valid(tags.get(ORIENTATION, (1,)))
    return PictureHeader(tags[WIDTH][0], tags[HEIGHT][0], orientation, ("tiff", order, *meaning))


def _bmp(file: BinaryIO) -> PictureHeader | None:
    file.seek(2)
    (length,) = struct.unpack("<I", file.read(4))
    is_complete = file.seek(0, 2) >= length
    file.seek(18)
    width, height, _, bits, compression = struct.unpack("<iiHHI", file.read(16))
    if width <= 0 or not height:
        return None
    return PictureHeader(width, abs(height), 1, ("bmp", bits, compression), complete=is_complete)


def exif_orientation(data: bytes) -> int:
    """Return the orientation in EXIF data, which are a small TIFF file; 1 where there is none or it is not 1 to 8."""
    data = data.removeprefix(EXIF_MAGIC)
    try:
        order = {b"II": "<", b"MM": ">"}[data[:2]]
        (place,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, place)
        for index in range(min(count, MOST_ENTRIES)):
            tag, kind, _ = struct.unpack_from(f"{order}HHI", data, place + 2 + 12 * index)
            if tag == ORIENTATION and kind in TYPE_BYTES:
                form = f"{order}{'BHI'[(1, 3, 4).index(kind)]}"
                return _valid(struct.unpack_from(form, data, place + 10 + 12 * index))
    except (struct.error, KeyError):
        pass
    return 1


def _valid(values: tuple[int, ...]) -> int:
    return values[0] if values and 1 <= values[0] <= 8 else 1
