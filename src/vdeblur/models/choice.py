"""What a machine can do: `--model best`, the strongest model in reasonable time, and where a network computes.

Strong is who has the highest published PSNR on GoPro; the papers' protocols differ by some tenths of a decibel, so
neighbours in this order may be equals. How long a model takes is its multiply-adds over what the device does in a
second, which a short convolution tells.
"""

import time
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from vdeblur.events import Talk
from vdeblur.models import cache, registry
from vdeblur.models.registry import Entry
from vdeblur.restore import device

ALWAYS = "lite"  # in the package, and quick
REASONABLE_SECONDS = 3600.0  # for a file
UNKNOWN_FRAMES = 1800  # a minute, where a file does not say how long it is
COST_SIDE = 256  # pixels; costs in weights.toml are for a frame of this side
EFFICIENCY = 0.5  # of a whole network beside a few residual blocks; measured 0.4 to 0.7 on two CPU cores
CHANNELS, HEIGHT, WIDTH, BLOCKS = 64, 180, 320, 4  # of those blocks


@dataclass(frozen=True)
class Choice:
    """A model, and why it was chosen."""

    model: str
    reason: str


def strongest(chosen: torch.device, precision: str, height: int, width: int, frames: int | None, talk: Talk) -> Choice:
    """Choose a model for a video of so many frames (None: not known) of this size.

    precision: as asked for, "auto" among others.
    Models whose weights would have to be accepted first are passed over unless --yes was given, and without a network
    all that are not in the cache.
    """
    rates: dict[str, float] = {}
    passed_over: list[str] = []
    for entry in ranking():
        if not is_at_hand(entry, talk):
            passed_over.append(f"{entry.name} wants its download accepted" if not talk.is_offline else entry.name)
            continue
        own = device.choose_precision(precision, chosen, entry.network_class)
        if own not in rates:
            rates[own] = multiply_adds_per_second(chosen, own)
        seconds = seconds_per_frame(entry, height, width, rates[own]) * (frames or UNKNOWN_FRAMES)
        if seconds <= REASONABLE_SECONDS:
            reason = (
                f"{published_psnr(entry):.2f} dB on GoPro as published, about {time_in_words(seconds)} for this file"
            )
            aside = f"; {passed_over[0]} (--yes)" if passed_over and not talk.is_offline else ""
            return Choice(entry.name, reason + aside)
    return Choice(
        ALWAYS, f"all others would take more than {time_in_words(REASONABLE_SECONDS)} here, or are not at hand"
    )


def ranking() -> list[Entry]:
    """Give the models with a published PSNR on GoPro and a known cost, the strongest first."""
    known = [entry for entry in registry.known_models().values() if entry.gmacs and published_psnr(entry)]
    return sorted(known, key=lambda entry: -(published_psnr(entry) or 0))


def published_psnr(entry: Entry) -> float | None:
    """Give the published PSNR on GoPro, in dB, of a model's default weights."""
    one = entry.weights.get(entry.default or "")
    return next((score.psnr for score in one.scores if score.data == "GoPro"), None) if one else None


def is_at_hand(entry: Entry, talk: Talk) -> bool:
    """Tell whether a model's default weights are there, or can be fetched without asking."""
    one = entry.weights[entry.default or ""]
    if cache.is_cached(entry, one):
        return True
    return not talk.is_offline and one.is_fetchable and (talk.yes or one.verification != "unpinned")


def seconds_per_frame(entry: Entry, height: int, width: int, rate: float) -> float:
    """Estimate from a rate in multiply-adds a second."""
    assert entry.gmacs is not None
    return entry.gmacs * 1e9 * height * width / COST_SIDE**2 / (rate * EFFICIENCY)


@torch.inference_mode()
def multiply_adds_per_second(chosen: torch.device, precision: str) -> float:
    """Measure what a device does in residual blocks, as the networks have them, in a fraction of a second."""
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
        return f"{max(round(seconds), 1)} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
