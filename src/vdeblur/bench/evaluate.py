"""Measure models on a data set by a protocol: restore, quantise, compare. An interrupted bench resumes."""

import contextlib
import itertools
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import metadata

import torch
from torch import Tensor

from vdeblur import threads
from vdeblur.bench import contenders, existing, memory
from vdeblur.bench.comparison import Comparison
from vdeblur.bench.contenders import Contender
from vdeblur.bench.existing import IDEAL_LUMA
from vdeblur.bench.kept import ResultCache
from vdeblur.bench.profiles import ProfileRows
from vdeblur.bench.results import (
    BenchReport,
    BenchTask,
    DatasetFacts,
    ExampleFrame,
    ModelResult,
    ProfilePictures,
    SequenceResult,
)
from vdeblur.bench.speed import device_name_of
from vdeblur.datasets import pictures
from vdeblur.datasets.layouts import DataSet, Sequence, open_dataset
from vdeblur.errors import DeviceError, InputError, InterruptedRunError, ModelError, UsageError
from vdeblur.events import Ask, Notify, Stop, Talk, Warn, ignore, never, without_infinities
from vdeblur.measure import vmaf
from vdeblur.measure.protocols import PROTOCOLS, Protocol
from vdeblur.restore.device import choose_device
from vdeblur.version import __version__

AHEAD = 4  # pictures that are decoded ahead
EXAMPLES = 2  # worst frames, and best frames, of each model on the HTML page


def run_bench(
    task: BenchTask,
    *,
    notify: Notify = ignore,
    ask: Ask | None = None,
    stop: Stop = never,
    finish: Callable[[BenchReport], object] = ignore,
) -> BenchReport:
    """Measure every model on every sequence.

    notify: gets the events bench, bench_model, progress, sequence_done, bench_kept (after a signal), warning, and those
    of downloads. ask, stop: as for pipeline.restore_file. finish: called with the report before the pictures that its
    examples name are deleted.

    A model whose weights are not available is left out, with the warning W_MODEL_MISSING, while another one is left.

    Raises: VdeblurError. Finished sequences are kept, and the same task resumes after them.
    """
    protocol = PROTOCOLS[task.protocol]
    names = tuple(dict.fromkeys((*task.models, *contenders.ALWAYS)))
    contenders.check_names(names)
    if task.vmaf:
        vmaf.check_vmaf()
    talk = Talk(task.offline, task.yes, notify, ask, stop)
    dataset = open_for(task, protocol, talk)
    names = contenders.with_ceiling(names) if dataset.has_truth else names
    device = choose_device(task.device)
    missing = _missing_models(task, names, talk)
    names = tuple(name for name in names if name not in missing)
    folders = existing.open_restored(task.restored, dataset, protocol, _warner(talk))
    precision = protocol.precision if task.precision == "auto" else task.precision
    facts = dataset_facts(dataset)
    notify(
        "bench",
        {**asdict(facts), "protocol": protocol.description, "models": [*(folder.name for folder in folders), *names]},
    )
    results: list[ModelResult] = []
    caches: list[ResultCache] = []
    try:
        loaded = (contenders.load_contender(name, device, precision, talk) for name in names)
        for contender in itertools.chain(folders, loaded):
            caches.append(ResultCache(task, dataset, protocol, contender, device))
            results.append(_measure(BenchContext(task, dataset, protocol, device, notify, stop), contender, caches[-1]))
    except InterruptedRunError:
        notify("bench_kept", {"sequences": sum(cache.count() for cache in caches)})
        raise
    precisions = dict.fromkeys(result.precision for result in results if result.params)
    report = BenchReport(
        dataset=facts,
        protocol=protocol,
        device=str(device),
        device_name=device_name_of(device),
        precision=" ".join(precisions) or precision,
        versions=versions(),
        models=tuple(results),
        missing=tuple((name, error.message) for name, error in missing.items()),
        examples=tuple(
            frame
            for result, cache in zip(results, caches, strict=True)
            for frame in _example_frames(result, cache, dataset)
        ),
        profiles=tuple(
            profile for result, cache in zip(results, caches, strict=True) for profile in _profiles(result, cache)
        ),
    )
    finish(report)
    for cache in caches:
        cache.clear()
    return report


def _missing_models(task: BenchTask, names: tuple[str, ...], talk: Talk) -> dict[str, ModelError]:
    """Obtain the weights of all models; return the models that cannot be measured, and warn of each.

    Raises: ModelError if none is left of those that the user named.
    """
    missing = contenders.obtain_contenders(names, talk)
    if missing and all(name in missing for name in task.models):
        raise next(iter(missing.values()))
    for name, error in missing.items():
        talk.notify("warning", {"code": "W_MODEL_MISSING", "message": f"{name} is not measured: {error}"})
    return missing


def open_for(task: BenchTask, protocol: Protocol, talk: Talk) -> DataSet:
    """Open the data set.

    Raises: as open_dataset; InputError if a sequence has no frame that the protocol counts.
    """
    dataset = open_dataset(
        task.dataset,
        data=task.data,
        split=task.split,
        limit=task.limit,
        blur=protocol.blur,
        talk=talk,
        warn=_warner(talk),
    )
    if not dataset.has_truth and (task.vmaf or IDEAL_LUMA in task.models):
        asked = "--vmaf" if task.vmaf else IDEAL_LUMA
        raise UsageError(
            f"{asked} compares with sharp frames, which {dataset.title} does not have", f"leave out {asked}"
        )
    ends = protocol.first + protocol.last
    for sequence in dataset.sequences:
        if len(sequence.pairs) <= ends:
            raise InputError(
                f"{sequence.name} is too short: protocol {protocol.name} leaves out {ends} frames of each sequence",
                "use a larger --limit, or --protocol plain",
            )
    return dataset


def _warner(talk: Talk) -> Warn:
    return lambda code, message: talk.notify("warning", {"code": code, "message": message})


def dataset_facts(dataset: DataSet) -> DatasetFacts:
    """Return what reports say about a data set."""
    return DatasetFacts(
        title=dataset.title,
        known=bool(dataset.known),
        layout=dataset.layout,
        split=dataset.split,
        blur=dataset.blur,
        complete=dataset.complete,
        sequences=len(dataset.sequences),
        frames=dataset.frames,
        decoder=pictures.picture_decoder(dataset.sequences[0].pairs[0].blurry),
    )


def versions() -> dict[str, str]:
    """Return the versions of everything that can change a score."""
    packages = {name: metadata.version(name) for name in ("torch", "av")}
    return {"vdeblur": __version__, **packages, "python": platform.python_version()}


@dataclass(frozen=True)
class BenchContext:
    """The options of a bench, its open data set, device and callbacks, which all its measurements share."""

    task: BenchTask
    dataset: DataSet
    protocol: Protocol
    device: torch.device
    notify: Notify
    stop: Stop

    def check_stop(self) -> None:
        """Stop if a signal arrived.

        Raises: InterruptedRunError.
        """
        status = self.stop()
        if status is not None:
            raise InterruptedRunError(status)


@dataclass
class _Progress:
    """Counts the restored frames of a model and reports its rate."""

    context: BenchContext
    name: str
    total: int
    done: int = 0
    begun: float = field(default_factory=time.monotonic)

    def count(self) -> None:
        self.done += 1
        rate = self.done / max(time.monotonic() - self.begun, 1e-6)
        facts = {"input": self.name, "frame": self.done, "frames_estimate": self.total, "fps": round(rate, 3)}
        self.context.notify("progress", {**facts, "eta_seconds": round((self.total - self.done) / rate, 1)})


def _measure(context: BenchContext, contender: Contender, cache: ResultCache) -> ModelResult:
    """Measure a model on every sequence that no interrupted bench has finished.

    Raises: DeviceError if memory runs out.
    """
    sequences = context.dataset.sequences
    earlier = [cache.read(sequence.name) for sequence in sequences]
    facts = {"model": contender.name, "precision": contender.precision, "device": str(context.device)}
    finished = sum(result is not None for result in earlier)
    context.notify("bench_model", {**facts, "finished": finished, "sequences": len(sequences)})
    height, width = pictures.read_rgb(sequences[0].pairs[0].blurry).shape[1:]
    flops = contender.flops(height, width)
    frames = (len(sequence.pairs) for sequence, result in zip(sequences, earlier, strict=True) if result is None)
    progress = _Progress(context, contender.name, sum(frames))
    results = []
    for sequence, result in zip(sequences, earlier, strict=True):
        if result is None:
            try:
                result = _measure_sequence(context, contender, sequence, cache, progress)
            except torch.OutOfMemoryError as error:
                hint = "use --device cpu, or another model"
                raise DeviceError(f"the device is out of memory for {contender.name}", hint) from error
            cache.write(result)
        results.append(result)
        scores = {"model": contender.name, "sequence": result.name, **asdict(result.quality)}
        context.notify("sequence_done", without_infinities(scores))
    title = context.dataset.title
    published, published_of = contenders.published_score(contender, title, context.protocol)
    return ModelResult(
        model=contender.model,
        weights=contender.weights,
        weights_sha256=contender.digest,
        precision=contender.precision,
        params=contender.parameters,
        flops=flops,
        published=published if context.dataset.complete else None,
        published_of=published_of if context.dataset.complete else "",
        published_time=contender.entry.time if contender.entry else None,
        other_protocols=contenders.other_protocols(contender, title, context.protocol),
        sequences=tuple(results),
    )


def _measure_sequence(
    context: BenchContext, contender: Contender, sequence: Sequence, cache: ResultCache, progress: _Progress
) -> SequenceResult:
    """Restore a sequence, compare each frame with the sharp one, and keep the worst and the best frame.

    Raises: InputError if the sizes of a pair differ.
    """
    folder = None if context.task.save is None else context.task.save / contender.name / sequence.name
    peak = memory.Peak(context.device)
    seconds: float | None = 0.0
    with contextlib.ExitStack() as stack:
        sharp = stack.enter_context(contextlib.closing(threads.threaded(_pictures(sequence, "sharp"), AHEAD)))
        blurry = stack.enter_context(contextlib.closing(threads.threaded(_pictures(sequence, "blurry"), AHEAD)))
        scorer = stack.enter_context(vmaf.Vmaf()) if context.task.vmaf else None
        comparison = Comparison(context.protocol, context.device, scorer, context.dataset.has_truth)
        rows = ProfileRows()
        restored_frames = _timed_frames(context, contender, sequence, blurry, peak)
        for index, pair in enumerate(sequence.pairs):
            restored, frame_seconds = next(restored_frames)
            seconds = None if seconds is None or frame_seconds is None else seconds + frame_seconds
            sharp_frame = next(sharp)
            if sharp_frame.shape != restored.shape:
                raise InputError(f"{pair.sharp} has another size than {pair.blurry}", "make the sizes of a pair equal")
            if folder is not None:
                pictures.write_png(folder / f"{pair.name}.png", restored)
            if context.protocol.counts(index, len(sequence.pairs)):
                rows.add(restored, sharp_frame)
            comparison.add(
                pair, restored, sharp_frame, frame_seconds, context.protocol.counts(index, len(sequence.pairs))
            )
            progress.count()
        frames = comparison.finish()
    for kind, picture in (comparison.extremes | rows.pictures()).items():
        pictures.write_png(cache.picture(sequence.name, kind), picture)
    return SequenceResult(
        name=sequence.name,
        frames=frames,
        restored=len(sequence.pairs),
        seconds=seconds,
        memory_bytes=None if seconds is None else peak.bytes,
        warping_error=comparison.warping_error,
        vmaf=comparison.vmaf,
        saved=None if folder is None else str(folder.absolute()),
    )


def _pictures(sequence: Sequence, kind: str) -> Iterator[Tensor]:
    return (pictures.read_rgb(getattr(pair, kind)) for pair in sequence.pairs)


def _timed_frames(
    context: BenchContext, contender: Contender, sequence: Sequence, blurry: Iterator[Tensor], peak: memory.Peak
) -> Iterator[tuple[Tensor, float | None]]:
    """Yield each restored frame with the seconds it took, without those spent waiting for blurry frames.

    Pictures that exist already took no time.
    """
    if isinstance(contender, existing.Existing):
        for picture in contender.pictures(sequence):
            context.check_stop()
            yield picture, None
        return
    waited = contenders.Waited()
    stream = contender.restore(waited.through(blurry, context.check_stop), context.protocol, context.dataset.known)
    while True:
        with peak:
            begun, waited.seconds = time.perf_counter(), 0.0
            restored = next(stream, None)
            seconds = time.perf_counter() - begun - waited.seconds
        if restored is None:
            return
        yield restored, seconds


def _profiles(result: ModelResult, cache: ResultCache) -> Iterator[ProfilePictures]:
    """Yield a model's temporal profile of the first sequence."""
    name = result.sequences[0].name
    restored, sharp = cache.picture(name, "profile"), cache.picture(name, "profile-sharp")
    if restored.is_file() and sharp.is_file():
        yield ProfilePictures(result.model, result.weights, name, restored, sharp)


def _example_frames(result: ModelResult, cache: ResultCache, dataset: DataSet) -> Iterator[ExampleFrame]:
    """Yield a model's worst and best frames: of a sequence at most its worst and its best one."""
    pairs = {(sequence.name, pair.name): pair for sequence in dataset.sequences for pair in sequence.pairs}
    for kind, pick in (("worst", min), ("best", max)):
        extremes = [
            (sequence.name, pick(sequence.frames, key=lambda frame: frame.rank)) for sequence in result.sequences
        ]
        extremes.sort(key=lambda item: item[1].rank, reverse=kind == "best")
        for name, frame in extremes[:EXAMPLES]:
            pair, restored = pairs[name, frame.name], cache.picture(name, kind)
            if restored.is_file():
                place = {"model": result.model, "weights": result.weights, "sequence": name, "frame": frame.name}
                yield ExampleFrame(**place, kind=kind, blurry=pair.blurry, restored=restored, sharp=pair.sharp)
