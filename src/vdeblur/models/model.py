"""The public Model: a network with its weights on a device, which restores tensors and arrays."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Self, TypeVar

import numpy
import torch
from torch import Tensor

from vdeblur.errors import DeviceError, UsageError
from vdeblur.events import Ask, Notify, Stop, Talk, ignore, never
from vdeblur.models import weights as weights_of_models
from vdeblur.models.registry import CHOSEN_NAMES
from vdeblur.networks.layers import Network
from vdeblur.restore import device, memory, streams
from vdeblur.restore import plan as plans
from vdeblur.restore.tiles import TilePlan
from vdeblur.settings import Settings

Picture = TypeVar("Picture", Tensor, numpy.ndarray)  # one frame or a clip of them
TENSORS = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
ARRAYS = (numpy.uint8, numpy.float16, numpy.float32, numpy.float64)
SLACK = 1e-3  # by which floats may leave [0, 1]: rounding in half precision


class Model:
    """A network with its weights on a device.

        model = vdeblur.load_model("lite", device="cuda")
        sharp = model(clip)                             # a clip
        for frame in model.stream(frames): ...          # a video of any length

    name: as load_model got it, or the network's class. network: the bare nn.Module, on `device`, its weights in
    `precision` ("fp32", "bf16" or "fp16"). settings: tile, tile_overlap and strength. One thread at a time.

    Frames are R'G'B', in [0, 1] if they are floats, uint8 otherwise. All frames of a clip are one scene: nothing here
    looks for cuts, as `vdeblur run` does, so pass scenes one by one.
    """

    def __init__(self, network: Network, settings: Settings, *, name: str = "", notify: Notify = ignore) -> None:
        """Place a network, itself and not a copy, on settings.device in settings.precision, for evaluation.

        Raises: DeviceError if the device is missing or has no room; UsageError if network is not a Network.
        """
        if not isinstance(network, Network):
            raise UsageError(
                f"{type(network).__name__} is not a network of vdeblur",
                "derive its class from vdeblur.networks.layers.Network, see docs/python.md",
            )
        self.name, self.settings, self.notify = name or type(network).__name__, settings, notify
        if settings.precision not in ("auto", *device.DTYPES):
            choices = ", ".join(("auto", *device.DTYPES))
            raise UsageError(f"unknown precision {settings.precision!r}", f"choose from {choices}")
        self.device = device.choose_device(settings.device, self._warn_of_fallback)
        self.precision = device.choose_precision(settings.precision, self.device, network)
        if self.precision != "fp32" and self.precision not in network.half_precision:
            self._warn("W_PRECISION", f"{self.name} loses quality in {self.precision}; it is meant for fp32")
        try:
            self.network = device.place(network.eval(), self.device, self.precision)
        except device.FAULTS as error:
            reason = f"{self.device} cannot take the network: {device.in_a_line(error)}"
            raise DeviceError(reason, 'close other programs, or use device="cpu"') from error
        self._exact: Network | None = None  # a copy in float32, once half precision has overflowed

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] | Network = "lite",
        *,
        weights: str | os.PathLike[str] | None = None,
        device: str = "auto",
        precision: str = "auto",
        tile: str = "auto",
        tile_overlap: int | None = None,
        strength: float = 1.0,
        offline: bool = False,
        yes: bool = False,
        notify: Notify = ignore,
        ask: Ask | None = None,
        should_stop: Stop = never,
    ) -> Self:
        """Load a model by its name and place it on a device; download its weights if they are not cached.

            model = vdeblur.load_model("dstnet@dvd", device="cuda", precision="fp16")
            model = vdeblur.load_model("dstnet", weights="checkpoint.pth")
            model = vdeblur.load_model("my_net.py:MyNet", weights="my_net.safetensors")
            model = vdeblur.load_model(MyNet())

        model: NAME or NAME@WEIGHTS, see list_models; FILE.py:CLASS for a network of your own, whose code runs; or a
        network itself, which is moved, not copied. weights: a checkpoint instead of the model's own weights. device:
        "auto", "cpu", "cuda", "cuda:1", "mps", "xpu". precision: "auto", "fp32", "bf16", "fp16". tile: "auto", "none",
        "N" or "WxH", the largest piece in pixels. tile_overlap: pixels that neighbouring tiles share; None for the
        network's own. strength: how much of the restoration is added, 0 to 1. offline, yes, ask: whether to download,
        and whether and whom to ask about weights that cannot be verified. notify: takes download events and warnings,
        a name and a dict each. should_stop: called while downloading; returns None, or an ExitStatus to stop.

        Raises: ModelError, DeviceError, UsageError for wrong values, InterruptedRunError.
        """
        settings = Settings(device=device, precision=precision, tile=tile, tile_overlap=tile_overlap, strength=strength)
        if isinstance(model, str | os.PathLike):
            name = os.fspath(model)
            if name in CHOSEN_NAMES:
                raise UsageError(f'"{name}" is chosen for a video', "name a model, see vdeblur.list_models()")
            checkpoint = None if weights is None else Path(weights)
            talk = Talk(offline, yes, notify, ask, should_stop)
            return cls(weights_of_models.load_model(name, checkpoint, talk), settings, name=name, notify=notify)
        if weights is not None:
            raise UsageError("a network that exists has its weights", "load them into it, or leave out weights")
        return cls(model, settings, notify=notify)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, device={str(self.device)!r}, precision={self.precision!r})"

    def __call__(self, clip: Picture) -> Picture:
        """Return a clip restored: its shape, dtype, kind and device; floats are within [0, 1].

        clip: a tensor (T, 3, H, W) or (B, T, 3, H, W), or an array (T, H, W, 3) or (B, T, H, W, 3). Clips along B are
        restored one after the other. T is one scene, in order. Any H, W and T from 1 on.

        Raises: UsageError if shape, dtype or range is wrong; DeviceError if memory does not suffice or the network
        returns NaN.
        """
        if not isinstance(clip, Tensor | numpy.ndarray):
            raise UsageError(f"a clip must be a tensor or an array, not {type(clip).__name__}", "see docs/python.md")
        if clip.ndim not in (4, 5):
            axes = "(T, 3, H, W) or (B, T, 3, H, W)" if isinstance(clip, Tensor) else "(T, H, W, 3) or (B, T, H, W, 3)"
            raise UsageError(f"a clip must be {axes}, not {_shape_of(clip)}", "a single frame is clip[None]")
        scenes = clip if clip.ndim == 5 else clip[None]
        restored = torch.empty_like(clip, requires_grad=False) if isinstance(clip, Tensor) else numpy.empty_like(clip)
        targets = restored if clip.ndim == 5 else restored[None]
        for scene, target in zip(scenes, targets, strict=True):
            for index, frame in enumerate(self.stream(iter(scene))):
                target[index] = frame
        return restored

    def stream(self, frames: Iterable[Picture]) -> Generator[Picture]:
        """Yield each frame restored, in order, in its own dtype and kind, on its own device.

        frames: tensors (3, H, W) or arrays (H, W, 3), any number of them, all of one size; they are one scene. They are
        read as the network needs them: at most a few dozen ahead, so memory does not grow with their number.

        Raises: as for a clip, at the frame that is wrong.
        """
        waiting: deque[Picture] = deque()  # read and not yielded
        source = iter(frames)
        is_reading = False
        size: tuple[int, ...] | None = None

        def uploaded() -> Iterator[Tensor]:
            nonlocal is_reading, size
            while True:
                is_reading = True
                # Whoever makes the frames must not make tensors that autograd refuses.
                with torch.inference_mode(False):
                    frame = next(source, None)
                is_reading = False
                if frame is None:
                    return
                tensor = _checked(frame)
                size = size or tuple(tensor.shape)
                if tuple(tensor.shape) != size:
                    found = f"{tensor.shape[2]}x{tensor.shape[1]} after {size[2]}x{size[1]}"
                    raise UsageError(f"all frames must have one size, but one is {found}", "restore sizes one by one")
                waiting.append(frame)
                yield _as_rgb(tensor, self.device)

        for difference in self._differences(uploaded(), lambda: is_reading):
            yield _with_difference(waiting.popleft(), difference)

    @torch.inference_mode()
    def _differences(self, pictures: Iterator[Tensor], is_reading: Callable[[], bool]) -> Generator[Tensor]:
        """Yield what the network changes in each picture, times strength: (3, H, W) float32, on the device.

        pictures: (3, H, W) float32 in [0, 1], on the device. If memory does not suffice, smaller tiles continue; if
        half precision overflows, float32 does. The new stream replays the last finished pictures, to rebuild the
        network's state, and goes on with the first unfinished one.
        """
        first = next(pictures, None)
        if first is None:
            return
        plan = plans.plan_tiles(self.settings, first.shape[1], first.shape[2], self.network, self.device)
        network = self.network
        finished: deque[Tensor] = deque(maxlen=streams.frames_around(network)[0])
        unfinished: deque[Tensor] = deque([first])

        def padded(plan: TilePlan) -> Iterator[Tensor]:
            for picture in (*finished, *unfinished):
                yield plan.pad(picture[None])
            for picture in pictures:
                unfinished.append(picture)
                yield plan.pad(picture[None])

        while True:
            replayed = len(finished)
            is_sound = True
            try:
                for index, restored in enumerate(streams.stream(network, padded(plan), plan)):
                    if index < replayed:
                        continue
                    difference = (plan.crop(restored)[0].float() - unfinished[0]) * self.settings.strength
                    is_sound = bool(difference.sum().isfinite())
                    if not is_sound:
                        break
                    finished.append(unfinished.popleft())
                    yield difference
                else:
                    return
            except (RuntimeError, MemoryError) as error:
                if is_reading() or not memory.is_lacking(error):
                    raise
                plan = self._smaller(plan, error)
            if not is_sound:
                network = self._in_float32(network)
            memory.release(self.device)  # the failed stream and its error are gone by now

    def _smaller(self, plan: TilePlan, error: BaseException) -> TilePlan:
        """Return the next smaller plan.

        Raises: DeviceError if there is none.
        """
        smaller = plans.smaller(plan, plans.overlap_of(self.settings, self.network), self.network)
        if smaller is None:
            reason = f"{self.device} is out of memory, even with {plans.in_words(plan)}"
            raise DeviceError(reason, "close other programs, or use a smaller model such as lite") from error
        self._warn("W_OUT_OF_MEMORY", f"{self.device} was out of memory; continuing with {plans.in_words(smaller)}")
        return smaller

    def _in_float32(self, network: Network) -> Network:
        """Return the network in float32, after `network` returned values that are not finite.

        Raises: DeviceError if it was in float32 already.
        """
        if network.float32_weights is None:
            raise DeviceError(f"{self.name} returned values that are not finite", "use other weights or another model")
        self._warn("W_NON_FINITE", "half precision overflowed: the rest is restored in float32")
        if self._exact is None:
            self._exact = device.float32_copy(self.network, self.device)
        return self._exact

    def _warn(self, code: str, message: str) -> None:
        self.notify("warning", {"code": code, "message": message})

    def _warn_of_fallback(self, reason: str) -> None:
        self._warn("W_DEVICE", reason)


def _checked(frame: Tensor | numpy.ndarray) -> Tensor:
    """Return a frame as a tensor (3, H, W), without a gradient, on its own device.

    Raises: UsageError if it is no frame.
    """
    if not isinstance(frame, Tensor | numpy.ndarray):
        raise UsageError(f"a frame must be a tensor or an array, not {type(frame).__name__}", "see docs/python.md")
    is_tensor = isinstance(frame, Tensor)
    channels = 0 if is_tensor else 2
    if frame.ndim != 3 or frame.shape[channels] != 3 or 0 in frame.shape:
        axes = "a tensor must be (3, H, W)" if is_tensor else "an array must be (H, W, 3)"
        hint = "tensors have their channels first, arrays last; a clip has the frames before them"
        raise UsageError(f"a frame as {axes}, not {_shape_of(frame)}", hint)
    if frame.dtype not in (TENSORS if is_tensor else ARRAYS):
        raise UsageError(f"frames of {frame.dtype} cannot be restored", "use float32 in [0, 1], or uint8")
    tensor = frame.detach() if isinstance(frame, Tensor) else torch.from_numpy(numpy.array(frame)).permute(2, 0, 1)
    if tensor.dtype != torch.uint8:
        lowest, highest = (float(value) for value in tensor.aminmax())
        if not (lowest >= -SLACK and highest <= 1 + SLACK):  # NaN is refused, too
            hint = "divide 8-bit values by 255, or pass uint8; clamp what resizing leaves outside"
            raise UsageError(f"values of a float frame must be in [0, 1], not {lowest:.4g} to {highest:.4g}", hint)
    return tensor


def _as_rgb(frame: Tensor, chosen: torch.device) -> Tensor:
    """Return a tensor (3, H, W) as float32 in [0, 1] on a device."""
    if frame.dtype == torch.uint8:
        return frame.to(chosen).float() / 255
    return frame.float().to(chosen).clamp(0, 1)


def _with_difference(frame: Picture, difference: Tensor) -> Picture:
    """Return a frame with a difference added, as `vdeblur run` adds it to a plane; rounded if it is uint8."""
    if not isinstance(frame, Tensor):
        added = _with_difference(torch.from_numpy(numpy.array(frame)), difference.permute(1, 2, 0).cpu())
        return added.numpy()
    change = difference.to(frame.device)
    before = frame.detach()
    if frame.dtype == torch.uint8:
        return (before.float() + change * 255).round_().clamp_(0, 255).to(torch.uint8)
    exact = before.to(torch.promote_types(frame.dtype, torch.float32))
    return (exact + change).clamp_(0, 1).to(frame.dtype)


def _shape_of(picture: Tensor | numpy.ndarray) -> str:
    return f"({', '.join(str(side) for side in picture.shape)}{',' if picture.ndim == 1 else ''})"
