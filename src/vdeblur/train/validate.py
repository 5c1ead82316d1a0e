"""How good a network is while it is trained: held-out clips through the same streams as `run`, in bench's metrics."""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vdeblur.datasets import pictures
from vdeblur.datasets.layouts import FramePair
from vdeblur.datasets.layouts import Sequence as Pairs
from vdeblur.errors import DeviceError
from vdeblur.measure import protocols
from vdeblur.networks.layers import Network
from vdeblur.restore.clip import restored_pictures
from vdeblur.train.distributed import ProcessGroup

PROTOCOL = protocols.PROTOCOLS["plain"]
PERFECT = 99.0  # dB; stands for an infinite PSNR, where nothing differs
SHOWN = 4  # sequences of which sample pictures are kept
SHOWN_SIDE = 640  # pixels; larger ones are cut in the middle


@dataclass(frozen=True)
class ValidationScore:
    """Means over validation frames: PSNR in dB of the blurry input and of its restoration, and the latter's SSIM.

    untouched: the restorations' PSNR where the input equalled its truth; None where no frame did, and such frames count
    in nothing else, unless there are no others: then blurry stands for a perfect one, and psnr is untouched.
    """

    blurry: float
    psnr: float
    ssim: float
    untouched: float | None
    frames: int


@dataclass
class Measured:
    """What was found of frames so far."""

    blurry: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    untouched: list[float] = field(default_factory=list)

    def add(self, blurry: Tensor, restored: Tensor, sharp: Tensor) -> None:
        """Measure a frame: (3, H, W) uint8."""
        if torch.equal(blurry, sharp):
            self.untouched.append(min(PROTOCOL.measure(restored[None], sharp[None])[0].psnr, PERFECT))
            return
        before, after = PROTOCOL.measure(torch.stack((blurry, restored)), torch.stack((sharp, sharp)))
        assert after.ssim_2d is not None
        self.blurry.append(before.psnr)
        self.psnr.append(min(after.psnr, PERFECT))
        self.ssim.append(after.ssim_2d)


def validate(
    network: Network, sequences: Sequence[Pairs], frames: int, group: ProcessGroup, shown: Path | None = None
) -> tuple[ValidationScore, dict[str, Tensor]]:
    """Measure a network on the first frames of each sequence, shared out among the processes.

    shown: a folder; the middle frames of some sequences are written into it, blurry, restored and sharp beside each
    other. Gives them, too, by the sequence's name: (3, H, W') uint8.
    """
    evaluated = copy.deepcopy(network).eval().requires_grad_(False)  # so that nothing of the training is touched
    measured, samples = Measured(), {}
    for index, sequence in list(enumerate(sequences))[group.rank :: group.size]:
        pairs = sequence.pairs[:frames]
        for place, (blurry, restored, sharp) in enumerate(_restore(evaluated, group.device, pairs)):
            measured.add(blurry, restored, sharp)
            if index < SHOWN and place == len(pairs) // 2 and shown is not None:
                samples[sequence.name] = torch.cat([_middle(one) for one in (blurry, restored, sharp)], 2).cpu()
    for others in group.gather(samples):
        samples |= others
    if shown is not None and group.leads:
        for name, sample in samples.items():
            pictures.write_png(shown / f"{name}.png", sample)
    return _score(group.gather(measured)), samples


def _restore(
    network: Network, chosen: torch.device, pairs: Sequence[FramePair]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Give each frame blurry, restored and sharp, uint8 on the device."""
    read = (pictures.read_rgb(pair.blurry) for pair in pairs)
    blurry, given = itertools.tee(read)
    for pair, before, restored in zip(pairs, blurry, restored_pictures(network, chosen, given), strict=True):
        if not bool(torch.isfinite(restored.sum())):
            raise DeviceError(
                f"the network gave values that are not numbers for {pair.blurry}",
                "--resume goes on from the last kept state; with a lower --rate, or --set optimiser.clip=0.01",
            )
        yield before.to(chosen), PROTOCOL.to_8bit(restored), pictures.read_rgb(pair.sharp).to(chosen)


def _score(several: list[Measured]) -> ValidationScore:
    """Give the means over what all processes measured."""
    parts = {name: [value for one in several for value in getattr(one, name)] for name in vars(Measured())}
    count = len(parts["psnr"]) + len(parts["untouched"])
    untouched = _mean(parts["untouched"]) if parts["untouched"] else None
    if not parts["psnr"] and untouched is not None:  # nothing is blurred; then it is well done to change nothing
        return ValidationScore(PERFECT, untouched, 1.0, untouched, count)
    blurry, psnr, ssim = (_mean(parts[name]) for name in ("blurry", "psnr", "ssim"))
    return ValidationScore(blurry, psnr, ssim, untouched, count)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _middle(picture: Tensor) -> Tensor:
    """Cut the middle out of a large picture."""
    top, left = (max(length - SHOWN_SIDE, 0) // 2 for length in picture.shape[1:])
    return picture[:, top : top + SHOWN_SIDE, left : left + SHOWN_SIDE]
