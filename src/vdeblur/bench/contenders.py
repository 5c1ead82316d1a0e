"""The contenders of a bench: models as `run` runs them, and FFmpeg's filters, with the same interface.

existing.py has those that restore nothing.

A contender restores a sequence of 8-bit RGB pictures, which is one scene. It has the name that the user typed, the name
of its model, its weights and their digest (empty if it has none), its precision and its number of parameters.
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
from vdeblur.bench.existing import IDEAL_LUMA, Existing, IdealLuma
from vdeblur.bench.network_speed import count_flops
from vdeblur.datasets import pictures
from vdeblur.errors import DeviceError, ModelError, UsageError
from vdeblur.events import Talk
from vdeblur.measure.protocols import TILE_SIDE, Protocol
from vdeblur.models import cache, registry, weights
from vdeblur.models.registry import ModelEntry, PublishedScore, Weights
from vdeblur.networks.layers import Network
from vdeblur.restore import streams
from vdeblur.restore.clip import restored_pictures
from vdeblur.restore.device import choose_precision, place
from vdeblur.restore.tiles import TilePlan, cut_mean_tiles

ALWAYS = ("identity", *BASELINES)  # in every table
NO_MODELS = (*BASELINES, IDEAL_LUMA)
LUMA_NETWORKS = ("spn",)  # restore luma only, so the table shows their ceiling
RATE = Fraction(25)  # frames per second, which filters need


@dataclass
class Waited:
    """Seconds that a contender waited for blurry pictures, which do not count as its own time."""

    seconds: float = 0.0

    def through(self, blurry: Iterator[Tensor], check_stop: Callable[[], None]) -> Iterator[Tensor]:
        """Yield the same pictures and add up the time each took to arrive; call check_stop before each."""
        while True:
            check_stop()
            begun = time.perf_counter()
            picture = next(blurry, None)
            self.seconds += time.perf_counter() - begun
            if picture is None:
                return
            yield picture


def check_names(names: tuple[str, ...]) -> None:
    """Check the names before a picture is read.

    Raises: ModelError or UsageError for a name that cannot be measured.
    """
    for name in names:
        if name in registry.CHOSEN_NAMES:
            raise UsageError(
                f"{name} is no model of its own, so bench cannot measure it", "name models: vdeblur models list"
            )
        if name not in NO_MODELS:
            registry.choose_weights(name)


def with_ceiling(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names with "ideal-luma" at the end if a network among them restores luma only."""
    entries = [registry.choose_weights(name)[0] for name in names if name not in NO_MODELS]
    is_needed = any(entry.network in LUMA_NETWORKS for entry in entries) and IDEAL_LUMA not in names
    return (*names, IDEAL_LUMA) if is_needed else names


def obtain_contenders(names: tuple[str, ...], talk: Talk) -> dict[str, ModelError]:
    """Download the weights of all models before the first one is measured.

    Return the models whose weights are not available, with the reason.
    """
    missing: dict[str, ModelError] = {}
    for name in names:
        if name not in NO_MODELS:
            entry, chosen_weights = registry.choose_weights(name)
            try:
                if chosen_weights is not None:
                    cache.obtain_weights(entry, chosen_weights, talk)
                else:
                    weights.load_model(name)  # raises with the reason if there are none
            except ModelError as error:
                missing[name] = error
    return missing


def load_contender(name: str, device: torch.device, precision: str, talk: Talk) -> "Contender":
    """Return the filter or the loaded model of this name, or the ideal luma.

    Raises: ModelError if its weights are not available.
    """
    if name == IDEAL_LUMA:
        return IdealLuma()
    return Filter(name) if name in BASELINES else MeasuredModel(name, device, precision, talk)


class Filter:
    """One of FFmpeg's sharpening filters."""

    weights, digest, precision, parameters, version = "", "", "8 bit", 0, ""
    entry: ModelEntry | None = None
    chosen_weights: Weights | None = None

    def __init__(self, name: str) -> None:
        self.name = self.model = name

    def restore(self, blurry: Iterator[Tensor], protocol: Protocol, dataset: str) -> Iterator[Tensor]:
        """Yield each picture filtered."""
        frames = (pictures.to_frame(picture) for picture in blurry)
        yield from map(pictures.of_frame, BASELINES[self.name](_timed(frames)))

    def flops(self, height: int, width: int) -> float | None:
        """Return None: nothing counts a filter's operations."""
        return None


def _timed(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Yield the frames with times at RATE."""
    for index, frame in enumerate(frames):
        frame.pts, frame.time_base = index, 1 / RATE
        yield frame


class MeasuredModel:
    """A network with its weights on a device."""

    version = ""

    def __init__(self, name: str, device: torch.device, precision: str, talk: Talk) -> None:
        self.name, self.device = name, device
        self.entry, self.chosen_weights = registry.choose_weights(name)
        network = weights.load_model(name, talk=talk)
        self.precision = choose_precision(precision, device, network)
        if self.precision != "fp32" and self.precision not in network.half_precision:
            message = f"{name} loses quality in {self.precision}; it is meant for fp32"
            talk.notify("warning", {"code": "W_PRECISION", "message": message})
        self.network: Network = place(network, device, self.precision)
        self.model, self.weights = self.entry.name, self.chosen_weights.name if self.chosen_weights else ""
        self.digest = cache.digest_of(self.entry, self.chosen_weights) if self.chosen_weights else ""
        self.parameters = sum(parameter.numel() for parameter in self.network.parameters())

    def restore(self, blurry: Iterator[Tensor], protocol: Protocol, dataset: str) -> Iterator[Tensor]:
        """Yield each picture restored, on the device; as `run` writes it to a PNG if the protocol rounds.

        Raises: DeviceError for NaN and infinities.
        """
        feed, cut = self._feed(protocol, dataset), self._cut(protocol, dataset)
        for restored in restored_pictures(self.network, self.device, blurry, feed, cut=cut):
            if not bool(torch.isfinite(restored.sum())):
                raise DeviceError(f"{self.name} returned values that are not finite", "use --precision fp32")
            yield protocol.to_8bit(restored)

    def _feed(self, protocol: Protocol, dataset: str) -> streams.Feeding:
        assert self.entry is not None
        chunk = protocol.chunk_of(self.entry.network, dataset)
        return streams.stream if chunk is None else functools.partial(streams.stream_chunks, chunk=chunk)

    def _cut(self, protocol: Protocol, dataset: str) -> Callable[[int, int], TilePlan] | None:
        assert self.entry is not None
        overlap = protocol.overlap_of(self.entry.network, dataset)
        return None if overlap is None else functools.partial(cut_mean_tiles, side=TILE_SIDE, overlap=overlap)

    @torch.inference_mode()
    def flops(self, height: int, width: int) -> float | None:
        """Count the floating-point operations of a frame of this size; see network_speed.count_flops."""
        return count_flops(self.network, self.device, height, width)


Contender = MeasuredModel | Filter | Existing


def published_score(contender: Contender, title: str, protocol: Protocol) -> tuple[PublishedScore | None, str]:
    """Return the score that was published on this data set by this protocol, and the weights that it is of.

    Of published weights it is their own score. Beside imported weights, such as one's own training, stands the paper's
    score of this model, whichever published weights it is of; the name is empty if the authors published none.
    title: of the data set, which must be complete.
    """
    chosen, entry = contender.chosen_weights, contender.entry
    if chosen is None or entry is None:
        return None, ""
    several = [(entry.weights[name].scores, name) for name in entry.weights] if chosen.imported else []
    for scores, name in [(chosen.scores, chosen.name), *several, *([(entry.scores, "")] if chosen.imported else [])]:
        for score in scores:
            if score.data == title and protocol.name in score.bench:
                return score, name
    return None, ""


def other_protocols(contender: Contender, title: str, protocol: Protocol) -> tuple[str, ...]:
    """Return the protocols by which scores of these weights on this data set were published, if not by this one."""
    scores = contender.chosen_weights.scores if contender.chosen_weights else ()
    names = tuple(name for score in scores if score.data == title for name in score.bench)
    return () if protocol.name in names else names
