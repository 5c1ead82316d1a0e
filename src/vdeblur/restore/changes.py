"""Measure how much a run changes frames and, where that is little, why: the verdict at its end."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.measure.temporal import sharpness

# Measured with lite, as means of clips. Change: blurry clips of REDS 2.5 to 4.2 codes, their sharp ones 0.62 to 0.77,
# which are far sharper than usual video; other sharp clips less. Brightness: ordinary clips
# 0.32 to 0.71; at a tenth of their light 0.03 to 0.04. Motion: cameras on a tripod 0.0000 to 0.0021, moving ones 0.0048
# and more. Sharpness: see measure/temporal.py; sharp frames of REDS from 0.736 on, frames out of focus 0.39.
LITTLE = 1.5  # codes of 8 bits; lite changes sharp frames of REDS by 1.0 to 1.2, their blurry ones by 2.8 to 4.2
DARK = 0.06
STILL = 0.002
SHARP, SOFT = 0.70, 0.60
EVERY = 25  # frames from one whose reasons are measured to the next
HEIGHT, WIDTH = 720, 1280  # of larger pictures only the middle is measured
SMALL = (36, 64)  # lines, columns: the picture whose change from frame to frame is the motion


@dataclass(frozen=True)
class ChangeSummary:
    """The verdict on a run: the change of its frames.

    frames: that were restored and measured. mean_change: mean absolute difference of the luma samples (of RGB: of all
    samples) before and after, in codes of 8 bits. little_share: share of the frames that changed by less than LITTLE.
    sharpness, brightness, motion: medians of sampled frames that changed little, as blurry input; None where none was
    sampled. sharpness: 0 to 1, see measure/temporal.py. brightness: mean of RGB, 0 to 1. motion: mean absolute
    difference of a frame and the one before, both reduced to 64x36, of the range. reason: why they changed little, as
    far as these measures tell: dark; sharp; still (the picture hardly moves, so blur is no motion blur); soft (blurred,
    but the network found little motion blur); or "".
    """

    frames: int
    mean_change: float
    little_share: float
    sharpness: float | None
    brightness: float | None
    motion: float | None

    @property
    def reason(self) -> str:
        """Why frames changed little; see the class."""
        if self.brightness is not None and self.brightness < DARK:
            return "dark"
        if self.sharpness is not None and self.sharpness >= SHARP:
            return "sharp"
        if self.motion is not None and self.motion < STILL:
            return "still"
        if self.sharpness is not None and self.sharpness < SOFT:
            return "soft"
        return ""

    def facts(self) -> dict[str, object]:
        """Return the payload of an event."""
        return {
            "frames": self.frames,
            "mean_change": round(self.mean_change, 3),
            "little_share": round(self.little_share, 3),
            "little_below": LITTLE,
            "reason": self.reason,
            **{
                name: None if value is None else round(value, 4)
                for name, value in (
                    ("sharpness", self.sharpness),
                    ("brightness", self.brightness),
                    ("motion", self.motion),
                )
            },
        }


@dataclass
class _Sample:
    """Measures of a blurry frame, on the device. motion: None for a first frame. change: by its restoration."""

    sharpness: Tensor
    brightness: Tensor
    motion: Tensor | None
    change: float | None = None


@dataclass
class ChangeMeter:
    """Measures frames, in their order, before and after restoration."""

    frames: int = 0
    total: float = 0.0
    little: int = 0
    seen: int = 0  # blurry frames
    last: int | None = None  # time of the last restored frame that was counted
    small: Tensor | None = None  # the picture before the next sampled one
    samples: dict[int, _Sample] = field(default_factory=dict)  # by the frame's time

    def look_at(self, pts: int, picture: Tensor) -> None:
        """Measure a blurry frame, if its turn has come. picture: (3, H, W) RGB in [0, 1]. pts: its time."""
        place = self.seen % EVERY
        self.seen += 1
        if place > 1:
            return
        if picture.device.type not in ("cpu", "cuda"):  # others have no float64, and pool whole multiples alone
            picture = picture.cpu()
        small = F.adaptive_avg_pool2d(picture, SMALL)
        if place == 0 and self.seen > 1:
            self.small = small
            return
        before, self.small = self.small, small
        motion = None if before is None else (small - before).abs().mean()
        top, left = max(picture.shape[1] - HEIGHT, 0) // 2, max(picture.shape[2] - WIDTH, 0) // 2
        middle = picture[None, :, top : top + HEIGHT, left : left + WIDTH]
        self.samples[pts] = _Sample(sharpness(middle)[0], small.mean(), motion)

    def note(self, pts: int, change: float) -> None:
        """Count a restored frame, unless it was counted already: segments overlap. change: in codes of 8 bits."""
        if self.last is not None and pts <= self.last:
            return
        self.last = pts
        self.frames += 1
        self.total += change
        self.little += change < LITTLE
        if pts in self.samples:
            self.samples[pts].change = change

    def summary(self) -> ChangeSummary | None:
        """Return the verdict; None if no frame was restored."""
        if not self.frames:
            return None
        chosen = [each for each in self.samples.values() if each.change is not None and each.change < LITTLE]
        return ChangeSummary(
            frames=self.frames,
            mean_change=self.total / self.frames,
            little_share=self.little / self.frames,
            sharpness=_median([each.sharpness for each in chosen]),
            brightness=_median([each.brightness for each in chosen]),
            motion=_median([each.motion for each in chosen if each.motion is not None]),
        )


def mean_change(before: Sequence[Tensor], after: Sequence[Tensor], bits: int, rgb: bool) -> Tensor:
    """Return the mean absolute difference of planes, in codes of 8 bits: of the first one, or of all RGB planes."""
    count = len(before) if rgb else 1
    means = [(b.float() - a.float()).abs().mean() for a, b in zip(before[:count], after[:count], strict=True)]
    return torch.stack(means).mean() / (1 << (bits - 8))


def _median(values: list[Tensor]) -> float | None:
    return statistics.median(float(value) for value in values) if values else None
