"""Measure models on a data set by a protocol: restore, quantise, compare; goes on where it was interrupted.

`run` gives the report that `vdeblur bench` prints and writes: a dict as the README describes it, ready for
report.write.
"""

import contextlib
import dataclasses
import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from vdeblur import __version__, threads
from vdeblur.bench import contenders, memory
from vdeblur.bench.contenders import Contender
from vdeblur.bench.kept import Kept
from vdeblur.bench.results import BenchTask, FrameResult, ModelResult, SequenceResult
from vdeblur.bench.speed import device_name_of
from vdeblur.datasets import pictures
from vdeblur.datasets.layouts import DataSet, FramePair, Sequence, open_dataset
from vdeblur.errors import DeviceError, InputError, InterruptedRunError
from vdeblur.events import Ask, Notify, Stop, Talk, ignore, never
from vdeblur.measure import metrics, protocols, temporal, vmaf
from vdeblur.measure.protocols import PROTOCOLS, Protocol, Quality
from vdeblur.restore import device

AHEAD = 4  # pictures that are decoded beforehand
AT_ONCE = {"cpu": 1, "cuda": 8}  # pictures compared together
WARPED_EVERY = 5  # pairs of neighbours: their motion takes longer than all other measures together
SHOWN = 2  # of a model's worst frames, and of its best ones, in a page


def run_bench(
    task: BenchTask,
    *,
    notify: Notify = ignore,
    ask: Ask | None = None,
    stop: Stop = never,
    finish: Callable[[dict[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """Measure; gives the report.

    notify: takes the events bench, bench_model, progress, sequence_done, bench_kept (when a signal came), warning, and
    those of downloads. ask, stop: as in pipeline.run. finish: is given the report with `pictures`, see report.py, which
    are there only until it returns.

    Raises: VdeblurError; what is finished is kept, and the same task goes on there.
    """
    protocol = PROTOCOLS[task.protocol]
    names = tuple(dict.fromkeys((*task.models, *contenders.ALWAYS)))
    contenders.check_names(names)
    if task.vmaf:
        vmaf.check_vmaf()
    talk = Talk(task.offline, task.yes, notify, ask, stop)

    def warn(code: str, message: str) -> None:
        notify("warning", {"code": code, "message": message})

    dataset = open_dataset(
        task.dataset, data=task.data, split=task.split, limit=task.limit, blur=protocol.blur, talk=talk, warn=warn
    )
    _check_lengths(dataset, protocol)
    chosen = device.choose_device(task.device)
    contenders.obtain_contenders(names, talk)
    notify("bench", {**_describe(dataset), "protocol": protocol.description, "models": list(names)})
    results = []
    kept: list[Kept] = []
    try:
        for name in names:
            contender = contenders.load_contender(name, chosen, task.precision, talk)
            kept.append(Kept(task, dataset, protocol, contender, chosen))
            results.append(_measure(Bench(task, dataset, protocol, chosen, notify, stop), contender, kept[-1]))
    except InterruptedRunError:
        notify("bench_kept", {"sequences": sum(one.count() for one in kept)})
        raise
    report = _report(task, dataset, protocol, chosen, results)
    shown = [row for result, one in zip(results, kept, strict=True) for row in _shown(result, one, dataset)]
    finish({**report, "pictures": shown})
    for one in kept:
        one.forget()
    return report


def _check_lengths(dataset: DataSet, protocol: Protocol) -> None:
    short = [one.name for one in dataset.sequences if len(one.pairs) <= protocol.first + protocol.last]
    if short:
        left = protocol.first + protocol.last
        raise InputError(
            f"{short[0]} is too short: protocol {protocol.name} leaves out {left} frames of each sequence",
            "use a larger --limit, or --protocol plain",
        )


@dataclass(frozen=True)
class Bench:
    """What all measurements of a run have in common."""

    task: BenchTask
    dataset: DataSet
    protocol: Protocol
    device: torch.device
    notify: Notify
    stop: Stop

    def check_stop(self) -> None:
        """Ask whether a signal came."""
        status = self.stop()
        if status is not None:
            raise InterruptedRunError(status)


def _measure(bench: Bench, contender: Contender, kept: "Kept") -> ModelResult:
    """Measure a contender on every sequence, but not again on those that an interrupted run finished."""
    sequences = bench.dataset.sequences
    finished = [kept.read(sequence.name) for sequence in sequences]
    bench.notify(
        "bench_model",
        {
            "model": contender.name,
            "precision": contender.precision,
            "device": str(bench.device),
            "finished": sum(one is not None for one in finished),
            "sequences": len(sequences),
        },
    )
    height, width = pictures.read_rgb(sequences[0].pairs[0].blurry).shape[1:]
    result = ModelResult(contender, contender.flops(height, width))
    begun, done = time.monotonic(), 0
    ahead = sum(len(one.pairs) for one, there in zip(sequences, finished, strict=True) if there is None)

    def count() -> None:
        nonlocal done
        done += 1
        rate = done / max(time.monotonic() - begun, 1e-6)
        facts = {"input": contender.name, "frame": done, "frames_estimate": ahead, "fps": round(rate, 3)}
        bench.notify("progress", {**facts, "eta_seconds": round((ahead - done) / rate, 1)})

    for sequence, there in zip(sequences, finished, strict=True):
        one = there
        if one is None:
            try:
                one = _measure_sequence(bench, contender, sequence, kept, count)
            except torch.OutOfMemoryError as error:
                hint = "use --device cpu, or another model"
                raise DeviceError(f"the device is out of memory for {contender.name}", hint) from error
            kept.write(one)
        result.sequences.append(one)
        quality = asdict(one.quality)
        bench.notify("sequence_done", {"model": contender.name, "sequence": one.name, **quality})
    return result


def _measure_sequence(
    bench: Bench, contender: Contender, sequence: Sequence, kept: "Kept", count: Callable[[], None]
) -> SequenceResult:
    """Restore a sequence, compare each frame with the sharp one, and keep the worst and the best."""
    folder = None if bench.task.save is None else bench.task.save / contender.name / sequence.name
    peak = memory.Peak(bench.device)
    sharp = threads.threaded(_pictures(sequence, "sharp"), AHEAD)
    blurry = threads.threaded(_pictures(sequence, "blurry"), AHEAD)
    total = 0.0
    with contextlib.closing(sharp), contextlib.closing(blurry), contextlib.ExitStack() as stack:
        looks = stack.enter_context(vmaf.Vmaf()) if bench.task.vmaf else None
        comparison = Comparison(bench.protocol, bench.device, looks)
        waited = contenders.Waited()
        stream = contender.restore(waited.through(blurry, bench.check_stop), bench.protocol, bench.dataset.known)
        for index, pair in enumerate(sequence.pairs):
            with peak:
                begun, waited.seconds = time.perf_counter(), 0.0
                restored = next(stream)
                seconds = time.perf_counter() - begun - waited.seconds
            total += seconds
            truth = next(sharp)
            if truth.shape != restored.shape:
                raise InputError(f"{pair.sharp} has another size than {pair.blurry}", "both must have one size")
            if folder is not None:
                pictures.write_png(folder / f"{pair.name}.png", restored)
            counts = bench.protocol.counts(index, len(sequence.pairs))
            comparison.add(pair, restored, truth, seconds, counts)
            count()
        frames = comparison.finish()
    for kind, picture in comparison.extremes.items():
        pictures.write_png(kept.picture(sequence.name, kind), picture)
    saved = None if folder is None else str(folder.absolute())
    return SequenceResult(
        name=sequence.name,
        frames=frames,
        restored=len(sequence.pairs),
        seconds=total,
        memory_bytes=peak.bytes,
        warping_error=comparison.warping_error,
        vmaf=comparison.vmaf,
        saved=saved,
    )


def _pictures(sequence: Sequence, kind: str) -> Iterator[Tensor]:
    return (pictures.read_rgb(getattr(pair, kind)) for pair in sequence.pairs)


class Comparison:
    """Restored frames of a sequence beside sharp ones, in batches on the device."""

    def __init__(self, protocol: Protocol, chosen: torch.device, looks: vmaf.Vmaf | None = None) -> None:
        self.protocol, self.looks = protocol, looks
        self.vmaf: float | None = None
        self.device = torch.device("cpu") if chosen.type == "mps" else chosen  # which has no float64
        self.waiting: list[tuple[FramePair, Tensor, Tensor, float]] = []
        self.frames: list[FrameResult] = []
        self.before: tuple[Tensor, Tensor] | None = None
        self.counted = 0
        self.warping: list[float] = []
        self.extremes: dict[str, Tensor] = {}
        self._psnr = {"worst": math.inf, "best": -math.inf}

    @torch.inference_mode()
    def add(self, pair: FramePair, restored: Tensor, sharp: Tensor, seconds: float, counts: bool) -> None:
        """Take the next frame of the sequence: uint8 (3, H, W) each."""
        restored, sharp = restored.to(self.device), sharp.to(self.device)
        if counts:
            if self.before is not None and self.counted % WARPED_EVERY == 1:
                two = [torch.stack(both).float() / 255 for both in zip(self.before, (restored, sharp), strict=True)]
                self.warping.append(temporal.warping_error(*two))
            if self.looks is not None:
                self.looks.add(*(metrics.crop(one, self.protocol.crop) for one in (restored, sharp)))
            self.before = restored, sharp
            self.counted += 1
            self.waiting.append((pair, restored, sharp, seconds))
        if len(self.waiting) >= AT_ONCE.get(self.device.type, 1):
            self._compare()

    def finish(self) -> tuple[FrameResult, ...]:
        """Give the results of all frames."""
        self._compare()
        if self.looks is not None:
            scores = self.looks.finish()
            self.vmaf = math.fsum(scores) / len(scores)
        return tuple(self.frames)

    @property
    def warping_error(self) -> float | None:
        """Average over every fifth pair of neighbours; see temporal.py."""
        return math.fsum(self.warping) / len(self.warping) if self.warping else None

    @torch.inference_mode()
    def _compare(self) -> None:
        if not self.waiting:
            return
        pairs, restored, sharp, seconds = zip(*self.waiting, strict=True)
        self.waiting.clear()
        stacked = torch.stack(restored)
        try:
            qualities = self.protocol.measure(stacked, torch.stack(sharp))
        except ValueError as error:
            raise InputError(f"{pairs[0].blurry}: {error}", "use larger pictures") from error
        sharpness = temporal.sharpness(stacked.float() / 255).tolist()
        for pair, picture, quality, took, own in zip(pairs, restored, qualities, seconds, sharpness, strict=True):
            self.frames.append(FrameResult(pair.name, **asdict(quality), seconds=took, sharpness=own))
            if quality.psnr < self._psnr["worst"]:
                self._psnr["worst"], self.extremes["worst"] = quality.psnr, picture
            if quality.psnr > self._psnr["best"]:
                self._psnr["best"], self.extremes["best"] = quality.psnr, picture


# The report


def _report(
    task: BenchTask, dataset: DataSet, protocol: Protocol, chosen: torch.device, results: list[ModelResult]
) -> dict[str, Any]:
    precisions = dict.fromkeys(
        result.contender.precision for result in results if result.contender.model in task.models
    )
    return {
        "v": 1,
        "dataset": dataset.title,
        "dataset_details": _describe(dataset),
        "protocol": protocol.name,
        "protocol_details": {"description": protocol.description, **dataclasses.asdict(protocol)},
        "device": str(chosen),
        "device_name": device_name_of(chosen),
        "precision": " ".join(precisions) or task.precision,
        "versions": _versions(),
        "models": [_model_facts(result, dataset, protocol) for result in results],
    }


def _describe(dataset: DataSet) -> dict[str, object]:
    return {
        "title": dataset.title,
        "known": bool(dataset.known),
        "layout": dataset.layout,
        "split": dataset.split,
        "blur": dataset.blur,
        "complete": dataset.complete,
        "sequences": len(dataset.sequences),
        "frames": dataset.frames,
        "decoder": pictures.decoder_of(dataset.sequences[0].pairs[0].blurry),
    }


def _versions() -> dict[str, str]:
    packages = {name: metadata.version(name) for name in ("torch", "av")}
    return {"vdeblur": __version__, **packages, "python": platform.python_version()}


def _model_facts(result: ModelResult, dataset: DataSet, protocol: Protocol) -> dict[str, Any]:
    contender, sequences = result.contender, result.sequences
    frames = [frame for one in sequences for frame in one.frames]
    memories = [one.memory_bytes for one in sequences if one.memory_bytes is not None]
    quality = protocols.mean([Quality(one.psnr, one.ssim_2d, one.ssim_3d) for one in frames])
    return {
        "model": contender.model,
        "weights": contender.weights,
        "weights_sha256": contender.digest,
        "precision": contender.precision,
        "frames": len(frames),
        **asdict(quality),
        "mean_of_videos": asdict(protocols.mean([one.quality for one in sequences])),
        "vmaf": _mean_of([(one.vmaf, len(one.frames)) for one in sequences]),
        "warping_error": _mean_of([(one.warping_error, len(one.frames)) for one in sequences]),
        "sharpness": math.fsum(frame.sharpness for frame in frames) / len(frames),
        "seconds_per_frame": sum(one.seconds for one in sequences) / sum(one.restored for one in sequences),
        "peak_memory_bytes": max(memories, default=None),
        "params": contender.parameters,
        "flops": result.flops,
        "published": contenders.published_score(contender, dataset.title, protocol) if dataset.complete else None,
        "other_protocols": contenders.other_protocols(contender, dataset.title, protocol),
        "sequences": [_sequence_facts(one) for one in sequences],
    }


def _mean_of(values: list[tuple[float | None, int]]) -> float | None:
    """Average values that stand for so many frames each; None where there are none."""
    known = [(value, frames) for value, frames in values if value is not None]
    return math.fsum(value * frames for value, frames in known) / sum(frames for _, frames in known) if known else None


def _sequence_facts(one: SequenceResult) -> dict[str, Any]:
    return {
        "name": one.name,
        "frames": len(one.frames),
        **asdict(one.quality),
        "seconds_per_frame": one.seconds / one.restored,
        "warping_error": one.warping_error,
        "vmaf": one.vmaf,
        "per_frame": [asdict(frame) for frame in one.frames],
        **({"saved": one.saved} if one.saved else {}),
    }


def _shown(result: ModelResult, kept: Kept, dataset: DataSet) -> list[dict[str, str]]:
    """Name the files of a model's worst and best frames, no two of one sequence."""
    files = {(one.name, pair.name): pair for one in dataset.sequences for pair in one.pairs}
    rows = []
    for kind, better in (("worst", min), ("best", max)):
        extremes = [(one.name, better(one.frames, key=lambda frame: frame.psnr)) for one in result.sequences]
        extremes.sort(key=lambda item: item[1].psnr, reverse=kind == "best")
        for sequence, frame in extremes[:SHOWN]:
            pair, restored = files[sequence, frame.name], kept.picture(sequence, kind)
            if restored.is_file():
                own = {"model": result.contender.model, "weights": result.contender.weights}
                facts = {**own, "sequence": sequence, "frame": frame.name, "kind": kind}
                paths = {"blurry": pair.blurry, "restored": restored, "sharp": pair.sharp}
                rows.append({**facts, **{name: str(path) for name, path in paths.items()}})
    return rows
