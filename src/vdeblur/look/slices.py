"""Slices of videos through time: one row (x-t) or one column (y-t) of pixels of every frame, as one picture.

Flicker and wobble, which single frames hide, show as jagged lines; DSTNet (CVPR 2023) compares methods so in Figure 9.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy
from torch import Tensor

from vdeblur import files
from vdeblur.errors import OutputError, UsageError
from vdeblur.events import Notify, Stop, ignore, never
from vdeblur.look import maps
from vdeblur.look.compare import Couple, evenly, opened, watched
from vdeblur.look.compose import upright_size
from vdeblur.look.page import png_bytes

LEAST_LENGTH = 160  # pixels along time; frames of short clips are repeated up to it
MOST_FRAMES = 2000  # of longer videos, frames at even distances


@dataclass(frozen=True)
class Line:
    """A row or a column of pixels, counted from 0; without both the middle row."""

    row: int | None = None
    column: int | None = None

    def placed(self, width: int, height: int) -> "Line":
        """Return the line in pictures of this size.

        Raises: UsageError if it lies outside, or row and column are both given.
        """
        if self.row is not None and self.column is not None:
            raise UsageError("--row and --column are both given", "a profile shows one of them")
        for name, value, length in (("row", self.row, height), ("column", self.column, width)):
            if value is not None and not 0 <= value < length:
                raise UsageError(f"there is no {name} {value} in {width}x{height}", f"use 0 to {length - 1}")
        return Line(height // 2) if self.row is None and self.column is None else self

    def of(self, picture: Tensor) -> numpy.ndarray:
        """Return the line of a picture (3, H, W) in [0, 1]: uint8 (W, 3) or (H, 3)."""
        line = picture[:, self.row] if self.row is not None else picture[:, :, self.column]
        pixels: numpy.ndarray = (255 * line.T).round().clamp(0, 255).byte().numpy()
        return pixels

    def __str__(self) -> str:
        return f"row {self.row}" if self.row is not None else f"column {self.column}"


def write_profile(
    a: Path,
    b: Path,
    output: Path,
    line: Line | None = None,
    *,
    truth: Path | None = None,
    overwrite: bool,
    offset: Fraction | None = None,
    labels: tuple[str, str] | None = None,
    notify: Notify = ignore,
    stop: Stop = never,
) -> int:
    """Write the same line of pixels of two or three videos over time, below each other, as PNG; return the frames.

    Time runs downwards for a row, to the right for a column. truth: a third video, matched with a by its times.
    offset: see compare.write_comparison. labels: of a and b; None: the names of the files.

    Raises: UsageError for a line outside the frame; InputError and OutputError as write_comparison.
    """
    if output.suffix.lower() != ".png":
        raise OutputError(f"{output} cannot hold a profile, which is a PNG file", "name it *.png")
    names = [*(labels or (a.name, b.name)), *([truth.name] if truth else [])]
    with opened(a, b, notify, offset=offset) as couple:
        for path in (a, b, *([truth] if truth else [])):
            files.check_output(output, path, overwrite)
        line = (line or Line()).placed(*upright_size(couple.a.info))
        lines = _lines_over_time(couple, line, notify, stop)
    rows: list[tuple[numpy.ndarray, ...]]
    if truth is not None:
        with opened(a, truth, notify) as couple:
            third = {time: pixels for time, (_, pixels) in _lines_over_time(couple, line, notify, stop).items()}
        rows = [(*both, third[time]) for time, both in lines.items() if time in third]
    else:
        rows = [*lines.values()]
    kept = evenly(iter(rows), MOST_FRAMES)
    step = -(-len(rows) // MOST_FRAMES)
    panels = [(name, _panel(pixels, line)) for name, pixels in zip(names, zip(*kept, strict=True), strict=True)]
    direction = "downwards" if line.row is not None else "to the right"
    title = f"{line} over {len(kept)} frames, time {direction}" + (f", every {step}th frame" if step > 1 else "")
    with files.drafted_output(output, overwrite) as draft:
        draft.write_bytes(png_bytes(maps.labelled_rows(panels, title)))
    return len(kept)


def _lines_over_time(
    couple: Couple, line: Line, notify: Notify, stop: Stop
) -> dict[Fraction, tuple[numpy.ndarray, numpy.ndarray]]:
    """Return the line of each pair of frames, by the first one's time."""
    found = {}
    for left, right in watched(couple, notify, stop):
        first, second = (line.of(picture) for picture in couple.rgb(left, right))
        found[left.seconds] = (first, second)
    return found


def _panel(pixels: Iterable[numpy.ndarray], line: Line) -> numpy.ndarray:
    """Return lines of pixels as one picture (T, W, 3), or for a column (H, T, 3); each is repeated in short clips."""
    stacked = numpy.stack(list(pixels))
    repeated = stacked.repeat(max(-(-LEAST_LENGTH // len(stacked)), 1), 0)
    return repeated if line.row is not None else repeated.transpose(1, 0, 2)
