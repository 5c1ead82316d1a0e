"""`vdeblur run -m auto --sample OUT.html`: the models that suit a video, side by side on its blurriest second.

auto.choose -> that second restored by each candidate, as in sample.py -> one page with pictures, times and sizes
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from html import escape
from pathlib import Path

import numpy
import torch
from torch import Tensor

from vdeblur import files
from vdeblur.errors import DeviceError, InterruptedRunError, ModelError, UsageError
from vdeblur.events import Ask, Notify, Stop, Talk, ignore, never
from vdeblur.look import compare
from vdeblur.look.page import page_html, picture_uri
from vdeblur.models import registry
from vdeblur.models.choice import time_in_words
from vdeblur.run import auto
from vdeblur.run.context import RunResult
from vdeblur.run.sample import Restored, Sampling
from vdeblur.settings import Settings
from vdeblur.source import demux
from vdeblur.source.video import Source

MOST = 4  # candidates beside lite
LENGTH = Fraction(1)  # seconds
SHOWN_FRAMES = 4  # of each candidate, at most
CROP = (480, 640)  # lines and columns of a picture on the page: larger frames show their middle, at full resolution


def is_page(output: Path) -> bool:
    """Return whether an output is a page."""
    return output.suffix.lower() in (".html", ".htm")


def run_candidates(
    source_path: Path,
    output: Path,
    settings: Settings,
    *,
    notify: Notify = ignore,
    ask: Ask | None = None,
    stop: Stop = never,
) -> RunResult:
    """Write a page that shows the candidates of `-m auto` beside the input, with time and size for the whole.

    Raises: UsageError for pipes, and if the model is not auto; what restore_file raises.
    """
    if demux.PIPE in (source_path, output):
        raise UsageError("--sample takes no pipes: parts of the input are read twice", "save it to a file first")
    if settings.model != auto.AUTO:
        raise UsageError(f"a page of samples needs -m auto, not -m {settings.model}", "add -m auto, or name a video")
    return _CandidatePage(source_path, output, settings, notify, ask, stop).run()


@dataclass(frozen=True)
class _Shown:
    """A candidate on the page. estimates: seconds and bytes for the whole, as in the event sample."""

    model: str
    strength: float
    is_chosen: bool
    restored: Restored
    estimates: dict[str, object]

    @property
    def title(self) -> str:
        """The model, with its strength if that is not 1."""
        return self.model if self.strength == 1 else f"{self.model} at strength {self.strength:g}"

    def row(self) -> dict[str, object]:
        """Return the candidate as in the event sample."""
        return {"model": self.model, "strength": self.strength, "is_chosen": self.is_chosen, **self.estimates}


class _CandidatePage(Sampling):
    """The page of one video."""

    def _make(
        self, folder: Path, source: Source, total: int | None, length: Fraction | None
    ) -> tuple[int, dict[str, object]]:
        self.suffix = ".mkv"
        settings = replace(self.settings, sample=False, compare=None, resume=False)
        talk = Talk(settings.offline, settings.yes, self.notify, self.ask, self.stop)
        found = auto.choose(self.source_path, settings, source.info, talk)
        auto.announced(found, settings, talk)
        begin, end = _second_around(found.footage.blurriest if found.footage else Fraction(0), length)
        runs = list(self._runs(found, settings))
        self.expected = math.ceil((end - begin) * source.info.rate) * len(runs)
        shown: list[_Shown] = []
        failed: list[str] = []
        for index, run in enumerate(runs):
            try:
                restored = self._restore(folder / f"{index}{self.suffix}", begin, end, run)
            except (ModelError, DeviceError) as error:
                if index + 1 == len(runs) and not shown:
                    raise
                self._warn("W_SAMPLE", f"there is no sample of {run.model}: {error.message}")
                failed.append(f"{run.model} ({error.message})")
                continue
            is_chosen = run.model == found.model
            shown.append(
                _Shown(run.model, run.strength, is_chosen, restored, self._estimates([restored], total, length))
            )
        frames = self._write_page(found, shown, failed)
        chosen = next((each for each in shown if each.is_chosen), shown[-1])
        return frames, {**chosen.estimates, "candidates": [each.row() for each in shown]}

    def _runs(self, found: auto.AutoChoice, settings: Settings) -> Iterator[Settings]:
        """Yield the settings of each candidate, the best first; lite is always the last."""
        fitting = [each.name for each in found.candidates if not each.fault and each.name != auto.FALLBACK]
        for name in fitting[:MOST]:
            yield replace(settings, model=name)
        strength = found.strength if found.model == auto.FALLBACK else 1.0
        yield replace(settings, model=auto.FALLBACK, strength=settings.strength * strength)

    def _write_page(self, found: auto.AutoChoice, shown: list[_Shown], failed: list[str]) -> int:
        """Write the page; return how many frames it shows. failed: candidates without a sample, with the reasons."""
        name = escape(self.source_path.name)
        begin = float(shown[0].restored.cut.start or 0)
        over = found.passed_over + failed
        parts = [
            f"<h1>Candidates for {name}</h1>",
            f"<p>{escape(found.reason[:1].upper() + found.reason[1:])}.</p>",
            f'<p class="quiet">Passed over: {escape("; ".join(over))}.</p>' if over else "",
            _table(shown),
            f"<h2>The blurriest second, from {begin:.2f} s on</h2>",
        ]
        pictures = [self._pictures_of(each) for each in shown]
        count = min(len(times) for times in pictures)
        for index in range(count):
            seconds, blurry, _ = pictures[0][index]
            figures = [_figure(blurry, "input")]
            figures += [_figure(found[index][2], each.title) for found, each in zip(pictures, shown, strict=True)]
            parts += [f"<h3>at {seconds:.3f} s</h3>", f'<div class="candidates">{"".join(figures)}</div>']
        page = page_html(f"vdeblur: candidates for {self.source_path.name}", "\n".join(parts))
        with files.drafted_output(self.output, self.settings.encoding.overwrite) as draft:
            draft.write_text(page, "utf-8")
        return count

    def _pictures_of(self, shown: _Shown) -> list[tuple[float, numpy.ndarray, numpy.ndarray]]:
        """Return time, input and restored picture of a few frames; each uint8 (h, w, 3)."""
        restored = shown.restored
        pictures = []
        with compare.opened(self.source_path, restored.path, ignore, restored.cut) as couple:
            for left, right in compare.evenly(compare.watched(couple, ignore, self.stop), SHOWN_FRAMES):
                blurry, sharp = (_cropped(rgb) for rgb in couple.rgb(left, right))
                pictures.append((float(left.seconds), blurry, sharp))
        if (status := self.stop()) is not None:
            raise InterruptedRunError(status)
        return pictures


def _second_around(middle: Fraction, length: Fraction | None) -> tuple[Fraction, Fraction]:
    """Return begin and end of the second around a time, within a video of this length; None: unknown."""
    latest = middle if length is None else max(length - LENGTH, Fraction(0))
    begin = min(max(middle - LENGTH / 2, Fraction(0)), latest)
    return begin, begin + LENGTH if length is None else min(begin + LENGTH, length)


def _cropped(rgb: Tensor) -> numpy.ndarray:
    """Return the middle of a picture, (3, H, W) in [0, 1], as uint8 (h, w, 3)."""
    top, left = (max(side - most, 0) // 2 for side, most in zip(rgb.shape[1:], CROP, strict=True))
    middle = rgb[:, top : top + CROP[0], left : left + CROP[1]]
    array: numpy.ndarray = (middle * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return array


def _figure(picture: numpy.ndarray, title: str) -> str:
    name = escape(title)
    return f'<figure><img src="{picture_uri(picture)}" alt="{name}"><figcaption>{name}</figcaption></figure>'


def _table(shown: list[_Shown]) -> str:
    heads = ("model", "time for the whole", "size of the whole", "for", "learned from")
    rows = []
    for each in shown:
        _, weights = registry.choose_weights(each.model)
        suits, data = (registry.SUITS.get(weights.suits, ""), weights.trained_on) if weights else ("", "")
        suits = re.split("[:,;]", suits)[0]  # the rest is advice
        mark = " (chosen)" if each.is_chosen else ""
        cells = (*_costs(each.estimates), suits, data)
        row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        rows.append(f"<tr><th>{escape(each.title)}{mark}</th>{row}</tr>")
    head = "".join(f"<th>{text}</th>" for text in heads)
    table = f'<table class="texts"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _costs(estimates: dict[str, object]) -> tuple[str, str]:
    """Return time and size in words."""
    seconds, size = estimates["seconds_estimate"], estimates["bytes_estimate"]
    if not isinstance(seconds, float) or not isinstance(size, int):
        return "unknown", "unknown"
    return f"about {time_in_words(seconds)}", f"about {size / 1e6:.3g} MB"
