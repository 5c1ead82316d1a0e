"""Batches of made clips: worker processes, or the GPU itself, make clips; batches draw frames from the latest ones.

Chunk number j, one call of make_clips, is a function of the seed and j alone; so is a batch of its number and the
chunks that it may draw from. A resumed training first makes those again, and then goes on with the same batches.
"""

import itertools
import os
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from numpy.random import SeedSequence, default_rng
from torch import Tensor
from torch.utils.data import DataLoader

from vdeblur.datasets.layouts import FramePair, Sequence
from vdeblur.datasets.pictures import write_png
from vdeblur.train.data import WorkerShare, explain_lost_workers, set_up_worker
from vdeblur.train.mixture import Mixture, make_clips
from vdeblur.train.objectives.base import Batch
from vdeblur.train.sharp_pictures import SharpPictures

FIRST = 8  # chunks that the first batch draws from
CHUNKS, BATCHES = 0, 1  # random streams of a seed


def _seed(seed: int, *purpose: int) -> SeedSequence:
    return SeedSequence(seed, spawn_key=purpose)


@dataclass(frozen=True)
class _Chunks:
    """Chunks by number; called by the workers."""

    mixture: Mixture
    pictures: SharpPictures
    seed: int
    device: torch.device

    def __getitem__(self, number: int) -> tuple[Tensor, float]:
        begun = time.perf_counter()
        mixed = _seed(self.seed, CHUNKS, number).generate_state(1, numpy.uint64)[0]
        made = make_clips(self.mixture, self.pictures, int(mixed >> numpy.uint64(1)), self.device)
        return made, time.perf_counter() - begun


class MixtureLoader:
    """Endless micro-batches, as data.Loader's.

    "blurry" is uint8 (B, 3, 3, side, side), a frame between its neighbours; "sharp" is that frame, (B, 3, side, side).
    waited_seconds: time spent waiting for clips so far.
    """

    def __init__(
        self,
        mixture: Mixture,
        pictures: SharpPictures,
        share: WorkerShare,
        seed: int,
        device: torch.device,
        workers: int,
    ) -> None:
        self.mixture, self.share, self.seed = mixture, share, seed
        self.workers = workers if device.type == "cpu" else 0  # a GPU makes the clips itself
        self.chunks = _Chunks(mixture, pictures, seed, device)
        self.waited_seconds = self.made_seconds = 0.0
        self.made = 0
        uses = mixture.uses * mixture.clips * (mixture.frames - 2)
        self.batches_per_chunk = uses / share.batch

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yield the micro-batches of batch number `first` and all after it.

        Raises: DeviceError where a worker died.
        """
        kept: dict[int, Tensor] = {}
        made = self._chunks_from(self._window(first)[0])
        try:
            for number in itertools.count(first):
                oldest, newest = self._window(number)
                asked = time.perf_counter()
                while newest not in kept:
                    index, chunk = next(made)
                    kept[index] = chunk
                self.waited_seconds += time.perf_counter() - asked
                for old in [index for index in kept if index < oldest]:
                    del kept[old]
                yield from self._parts(number, kept)
        finally:
            made.close()

    def _window(self, batch: int) -> tuple[int, int]:
        """Return the first and the last chunk that a batch draws from."""
        newest = FIRST - 1 + int(batch / self.batches_per_chunk)
        return max(newest - self.mixture.kept + 1, 0), newest

    def _chunks_from(self, first: int) -> Generator[tuple[int, Tensor], None, None]:
        """Yield chunks with their numbers, from `first` on."""
        made = iter(
            DataLoader(
                self.chunks,  # type: ignore[arg-type]
                batch_size=None,
                sampler=itertools.count(first),
                num_workers=self.workers,
                worker_init_fn=set_up_worker,
                multiprocessing_context="fork" if self.workers and sys.platform == "linux" else None,
                generator=torch.Generator(),
            )
        )
        try:
            for index in itertools.count(first):
                with explain_lost_workers():
                    chunk, seconds = next(made)
                self.made_seconds += float(seconds)
                self.made += self.mixture.clips * (self.mixture.frames - 2) * self.mixture.uses
                yield index, chunk
        finally:
            if self.workers:
                made._shutdown_workers()  # type: ignore[attr-defined]

    def _parts(self, number: int, kept: dict[int, Tensor]) -> Iterator[Batch]:
        """Yield this process's micro-batches of a batch."""
        rng = default_rng(_seed(self.seed, BATCHES, number))
        oldest, newest = self._window(number)
        draws = [self._sample(kept, oldest, newest, rng) for _ in range(self.share.batch)]  # the same in all processes
        size = self.share.size
        begin = self.share.rank * self.share.parts * size
        for at in range(begin, begin + self.share.parts * size, size):
            frames = torch.stack(draws[at : at + size])
            yield {"blurry": frames[:, :3], "sharp": frames[:, 3]}

    def _sample(self, kept: dict[int, Tensor], oldest: int, newest: int, rng: numpy.random.Generator) -> Tensor:
        """Draw a frame: three blurry ones and the sharp one, uint8 (4, 3, side, side), flipped and turned at random."""
        clip = kept[int(rng.integers(oldest, newest + 1))][int(rng.integers(self.mixture.clips))]
        middle = int(rng.integers(1, self.mixture.frames - 1))
        blurry = clip[0, middle - 1 : middle + 2]
        heads = rng.random(4) < 0.5
        frames = torch.cat((blurry.flip(0) if heads[0] else blurry, clip[1, middle : middle + 1]))
        axes = [axis for axis, flips in zip((-1, -2), heads[1:3], strict=True) if flips]
        frames = frames.flip(axes) if axes else frames
        return frames.transpose(-1, -2) if heads[3] else frames

    @property
    def rate(self) -> float:
        """Samples a second that all workers together can make, by their times so far."""
        return max(self.workers, 1) * self.made / self.made_seconds if self.made_seconds else 0.0


def write_validation(mixture: Mixture, pictures: SharpPictures, folder: Path) -> tuple[Sequence, ...]:
    """Write the clips that validate as pairs of PNG files, unless they are there; return them as sequences.

    They are the same for every training on the same footage.
    """
    sequences = []
    chunks = _Chunks(mixture, pictures, 0, torch.device("cpu"))
    for number in range(mixture.validation):
        names = [f"{number:03}_{clip:02}" for clip in range(mixture.clips)]
        pairs = {
            name: tuple(
                FramePair(f"{frame:06}", *(folder / name / kind / f"{frame:06}.png" for kind in ("blur", "sharp")))
                for frame in range(mixture.frames)
            )
            for name in names
        }
        if not all(os.path.exists(pair.sharp) for own in pairs.values() for pair in own):
            clips, _ = chunks[number]
            for clip, name in zip(clips, names, strict=True):
                for frame, pair in enumerate(pairs[name]):
                    write_png(pair.blurry, clip[0, frame])
                    write_png(pair.sharp, clip[1, frame])
        sequences += [Sequence(name, pairs[name]) for name in names]
    return tuple(sequences)
