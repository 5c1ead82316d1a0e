"""Decode the input ahead of the network, from its beginning or from a given segment on."""

from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import overload

import av

from vdeblur import threads
from vdeblur.errors import InputError
from vdeblur.frame import Frame
from vdeblur.run.context import QUEUE_FRAMES, Context, GracefulStop
from vdeblur.run.segments import Divider, Division, Mark
from vdeblur.run.spool import Spool
from vdeblur.source import deinterlace
from vdeblur.source.info import SourceInfo
from vdeblur.source.video import Source

SEEK_BACK = (2, 10, 60)  # seconds before a segment; decoding starts there, the shortest way back first


@overload
def read_ahead(context: Context, items: Iterator[Frame], info: SourceInfo) -> Generator[Frame]: ...
@overload
def read_ahead(
    context: Context, items: Iterator[Frame | av.Packet], info: SourceInfo
) -> Generator[Frame | av.Packet]: ...
def read_ahead(
    context: Context, items: Iterator[Frame] | Iterator[Frame | av.Packet], info: SourceInfo
) -> Generator[Frame] | Generator[Frame | av.Packet]:
    """Decode in a thread: yield frames, deinterlaced as the settings say, and the packets between them."""

    def warn() -> None:
        deinterlace.warn_of_interlaced_parts(info, context.warn)

    progressive = deinterlace.deinterlaced(items, context.settings.encoding.deinterlace, warn)
    return threads.threaded(context.profile.decoding.each(progressive, "decode"), QUEUE_FRAMES)


class SegmentReader:
    """Read the input from a given segment on.

    frames_around: how many frames the network sees before and after a segment. tail: the marks with which the segments
    end that were finished when this run began. spool: the other streams' packets where the input is a pipe.
    """

    def __init__(
        self,
        context: Context,
        source: Source,
        division: Division,
        frames_around: tuple[int, int],
        stop: GracefulStop,
    ) -> None:
        self.context, self.source, self.division, self.stop = context, source, division, stop
        self.frames_around = frames_around
        self.tail: list[Mark] = []
        self.spool: Spool | None = None
        self.items: Generator[Frame] | None = None

    def open_at(self, index: int, frames_before: int) -> Divider | None:
        """Read the source so that this segment comes next; return None if no frame is left.

        Not every file yields the same frames when read from the middle. So the last frames before the segment are
        compared with those that the run before this one has seen; if they differ, the file is read from its beginning.
        frames_before: the number of frames before the segment.

        Raises: InputError if even from the beginning the frames differ.
        """
        begin = self.division.begin_of(index)
        for back in SEEK_BACK if index and self.source.seekable else ():
            if begin - back <= self.source.first_seconds:
                break
            divider = self._divider(begin - back, begin, frames_before)
            found = divider.skip_to(index)
            if found and len(divider.recent) == divider.recent.maxlen and self._agrees(divider):
                return divider
        divider = self._divider(None, begin, frames_before)
        if not divider.skip_to(index):
            return None
        if not self._agrees(divider):
            raise InputError(
                f"{self.source.path} yields other frames than in the run that was interrupted",
                "run the same command again: it starts over",
            )
        return divider

    def close(self) -> None:
        """Stop decoding."""
        if self.items is not None:
            self.items.close()

    def _agrees(self, divider: Divider) -> bool:
        """Check that the last frames read are those with which the finished segments end, if there are any."""
        return self.context.settings.share is not None or divider.marks()[-len(self.tail) :] == self.tail

    def _divider(self, seek: Fraction | None, begin: Fraction, frames_before: int) -> Divider:
        self.close()
        frames = self._spooled(self.spool) if self.spool is not None else self.source.frames(seek)
        limit = self.context.settings.cut.frames
        if seek is not None and limit is not None:
            frames = self._limited(frames, begin, limit - frames_before)
        self.items = read_ahead(self.context, frames, self.source.info)
        waited = self.context.profile.main.each(self.items, "wait_decode")
        return Divider(self._watched(waited), self.division, *self.frames_around)

    def _watched(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Pass frames on; while they are skipped, and no network asks for signals, do so here."""
        for frame in frames:
            if self.stop.segment is None:
                self.stop.check()
            yield frame

    def _spooled(self, spool: Spool) -> Iterator[Frame]:
        """Yield a pipe's frames, and store its other packets."""
        for item in self.source.items():
            if isinstance(item, av.Packet):
                spool.keep(item)
            else:
                yield item

    @staticmethod
    def _limited(frames: Iterator[Frame], begin: Fraction, limit: int) -> Iterator[Frame]:
        """End after so many frames, counted from a time on."""
        for frame in frames:
            limit -= frame.seconds >= begin
            if limit < 0:
                return
            yield frame
