"""Plan which of the input's other streams the output's container takes, and how.

`plan_streams` decides for each stream whether to keep it (copy its packets), convert it without losing its content, or
drop it, with the reason. Containers are tried, not looked up in a table: plan_streams writes the header to memory,
first with each stream alone, then with all of them and the video together. `Muxer` carries the plan out.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.error
from av.stream import Stream

from vdeblur.errors import OutputError
from vdeblur.output.tracks import (
    CONVERT,
    DROP,
    KEEP,
    MATROSKA_LIKE,
    MP4_LIKE,
    AddVideo,
    MuxOptions,
    StreamPlan,
    codec_name,
    copy_packet,
    is_chapter_track,
    is_time_code,
    open_track,
)
from vdeblur.source.demux import demux, is_cover, open_container
from vdeblur.source.pictures import PictureSource
from vdeblur.source.video import Source, VideoSource

SUFFIXES = {"matroska": ".mkv", "webm": ".webm", "mp4": ".mp4", "mov": ".mov", "ipod": ".m4v", "mpegts": ".ts"}
TEXT = {"subrip", "srt", "ass", "ssa", "mov_text", "webvtt", "text", "stl", "sami", "subviewer", "microdvd", "mpl2"}
STYLED = {"ass", "ssa"}  # have positions and fonts, which the others have not
TEXT_CODECS = {"mp4": "mov_text", "mov": "mov_text", "ipod": "mov_text", "matroska": "subrip", "webm": "webvtt"}
EXACT_PCM = {"pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_dvd", "pcm_bluray"}
# Decoders of the same codec: name to common name.
SAME_CODEC = {"srt": "subrip", "ssa": "ass", "libvorbis": "vorbis", "libopus": "opus", "libdav1d": "av1"}
SAME_CODEC |= dict.fromkeys(
    ("mp1", "mp2", "mp2float", "mp3float", "mp3adu"), "mp3"
)  # MPEG-TS does not distinguish them
FIRST_PACKETS_BYTES = 8_000_000  # how far first_packets reads


def container_format(path: Path) -> str:
    """Return FFmpeg's name of the container for a file's suffix.

    Raises: OutputError where the suffix is unknown.
    """
    try:
        with av.open(f"x{path.suffix}", "w") as container:  # creates no file: PyAV opens it with the header
            return container.format.name
    except (ValueError, av.error.FFmpegError) as error:
        hint = "name it *.mp4, *.mkv, *.mov or *.webm"
        raise OutputError(f"a video cannot be written as {path.suffix or 'a file without a suffix'}", hint) from error


def plan_streams(source: Source, form: str, options: MuxOptions, add_video: AddVideo | None = None) -> list[StreamPlan]:
    """Plan what becomes of every stream of a source but its video; write nothing.

    form: FFmpeg's name of the container. add_video: try all streams together with this video, too.

    Raises: whatever PyAV raises where the container refuses the video alone.
    """
    if isinstance(source, PictureSource):
        return []
    first = first_packets(source)
    plans = [_plan(stream, source, form, options, first) for stream in source.extras]
    if add_video is not None and not _fits(source, form, plans, first, add_video):
        plans = _fitting(source, form, plans, first, add_video)
    return plans


def drop_all(source: Source, reason: str) -> list[StreamPlan]:
    """Plan to drop every stream but the video."""
    names = [(stream.index, stream.type, codec_name(stream)) for stream in source.extras]
    return [StreamPlan(index, kind, codec, None, DROP, reason) for index, kind, codec in names]


def _plan(
    stream: Stream, source: VideoSource, form: str, options: MuxOptions, first: dict[int, av.Packet]
) -> StreamPlan:
    kind = "cover" if is_cover(stream) else stream.type
    plan = StreamPlan(stream.index, kind, codec_name(stream), stream.metadata.get("language"), KEEP)
    if (kind == "audio" and not options.audio) or (kind == "subtitle" and not options.subtitles):
        return replace(plan, action=DROP, reason="left out as requested")
    if is_time_code(stream, source):
        return _plan_time_code(plan, form)
    if is_chapter_track(stream, source):
        return (
            plan
            if form in MP4_LIKE | {"matroska"}
            else replace(plan, action=DROP, reason=f"holds chapters, which {SUFFIXES.get(form, form)} does not")
        )
    if _fits(source, form, [plan], first):
        return plan
    converted = _conversion(plan, stream, form)
    if converted is not None and _fits(source, form, [converted], first):
        return converted
    reason = f"cannot be held by {SUFFIXES.get(form, form)}"
    if form != "matroska" and _fits(source, "matroska", [plan], first):
        reason += "; .mkv can"
    return replace(plan, action=DROP, reason=reason)


def _plan_time_code(plan: StreamPlan, form: str) -> StreamPlan:
    """Plan a track that repeats the video's tag `timecode`; the tag is copied."""
    if form in MP4_LIKE:
        return replace(plan, codec="tmcd")  # these containers write the track anew from the tag
    if form == "matroska":
        return replace(plan, codec="tmcd", action=CONVERT, target="tag", reason="becomes a tag of the video")
    return replace(plan, codec="tmcd", action=DROP, reason=f"cannot be held by {SUFFIXES.get(form, form)}; .mkv can")


def _conversion(plan: StreamPlan, stream: Stream, form: str) -> StreamPlan | None:
    """Return a plan that converts a stream without losing its content; None where there is none."""
    if plan.type == "subtitle" and plan.codec in TEXT and form in TEXT_CODECS:
        lost = ", without its positions and fonts (.mkv keeps them)" if plan.codec in STYLED else ""
        target = TEXT_CODECS[form]
        return replace(plan, action=CONVERT, target=target, reason=f"becomes {target}{lost}")
    if plan.type == "audio" and _is_exact(stream) and form in MP4_LIKE:
        return replace(plan, action=CONVERT, target="alac", reason="becomes alac, which is lossless, too")
    return None


def _is_exact(stream: Stream) -> bool:
    """Return whether audio is lossless, with at most 24 bits."""
    name = codec_name(stream)
    if name == "flac":
        header = cast(av.AudioCodecContext, stream.codec_context).extradata or bytes(34)
        return ((header[12] & 1) << 4 | header[13] >> 4) + 1 <= 24  # STREAMINFO, RFC 9639 Sec. 8.2
    return name in EXACT_PCM


def _fitting(
    source: VideoSource, form: str, plans: list[StreamPlan], first: dict[int, av.Packet], add_video: AddVideo
) -> list[StreamPlan]:
    """Return the plans with those dropped that do not fit beside the streams before them.

    Raises: whatever PyAV raises where the container refuses the video alone.
    """
    _try(source, form, [], first, add_video)
    fitting: list[StreamPlan] = []
    for plan in plans:
        if plan.action != DROP and not _fits(source, form, [*fitting, plan], first, add_video):
            plan = replace(
                plan, action=DROP, reason=f"does not fit into {SUFFIXES.get(form, form)} beside the other streams"
            )
        fitting.append(plan)
    return fitting


def _fits(
    source: VideoSource,
    form: str,
    plans: list[StreamPlan],
    first: dict[int, av.Packet],
    add_video: AddVideo | None = None,
) -> bool:
    try:
        _try(source, form, plans, first, add_video)
    except (ValueError, av.error.FFmpegError, OSError):
        return False
    return True


def _try(
    source: VideoSource,
    form: str,
    plans: list[StreamPlan],
    first: dict[int, av.Packet],
    add_video: AddVideo | None = None,
) -> None:
    """Write a file with these streams to memory; without add_video, with the first packet of each.

    A file of one stream is read back: MPEG-TS takes unknown codecs, but they cannot be read afterwards.

    Raises: ValueError, FFmpegError or OSError where the container refuses them.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=form, container_options=container_options(form, MuxOptions())) as trial:
        if add_video is not None:
            add_video(trial)
        tracks = {plan.index: open_track(trial, source, plan, first) for plan in plans if plan.action != DROP}
        trial.start_encoding()
        if add_video is not None:
            return
        streams_written = 0
        for index, track in tracks.items():
            packet = first.get(index)
            if track is not None and packet is not None:
                packets = [*track.packets(copy_packet(packet, packet.stream), Fraction(0)), *track.rest()]
                streams_written += bool(packets)
                trial.mux(packets)
    if streams_written == len(plans) == 1:
        _read_back(file, form, plans[0])
    elif len(plans) == 1 and plans[0].type == "data":
        raise ValueError("without a packet, a data stream cannot be tried")


def _read_back(file: io.BytesIO, form: str, plan: StreamPlan) -> None:
    with av.open(io.BytesIO(file.getvalue()), format=form) as result:
        found = [codec_name(stream) for stream in result.streams]
    expected = plan.target or plan.codec
    if not any(SAME_CODEC.get(name, name) == SAME_CODEC.get(expected, expected) for name in found):
        raise ValueError(f"{form} reads {expected} back as {found}")


def container_options(form: str, options: MuxOptions, clocks: Sequence[Fraction] = ()) -> dict[str, str]:
    """Return FFmpeg's options for a container. clocks: time bases of its streams."""
    chosen = {}
    if form in MP4_LIKE:
        # The unit of each stream's start time. FFmpeg's default, a millisecond, would shift whole streams by rounding.
        common = math.lcm(1000, *(clock.denominator for clock in clocks))
        chosen["movie_timescale"] = str(common if common < 1 << 31 else clocks[0].denominator)
    if form == "yuv4mpegpipe":
        chosen["strict"] = "unofficial"  # allows more than 8 bits
    if form in MATROSKA_LIKE:
        # Matroska stores no decoding times; without this, negative ones make FFmpeg shift late streams.
        chosen["avoid_negative_ts"] = "disabled"
    if options.deterministic:
        chosen["fflags"] = "+bitexact"
    return chosen


def first_packets(source: VideoSource) -> dict[int, av.Packet]:
    """Return the first packet of each stream but the video, if near the beginning; of a pipe, none."""
    wanted = {stream.index for stream in source.extras}
    found: dict[int, av.Packet] = {}
    if not wanted or source.is_pipe:
        return found
    size = 0
    with open_container(source.path) as container:
        for packet in demux(container):
            if packet is None:
                break
            size += packet.size
            if packet.size and packet.stream.index in wanted:
                stream = source.container.streams[packet.stream.index]
                found.setdefault(stream.index, copy_packet(packet, stream))
            if len(found) == len(wanted) or size > FIRST_PACKETS_BYTES:
                break
    return found
