"""Compare the restored frames of a sequence with the sharp ones."""

import math
from dataclasses import asdict

import torch
from torch import Tensor

from vdeblur.bench.results import FrameResult
from vdeblur.datasets.layouts import FramePair
from vdeblur.errors import InputError
from vdeblur.measure import metrics, temporal, vmaf
from vdeblur.measure.protocols import Protocol, Quality

BATCH = {"cpu": 1, "cuda": 8}  # pictures compared together
WARPED_EVERY = 5  # measure every fifth pair of neighbours: its motion takes longer than all other measures together


class Comparison:
    """The scores of a sequence, measured in batches on the device.

    After `finish`, `extremes` holds the restored pictures with the lowest ("worst") and the highest PSNR ("best"), or
    sharpness if there are no sharp frames to compare with. Then PSNR is NaN.
    """

    def __init__(
        self, protocol: Protocol, device: torch.device, scorer: vmaf.Vmaf | None = None, has_truth: bool = True
    ) -> None:
        """has_truth: sharp frames exist. If not, the blurry ones stand in for them, and give the motion alone."""
        self.protocol, self.scorer, self.has_truth = protocol, scorer, has_truth
        self.vmaf: float | None = None
        self.device = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
        self.waiting: list[tuple[FramePair, Tensor, Tensor, float | None]] = []
        self.frames: list[FrameResult] = []
        self.before: tuple[Tensor, Tensor] | None = None
        self.counted = 0
        self.warping: list[float] = []
        self.extremes: dict[str, Tensor] = {}
        self._least, self._most = math.inf, -math.inf

    @torch.inference_mode()
    def add(self, pair: FramePair, restored: Tensor, sharp: Tensor, seconds: float | None, counts: bool) -> None:
        """Add the next frame of the sequence: uint8 (3, H, W) each. counts: the protocol counts it."""
        restored, sharp = restored.to(self.device), sharp.to(self.device)
        if counts:
            if self.before is not None and self.counted % WARPED_EVERY == 1:
                two = [torch.stack(both).float() / 255 for both in zip(self.before, (restored, sharp), strict=True)]
                self.warping.append(temporal.warping_error(*two))
            if self.scorer is not None:
                self.scorer.add(*(metrics.crop(picture, self.protocol.crop) for picture in (restored, sharp)))
            self.before = restored, sharp
            self.counted += 1
            self.waiting.append((pair, restored, sharp, seconds))
        if len(self.waiting) >= BATCH.get(self.device.type, 1):
            self._compare()

    def finish(self) -> tuple[FrameResult, ...]:
        """Compare the rest; return the scores of all frames that count."""
        self._compare()
        if self.scorer is not None:
            scores = self.scorer.finish()
            self.vmaf = math.fsum(scores) / len(scores)
        return tuple(self.frames)

    @property
    def warping_error(self) -> float | None:
        """The mean over every fifth pair of neighbours; see temporal.py."""
        return math.fsum(self.warping) / len(self.warping) if self.warping else None

    @torch.inference_mode()
    def _compare(self) -> None:
        if not self.waiting:
            return
        pairs, restored, sharp, seconds = zip(*self.waiting, strict=True)
        self.waiting.clear()
        stacked = torch.stack(restored)
        try:
            if self.has_truth:
                qualities = self.protocol.measure(stacked, torch.stack(sharp))
            else:
                qualities = [Quality(math.nan, None, None)] * len(stacked)
        except ValueError as error:
            raise InputError(f"{pairs[0].blurry}: {error}", "use larger pictures") from error
        sharpness = temporal.sharpness(stacked.float() / 255).tolist()
        for pair, picture, quality, frame_seconds, value in zip(
            pairs, restored, qualities, seconds, sharpness, strict=True
        ):
            self.frames.append(FrameResult(pair.name, **asdict(quality), seconds=frame_seconds, sharpness=value))
            score = self.frames[-1].rank
            if score < self._least:
                self._least, self.extremes["worst"] = score, picture
            if score > self._most:
                self._most, self.extremes["best"] = score, picture
