"""The segments of one file that are not there yet, restored and encoded one after the other."""

import contextlib
import dataclasses
import queue
import shutil
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from fractions import Fraction
from typing import TYPE_CHECKING

import av

from vdeblur import threads
from vdeblur.errors import ExitStatus, InputError, InterruptedRunError, UsageError
from vdeblur.frame import Frame
from vdeblur.output.pictures import PictureEncoding
from vdeblur.restore import streams
from vdeblur.restore.plan import plan_tiles
from vdeblur.restore.restorer import Restorer
from vdeblur.run import parts, segments
from vdeblur.run.context import QUEUE_FRAMES, Encoding, Loaded
from vdeblur.run.store import Store, tail_of
from vdeblur.settings import Settings
from vdeblur.source import deinterlace
from vdeblur.source.video import Source

if TYPE_CHECKING:
    from vdeblur.run.pipeline import FileRun

# What a pixel may take, in bits: five clips took 0.18 to 0.76 with x264 at CRF 16, 2.3 to 4.6 with FFV1 in 4:2:0.
USUAL_BITS, FFV1_BITS, PNG_BITS = 0.4, 4.0, 12.0
GRACE_SECONDS = 10  # that a signal waits for the segment in work, as long as some systems wait before they kill
SEEK_BACK = (2, 10, 60)  # seconds before a segment at which its frames are looked for, one after the other


class SegmentMaker:
    """Make the segments of one file that are not there yet, in order."""

    def __init__(self, file: "FileRun", source: Source, store: Store, encoding: Encoding, loaded: Loaded) -> None:
        self.file, self.source, self.store, self.encoding = file, source, store, encoding
        self.loaded, self.profile = loaded, file.profile
        settings = file.settings
        self._plan()
        self.before, self.after = streams.context(loaded.network)
        self.division = segments.Division(source.first_seconds, settings.segment)
        self.count = self.division.count(source.wanted_seconds)
        self.share = self._share(settings)
        self.spool: parts.Spool | None = None
        self.items: Generator[Frame] | None = None
        self.part: parts.SegmentPart | None = None
        self.finished: queue.SimpleQueue[dict[str, object]] = queue.SimpleQueue()
        self.tail: list[segments.Mark] = []  # of what was finished when this run began
        self.done = 0  # frames before the segment that is being made
        self.made = 0  # frames made here
        self.segment: segments.Segment | None = None  # that is being made
        self.begun = time.monotonic()
        self.deadline: float | None = None  # until when a signal waits for the segment

    def _plan(self) -> None:
        """Plan as an earlier run, or another share of this one, did: free memory may be another, the result must not.

        The tiles may be any where none has planned yet.
        """
        settings, store, info, loaded = self.file.settings, self.store, self.source.info, self.loaded
        if settings.tile == "auto" and "tile" in store.plan:
            settings = dataclasses.replace(settings, tile=store.plan["tile"])
        window = store.plan.get("window")
        self.plan = plan_tiles(settings, info.height, info.width, loaded.network, loaded.device, window)
        self.restorer = Restorer(
            loaded.network, self.plan, loaded.device, settings, self._stop, self.file.warn, self.profile.main
        )

    def _share(self, settings: Settings) -> range | None:
        """Give the segments that are ours where the work is shared out; None: all."""
        if settings.share is None:
            return None
        number, shares = settings.share
        if self.count is None:
            raise InputError(
                f"{self.source.path}: its length is not known, so it cannot be shared out", "convert it to mkv"
            )
        if settings.cut.frames is not None or isinstance(self.encoding, PictureEncoding):
            raise UsageError("pictures, and a number of --frames, cannot be shared out", "use -t, and write a video")
        first, beyond = (self.count * place // shares for place in (number - 1, number))
        return range(
            first, sys.maxsize if number == shares else beyond
        )  # lengths are estimates: the last takes the rest

    def make(self) -> None:
        """Make them.

        Raises: whatever goes wrong; what is finished by then is kept.
        """
        if self.share is None:
            self._check_room()
        plan = {"tile": self.plan.name, "window": self.plan.window, "model": self.loaded.model}
        self.store.open(plan, shared=self.share is not None)
        if self.store.plan != plan:  # another process has begun since this one planned
            self._plan()
        if self.source.is_pipe:
            self.spool = parts.Spool(self.store.folder / "others")
        worker = self.profile.worker(QUEUE_FRAMES)
        try:
            index = self._first_missing()
            divider = None if index is None else self._open_at(index)
            while divider is not None and index is not None:
                if self.share is not None and divider.upcoming() not in self.share:
                    break  # there are no frames in what is left of ours
                self.segment = segment = divider.segment()
                self._make(segment, worker)
                self.segment = None
                self.restorer.check_stop()
                index = self._next_missing(segment, divider.marks())
                if index is None or not divider.skip_to(index):
                    break
            worker.finish()
            self._tell_finished()
        except BaseException:
            worker.drain()
            self._tell_finished()
            if self.part is not None:
                self.part.abort()
            raise
        finally:
            if self.items is not None:
                self.items.close()

    def _stop(self) -> ExitStatus | None:
        """Tell whether to stop: a signal waits until the segment is finished, if that is soon."""
        status = self.file.stop()
        if status is None or self.segment is None or self.division.length is None:
            return status
        now = time.monotonic()
        if self.deadline is None:
            self.deadline = now + GRACE_SECONDS
            left = self.division.length * self.source.info.rate - self.segment.own
            rate = self.made / max(now - self.begun, 1e-6)
            if left > GRACE_SECONDS * rate:
                self.deadline = now
        return status if now >= self.deadline else None

    def _watchful(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Pass frames on, and look for signals where no network does: while frames are passed over."""
        for frame in frames:
            if self.segment is None and (status := self._stop()) is not None:
                raise InterruptedRunError(status)
            yield frame

    def _check_room(self) -> None:
        """Warn where the disk is likely to become full: the parts and the output stand there together for a while."""
        info, encoding = self.source.info, self.encoding
        frames = info.frames_estimate
        if frames is None:
            return
        if isinstance(encoding, PictureEncoding):
            bits = PNG_BITS
        else:
            bits = 2 * (FFV1_BITS if encoding.coding.lossless else USUAL_BITS)
        wanted = bits * info.width * info.height * frames / 8e9
        free = shutil.disk_usage(self.store.folder.parent).free / 1e9
        if free < wanted:
            message = f"{free:.2g} GB are free beside {self.file.output}, and about {wanted:.2g} GB may be needed"
            self.file.warn("W_DISK_SPACE", message)

    def _first_missing(self) -> int | None:
        if self.share is not None:
            return next((index for index in self.share if index not in self.store.records), None)
        chain = self.store.chain()
        self.done = sum(record.frames for record in chain)
        self.tail = tail_of(chain)
        for code, message in dict.fromkeys(warning for record in chain for warning in record.warnings):
            self.file.warn(code, message)
        if not chain:
            return 0
        return None if chain[-1].last else chain[-1].index + 1

    def _next_missing(self, segment: segments.Segment, marks: list[segments.Mark]) -> int | None:
        """Give what to make after a segment that ends with these marks; others may have made what follows."""
        index, last = segment.index, segment.last
        while not last and (record := self.store.after(index)) and record.follows(marks):
            self.done += record.frames
            marks = (marks + record.tail)[-segments.CHECKED :]
            index, last = record.index, record.last
        return None if last or (self.share is not None and index + 1 not in self.share) else index + 1

    def _open_at(self, index: int) -> segments.Divider | None:
        """Read the source so that this segment comes next; None where no frame is left.

        Not every file gives the same frames when it is read from the middle, so they are compared with what the segment
        before it has seen, and in doubt the file is read from its beginning.
        """
        begin = self.division.begin_of(index)
        for back in SEEK_BACK if index and self.source.seekable else ():
            if begin - back <= self.source.first_seconds:
                break
            divider = self._divider(index, begin - back)
            found = divider.skip_to(index)
            if found and len(divider.recent) == divider.recent.maxlen and self._vouched(divider):
                return divider
        divider = self._divider(index, None)
        if not divider.skip_to(index):
            return None
        if not self._vouched(divider):
            raise InputError(
                f"{self.source.path} gives other frames than it gave to the run that was interrupted",
                "run the same command again: it begins anew",
            )
        return divider

    def _vouched(self, divider: segments.Divider) -> bool:
        """Tell whether the last frames that were read are those with which the finished segments end, if there are."""
        return self.share is not None or divider.marks()[-len(self.tail) :] == self.tail

    def _divider(self, index: int, seek: Fraction | None) -> segments.Divider:
        if self.items is not None:
            self.items.close()
        frames = self._spooling() if self.spool is not None else self.source.frames(seek)
        limit = self.file.settings.cut.frames
        if seek is not None and limit is not None:
            frames = self._limited(frames, self.division.begin_of(index), limit - self.done)
        progressive = deinterlace.deinterlaced(frames, self.file.settings.encoding.deinterlace)
        self.items = threads.threaded(self.profile.decoding.each(progressive, "decode"), QUEUE_FRAMES)
        waited = self.profile.main.each(self.items, "wait_decode")
        return segments.Divider(self._watchful(waited), self.division, self.before, self.after)

    def _spooling(self) -> Iterator[Frame]:
        """Give a pipe's frames and keep its other packets."""
        assert self.spool is not None
        for item in self.source.items():
            if isinstance(item, av.Packet):
                self.spool.keep(item)
            else:
                yield item

    @staticmethod
    def _limited(frames: Iterator[Frame], begin: Fraction, limit: int) -> Iterator[Frame]:
        """End after so many frames from a time on."""
        for frame in frames:
            limit -= frame.seconds >= begin
            if limit < 0:
                return
            yield frame

    def _make(self, segment: segments.Segment, worker: threads.Worker) -> None:
        """Restore and encode one segment."""
        self.part = part = parts.new_part(self.store, segment.index, self.encoding, self.done)
        damaged = self.source.damaged
        count = 0
        with closing(self.restorer.restore(segment.frames)) as restored:
            for place, frame in enumerate(restored):
                if segment.closed and place >= segment.lead + segment.own:
                    break
                if place < segment.lead:
                    continue
                worker.do(part.write, frame)
                count += 1
                self.made += 1
                self.file.tell_progress(self.source.info, self.done + count, self.made)
                self._tell_finished()
        for _ in segment.frames:  # where the network did not ask for what follows
            pass
        assert count == segment.own, "every frame comes out once"
        worker.do(part.finish, segment, self.source.damaged - damaged, list(self.file.warnings))
        self.part = None
        first, self.done = self.done, self.done + count
        worker.do(
            self.finished.put,
            {"input": str(self.file.source_path), "index": segment.index, "first": first, "last": self.done - 1},
        )

    def _tell_finished(self) -> None:
        """Tell of the segments that have come to the disk."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.file.notify("segment", self.finished.get_nowait())

    def end(self) -> Fraction | None:
        """Give when the last frame is over, on the source's clock, where the part asked for is a number of frames."""
        pictures = isinstance(self.encoding, PictureEncoding)
        if self.file.settings.cut.frames is None or self.source.is_pipe or pictures:
            return None
        last = max(pts for record in self.store.records.values() for _, pts, *_ in record.packets)
        return last * self.source.info.time_base + 1 / self.source.info.rate
