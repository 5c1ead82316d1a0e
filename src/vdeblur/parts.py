"""A segment's restored frames to a closed file, and finished segments to the output.

A part is the encoder's packets, one after the other, and a record of their sizes and exact times; pictures are parts by
themselves. `assemble` joins parts by copying packets into the output's container, with all that is copied from the
input beside them, looks at the result, and gives it its name: an output appears whole or not at all.
"""

import contextlib
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Protocol

import av
import av.error

from vdeblur.errors import OutputError, VerificationError
from vdeblur.events import Warn
from vdeblur.files import sync_folder, write_error
from vdeblur.frame import Frame
from vdeblur.output.encoding import VideoEncoding
from vdeblur.output.muxer import Muxer
from vdeblur.output.pictures import PictureEncoding
from vdeblur.segments import WHOLE, Record, Segment, Store
from vdeblur.source import demux, pictures
from vdeblur.source.pictures import PictureSource
from vdeblur.source.video import VideoSource

ALPHA_ENCODERS = ("libvpx", "libvpx-vp9")  # their alpha is beside the packet's bytes, and only Matroska holds it
EXACT = {".mp4": Fraction(0), ".mov": Fraction(0), ".m4v": Fraction(0)}  # how far times may be off; the clocks are ours
EXACT |= {".mkv": Fraction(1, 2000), ".webm": Fraction(1, 2000)}  # Matroska counts milliseconds
COPY_BYTES = 1 << 20


class Part(Protocol):
    """Something that takes a segment's restored frames, and notes what came of them."""

    def write(self, frame: Frame) -> None:
        """Add a frame."""

    def finish(self, segment: Segment, damaged: int, warnings: list[tuple[str, str]]) -> None:
        """Bring everything to the disk, and note the segment as finished."""

    def abort(self) -> None:
        """Remove what was written."""


def new_part(store: Store, index: int, encoding: VideoEncoding | PictureEncoding, done: int) -> Part:
    """Begin a segment's part. done: frames before it.

    Raises: OutputError where it cannot be written; so do the part's own functions.
    """
    if isinstance(encoding, PictureEncoding):
        return PicturePart(store, index, encoding, done)
    return VideoPart(store, index, encoding)


class VideoPart:
    """Encode a segment by itself; see Part."""

    def __init__(self, store: Store, index: int, encoding: VideoEncoding) -> None:
        self.store, self.index, self.encoding = store, index, encoding
        self.packets: list[tuple[int, int, int, int]] = []
        self.frames, self.crc = 0, 0
        # The encoder speaks as it does into the output's container; that container itself is written once all is there.
        self.encoder = encoding.open()
        self.encoder.stand_alone(encoding.form)
        self.draft = store.draft_of(index)
        try:
            self.file = _PacketFile(self.draft, encoding)
        except OSError as error:
            raise write_error(store.output, error) from error

    def write(self, frame: Frame) -> None:
        """Encode a frame."""
        try:
            self._keep(self.encoder.encode(self.encoding.prepare(frame)))
        except (av.error.FFmpegError, OSError) as error:
            raise write_error(self.store.output, error) from error
        self.frames += 1

    def _keep(self, packets: Iterable[av.Packet]) -> None:
        for packet in packets:
            assert packet.pts is not None, "every frame has a time"
            base = packet.time_base or self.encoding.info.time_base
            pts = (
                packet.pts
                if base == self.encoding.info.time_base
                else round(packet.pts * base / self.encoding.info.time_base)
            )
            self.packets.append((packet.size, pts, packet.duration or 0, int(packet.is_keyframe)))
            self.crc = zlib.crc32(packet, self.crc)
            self.file.write(packet)

    def finish(self, segment: Segment, damaged: int, warnings: list[tuple[str, str]]) -> None:
        """Flush the encoder and close the file; see Part."""
        try:
            if self.frames:
                self._keep(self.encoder.encode(None))
            self.encoder.close()
            size = self.file.close()
            if len(self.packets) != self.frames:
                raise VerificationError(
                    f"{self.encoding.coding.encoder.name} made {len(self.packets)} packets of {self.frames} frames",
                    "try another --codec; the input is untouched",
                )
            os.replace(self.draft, self.store.data_of(self.index))
            sync_folder(self.store.folder)
            record = Record(
                segment.index, segment.own, segment.last, segment.before, segment.tail, self.packets, [], size, self.crc
            )
            record.damaged, record.warnings = damaged, warnings
            self.store.save(record)
        except (av.error.FFmpegError, OSError) as error:
            self.abort()
            raise write_error(self.store.output, error) from error
        except VerificationError:
            self.abort()
            raise

    def abort(self) -> None:
        """Remove the draft."""
        self.encoder.close()
        with contextlib.suppress(av.error.FFmpegError, OSError, ValueError):
            self.file.close()
        self.draft.unlink(missing_ok=True)


class _PacketFile:
    """Packets in a file: their bytes alone, or, where they carry an alpha channel beside, as Matroska."""

    def __init__(self, path: Path, encoding: VideoEncoding) -> None:
        self.path = path
        self.matroska: av.container.OutputContainer | None = None
        self.file: BinaryIO | None = None
        if in_matroska(encoding):
            self.matroska = av.open(str(path), "w", format="matroska")
            self.stream = encoding.open().add_to(self.matroska)
        else:
            self.file = path.open("wb")

    def write(self, packet: av.Packet) -> None:
        """Add a packet."""
        if self.matroska is not None:
            packet.stream = self.stream
            self.matroska.mux(packet)
        else:
            assert self.file is not None
            self.file.write(packet)

    def close(self) -> int:
        """Bring it to the disk; gives its size in bytes."""
        if self.matroska is not None:
            self.matroska.close()
        elif self.file is not None:
            self.file.close()
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size


def in_matroska(encoding: VideoEncoding) -> bool:
    """Tell whether packets carry more than their bytes."""
    return encoding.coding.encoder.name in ALPHA_ENCODERS and encoding.format.startswith("yuva")


class PicturePart:
    """Write a segment's frames as pictures; see Part."""

    def __init__(self, store: Store, index: int, encoding: PictureEncoding, done: int) -> None:
        self.store, self.index, self.encoding, self.done = store, index, encoding, done
        self.names: list[str] = []
        self.taken = {name for record in store.records.values() for name in record.names}
        self.bytes = 0
        try:
            store.pictures.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(store.output, error) from error

    def write(self, frame: Frame) -> None:
        """Write a picture."""
        name = self.encoding.name_of(frame, self.done + len(self.names) + 1)
        if name in self.taken:
            raise OutputError(f"two pictures would be written as {name}", "rename the inputs")
        data = self.encoding.encode(frame)
        try:
            with (self.store.pictures / name).open("wb") as file:
                file.write(data)
        except OSError as error:
            raise write_error(self.store.output, error) from error
        self.names.append(name)
        self.taken.add(name)
        self.bytes += len(data)

    def finish(self, segment: Segment, damaged: int, warnings: list[tuple[str, str]]) -> None:
        """Bring the pictures to the disk; see Part."""
        try:
            for name in self.names:
                with (self.store.pictures / name).open("rb") as file:
                    os.fsync(file.fileno())
            sync_folder(self.store.pictures)
            record = Record(segment.index, segment.own, segment.last, segment.before, segment.tail)
            record.names, record.bytes, record.damaged, record.warnings = self.names, self.bytes, damaged, warnings
            self.store.save(record)
        except OSError as error:
            raise write_error(self.store.output, error) from error

    def abort(self) -> None:
        """Remove the pictures."""
        for name in self.names:
            (self.store.pictures / name).unlink(missing_ok=True)


def assemble(
    store: Store,
    encoding: VideoEncoding | PictureEncoding,
    source: VideoSource | PictureSource,
    others: Iterable[av.Packet],
    warn: Warn,
    *,
    overwrite: bool,
) -> None:
    """Make the output of all segments, which must be there.

    others: packets of the input's other streams, in the order in which they are stored.

    Raises: OutputError where it cannot be written, VerificationError where it does not hold what it should.
    """
    output = store.output
    try:
        if isinstance(encoding, PictureEncoding):
            _place_pictures(store)
            return
        draft = store.folder / f"{WHOLE}{output.suffix}"
        _join(store, encoding, source, others, warn, draft)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        if output.exists() and not overwrite:
            raise OutputError(f"{output} has appeared meanwhile", "choose another name, or replace it with -y")
        os.replace(draft, output)
        sync_folder(output.parent)
    except (av.error.FFmpegError, OSError) as error:
        raise write_error(output, error) from error


def _join(
    store: Store,
    encoding: VideoEncoding,
    source: VideoSource | PictureSource,
    others: Iterable[av.Packet],
    warn: Warn,
    draft: Path,
) -> None:
    records = store.chain()
    assert records[-1].last, "all segments are there"
    base = encoding.info.time_base
    shift = round((source.cut_begin or 0) / base)
    decoding, step = decoding_times(records)
    encoder = encoding.open()
    offset = source.cut_begin or Fraction(0)
    muxer = Muxer(str(draft), encoding.form, source, encoder.add_to, encoding.muxing, offset=offset, end=source.cut_end)
    try:
        muxer.take_others(others)
        for number, packet in enumerate(_packets(store, records, encoding)):
            assert packet.pts is not None
            packet.pts, packet.dts, packet.time_base = packet.pts - shift, decoding[number] - shift, base
            packet.duration = packet.duration or step
            muxer.mux_video([packet])
        muxer.close()
    except BaseException:
        muxer.abort()
        raise
    finally:
        encoder.close()
    if muxer.misplaced:
        warn("W_STREAM_DAMAGED", f"{muxer.misplaced} packets of copied streams went back in time; left out")
    _check(draft, store.output, records, base, shift)


def decoding_times(records: list[Record]) -> tuple[list[int], int]:
    """Give each packet's decoding time, and the usual distance of two frames, in units of the video's time base.

    A packet is decoded when the frame is shown that stands `delay` places before it, where `delay` is the largest
    number of places by which an encoder holds a frame back. So decoding times advance as presentation times do, across
    the seams, too, whatever each encoder thought of what was before it.
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


def _packets(store: Store, records: list[Record], encoding: VideoEncoding) -> Iterator[av.Packet]:
    """Read the packets of all segments, with their presentation times.

    Raises: OutputError where one is not what was written.
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
                "it was removed; run the same command again to make it anew",
            )


def _data(store: Store, record: Record, encoding: VideoEncoding) -> Iterator[av.Packet]:
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


def _check(draft: Path, output: Path, records: list[Record], base: Fraction, shift: int) -> None:
    """See that all frames stand in the file, each at its time.

    Raises: VerificationError where they do not.
    """
    expected = sorted((pts - shift) * base for record in records for _, pts, _, _ in record.packets)
    with av.open(str(draft)) as container:
        video = container.streams.video[0]
        found = [demux.packet_seconds(packet) or Fraction(0) for packet in container.demux(video) if packet.size]
    what = ""
    if len(found) != len(expected):
        what = f"{len(found)} frames stand in the file, {len(expected)} were written"
    elif output.suffix.lower() in EXACT:
        late = max(abs(a - b) for a, b in zip(sorted(found), expected, strict=True))
        if late > EXACT[output.suffix.lower()]:
            what = f"frames stand up to {float(late) * 1000:.3f} ms beside their times"
    if what:
        raise VerificationError(f"{output}: {what}", "try another container or --codec; the input is untouched")


def _place_pictures(store: Store) -> None:
    """Give the folder of pictures its name, or move the pictures into the one that stands there."""
    output = store.output
    names = [name for record in store.records.values() for name in record.names]
    files = {entry.name for entry in os.scandir(store.pictures)}
    for name in files - set(names):  # of a segment that was not finished
        (store.pictures / name).unlink()
    if set(names) - files:
        raise VerificationError(f"{output}: {len(names)} pictures were written, {len(files)} are there")
    pictures.read_picture(store.pictures / names[-1])
    if output.is_dir() and not any(output.iterdir()):
        output.rmdir()
    if not output.exists():
        os.replace(store.pictures, output)
        return
    for name in names:
        os.replace(store.pictures / name, output / name)
    shutil.rmtree(store.pictures)


class Spool:
    """Keep packets that can be read only once, as those of a pipe, in a file, and give them again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("wb")
        self.facts: list[tuple[int, int | None, int | None, int | None, bool, av.stream.Stream, Fraction | None]] = []

    def keep(self, packet: av.Packet) -> None:
        """Keep a packet."""
        self.file.write(packet)
        self.facts.append(
            (packet.size, packet.pts, packet.dts, packet.duration, packet.is_keyframe, packet.stream, packet.time_base)
        )

    def packets(self) -> Iterator[av.Packet]:
        """Give the packets in the order in which they came."""
        self.file.close()
        with self.path.open("rb") as file:
            for size, pts, dts, duration, key, stream, base in self.facts:
                packet = av.Packet(file.read(size))
                packet.pts, packet.dts, packet.duration, packet.is_keyframe = pts, dts, duration, key
                packet.stream = stream
                if base is not None:
                    packet.time_base = base
                yield packet
