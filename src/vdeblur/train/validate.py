"""Validation during training: held-out clips through the same streams as `run`, in bench's metrics."""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdeblur.datasets import pictures
from vdeblur.datasets.layouts import FramePair
from vdeblur.datasets.layouts import Sequence as Pairs
from vdeblur.errors import DeviceError
from vdeblur.measure import protocols
from vdeblur.networks.layers import Network
from vdeblur.restore.clip import restored_pictures
from vdeblur.train.data import Clips, stacked
from vdeblur.train.distributed import ProcessGroup
from vdeblur.train.objectives.base import Objective

PROTOCOL = protocols.PROTOCOLS["plain"]
PERFECT = 99.0  # dB; stands for an infinite PSNR, where nothing differs
SHOWN = 4  # sequences of which sample pictures are kept
SHOWN_SIDE = 640  # pixels; larger ones are cut in the middle


@dataclass(frozen=True)
class ValidationScore:
    """Means over validation frames: PSNR in dB of the blurry input and of its restoration, and the latter's SSIM.

    untouched: the restorations' PSNR over frames whose input equals the sharp frame; None without such frames. They
    count in no other mean, unless there are no others: then blurry is PERFECT, and psnr is untouched. mild_gain: the
    gain in dB of frames with so little blur that they count in no other mean, see Mixture.below; None without any.
    """

    blurry: float
    psnr: float
    ssim: float
    untouched: float | None
    mild_gain: float | None
    frames: int


@dataclass
class Measured:
    """Figures of the frames so far."""

    blurry: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    untouched: list[float] = field(default_factory=list)

    def add(self, blurry: Tensor, restored: Tensor, sharp: Tensor) -> None:
        """Add a frame: (3, H, W) uint8."""
        if torch.equal(blurry, sharp):
            self.untouched.append(min(PROTOCOL.measure(restored[None], sharp[None])[0].psnr, PERFECT))
            return
        before, after = PROTOCOL.measure(torch.stack((blurry, restored)), torch.stack((sharp, sharp)))
        assert after.ssim_2d is not None
        self.blurry.append(before.psnr)
        self.psnr.append(min(after.psnr, PERFECT))
        self.ssim.append(after.ssim_2d)


@dataclass(frozen=True)
class Validator:
    """Validates a training on held-out sequences.

    clips: of these sequences, for an objective that restores nothing yet: its loss on them is the score. frames: of
    each sequence. samples: the folder for sample pictures. below: see Mixture.
    """

    objective: Objective
    sequences: Sequence[Pairs]
    clips: Clips | None
    frames: int
    group: ProcessGroup
    samples: Path
    below: float | None = None

    @property
    def measure(self) -> str:
        """The measure that chooses the best weights: "psnr", in dB, or "loss" if the objective restores nothing yet."""
        return "psnr" if self.clips is None else "loss"

    def score(self, facts: dict[str, Any]) -> float:
        """Return the figure that decides which weights are best; higher is better."""
        return float(facts["psnr"] if self.clips is None else -facts["validation_loss"])

    def run(self, network: Network, update: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return a validation's figures, and sample pictures by the sequence's name; changes the objective's modes."""
        if self.clips is None:
            score, samples = validate(
                network, self.sequences, self.frames, self.group, self.samples / f"{update:07}", below=self.below
            )
            return vars(score), samples
        self.objective.eval()
        own = []
        with torch.no_grad():
            for number in range(self.group.rank, self.frames * len(self.sequences), self.group.size):
                batch = self.group.upload(stacked([self.clips[number]]))
                own.append(float(self.objective(batch, 0, 0, None)[0]["loss"]))
        losses = list(itertools.chain.from_iterable(self.group.gather(own)))
        return {"validation_loss": math.fsum(losses) / len(losses)}, {}


def validate(
    network: Network,
    sequences: Sequence[Pairs],
    frames: int,
    group: ProcessGroup,
    shown: Path | None = None,
    *,
    below: float | None = None,
) -> tuple[ValidationScore, dict[str, Tensor]]:
    """Measure a network on the first frames of each sequence, shared out among the processes.

    shown: a folder for samples: the middle frames of some sequences, blurry, restored and sharp beside each other.
    Also returns the samples by the sequence's name: (3, H, W') uint8.

    Raises: DeviceError where restored values are NaN or infinite.
    """
    evaluated = copy.deepcopy(network).eval().requires_grad_(False)  # the training stays as it is
    measured, samples = Measured(), {}
    for index, sequence in list(enumerate(sequences))[group.rank :: group.size]:
        pairs = sequence.pairs[:frames]
        for place, (blurry, restored, sharp) in enumerate(_restore(evaluated, group.device, pairs)):
            measured.add(blurry, restored, sharp)
            if index < SHOWN and place == len(pairs) // 2 and shown is not None:
                samples[sequence.name] = torch.cat([_middle(picture) for picture in (blurry, restored, sharp)], 2).cpu()
    for others in group.gather(samples):
        samples |= others
    if shown is not None and group.is_main:
        for name, sample in samples.items():
            pictures.write_png(shown / f"{name}.png", sample)
    return _score(group.gather(measured), math.inf if below is None else below), samples


def _restore(
    network: Network, chosen: torch.device, pairs: Sequence[FramePair]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield each frame blurry, restored and sharp, uint8 on the device."""
    read = (pictures.read_rgb(pair.blurry) for pair in pairs)
    blurry, given = itertools.tee(read)
    for pair, before, restored in zip(pairs, blurry, restored_pictures(network, chosen, given), strict=True):
        if not bool(torch.isfinite(restored.sum())):
            raise DeviceError(
                f"the network's output for {pair.blurry} is NaN or infinite",
                "--resume continues from the last kept state; add a lower --rate, or --set optimiser.clip=0.01",
            )
        yield before.to(chosen), PROTOCOL.to_8bit(restored), pictures.read_rgb(pair.sharp).to(chosen)


def _score(processes: list[Measured], below: float) -> ValidationScore:
    """Return the means over the frames of all processes."""
    parts = {name: [value for measured in processes for value in getattr(measured, name)] for name in vars(Measured())}
    count = len(parts["psnr"]) + len(parts["untouched"])
    rows = list(zip(parts["blurry"], parts["psnr"], parts["ssim"], strict=True))
    counted = [row for row in rows if row[0] < below] or rows
    others = [row for row in rows if row not in counted]
    mild = _mean([after - before for before, after, _ in others]) if others else None
    untouched = _mean(parts["untouched"]) if parts["untouched"] else None
    if not parts["psnr"] and untouched is not None:  # nothing is blurred: the best is to change nothing
        return ValidationScore(PERFECT, untouched, 1.0, untouched, None, count)
    blurry, psnr, ssim = (_mean(list(values)) for values in zip(*counted, strict=True))
    return ValidationScore(blurry, psnr, ssim, untouched, mild, count)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _middle(picture: Tensor) -> Tensor:
    """Return the middle of a large picture."""
    top, left = (max(length - SHOWN_SIDE, 0) // 2 for length in picture.shape[1:])
    return picture[:, top : top + SHOWN_SIDE, left : left + SHOWN_SIDE]
