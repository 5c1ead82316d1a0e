"""What is measured: models as `run` runs them, and FFmpeg's filters, with one face.

A contender takes a sequence of 8-bit RGB pictures and gives as many restored ones. The whole sequence is one scene. It
says its name as the user gave it, its model, weights and their digest (empty where there are none), its precision and
the number of its parameters.
"""

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import torch
from torch import Tensor

from vdeblur.bench.baselines import BASELINES
from vdeblur.bench.stages import count_flops
from vdeblur.datasets import pictures
from vdeblur.errors import DeviceError, UsageError
from vdeblur.events import Talk
from vdeblur.measure.protocols import Protocol
from vdeblur.models import cache, registry, weights
from vdeblur.models.registry import Entry, Weights
from vdeblur.networks.layers import Network
from vdeblur.restore import device, streams
from vdeblur.restore.clip import restored_pictures

ALWAYS = ("identity", *BASELINES)  # in every table
RATE = Fraction(25)  # frames a second, for filters, which want to know


@dataclass
class Waited:
    """Seconds that a contender waited for pictures, which are not its own."""

    seconds: float = 0.0

    def through(self, blurry: Iterator[Tensor], check_stop: Callable[[], None]) -> Iterator[Tensor]:
        """Give the same pictures, and note how long each took to come; before each it is asked whether to stop."""
        while True:
            check_stop()
            begun = time.perf_counter()
            picture = next(blurry, None)
            self.seconds += time.perf_counter() - begun
            if picture is None:
                return
            yield picture


def check_names(names: tuple[str, ...]) -> None:
    """Refuse what cannot be measured, before a picture is read.

    Raises: ModelError or UsageError.
    """
    for name in names:
        if name == "best":
            raise UsageError("best is no model of its own to be measured", "name models, see vdeblur models list")
        if name not in BASELINES:
            registry.choose_weights(name)


def obtain_contenders(names: tuple[str, ...], talk: Talk) -> None:
    """Fetch the weights of all models, before the first one is measured.

    Raises: ModelError where they cannot be had.
    """
    for name in names:
        if name not in BASELINES:
            entry, chosen = registry.choose_weights(name)
            if chosen is not None:
                cache.obtain_weights(entry, chosen, talk)
            else:
                weights.load_model(name)  # says why, where there are none


def load_contender(name: str, chosen: torch.device, precision: str, talk: Talk) -> "Contender":
    """Load a model, or take a filter, by its name.

    Raises: ModelError where its weights cannot be had.
    """
    return Filter(name) if name in BASELINES else Model(name, chosen, precision, talk)


class Filter:
    """One of FFmpeg's sharpening filters."""

    weights, digest, precision, parameters = "", "", "8 bit", 0
    entry: Entry | None = None
    chosen: Weights | None = None

    def __init__(self, name: str) -> None:
        self.name = self.model = name

    def restore(self, blurry: Iterator[Tensor], protocol: Protocol, dataset: str) -> Iterator[Tensor]:
        """Give each picture filtered."""
        frames = (pictures.to_frame(picture) for picture in blurry)
        yield from map(pictures.of_frame, BASELINES[self.name](_timed(frames)))

    def flops(self, height: int, width: int) -> float | None:
        """Give None: nothing counts them."""
        return None


def _timed(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Give frames times, one after another."""
    for index, frame in enumerate(frames):
        frame.pts, frame.time_base = index, 1 / RATE
        yield frame


class Model:
    """A network with its weights on a device."""

    def __init__(self, name: str, chosen: torch.device, precision: str, talk: Talk) -> None:
        self.name, self.device = name, chosen
        self.entry, self.chosen = registry.choose_weights(name)
        network = weights.load_model(name, talk=talk)
        self.precision = device.choose_precision(precision, chosen, network)
        if self.precision != "fp32" and self.precision not in network.half_precision:
            message = f"{name} loses quality in {self.precision}; it is meant for fp32"
            talk.notify("warning", {"code": "W_PRECISION", "message": message})
        self.network: Network = device.place(network, chosen, self.precision)
        self.model, self.weights = self.entry.name, self.chosen.name if self.chosen else ""
        self.digest = cache.digest_of(self.entry, self.chosen) if self.chosen else ""
        self.parameters = sum(parameter.numel() for parameter in self.network.parameters())

    def restore(self, blurry: Iterator[Tensor], protocol: Protocol, dataset: str) -> Iterator[Tensor]:
        """Give each picture restored, on the device, as `run` would write it to a PNG where a protocol rounds."""
        for restored in restored_pictures(self.network, self.device, blurry, self._feed(protocol, dataset)):
            if not bool(torch.isfinite(restored.sum())):
                raise DeviceError(f"{self.name} gave values that are not numbers", "use --precision fp32")
            yield protocol.to_8bit(restored)

    def _feed(self, protocol: Protocol, dataset: str) -> streams.Feeding:
        assert self.entry is not None
        chunk = protocol.chunk_of(self.entry.network, dataset)
        return streams.stream if chunk is None else functools.partial(streams.stream_chunks, chunk=chunk)

    @torch.inference_mode()
    def flops(self, height: int, width: int) -> float | None:
        """Count floating-point operations for a frame of this size; see parts.count_flops."""
        return count_flops(self.network, self.device, height, width)


Contender = Model | Filter


def published_score(contender: Contender, title: str, protocol: Protocol) -> dict[str, object] | None:
    """Give the published figures that were measured with these weights on this set by this protocol, if there are any.

    title: of the data set, which must be complete.
    """
    for score in contender.chosen.scores if contender.chosen else ():
        if score.data == title and protocol.name in score.bench:
            facts = {"psnr": score.psnr, "ssim": score.ssim, "ssim_kind": score.ssim_kind, "protocol": score.protocol}
            return {**facts, "data": score.data}
    return None


def other_protocols(contender: Contender, title: str, protocol: Protocol) -> list[str]:
    """Name the protocols by which figures of these weights on this set were published, if not by this one."""
    scores = contender.chosen.scores if contender.chosen else ()
    own = [name for score in scores if score.data == title for name in score.bench]
    return [] if protocol.name in own else own
