"""Keep what players need to show pictures right: the shape of pixels, and how players turn and mirror the picture.

PyAV passes the shape to encoders alone. Codecs without a place for it (FFV1, VP9, AV1 and others) need it in the
container, so `write_shape` adds it to the finished file. Trials show whether a container holds the shape, and whether
it holds a display matrix; where it holds none, pictures are turned upright.
"""

import contextlib
import functools
import io
import math
import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av

from vdeblur.events import Warn
from vdeblur.output.avi import shape_avi
from vdeblur.output.boxes import shape_movie
from vdeblur.output.codecs import FALLBACKS
from vdeblur.output.complete import stereo_tags
from vdeblur.output.encoders import VideoEncoder
from vdeblur.output.matroska import shape_matroska
from vdeblur.output.tracks import MATROSKA_LIKE
from vdeblur.output.trials import OPTIONS, RATE, REFUSALS, TRIAL_SIZE
from vdeblur.source.info import SourceInfo
from vdeblur.source.upright import ORIENTATIONS, display_matrix, matrix_orientation

UNIT = 1 << 16  # of a display matrix's first five numbers
QUARTER_TURN = (0, -UNIT, 0, UNIT, 0, 0, 0, 0, 1 << 30)
EXACT = 0.02  # how far a number of a display matrix may be off for a turn by quarters: about one degree
ROUNDED = 0.01  # how far a container may round the shape of pixels: WebM's unit is a pixel
MIRRORED = (2, 4, 5, 7)  # EXIF's orientations
SAME_FIELDS = (1, 2)  # orientations that leave the lines where they are
SCALED = ("mp4", "ipod", "3gp", "3g2")  # MP4's tracks have the width as shown, QuickTime's that as stored
KEEPERS = ".mp4 and .mkv hold it"


def write_shape(path: Path, container_name: str, info: SourceInfo) -> None:
    """Add the shape of pixels to a finished file, if it is not square and the muxer has no access to it."""
    aspect = info.sample_aspect_ratio
    if not aspect or aspect == 1:
        return
    if container_name in MATROSKA_LIKE:
        shape_matroska(path, aspect, info.width, info.height, is_webm=container_name == "webm")
    elif container_name in SCALED:
        shape_movie(path, aspect, info.width)
    elif container_name == "avi":
        shape_avi(path, aspect, info.width, info.height, info.rate)


def keeps_shape(
    info: SourceInfo, container_name: str, pixel_format: str, encoder: VideoEncoder, *, is_pipe: bool
) -> bool:
    """Return whether a file of this container has the shape of pixels: write one frame to a short file.

    pixel_format: of the encoder. is_pipe: whether write_shape cannot complete the output. Where the trial fails, the
    answer is yes: the run itself reports the reason.
    """
    wanted = info.sample_aspect_ratio or Fraction(1)
    found = wanted
    with contextlib.suppress(*REFUSALS), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trial")
        with av.open(str(path), "w", format=container_name) as file:
            stream = encoder.add_to(file)
            stream.metadata.update(stereo_tags(info, container_name))
            file.start_encoding()
            picture = _black(info.width, info.height, pixel_format, info.time_base)
            for packet in [*encoder.encode(picture), *encoder.encode(None)]:
                packet.stream = stream
                file.mux(packet)
        if not is_pipe:
            write_shape(path, container_name, info)
        with av.open(str(path)) as file:
            found = file.streams.video[0].sample_aspect_ratio or Fraction(1)
    return abs(float(found / wanted) - 1) <= ROUNDED


def _black(width: int, height: int, pixel_format: str, time_base: Fraction) -> av.VideoFrame:
    """Return a picture of zeros, at time zero."""
    picture = av.VideoFrame(width, height, pixel_format)
    for plane in picture.planes:
        plane.update(bytes(plane.buffer_size))
    picture.pts, picture.time_base = 0, time_base
    return picture


@functools.cache
def holds_rotation(container_name: str) -> bool:
    """Return whether a file of this container keeps a display matrix: try it with the first encoder that it takes."""
    for name in FALLBACKS:
        with contextlib.suppress(*REFUSALS):
            return _rotation_kept(container_name, name)
    return False


def _rotation_kept(container_name: str, encoder: str) -> bool:
    data = io.BytesIO()
    with av.open(data, "w", format=container_name) as file:
        stream = file.add_stream(encoder, rate=RATE, options=dict(OPTIONS.get(encoder, {})))
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = TRIAL_SIZE
        formats = [each.name for each in stream.codec_context.codec.video_formats or []]
        stream.pix_fmt = "yuv420p" if "yuv420p" in formats or not formats else formats[0]
        stream.set_display_matrix(QUARTER_TURN)
        picture = _black(TRIAL_SIZE, TRIAL_SIZE, stream.pix_fmt, Fraction(1, RATE))
        file.mux([*stream.encode(picture), *stream.encode(None)])
    with av.open(io.BytesIO(data.getvalue()), "r") as written:
        return display_matrix(next(written.decode(video=0))) == QUARTER_TURN


def upright_for(info: SourceInfo, container_name: str, name: str, warn: Warn) -> tuple[SourceInfo, int]:
    """Return the info of the pictures to write, and EXIF's orientation by which each must be turned; 1 for none.

    Pictures are turned where the container has no display matrix. name: of the output's kind, for
    warnings.
    """
    orientation = _exact_orientation(info.display_matrix)
    if orientation == 1 or holds_rotation(container_name):
        return info, 1
    kind = "mirroring" if orientation in MIRRORED else "rotation"
    if not orientation:
        lost = _oblique_words(info.display_matrix)
        message = f"{name} holds no rotation, and pictures are turned by quarters only"
        warn("W_ROTATION", f"{message}, so {lost} ({KEEPERS})")
        return info, 1
    warn("W_ROTATION", f"{name} holds no {kind}, so the pictures are turned upright ({KEEPERS})")
    return _turned(info, orientation), orientation


def _exact_orientation(matrix: tuple[int, ...]) -> int:
    """Return EXIF's orientation of a display matrix, 1 where it is empty; 0 where the turn is not one by quarters."""
    if not matrix:
        return 1
    a, b, _, c, d = matrix[:5]
    scale = math.hypot(a, b) or 1
    orientation = matrix_orientation(matrix)
    signs = next(signs for signs, number in ORIENTATIONS.items() if number == orientation)
    distance = max(abs(value / scale - sign) for value, sign in zip((a, b, c, d), signs, strict=True))
    return orientation if distance <= EXACT else 0


def _oblique_words(matrix: tuple[int, ...]) -> str:
    """Describe the loss of a display matrix whose turn is not one by quarters."""
    a, b, _, c, d = matrix[:5]
    scale = math.hypot(a, b) or 1
    is_scaled = abs(math.hypot(c, d) / scale - 1) > EXACT
    is_skewed = abs(a * c + b * d) / scale**2 > EXACT
    if is_scaled or is_skewed:
        return "the display matrix, which stretches or skews the picture, is lost"
    degrees = round(-math.degrees(math.atan2(b, a)))
    return f"the rotation by {degrees} degrees is lost"


def _turned(info: SourceInfo, orientation: int) -> SourceInfo:
    """Return the info of turned pictures."""
    is_across = orientation >= 5
    width, height = (info.height, info.width) if is_across else (info.width, info.height)
    aspect = info.sample_aspect_ratio
    return replace(
        info,
        width=width,
        height=height,
        rotation=0,
        display_matrix=(),
        sample_aspect_ratio=1 / aspect if aspect and is_across else aspect,
        interlaced=info.interlaced and orientation in SAME_FIELDS,
        chroma_location=info.chroma_location if info.chroma_location == "center" else "",
    )
