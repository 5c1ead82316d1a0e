"""`--model best`: the strongest model that finishes within an hour on this machine.

Models are ranked by their published PSNR on GoPro. The papers' protocols differ by some tenths of a decibel, so
neighbours in this order may be equally good. A model's time is its multiply-adds divided by the rate of the device,
which short convolutions measure.
"""

import time
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from vdeblur.events import Talk
from vdeblur.models import cache, registry
from vdeblur.models.registry import ModelEntry, Weights
from vdeblur.restore import device

FALLBACK = "lite"  # used if no other model is quick enough; it is in the package, and fast
REASONABLE_SECONDS = 3600.0  # for a file
UNKNOWN_FRAMES = 1800  # a minute at 30 fps, for files of unknown length
COST_SIDE = 256  # pixels; side of the frames that the costs in weights.toml are for
EFFICIENCY = 0.5  # a network's rate over that of a few residual blocks; measured 0.4 to 0.7 on two CPU cores
CHANNELS, HEIGHT, WIDTH, BLOCKS = 64, 180, 320, 4  # of those blocks


@dataclass(frozen=True)
class Choice:
    """A model, and the reason for choosing it."""

    model: str
    reason: str


def strongest(chosen: torch.device, precision: str, height: int, width: int, frames: int | None, talk: Talk) -> Choice:
    """Choose a model for a video of this size and number of frames (None: unknown).

    precision: as --precision takes it. Models whose download the user would have to confirm are skipped without --yes;
    offline, all that are not in the cache.
    """
    rates: dict[str, float] = {}
    skipped: list[str] = []
    for entry in ranking():
        if not is_at_hand(entry, talk):
            skipped.append(f"{entry.name} asks before its download" if not talk.is_offline else entry.name)
            continue
        used = device.choose_precision(precision, chosen, entry.network_class)
        if used not in rates:
            rates[used] = multiply_adds_per_second(chosen, used)
        seconds = seconds_per_frame(entry, height, width, rates[used]) * (frames or UNKNOWN_FRAMES)
        if seconds <= REASONABLE_SECONDS:
            reason = (
                f"{published_psnr(entry):.2f} dB on GoPro as published, about {time_in_words(seconds)} for this file"
            )
            aside = f"; {skipped[0]} (--yes)" if skipped and not talk.is_offline else ""
            return Choice(entry.name, reason + aside)
    return Choice(
        FALLBACK, f"all others would take more than {time_in_words(REASONABLE_SECONDS)} here, or need a download first"
    )


def ranking() -> list[ModelEntry]:
    """Return the models with a published PSNR on GoPro and a known cost, the strongest first."""
    known = [entry for entry in registry.known_models().values() if entry.gmacs and published_psnr(entry)]
    return sorted(known, key=lambda entry: -(published_psnr(entry) or 0))


def published_psnr(entry: ModelEntry) -> float | None:
    """Return the published PSNR on GoPro, in dB, of a model's default weights."""
    weights = entry.weights.get(entry.default or "")
    return next((score.psnr for score in weights.scores if score.data == "GoPro"), None) if weights else None


def is_at_hand(entry: ModelEntry, talk: Talk, weights: Weights | None = None) -> bool:
    """Return whether a model's weights, None for its default ones, are cached, or download without a question."""
    weights = entry.weights[entry.default or ""] if weights is None else weights
    if cache.is_cached(entry, weights):
        return True
    return not talk.is_offline and weights.is_fetchable and (talk.yes or weights.verification != "unpinned")


def seconds_per_frame(entry: ModelEntry, height: int, width: int, rate: float) -> float:
    """Estimate the seconds for a frame. rate: multiply-adds per second."""
    gmacs = entry.time_gmacs or entry.gmacs
    assert gmacs is not None
    return gmacs * 1e9 * height * width / COST_SIDE**2 / (rate * EFFICIENCY)


@torch.inference_mode()
def multiply_adds_per_second(chosen: torch.device, precision: str) -> float:
    """Measure a device on residual blocks like those of the networks, within a fraction of a second."""
    dtype = device.DTYPES[precision]
    x = torch.rand(1, CHANNELS, HEIGHT, WIDTH, device=chosen, dtype=dtype).to(memory_format=torch.channels_last)
    kernel = torch.rand(CHANNELS, CHANNELS, 3, 3, device=chosen, dtype=dtype).to(memory_format=torch.channels_last)
    kernel = (kernel - 0.5) / CHANNELS
    times = []
    for _ in range(4):
        begun = time.perf_counter()
        y = x
        for _ in range(BLOCKS):
            y = y + F.conv2d(F.leaky_relu(F.conv2d(y, kernel, padding=1), 0.1), kernel, padding=1)
        float(y[0, 0, 0, 0])  # reading a value waits for the device
        times.append(time.perf_counter() - begun)
    return 2 * BLOCKS * CHANNELS * CHANNELS * 9 * HEIGHT * WIDTH / sorted(times)[1]  # the first is a warm-up


def time_in_words(seconds: float) -> str:
    """Return a time in words: seconds, minutes, hours or days."""
    if seconds < 90:
        count = max(round(seconds), 1)
        return "1 second" if count == 1 else f"{count} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
