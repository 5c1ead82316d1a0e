"""Join finished segments to one verified output.

The packets of all parts are copied into the output's container, together with the streams that are copied from the
input. The result is checked before it gets its name: an output appears complete or not at all.
"""

import zlib
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import av.error

from vdeblur.errors import OutputError, VerificationError
from vdeblur.events import Warn, ignore
from vdeblur.files import put_in_place, write_error
from vdeblur.output.complete import complete
from vdeblur.output.encoding import VideoEncoding
from vdeblur.output.muxer import Muxer, other_packets
from vdeblur.output.pictures import PictureEncoding
from vdeblur.output.shape import write_shape
from vdeblur.run.finished_pictures import place_pictures
from vdeblur.run.parts import Encoding, in_matroska
from vdeblur.run.segment_record import SegmentRecord
from vdeblur.run.state_folder import WHOLE
from vdeblur.run.store import Store
from vdeblur.source import demux
from vdeblur.source.video import Source, VideoSource

# How many seconds a frame's time may be off, by suffix. In MP4 vdeblur sets the time base, so times are exact;
# Matroska rounds them to milliseconds.
TOLERANCE = {".mp4": Fraction(0), ".mov": Fraction(0), ".m4v": Fraction(0)}
TOLERANCE |= {".mkv": Fraction(1, 2000), ".webm": Fraction(1, 2000)}


def assemble(
    store: Store,
    encoding: Encoding,
    source: Source,
    others: Iterable[av.Packet],
    warn: Warn,
    *,
    overwrite: bool,
) -> None:
    """Write the output from all segments, which must be finished.

    others: packets of the input's other streams, in the order in which they are stored.

    Raises: OutputError if it cannot be written, VerificationError if it does not hold what it should.
    """
    output = store.output
    try:
        if isinstance(encoding, PictureEncoding):
            place_pictures(store, encoding, source, warn, overwrite)
            return
        draft = store.folder / f"{WHOLE}{output.suffix}"
        draft.unlink(missing_ok=True)  # left by a killed run
        records = store.chain()
        assert records[-1].last, "all segments are finished"
        _join(store, records, encoding, source, others, draft, warn).warn_of_misplaced(warn)
        put_in_place(draft, output, overwrite)
    except (av.error.FFmpegError, OSError) as error:
        raise write_error(output, error) from error


def try_segment(store: Store, index: int, encoding: Encoding, source: Source) -> None:
    """Join a finished segment alone, and check it as `assemble` checks the output; then remove the trial.

    So what the end would refuse shows on the first segment, before hours of work. A segment that fails the check is
    removed from the store, so that the same command fails at the same place again.

    Raises: as assemble.
    """
    record = store.records[index]
    if isinstance(encoding, PictureEncoding) or not record.packets:
        return
    draft = store.draft_of(index)
    others: Iterable[av.Packet] = ()
    if isinstance(source, VideoSource) and not source.is_pipe:
        end = max(pts for _, pts, *_ in record.packets) * encoding.info.time_base
        others = other_packets(source, source.cut_begin, end)
    try:
        _join(store, [record], encoding, source, others, draft, ignore)
    except (av.error.FFmpegError, OSError) as error:
        raise write_error(store.output, error) from error
    except VerificationError:
        store.drop(index)
        raise
    finally:
        draft.unlink(missing_ok=True)


def _join(
    store: Store,
    records: list[SegmentRecord],
    encoding: VideoEncoding,
    source: Source,
    others: Iterable[av.Packet],
    draft: Path,
    warn: Warn,
) -> Muxer:
    """Write a file of these segments and the other streams, and check it; return its muxer, which is closed."""
    base = encoding.info.time_base
    shift = round((source.cut_begin or 0) / base)
    decoding, step = decoding_times(records)
    if len(decoding) == 1:  # no next frame ends it; the part may
        step = max(round(1 / (encoding.info.rate * base)), 1)
        ends = [] if source.cut_end is None else [round(source.cut_end / base) - records[0].packets[0][1]]
        step = min([step, *ends])
    end = max((pts + duration for record in records for _, pts, duration, _ in record.packets), default=0)
    encoder = encoding.open()
    muxer = encoding.open_muxer(str(draft), source, encoder, end=source.cut_end)
    try:
        muxer.take_others(others)
        for number, packet in enumerate(_packets(store, records, encoding)):
            assert packet.pts is not None
            packet.pts, packet.dts, packet.time_base = packet.pts - shift, decoding[number] - shift, base
            packet.duration = packet.duration or step
            if number == len(decoding) - 1:  # MP4 stores durations in decoding order
                packet.duration = max(packet.duration, end - (packet.pts + shift))
            muxer.mux_video([packet])
        muxer.close()
    except BaseException:
        muxer.abort()
        raise
    finally:
        encoder.close()
    complete(draft, encoding.container_name, source, warn)
    write_shape(draft, encoding.container_name, encoding.info)
    _check(draft, store.output, records, base, shift)
    return muxer


def decoding_times(records: list[SegmentRecord]) -> tuple[list[int], int]:
    """Return each packet's decoding time, and the median distance of two frames, in units of the video's time base.

    A packet is decoded when the frame `delay` places before it is shown, where `delay` is the largest number of places
    by which an encoder holds a frame back. So decoding times advance as presentation times do, across the seams between
    segments, too, where each encoder started over.
    """
    shown: list[int] = []
    delay = 0
    for record in records:
        times = [pts for _, pts, _, _ in record.packets]
        rank = {pts: place for place, pts in enumerate(sorted(times))}
        delay = max([delay, *(index - rank[pts] for index, pts in enumerate(times))])
        shown += sorted(times)
    steps = sorted(after - before for before, after in pairwise(shown))
    step = steps[len(steps) // 2] if steps else 1
    first = [shown[0] - (delay - place) * step for place in range(min(delay, len(shown)))]
    return first + shown[: len(shown) - len(first)], step


def _packets(store: Store, records: list[SegmentRecord], encoding: VideoEncoding) -> Iterator[av.Packet]:
    """Read the packets of all segments, with their presentation times.

    Raises: OutputError if a segment differs from what was written.
    """
    for record in records:
        crc = 0
        for data, (_, pts, duration, key) in zip(_data(store, record, encoding), record.packets, strict=True):
            crc = zlib.crc32(data, crc)
            data.pts, data.dts, data.duration, data.is_keyframe = pts, None, duration, bool(key)
            yield data
        if crc != record.crc:
            store.drop(record.index)
            raise OutputError(
                f"segment {record.index} of {store.output} was damaged on the disk",
                "it was removed; run the same command again to make it once more",
            )


def _data(store: Store, record: SegmentRecord, encoding: VideoEncoding) -> Iterator[av.Packet]:
    if not record.frames:
        return
    path = store.data_of(record.index)
    if in_matroska(encoding):
        with av.open(str(path), format="matroska") as container:
            yield from (packet for packet in container.demux(video=0) if packet.size)
        return
    with path.open("rb") as file:
        for size, *_ in record.packets:
            yield av.Packet(file.read(size))


def _check(draft: Path, output: Path, records: list[SegmentRecord], base: Fraction, shift: int) -> None:
    """Check that all frames are in the file, each at its time.

    Raises: VerificationError.
    """
    expected = sorted((pts - shift) * base for record in records for _, pts, _, _ in record.packets)
    with av.open(str(draft)) as container:
        video = container.streams.video[0]
        found = [demux.packet_seconds(packet) or Fraction(0) for packet in container.demux(video) if packet.size]
    fault = ""
    if len(found) != len(expected):
        fault = f"{len(found)} frames are in the file, {len(expected)} were written"
    elif output.suffix.lower() in TOLERANCE:
        late = max(abs(a - b) for a, b in zip(sorted(found), expected, strict=True))
        if late > TOLERANCE[output.suffix.lower()]:
            fault = f"frames are up to {float(late) * 1000:.3f} ms off their times"
    if fault:
        raise VerificationError(f"{output}: {fault}", "try another container or --codec; the input is untouched")
