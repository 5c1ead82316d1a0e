"""Sharp pictures to make blurred clips from: photographs and frames of sharp videos, each at several sizes."""

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from vdeblur.datasets.held_out import is_held_out
from vdeblur.datasets.pictures import of_frame, read_rgb
from vdeblur.errors import InputError
from vdeblur.events import ignore
from vdeblur.settings import Cut
from vdeblur.source.pictures import PICTURE_SUFFIXES
from vdeblur.source.video import VideoSource

GAMMA = 2.2  # display gamma, assumed to decode pictures
STEP = 1.5  # from one size of a picture to the next smaller one
SIZES = 5  # of a picture at most; the smallest still holds a window
FRAMES_APART = 12  # frames of a video are so alike that one in twelve is enough
FRAMES = 12  # of a video at most
TRIES = 4  # windows of a picture to choose the most detailed of
DETAIL = 2.0  # least mean difference of neighbouring pixels, of 255; blurred backgrounds teach little
DULL = 0.1  # share of windows that may have less: skies and walls must be learnt, too
MOST_DRAWS = 20


class SharpPictures:
    """Photographs and video frames, uint8 RGB, as pyramids; windows of them are drawn at random.

    window: side of the windows in pixels. held_out: names of videos (without suffix) that validate, beside one
    photograph in ten, see datasets.held_out. validates: read those that validate, instead of all others.

    Raises: InputError where nothing can be read.
    """

    def __init__(self, folder: Path, window: int, *, held_out: Iterable[str] = (), validates: bool = False) -> None:
        self.window = window
        self.pyramids: list[list[Tensor]] = []
        names = set(held_out)
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
            is_picture = path.suffix.lower() in PICTURE_SUFFIXES
            if (is_held_out(path.name) if is_picture else path.stem in names) == validates:
                self.pyramids += [pyramid(picture, window) for picture in _read(path, is_picture)]
        if not self.pyramids:
            kind = "held-out " if validates else ""
            raise InputError(f"{folder} holds no {kind}photographs or videos", "name a folder of sharp footage")

    def draw(self, generator: Generator) -> Tensor:
        """Draw a window, uint8 (3, window, window), flipped and turned at random."""

        def below(limit: int) -> int:
            return int(torch.randint(limit, (), generator=generator))

        for _ in range(MOST_DRAWS):
            levels = self.pyramids[below(len(self.pyramids))]
            best, detail = self._detailed(levels[below(len(levels))], below)
            if detail > DETAIL or torch.rand((), generator=generator) < DULL:
                break
        if below(2):
            best = best.flip(2)
        if below(3) == 0:
            best = best.flip(1)
        return best.transpose(1, 2) if below(2) else best

    def _detailed(self, picture: Tensor, below: Callable[[int], int]) -> tuple[Tensor, float]:
        """Return the most detailed of some random windows, and its detail."""
        found: list[tuple[float, Tensor]] = []
        for _ in range(TRIES):
            top, left = (below(length - self.window + 1) for length in picture.shape[1:])
            window = picture[:, top : top + self.window, left : left + self.window]
            margin = self.window // 6
            middle = window[1, margin:-margin, margin:-margin].float()
            found.append((float((middle[1:, 1:] - middle[:-1, :-1]).abs().mean()), window))
        detail, best = max(found, key=lambda pair: pair[0])
        return best, detail


def pyramid(picture: Tensor, least: int) -> list[Tensor]:
    """Return a picture, uint8 (3, H, W), and smaller versions of it, averaged in linear light, down to `least` pixels.

    A picture that is too small itself is enlarged to that side.
    """
    shorter = min(picture.shape[1:])
    linear = (picture.float() / 255) ** GAMMA
    if shorter < least:
        return [_resized(linear, least / shorter)]
    count = min(int(math.log(shorter / least, STEP)) + 1, SIZES)
    return [picture, *(_resized(linear, STEP**-power) for power in range(1, count))]


def _resized(linear: Tensor, factor: float) -> Tensor:
    size = [math.ceil(length * factor - 1e-6) for length in linear.shape[1:]]
    resized = F.interpolate(linear[None], size, mode="bilinear", antialias=True)[0]
    return (resized.clamp(0, 1) ** (1 / GAMMA) * 255).round().to(torch.uint8)


def _read(path: Path, is_picture: bool) -> Iterator[Tensor]:
    """Yield a photograph, or some frames of a video; other files and unreadable ones yield nothing."""
    try:
        if is_picture:
            yield read_rgb(path)
            return
        video = VideoSource(path, Cut(stop=Fraction(60)), ignore)
    except InputError:
        return
    try:
        for frame in islice(video.frames(), FRAMES_APART // 2, FRAMES_APART * FRAMES, FRAMES_APART):
            yield of_frame(frame.picture)
    finally:
        video.close()
