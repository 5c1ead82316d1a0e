"""A blurry video in, a sharp one out: the stages joined. Read this file first.

    decode -> segments -> RGB on the device -> split at scene cuts -> tiles -> network stream -> blend
           -> difference onto the original planes -> encode -> assemble

Every arrow is an iterator of frames. Decoding and encoding run in threads of their own behind bounded queues, so the
device waits for neither of them and memory does not grow with the video's length. Each segment is finished as a file
beside the output; when all are there they are joined to the output, which appears whole or not at all.
"""

import contextlib
import dataclasses
import gc
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import torch

from vdeblur import events, files, threads
from vdeblur.errors import (
    DamageError,
    DeviceError,
    InputError,
    InterruptedRunError,
    OutputError,
    UsageError,
)
from vdeblur.events import Ask, Notify, Stop, Talk, ignore, never
from vdeblur.frame import Frame
from vdeblur.models import cache, choice, weights
from vdeblur.networks.layers import Network
from vdeblur.output import carry, tracks
from vdeblur.output.encoding import VideoEncoding, warn_of_plans
from vdeblur.output.muxer import other_packets
from vdeblur.output.pictures import PictureEncoding
from vdeblur.restore import device, tiles
from vdeblur.restore.plan import plan_tiles
from vdeblur.restore.restorer import Restorer
from vdeblur.restore.watch import Profile
from vdeblur.run import assemble, context
from vdeblur.run.context import QUEUE_FRAMES, Encoding, Loaded
from vdeblur.run.maker import SegmentMaker
from vdeblur.run.store import Store, earlier_plan, fingerprint
from vdeblur.settings import Settings
from vdeblur.source import deinterlace, demux, video
from vdeblur.source.info import SourceInfo
from vdeblur.source.pictures import PictureSource
from vdeblur.source.video import Source

BEST = "best"  # the model that is chosen for the machine
DAMAGE = {"W_INPUT_DAMAGED", "W_INPUT_TRUNCATED", "W_TIMESTAMPS"}  # warnings that speak of a damaged input


@dataclass(frozen=True)
class RunResult:
    """What came of one file.

    frames: in the output. seconds: that this run took. warnings: their codes.
    """

    output: Path
    frames: int
    seconds: float
    warnings: tuple[str, ...]


def restore_file(
    source_path: Path,
    output: Path,
    settings: Settings,
    *,
    notify: Notify = ignore,
    ask: Ask | None = None,
    stop: Stop = never,
) -> RunResult:
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
        ask: Ask | None = None,
        stop: Stop = never,
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
            self.notify("warning", {"code": code, "message": message, "input": str(self.source_path)})

    def run(self) -> RunResult:
        """Do it all."""
        check_model(self.settings)
        if self.output == demux.PIPE and (self.settings.share is not None or self.settings.pictures):
            raise UsageError("a pipe is written by one process, as a video", "leave out --share")
        if self.settings.deterministic:
            device.make_deterministic()
        with self.profile.main.stage("start"):
            source = video.open_source(self.source_path, self.settings.cut, self.warn)
        try:
            self._probe(source.info)
            frames = self._to_pipe(source) if self.output == demux.PIPE else self._to_file(source)
        except torch.OutOfMemoryError as error:
            raise DeviceError("the device is out of memory", "use --tile 512, or --device cpu") from error
        finally:
            source.close()
            gc.collect()  # PyAV's containers and streams hold on to each other, and their encoders to threads
        seconds = time.monotonic() - self.begun
        codes = tuple(code for code, _ in self.warnings)
        if not self.settings.dry_run and self.settings.share is None:
            facts = {"input": str(self.source_path), "output": str(self.output), "frames": frames}
            speed = {"seconds": round(seconds, 3), "fps": round(frames / seconds, 3)}
            self.notify("file_done", {**facts, **speed, "warnings": list(codes)})
        if self.settings.profile and not self.settings.dry_run:
            self.notify("profile", {"input": str(self.source_path), **self.profile.facts()})
        self._judge(codes)
        return RunResult(self.output, frames, seconds, codes)

    def _judge(self, codes: tuple[str, ...]) -> None:
        """Turn warnings into an error, where that is asked for.

        Raises: DamageError; the output is there all the same.
        """
        bad = [code for code in codes if self.settings.strict or (self.settings.fail_on_damage and code in DAMAGE)]
        if bad:
            option = "--strict" if self.settings.strict else "--on-damage fail"
            raise DamageError(f"{self.output} is done, but not without {', '.join(bad)}", f"asked for by {option}")

    def _probe(self, info: SourceInfo) -> None:
        facts = {"input": str(self.source_path), "width": info.width, "height": info.height}
        duration = None if info.duration_seconds is None else float(info.duration_seconds)
        facts |= {"frames_estimate": info.frames_estimate, "duration": duration, "vfr": info.variable_rate}
        self.notify("probe", {**facts, "streams": info.streams, "color": info.color})

    def _to_file(self, source: Source) -> int:
        """Make the segments that are missing, and of all of them the output."""
        settings = self.settings
        files.check_output(self.output, self.source_path, settings.encoding.overwrite)
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
                assemble.assemble(store, encoding, source, self._others(source, maker), self.warn, overwrite=overwrite)
            keep = False
            return frames
        except InputError as error:
            # The next run would come to the same place, unless it is the disk or network that the input is on.
            keep = keep and isinstance(error.__cause__, OSError)
            raise
        except InterruptedRunError as error:
            raise self._interrupted(error, store) from error
        finally:
            store.close(keep=keep)

    def _load(self, info: SourceInfo) -> Loaded:
        """Fetch a network's weights and place it on the device."""
        settings = self.settings
        faults: list[str] = []
        chosen = device.choose_device(settings.device, faults.append)
        earlier = earlier_plan(self.output).get("model") if settings.resume else None
        if settings.model == BEST and earlier is not None:  # a busier moment must not choose another
            model = earlier
        else:
            model = choose_model(settings, info, chosen, self.talk)
        network = weights.load_model(model, settings.checkpoint, self.talk)
        digest = checksum(network)
        size = (info.height, info.width, info.frames_estimate)
        placed = context.settle(network, cache.find_entry(model), chosen, settings, faults, size)
        precision = placed.precision
        if placed.fallback:
            self.warn("W_DEVICE", placed.fallback)
        if precision != "fp32" and precision not in network.half_precision:
            self.warn("W_PRECISION", f"{model} loses quality in {precision}; it is meant for fp32")
        self.profile.use(placed.device)
        return Loaded(model, digest, placed.network, placed.device, precision)

    def _open_store(self, loaded: Loaded, source: Source) -> Store:
        """Open what an earlier run has left, and tell of it."""
        store = Store(self.output, fingerprint(self.settings, loaded, source))
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

    def _try_container(self, encoding: Encoding, source: Source) -> list[tracks.StreamPlan]:
        """Find out, and say, what becomes of the other streams, before any work."""
        deinterlace.warn_of_interlacing(source.info, self.settings.encoding.deinterlace, self.warn)
        if isinstance(encoding, VideoEncoding):
            plans = encoding.try_container(source)
        else:
            plans = carry.drop_all(source, "has no place in a folder of pictures")
        warn_of_plans(plans, self.settings.encoding, self.warn)
        return plans

    def _tell_plan(
        self,
        loaded: Loaded,
        plan: tiles.TilePlan,
        info: SourceInfo,
        others: list[tracks.StreamPlan],
        count: int | None = 1,
        done: int = 0,
    ) -> None:
        facts: dict[str, object] = {"input": str(self.source_path), "model": loaded.model, "device": str(loaded.device)}
        facts |= {"precision": loaded.precision, "tile": plan.name, "segments": count, "frames_done": done}
        facts["keep"] = [each.name for each in others if each.action != tracks.DROP]
        facts["convert"] = [f"{each.name} {each.reason}" for each in others if each.action == tracks.CONVERT]
        facts["drop"] = [each.name for each in others if each.action == tracks.DROP]
        facts |= {"frames_estimate": info.frames_estimate, "dry_run": self.settings.dry_run}
        self.notify("plan", facts)

    def _others(self, source: Source, maker: SegmentMaker) -> Iterable[av.Packet]:
        """Give the packets of the other streams: from a pipe as they were kept, else read once more."""
        if maker.spool is not None:
            return maker.spool.packets()
        if isinstance(source, PictureSource):
            return ()
        ends = [end for end in (source.cut_end, maker.end()) if end is not None]
        return other_packets(source, source.cut_begin, min(ends, default=None))

    def _interrupted(self, error: InterruptedRunError, store: Store) -> InterruptedRunError:
        """Say what is kept."""
        frames = sum(record.frames for record in store.records.values())
        if not frames or not self.settings.resume or self.source_path == demux.PIPE:
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
        encoding = VideoEncoding(
            info, suffix, options, self.warn, pictures=source.pictures, deterministic=settings.deterministic
        )
        with self.profile.main.stage("start"):
            plans = self._try_container(encoding, source)
            loaded = self._load(info)
        plan = plan_tiles(settings, info.height, info.width, loaded.network, loaded.device)
        self._tell_plan(loaded, plan, info, plans)
        encoder = encoding.open()
        offset = source.cut_begin or Fraction(0)
        muxer = encoding.open_muxer("pipe:1", source, encoder)
        restorer = Restorer(loaded.network, plan, loaded.device, settings, self.stop, self.warn, self.profile.main)
        worker = self.profile.worker(QUEUE_FRAMES)
        progressive = deinterlace.deinterlaced(source.items(), options.deinterlace)
        items = threads.threaded(self.profile.decoding.each(progressive, "decode"), QUEUE_FRAMES)

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

    def tell_progress(self, info: SourceInfo, done: int, made: int) -> None:
        """Tell how many frames are done, and how many of them this run has made."""
        rate = made / max(time.monotonic() - self.begun, 1e-6)
        left = None if info.frames_estimate is None else max(info.frames_estimate - done, 0) / rate
        facts = {"input": str(self.source_path), "frame": done, "frames_estimate": info.frames_estimate}
        self.notify(
            "progress", {**facts, "fps": round(rate, 3), "eta_seconds": None if left is None else round(left, 1)}
        )


def check_model(settings: Settings) -> None:
    """Refuse a model that does not exist before any file is opened.

    Raises: ModelError, UsageError.
    """
    if settings.model != BEST:
        cache.find_entry(settings.model)
    elif settings.checkpoint is not None:
        raise UsageError("--weights needs the model it is for", f"-m {BEST} takes a model's own weights")


def choose_model(settings: Settings, info: SourceInfo, chosen: torch.device, talk: Talk) -> str:
    """Give the model's name; `best` becomes one for this device and this video, which is told."""
    if settings.model != BEST:
        return settings.model
    best = choice.strongest(chosen, settings.precision, info.height, info.width, info.frames_estimate, talk)
    talk.notify("choice", {"model": best.model, "reason": best.reason})
    return best.model


def choose_encoding(output: Path, source: Source, settings: Settings, warn: events.Warn) -> Encoding:
    """Choose what the output's name asks for: pictures where it is a folder or has no suffix, else a video."""
    if writes_pictures(output, settings):
        return PictureEncoding(source.info)
    pictures, deterministic = source.pictures, settings.deterministic
    return VideoEncoding(
        source.info, output.suffix, settings.encoding, warn, pictures=pictures, deterministic=deterministic
    )


def writes_pictures(output: Path, settings: Settings) -> bool:
    """Tell whether the output is a folder of pictures."""
    return settings.pictures or output.is_dir() or not output.suffix


def checksum(network: Network) -> str:
    """Give a digest of a network's tensors."""
    crc = 0
    for name, tensor in sorted(network.state_dict().items()):
        crc = zlib.crc32(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), zlib.crc32(name.encode(), crc)
        )
    return f"{crc:08x}"
