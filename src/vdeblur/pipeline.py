"""A blurry video in, a sharp one out: the stages joined. Read this file first.

    decode -> segments -> RGB on the device -> split at scene cuts -> tiles -> network stream -> blend
           -> difference onto the original planes -> encode -> assemble

Every arrow is an iterator of frames. Decoding and encoding run in threads of their own behind bounded queues, so the
device waits for neither of them and memory does not grow with the video's length. Each segment is finished as a file
beside the output; when all are there they are joined to the output, which appears whole or not at all.
"""

import contextlib
import dataclasses
import queue
import shutil
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch

from vdeblur import (
    __version__,
    choice,
    decode,
    deinterlace,
    device,
    encode,
    mux,
    parts,
    segments,
    streams,
    tiles,
    weights,
)
from vdeblur.download import Talk
from vdeblur.errors import (
    DamageError,
    DeviceError,
    ExitStatus,
    InputError,
    InterruptedRunError,
    OutputError,
    UsageError,
)
from vdeblur.frame import Frame
from vdeblur.networks.layers import Network
from vdeblur.plan import plan_tiles
from vdeblur.profile import Profile
from vdeblur.restore import Restorer, never
from vdeblur.settings import Settings

QUEUE_FRAMES = 6  # between the stages' threads
BEST = "best"  # the model that is chosen for the machine
DAMAGE = {"W_INPUT_DAMAGED", "W_INPUT_TRUNCATED", "W_TIMESTAMPS"}  # warnings that speak of a damaged input
# What a pixel may take, in bits: five clips took 0.18 to 0.76 with x264 at CRF 16, 2.3 to 4.6 with FFV1 in 4:2:0.
USUAL_BITS, FFV1_BITS, PNG_BITS = 0.4, 4.0, 12.0
SEEK_BACK = (2, 10, 60)  # seconds before a segment at which its frames are looked for, one after the other

Notify = Callable[[str, dict[str, object]], None]
Source = decode.VideoSource | decode.PictureSource
Encoding = encode.VideoEncoding | encode.PictureEncoding


@dataclass(frozen=True)
class Result:
    """What came of one file.

    frames: in the output. seconds: that this run took. warnings: their codes.
    """

    output: Path
    frames: int
    seconds: float
    warnings: tuple[str, ...]


def ignore(event: str, facts: dict[str, object]) -> None:
    """Take an event and do nothing with it."""


def run(
    source_path: Path,
    output: Path,
    settings: Settings,
    *,
    notify: Notify = ignore,
    ask: Callable[[str], bool] | None = None,
    stop: Callable[[], ExitStatus | None] = never,
) -> Result:
    """Restore one video file or folder of pictures.

    source_path, output: `-` is standard input and output. notify: takes the events probe, plan, progress, segment,
    warning, file_done and profile, and download, download_progress and download_done where weights are fetched, each
    with its facts. ask: puts to a person whether to fetch weights whose authors published no digest; None where there
    is nobody to ask. stop: asked before every frame; a status means that a signal came, and the run ends with
    InterruptedRunError.

    Raises: VdeblurError, one kind for each fault; the output's name then holds what it held before.
    """
    return FileRun(source_path, output, settings, notify, ask, stop).run()


class FileRun:
    """One file from opening it to its output, see `run`; the steps in the order in which they are taken."""

    def __init__(
        self,
        source_path: Path,
        output: Path,
        settings: Settings,
        notify: Notify = ignore,
        ask: Callable[[str], bool] | None = None,
        stop: Callable[[], ExitStatus | None] = never,
    ) -> None:
        self.source_path, self.output, self.settings = source_path, output, settings
        self.notify, self.stop = notify, stop
        self.talk = Talk(settings.offline, settings.yes, notify, ask, stop)
        self.begun = time.monotonic()
        self.profile = Profile(settings.profile)
        self.warnings: list[tuple[str, str]] = []

    def warn(self, code: str, message: str) -> None:
        """Take a warning; each is told once."""
        if (code, message) not in self.warnings:
            self.warnings.append((code, message))
            self.notify("warning", {"code": code, "message": message})

    def run(self) -> Result:
        """Do it all."""
        check_model(self.settings)
        if self.output == decode.PIPE and (self.settings.share is not None or self.settings.pictures):
            raise UsageError("a pipe is written by one process, as a video", "leave out --share")
        if self.settings.deterministic:
            device.make_deterministic()
        with self.profile.main.stage("start"):
            source = decode.open_source(self.source_path, self.settings.cut, self.warn)
        try:
            self._probe(source.info)
            frames = self._to_pipe(source) if self.output == decode.PIPE else self._to_file(source)
        except torch.OutOfMemoryError as error:
            raise DeviceError("the device is out of memory", "use --tile 512, or --device cpu") from error
        finally:
            source.close()
        seconds = time.monotonic() - self.begun
        codes = tuple(code for code, _ in self.warnings)
        if not self.settings.dry_run and self.settings.share is None:
            facts = {"input": str(self.source_path), "output": str(self.output), "frames": frames}
            speed = {"seconds": round(seconds, 3), "fps": round(frames / seconds, 3)}
            self.notify("file_done", {**facts, **speed, "warnings": list(codes)})
        if self.settings.profile and not self.settings.dry_run:
            self.notify("profile", {"input": str(self.source_path), **self.profile.facts()})
        self._judge(codes)
        return Result(self.output, frames, seconds, codes)

    def _judge(self, codes: tuple[str, ...]) -> None:
        """Turn warnings into an error, where that is asked for.

        Raises: DamageError; the output is there all the same.
        """
        bad = [code for code in codes if self.settings.strict or (self.settings.fail_on_damage and code in DAMAGE)]
        if bad:
            option = "--strict" if self.settings.strict else "--on-damage fail"
            raise DamageError(f"{self.output} is done, but not without {', '.join(bad)}", f"asked for by {option}")

    def _probe(self, info: decode.SourceInfo) -> None:
        facts = {"input": str(self.source_path), "width": info.width, "height": info.height}
        duration = None if info.duration_seconds is None else float(info.duration_seconds)
        facts |= {"frames_estimate": info.frames_estimate, "duration": duration, "vfr": info.variable_rate}
        self.notify("probe", {**facts, "streams": info.streams, "color": info.color})

    def _to_file(self, source: Source) -> int:
        """Make the segments that are missing, and of all of them the output."""
        settings = self.settings
        encode.check_output(self.output, self.source_path, settings.encoding.overwrite)
        encoding = choose_encoding(self.output, source, settings, self.warn)
        with self.profile.main.stage("start"):
            plans = self._try_container(encoding, source)
            loaded = self._load(source.info)
        store = self._open_store(loaded, source)
        keep = settings.resume and not source.is_pipe
        try:
            maker = SegmentMaker(self, source, store, encoding, loaded)
            done = sum(record.frames for record in store.chain())
            self._tell_plan(loaded, maker.plan, source.info, plans, maker.count, done)
            if settings.dry_run:
                return 0
            maker.make()
            if settings.share is not None:
                return maker.made
            frames = sum(record.frames for record in store.records.values())
            damaged = max(sum(record.damaged for record in store.records.values()), source.damaged)
            if damaged:
                message = f"{self.source_path} is damaged in {damaged} places; {frames} frames came out"
                self.warn("W_INPUT_DAMAGED", message)
            overwrite = settings.encoding.overwrite
            with self.profile.main.stage("assemble"):
                parts.assemble(store, encoding, source, self._others(source, maker), self.warn, overwrite=overwrite)
            keep = False
            return frames
        except InputError:
            keep = False  # the next run would come to the same place
            raise
        except InterruptedRunError as error:
            raise self._interrupted(error, store) from error
        finally:
            store.close(keep=keep)

    def _load(self, info: decode.SourceInfo) -> "Loaded":
        """Fetch a network's weights and place it on the device."""
        settings = self.settings
        faults: list[str] = []
        chosen = device.choose_device(settings.device, faults.append)
        earlier = segments.earlier_plan(self.output).get("model") if settings.resume else None
        if settings.model == BEST and earlier is not None:  # a busier moment must not choose another
            model = earlier
        else:
            model = choose_model(settings, info, chosen, self.talk)
        network = weights.load_model(model, settings.checkpoint, self.talk)
        digest = checksum(network)
        size = (info.height, info.width, info.frames_estimate)
        placed = choice.settle(network, weights.find_entry(model), chosen, settings, faults, size)
        precision = placed.precision
        if placed.fallback:
            self.warn("W_DEVICE", placed.fallback)
        if precision != "fp32" and precision not in network.half_precision:
            self.warn("W_PRECISION", f"{model} loses quality in {precision}; it is meant for fp32")
        self.profile.use(placed.device)
        return Loaded(model, digest, placed.network, placed.device, precision)

    def _open_store(self, loaded: "Loaded", source: Source) -> segments.Store:
        """Open what an earlier run has left, and tell of it."""
        store = segments.Store(self.output, fingerprint(self.settings, loaded, source))
        if not self.settings.resume:
            store.forget("--no-resume was given")
        elif store.reason and self.settings.strict:
            raise OutputError(
                f"what an earlier run finished of {self.output} cannot be used: {store.reason}",
                "use the same settings, or --no-resume to begin anew",
            )
        elif store.reason:
            self.warn("W_RESUME", f"what an earlier run finished cannot be used: {store.reason}; beginning anew")
        return store

    def _try_container(self, encoding: Encoding, source: Source) -> list[mux.StreamPlan]:
        """Find out, and say, what becomes of the other streams, before any work."""
        deinterlace.announce(source.info, self.settings.encoding.deinterlace, self.warn)
        if isinstance(encoding, encode.VideoEncoding):
            plans = encoding.try_container(source)
        else:
            plans = mux.drop_all(source, "has no place in a folder of pictures")
        encode.warn_of_plans(plans, self.settings.encoding, self.warn)
        return plans

    def _tell_plan(
        self,
        loaded: "Loaded",
        plan: tiles.TilePlan,
        info: decode.SourceInfo,
        others: list[mux.StreamPlan],
        count: int | None = 1,
        done: int = 0,
    ) -> None:
        facts: dict[str, object] = {"input": str(self.source_path), "model": loaded.model, "device": str(loaded.device)}
        facts |= {"precision": loaded.precision, "tile": plan.name, "segments": count, "frames_done": done}
        facts["keep"] = [each.name for each in others if each.action != mux.DROP]
        facts["convert"] = [f"{each.name} {each.reason}" for each in others if each.action == mux.CONVERT]
        facts["drop"] = [each.name for each in others if each.action == mux.DROP]
        facts |= {"frames_estimate": info.frames_estimate, "dry_run": self.settings.dry_run}
        self.notify("plan", facts)

    def _others(self, source: Source, maker: "SegmentMaker") -> Iterable[av.Packet]:
        """Give the packets of the other streams: from a pipe as they were kept, else read once more."""
        if maker.spool is not None:
            return maker.spool.packets()
        if isinstance(source, decode.PictureSource):
            return ()
        ends = [end for end in (source.cut_end, maker.end()) if end is not None]
        return mux.other_packets(source, source.cut_begin, min(ends, default=None))

    def _interrupted(self, error: InterruptedRunError, store: segments.Store) -> InterruptedRunError:
        """Say what is kept."""
        frames = sum(record.frames for record in store.records.values())
        if not frames or not self.settings.resume or self.source_path == decode.PIPE:
            return error
        done = InterruptedRunError(error.status)
        done.message = f"stopped; {frames} frames of {self.output.name} are finished and kept"
        done.hint = "run the same command again to go on from there"
        return done

    def _to_pipe(self, source: Source) -> int:
        """Write frames to standard output as they come."""
        settings, info = self.settings, source.info
        options = settings.encoding
        if options.format == "nut" and options.codec is None:
            options = dataclasses.replace(options, codec="rawvideo")
        suffix = ".y4m" if options.format is None else ""
        encoding = encode.VideoEncoding(
            info, suffix, options, self.warn, pictures=source.pictures, deterministic=settings.deterministic
        )
        with self.profile.main.stage("start"):
            plans = self._try_container(encoding, source)
            loaded = self._load(info)
        plan = plan_tiles(settings, info.height, info.width, loaded.network, loaded.device)
        self._tell_plan(loaded, plan, info, plans)
        encoder = encoding.open()
        offset = source.cut_begin or Fraction(0)
        muxer = mux.Muxer("pipe:1", encoding.form, source, encoder.add_to, encoding.muxing, offset=offset)
        restorer = Restorer(loaded.network, plan, loaded.device, settings, self.stop, self.warn, self.profile.main)
        worker = self.profile.worker(QUEUE_FRAMES)
        progressive = deinterlace.deinterlaced(source.items(), options.deinterlace)
        items = decode.threaded(self.profile.decoding.each(progressive, "decode"), QUEUE_FRAMES)

        def frames() -> Iterator[Frame]:
            for item in self.profile.main.each(items, "wait_decode"):
                if isinstance(item, av.Packet):
                    worker.do(muxer.copy, item)  # overtakes the frames that the network holds back
                else:
                    yield item

        count = 0
        try:
            for frame in restorer.restore(frames()):
                worker.do(lambda frame=frame: muxer.mux_video(encoder.encode(encoding.prepare(frame, offset))))
                count += 1
                self.tell_progress(source.info, count, count)
            restorer.check_stop()
            worker.do(lambda: muxer.mux_video(encoder.encode(None)))
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
        return count

    def tell_progress(self, info: decode.SourceInfo, done: int, made: int) -> None:
        """Tell how many frames are done, and how many of them this run has made."""
        rate = made / max(time.monotonic() - self.begun, 1e-6)
        left = None if info.frames_estimate is None else max(info.frames_estimate - done, 0) / rate
        facts = {"input": str(self.source_path), "frame": done, "frames_estimate": info.frames_estimate}
        self.notify(
            "progress", {**facts, "fps": round(rate, 3), "eta_seconds": None if left is None else round(left, 1)}
        )


@dataclass(frozen=True)
class Loaded:
    """A network on its device. digest: of its weights, before they were converted."""

    model: str
    digest: str
    network: Network
    device: torch.device
    precision: str


class SegmentMaker:
    """Make the segments of one file that are not there yet, in order."""

    def __init__(
        self, file: FileRun, source: Source, store: segments.Store, encoding: Encoding, loaded: Loaded
    ) -> None:
        self.file, self.source, self.store, self.encoding = file, source, store, encoding
        settings, info, self.profile = file.settings, source.info, file.profile
        if settings.tile == "auto" and "tile" in store.plan:  # free memory may be another, the result must not
            settings = dataclasses.replace(settings, tile=store.plan["tile"])
        window = store.plan.get("window")
        self.plan = plan_tiles(settings, info.height, info.width, loaded.network, loaded.device, window)
        self.restorer = Restorer(
            loaded.network, self.plan, loaded.device, settings, file.stop, file.warn, self.profile.main
        )
        self.before, self.after = streams.context(loaded.network)
        self.division = segments.Division(source.first_seconds, settings.segment)
        self.count = self.division.count(info.duration_seconds)
        self.share = self._share(settings)
        self.model = loaded.model
        self.spool: parts.Spool | None = None
        self.items: Generator[Frame] | None = None
        self.part: parts.Part | None = None
        self.finished: queue.SimpleQueue[dict[str, object]] = queue.SimpleQueue()
        self.tail: list[segments.Mark] = []  # of what was finished when this run began
        self.done = 0  # frames before the segment that is being made
        self.made = 0  # frames made here

    def _share(self, settings: Settings) -> range | None:
        """Give the segments that are ours where the work is shared out; None: all."""
        if settings.share is None:
            return None
        number, shares = settings.share
        if self.count is None:
            raise InputError(
                f"{self.source.path}: its length is not known, so it cannot be shared out", "convert it to mkv"
            )
        if settings.cut.frames is not None or isinstance(self.encoding, encode.PictureEncoding):
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
        self.store.open(
            {"tile": self.plan.name, "window": self.plan.window, "model": self.model}, shared=self.share is not None
        )
        if self.source.is_pipe:
            self.spool = parts.Spool(self.store.folder / "others")
        worker = self.profile.worker(QUEUE_FRAMES)
        try:
            index = self._first_missing()
            divider = None if index is None else self._open_at(index)
            while divider is not None and index is not None:
                segment = divider.segment()
                self._make(segment, worker)
                index = self._next_missing(segment, divider.marks())
                if index is None or not divider.skip_to(index):
                    break
            self.restorer.check_stop()
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

    def _check_room(self) -> None:
        """Warn where the disk is likely to become full: the parts and the output stand there together for a while."""
        info, encoding = self.source.info, self.encoding
        frames = info.frames_estimate
        if frames is None:
            return
        if isinstance(encoding, encode.PictureEncoding):
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
        self.tail = segments.tail_of(chain)
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
                "begin anew with --no-resume",
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
        self.items = decode.threaded(self.profile.decoding.each(progressive, "decode"), QUEUE_FRAMES)
        waited = self.profile.main.each(self.items, "wait_decode")
        return segments.Divider(waited, self.division, self.before, self.after)

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

    def _make(self, segment: segments.Segment, worker: encode.Worker) -> None:
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
        worker.do(self.finished.put, {"index": segment.index, "first": first, "last": self.done - 1})

    def _tell_finished(self) -> None:
        """Tell of the segments that have come to the disk."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.file.notify("segment", self.finished.get_nowait())

    def end(self) -> Fraction | None:
        """Give when the last frame is over, on the source's clock, where the part asked for is a number of frames."""
        pictures = isinstance(self.encoding, encode.PictureEncoding)
        if self.file.settings.cut.frames is None or self.source.is_pipe or pictures:
            return None
        last = max(pts for record in self.store.records.values() for _, pts, *_ in record.packets)
        return last * self.source.info.time_base + 1 / self.source.info.rate


def check_model(settings: Settings) -> None:
    """Refuse a model that does not exist before any file is opened.

    Raises: ModelError, UsageError.
    """
    if settings.model != BEST:
        weights.find_entry(settings.model)
    elif settings.checkpoint is not None:
        raise UsageError("--weights needs the model it is for", f"-m {BEST} takes a model's own weights")


def choose_model(settings: Settings, info: decode.SourceInfo, chosen: torch.device, talk: Talk) -> str:
    """Give the model's name; `best` becomes one for this device and this video, which is told."""
    if settings.model != BEST:
        return settings.model
    best = choice.strongest(chosen, settings.precision, info.height, info.width, info.frames_estimate, talk)
    talk.notify("choice", {"model": best.model, "reason": best.reason})
    return best.model


def choose_encoding(output: Path, source: Source, settings: Settings, warn: decode.Warn) -> Encoding:
    """Choose what the output's name asks for: pictures where it is a folder or has no suffix, else a video."""
    if writes_pictures(output, settings):
        return encode.PictureEncoding(source.info)
    pictures, deterministic = source.pictures, settings.deterministic
    return encode.VideoEncoding(
        source.info, output.suffix, settings.encoding, warn, pictures=pictures, deterministic=deterministic
    )


def writes_pictures(output: Path, settings: Settings) -> bool:
    """Tell whether the output is a folder of pictures."""
    return settings.pictures or output.is_dir() or not output.suffix


def fingerprint(settings: Settings, loaded: Loaded, source: Source) -> dict[str, Any]:
    """Give what a result depends on, by names that tell a person what has changed.

    Not in it: the device and what `auto` comes to on it. Work that a GPU began may be gone on with without it.
    """
    chosen = dataclasses.asdict(settings)
    encoding = chosen.pop("encoding")
    cut = chosen.pop("cut")
    for name in (
        "model",
        "checkpoint",
        "yes",
        "offline",
        "resume",
        "share",
        "strict",
        "fail_on_damage",
        "dry_run",
        "profile",
        "compare",
        "sample",
    ):
        chosen.pop(name)
    for name in ("overwrite", "audio", "subtitles"):
        encoding.pop(name)
    facts = {"the input": uuid.uuid4().hex if source.is_pipe else segments.identity_of(source.path)}
    facts |= {"vdeblur's version": __version__, "the model": loaded.model, "its weights": loaded.digest}
    options = {
        f"--{name.replace('_', '-')}": value for name, value in (*chosen.items(), *encoding.items(), *cut.items())
    }
    return facts | {name: str(value) for name, value in options.items()}


def checksum(network: Network) -> str:
    """Give a digest of a network's tensors."""
    crc = 0
    for name, tensor in sorted(network.state_dict().items()):
        crc = zlib.crc32(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), zlib.crc32(name.encode(), crc)
        )
    return f"{crc:08x}"
