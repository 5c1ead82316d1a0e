"""Write the pixels' shape into a finished AVI file, which PyAV cannot pass on to FFmpeg's muxer.

The list of the video stream gets a `vprp` chunk (OpenDML AVI File Format Extensions 1.02, Video Properties Header). Its
bytes are taken from the JUNK chunk that FFmpeg's muxer leaves before the frames, so that none moves.
"""

import os
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

HEADER = struct.Struct("<4sI")
LARGEST_START = 1 << 20  # bytes before the frames; FFmpeg's muxer writes about 6000 of them for each stream
LARGEST_RATIO = 0xFFFF  # both terms of the ratio have 16 bits


def shape_avi(path: Path, aspect: Fraction, width: int, height: int, rate: Fraction) -> bool:
    """Set the shape of the first video stream's pixels; return False where it is too extreme or does not fit.

    aspect: width of a pixel by its height. width, height: of the pictures. rate: frames per second.
    """
    shown = aspect * width / height
    if max(shown, 1 / shown) > LARGEST_RATIO:
        return False
    chunk = _properties(shown, width, height, rate)
    with path.open("r+b") as file:
        data = file.read(LARGEST_START)
        start = _with_chunk(data, chunk)
        if start:
            file.seek(0)
            file.write(start)
            file.flush()
            os.fsync(file.fileno())
    return bool(start)


def _properties(shown: Fraction, width: int, height: int, rate: Fraction) -> bytes:
    """Return the chunk. shown: width of the picture by its height."""
    shown = shown.limit_denominator(LARGEST_RATIO if shown < 1 else max(int(LARGEST_RATIO / shown), 1))
    whole = struct.pack(
        "<5I2H3I", 0, 0, round(rate), width, height, shown.denominator, shown.numerator, width, height, 1
    )
    field = struct.pack("<8I", height, width, height, width, 0, 0, 0, 0)
    return HEADER.pack(b"vprp", len(whole + field)) + whole + field


def _with_chunk(data: bytes, chunk: bytes) -> bytes:
    """Return a file's beginning, as long as before, with this chunk at the end of the first video stream's list."""
    if data[:4] != b"RIFF" or data[8:12] != b"AVI ":
        return b""
    made, added = data[:12], 0
    for kind, body in _chunks(data[12:]):
        if kind == b"LIST" and body[:4] == b"hdrl":
            longer = b"hdrl" + _headers(body[4:], chunk)
            added, body = len(longer) - len(body), longer
        elif kind == b"LIST" and body[:4] == b"movi":
            break
        elif kind == b"JUNK" and 0 < added <= len(body):
            body, added = body[added:], 0
            made += HEADER.pack(kind, len(body)) + body
            return made
        made += HEADER.pack(kind, len(body)) + body + bytes(len(body) % 2)
    return b""


def _headers(headers: bytes, chunk: bytes) -> bytes:
    """Return the headers with this chunk at the end of the first video stream's list."""
    made, is_done = b"", False
    for kind, body in _chunks(headers):
        if kind == b"LIST" and body[:4] == b"strl" and not is_done:
            first = next(_chunks(body[4:]), (b"", b""))
            if first[0] == b"strh" and first[1][:4] == b"vids":
                body, is_done = body + chunk, True
        made += HEADER.pack(kind, len(body)) + body + bytes(len(body) % 2)
    return made


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of each chunk; the first incomplete chunk is left out, with all after it."""
    place = 0
    while place + HEADER.size <= len(data):
        kind, size = HEADER.unpack_from(data, place)
        place += HEADER.size
        if place + size > len(data):
            return
        yield kind, data[place : place + size]
        place += size + size % 2
