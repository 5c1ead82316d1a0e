"""Count the frames of a source from its packets or its index, since headers may be wrong or missing."""

from fractions import Fraction

import av
import av.error

from vdeblur.errors import InputError
from vdeblur.settings import Cut
from vdeblur.source import demux, excerpt, times
from vdeblur.source.clock import TimestampRepair
from vdeblur.source.video import Source, VideoSource

# Formats whose header counts frames apart from the index, which lists every packet. MP4's header is its index.
INDEXED = {"avi"}
CHECKED_BYTES = 1 << 30  # files up to this size are read once more to check records, in about 15 s


def count_frames(source: Source) -> int | None:
    """Return the number of frames in the part asked for, without decoding; None where counting would take long.

    Files up to times.WHOLE_BYTES are read once more; of larger ones the index counts, if there is one. Packets that an
    edit list hides do not count. The count is of packets: damaged ones, and those before the first keyframe, may give
    no frame.
    """
    if not isinstance(source, VideoSource):
        return source.info.frames_estimate
    if source.is_pipe or not source.path.is_file():  # a named pipe can be read only once
        return None
    try:
        if source.path.stat().st_size <= times.WHOLE_BYTES:
            return _count_packets(source)
    except (OSError, av.error.FFmpegError):
        return None
    return len(source.video.index_entries) or None if has_index(source) and source.cut.whole else None


def frame_times(source: VideoSource) -> list[Fraction] | None:
    """Return the times of the frames of the part asked for, on the source's clock, by its packets, in order.

    None where the file is larger than CHECKED_BYTES or cannot be read once more. Packets may lack times, or have other
    ones than their frames, so the times are near the truth, and not always equal to it.
    """
    begin, end, repair = source.cut_begin, source.cut_end, TimestampRepair(source.origin)
    found = []
    try:
        if source.is_pipe or source.path.stat().st_size > CHECKED_BYTES:
            return None
        with demux.open_container(source.path) as container:
            for packet in demux.demux(container):
                if packet is None:
                    break
                repair.shift(packet)
                seconds = demux.packet_seconds(packet)
                is_frame = packet.stream.index == source.video.index and packet.size and not packet.is_discard
                if is_frame and seconds is not None and excerpt.is_within(seconds, begin, end):
                    found.append(seconds)
    except (OSError, av.error.FFmpegError, InputError):
        return None
    return sorted(found)[: source.cut.frames]


def has_index(source: Source) -> bool:
    """Return whether a source has an index, other than its header, that lists every packet of the video."""
    return isinstance(source, VideoSource) and source.container.format.name in INDEXED


def settle_frames(source: Source) -> bool:
    """Replace a source's estimate of its frames by their count; return whether it could be counted."""
    count = count_frames(source)
    if count:
        source.info.frames_estimate = count
    return bool(count)


def _count_packets(source: VideoSource) -> int:
    cut, count = source.cut, 0
    with demux.open_container(source.path) as container:
        stream = container.streams[source.video.index]
        begin = (stream.start_time or 0) * (stream.time_base or Fraction(0))
        for packet in demux.demux(container):
            if packet is None:
                break
            if packet.stream.index == source.video.index and packet.size and not packet.is_discard:
                seconds = demux.packet_seconds(packet)
                count += seconds is None or _is_within(cut, seconds - begin)
    return count if cut.frames is None else min(count, cut.frames)


def _is_within(cut: Cut, seconds: Fraction) -> bool:
    return (cut.start is None or seconds >= cut.start) and (cut.stop is None or seconds < cut.stop)
