"""Write the pixels' shape into a finished Matroska or WebM file, which PyAV cannot pass on to FFmpeg's muxer.

The description of the video track grows by some bytes. They are taken from the empty space that the muxer leaves behind
the list of contents (SeekHead) at the beginning, so that no frame moves.

Elements: RFC 9559; sizes and numbers of variable length: RFC 8794 (EBML).
"""

import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

SEGMENT, SEEK_HEAD, SEEK, SEEK_POSITION = 0x18538067, 0x114D9B74, 0x4DBB, 0x53AC
TRACKS, TRACK, TRACK_TYPE, VIDEO = 0x1654AE6B, 0xAE, 0x83, 0xE0
DISPLAY_WIDTH, DISPLAY_HEIGHT, DISPLAY_UNIT = 0x54B0, 0x54BA, 0x54B2
STEREO_MODE = 0x53B8
VOID, CRC = 0xEC, 0xBF
IS_VIDEO = b"\x01"  # a track's type
# How two views share a picture: values of StereoMode. The size for display is that of one view (RFC 9559, 18.10).
TWO_ACROSS = (1, 8, 9, 11)  # side by side, or alternate columns
TWO_DOWN = (2, 3, 6, 7)  # top and bottom, or alternate lines
ASPECT_UNIT = 3  # DisplayWidth and DisplayHeight are a ratio, not pixels
LARGEST_START = 1 << 24  # bytes before the end of the tracks: a file that needs more is left as it is
VOID_BYTES = 2  # of the smallest empty element: identifier and size


@dataclass(frozen=True)
class _Element:
    """An element. place: of its first byte. body: where its content begins. end: of its content."""

    kind: int
    place: int
    body: int
    end: int


def shape_matroska(path: Path, aspect: Fraction, width: int, height: int, *, is_webm: bool) -> bool:
    """Set the shape of the first video track's pixels; return False where the file has no space for it.

    aspect: width of a pixel by its height. width, height: of the pictures.
    """
    with path.open("r+b") as file:
        start = _shaped_start(file.read(LARGEST_START), aspect, width, height, is_webm)
        if start:
            file.seek(0)
            file.write(start)
            file.flush()
            os.fsync(file.fileno())
    return bool(start)


def _shaped_start(data: bytes, aspect: Fraction, width: int, height: int, is_webm: bool) -> bytes:
    """Return a file's beginning, as long as before, with the new shape; empty where that cannot be."""
    segment = next((each for each in _elements(data, 0, len(data)) if each.kind == SEGMENT), None)
    if segment is None:
        return b""
    children = []
    for child in _elements(data, segment.body, len(data)):
        children.append(child)
        if child.kind == TRACKS:
            break
    tracks = children[-1] if children else None
    empty = next((each for each in children if each.kind == VOID), None)
    if tracks is None or tracks.kind != TRACKS or tracks.end > len(data) or empty is None:
        return b""
    if not _children(data, tracks):
        return b""
    described = _with_crc(TRACKS, _shaped_tracks(data[tracks.body : tracks.end], aspect, width, height, is_webm))
    growth = len(described) - (tracks.end - tracks.place)
    left = empty.end - empty.place - growth
    if left < VOID_BYTES:
        return b""
    made = bytearray(data[: empty.place])
    made += _void(left) + data[empty.end : tracks.place] + described
    for head in children:
        if head.kind == SEEK_HEAD and head.end <= empty.place:
            moved = range(empty.end - segment.body, tracks.place - segment.body + 1)
            seeks = _moved_seeks(data[head.place : head.end], moved, growth)
            if not seeks:
                return b""
            made[head.place : head.end] = seeks
    return bytes(made) if len(made) == tracks.end else b""  # shorter or longer where an element is damaged


def _shaped_tracks(tracks: bytes, aspect: Fraction, width: int, height: int, is_webm: bool) -> bytes:
    """Return the content of Tracks, without its checksum, with the shape in the first video track."""
    made, is_done = b"", False
    for track in _elements(tracks, 0, len(tracks)):
        whole = tracks[track.place : track.end]
        parts = _children(tracks, track) if track.kind == TRACK else []
        if any(part.kind == TRACK_TYPE and tracks[part.body : part.end] == IS_VIDEO for part in parts) and not is_done:
            body = b""
            for part in parts:
                content = tracks[part.body : part.end]
                is_video = part.kind == VIDEO
                body += (
                    _element(VIDEO, _shaped_video(content, aspect, width, height, is_webm))
                    if is_video
                    else tracks[part.place : part.end]
                )
            whole, is_done = _element(TRACK, body), True
        made += whole if track.kind != CRC else b""
    return made


def _shaped_video(video: bytes, aspect: Fraction, width: int, height: int, is_webm: bool) -> bytes:
    old = {DISPLAY_WIDTH, DISPLAY_HEIGHT, DISPLAY_UNIT}
    kept = b"".join(video[part.place : part.end] for part in _elements(video, 0, len(video)) if part.kind not in old)
    across, down = _views(video)
    view_width, view_height = Fraction(width, across), Fraction(height, down)
    shown = aspect * view_width / view_height
    size = _display_size(shown, view_width, view_height, aspect) if is_webm else (shown.numerator, shown.denominator)
    made = _number(DISPLAY_WIDTH, size[0]) + _number(DISPLAY_HEIGHT, size[1])
    return kept + made + (b"" if is_webm else _number(DISPLAY_UNIT, ASPECT_UNIT))


def _views(video: bytes) -> tuple[int, int]:
    """Return how many views are beside each other in a picture, and how many above each other."""
    parts = _elements(video, 0, len(video))
    mode = next((int.from_bytes(video[part.body : part.end]) for part in parts if part.kind == STEREO_MODE), 0)
    return 1 + (mode in TWO_ACROSS), 1 + (mode in TWO_DOWN)


def _display_size(shown: Fraction, width: Fraction, height: Fraction, aspect: Fraction) -> tuple[int, int]:
    """Return the size in pixels at which WebM's pictures are shown: of exactly this ratio, if that is near.

    shown: width of a view by its height. width, height: of a view in the picture.

    WebM has no unit for ratios. FFmpeg rounds the width: 64x48 at 4:3 becomes 85x48, which is not 16:9, but 96x54 is.
    """
    multiple = math.ceil(height / shown.denominator)
    if multiple * shown.denominator <= 2 * height:
        return shown.numerator * multiple, shown.denominator * multiple
    return max(round(width * aspect), 1), max(round(height), 1)


def _moved_seeks(head: bytes, moved: range, growth: int) -> bytes:
    """Return a list of contents in which the places in `moved` are `growth` bytes earlier; its length stays.

    The list is empty where a place needs more bytes than it has.
    """
    top = next(_elements(head, 0, len(head)))
    made = bytearray(head)
    for seek in _elements(head, top.body, top.end):
        if seek.kind != SEEK:
            continue
        for part in _elements(head, seek.body, seek.end):
            place = int.from_bytes(head[part.body : part.end])
            if part.kind == SEEK_POSITION and place in moved:
                if (place - growth).bit_length() > 8 * (part.end - part.body):
                    return b""
                made[part.body : part.end] = (place - growth).to_bytes(part.end - part.body)
    first = next(_elements(head, top.body, top.end), None)
    if first is not None and first.kind == CRC:
        made[first.body : first.end] = zlib.crc32(made[first.end :]).to_bytes(4, "little")
    return bytes(made)


def _elements(data: bytes, place: int, end: int) -> Iterator[_Element]:
    """Yield the elements between two places, up to the first damaged one. The last one may end beyond the data."""
    end = min(end, len(data))
    while place < end:
        first = data[place]
        id_bytes = 9 - first.bit_length()
        at = place + id_bytes
        if id_bytes > 4 or at >= end or not data[at]:
            return
        size_bytes = 9 - data[at].bit_length()
        body = at + size_bytes
        size = int.from_bytes(data[at:body]) & ((1 << (7 * size_bytes)) - 1)
        kind = int.from_bytes(data[place:at])
        yield _Element(kind, place, body, body + size)
        place = body + size


def _children(data: bytes, parent: _Element) -> list[_Element]:
    """Return an element's children; none where they do not fill it exactly, as in a damaged file."""
    children = list(_elements(data, parent.body, parent.end))
    return children if children and children[-1].end == parent.end else []


def _element(kind: int, body: bytes) -> bytes:
    """Return an element with its identifier and size."""
    size_bytes = next(count for count in range(1, 9) if len(body) < (1 << (7 * count)) - 1)
    size = len(body) | 1 << (7 * size_bytes)
    return kind.to_bytes((kind.bit_length() + 7) // 8) + size.to_bytes(size_bytes) + body


def _number(kind: int, value: int) -> bytes:
    return _element(kind, value.to_bytes(max((value.bit_length() + 7) // 8, 1)))


def _with_crc(kind: int, body: bytes) -> bytes:
    """Return an element whose first child is the checksum of the others."""
    return _element(kind, _element(CRC, zlib.crc32(body).to_bytes(4, "little")) + body)


def _void(size: int) -> bytes:
    """Return an empty element of this many bytes, at least VOID_BYTES."""
    size_bytes = 1 if size < VOID_BYTES + 0x7F else 8
    body = size - 1 - size_bytes
    return bytes([VOID]) + (body | 1 << (7 * size_bytes)).to_bytes(size_bytes) + bytes(body)
