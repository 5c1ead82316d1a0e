"""The two kinds of output: a file, made of segments that survive an interruption, or standard output, frame by frame.

A sink drives the work: it decodes, restores and writes. A file restores only the segments that are missing, a pipe all
frames.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import av.error

from vdeblur import files
from vdeblur.errors import InputError, InterruptedRunError, OutputError, UsageError
from vdeblur.frame import Frame
from vdeblur.output.encoding import VideoEncoding
from vdeblur.output.muxer import other_packets
from vdeblur.output.pictures import PICTURE_ENCODERS, PictureEncoding
from vdeblur.restore.only_blurred import OnlyBlurred, StrengthSum
from vdeblur.restore.plan import plan_tiles
from vdeblur.restore.restorer import Restorer
from vdeblur.restore.tiles import TilePlan
from vdeblur.run import assemble, first_pass
from vdeblur.run.context import QUEUE_FRAMES, Context
from vdeblur.run.loading import Loaded
from vdeblur.run.maker import SegmentMaker
from vdeblur.run.parts import Encoding
from vdeblur.run.reading import read_ahead
from vdeblur.run.store import Store, fingerprint
from vdeblur.settings import Settings
from vdeblur.source import demux
from vdeblur.source.pictures import PictureSource
from vdeblur.source.video import Source


@dataclass(frozen=True)
class Workload:
    """The work of a run. segments: their number, None if unknown. frames_done: finished by earlier runs."""

    tiles: TilePlan
    segments: int | None = 1
    frames_done: int = 0


class Sink(Protocol):
    """Restores a video to one kind of output.

    A run calls these functions once each, in this order; a dry run leaves out restore_and_write.
    """

    def choose_encoding(self, source: Source) -> Encoding:
        """Check the output, and choose how frames are encoded.

        Raises: OutputError, UsageError.
        """

    def prepare(self, source: Source, loaded: Loaded) -> Workload:
        """Plan the work; write nothing yet."""

    def restore_and_write(self) -> int:
        """Decode, restore and write all frames that are not finished yet; return the number of frames in the output."""

    def close(self) -> None:
        """Release everything; called after errors too."""


class PipeSink:
    """Restore all frames, and write each to standard output at once.

    Raises: UsageError where the settings do not fit a pipe.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        if context.settings.share is not None or context.settings.pictures:
            raise UsageError("a pipe is written by one process, as a video", "leave out --share and --pictures")

    def choose_encoding(self, source: Source) -> VideoEncoding:
        """Choose y4m, or the format asked for; see Sink."""
        settings = self.context.settings
        options = settings.encoding
        if options.format == "nut" and options.codec is None:
            options = dataclasses.replace(options, codec="rawvideo")
        suffix = ".y4m" if options.format is None else ""
        self.encoding = VideoEncoding(
            source.info,
            suffix,
            options,
            self.context.warn,
            pictures=source.pictures,
            deterministic=settings.deterministic,
            is_pipe=True,
        )
        return self.encoding

    def prepare(self, source: Source, loaded: Loaded) -> Workload:
        """Plan the tiles; see Sink."""
        self.source, self.loaded = source, loaded
        size = self.context.restored_size(source.info)
        self.tiles = plan_tiles(self.context.settings, *size, loaded.network, loaded.device)
        return Workload(self.tiles)

    def restore_and_write(self) -> int:
        """Restore and write all frames; see Sink."""
        context, encoding, source, loaded = self.context, self.encoding, self.source, self.loaded
        encoder = encoding.open()
        offset = source.cut_begin or Fraction(0)
        muxer = encoding.open_muxer("pipe:1", source, encoder)
        watch = context.profile.main
        restorer = Restorer(
            loaded.network,
            self.tiles,
            loaded.device,
            context.settings,
            context.stop,
            context.warn,
            watch,
            context.changes,
            context.area,
        )
        worker = context.profile.worker(QUEUE_FRAMES)
        blurred: OnlyBlurred | None = None
        if context.settings.only_blurred:
            scenes = first_pass.find_scenes(context, source, loaded.device, context.stop)
            blurred = OnlyBlurred(scenes, loaded.device, context.settings.scene_detect, watch, context.area)
            context.strengths = StrengthSum()
        items = read_ahead(context, source.items(), source.info)

        def frames() -> Iterator[Frame]:
            for item in watch.each(items, "wait_decode"):
                if isinstance(item, av.Packet):
                    worker.do(muxer.copy, item)  # written before the frames that the network still holds
                else:
                    yield item

        def encode(frame: Frame | None) -> None:
            muxer.mux_video(encoder.encode(None if frame is None else encoding.prepare(frame, offset)))

        count = 0
        guarded: list[Fraction] = []
        try:
            for frame in restorer.restore(frames() if blurred is None else blurred.with_strengths(frames())):
                worker.do(encode, frame)
                if context.strengths is not None:
                    context.strengths.add(frame.strength)
                count += 1
                guarded += [frame.seconds] if frame.is_guarded else []
                context.notify_progress(source.info, count, count)
            restorer.check_stop()
            worker.do(encode, None)
            worker.do(muxer.close)
            worker.finish()
        except BaseException:
            worker.drain()
            with contextlib.suppress(av.error.FFmpegError, OSError):
                muxer.abort()
            raise
        finally:
            items.close()
            encoder.close()
        warn_of_damage(context, source.damaged, count)
        context.warn_of_guarded(guarded)
        muxer.warn_of_misplaced(context.warn)
        return count

    def close(self) -> None:
        """Do nothing: restore_and_write has released everything."""


class FileSink:
    """Restore the missing segments of a file or of a folder of pictures, and join all segments to the output."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.store: Store | None = None
        self.keep_for_resume = False  # whether close leaves the segments to the next run

    def choose_encoding(self, source: Source) -> Encoding:
        """Choose pictures for a folder or a name without suffix, a picture or a video by the suffix; see Sink."""
        context, settings = self.context, self.context.settings
        files.check_output(
            context.output, context.source_path, settings.encoding.overwrite, makes_folder=context.makes_folder
        )
        self.encoding: Encoding
        if writes_pictures(context.output, settings):
            self.encoding = PictureEncoding(source.info, context.warn, names=settings.picture_names)
        elif context.output.suffix.lower() in PICTURE_ENCODERS:
            self.encoding = self._one_picture(source)
        else:
            self.encoding = VideoEncoding(
                source.info,
                context.output.suffix,
                settings.encoding,
                context.warn,
                pictures=source.pictures,
                deterministic=settings.deterministic,
            )
        if isinstance(self.encoding, PictureEncoding) and isinstance(source, PictureSource):
            self.encoding.check_names([file.name for file in source.files])
        return self.encoding

    def _one_picture(self, source: Source) -> PictureEncoding:
        """Choose a picture for the output.

        Raises: OutputError where the input has more than one.
        """
        output = self.context.output
        if not isinstance(source, PictureSource) or len(source.files) > 1:
            folder = f"{output.with_suffix('')}/"
            hint = f"a folder: {folder}" if isinstance(source, PictureSource) else f"a pattern: {folder}%06d.png"
            raise OutputError(f"{output} is one picture, and {source.path} has more than one frame", f"name {hint}")
        return PictureEncoding(source.info, self.context.warn, output.suffix)

    def prepare(self, source: Source, loaded: Loaded) -> Workload:
        """Look for finished segments, and plan the tiles as the earlier run did; see Sink."""
        context = self.context
        self.source = source
        self.store = store = open_store(context, loaded, source)
        self.keep_for_resume = context.settings.resume and not source.is_pipe
        self.maker = SegmentMaker(context, source, store, self.encoding, loaded)
        return Workload(self.maker.tiles, self.maker.count, sum(record.frames for record in store.chain()))

    def restore_and_write(self) -> int:
        """Restore the missing segments; then, unless this is one share of several, join all to the output; see Sink."""
        assert self.store is not None, "it is prepared"
        try:
            self.maker.restore_missing()
            return self.maker.restored_frames if self.context.settings.share is not None else self._join(self.store)
        except InputError as error:
            # The next run would fail at the same place, unless the cause is the disk or network that the input is on.
            self.keep_for_resume = self.keep_for_resume and isinstance(error.__cause__, OSError)
            raise
        except InterruptedRunError as error:
            raise self._interrupted(error, self.store) from error

    def _join(self, store: Store) -> int:
        context = self.context
        frames = sum(record.frames for record in store.records.values())
        damaged = max(sum(record.damaged for record in store.records.values()), self.source.damaged)
        warn_of_damage(context, damaged, frames)
        base = self.source.info.time_base
        context.warn_of_guarded([pts * base for record in store.records.values() for pts in record.guarded])
        overwrite = context.settings.encoding.overwrite
        with context.profile.main.stage("assemble"):
            assemble.assemble(store, self.encoding, self.source, self._others(), context.warn, overwrite=overwrite)
        self.keep_for_resume = False
        if context.settings.only_blurred:
            records = store.records.values()
            restored, total = sum(each.restored for each in records), sum(each.strength for each in records)
            context.strengths = StrengthSum(frames, restored, total)
        return frames

    def _others(self) -> Iterable[av.Packet]:
        """Return the packets of the other streams: those of a pipe from the spool, else from the input once more."""
        spool = self.maker.reader.spool
        if spool is not None:
            return spool.packets()
        if isinstance(self.source, PictureSource):
            return ()
        ends = [end for end in (self.source.cut_end, self.maker.last_frame_end()) if end is not None]
        return other_packets(self.source, self.source.cut_begin, min(ends, default=None))

    def _interrupted(self, error: InterruptedRunError, store: Store) -> InterruptedRunError:
        """Add to an interruption how much is finished and kept."""
        frames = sum(record.frames for record in store.records.values())
        if not frames or not self.context.settings.resume or self.context.source_path == demux.PIPE:
            return error
        kept = InterruptedRunError(error.status)
        kept.message = f"stopped; {frames} frames of {self.context.output.name} are finished and kept"
        kept.hint = "run the same command again to go on from there"
        return kept

    def close(self) -> None:
        """Release the folder of segments, and remove it unless the next run needs them."""
        if self.store is not None:
            self.store.close(keep=self.keep_for_resume)


def open_store(context: Context, loaded: Loaded, source: Source) -> Store:
    """Open the segments that an earlier run has finished, and warn if they cannot be used.

    Raises: OutputError in that case under --strict.
    """
    settings = context.settings
    store = Store(context.output, fingerprint(settings, loaded.model, loaded.digest, source))
    store.chosen = context.chosen
    if not settings.resume:
        store.forget("--no-resume was given")
    elif store.reason and settings.strict:
        raise OutputError(
            f"the segments that an earlier run finished of {context.output} cannot be used: {store.reason}",
            "use the same settings, or --no-resume to start over",
        )
    elif store.reason:
        context.warn(
            "W_RESUME", f"the segments that an earlier run finished cannot be used: {store.reason}; starting over"
        )
    return store


def warn_of_damage(context: Context, damaged: int, frames: int) -> None:
    """Warn if places of the input were damaged. frames: in the output."""
    if damaged:
        message = f"{context.source_path} is damaged in {damaged} places; {frames} frames came out"
        context.warn("W_INPUT_DAMAGED", message)


def writes_pictures(output: Path, settings: Settings) -> bool:
    """Check whether the output is a folder of pictures."""
    return settings.pictures or output.is_dir() or not output.suffix
