"""Frames to restored frames on the device: the stages between decoding and encoding, and recovery from failures.

A scene passes through the network as a stream. If the stream fails, because memory runs out or half precision
overflows, a new stream starts with a smaller plan or in float32. It replays the last finished frames, to rebuild a
recurrent network's state; their results are discarded. Then it continues with the first unfinished frame. So every
frame comes out once, in order.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vdeblur.errors import DeviceError, InterruptedRunError
from vdeblur.events import Stop, Warn, ignore, never
from vdeblur.frame import Copier, Frame
from vdeblur.networks.layers import Network
from vdeblur.restore import color, device, memory, scenes, streams
from vdeblur.restore import plan as plans
from vdeblur.restore.area import Area
from vdeblur.restore.changes import ChangeMeter, mean_change
from vdeblur.restore.guard import SMALLEST_FRAME, Guard
from vdeblur.restore.tiles import TilePlan
from vdeblur.restore.watch import OFF, Watch
from vdeblur.settings import Settings

BLACK = 0.5 / 255  # of the range; a picture with no brighter pixel is black in 8 bits
DARK = 0.02  # mean of a picture that may be restored to black
MOST_REJECTED = 2  # frames in a row that the guard kept as they were; then a new stream begins, without their state
MOST_OVERFLOWS = 3  # in one call of restore; after more, half precision is given up


class Restorer:
    """Restores frames on the device.

    plan: the tiles; if memory runs out, a smaller plan replaces it for good. warn: gets W_OUT_OF_MEMORY, W_NON_FINITE
    and W_PRECISION. redone: how many frames were restored in float32 because half precision overflowed. unrestored: how
    many frames stayed unchanged because the network returned no valid picture. watch: times color, scenes, network and
    difference. changes: measures each frame. area: the part of frames to restore; the plan is made for its size. guard:
    keeps the input where the network failed.
    """

    def __init__(
        self,
        network: Network,
        plan: TilePlan,
        chosen: torch.device,
        settings: Settings,
        stop: Stop = never,
        warn: Warn = ignore,
        watch: Watch = OFF,
        changes: ChangeMeter | None = None,
        area: Area | None = None,
    ) -> None:
        self.changes = changes
        self.area = None if area is None else area.to(chosen)
        self.network, self.plan, self.device, self.settings = network, plan, chosen, settings
        self.stop, self.warn, self.watch = stop, warn, watch
        self.is_half = network.float32_weights is not None
        self.float32_network: Network | None = None if self.is_half else network
        self.redone = self.unrestored = 0
        self.guard: Guard | None = None  # made for the size of the first frame
        self.warned: set[str] = set()
        self.has_shrunk = False  # the plan, without a warning yet
        # A GPU computes the next frame while the last one is copied back.
        self.delay = 1 if chosen.type == "cuda" else 0
        self.copier = Copier()

    def check_stop(self) -> None:
        """Raise InterruptedRunError if a signal arrived."""
        status = self.stop()
        if status is not None:
            raise InterruptedRunError(status)

    @torch.inference_mode()
    def restore(self, frames: Iterator[Frame]) -> Generator[Frame]:
        """Yield every frame restored, in order, scene by scene.

        Raises: DeviceError if memory is too small for the smallest plan, the device is lost, or, with --strict, the
        network returns no valid picture even in float32.
        """
        detector = scenes.SceneDetector() if self.settings.scene_detect else None
        reader = _FrameReader(frames, self._upload, detector, self.watch)
        # New for every call, so that a segment's result does not depend on earlier segments.
        half = _HalfPrecisionState(0 if self.is_half else math.inf)
        try:
            while reader.has_more():
                yield from self._restore_scene(_Scene(reader, streams.frames_around(self.network)[0]), half)
        except RuntimeError as error:
            if memory.is_lacking(error) or not device.is_lost(error):
                raise
            raise DeviceError(
                f"{self.device} no longer responds: {device.in_a_line(error)}",
                "finished segments are kept: run the same command again",
            ) from error

    def _restore_scene(self, scene: "_Scene", half: "_HalfPrecisionState") -> Iterator[Frame]:
        while not scene.is_over:
            try:
                yield from self._stream(scene, half)
                continue
            except (RuntimeError, MemoryError) as error:
                if scene.reader.is_reading or not memory.is_lacking(error):
                    raise
                self._shrink(error)
            # The except block has ended, so nothing refers to the tensors of the failed stream.
            memory.release(self.device)

    def _stream(self, scene: "_Scene", half: "_HalfPrecisionState") -> Iterator[Frame]:
        """Restore unfinished frames with one stream; it ends with the scene, or where a new stream has to start."""
        is_float32 = half.float32_frames > 0
        network = self._in_float32() if is_float32 else self.network
        replayed = len(scene.finished)
        remaining = math.inf  # frames until this stream must end
        rejected = 0  # frames in a row that the guard kept as they were
        for uploaded, result in self._results(network, scene):
            if replayed:
                replayed -= 1
                continue
            with self.watch.stage("difference"):
                is_valid = result.is_valid()
            if not is_valid and not is_float32:
                self._note_overflow(uploaded.frame, half)
                # Enough frames that the next stream in half precision does not get the overflowing frame again.
                half.float32_frames = max(half.float32_frames, len(scene.unfinished) + (scene.finished.maxlen or 0))
                return
            if not is_valid:
                self._note_failure(uploaded.frame)
                remaining = min(remaining, len(scene.unfinished))
            with self.watch.stage("difference"):
                if is_valid:
                    result = self._guarded(uploaded, result)
                rejected = rejected + 1 if result.is_rejected else 0
                if rejected == MOST_REJECTED and network.feeding not in streams.SKIPPING:  # others have no state
                    remaining = min(remaining, len(scene.unfinished))
                restored = result.frame(uploaded, self.copier, self.area) if is_valid else uploaded.frame
                if self.changes is not None:
                    self.changes.note(uploaded.frame.pts, result.change() if is_valid else 0.0)
            self._warn_of_plan()
            scene.advance()
            self.redone += is_valid and is_float32 and self.is_half
            half.float32_frames, remaining = max(half.float32_frames - 1, 0), remaining - 1
            yield restored
            if not remaining:  # the next stream must not see the frame that broke the state
                scene.finished.clear()
            if not remaining or (is_float32 and not half.float32_frames):
                return
        scene.is_over = True

    def _results(self, network: Network, scene: "_Scene") -> "Iterator[tuple[_Uploaded, _Result]]":
        """Yield frames with their results, first those of the replayed frames."""
        fed: deque[_Uploaded] = deque()
        results: deque[_Result] = deque()
        unneeded: deque[bool] = deque()  # of frames that are fed: whether they get nothing of their restoration

        def padded() -> Iterator[Tensor]:
            for item in scene.items():
                fed.append(item)
                if network.feeding in streams.SKIPPING:
                    unneeded.append(not item.frame.strength)
                yield self.plan.pad(item.rgb[None])

        for restored in self.watch.each(streams.stream(network, padded(), self.plan, unneeded.popleft), "network"):
            with self.watch.stage("difference"):
                results.append(self._finish(fed[len(results)], restored))
            if len(results) > self.delay:
                yield fed.popleft(), results.popleft()
        while results:
            yield fed.popleft(), results.popleft()

    def _upload(self, frame: Frame) -> "_Uploaded":
        self.check_stop()
        with self.watch.stage("color"):
            space = color.ColorSpace.of(frame.picture, frame.chroma_location)
            planes = color.planes_of(frame, space, self.device)
            rgb = color.to_rgb(planes, space)
        if self.changes is not None:
            with self.watch.stage("difference"):
                self.changes.look_at(frame.pts, rgb)
        if self.area is None:
            return _Uploaded(frame, space, planes, rgb, rgb)
        return _Uploaded(frame, space, self.area.cut_planes(planes, space.layout), self.area.cut(rgb), rgb)

    def _finish(self, item: "_Uploaded", restored: Tensor) -> "_Result":
        """Add the network's change to the frame's planes, compute what is_valid needs, and start copying both."""
        picture = self.plan.crop(restored)[0].float()
        difference = picture - item.rgb
        means, shorter = None, min(item.whole.shape[1:])
        if self.settings.guard and shorter >= SMALLEST_FRAME:
            height, width = picture.shape[1:]
            self.guard = self.guard or Guard.of(height, width, shorter)
            means = self.guard.measure(difference)
        result = self._add(item, difference, picture, means)
        result.picture = None if means is None else picture
        return result

    def _add(self, item: "_Uploaded", difference: Tensor, picture: Tensor, means: Tensor | None) -> "_Result":
        """Add the network's change, (3, H, W), to the frame's planes, and start copying them. means: see Guard."""
        strength, planes = self.settings.strength * item.frame.strength, item.planes
        if strength:
            factor = strength if self.area is None else self.area.weights * strength
            planes = color.add_difference(planes, difference * factor, item.space)
            if self.area is not None:
                planes = self.area.keep_outside(item.planes, planes, item.space.layout)
        change = mean_change(item.planes, planes, item.space.layout.bits, item.space.layout.rgb)
        if self.area is not None:  # the mean of the area alone
            change = change / self.area.filled
        extremes = torch.stack((*picture.aminmax(), item.rgb.mean(), change))  # NaN if any pixel is
        return _Result.fetch(extremes, planes, means)

    def _guarded(self, item: "_Uploaded", result: "_Result") -> "_Result":
        """Keep the input where the network failed; return the same result if it failed nowhere."""
        if self.guard is None or result.means is None or result.picture is None:
            return result
        failed = self.guard.failed(result.means, result.picture, *result.extremes[:2].tolist())
        if failed.any() and self.area is not None:  # what is not added cannot do harm
            failed &= self.guard.any_in_blocks(self.area.weights > 0).cpu()
        if not failed.any():
            return result
        weights = self.guard.weights(failed)
        factor = 0.0 if weights is None else weights.to(result.picture.device)
        kept = self._add(item, (result.picture - item.rgb) * factor, result.picture, None)
        kept.is_valid()  # waits for the copy
        kept.is_guarded, kept.is_rejected = item.frame.strength > 0, weights is None
        return kept

    def _in_float32(self) -> Network:
        if self.float32_network is None:
            self.float32_network = device.float32_copy(self.network, self.device)
        return self.float32_network

    def _shrink(self, error: BaseException) -> None:
        """Switch to the next smaller plan.

        Raises: DeviceError if there is none.
        """
        plan = plans.smaller(self.plan, plans.overlap_of(self.settings, self.network), self.network)
        if plan is None:
            on_cpu = "" if self.device.type == "cpu" else ", or use --device cpu"
            raise DeviceError(
                f"{self.device} is out of memory, even with {plans.in_words(self.plan)}",
                f"close other programs, use a smaller model such as -m lite{on_cpu}",
            ) from error
        self.plan, self.has_shrunk = plan, True

    def _warn_of_plan(self) -> None:
        """Warn of a smaller plan, once it has worked."""
        if self.has_shrunk:
            self.has_shrunk = False
            self.warn(
                "W_OUT_OF_MEMORY", f"{self.device} was out of memory; continuing with {plans.in_words(self.plan)}"
            )

    def _note_overflow(self, frame: Frame, half: "_HalfPrecisionState") -> None:
        """Warn that half precision overflowed, and give it up after MOST_OVERFLOWS."""
        seconds = f"{float(frame.seconds):.3f} s"
        message = f"half precision overflowed at {seconds}: such frames are restored in float32"
        self._warn_once("overflow", "W_NON_FINITE", message)
        half.overflows += 1
        if half.overflows > MOST_OVERFLOWS:
            half.float32_frames = math.inf
            message = f"half precision keeps overflowing: using float32 from {seconds} on"
            self._warn_once("no half", "W_PRECISION", message)

    def _note_failure(self, frame: Frame) -> None:
        """Warn that a frame cannot be restored; raise DeviceError with --strict."""
        self.unrestored += 1
        message = f"the network returned no valid picture at {float(frame.seconds):.3f} s"
        if self.settings.strict:
            raise DeviceError(message, "use another model, or leave out --strict to keep such frames unchanged")
        self._warn_once("failure", "W_NON_FINITE", f"{message}: such frames stay unchanged")

    def _warn_once(self, what: str, code: str, message: str) -> None:
        if what not in self.warned:
            self.warned.add(what)
            self.warn(code, message)


@dataclass
class _HalfPrecisionState:
    """Of half precision: how many frames must still be restored in float32 instead, and overflows so far."""

    float32_frames: float
    overflows: int = 0


@dataclass
class _Uploaded:
    """A frame on the device. planes, rgb: what the network gets of it. whole: RGB of all of it."""

    frame: Frame
    space: color.ColorSpace
    planes: list[Tensor]
    rgb: Tensor
    whole: Tensor


@dataclass
class _Result:
    """A restored frame on its way back from the device.

    extremes: lowest and highest value, the mean of the blurry picture, and the mean change of its samples. planes: the
    restored planes. means: of the guard's blocks, if it is on. arrival: when a GPU has copied all of them. picture: the
    restored one, for the guard, on the device. is_guarded: whether the guard kept parts of the frame as they were;
    is_rejected: all of it.
    """

    extremes: Tensor
    planes: list[Tensor]
    means: Tensor | None
    arrival: torch.cuda.Event | None
    picture: Tensor | None = None
    is_guarded: bool = False
    is_rejected: bool = False

    @classmethod
    def fetch(cls, extremes: Tensor, planes: list[Tensor], means: Tensor | None) -> "_Result":
        """Start copying; only is_valid waits for the device."""
        parts = [extremes, *planes, *([] if means is None else [means])]
        if extremes.device.type != "cuda":
            copies, arrival = [part.cpu() for part in parts], None
        else:
            copies = [
                torch.empty(part.shape, dtype=part.dtype, pin_memory=True).copy_(part, non_blocking=True)
                for part in parts
            ]
            arrival = torch.cuda.Event()
            arrival.record(torch.cuda.current_stream(extremes.device))
        return cls(copies[0], copies[1 : len(planes) + 1], None if means is None else copies[-1], arrival)

    def is_valid(self) -> bool:
        """Return whether the result is finite, and not black unless the blurry picture was dark."""
        if self.arrival is not None:
            self.arrival.synchronize()
        lowest, highest, before, _ = self.extremes.tolist()
        return math.isfinite(lowest) and math.isfinite(highest) and (highest > BLACK or before < DARK)

    def change(self) -> float:
        """Return the mean change of the samples, in codes of 8 bits; is_valid has waited for it."""
        return float(self.extremes[3])

    def frame(self, item: _Uploaded, copier: Copier, area: Area | None) -> Frame:
        """Return the restored frame, a copy of the original with new planes; of an area, if there is one."""
        places = None if area is None else area.places(item.space.layout)
        picture = color.with_planes(copier.copy(item.frame.picture), self.planes, item.space, places)
        return replace(item.frame, picture=picture, is_guarded=self.is_guarded)


class _FrameReader:
    """Uploads frames one after the other; if an upload fails, it can be repeated.

    is_reading: whether an error comes from the iterator of frames, which cannot be repeated.
    """

    def __init__(
        self,
        frames: Iterator[Frame],
        upload: Callable[[Frame], _Uploaded],
        detector: scenes.SceneDetector | None,
        watch: Watch,
    ) -> None:
        self.frames, self.upload, self.detector, self.watch = frames, upload, detector, watch
        self.is_reading = False
        self.read: Frame | None = None  # but not uploaded yet
        self.first: _Uploaded | None = None  # of the next scene

    def has_more(self) -> bool:
        """Return whether there is another frame."""
        if self.read is None and self.first is None:
            self.is_reading = True
            self.read = next(self.frames, None)
            self.is_reading = False
        return self.read is not None or self.first is not None

    def first_of_scene(self) -> _Uploaded:
        """Return the first frame of a scene; has_more says that there is one."""
        item, self.first = self.first, None
        return self._upload_read()[0] if item is None else item

    def next_of_scene(self) -> _Uploaded | None:
        """Return the next frame of a scene; None if the scene is over. The next scene's first frame is then kept."""
        if self.first is not None or not self.has_more():
            return None
        item, is_cut = self._upload_read()
        if is_cut:
            self.first = item
            return None
        return item

    def _upload_read(self) -> tuple[_Uploaded, bool]:
        """Upload the frame that was read; return it, and whether a scene begins with it."""
        assert self.read is not None, "has_more has read it"
        item = self.upload(self.read)
        with self.watch.stage("scenes"):
            is_cut = self.detector is not None and self.detector.is_cut(item.whole)
        self.read = None
        return item, is_cut


class _Scene:
    """The frames up to the next cut.

    finished: the last finished frames, as many as rebuild a state. unfinished: frames that were read, but not finished.
    """

    def __init__(self, reader: _FrameReader, warm_up: int) -> None:
        self.reader = reader
        self.finished: deque[Frame] = deque(maxlen=warm_up)
        self.unfinished: deque[Frame] = deque()
        self.has_begun = self.is_over = False

    def items(self) -> Iterator[_Uploaded]:
        """Yield the last finished frames, the unfinished ones, and then the rest of the scene."""
        for frame in (*self.finished, *self.unfinished):
            yield self.reader.upload(frame)
        item: _Uploaded | None
        if not self.has_begun:
            item = self.reader.first_of_scene()
            self.has_begun = True
            self.unfinished.append(item.frame)
            yield item
        while (item := self.reader.next_of_scene()) is not None:
            self.unfinished.append(item.frame)
            yield item

    def advance(self) -> None:
        """Mark the first unfinished frame as finished."""
        self.finished.append(self.unfinished.popleft())
