"""Complete a finished MP4 or QuickTime file with what FFmpeg's muxer leaves out.

These are tags that the muxer does not know, such as com.apple.quicktime.make, and the boxes of spherical and 3D video.
They go into the movie box (`moov`), the last one of a file that the muxer has written, so that no sample moves.

Boxes: ISO/IEC 14496-12. Tags under names of one's own: Apple's QuickTime File Format, metadata item keys. Spherical
video: Google's Spherical Video RFC, version 1 (a `uuid` box of the track) and 2 (`st3d` and `sv3d` of a sample entry).
"""

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

HEADER = struct.Struct(">I4s")
VIDEO_ENTRY_BYTES = 78  # of a sample entry of video, before its boxes
SPHERICAL_1 = bytes.fromhex("ffcc8263f8554a938814587a02521fdd")  # the uuid of version 1
CARRIED = {b"st3d", b"sv3d"}
UTF8 = 1  # the type of a tag's value
FIXED_POINT = 1 << 16  # of a track's width and height, which end its header
LARGEST_WIDTH = (1 << 32) - 1  # in units of 1 / FIXED_POINT
LARGEST_MOVIE = 1 << 30  # bytes; a larger one is damaged


@dataclass(frozen=True)
class VideoBoxes:
    """Boxes that describe the first video track of a file, whole. entry: of its sample entry. track: of itself."""

    entry: bytes = b""
    track: bytes = b""


def video_boxes(path: Path) -> VideoBoxes:
    """Return the boxes of spherical and 3D video in an MP4 or QuickTime file."""
    _, movie = _read_movie(path)
    for kind, track in _boxes(movie):
        if kind != b"trak" or _handler(track) != b"vide":
            continue
        entry = _at(track, b"mdia", b"minf", b"stbl", b"stsd")[8:]
        first = next((body for _, body in _boxes(entry)), b"")
        of_entry = [box(kind, body) for kind, body in _boxes(first[VIDEO_ENTRY_BYTES:]) if kind in CARRIED]
        of_track = [box(kind, body) for kind, body in _boxes(track) if kind == b"uuid" and body[:16] == SPHERICAL_1]
        return VideoBoxes(b"".join(of_entry), b"".join(of_track))
    return VideoBoxes()


def complete_movie(path: Path, video: VideoBoxes, tags: dict[str, str], *, quicktime: bool) -> bool:
    """Add boxes of the video and tags to a file; return False where its movie box is not the last one.

    quicktime: write QuickTime's form of the tags, not MP4's.
    """
    place, movie = _read_movie(path)
    size = path.stat().st_size
    if not movie or place + HEADER.size + len(movie) != size:
        return False
    if video.entry or video.track:
        movie = _with_video(movie, video)
    if tags:
        movie += _tags(tags, quicktime=quicktime)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(box(b"moov", movie))
        file.flush()
        os.fsync(file.fileno())
    return True


def shape_movie(path: Path, aspect: Fraction, width: int) -> bool:
    """Set the width at which an MP4 file's first video track is shown; return False where that cannot be.

    There may be no such track, or the width may be too large for its field.
    FFmpeg's muxer writes the pixels' shape beside the codec's parameters only, since PyAV passes it on to these alone.
    aspect: width of a pixel by its height. width: of the pictures.
    """
    scaled = round(width * aspect * FIXED_POINT)
    if not 0 < scaled <= LARGEST_WIDTH:
        return False
    place, movie = _read_movie(path)
    shown = struct.pack(">I", scaled)
    made, is_done = [], False
    for kind, body in _boxes(movie):
        if kind == b"trak" and not is_done and _handler(body) == b"vide":
            body, is_done = _changed(body, (b"tkhd",), lambda head: head[:-8] + shown + head[-4:]), True
        made.append(box(kind, body))
    if is_done:
        with path.open("r+b") as file:
            file.seek(place)
            file.write(box(b"moov", b"".join(made)))
            file.flush()
            os.fsync(file.fileno())
    return is_done


def _with_video(movie: bytes, video: VideoBoxes) -> bytes:
    """Add boxes to the first video track and to its first sample entry."""
    made, is_done = [], False
    for kind, body in _boxes(movie):
        if kind == b"trak" and not is_done and _handler(body) == b"vide":
            path = (b"mdia", b"minf", b"stbl", b"stsd")
            body = _changed(body, path, lambda entries: _into_entry(entries, video.entry)) + video.track
            is_done = True
        made.append(box(kind, body))
    return b"".join(made)


def box(kind: bytes, body: bytes) -> bytes:
    """Return a box with its header."""
    return HEADER.pack(HEADER.size + len(body), kind) + body


def _tags(tags: dict[str, str], *, quicktime: bool) -> bytes:
    """Return a metadata box: a list of keys, and for each key's number its value."""
    version = b"" if quicktime else bytes(4)
    handler = box(b"hdlr", bytes(8) + b"mdta" + bytes(13))
    names = [HEADER.pack(HEADER.size + len(name.encode()), b"mdta") + name.encode() for name in tags]
    keys = box(b"keys", struct.pack(">II", 0, len(tags)) + b"".join(names))
    values = [
        box(struct.pack(">I", number), box(b"data", struct.pack(">II", UTF8, 0) + value.encode()))
        for number, value in enumerate(tags.values(), 1)
    ]
    return box(b"meta", version + handler + keys + box(b"ilst", b"".join(values)))


def _into_entry(entries: bytes, more: bytes) -> bytes:
    """Add boxes at the end of the first sample entry."""
    (kind, first), *others = _boxes(entries[8:])
    return entries[:8] + box(kind, first + more) + b"".join(box(*other) for other in others)


def _changed(data: bytes, path: tuple[bytes, ...], change: Callable[[bytes], bytes]) -> bytes:
    """Return boxes with the body of one changed."""
    made = []
    for kind, body in _boxes(data):
        if path and kind == path[0]:
            body = change(body) if len(path) == 1 else _changed(body, path[1:], change)
            path = ()
        made.append(box(kind, body))
    return b"".join(made)


def _handler(track: bytes) -> bytes:
    return _at(track, b"mdia", b"hdlr")[8:12]


def _at(data: bytes, *path: bytes) -> bytes:
    """Return the body of the first box with this path; empty if there is none."""
    for name in path:
        data = next((body for kind, body in _boxes(data) if kind == name), b"")
    return data


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and body of each box, up to the first damaged one."""
    place = 0
    while place + HEADER.size <= len(data):
        size, kind = HEADER.unpack_from(data, place)
        head = HEADER.size
        if size == 1 and place + 16 <= len(data):
            size, head = struct.unpack_from(">Q", data, place + HEADER.size)[0], 16
        elif size == 0:
            size = len(data) - place
        if not head <= size <= len(data) - place:
            return
        yield kind, data[place + head : place + size]
        place += size


def _read_movie(path: Path) -> tuple[int, bytes]:
    """Return where a file's movie box begins, and its body; the body is empty if there is none."""
    end = path.stat().st_size
    with path.open("rb") as file:
        place = 0
        while place + HEADER.size <= end:
            file.seek(place)
            start = file.read(16)
            size, kind = HEADER.unpack_from(start)
            head = HEADER.size
            if size == 1 and len(start) == 16:
                size, head = struct.unpack_from(">Q", start, HEADER.size)[0], 16
            elif size == 0:
                size = end - place
            if not head <= size <= end - place:
                break
            if kind == b"moov" and size <= LARGEST_MOVIE:
                file.seek(place + head)
                return place, file.read(size - head)
            place += size
    return 0, b""
