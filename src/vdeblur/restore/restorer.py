"""Frames to restored frames, on the device: the stages between decoding and encoding, and what to do when one fails.

A scene goes through the network as a stream. Where that fails, for want of memory or because half precision overflows,
another stream is begun, by a smaller plan or in float32: it is shown the last frames that are done, so that a state can
build up again, and then the first that is not. So every frame comes out once, in order.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vdeblur.errors import DeviceError, InterruptedRunError
from vdeblur.events import Stop, Warn, ignore, never
from vdeblur.frame import Copier, Frame
from vdeblur.networks.layers import Network
from vdeblur.restore import color, device, memory, scenes, streams
from vdeblur.restore import plan as plans
from vdeblur.restore.tiles import TilePlan
from vdeblur.restore.watch import OFF, Watch
from vdeblur.settings import Settings

BLACK = 0.5 / 255  # of the range; a picture that is nowhere brighter is black in 8 bits
DARK = 0.02  # mean of a picture that may well be restored to black
MOST_OVERFLOWS = 3  # in one go, until half precision is given up


class Restorer:
    """Frames to restored frames, on the device.

    plan: how frames are cut up; where memory does not suffice, a smaller one takes its place for good. warn: takes
    W_OUT_OF_MEMORY, W_NON_FINITE and W_PRECISION. redone: frames that were restored in float32 because half precision
    overflowed. unrestored: frames that stayed as they were. watch: times color, scenes, network and difference.
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
    ) -> None:
        self.network, self.plan, self.device, self.settings = network, plan, chosen, settings
        self.stop, self.warn, self.watch = stop, warn, watch
        self.is_half = network.exact_weights is not None
        self.exact: Network | None = None if self.is_half else network
        self.redone = self.unrestored = 0
        self.said: set[str] = set()
        self.has_shrunk = False  # and nobody was told yet
        # A GPU goes on with the next frame while the last one travels back.
        self.delay = 1 if chosen.type == "cuda" else 0
        self.copier = Copier()

    def check_stop(self) -> None:
        """Ask whether a signal came."""
        status = self.stop()
        if status is not None:
            raise InterruptedRunError(status)

    @torch.inference_mode()
    def restore(self, frames: Iterator[Frame]) -> Generator[Frame]:
        """Give every frame restored, in order, scene by scene.

        Raises: DeviceError where memory does not suffice for the smallest plan, the device is lost, or, with --strict,
        the network gives no picture even in float32.
        """
        detector = scenes.SceneDetector() if self.settings.scene_detect else None
        source = _Source(frames, self._upload, detector, self.watch)
        # Begun anew with every call, so that what comes of a segment does not depend on those before it.
        trust = _Trust(0 if self.is_half else math.inf)
        try:
            while source.has_more():
                yield from self._restore_scene(_Scene(source, streams.context(self.network)[0]), trust)
        except RuntimeError as error:
            if memory.is_lacking(error) or not device.is_lost(error):
                raise
            raise DeviceError(
                f"{self.device} does not answer any more: {device.in_a_line(error)}",
                "finished segments are kept: run the same command again",
            ) from error

    def _restore_scene(self, scene: "_Scene", trust: "_Trust") -> Iterator[Frame]:
        while not scene.is_over:
            try:
                yield from self._stream(scene, trust)
                continue
            except (RuntimeError, MemoryError) as error:
                if scene.source.is_reading or not memory.is_lacking(error):
                    raise
                self._shrink(error)
            # By now the error is gone, and with it what the failed stream held.
            memory.release(self.device)

    def _stream(self, scene: "_Scene", trust: "_Trust") -> Iterator[Frame]:
        """Begin a stream for the frames that are not done; it ends with the scene, or where another has to begin."""
        is_exact = trust.exact_frames > 0
        network = self._exact_network() if is_exact else self.network
        known = len(scene.done)
        left = math.inf  # frames until this stream is not to be trusted any more
        for uploaded, result in self._results(network, scene):
            if known:  # done before, and shown again for the state only
                known -= 1
                continue
            with self.watch.stage("difference"):
                is_picture = result.is_picture()
            if not is_picture and not is_exact:
                self._note_overflow(uploaded.frame, trust)
                # So many that the next stream in half precision is not shown again what overflowed.
                trust.exact_frames = max(trust.exact_frames, len(scene.todo) + (scene.done.maxlen or 0))
                return
            if not is_picture:
                self._note_failure(uploaded.frame)
                left = min(left, len(scene.todo))
            with self.watch.stage("difference"):
                restored = result.frame(uploaded, self.copier) if is_picture else uploaded.frame
            self._say_plan()
            scene.advance()
            self.redone += is_picture and is_exact and self.is_half
            trust.exact_frames, left = max(trust.exact_frames - 1, 0), left - 1
            yield restored
            if not left:  # what broke the state is not to be shown to the next stream
                scene.done.clear()
            if not left or (is_exact and not trust.exact_frames):
                return
        scene.is_over = True

    def _results(self, network: Network, scene: "_Scene") -> "Iterator[tuple[_Uploaded, _Result]]":
        """Give frames with what the network made of them; those that are done come first."""
        given: deque[_Uploaded] = deque()
        results: deque[_Result] = deque()

        def padded() -> Iterator[Tensor]:
            for item in scene.items():
                given.append(item)
                yield self.plan.pad(item.rgb[None])

        for restored in self.watch.each(streams.stream(network, padded(), self.plan), "network"):
            with self.watch.stage("difference"):
                results.append(self._finish(given[len(results)], restored))
            if len(results) > self.delay:
                yield given.popleft(), results.popleft()
        while results:
            yield given.popleft(), results.popleft()

    def _upload(self, frame: Frame) -> "_Uploaded":
        self.check_stop()
        with self.watch.stage("color"):
            space = color.ColorSpace.of(frame.picture)
            planes = color.planes_of(frame, space, self.device)
            return _Uploaded(frame, space, planes, color.to_rgb(planes, space))

    def _finish(self, item: "_Uploaded", restored: Tensor) -> "_Result":
        """Add what the network changed to the frame's own planes, look whether it is a picture, and fetch both."""
        picture = self.plan.crop(restored)[0].float()
        look = torch.stack((*picture.aminmax(), item.rgb.mean()))  # not numbers where any pixel is none
        planes = color.add_difference(item.planes, (picture - item.rgb) * self.settings.strength, item.space)
        return _Result.fetch(look, planes)

    def _exact_network(self) -> Network:
        if self.exact is None:
            self.exact = device.exact_copy(self.network, self.device)
        return self.exact

    def _shrink(self, error: BaseException) -> None:
        """Take the next smaller plan."""
        plan = plans.smaller(self.plan, plans.overlap_of(self.settings, self.network), self.network)
        if plan is None:
            on_cpu = "" if self.device.type == "cpu" else ", or use --device cpu"
            raise DeviceError(
                f"{self.device} is out of memory, even with {plans.in_words(self.plan)}",
                f"close other programs, take a smaller model such as -m lite{on_cpu}",
            ) from error
        self.plan, self.has_shrunk = plan, True

    def _say_plan(self) -> None:
        """Tell of a smaller plan, now that memory suffices."""
        if self.has_shrunk:
            self.has_shrunk = False
            self.warn("W_OUT_OF_MEMORY", f"{self.device} was out of memory; going on with {plans.in_words(self.plan)}")

    def _note_overflow(self, frame: Frame, trust: "_Trust") -> None:
        """Take note that half precision did not do, and give it up where it does not do again and again."""
        seconds = f"{float(frame.seconds):.3f} s"
        message = f"half precision overflowed at {seconds}: such frames are restored in float32"
        self._warn_once("overflow", "W_NON_FINITE", message)
        trust.overflows += 1
        if trust.overflows > MOST_OVERFLOWS:
            trust.exact_frames = math.inf
            message = f"half precision overflowed again and again: float32 from {seconds} on"
            self._warn_once("no half", "W_PRECISION", message)

    def _note_failure(self, frame: Frame) -> None:
        """Take note that a frame cannot be restored; raises DeviceError with --strict."""
        self.unrestored += 1
        message = f"the network gave no picture at {float(frame.seconds):.3f} s"
        if self.settings.strict:
            raise DeviceError(message, "take another model, or leave out --strict to keep such frames as they were")
        self._warn_once("failure", "W_NON_FINITE", f"{message}: such frames stay as they were")

    def _warn_once(self, what: str, code: str, message: str) -> None:
        if what not in self.said:
            self.said.add(what)
            self.warn(code, message)


@dataclass
class _Trust:
    """How far half precision is to be trusted: frames yet to be restored in float32, and overflows so far."""

    exact_frames: float
    overflows: int = 0


@dataclass
class _Uploaded:
    frame: Frame
    space: color.ColorSpace
    planes: list[Tensor]
    rgb: Tensor


@dataclass
class _Result:
    """What the network made of a frame, on its way back from the device.

    look: lowest and highest value, and the mean of the blurry picture. planes: the restored ones. arrival: when a GPU
    has copied both.
    """

    look: Tensor
    planes: list[Tensor]
    arrival: torch.cuda.Event | None

    @classmethod
    def fetch(cls, look: Tensor, planes: list[Tensor]) -> "_Result":
        """Begin to copy; nothing waits for the device until is_picture does."""
        if look.device.type != "cuda":
            return cls(look.cpu(), [plane.cpu() for plane in planes], None)
        copies = [
            torch.empty(part.shape, dtype=part.dtype, pin_memory=True).copy_(part, non_blocking=True)
            for part in (look, *planes)
        ]
        arrival = torch.cuda.Event()
        arrival.record(torch.cuda.current_stream(look.device))
        return cls(copies[0], copies[1:], arrival)

    def is_picture(self) -> bool:
        """Tell whether all of it are numbers, and whether anything is left of a picture that was not black."""
        if self.arrival is not None:
            self.arrival.synchronize()
        lowest, highest, before = self.look.tolist()
        return math.isfinite(lowest) and math.isfinite(highest) and (highest > BLACK or before < DARK)

    def frame(self, item: _Uploaded, copier: Copier) -> Frame:
        """Give the restored frame; the original may still be looked at."""
        picture = color.with_planes(copier.copy(item.frame.picture), self.planes, item.space)
        return Frame(picture, item.frame.pts, item.frame.time_base, item.frame.name)


class _Source:
    """Frames, uploaded one after the other; where that fails, the frame is still there to be tried again.

    is_reading: whether an error is one of the frames' own; they cannot be asked again then.
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
        self.read: Frame | None = None  # and not uploaded yet
        self.first: _Uploaded | None = None  # of the next scene

    def has_more(self) -> bool:
        """Tell whether there is another frame."""
        if self.read is None and self.first is None:
            self.is_reading = True
            self.read = next(self.frames, None)
            self.is_reading = False
        return self.read is not None or self.first is not None

    def next_of_scene(self, begins: bool) -> _Uploaded | None:
        """Give the next frame; None where another scene begins with it, unless it `begins` this one."""
        if self.first is not None:
            item, self.first = (self.first, None) if begins else (None, self.first)
            return item
        if not self.has_more():
            return None
        assert self.read is not None
        item = self.upload(self.read)
        with self.watch.stage("scenes"):
            is_cut = self.detector is not None and self.detector.is_cut(item.rgb)
        self.read = None
        if is_cut and not begins:
            self.first = item
            return None
        return item


class _Scene:
    """The frames up to the next cut.

    done: the last that are, as many as bring a state back. todo: those that were read and are not done.
    """

    def __init__(self, source: _Source, warm_up: int) -> None:
        self.source = source
        self.done: deque[Frame] = deque(maxlen=warm_up)
        self.todo: deque[Frame] = deque()
        self.has_begun = self.is_over = False

    def items(self) -> Iterator[_Uploaded]:
        """Give the last frames that are done, those that are not, and then what is left of the scene."""
        for frame in (*self.done, *self.todo):
            yield self.source.upload(frame)
        while (item := self.source.next_of_scene(begins=not self.has_begun)) is not None:
            self.has_begun = True
            self.todo.append(item.frame)
            yield item

    def advance(self) -> None:
        """Count the first frame that was not done as done."""
        self.done.append(self.todo.popleft())
