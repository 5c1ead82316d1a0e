"""Write the video's packets and those of the other streams into a container, in order."""

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import av
import av.error
from av.stream import Stream

from vdeblur.events import Warn
from vdeblur.output.carry import container_options, first_packets
from vdeblur.output.complete import CONTAINER_TAGS, stereo_tags, time_code_rate
from vdeblur.output.tracks import (
    DROP,
    MATROSKA_LIKE,
    MP4_LIKE,
    AddVideo,
    MuxOptions,
    StreamPlan,
    Track,
    open_track,
    without_tags,
)
from vdeblur.output.y4m import Y4mFile
from vdeblur.source.clock import TimestampRepair
from vdeblur.source.demux import demux, is_cover, open_container, packet_seconds
from vdeblur.source.excerpt import SECONDS_BEYOND, is_within
from vdeblur.source.pictures import PictureSource
from vdeblur.source.video import Source, VideoSource

# Tags of the video that encoding makes wrong (mkvmerge's statistics), or that the muxer writes itself.
VIDEO_TAGS = {"encoder", "alpha_mode", "duration", "bps", "number_of_frames", "number_of_bytes"}
PRIMING_SECONDS = Fraction(1, 10)  # encoders put at most this in front: HE-AAC 2048 samples at 22,050 Hz
NUDGED_SECONDS = Fraction(1, 4)  # a packet that is later than its time by less repeats a time; it does not jump back
DAMAGED_PACKET = (av.error.InvalidDataError, av.error.ArgumentError)  # raised for a bad packet, not for the disk


class Muxer:
    """An output container: its video stream, and the input's other streams as planned.

    misplaced: number of their packets that the container does not take.
    """

    def __init__(
        self,
        target: str | Y4mFile,
        container_name: str,
        source: Source,
        plans: list[StreamPlan],
        add_video: AddVideo,
        options: MuxOptions,
        *,
        offset: Fraction = Fraction(0),
        end: Fraction | None = None,
    ) -> None:
        """Open the target and write its header.

        container_name: FFmpeg's name of the container. plans: from plan_streams, which tried them in memory. offset,
        end: where the part begins and ends, in seconds on the source's clock; the part begins at zero in the output.

        Raises: whatever PyAV raises where the container refuses the video.
        """
        self.offset, self.misplaced, self.target = offset, 0, target
        self.counted, self.frames = container_name == "yuv4mpegpipe", 0  # y4m has no times, only a sequence of frames
        self.others: Iterator[av.Packet] = iter(())
        self.next: av.Packet | None = None
        self.last_dts: dict[int, int] = {}
        self.shown_dts: dict[int, int] = {}  # of the last packet of each of the input's streams that is not hidden
        self.hidden_from: dict[int, Fraction] = {}  # the time of a stream's first packet, if an edit list hides it
        self.covers: list[av.Packet] = []
        clocks = [source.info.time_base, *(stream.time_base or Fraction(1, 1000) for stream in source.extras)]
        self.container = av.open(
            target, "w", format=container_name, container_options=container_options(container_name, options, clocks)
        )
        try:
            self.video = add_video(self.container)
            self.tracks = self._add_tracks(source, plans)
            self._copy_tags(source, end)
            self.container.start_encoding()
            for cover in self.covers:
                self.copy(cover)
        except BaseException:
            self.container.close()
            raise

    def _add_tracks(self, source: Source, plans: list[StreamPlan]) -> dict[int, Track]:
        if isinstance(source, PictureSource):
            return {}
        first = first_packets(source)
        tracks = {}
        for plan in plans:
            track = None if plan.action == DROP else open_track(self.container, source, plan, first)
            if track is not None:
                tracks[plan.index] = track
                if is_cover(track.stream):
                    self.covers.append(first[plan.index])
        return tracks

    def _copy_tags(self, source: Source, end: Fraction | None) -> None:
        if isinstance(source, PictureSource):
            return
        self.container.metadata.update(without_tags(source.container.metadata, CONTAINER_TAGS))
        kept = without_tags(source.video.metadata, VIDEO_TAGS)
        self.video.metadata.update({key: value for key, value in kept.items() if not key.startswith("_STATISTICS")})
        self.video.metadata.update(stereo_tags(source.info, self.container.format.name))
        if rate := time_code_rate(source):
            self.video.codec_context.framerate = rate
        self.video.disposition = source.video.disposition
        last = None if end is None else end + source.origin
        chapters = _cut_chapters(source.container.chapters(), self.offset + source.origin, last)
        if chapters:
            self.container.set_chapters(chapters)

    def take_others(self, packets: Iterable[av.Packet]) -> None:
        """Interleave these packets, in their order, with the video packets from now on."""
        self.others = iter(packets)
        self.next = next(self.others, None)

    def mux_video(self, packets: Iterable[av.Packet]) -> None:
        """Add encoded video, and before each packet the other streams' packets up to its time."""
        for packet in packets:
            packet.stream = self.video
            if self.counted:
                packet.pts = packet.dts = self.frames
                packet.time_base = self.video.time_base or Fraction(1)
                self.frames += 1
            due = packet.dts if packet.dts is not None else packet.pts
            if due is not None and packet.time_base is not None:
                self._copy_until(due * packet.time_base + self.offset)
            self.container.mux(packet)

    def _copy_until(self, seconds: Fraction | None) -> None:
        while self.next is not None:
            time = packet_seconds(self.next)
            if seconds is not None and time is not None and time > seconds:
                return
            self.copy(self.next)
            self.next = next(self.others, None)

    def copy(self, packet: av.Packet) -> None:
        """Add a packet of one of the input's other streams, unless the stream is dropped or the packet hidden."""
        is_empty = not packet.size and packet.stream.type == "audio"  # says nothing, and would end a decoder
        if packet.stream.index not in self.tracks or is_empty:
            return
        if packet.is_discard and not self._keeps_hidden(packet):
            return
        if not packet.is_discard and packet.dts is not None:
            self.shown_dts[packet.stream.index] = packet.dts
        track = self.tracks[packet.stream.index]
        try:
            made = track.packets(packet, self.offset)
        except DAMAGED_PACKET:
            self.misplaced += 1
            return
        self._mux(track, made)

    def _keeps_hidden(self, packet: av.Packet) -> bool:
        """Return whether a packet that the input's edit list hides stays.

        MP4 hides what comes before time zero again. Elsewhere only the encoder's priming stays, since the decoder needs
        it: the hidden packets of a stream that begins just before zero. Hidden packets further on repeat times.
        """
        seconds, index = packet_seconds(packet), packet.stream.index
        if index in self.shown_dts:
            return packet.dts == self.shown_dts[index]  # FFmpeg also hides what repeats a time in a fragmented MP4
        if seconds is None or seconds >= self.offset:
            return False
        begin = self.hidden_from.setdefault(index, seconds)
        return self.container.format.name in MP4_LIKE or self.offset - begin <= PRIMING_SECONDS

    def _mux(self, track: Track, packets: list[av.Packet]) -> None:
        # Two subtitles may begin at the same time; audio packets may only after Matroska rounds to milliseconds.
        equal = track.stream.type in ("subtitle", "data") or self.container.format.name in MATROSKA_LIKE
        for packet in packets:
            if packet.dts is not None and not self._advance(packet, track.stream, equal):
                self.misplaced += 1  # a jump back, as in joined files: no container takes it
                continue
            try:
                self.container.mux(packet)
            except DAMAGED_PACKET:
                self.misplaced += 1

    def _advance(self, packet: av.Packet, stream: Stream, equal: bool) -> bool:
        """Move a packet just after its predecessor if its time is not later; return False for a jump back.

        equal: whether the container takes equal times.
        """
        base, taken = packet.time_base or Fraction(1), stream.time_base or Fraction(0)
        step = 0 if equal else max(math.ceil(taken / base), 1)  # at least one unit of the output's clock
        assert packet.dts is not None
        late = self.last_dts.get(stream.index, packet.dts - step) + step - packet.dts
        if late * base > NUDGED_SECONDS:
            return False
        if late > 0:
            packet.dts += late
            packet.pts = packet.dts if packet.pts is None else max(packet.pts, packet.dts)
        self.last_dts[stream.index] = packet.dts
        return True

    def close(self) -> None:
        """Add the rest of the other streams, and finish the file."""
        self._copy_until(None)
        for track in self.tracks.values():
            self._mux(track, track.rest())
        self.abort()

    def warn_of_misplaced(self, warn: Warn) -> None:
        """Warn of packets that the container did not take; call this after close."""
        if self.misplaced:
            warn("W_STREAM_DAMAGED", f"{self.misplaced} packets of copied streams went back in time and were left out")

    def abort(self) -> None:
        """Close the unfinished file."""
        try:
            self.container.close()
        finally:
            if isinstance(self.target, Y4mFile):
                self.target.close()


def other_packets(source: VideoSource, begin: Fraction | None, end: Fraction | None) -> Iterator[av.Packet]:
    """Read a source's file again and yield the packets of all streams but its video, in the order of the file.

    begin, end: seconds on the source's clock, None for no bound; yield the packets that begin in between.
    TimestampRepair shifts their times to this clock, as in VideoSource.
    """
    with open_container(source.path) as container:
        if begin is not None and source.seekable:
            container.seek(int((begin + source.origin) * av.time_base))
        repair = TimestampRepair(source.origin)
        for packet in demux(container):
            if packet is None or packet.dts is None:
                continue
            repair.shift(packet)
            if packet.stream.index == source.video.index:
                continue
            seconds = packet_seconds(packet)
            if seconds is not None and end is not None and seconds > end + SECONDS_BEYOND:
                return
            if is_within(seconds, begin, end):
                yield packet


def _cut_chapters(chapters: list[Any], offset: Fraction, end: Fraction | None) -> list[Any]:
    """Return the chapters of a part, in its own time. offset, end: seconds on the container's clock."""
    cut = []
    for chapter in chapters:
        base = Fraction(chapter["time_base"])
        shift = round(offset / base)
        last = chapter["end"] if end is None else min(chapter["end"], round(end / base))
        if last > max(chapter["start"], shift):  # it begins within the part
            cut.append({**chapter, "start": max(chapter["start"] - shift, 0), "end": last - shift})
    return cut
