"""What a run is made of, each part timed alone: the network, every stage around it, decoder, encoder, and the whole.

speed.py starts a process for each part, so that peaks of memory do not add up: `python -m vdeblur.bench.stages` takes
one line of JSON, {"part": a key of PARTS, its arguments}, and gives one, what the part's function gives.
"""

import json
import math
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import av
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vdeblur import settings
from vdeblur.bench.baselines import BASELINES
from vdeblur.errors import DeviceError, VdeblurError
from vdeblur.events import ignore
from vdeblur.frame import Copier, Frame
from vdeblur.models import cache, registry, weights
from vdeblur.networks.layers import Network
from vdeblur.output.encoding import VideoEncoding
from vdeblur.restore import color, device, scenes, streams
from vdeblur.restore.memory import resident_peak
from vdeblur.restore.plan import plan_tiles
from vdeblur.restore.tiles import TilePlan
from vdeblur.restore.watch import Stopwatch, synchronize
from vdeblur.run import pipeline
from vdeblur.settings import Settings
from vdeblur.source import video
from vdeblur.source.info import SourceInfo
from vdeblur.source.video import Source

WARM_UP = 4  # frames, before anything is timed: memory is allocated, kernels are chosen
SHORT, LONG = 3, 5  # frames of two clips; what the longer one costs more is the cost of two frames
COUNTED = 4  # FLOPs are counted on frames of this part of the sides, and grow with the area,
SMALLEST_COUNTED = 128  # but on none smaller than this
PICTURES = 8  # that differ, of random samples; they are gone through again and again
STAGES = ("color", "scenes", "tiles", "network", "difference")  # between decoder and encoder, in this order
INVISIBLE = 1e-6  # strength with which untrained networks change no sample, but everything is computed

T = TypeVar("T")


def load_network(model: str) -> tuple[Network, bool]:
    """Give a model's network, and whether it has its weights; random ones where those are not on this machine.

    Raises: ModelError where there is no such model.
    """
    entry, one = registry.choose_weights(model)
    is_there = one is not None and cache.is_cached(entry, one)
    if is_there or not entry.network or not entry.build().state_dict():
        return weights.load_model(model), True
    torch.manual_seed(0)
    network = entry.build().eval()
    for parameter in network.parameters():
        parameter.data.mul_(0.5)  # keeps untrained recurrences from running away
    return network, False


@torch.inference_mode()
def time_network(
    model: str, device_name: str, precision: str, width: int, height: int, frames: int, clip: str
) -> dict[str, Any]:
    """Time a network alone, then the stages around it; count its operations.

    Gives network_fps, frames over the seconds that a clip of so many takes; network_seconds, the median and the 95th
    percentile of the time from one restored frame to the next (networks that restore windows give many at once);
    network_cpu_seconds, the processor's for a frame; network_memory_bytes, the process's peak; stages, seconds for a
    frame; flops for a frame, params, precision, trained.
    """
    network, trained = load_network(model)
    params = sum(parameter.numel() for parameter in network.parameters())
    chosen = device.choose_device(device_name)
    precision = device.choose_precision(precision, chosen, network)
    network = device.place(network, chosen, precision)
    plan = plan_tiles(Settings(), height, width, network, chosen)
    pictures = [torch.rand(1, 3, height, width, device=chosen) for _ in range(PICTURES)]

    def given(count: int) -> Iterator[Tensor]:
        return (plan.pad(pictures[index % PICTURES]) for index in range(count))

    deque(streams.stream(network, given(WARM_UP), plan), maxlen=0)
    watch = _Marks(chosen)
    processor = time.process_time()
    for _ in streams.stream(network, given(frames), plan):
        watch.mark()
    seconds = watch.seconds()
    processor = time.process_time() - processor
    memory = peak_memory(chosen)
    return {
        "precision": precision,
        "trained": trained,
        "params": params,
        "flops": count_flops(network, chosen, height, width),
        "network_fps": frames / sum(seconds),
        "network_seconds": {"median": statistics.median(seconds), "p95": percentile(seconds, 0.95)},
        "network_cpu_seconds": processor / frames,
        "network_memory_bytes": memory["memory_bytes"],
        "network_device_memory_bytes": memory["device_memory_bytes"],
        "stages": time_stages(network, chosen, Path(clip)),
    }


def count_flops(network: Network, chosen: torch.device, height: int, width: int) -> float:
    """Count floating-point operations for a frame inside a clip that fits in a window: 2 for a multiply-add.

    By torch's own counter, which knows convolutions and products of matrices, of what is computed on this device: on a
    CPU FewChannelsConv2d does more than it would have to.
    """
    small_height, small_width = (min(side, max(side // COUNTED, SMALLEST_COUNTED)) for side in (height, width))
    told = Settings(tile="none")
    plan = plan_tiles(told, small_height, small_width, network, chosen)
    whole = plan_tiles(told, height, width, network, chosen)
    totals = []
    for count in (SHORT, LONG):
        with FlopCounterMode(display=False) as counter:
            given = (plan.pad(torch.rand(1, 3, small_height, small_width, device=chosen)) for _ in range(count))
            deque(streams.stream(network, given, plan), maxlen=0)
        totals.append(counter.get_total_flops())
    area = math.prod(whole.padded) / math.prod(plan.padded)
    return float((totals[1] - totals[0]) / (LONG - SHORT) * area)


def time_filter(
    model: str, device_name: str, precision: str, width: int, height: int, frames: int, clip: str
) -> dict[str, Any]:
    """Time one of FFmpeg's filters (baselines.py) alone on a clip's frames; gives what time_network does.

    It works on the processor, on Y'CbCr as it was decoded, so of the stages it is all; nothing counts its operations.
    """
    pictures = [frame.picture for frame in frames_of(video.open_source(Path(clip), settings.Cut(), ignore))]
    deque(BASELINES[model](iter(pictures[:WARM_UP])), maxlen=0)
    watch = _Marks(torch.device("cpu"))
    processor = time.process_time()
    for _ in BASELINES[model](iter(pictures)):
        watch.mark()
    processor = time.process_time() - processor
    seconds = watch.seconds()
    return {
        "precision": "8 bit",
        "trained": True,
        "params": 0,
        "flops": None,
        "network_fps": len(pictures) / sum(seconds),
        "network_seconds": {"median": statistics.median(seconds), "p95": percentile(seconds, 0.95)},
        "network_cpu_seconds": processor / len(pictures),
        "network_memory_bytes": resident_peak(),
        "network_device_memory_bytes": None,
        "stages": dict.fromkeys(STAGES, 0.0) | {"network": sum(seconds) / len(pictures)},
    }


class _Marks:
    """Times from mark to mark, the first one from here; taken on a GPU's own clock without stopping it."""

    def __init__(self, chosen: torch.device) -> None:
        self.chosen = chosen
        self.marks: list[Any] = []
        synchronize(chosen)
        self.mark()

    def mark(self) -> None:
        """Note that something is ready."""
        if self.chosen.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            synchronize(self.chosen)
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Give the times."""
        synchronize(self.chosen)
        pairs = zip(self.marks[:-1], self.marks[1:], strict=True)
        if self.chosen.type == "cuda":
            return [before.elapsed_time(after) / 1000 for before, after in pairs]
        return [after - before for before, after in pairs]


def percentile(values: list[float], share: float) -> float:
    """Give the least of the values that so large a share of them does not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


@dataclass(frozen=True)
class _WatchedPlan(TilePlan):
    """A plan whose own work is timed."""

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
    """Time what happens to a frame between decoder and encoder, one stage after the other: seconds for a frame.

    color (upload, Y'CbCr to RGB), scenes, tiles (pad, split, blend, crop), network, difference (back onto the planes).
    """
    _stages(network, chosen, clip, settings.Cut(frames=WARM_UP))
    totals, frames = _stages(network, chosen, clip, settings.Cut())
    return {stage: totals[stage] / frames for stage in STAGES}


def _stages(network: Network, chosen: torch.device, clip: Path, cut: settings.Cut) -> tuple[dict[str, float], int]:
    """Give seconds by stage, and the number of frames."""
    source = video.open_source(clip, cut, ignore)
    plan = plan_tiles(Settings(), source.info.height, source.info.width, network, chosen)
    watch = Stopwatch(chosen)
    watched = _WatchedPlan(**{one.name: getattr(plan, one.name) for one in fields(plan)}, watch=watch)
    detector, copier = scenes.SceneDetector(), Copier()
    waiting: deque[tuple[Frame, color.ColorSpace, list[Tensor], Tensor]] = deque()

    def uploaded() -> Iterator[Tensor]:
        for frame in watch.each(frames_of(source), "decode"):  # whose time is not wanted here
            with watch.stage("color"):
                space = color.ColorSpace.of(frame.picture)
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


def time_pipeline(model: str, device_name: str, precision: str, clip: str, output: str) -> dict[str, Any]:
    """Time a run as a whole, from opening the clip to the finished file, after a run of WARM_UP frames.

    Gives pipeline_fps, memory_bytes and device_memory_bytes (None without one), the process's peaks.
    """
    network, trained = load_network(model)
    strength, checkpoint = 1.0, None
    if not trained:
        strength, checkpoint = INVISIBLE, Path(output).with_suffix(".safetensors")
        safetensors.torch.save_file(network.state_dict(), checkpoint)
        model = registry.find_entry(model).name
    del network

    def restored(cut: settings.Cut) -> pipeline.RunResult:
        encoding = settings.EncodeOptions(overwrite=True)
        told = Settings(
            model=model,
            checkpoint=checkpoint,
            offline=True,
            device=device_name,
            precision=precision,
            strength=strength,
            cut=cut,
            encoding=encoding,
        )
        return pipeline.restore_file(Path(clip), Path(output), told)

    restored(settings.Cut(frames=WARM_UP))
    begun = time.perf_counter()
    result = restored(settings.Cut())
    seconds = time.perf_counter() - begun
    return {"pipeline_fps": result.frames / seconds, **peak_memory(device.choose_device(device_name))}


def time_filtering(model: str, device_name: str, precision: str, clip: str, output: str) -> dict[str, Any]:
    """Time decoding, one of FFmpeg's filters and encoding as a run does, one after the other; as time_pipeline."""

    def filtered(cut: settings.Cut) -> tuple[int, float]:
        source = video.open_source(Path(clip), cut, ignore)
        waiting: deque[Frame] = deque()
        count = 0

        def pictures() -> Iterator[av.VideoFrame]:
            for frame in frames_of(source):
                waiting.append(frame)
                yield frame.picture

        def frames() -> Iterator[Frame]:
            nonlocal count
            for picture in BASELINES[model](pictures()):
                count += 1
                yield replace(waiting.popleft(), picture=picture)

        seconds = _encode(frames(), source.info, Path(output))
        return count, seconds

    filtered(settings.Cut(frames=WARM_UP))
    count, seconds = filtered(settings.Cut())
    return {"pipeline_fps": count / seconds, **peak_memory(torch.device("cpu"))}


def time_codecs(clip: str, restored: str) -> dict[str, Any]:
    """Time decoding a clip, and encoding what a run made of it again, alone, with the options that a run takes."""
    deque(frames_of(video.open_source(Path(clip), settings.Cut(), ignore)), maxlen=0)  # warm-up
    source = video.open_source(Path(clip), settings.Cut(), ignore)
    begun = time.perf_counter()
    count = sum(1 for _ in frames_of(source))
    decoding = (time.perf_counter() - begun) / count
    source = video.open_source(Path(restored), settings.Cut(), ignore)
    pictures = list(frames_of(source))
    with tempfile.TemporaryDirectory() as folder:
        encoding = _encode(pictures, source.info, Path(folder) / "alone.mp4") / len(pictures)
    return {"decoder_fps": 1 / decoding, "encoder_fps": 1 / encoding}


def _encode(frames: Iterable[Frame], info: SourceInfo, path: Path) -> float:
    """Encode frames to a file as a run does by default; gives seconds, those that frames take to come among them."""
    encoding = VideoEncoding(info, path.suffix, settings.EncodeOptions(), ignore)
    encoder = encoding.open()
    with av.open(str(path), "w") as container:
        encoder.add_to(container)
        begun = time.perf_counter()
        for frame in frames:
            container.mux(encoder.encode(encoding.prepare(frame)))
        container.mux(encoder.encode(None))
        return time.perf_counter() - begun


def frames_of(source: Source) -> Iterator[Frame]:
    """Give a source's frames without the packets between them."""
    return (item for item in source.items() if isinstance(item, Frame))


def make_clip(path: Path, width: int, height: int, frames: int) -> Path:
    """Write a clip like filmed footage: H.264, 4:2:0, 25 frames a second; of the same pictures in every run.

    A texture with detail of all sizes, as in nature, is panned across along a curve, smeared by the motion of a frame
    interval, with a grain that is another in each frame.
    """
    generator = torch.Generator().manual_seed(0)
    reach = 64  # pixels that the pan covers
    texture = torch.full((1, 3, height + reach, width + reach), 0.5)
    size = 4
    while size < 2 * max(height, width):
        octave = torch.rand(1, 3, min(size, height + reach), min(size, width + reach), generator=generator) - 0.5
        octave = 0.5 * octave + octave.mean(1, keepdim=True)  # more light and shade than colour
        texture += 0.35 * 0.75 ** math.log2(size) * F.interpolate(octave, texture.shape[2:], mode="bicubic")
        size *= 2
    codes = texture[0].clamp(0, 1) * 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "18", "preset": "veryfast"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            places = [_pan(index + part / 4, reach) for part in range(4)]
            smeared = torch.stack([codes[:, y : y + height, x : x + width] for y, x in places]).mean(0)
            grain = 2 * torch.randn(height, width, generator=generator)
            picture = (smeared + grain).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _pan(moment: float, reach: int) -> tuple[int, int]:
    """Give the top and left of what the camera sees; some four pixels further with every frame."""
    return tuple(round((1 + math.sin(moment * speed)) / 2 * reach) for speed in (0.09, 0.14))  # type: ignore[return-value]


def peak_memory(chosen: torch.device) -> dict[str, int | None]:
    """Give the most memory that this process has held: resident, and on a CUDA device."""
    on_device = torch.cuda.max_memory_allocated() if chosen.type == "cuda" else None
    return {"memory_bytes": resident_peak(), "device_memory_bytes": on_device}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "network": time_network,
    "pipeline": time_pipeline,
    "filter": time_filter,
    "filtering": time_filtering,
    "codecs": time_codecs,
}


def run_stage() -> None:
    """Do one part, as the line on stdin says; errors that a user can mend are told as JSON, too."""
    told = json.loads(sys.stdin.readline())
    try:
        result = PARTS[told.pop("part")](**told)
    except torch.OutOfMemoryError:
        error: VdeblurError = DeviceError("the device is out of memory", "choose a smaller --size")
        result = {"error": [type(error).__name__, error.message, error.hint]}
    except VdeblurError as error:
        result = {"error": [type(error).__name__, error.message, error.hint]}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    run_stage()
