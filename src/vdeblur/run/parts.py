"""Encode a segment's restored frames to a closed file, its part.

A part is the encoder's packets, one after the other, and a record of their sizes and exact times; or pictures.
"""

import contextlib
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Protocol

import av
import av.error

from vdeblur.errors import OutputError, VerificationError
from vdeblur.files import fresh_file, put_in_place, sync_folder, write_error
from vdeblur.frame import Frame
from vdeblur.output.encoding import VideoEncoding
from vdeblur.output.pictures import PictureEncoding
from vdeblur.run.segment_record import SegmentRecord
from vdeblur.run.segments import Segment
from vdeblur.run.store import Store

ALPHA_ENCODERS = ("libvpx", "libvpx-vp9")  # keep alpha beside the packet's bytes, and only Matroska stores that

Encoding = VideoEncoding | PictureEncoding


class SegmentPart(Protocol):
    """The part that a segment's restored frames are written to."""

    def write(self, frame: Frame) -> None:
        """Add a frame."""

    def finish(self, segment: Segment, damaged: int, warnings: list[tuple[str, str]]) -> None:
        """Flush everything to the disk, and store the record of the segment."""

    def abort(self) -> None:
        """Remove what was written."""


def new_part(store: Store, index: int, encoding: Encoding, frames_before: int) -> SegmentPart:
    """Start a segment's part. frames_before: the number of frames before it.

    Raises: OutputError if it cannot be written, as the part's own functions do.
    """
    if isinstance(encoding, PictureEncoding):
        return PicturePart(store, index, encoding, frames_before)
    return VideoPart(store, index, encoding)


class VideoPart:
    """Encode a segment to packets; see SegmentPart."""

    def __init__(self, store: Store, index: int, encoding: VideoEncoding) -> None:
        self.store, self.index, self.encoding = store, index, encoding
        self.packets: list[tuple[int, int, int, int]] = []
        self.guarded: list[int] = []
        self.frames, self.crc = 0, 0
        # The encoder makes packets as for the output's container, which is written once all segments are finished.
        self.encoder = encoding.open()
        self.encoder.stand_alone(encoding.container_name)
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
        self.guarded += [frame.pts] if frame.is_guarded else []

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

    def _set_last_duration(self, duration: int) -> None:
        """Record how long the last frame is shown, if that is longer than usual: no next frame ends it."""
        usual = 1 / (self.encoding.info.rate * self.encoding.info.time_base)
        if self.packets and duration > usual:
            last = max(range(len(self.packets)), key=lambda place: self.packets[place][1])
            size, pts, _, key = self.packets[last]
            self.packets[last] = (size, pts, duration, key)

    def finish(self, segment: Segment, damaged: int, warnings: list[tuple[str, str]]) -> None:
        """Flush the encoder and close the file; see SegmentPart."""
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
            if segment.last:
                self._set_last_duration(segment.last_duration)
            record = SegmentRecord(
                segment.index,
                segment.own_frames,
                segment.last,
                segment.before,
                segment.tail,
                self.packets,
                [],
                size,
                self.crc,
            )
            record.damaged, record.warnings, record.guarded = damaged, warnings, self.guarded
            record.restored, record.strength = segment.strengths.restored, segment.strengths.total
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
    """Packets in a file: their bytes alone, or Matroska if they carry an alpha channel beside them."""

    def __init__(self, path: Path, encoding: VideoEncoding) -> None:
        self.path = path
        self.matroska: av.container.OutputContainer | None = None
        self.file: BinaryIO | None = None
        if in_matroska(encoding):
            path.unlink(missing_ok=True)
            self.matroska = av.open(str(path), "w", format="matroska")
            self.stream = encoding.open().add_to(self.matroska)
        else:
            self.file = fresh_file(path)

    def write(self, packet: av.Packet) -> None:
        """Add a packet."""
        if self.matroska is not None:
            packet.stream = self.stream
            self.matroska.mux(packet)
        else:
            assert self.file is not None
            self.file.write(packet)

    def close(self) -> int:
        """Close the file; return its size in bytes."""
        if self.matroska is not None:
            self.matroska.close()
        elif self.file is not None:
            self.file.close()
        return self.path.stat().st_size


def in_matroska(encoding: VideoEncoding) -> bool:
    """Check whether packets carry an alpha channel beside their bytes."""
    return encoding.coding.encoder.name in ALPHA_ENCODERS and encoding.format.startswith("yuva")


class PicturePart:
    """Write a segment's frames as pictures; see SegmentPart."""

    def __init__(self, store: Store, index: int, encoding: PictureEncoding, frames_before: int) -> None:
        self.store, self.index, self.encoding, self.frames_before = store, index, encoding, frames_before
        self.names: list[str] = []
        self.guarded: list[int] = []
        self.taken = {name for record in store.records.values() for name in record.names}
        self.bytes = 0
        try:
            store.pictures.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(store.output, error) from error

    def write(self, frame: Frame) -> None:
        """Write a picture."""
        name = self.encoding.name_of(frame, self.frames_before + len(self.names) + 1)
        if name in self.taken:
            raise OutputError(f"two pictures would be written as {name}", "rename the inputs")
        data = self.encoding.encode(frame)
        try:
            with fresh_file(self.store.pictures / name) as file:
                file.write(data)
        except OSError as error:
            raise write_error(self.store.output, error) from error
        self.names.append(name)
        self.taken.add(name)
        self.bytes += len(data)
        self.guarded += [frame.pts] if frame.is_guarded else []

    def finish(self, segment: Segment, damaged: int, warnings: list[tuple[str, str]]) -> None:
        """Flush the pictures to the disk; see SegmentPart."""
        try:
            for name in self.names:
                with (self.store.pictures / name).open("r+b") as file:
                    os.fsync(file.fileno())
            sync_folder(self.store.pictures)
            record = SegmentRecord(segment.index, segment.own_frames, segment.last, segment.before, segment.tail)
            record.names, record.bytes, record.damaged, record.warnings = self.names, self.bytes, damaged, warnings
            record.guarded = self.guarded
            record.restored, record.strength = segment.strengths.restored, segment.strengths.total
            self.store.save(record)
        except OSError as error:
            raise write_error(self.store.output, error) from error

    def abort(self) -> None:
        """Remove the pictures."""
        for name in self.names:
            (self.store.pictures / name).unlink(missing_ok=True)
