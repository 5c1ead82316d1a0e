"""`-m auto`: choose model, weights and strength by the footage and the machine, among what needs no question.

The footage (look/glance.py) says what kind of weights may help, the key `suits` in weights.toml which weights these
are:

    footage                weights, the first that finishes within an hour; else lite
    real blur              for real blur: the exposure nearest to the amount of blur, then the highest published PSNR
    strong shake           for strong shake: the highest published PSNR on GoPro
    not blurred by motion  lite

Weights for strong shake are never taken for real blur: on phone videos every network trained on GoPro scored below the
blurry input ("Deblurring in the Wild", arXiv 2506.19445: input 32.38 dB, NAFNet 31.55, Restormer 31.89).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vdeblur.errors import ModelError
from vdeblur.events import Talk, ignore
from vdeblur.look.glance import GlanceResult, glance_at
from vdeblur.models import cache, choice, registry
from vdeblur.models.choice import REASONABLE_SECONDS, UNKNOWN_FRAMES, time_in_words
from vdeblur.models.registry import ModelEntry, Weights
from vdeblur.restore import device
from vdeblur.restore.area import wanted_weights
from vdeblur.run.context import Context
from vdeblur.run.loading import earlier_model
from vdeblur.run.store import ModelChoice
from vdeblur.settings import Settings
from vdeblur.source import demux
from vdeblur.source.info import SourceInfo
from vdeblur.source.video import open_source

AUTO = "auto"
FALLBACK = "lite"
# Of sharp footage: on the sharp frames of three pairs of REDS lite's output has 44 dB with its input at strength 1, 50
# at 0.5, and against frames without their noise (standard deviation of 3 of 255) 38.1 dB at 1, 38.8 at 0.5.
SHARP_STRENGTH = 0.5
# Exposures, in ms, of the sets of real blur (BSD) and the slopes from which on each fits. The sets do not state slopes:
# a guess, by which mild blur gets weights for short exposures.
EXPOSURES = ((8, -2.05), (16, -2.2), (24, -10.0))
EXPOSURE = re.compile(r"BSD \d+ms-?(\d+)ms")
NAMED = 3  # models that were passed over, in a message

KINDS = {
    "real": "real motion blur in {share:.0%} of the measured frames",
    "strong": "strong shake in {share:.0%} of the measured frames",
    "sharp": "the footage is sharp already, so deblurring will not help; lite at half strength does no harm",
    "soft": "the footage is soft, but not along its motion, so deblurring will help little",
    "defocus": "the footage is out of focus, not blurred by motion, so deblurring will help little",
    "noise": "the footage is noisy, not blurred by motion, so deblurring will help little",
}


@dataclass(frozen=True)
class Candidate:
    """Weights that may restore a video. seconds: estimated for it. fault: why they are passed over; empty: they fit."""

    entry: ModelEntry
    weights: Weights
    seconds: float
    fault: str = ""

    @property
    def name(self) -> str:
        """The name for `-m`."""
        is_default = self.weights.name == self.entry.default
        return self.entry.name if is_default else f"{self.entry.name}@{self.weights.name}"


@dataclass(frozen=True)
class AutoChoice:
    """The result. reason: in words. candidates: all whose kind of footage fits, the best first, faulty ones too."""

    model: str
    strength: float
    reason: str
    footage: GlanceResult | None
    candidates: tuple[Candidate, ...] = ()

    @property
    def passed_over(self) -> list[str]:
        """The better candidates that do not fit, with the reason of each."""
        better = []
        for candidate in self.candidates:
            if not candidate.fault:
                break
            better.append(f"{candidate.name} ({candidate.fault})")
        return better


def settled_settings(context: Context, info: SourceInfo) -> Settings:
    """Return a run's settings with the chosen model and strength, and report the choice.

    A resumed run keeps the choice of the earlier one: a busier machine must not change it.

    Raises: ModelError, InputError, OutputError, DeviceError, InterruptedRunError.
    """
    settings = context.settings
    found = choose(context.source_path, settings, info, context.talk)
    if not settings.dry_run:
        found = _with_weights(found, context.talk)
    earlier = earlier_model(context, AUTO)
    if earlier is not None and (earlier.model, earlier.strength) != (found.model, found.strength):
        reason = "as the run that was interrupted"
        found = replace(found, model=earlier.model, strength=earlier.strength, reason=reason, candidates=())
    context.chosen = ModelChoice(AUTO, found.model, found.strength)
    return announced(found, settings, context.talk)


def announced(found: AutoChoice, settings: Settings, talk: Talk) -> Settings:
    """Report a choice, and return the settings with it."""
    facts: dict[str, object] = {"model": found.model, "reason": found.reason, "asked": AUTO}
    facts |= {"strength": found.strength, "footage": found.footage.kind if found.footage else "unknown"}
    talk.notify("choice", {**facts, "passed_over": found.passed_over})
    return replace(settings, model=found.model, strength=settings.strength * found.strength)


def choose(source_path: Path, settings: Settings, info: SourceInfo, talk: Talk) -> AutoChoice:
    """Look at a video, and choose. info: of the part to restore; --region and --mask make its picture smaller.

    Raises: UsageError for a region or mask that does not fit, InputError, DeviceError, InterruptedRunError.
    """
    chosen = device.choose_device(settings.device, ignore)  # the run reports faults
    footage = None if source_path == demux.PIPE else _glance(source_path, settings, talk)
    if footage is None:
        why = "a pipe is read only once" if source_path == demux.PIPE else "there are too few frames to measure"
        return AutoChoice(FALLBACK, 1.0, f"the footage is unknown: {why}", None)
    words = KINDS[footage.kind].format(share=footage.share)
    if not footage.is_blurred:
        strength = SHARP_STRENGTH if footage.kind == "sharp" else 1.0
        return AutoChoice(FALLBACK, strength, words, footage)
    return _best_of(footage, tuple(candidates_for(footage, chosen, settings, info, talk)))


def _best_of(footage: GlanceResult, candidates: tuple[Candidate, ...]) -> AutoChoice:
    """Choose the first candidate without a fault, or lite."""
    words = KINDS[footage.kind].format(share=footage.share)
    fitting = next((each for each in candidates if not each.fault), None)
    if fitting is None:
        reason = f"{words}; no weights for it are at hand and quick enough here"
        return AutoChoice(FALLBACK, 1.0, reason, footage, candidates)
    learned = f"it learned from {fitting.weights.trained_on}, and takes about {time_in_words(fitting.seconds)}"
    return AutoChoice(fitting.name, 1.0, f"{words}; {learned}", footage, candidates)


def _with_weights(found: AutoChoice, talk: Talk) -> AutoChoice:
    """Download the weights of a choice; where that fails, choose the next candidate, in the end lite."""
    candidates = list(found.candidates)
    for place, candidate in enumerate(candidates):
        if not candidate.fault:
            try:
                cache.obtain_weights(candidate.entry, candidate.weights, talk)
                break
            except ModelError:
                candidates[place] = replace(candidate, fault="cannot be downloaded now")
    if found.footage is None or tuple(candidates) == found.candidates:
        return found
    return _best_of(found.footage, tuple(candidates))


def candidates_for(
    footage: GlanceResult, chosen: torch.device, settings: Settings, info: SourceInfo, talk: Talk
) -> Iterator[Candidate]:
    """Yield all weights for this kind of footage, the best first, each with its fault, if it has one."""
    rates: dict[str, float] = {}
    height, width = _wanted_size(settings, info)
    for entry, weights in _ranked(footage):
        used = device.choose_precision(settings.precision, chosen, entry.network_class)
        if used not in rates:
            rates[used] = choice.multiply_adds_per_second(chosen, used)
        seconds = choice.seconds_per_frame(entry, height, width, rates[used])
        seconds *= info.frames_estimate or UNKNOWN_FRAMES
        yield Candidate(entry, weights, seconds, _fault_of(entry, weights, seconds, talk))


def _wanted_size(settings: Settings, info: SourceInfo) -> tuple[int, int]:
    """Return height and width of the smallest box around what is to be restored.

    What a network needs around it is left out: it is some pixels, and the estimate is a rough one.
    """
    wanted = wanted_weights(settings, info)
    if wanted is None:
        return info.height, info.width
    rows, columns = (torch.nonzero((wanted > 0).any(1 - axis)) for axis in (0, 1))
    return int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1


def _ranked(footage: GlanceResult) -> list[tuple[ModelEntry, Weights]]:
    """Return the weights for a kind of footage, the best first."""
    pairs = [
        (entry, weights)
        for entry in registry.known_models().values()
        for weights in entry.weights.values()
        if entry.network and entry.gmacs and weights.suits == footage.kind
    ]
    if footage.kind == "strong":
        return sorted(pairs, key=lambda pair: -_psnr(pair[1], "GoPro"))
    wanted = next(exposure for exposure, least in EXPOSURES if footage.slope >= least)

    def order(pair: tuple[ModelEntry, Weights]) -> tuple[float, float]:
        found = EXPOSURE.search(pair[1].trained_on)
        # Weights of other sets, such as handheld phones', fit any amount of real blur.
        return (abs(int(found[1]) - wanted) if found else 0.0, -_psnr(pair[1]))

    return sorted(pairs, key=order)


def _psnr(weights: Weights, data: str = "") -> float:
    """Return the published PSNR of weights, on a data set if one is named; 0 if there is none."""
    return next((score.psnr for score in weights.scores if not data or score.data == data), 0.0)


def _fault_of(entry: ModelEntry, weights: Weights, seconds: float, talk: Talk) -> str:
    if not choice.is_at_hand(entry, talk, weights):
        if talk.is_offline:
            return "not in the cache"
        return "asks before its download" if weights.is_fetchable else "must be imported by hand"
    return "" if seconds <= REASONABLE_SECONDS else f"would take {time_in_words(seconds)}"


def _glance(source_path: Path, settings: Settings, talk: Talk) -> GlanceResult | None:
    source = open_source(source_path, settings.cut, ignore)  # the run reports the warnings
    try:
        footage = glance_at(source, settings.encoding.deinterlace, talk.stop)
        talk.check_stop()
        return footage
    finally:
        source.close()
