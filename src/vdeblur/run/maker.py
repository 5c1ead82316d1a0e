"""Restore and encode the segments of one file that are not finished yet, one after the other."""

import contextlib
import dataclasses
import queue
import shutil
import sys
import time
from contextlib import closing
from fractions import Fraction
from typing import Any

from vdeblur import threads
from vdeblur.errors import InputError, UsageError
from vdeblur.output.pictures import PictureEncoding
from vdeblur.restore import only_blurred, streams
from vdeblur.restore.only_blurred import OnlyBlurred
from vdeblur.restore.plan import plan_tiles
from vdeblur.restore.restorer import Restorer
from vdeblur.restore.tiles import TilePlan
from vdeblur.run import assemble, first_pass, parts, segments, trust
from vdeblur.run.context import QUEUE_FRAMES, Context, GracefulStop
from vdeblur.run.loading import Loaded
from vdeblur.run.parts import Encoding
from vdeblur.run.reading import SegmentReader
from vdeblur.run.segment_record import SegmentRecord
from vdeblur.run.spool import Spool
from vdeblur.run.state_folder import OTHERS
from vdeblur.run.store import Store, tail_of
from vdeblur.source.info import SourceInfo
from vdeblur.source.video import Source, VideoSource

# Bits that a pixel may need: five clips took 0.18 to 0.76 with x264 at CRF 16, 2.3 to 4.6 with FFV1 in 4:2:0.
USUAL_BITS, FFV1_BITS, PNG_BITS = 0.4, 4.0, 12.0


class SegmentMaker:
    """Restore and encode the missing segments of one file, in order.

    tiles: the plan of the tiles; if another process has planned since, restore_missing takes over its plan. count:
    number of segments, None if unknown. missing: finds the segments that are left to restore.
    """

    def __init__(self, context: Context, source: Source, store: Store, encoding: Encoding, loaded: Loaded) -> None:
        self.context, self.source, self.store, self.encoding, self.loaded = context, source, store, encoding, loaded
        division = segments.Division(source.first_seconds, context.settings.segment)
        self.count = division.count(source.wanted_seconds)
        self.missing = MissingSegments(store, self._share())
        self.stop = GracefulStop(context.stop, division.length, source.info.rate)
        self.reader = SegmentReader(context, source, division, self._frames_around(), self.stop)
        self.tiles = self._plan_tiles()
        self.only_blurred: OnlyBlurred | None = None
        self.part: parts.SegmentPart | None = None
        self.is_tried = False  # whether the output's container has been tried with a segment
        self.finished_segments: queue.SimpleQueue[dict[str, object]] = queue.SimpleQueue()

    @property
    def restored_frames(self) -> int:
        """The number of frames that this run has restored."""
        return self.stop.restored_frames

    def _frames_around(self) -> tuple[int, int]:
        """Return how many frames are read before and after a segment."""
        before, after = streams.frames_around(self.loaded.network)
        if self.context.settings.only_blurred:
            return max(before, only_blurred.AROUND), max(after, only_blurred.AROUND)
        return before, after

    def _plan_tiles(self) -> TilePlan:
        """Plan the tiles, the same as an earlier run or another share: free memory may differ, the result must not."""
        settings, store, info, loaded = self.context.settings, self.store, self.source.info, self.loaded
        if settings.tile == "auto" and "tile" in store.plan:
            settings = dataclasses.replace(settings, tile=store.plan["tile"])
        window = store.plan.get("window")
        return plan_tiles(settings, *self.context.restored_size(info), loaded.network, loaded.device, window)

    def _share(self) -> range | None:
        """Return the segments of this share; None: all.

        Raises: InputError if the length of the input is unknown, UsageError if the output cannot be shared.
        """
        settings = self.context.settings
        if settings.share is None:
            return None
        number, shares = settings.share
        if self.count is None:
            raise InputError(
                f"{self.source.path}: its length is unknown, so it cannot be divided into shares", "convert it to mkv"
            )
        if settings.cut.frames is not None or isinstance(self.encoding, PictureEncoding):
            raise UsageError("--share works neither with --frames nor with pictures", "use -t, and write a video")
        first, beyond = (self.count * place // shares for place in (number - 1, number))
        if number == shares:
            beyond = sys.maxsize  # count is an estimate: the last share takes the rest
        return range(first, beyond)

    def restore_missing(self) -> None:
        """Restore and encode the missing segments.

        Raises: VdeblurError of any kind; finished segments are kept.
        """
        context, is_shared = self.context, self.context.settings.share is not None
        if not is_shared:
            warn_of_disk_space(context, self.source.info, self.encoding)
        plan: dict[str, Any] = {"tile": self.tiles.name, "window": self.tiles.window, "model": self.loaded.model}
        if context.settings.only_blurred:
            plan["scenes"] = self._scenes()
            self.stop.begun = time.monotonic()  # its speed is that of restoring
        self.store.open(plan, shared=is_shared)
        if self.store.plan != plan:  # another process has started since this one planned
            self.tiles = self._plan_tiles()
        if context.settings.only_blurred:
            scenes = only_blurred.scenes_from_json(self.store.plan.get("scenes"))
            detects, watch = context.settings.scene_detect, context.profile.main
            self.only_blurred = OnlyBlurred(scenes, self.loaded.device, detects, watch, context.area)
        if self.source.is_pipe:
            self.reader.spool = Spool(self.store.folder / OTHERS)
        loaded, watch = self.loaded, context.profile.main
        restorer = Restorer(
            loaded.network,
            self.tiles,
            loaded.device,
            context.settings,
            self.stop,
            context.warn,
            watch,
            context.changes,
            context.area,
        )
        worker = context.profile.worker(QUEUE_FRAMES)
        try:
            if not is_shared:
                self._check_records()
            self._restore_segments(restorer, worker)
            worker.finish()
            self._notify_finished()
        except BaseException:
            worker.drain()
            self._notify_finished()
            if self.part is not None:
                self.part.abort()
            raise
        finally:
            self.reader.close()

    def _scenes(self) -> list[list[float]] | None:
        """Return the scenes that an earlier run has found, or find them in a first pass."""
        plan = self.store.plan
        if "scenes" not in plan and self.context.settings.share is not None:
            plan = Store(self.store.output, self.store.fingerprint).plan  # another share may have stored it meanwhile
        if "scenes" in plan:
            scenes: list[list[float]] | None = plan["scenes"]
            return scenes
        found = first_pass.find_scenes(self.context, self.source, self.loaded.device, self.stop)
        return only_blurred.scenes_as_json(found)

    def _check_records(self) -> None:
        """Remove the records of earlier runs that do not fit the source; their segments are restored once more.

        The records lie beside the output, where others can write. If they were believed, half a film could be complete.
        So frames are counted, and a video's segments of another number are decoded again, as is the one that is said to
        be the last.
        """
        is_video = isinstance(self.source, VideoSource)
        for index in sorted(trust.doubtful_segments(self.store.records.values(), self.source, self.reader.division)):
            if is_video and self._is_as_decoded(self.store.records[index]):
                continue
            self.store.drop(index)
            message = f"the record of segment {index} does not fit the input; restoring it once more"
            self.context.warn("W_RESUME", message)

    def _is_as_decoded(self, record: SegmentRecord) -> bool:
        """Return whether decoding a segment's frames gives what its record says."""
        frames_before = sum(each.frames for each in self.store.records.values() if each.index < record.index)
        self.reader.tail = record.before
        try:
            divider = self.reader.open_at(record.index, frames_before)
        except InputError:  # other frames come before it
            return False
        found = None if divider is None else divider.segment()
        for _ in () if found is None else found.frames:
            self.stop.check()
        return found is not None and (found.index, found.own_frames, found.last, found.tail) == (
            record.index, record.frames, record.last, record.tail,
        )  # fmt: skip

    def _restore_segments(self, restorer: Restorer, worker: threads.Worker) -> None:
        missing = self.missing
        index = missing.go_to_first()
        self.reader.tail = missing.tail
        for code, message in missing.warnings:
            self.context.warn(code, message)
        divider = None if index is None else self.reader.open_at(index, missing.frames_before)
        while divider is not None and index is not None:
            if missing.share is not None and divider.upcoming() not in missing.share:
                break  # the rest of this share has no frames
            segment = divider.segment()
            with self.stop.finishing(segment):
                self._restore_segment(segment, restorer, worker)
            restorer.check_stop()
            index = missing.go_past(segment, divider.marks())
            if index is None or not divider.skip_to(index):
                break

    def _restore_segment(self, segment: segments.Segment, restorer: Restorer, worker: threads.Worker) -> None:
        """Restore and encode one segment."""
        first = self.missing.frames_before
        self.part = part = parts.new_part(self.store, segment.index, self.encoding, first)
        damaged = self.source.damaged
        count = 0
        frames = segment.frames if self.only_blurred is None else self.only_blurred.with_strengths(segment.frames)
        with closing(restorer.restore(frames)) as restored:
            for place, frame in enumerate(restored):
                if segment.closed and place >= segment.lead + segment.own_frames:
                    break
                if place < segment.lead:
                    continue
                worker.do(part.write, frame)
                segment.strengths.add(frame.strength)
                self.context.note_strength(frame.pts, frame.strength)
                count += 1
                self.stop.restored_frames += 1
                self.context.notify_progress(self.source.info, first + count, self.restored_frames)
                self._notify_finished()
        for _ in segment.frames:  # the network may not have asked for the frames that follow
            pass
        assert count == segment.own_frames, "every frame comes out once"
        worker.do(part.finish, segment, self.source.damaged - damaged, list(self.context.warnings))
        self.part = None
        if not self.is_tried and not segment.last:  # the last one is joined with the others at once
            worker.do(assemble.try_segment, self.store, segment.index, self.encoding, self.source)
            self.is_tried = True
        self.missing.frames_before += count
        facts = {"input": str(self.context.source_path), "index": segment.index}
        worker.do(self.finished_segments.put, {**facts, "first": first, "last": self.missing.frames_before - 1})

    def _notify_finished(self) -> None:
        """Report the segments that are on the disk now."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.context.notify("segment", self.finished_segments.get_nowait())

    def last_frame_end(self) -> Fraction | None:
        """Return when the last frame ends, on the source's clock, if a number of frames was asked for; else None."""
        pictures = isinstance(self.encoding, PictureEncoding)
        if self.context.settings.cut.frames is None or self.source.is_pipe or pictures:
            return None
        last = max(pts for record in self.store.records.values() for _, pts, *_ in record.packets)
        return last * self.source.info.time_base + 1 / self.source.info.rate


class MissingSegments:
    """Goes from one segment that no run has finished to the next.

    share: the segments to look at; None: all. frames_before: the number of frames before the segment gone to. tail: the
    marks with which the segments before the first missing one end. warnings: code and message of the warnings that
    these caused.
    """

    def __init__(self, store: Store, share: range | None) -> None:
        self.store, self.share = store, share
        self.frames_before = 0
        self.tail: list[segments.Mark] = []
        self.warnings: list[tuple[str, str]] = []

    def go_to_first(self) -> int | None:
        """Go to the first missing segment; return its index, None if none is missing."""
        if self.share is not None:
            return next((index for index in self.share if index not in self.store.records), None)
        chain = self.store.chain()
        self.frames_before = sum(record.frames for record in chain)
        self.tail = tail_of(chain)
        self.warnings = list(dict.fromkeys(warning for record in chain for warning in record.warnings))
        if not chain:
            return 0
        return None if chain[-1].last else chain[-1].index + 1

    def go_past(self, segment: segments.Segment, marks: list[segments.Mark]) -> int | None:
        """Go to the next missing segment after this one; return its index, None if none is missing.

        marks: with which this segment ends. Finished segments in between are skipped, but counted in frames_before.
        """
        index, last = segment.index, segment.last
        while not last and (record := self.store.after(index)) and record.follows(marks):
            self.frames_before += record.frames
            marks = (marks + record.tail)[-segments.CHECKED :]
            index, last = record.index, record.last
        return None if last or (self.share is not None and index + 1 not in self.share) else index + 1


def warn_of_disk_space(context: Context, info: SourceInfo, encoding: Encoding) -> None:
    """Warn if the disk is likely to become full: for a while it holds both the segments and the output."""
    if info.frames_estimate is None:
        return
    if isinstance(encoding, PictureEncoding):
        bits = PNG_BITS
    else:
        bits = 2 * (FFV1_BITS if encoding.coding.lossless else USUAL_BITS)
    needed = bits * info.width * info.height * info.frames_estimate / 8e9
    free = shutil.disk_usage(context.output.absolute().parent).free / 1e9
    if free < needed:
        message = f"{free:.2g} GB are free beside {context.output}, and about {needed:.2g} GB may be needed"
        context.warn("W_DISK_SPACE", message)
