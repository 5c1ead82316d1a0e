"""Time a network or a filter alone, and the stages between decoder and encoder; count a network's operations."""

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vdeblur import settings
from vdeblur.bench.baselines import BASELINES
from vdeblur.bench.speed_results import NetworkSeconds, NetworkSpeed
from vdeblur.events import ignore
from vdeblur.frame import Copier, Frame
from vdeblur.models import cache, registry, weights
from vdeblur.networks.layers import Network
from vdeblur.restore import color, device, scenes, streams
from vdeblur.restore.memory import resident_peak
from vdeblur.restore.plan import plan_tiles
from vdeblur.restore.tiles import TilePlan
from vdeblur.restore.watch import Stopwatch, synchronize
from vdeblur.settings import Settings
from vdeblur.source import video
from vdeblur.source.video import Source

WARM_UP = 4  # frames before the clock starts: memory is allocated, kernels are chosen
SHORT, LONG = 3, 5  # frames of two clips; the longer one costs two frames more
COUNTED = 4  # FLOPs are counted on frames with sides this much smaller, and scaled by the area,
SMALLEST_COUNTED = 128  # but on no side smaller than this
PICTURES = 8  # different pictures of random samples, used in turn
STAGES = ("color", "scenes", "tiles", "network", "difference")  # between decoder and encoder, in this order


def load_network(model: str) -> tuple[Network, bool]:
    """Return a model's network, and whether it is trained: without weights on this machine it gets random ones.

    Raises: ModelError if there is no such model.
    """
    entry, chosen = registry.choose_weights(model)
    is_cached = chosen is not None and cache.is_cached(entry, chosen)
    if is_cached or not entry.network or not entry.build().state_dict():
        return weights.load_model(model), True
    torch.manual_seed(0)
    network = entry.build().eval()
    for parameter in network.parameters():
        parameter.data.mul_(0.5)  # keeps untrained recurrences from running away
    return network, False


@torch.inference_mode()
def time_network(
    model: str, device_name: str, precision: str, width: int, height: int, frames: int, clip: str
) -> NetworkSpeed:
    """Time a network alone on random pictures, then the stages around it on a clip; count its operations."""
    network, trained = load_network(model)
    params = sum(parameter.numel() for parameter in network.parameters())
    chosen = device.choose_device(device_name)
    precision = device.choose_precision(precision, chosen, network)
    network = device.place(network, chosen, precision)
    plan = plan_tiles(Settings(), height, width, network, chosen)
    pictures = [torch.rand(1, 3, height, width, device=chosen) for _ in range(PICTURES)]

    def padded(count: int) -> Iterator[Tensor]:
        return (plan.pad(pictures[index % PICTURES]) for index in range(count))

    deque(streams.stream(network, padded(WARM_UP), plan), maxlen=0)
    marks = _Marks(chosen)
    processor = time.process_time()
    for _ in streams.stream(network, padded(frames), plan):
        marks.mark()
    seconds = marks.seconds()
    processor = time.process_time() - processor
    memory = resident_peak()
    on_device = torch.cuda.max_memory_allocated() if chosen.type == "cuda" else None
    return NetworkSpeed(
        precision=precision,
        trained=trained,
        params=params,
        flops=count_flops(network, chosen, height, width),
        network_fps=frames / sum(seconds),
        network_seconds=NetworkSeconds(statistics.median(seconds), percentile(seconds, 0.95)),
        network_cpu_seconds=processor / frames,
        network_memory_bytes=memory,
        network_device_memory_bytes=on_device,
        stages=time_stages(network, chosen, Path(clip)),
    )


def time_filter(
    model: str, device_name: str, precision: str, width: int, height: int, frames: int, clip: str
) -> NetworkSpeed:
    """Time one of FFmpeg's filters (baselines.py) alone on a clip's frames.

    It runs on the processor, on the decoded Y'CbCr, so it is the only stage; nothing counts its operations.
    """
    pictures = [frame.picture for frame in frames_of(video.open_source(Path(clip), settings.Cut(), ignore))]
    deque(BASELINES[model](iter(pictures[:WARM_UP])), maxlen=0)
    marks = _Marks(torch.device("cpu"))
    processor = time.process_time()
    for _ in BASELINES[model](iter(pictures)):
        marks.mark()
    processor = time.process_time() - processor
    seconds = marks.seconds()
    return NetworkSpeed(
        precision="8 bit",
        trained=True,
        params=0,
        flops=None,
        network_fps=len(pictures) / sum(seconds),
        network_seconds=NetworkSeconds(statistics.median(seconds), percentile(seconds, 0.95)),
        network_cpu_seconds=processor / len(pictures),
        network_memory_bytes=resident_peak(),
        network_device_memory_bytes=None,
        stages=dict.fromkeys(STAGES, 0.0) | {"network": sum(seconds) / len(pictures)},
    )


def count_flops(network: Network, chosen: torch.device, height: int, width: int) -> float:
    """Count the floating-point operations of a frame inside a clip that fits in a window: 2 for a multiply-add.

    torch's counter knows convolutions and products of matrices, and counts what this device computes: on a CPU
    FewChannelsConv2d computes more than it needs to.
    """
    small_height, small_width = (min(side, max(side // COUNTED, SMALLEST_COUNTED)) for side in (height, width))
    untiled = Settings(tile="none")
    plan = plan_tiles(untiled, small_height, small_width, network, chosen)
    full = plan_tiles(untiled, height, width, network, chosen)
    totals = []
    for count in (SHORT, LONG):
        with FlopCounterMode(display=False) as counter:
            noise = (plan.pad(torch.rand(1, 3, small_height, small_width, device=chosen)) for _ in range(count))
            deque(streams.stream(network, noise, plan), maxlen=0)
        totals.append(counter.get_total_flops())
    area = math.prod(full.padded) / math.prod(plan.padded)
    return float((totals[1] - totals[0]) / (LONG - SHORT) * area)


class _Marks:
    """Seconds from mark to mark, the first from construction; a GPU's own clock takes them without stopping it."""

    def __init__(self, chosen: torch.device) -> None:
        self.chosen = chosen
        self.marks: list[Any] = []
        synchronize(chosen)
        self.mark()

    def mark(self) -> None:
        """Set a mark."""
        if self.chosen.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            synchronize(self.chosen)
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Return the seconds between the marks."""
        synchronize(self.chosen)
        pairs = zip(self.marks[:-1], self.marks[1:], strict=True)
        if self.chosen.type == "cuda":
            return [before.elapsed_time(after) / 1000 for before, after in pairs]
        return [after - before for before, after in pairs]


def percentile(values: list[float], share: float) -> float:
    """Return the smallest of the values that is at least as large as this share of them."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


@dataclass(frozen=True)
class _WatchedPlan(TilePlan):
    """A plan that times its own work."""

    watch: Stopwatch = field(kw_only=True)

    def pad(self, frame: Tensor) -> Tensor:
        with self.watch.stage("tiles"):
            return super().pad(frame)

    def crop(self, padded: Tensor) -> Tensor:
        with self.watch.stage("tiles"):
            return super().crop(padded)

    def split(self, whole: Tensor, group: slice = slice(None)) -> Tensor:
        with self.watch.stage("tiles"):
            return super().split(whole, group)

    def join(self, tiles: Any) -> Tensor:
        with self.watch.stage("tiles"):
            return super().join(tiles)


def time_stages(network: Network, chosen: torch.device, clip: Path) -> dict[str, float]:
    """Time the stages between decoder and encoder, one after the other: seconds per frame.

    color (upload, Y'CbCr to RGB), scenes, tiles (pad, split, blend, crop), network, difference (back onto the planes).
    """
    _stages(network, chosen, clip, settings.Cut(frames=WARM_UP))
    totals, frames = _stages(network, chosen, clip, settings.Cut())
    return {stage: totals[stage] / frames for stage in STAGES}


def _stages(network: Network, chosen: torch.device, clip: Path, cut: settings.Cut) -> tuple[dict[str, float], int]:
    """Return seconds by stage, and the number of frames."""
    source = video.open_source(clip, cut, ignore)
    plan = plan_tiles(Settings(), source.info.height, source.info.width, network, chosen)
    watch = Stopwatch(chosen)
    watched = _WatchedPlan(**{part.name: getattr(plan, part.name) for part in fields(plan)}, watch=watch)
    detector, copier = scenes.SceneDetector(), Copier()
    waiting: deque[tuple[Frame, color.ColorSpace, list[Tensor], Tensor]] = deque()

    def uploaded() -> Iterator[Tensor]:
        for frame in watch.each(frames_of(source), "decode"):  # not in the result: time_codecs measures it
            with watch.stage("color"):
                space = color.ColorSpace.of(frame.picture, frame.chroma_location)
                planes = color.planes_of(frame, space, chosen)
                rgb = color.to_rgb(planes, space)
            with watch.stage("scenes"):
                detector.is_cut(rgb)
            waiting.append((frame, space, planes, rgb))
            yield watched.pad(rgb[None])

    count = 0
    for restored in watch.each(streams.stream(network, uploaded(), watched), "network"):
        frame, space, planes, rgb = waiting.popleft()
        with watch.stage("difference"):
            difference = watched.crop(restored)[0].float() - rgb
            color.with_planes(copier.copy(frame.picture), color.add_difference(planes, difference, space), space)
        count += 1
    source.close()
    return watch.totals, count


def frames_of(source: Source) -> Iterator[Frame]:
    """Yield a source's frames without the packets between them."""
    return (item for item in source.items() if isinstance(item, Frame))
