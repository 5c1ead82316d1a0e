"""Forecast of a dry run: how long the run takes, and how large its output becomes.

The network's time comes from its multiply-adds and a short measurement of the device, as for `-m best`. Decoding and
encoding are measured on short pieces of the input, encoded in memory as they are: restored frames, which are sharper,
take somewhat more bytes.
"""

import math
import time
from dataclasses import dataclass
from fractions import Fraction

import av.error

from vdeblur.errors import VdeblurError
from vdeblur.events import ignore
from vdeblur.models import choice, registry
from vdeblur.output import tracks
from vdeblur.output.encoding import VideoEncoding
from vdeblur.run.context import Context
from vdeblur.run.loading import Loaded
from vdeblur.run.parts import Encoding
from vdeblur.run.segments import Division
from vdeblur.settings import Cut
from vdeblur.source import deinterlace, video
from vdeblur.source.video import Source, VideoSource

PLACES = (Fraction(1, 6), Fraction(1, 2), Fraction(5, 6))  # of the pieces, as shares of the part to restore
PIECE_FRAMES = 8  # of a piece
PICTURES = 2  # of a piece, if the output is pictures: each is encoded alone
LONGEST_RUN = 250  # frames from key frame to key frame at most: the default of x264 and x265


@dataclass(frozen=True)
class Forecast:
    """The expected cost of a run. seconds, bytes: None if unknown. input_bytes: size of the whole input."""

    seconds: float | None = None
    bytes: int | None = None
    input_bytes: int | None = None


@dataclass
class _Pieces:
    """The pieces together. first_bytes: of their first packets, which are key frames; rest_bytes: of the others."""

    count: int = 0
    frames: int = 0
    first_bytes: int = 0
    rest_bytes: int = 0
    seconds: float = 0.0


def forecast(
    context: Context, source: Source, encoding: Encoding, loaded: Loaded, stream_plans: list[tracks.StreamPlan]
) -> Forecast:
    """Forecast a run on an opened source; decode and encode a few of its frames."""
    if source.is_pipe:
        return Forecast()
    size = input_bytes(source)
    total, length = source.info.frames_estimate, source.wanted_seconds
    if not total:
        return Forecast(input_bytes=size)
    pieces = _encode_pieces(context, source, encoding)
    if not pieces.frames:
        return Forecast(_network_seconds(context, source, loaded, total), None, size)
    network = _network_seconds(context, source, loaded, total)
    codecs = pieces.seconds / pieces.frames * total
    # A GPU works beside the processor, which decodes and encodes; on the CPU all share its cores.
    seconds = None if network is None else network + codecs if loaded.device.type == "cpu" else max(network, codecs)
    made = _video_bytes(context, encoding, pieces, total, length) + _other_bytes(source, stream_plans, length)
    return Forecast(None if seconds is None else round(seconds, 1), made, size)


def input_bytes(source: Source) -> int:
    """Return the size of a source's file, or of the pictures of the part asked for."""
    files = [source.path] if isinstance(source, VideoSource) else source.files
    return sum(file.stat().st_size for file in files)


def _network_seconds(context: Context, source: Source, loaded: Loaded, total: int) -> float | None:
    entry = registry.find_entry(loaded.model)
    if not any(True for _ in loaded.network.parameters()):
        return 0.0  # such as identity
    if not entry.gmacs:
        return None
    rate = choice.multiply_adds_per_second(loaded.device, loaded.precision)
    return choice.seconds_per_frame(entry, *context.restored_size(source.info), rate) * total


def _encode_pieces(context: Context, source: Source, encoding: Encoding) -> _Pieces:
    """Decode and encode pieces of the part to restore; without an index only its beginning."""
    pieces = _Pieces()
    length = source.wanted_seconds or Fraction(0)
    start = context.settings.cut.start or Fraction(0)
    count = PIECE_FRAMES if isinstance(encoding, VideoEncoding) else PICTURES
    for share in PLACES if source.seekable and length else (None,):
        begin = context.settings.cut.start if share is None else start + length * share
        try:
            piece = video.open_source(source.path, Cut(begin, None, count), ignore)
        except VdeblurError:
            continue
        try:
            begun = time.perf_counter()
            sizes = _encoded_sizes(context, piece, encoding)
            pieces.seconds += time.perf_counter() - begun
        except (VdeblurError, av.error.FFmpegError, OSError):
            continue
        finally:
            piece.close()
        if sizes:
            pieces.count += 1
            pieces.frames += len(sizes)
            pieces.first_bytes += sizes[0]
            pieces.rest_bytes += sum(sizes[1:])
    return pieces


def _encoded_sizes(context: Context, piece: Source, encoding: Encoding) -> list[int]:
    """Return the bytes of each encoded frame of a piece."""
    frames = deinterlace.deinterlaced(piece.frames(), context.settings.encoding.deinterlace)
    if not isinstance(encoding, VideoEncoding):
        return [len(encoding.encode(frame)) for frame in frames]
    encoder = encoding.open()
    try:
        encoder.stand_alone(encoding.container_name)
        packets = [packet for frame in frames for packet in encoder.encode(encoding.prepare(frame))]
        packets += encoder.encode(None)
        return [packet.size for packet in packets]
    finally:
        encoder.close()


def _video_bytes(context: Context, encoding: Encoding, pieces: _Pieces, total: int, length: Fraction | None) -> int:
    if not isinstance(encoding, VideoEncoding):
        return round((pieces.first_bytes + pieces.rest_bytes) / pieces.frames * total)
    if context.settings.encoding.bitrate is not None and length is not None:
        return round(context.settings.encoding.bitrate * length / 8)
    segments = Division(Fraction(0), context.settings.segment).count(length) or 1
    keys = min(max(segments, math.ceil(total / LONGEST_RUN)), total)
    key_bytes = pieces.first_bytes / pieces.count
    rest_bytes = pieces.rest_bytes / max(pieces.frames - pieces.count, 1)
    return round(keys * key_bytes + (total - keys) * rest_bytes)


def _other_bytes(source: Source, stream_plans: list[tracks.StreamPlan], length: Fraction | None) -> int:
    """Return the bytes of the streams that are kept, as far as their headers tell a rate."""
    if length is None or not isinstance(source, VideoSource):
        return 0
    bits = 0
    for plan in stream_plans:
        context = getattr(source.container.streams[plan.index], "codec_context", None)
        if plan.action != tracks.DROP and context is not None:
            bits += context.bit_rate or 0
    return round(bits * length / 8)
