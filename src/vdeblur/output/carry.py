"""Plan which of the input's other streams the output's container takes, and how.

`plan_streams` decides for each stream whether to keep it (copy its packets), convert it (the content survives; styled
subtitles lose positions and fonts), or drop it, with the reason. Containers are tried, not looked up in a table:
plan_streams writes the header to memory, first with each stream alone, then with all of them and the video together.
`Muxer` then copies the streams by this plan.
"""

import contextlib
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
NEEDS_VIDEO = {"mxf"}  # containers that take no other stream without a video, so it is tried with one
TEXT = {"subrip", "srt", "ass", "ssa", "mov_text", "webvtt", "text", "stl", "sami", "subviewer", "microdvd", "mpl2"}
STYLED = {"ass", "ssa"}  # have positions and fonts, which the others have not
TEXT_CODECS = {"mp4": "mov_text", "mov": "mov_text", "ipod": "mov_text", "matroska": "subrip", "webm": "webvtt"}
# Uncompressed audio that ALAC and FLAC hold: integers of at most 24 bits, the most that FFmpeg's encoders take.
LOSSLESS_PCM = {"pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_dvd", "pcm_bluray"}
DISC_PCM = {"pcm_dvd", "pcm_bluray"}
TELEPHONY = ("adpcm_", "pcm_alaw", "pcm_mulaw")  # decode to 16 bits
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
        if path.suffix.lower() in (".html", ".htm"):
            hint += "; a page of samples needs --sample and -m auto, one of the whole video --compare html"
        raise OutputError(f"a video cannot be written as {path.suffix or 'a file without a suffix'}", hint) from error


def plan_streams(
    source: Source, container_name: str, options: MuxOptions, add_video: AddVideo | None = None
) -> list[StreamPlan]:
    """Plan what becomes of every stream of a source but its video; write nothing.

    container_name: FFmpeg's name of the container. add_video: try all streams together with this video, too.

    Raises: whatever PyAV raises where the container refuses the video alone.
    """
    if isinstance(source, PictureSource):
        return []
    first = first_packets(source)
    plans = [_plan_stream(stream, source, container_name, options, first, add_video) for stream in source.extras]
    if add_video is not None and not _is_accepted(source, container_name, options, plans, first, add_video):
        plans = _plan_together(source, container_name, options, plans, first, add_video)
    return plans


def drop_all(source: Source, reason: str) -> list[StreamPlan]:
    """Plan to drop every stream but the video."""
    names = [(stream.index, stream.type, codec_name(stream)) for stream in source.extras]
    return [StreamPlan(index, kind, codec, None, DROP, reason) for index, kind, codec in names]


def _plan_stream(
    stream: Stream,
    source: VideoSource,
    container_name: str,
    options: MuxOptions,
    first: dict[int, av.Packet],
    add_video: AddVideo | None,
) -> StreamPlan:
    kind = "cover" if is_cover(stream) else stream.type
    plan = StreamPlan(stream.index, kind, codec_name(stream), stream.metadata.get("language"), KEEP)
    if (kind == "audio" and not options.audio) or (kind == "subtitle" and not options.subtitles):
        return replace(plan, action=DROP, reason="left out as requested")
    if is_time_code(stream, source):
        return _plan_time_code(plan, container_name, options)
    if is_chapter_track(stream, source):
        if container_name in MP4_LIKE | {"matroska"}:
            return plan
        return replace(
            plan, action=DROP, reason=f"holds chapters, which {_suffix_of(container_name, options)} does not"
        )
    if container_name not in NEEDS_VIDEO:
        add_video = None
    if _is_accepted(source, container_name, options, [plan], first, add_video):
        return plan
    converted = _plan_conversion(plan, stream, container_name)
    if converted is not None and _is_accepted(source, container_name, options, [converted], first, add_video):
        return converted
    reason = f"cannot be held by {_suffix_of(container_name, options)}"
    if container_name != "matroska" and _is_accepted(source, "matroska", options, [plan], first):
        reason += "; .mkv can"
    return replace(plan, action=DROP, reason=reason)


def _suffix_of(container_name: str, options: MuxOptions) -> str:
    """Return the output's suffix, for messages: people do not know FFmpeg's names, such as svcd."""
    return options.suffix or SUFFIXES.get(container_name, container_name)


def _plan_time_code(plan: StreamPlan, container_name: str, options: MuxOptions) -> StreamPlan:
    """Plan a track that repeats the video's tag `timecode`; the tag is copied."""
    if container_name in MP4_LIKE:
        return replace(plan, codec="tmcd")  # these containers write the track anew from the tag
    if container_name == "matroska":
        return replace(plan, codec="tmcd", action=CONVERT, target="tag", reason="becomes a tag of the video")
    return replace(
        plan,
        codec="tmcd",
        action=DROP,
        reason=f"cannot be held by {_suffix_of(container_name, options)}; .mkv can",
    )


def _plan_conversion(plan: StreamPlan, stream: Stream, container_name: str) -> StreamPlan | None:
    """Return a plan that converts a stream; None if its content would not survive.

    Styled subtitles are converted, too: their texts survive, their positions and fonts are lost.
    """
    if plan.type == "subtitle" and plan.codec in TEXT and container_name in TEXT_CODECS:
        lost = ", without its positions and fonts (.mkv keeps them)" if plan.codec in STYLED else ""
        target = TEXT_CODECS[container_name]
        return replace(plan, action=CONVERT, target=target, reason=f"becomes {target}{lost}")
    target = _lossless_target(stream, container_name) if plan.type == "audio" else ""
    if target:
        too = ", which is lossless, too" if _is_lossless(stream) else ", without further loss"
        return replace(plan, action=CONVERT, target=target, reason=f"becomes {target}{too}")
    return None


def _lossless_target(stream: Stream, container_name: str) -> str:
    """Return the lossless codec that audio becomes which a container refuses; "" if there is none.

    Telephony's and discs' codecs are small as ALAC or FLAC, too. Others are left to Matroska, which holds nearly all.
    """
    context = getattr(stream, "codec_context", None)
    if not isinstance(context, av.AudioCodecContext) or not context.layout.nb_channels or context.format is None:
        return ""
    if container_name == "matroska":
        return "flac"
    if container_name in MP4_LIKE and (_is_lossless(stream) or context.name.startswith(TELEPHONY)):
        return "alac"
    if container_name == "avi" and context.name in DISC_PCM:
        return "pcm_s16le" if context.format.name == "s16" else "pcm_s24le"
    return ""


def _is_lossless(stream: Stream) -> bool:
    """Return whether audio is lossless, with at most 24 bits, so that ALAC and FLAC hold it exactly."""
    name = codec_name(stream)
    if name == "flac":
        header = cast(av.AudioCodecContext, stream.codec_context).extradata or bytes(34)
        return ((header[12] & 1) << 4 | header[13] >> 4) + 1 <= 24  # STREAMINFO, RFC 9639 Sec. 8.2
    return name in LOSSLESS_PCM


def _plan_together(
    source: VideoSource,
    container_name: str,
    options: MuxOptions,
    plans: list[StreamPlan],
    first: dict[int, av.Packet],
    add_video: AddVideo,
) -> list[StreamPlan]:
    """Add one stream after the other to the video; drop each that the container refuses beside those before it.

    Raises: whatever PyAV raises where the container refuses the video alone.
    """
    _write_trial(source, container_name, options, [], first, add_video)
    decided: list[StreamPlan] = []
    for plan in plans:
        if plan.action != DROP and not _is_accepted(
            source, container_name, options, [*decided, plan], first, add_video
        ):
            reason = f"does not fit into {_suffix_of(container_name, options)} beside the other streams"
            plan = replace(plan, action=DROP, reason=reason)
        decided.append(plan)
    return decided


def _is_accepted(
    source: VideoSource,
    container_name: str,
    options: MuxOptions,
    plans: list[StreamPlan],
    first: dict[int, av.Packet],
    add_video: AddVideo | None = None,
) -> bool:
    try:
        _write_trial(source, container_name, options, plans, first, add_video)
    except (ValueError, av.error.FFmpegError, OSError):
        return False
    return True


def _write_trial(
    source: VideoSource,
    container_name: str,
    options: MuxOptions,
    plans: list[StreamPlan],
    first: dict[int, av.Packet],
    add_video: AddVideo | None = None,
) -> None:
    """Write a file with these streams to memory; without add_video, with the first packet of each.

    A file of one stream is read back: MPEG-TS takes unknown codecs, but they cannot be read afterwards.

    Raises: ValueError, FFmpegError or OSError where the container refuses them.
    """
    file = io.BytesIO()
    with av.open(
        file, "w", format=container_name, container_options=container_options(container_name, options)
    ) as trial:
        if add_video is not None:
            add_video(trial)
        tracks = {plan.index: open_track(trial, source, plan, first) for plan in plans if plan.action != DROP}
        trial.start_encoding()
        if add_video is not None:
            with contextlib.suppress(ValueError, av.error.FFmpegError, OSError):
                trial.close()  # without packets MXF cannot be ended, which says nothing about its header
            return
        streams_written = 0
        for index, track in tracks.items():
            packet = first.get(index)
            if track is not None and packet is not None:
                packets = [*track.packets(copy_packet(packet, packet.stream), Fraction(0)), *track.rest()]
                streams_written += bool(packets)
                trial.mux(packets)
    if streams_written == len(plans) == 1:
        _read_back(file, container_name, plans[0])
    elif len(plans) == 1 and plans[0].type == "data":
        raise ValueError("without a packet, a data stream cannot be tried")


def _read_back(file: io.BytesIO, container_name: str, plan: StreamPlan) -> None:
    with av.open(io.BytesIO(file.getvalue()), format=container_name) as result:
        found = [codec_name(stream) for stream in result.streams]
    expected = plan.target or plan.codec
    if not any(SAME_CODEC.get(name, name) == SAME_CODEC.get(expected, expected) for name in found):
        raise ValueError(f"{container_name} reads {expected} back as {found}")


def container_options(container_name: str, options: MuxOptions, clocks: Sequence[Fraction] = ()) -> dict[str, str]:
    """Return FFmpeg's options for a container. clocks: time bases of its streams."""
    chosen = {}
    if container_name in MP4_LIKE:
        # The unit of each stream's start time. FFmpeg's default, a millisecond, would shift whole streams by rounding.
        common = math.lcm(1000, *(clock.denominator for clock in clocks))
        chosen["movie_timescale"] = str(common if common < 1 << 31 else clocks[0].denominator)
    if container_name == "yuv4mpegpipe":
        chosen["strict"] = "unofficial"  # allows more than 8 bits
    if container_name == "mpegts" and options.blu_ray:
        chosen["mpegts_m2ts_mode"] = "1"  # FFmpeg's muxer sees the suffix alone; it takes the sound of discs, too
    if container_name == "avi":
        # Sound may begin before zero (an encoder's delay). FFmpeg's muxer then moves all streams by less than a frame,
        # and fills the video's first interval with an empty frame: every frame but the first came one too late.
        chosen["avoid_negative_ts"] = "disabled"
    if container_name in MATROSKA_LIKE:
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
