"""A training's clips: frames of sequences, which of them a sample has, and worker processes that read ahead.

    ClipSource or MemoryMaps (pixels) + Sampler (which frames) + Augmentation -> Clips -> Loader (batches)

Sample number k is a function of the seed and k alone. So a training resumes at any batch without further state, and any
number of processes share its batches without communication.
"""

import contextlib
import glob
import hashlib
import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Several
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy
import torch
from numpy.random import Generator, SeedSequence, default_rng
from torch.utils.data import DataLoader, default_collate

from vdeblur.datasets import pictures
from vdeblur.datasets.layouts import FramePair, Sequence
from vdeblur.errors import DeviceError, InputError, OutputError, UsageError, VdeblurError
from vdeblur.events import Talk, Warn
from vdeblur.files import wait_for_lock, write_whole
from vdeblur.train.augment import AUGMENTATIONS, SCALE, Augmentation, Pictures, Region
from vdeblur.train.objectives.base import Batch, Clip
from vdeblur.train.rules import COUNT, FLAG, NOT_NEGATIVE, WHOLE, list_of, one_of
from vdeblur.train.sets import listed

SAMPLINGS = ("windows", "grid", "clips", "starts")
ENDS = ("inside", "repeat")
BLURS = ("blur", "blur_gamma")
SECONDS = "seconds"  # the key of a worker's time in a batch
ELSEWHERE = "make room, or choose another folder for the decoded frames"
BLOCK = 32  # pictures decoded at once for a memory map
ORDERS, SAMPLES = 0, 1  # random streams of a seed: orders of epochs, and the values within a sample

Prepare = Callable[[Clip, Generator], Batch]
Size = tuple[int, int]  # height and width in pixels


@dataclass(frozen=True)
class Plan:
    """A recipe's table [data].

    frames: consecutive frames in a sample. crop: side in pixels. sampling: "windows": every run of `frames` frames once
    an epoch; "grid": runs that begin at multiples of `frames`; "clips": each sequence once an epoch, at a random
    position; "starts": a run from every frame, at a random position where too few frames follow. margin: further frames
    on each side; beyond the ends of the sequence its edge frame. limit: frames used of each sequence. ends: "inside":
    runs lie within the sequence; "repeat": runs are centred on every frame, and the edge frame repeats beyond the ends.
    blur: the kind of blurry frames. augment, noise, noise_drawn: see augment.py.

    Raises: UsageError for unknown words, and for sampling and ends that exclude each other.
    """

    frames: Annotated[int, COUNT]
    crop: Annotated[int, COUNT]
    sampling: Annotated[str, one_of(SAMPLINGS)] = "windows"
    margin: Annotated[int, WHOLE] = 0
    limit: Annotated[int | None, COUNT] = None
    ends: Annotated[str, one_of(ENDS)] = "inside"
    blur: Annotated[str, one_of(BLURS)] = "blur"
    augment: Annotated[Several[str], list_of(one_of((*AUGMENTATIONS, SCALE)))] = ()
    noise: Annotated[float, NOT_NEGATIVE] = 0.0
    noise_drawn: Annotated[bool, FLAG] = True

    def __post_init__(self) -> None:
        for name, known in (("sampling", SAMPLINGS), ("ends", ENDS)):
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"unknown {name} {value!r}", f"choose {', '.join(known)}")
        if self.ends == "repeat" and self.sampling in ("grid", "starts"):
            raise UsageError(f"sampling {self.sampling!r} does not go beyond the ends", 'choose ends = "inside"')

    @property
    def augmentation(self) -> Augmentation:
        """The crop, augmentations and noise for the frames."""
        return Augmentation(self.crop, tuple(self.augment), self.noise, self.noise_drawn)

    @property
    def needed(self) -> int:
        """The number of frames that a sequence must have."""
        return self.frames if self.ends == "inside" else 1


class ClipSource:
    """Sequences read from their files.

    sizes: height and width of each sequence's frames. lengths: frames used of each sequence.
    """

    def __init__(self, sequences: Several[Sequence], sizes: Several[Size], limit: int | None) -> None:
        self.sequences = tuple(sequences)
        self.sizes = tuple(sizes)
        self.lengths = tuple(len(sequence.pairs[:limit]) for sequence in sequences)

    def read(self, sequence: int, frames: Several[int], region: Region) -> Pictures:
        """Read a region of a sequence's frames, which may repeat: (2, T, 3, side, side).

        Raises: InputError for an unreadable file, and for a size other than the sequence's.
        """
        pairs, size = self.sequences[sequence].pairs, self.sizes[sequence]
        rows, columns = _slices(region)
        crops = {index: [_read(path, size)[:, rows, columns] for path in _paths(pairs[index])] for index in set(frames)}
        return numpy.stack([[crops[index][kind] for index in frames] for kind in range(2)])


def _paths(pair: FramePair) -> tuple[Path, Path]:
    return pair.blurry, pair.sharp


def _slices(region: Region) -> tuple[slice, slice]:
    return slice(region.top, region.top + region.side), slice(region.left, region.left + region.side)


def _read(path: Path, size: Size) -> numpy.ndarray:
    picture = pictures.read_rgb(path).numpy()
    if picture.shape[1:] != size:
        found, expected = (f"{width}x{height}" for height, width in (picture.shape[1:], size))
        raise InputError(f"{path} is {found}, its sequence {expected}", "make all frames of a sequence one size")
    return picture


def open_clips(
    sequences: Several[Sequence], plan: Plan, *, cache: Path | None = None, talk: Talk, warn: Warn
) -> ClipSource:
    """Open a training's clips; leave out sequences that are too short or too small for the plan, with a warning.

    cache: a folder for memory maps, see MemoryMaps.

    Raises: InputError where no sequence is left; OutputError where there is no room for the cache.
    """
    kept, sizes, left_out = [], [], []
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = threads.map(lambda sequence: pictures.read_rgb(sequence.pairs[0].blurry).shape[1:], sequences)
        measured = [(int(height), int(width)) for height, width in found]
    for sequence, size in zip(sequences, measured, strict=True):
        length = len(sequence.pairs[: plan.limit])
        if length < plan.needed:
            left_out.append(f"{sequence.name} has {length} frames of {plan.needed}")
        elif min(size) < plan.crop:
            left_out.append(f"{sequence.name} is {size[1]}x{size[0]}, the crop {plan.crop}x{plan.crop}")
        else:
            kept.append(sequence)
            sizes.append(size)
    if not kept:
        raise InputError(f"no sequence is long and large enough: {listed(left_out)}", "train on others")
    if left_out:
        warn("W_DATASET", f"left out of the training: {listed(left_out)}")
    return MemoryMaps(kept, sizes, plan.limit, cache, talk) if cache else ClipSource(kept, sizes, plan.limit)


class MemoryMaps(ClipSource):
    """Sequences decoded into one memory-mapped file each, of which a crop reads only its own pages.

    A file is a .npy, uint8 (2, T, 3, H, W): blurry, then sharp. Its name contains a digest of the names, sizes and
    times of all pictures, so an existing file is up to date; files of an earlier state of the pictures are removed.

    Raises: OutputError where there is no room for missing files, or they cannot be written.
    """

    def __init__(
        self, sequences: Several[Sequence], sizes: Several[Size], limit: int | None, folder: Path, talk: Talk
    ) -> None:
        super().__init__(sequences, sizes, limit)
        self.files = [folder / _map_name(sequence) for sequence in self.sequences]
        if not all(file.exists() for file in self.files):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with wait_for_lock(folder / ".lock", talk, "decodes the frames"):
                    self._make(folder, talk)
            except OSError as error:
                raise OutputError(f"{folder} cannot be written: {error.strerror or error}", ELSEWHERE) from error

    def read(self, sequence: int, frames: Several[int], region: Region) -> Pictures:
        """Read a region of a sequence's frames, which may repeat: (2, T, 3, side, side).

        Raises: InputError where a map is gone, as another training removes it when its pictures changed.
        """
        # Mapping takes a fraction of a millisecond; done each time, there is no state to share with processes.
        try:
            frames_in_file = numpy.load(self.files[sequence], mmap_mode="r")
        except OSError as error:
            raise InputError(f"{self.files[sequence]} is gone", "start again, which makes it again") from error
        crop: Pictures = frames_in_file[:, :, :, *_slices(region)][:, list(frames)]
        return crop

    def _make(self, folder: Path, talk: Talk) -> None:
        """Write the missing maps."""
        missing = [index for index, file in enumerate(self.files) if not file.exists()]
        pixels = (len(self.sequences[index].pairs) * self.sizes[index][0] * self.sizes[index][1] for index in missing)
        needed, free = 2 * 3 * sum(pixels), shutil.disk_usage(folder).free
        if needed > free:
            raise OutputError(
                f"the decoded frames need {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free", ELSEWHERE
            )
        for done, index in enumerate(missing):
            sequence = self.sequences[index]
            facts = {"sequence": sequence.name, "sequences": done, "sequences_total": len(missing)}
            talk.notify("cache_progress", facts)
            _write_map(self.files[index], sequence, self.sizes[index], talk)


def _map_name(sequence: Sequence) -> str:
    """Return the name of a sequence's map, made of its name, its folder and the state of its files.

    Raises: InputError for an unreadable file.
    """
    files = [file for pair in sequence.pairs for file in _paths(pair)]
    place = hashlib.sha256(str(files[0].parent.resolve()).encode()).hexdigest()[:8]
    try:
        states = ((file.name, file.stat()) for file in files)
        facts = [(name, state.st_size, state.st_mtime_ns) for name, state in states]
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}", "remove or replace it") from error
    return f"{sequence.name}-{place}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.npy"


def _write_map(target: Path, sequence: Sequence, size: Size, talk: Talk) -> None:
    """Decode a sequence into its map, complete or not at all, and remove maps of its earlier states."""
    write_whole(target, lambda file: _write_pictures(file, sequence, size, talk))
    for old in target.parent.glob(f"{glob.escape(target.name.rpartition('-')[0])}-*"):
        if old != target:
            old.unlink()


def _write_pictures(file: BinaryIO, sequence: Sequence, size: Size, talk: Talk) -> None:
    shape = (2, len(sequence.pairs), 3, *size)
    numpy.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    paths = [_paths(pair)[kind] for kind in range(2) for pair in sequence.pairs]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for first in range(0, len(paths), BLOCK):
            talk.check_stop()
            # Written, not mapped: a full disk is then an error, and does not kill the process.
            for picture in threads.map(lambda path: _read(path, size), paths[first : first + BLOCK]):
                file.write(picture.data)


@dataclass(frozen=True)
class TrainingSample:
    """A sample's sequence, its frames with the margins, and its generator for all random values."""

    sequence: int
    frames: tuple[int, ...]
    rng: Generator


class Sampler:
    """Maps a sample's number to its frames.

    lengths: of the sequences, each long enough for the plan. Every `len(sampler)` samples are an epoch, which has each
    run of frames (or sequence, for "clips") once, in its own order.
    """

    def __init__(self, lengths: Several[int], plan: Plan, seed: int) -> None:
        self.lengths, self.plan, self.seed = tuple(lengths), plan, seed
        firsts = [self._firsts(length) for length in self.lengths]
        sequences = numpy.repeat(numpy.arange(len(firsts)), [len(own) for own in firsts])
        self.runs = numpy.stack([sequences, numpy.concatenate(firsts)], 1)  # (runs, 2): sequence, first frame
        self._order: tuple[int, numpy.ndarray] = (-1, numpy.empty(0, int))

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, number: int) -> TrainingSample:
        epoch, place = divmod(number, len(self))
        if self._order[0] != epoch:
            self._order = epoch, self._rng(ORDERS, epoch).permutation(len(self))
        sequence, first = (int(value) for value in self.runs[self._order[1][place]])
        length, plan, rng = self.lengths[sequence], self.plan, self._rng(SAMPLES, number)
        lowest, highest = self._range(length)
        if plan.sampling == "clips" or first > highest:
            first = int(rng.integers(lowest, highest + 1))
        wanted = numpy.arange(first - plan.margin, first + plan.frames + plan.margin).clip(0, length - 1)
        return TrainingSample(sequence, tuple(wanted.tolist()), rng)

    def _firsts(self, length: int) -> numpy.ndarray:
        lowest, highest = self._range(length)
        if self.plan.sampling == "clips":
            return numpy.zeros(1, int)
        if self.plan.sampling == "starts":
            return numpy.arange(length)
        return numpy.arange(lowest, highest + 1, self.plan.frames if self.plan.sampling == "grid" else 1)

    def _range(self, length: int) -> tuple[int, int]:
        """Return the lowest and the highest frame that a run may begin with."""
        before = self.plan.frames // 2
        return (-before, length - 1 - before) if self.plan.ends == "repeat" else (0, length - self.plan.frames)

    def _rng(self, *purpose: int) -> Generator:
        return default_rng(SeedSequence(self.seed, spawn_key=purpose))


@dataclass(frozen=True)
class Clips:
    """Samples by number, prepared for an objective."""

    source: ClipSource
    sampler: Sampler
    augmentation: Augmentation
    prepare: Prepare

    def __getitem__(self, number: int) -> Batch:
        clip, rng = self.clip(number)
        return self.prepare(clip, rng)

    def clip(self, number: int) -> tuple[Clip, Generator]:
        """Return a sample's pictures, and its generator for further random values."""
        sample = self.sampler[number]
        region = self.augmentation.region(*self.source.sizes[sample.sequence], sample.rng)
        found = self.source.read(sample.sequence, sample.frames, region)
        return self.augmentation.clip(found, sample.rng), sample.rng


def training_clips(source: ClipSource, plan: Plan, prepare: Prepare, seed: int) -> Clips:
    """Return the clips of a training by its plan."""
    return Clips(source, Sampler(source.lengths, plan, seed), plan.augmentation, prepare)


@dataclass(frozen=True)
class WorkerShare:
    """A process's share of each batch.

    batch: samples in a batch of all processes together. ranks, rank: number of processes, and this one's. parts:
    micro-batches that a process cuts its share into.

    Raises: UsageError for a batch that cannot be divided evenly.
    """

    batch: int
    rank: int = 0
    ranks: int = 1
    parts: int = 1

    def __post_init__(self) -> None:
        if self.batch % (self.ranks * self.parts):
            processes = f"{self.ranks} processes" if self.ranks > 1 else "one process"
            raise UsageError(
                f"a batch of {self.batch} cannot be divided among {processes} in {self.parts} parts",
                "choose numbers that divide it",
            )

    @property
    def size(self) -> int:
        """The number of samples in a micro-batch."""
        return self.batch // (self.ranks * self.parts)

    def numbers(self, batch: int) -> list[list[int]]:
        """Return the sample numbers of each of this process's micro-batches of a batch, in order of rank."""
        begin = batch * self.batch + self.rank * self.parts * self.size
        return [list(range(at, at + self.size)) for at in range(begin, begin + self.parts * self.size, self.size)]


class Loader:
    """Endless micro-batches, made ahead by worker processes; without workers, made in this process on demand.

    pin: use pinned memory, which a GPU copies from asynchronously. waited_seconds: time spent waiting for batches so
    far.
    """

    def __init__(self, clips: Clips, share: WorkerShare, *, workers: int = 0, pin: bool = False) -> None:
        self.clips, self.share, self.workers, self.pin = clips, share, workers, pin
        self.waited_seconds = self.made_seconds = 0.0
        self.made = 0

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yield the micro-batches of batch number `first` and all after it: prepared samples, stacked.

        The workers live as long as the iterator.

        Raises: errors of reading; DeviceError where a worker died.
        """
        numbers = (part for batch in itertools.count(first) for part in self.share.numbers(batch))
        made = iter(
            DataLoader(
                _Made(self.clips),  # type: ignore[arg-type]
                batch_size=None,
                sampler=numbers,
                num_workers=self.workers,
                collate_fn=_as_is,
                pin_memory=self.pin,
                worker_init_fn=set_up_worker,
                # Forked workers start at once and share imports; only Linux forks safely.
                multiprocessing_context="fork" if self.workers and sys.platform == "linux" else None,
                # Otherwise it draws from the global generator, and a resumed training would differ.
                generator=torch.Generator(),
            )
        )
        try:
            while True:
                asked = time.perf_counter()
                batch = self._next(made)
                self.waited_seconds += time.perf_counter() - asked
                yield batch
        finally:
            # After an error its traceback refers to the iterator. Left to the garbage collector, which may destroy the
            # queues first, PyTorch waits 10 s for the workers; it has no public function for this.
            if self.workers:
                made._shutdown_workers()  # type: ignore[attr-defined]

    def _next(self, made: Iterator[Any]) -> Batch:
        with explain_lost_workers():
            batch = next(made)
        if isinstance(batch, VdeblurError):
            raise batch
        self.made_seconds += float(batch.pop(SECONDS))
        self.made += self.share.size
        return batch  # type: ignore[no-any-return]

    @property
    def rate(self) -> float:
        """Samples a second that all workers together can make, by their times so far."""
        return max(self.workers, 1) * self.made / self.made_seconds if self.made_seconds else 0.0


@contextlib.contextmanager
def explain_lost_workers() -> Iterator[None]:
    """Translate PyTorch's error about a dead worker, which a signal handler raises at any moment.

    Raises: DeviceError.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise DeviceError(
            "a process that reads training data died, most likely out of memory", "use fewer --workers"
        ) from error


def _as_is(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class _Made:
    """Batches by their sample numbers; a VdeblurError is a value, since DataLoader would change its text."""

    clips: Clips

    def __getitem__(self, numbers: list[int]) -> Batch | VdeblurError:
        try:
            begun = time.perf_counter()
            batch = stacked([self.clips[number] for number in numbers])
            batch[SECONDS] = torch.tensor(time.perf_counter() - begun)
            return batch
        except VdeblurError as error:
            return error


def stacked(samples: list[Batch]) -> Batch:
    """Stack samples into a batch."""
    return default_collate(samples)  # type: ignore[no-any-return]


def set_up_worker(worker: int) -> None:
    """Let the training process alone handle signals."""
    # DataLoader limits each worker to one thread.
    # Ctrl-C, and often SIGTERM, reach the whole process group; the training process handles them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def measure_rate(loader: Loader, batches: int) -> float:
    """Return how many samples a second a loader makes at full speed, measured over a number of micro-batches."""
    made = loader.batches()
    next(made)
    begun = time.perf_counter()
    for _ in range(batches):
        next(made)
    return batches * loader.share.size / (time.perf_counter() - begun)
