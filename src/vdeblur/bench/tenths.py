"""The sharpest and the blurriest tenth of a video's frames: networks differ most where the blur is strong.

Frames are ranked by the sharpness of the blurry input (measure/temporal.py), so all models are judged on the same ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vdeblur.bench.results import BenchReport, FrameResult, ModelResult, SequenceResult

SHARE = 10  # one frame in ten, at least one
BLURRY = "identity"  # the model that returns its input


@dataclass(frozen=True)
class Tenths:
    """The names of a sequence's frames with the sharpest and the blurriest input."""

    sharpest: frozenset[str]
    blurriest: frozenset[str]


def tenths_of(models: Sequence[ModelResult]) -> dict[str, Tenths]:
    """Return the tenths of each sequence; none if the input was not measured."""
    blurry = next((model for model in models if model.model == BLURRY), None)
    return {} if blurry is None else {sequence.name: _ranked(sequence.frames) for sequence in blurry.sequences}


def _ranked(frames: Sequence[FrameResult]) -> Tenths:
    """Return the tenths of frames with the input's sharpness; frames of equal sharpness keep their order."""
    names = [frame.name for frame in sorted(frames, key=lambda frame: frame.sharpness)]
    count = math.ceil(len(names) / SHARE)
    return Tenths(sharpest=frozenset(names[-count:]), blurriest=frozenset(names[:count]))


def mean_psnr(sequence: SequenceResult, names: frozenset[str]) -> float:
    """Return the mean PSNR of those frames of a sequence, in dB; NaN if it has none of them."""
    known = [frame.psnr for frame in sequence.frames if frame.name in names]
    return sum(known) / len(known) if known else math.nan


def with_tenths(report: BenchReport) -> dict[str, Any]:
    """Return a report's JSON with the PSNR of both tenths in each sequence; null where frames are equal."""
    facts = report.to_json()
    found = tenths_of(report.models)
    for model, row in zip(report.models, facts["models"], strict=True):
        for sequence, cells in zip(model.sequences, row["sequences"], strict=True):
            tenths = found.get(sequence.name)
            for kind, names in (("sharpest", tenths.sharpest), ("blurriest", tenths.blurriest)) if tenths else ():
                psnr = mean_psnr(sequence, names)
                cells[f"{kind}_tenth"] = {"frames": len(names), "psnr": psnr if math.isfinite(psnr) else None}
    return facts
