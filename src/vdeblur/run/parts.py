"""A segment's restored frames to a closed file, and finished segments to the output.

A part is the encoder's packets, one after the other, and a record of their sizes and exact times; pictures are parts by
themselves. `assemble` joins parts by copying packets into the output's container, with all that is copied from the
input beside them, looks at the result, and gives it its name: an output appears whole or not at all.
"""

import contextlib
import os
import zlib
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Protocol

import av
import av.error

from vdeblur.errors import OutputError, VerificationError
from vdeblur.files import put_in_place, sync_folder, write_error
from vdeblur.frame import Frame
from vdeblur.output.encoding import VideoEncoding
from vdeblur.output.pictures import PictureEncoding
from vdeblur.run.segments import Segment
from vdeblur.run.store import SegmentRecord, Store

ALPHA_ENCODERS = ("libvpx", "libvpx-vp9")  # their alpha is beside the packet's bytes, and only Matroska holds it
EXACT = {".mp4": Fraction(0), ".mov": Fraction(0), ".m4v": Fraction(0)}  # how far times may be off; the clocks are ours
EXACT |= {".mkv": Fraction(1, 2000), ".webm": Fraction(1, 2000)}  # Matroska counts milliseconds


class SegmentPart(Protocol):
    """Something that takes a segment's restored frames, and notes what came of them."""

    def write(self, frame: Frame) -> None:
        """Add a frame."""

    def finish(self, segment: Segment, damaged: int, warnings: list[tuple[str, str]]) -> None:
        """Bring everything to the disk, and note the segment as finished."""

    def abort(self) -> None:
        """Remove what was written."""


def new_part(store: Store, index: int, encoding: VideoEncoding | PictureEncoding, done: int) -> SegmentPart:
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
            put_in_place(self.draft, self.store.data_of(self.index))
            record = SegmentRecord(
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
        """Close the file; gives its size in bytes."""
        if self.matroska is not None:
            self.matroska.close()
        elif self.file is not None:
            self.file.close()
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
            record = SegmentRecord(segment.index, segment.own, segment.last, segment.before, segment.tail)
            record.names, record.bytes, record.damaged, record.warnings = self.names, self.bytes, damaged, warnings
            self.store.save(record)
        except OSError as error:
            raise write_error(self.store.output, error) from error

    def abort(self) -> None:
        """Remove the pictures."""
        for name in self.names:
            (self.store.pictures / name).unlink(missing_ok=True)


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
