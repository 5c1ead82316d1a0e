"""Compare two videos of the same scene, as a video, a page or numbers.

Frames are paired by their times, counted from each video's first frame; pictures of a folder by their order. Where one
is an excerpt, an offset says where it begins in the other; offset.py finds it. The result keeps the first video's pixel
format, depth and colour, so that showing loses nothing, and is upright.
"""

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from html import escape
from pathlib import Path
from typing import TypeVar

import numpy
import torch
from torch import Tensor

from vdeblur import events, files, settings
from vdeblur.errors import InputError, InterruptedRunError, OutputError, UsageError
from vdeblur.events import Notify, Stop, ignore, never
from vdeblur.files import drafted_output
from vdeblur.frame import Frame
from vdeblur.look import page
from vdeblur.look.compose import MODES, Composer, compose, composed_info, upright_size
from vdeblur.look.labels import labelled
from vdeblur.look.offset import begin_of, find_offset
from vdeblur.measure import metrics
from vdeblur.output.video_file import VideoFile, write_frames
from vdeblur.restore import color
from vdeblur.source import counting, demux, video
from vdeblur.source.pictures import PictureSource
from vdeblur.source.video import Source

LEAST_SLACK = Fraction(1, 400)  # seconds; clocks of 1 ms and guessed rates need some
PAGE_FRAMES = 12  # at most
PAGE_PIXELS = 15_000_000  # of each video; a photograph takes about 1.5 bytes per pixel as PNG
SMALLEST_SSIM = 11  # pixels: the window of SSIM

T = TypeVar("T")


@dataclass(frozen=True)
class Likeness:
    """The similarity of two frames. psnr: dB, of RGB, infinite if equal. ssim: 2D; None if they are too small."""

    seconds: float
    psnr: float
    ssim: float | None


def write_comparison(
    a: Path,
    b: Path,
    output: Path,
    mode: str,
    *,
    overwrite: bool,
    cut: settings.Cut | None = None,
    offset: Fraction | None = None,
    labels: tuple[str, str] | None = None,
    notify: Notify = ignore,
    stop: Stop = never,
) -> int:
    """Show two videos, or folders of pictures, in one; return its number of frames.

    mode: `side` (a left, b right), `split` (the left half of a, the right half of b), `wipe` (like split, with a
    divider that moves), `diff` (b minus a, four times, around grey), or `html` (a page with a slider over at most
    twelve frames). Videos keep a's times, colour tags and sound. cut: the part of a that b shows. offset: seconds from
    a's first frame to b's; None: find it, unless a cut is given. labels: drawn over a and b; None: none in a video, the
    names of the files on a page. notify: gets the events progress, offset and warning.

    Raises: InputError if they cannot be read or their sizes differ, OutputError if the output cannot be written or
    exists; it appears complete or not at all.
    """
    if (mode == "html") != (output.suffix.lower() in (".html", ".htm")):
        reason = "a page with a slider is named *.html" if mode == "html" else f"{output.suffix} is not a video format"
        raise OutputError(f"{output} cannot hold a comparison of mode {mode}: {reason}", "choose another -o or --mode")
    with opened(a, b, notify, cut, offset) as couple:
        for path in (a, b):
            files.check_output(output, path, overwrite)
        pairs = watched(couple, notify, stop)
        with drafted_output(output, overwrite) as draft:
            if mode == "html":
                return _write_page(draft, couple, pairs, labels or (a.name, b.name))
            return _write_video(draft, couple, pairs, MODES[mode], labels)


def measure_likeness(
    a: Path, b: Path, *, offset: Fraction | None = None, notify: Notify = ignore, stop: Stop = never
) -> Iterator[Likeness]:
    """Yield how similar each frame of a and its counterpart in b are. offset: as for write_comparison.

    Raises: as write_comparison.
    """
    with opened(a, b, notify, offset=offset) as couple:
        for left, right in watched(couple, notify, stop):
            rgb_a, rgb_b = (255 * picture[None] for picture in couple.rgb(left, right))
            fits = min(rgb_a.shape[-2:]) >= SMALLEST_SSIM
            ssim = float(metrics.ssim_2d(rgb_b, rgb_a)) if fits else None
            yield Likeness(float(left.seconds), float(metrics.psnr(rgb_b, rgb_a)), ssim)


@contextlib.contextmanager
def opened(
    a: Path, b: Path, notify: Notify, cut: settings.Cut | None = None, offset: Fraction | None = None
) -> Iterator["Couple"]:
    """Open two videos or folders of pictures, and close them at the end.

    cut: the part of a that b shows. offset: seconds from a's first frame to b's; None: find it, unless a cut is given.
    """

    def warn(code: str, message: str) -> None:
        notify("warning", {"code": code, "message": message})

    _check_no_pipe(a, b)
    if offset is None:
        offset = Fraction(0) if cut is not None else searched_offset(a, b, notify)
    with contextlib.ExitStack() as stack:
        sources = []
        parts = (cut or _cut_from(offset), _cut_from(-offset))
        for path, part in zip((a, b), parts, strict=True):
            sources.append(video.open_source(path, part, warn))
            stack.callback(sources[-1].close)
        yield Couple(sources[0], sources[1], warn, None if cut is not None else offset)


def _check_no_pipe(a: Path, b: Path) -> None:
    if demux.PIPE in (a, b):
        raise UsageError("compare cannot read a pipe", "save it to a file first")


def searched_offset(a: Path, b: Path, notify: Notify) -> Fraction:
    """Find where one of two videos begins in the other, and report it; see offset.find_offset.

    Raises: InputError if they cannot be read.
    """
    _check_no_pipe(a, b)
    with contextlib.ExitStack() as stack:
        sources = []
        for path in (a, b):
            sources.append(video.open_source(path, settings.Cut(), ignore))
            stack.callback(sources[-1].close)
        found = find_offset(sources[0], sources[1])
    if found.seconds:
        seconds = round(float(found.seconds), 3)
        notify("offset", {"a": str(a), "b": str(b), "seconds": seconds, "certain": found.is_certain})
    return found.seconds


def _cut_from(offset: Fraction) -> settings.Cut:
    """Return the part of a video to read if the other one begins there; a second more, since times are near it."""
    return settings.Cut(offset - 1) if offset > 1 else settings.Cut()


class Couple:
    """Two sources whose frames are paired.

    offset: seconds from a's first frame to b's, where they may begin before it; None: both begin with their first
    frames. frames: of the one with fewer; None if unknown.

    Raises: InputError if their sizes differ.
    """

    def __init__(self, a: Source, b: Source, warn: events.Warn, offset: Fraction | None = None) -> None:
        self.a, self.b, self.warn, self.offset = a, b, warn, offset or Fraction(0)
        for source in (a, b):
            counting.settle_frames(source)
        counts = [source.info.frames_estimate for source in (a, b)]
        self.frames = min((count for count in counts if count is not None), default=None)
        size_a, size_b = upright_size(a.info), upright_size(b.info)
        if size_a != size_b:
            found = f"{a.path} is {size_a[0]}x{size_a[1]}, {b.path} is {size_b[0]}x{size_b[1]}"
            raise InputError(f"compare needs two videos of the same size; {found}", "scale one of them first")

    def pairs(self) -> Iterator[tuple[Frame, Frame]]:
        """Yield the pairs of frames; at the end, warn of frames without a counterpart and of damage.

        Raises: InputError if there is no pair.
        """
        left, right = (_Counted(source.frames()) for source in (self.a, self.b))
        pictures = isinstance(self.a, PictureSource) or isinstance(self.b, PictureSource)
        slack = max(1 / (2 * self.a.info.rate), LEAST_SLACK)
        count = 0
        begins = self._begins()
        for pair in self._in_order(left, right) if pictures else matched(left, right, slack, *begins):
            count += 1
            yield pair
            if count == 1:
                before = (left.count - 1, right.count - 1)
        read = (left.count, right.count)
        for rest in (left, right):
            for _ in rest if not self.offset else ():
                pass
        if self.offset and count:  # what lies outside the excerpt has no counterpart, of course
            alone_a, alone_b = (max(read[side] - before[side] - count - 1, 0) for side in (0, 1))
        else:
            alone_a, alone_b = left.count - count, right.count - count
        alone = f"{alone_a} frames of {self.a.path} and {alone_b} of {self.b.path}"
        if not count:
            raise InputError(
                f"no frame of {self.a.path} has a counterpart in {self.b.path} at its time",
                "compare videos of the same scene",
            )
        for source in (self.a, self.b):
            damaged = source.damaged if isinstance(source, video.VideoSource) else 0
            if damaged:
                self.warn("W_INPUT_DAMAGED", f"{source.path} is damaged in {damaged} places")
        if max(alone_a, alone_b):
            self.warn("W_UNMATCHED", f"{alone} have no counterpart at their time and were left out")

    def _begins(self) -> tuple[Fraction | None, Fraction | None]:
        """Return the times in a and b that belong together; None: of the first frame."""
        if not self.offset:
            return None, None
        return begin_of(self.a) + max(self.offset, Fraction(0)), begin_of(self.b) + max(-self.offset, Fraction(0))

    def _in_order(self, left: Iterator[Frame], right: Iterator[Frame]) -> Iterator[tuple[Frame, Frame]]:
        """Pair frames by their order, from those that belong together on."""
        begin_a, begin_b = self._begins()
        return zip(_from(left, begin_a), _from(right, begin_b), strict=False)

    def rgb(self, left: Frame, right: Frame) -> tuple[Tensor, Tensor]:
        """Return two frames as upright RGB: float32 (3, H, W) in [0, 1], each by its own matrix and range."""
        pictures = []
        for frame, source in ((left, self.a), (right, self.b)):
            space = color.ColorSpace.of(frame.picture, frame.chroma_location)
            rgb = color.to_rgb(color.planes_of(frame, space, torch.device("cpu")), space)
            pictures.append(torch.rot90(rgb, source.info.rotation // 90, (1, 2)))
        return pictures[0], pictures[1]


class _Counted(Iterator[T]):
    def __init__(self, items: Iterable[T]) -> None:
        self.items, self.count = iter(items), 0

    def __next__(self) -> T:
        item = next(self.items)
        self.count += 1
        return item


def _from(frames: Iterator[Frame], begin: Fraction | None) -> Iterator[Frame]:
    """Yield the frames from a time on."""
    return (frame for frame in frames if begin is None or frame.seconds >= begin - LEAST_SLACK)


def matched(
    left: Iterator[Frame],
    right: Iterator[Frame],
    slack: Fraction,
    begin_left: Fraction | None = None,
    begin_right: Fraction | None = None,
) -> Iterator[tuple[Frame, Frame]]:
    """Yield each frame with the nearest one of the other video, if that is at most `slack` seconds away.

    begin_left, begin_right: times from which both count; None: of the first frame. No frame is used twice.
    """
    first = next(right, None)
    if begin_right is None:
        begin_right = first.seconds if first else Fraction(0)
    waiting: deque[Frame] = deque([first] if first else [])
    for frame in left:
        begin_left = frame.seconds if begin_left is None else begin_left
        wanted = frame.seconds - begin_left + begin_right
        while True:  # until the next frame is farther away
            waiting.extend(itertools.islice(right, 2 - len(waiting)))
            if len(waiting) < 2 or abs(waiting[1].seconds - wanted) > abs(waiting[0].seconds - wanted):
                break
            waiting.popleft()
        if not waiting:
            return
        if abs(waiting[0].seconds - wanted) <= slack:
            yield frame, waiting.popleft()


def watched(couple: Couple, notify: Notify, stop: Stop) -> Iterator[tuple[Frame, Frame]]:
    """Yield the pairs and report progress.

    Raises: InterruptedRunError if a signal arrived.
    """
    begun, total = time.monotonic(), couple.frames
    for done, pair in enumerate(couple.pairs(), 1):
        status = stop()
        if status is not None:
            raise InterruptedRunError(status)
        yield pair
        rate = done / max(time.monotonic() - begun, 1e-6)
        left = None if total is None else round(max(total - done, 0) / rate, 1)
        facts = {"input": str(couple.a.path), "frame": done, "frames_estimate": total}
        notify("progress", {**facts, "fps": round(rate, 3), "eta_seconds": left})


def _write_video(
    draft: Path,
    couple: Couple,
    pairs: Iterator[tuple[Frame, Frame]],
    mode: "Composer",
    labels: tuple[str, str] | None,
) -> int:
    """Compose and encode the pairs; return their number."""
    info_a, info_b = couple.a.info, couple.b.info
    mode = mode if labels is None else labelled(mode, labels)

    def composed() -> Iterator[Frame]:
        begin: Fraction | None = None
        for left, right in pairs:
            begin = left.seconds if begin is None else begin
            yield compose(left, right, mode, info_a.rotation, info_b.rotation, float(left.seconds - begin))

    def open_file(first: Frame) -> VideoFile:
        return VideoFile(draft, composed_info(info_a, first), couple.warn, beside=couple.a)

    return write_frames(composed(), open_file)


def _write_page(draft: Path, couple: Couple, pairs: Iterator[tuple[Frame, Frame]], labels: tuple[str, str]) -> int:
    """Write a page with a slider for each of a few frames; return their number."""
    info = couple.a.info
    chosen = evenly(pairs, min(max(PAGE_PIXELS // (info.width * info.height), 3), PAGE_FRAMES))
    names = (couple.a.path.name, couple.b.path.name)
    parts = [f"<h1>{escape(names[0])} | {escape(names[1])}</h1>"]
    for left, right in chosen:
        uris = [page.picture_uri(_rgb24(rgb)) for rgb in couple.rgb(left, right)]
        parts.append(page.slider_html(uris[0], uris[1], None, f"at {float(left.seconds):.3f} s", (*labels, "")))
    draft.write_text(page.page_html(" | ".join(names), "\n".join(parts)), "utf-8")
    return len(chosen)


def _rgb24(rgb: Tensor) -> numpy.ndarray:
    array: numpy.ndarray = (rgb * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return array


def evenly(items: Iterator[T], most: int) -> list[T]:
    """Return at most `most` items of a stream of unknown length: the first one, and others at even distances."""
    kept: list[T] = []
    step = 1
    for index, item in enumerate(items):
        if index % step == 0:
            if len(kept) == most:
                kept, step = kept[::2], step * 2
                if index % step:
                    continue
            kept.append(item)
    return kept
