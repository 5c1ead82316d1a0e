"""The frames of a clip that `inspect` shows, in groups with the frames around them that the network needs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, pairwise

from vdeblur.errors import InputError
from vdeblur.frame import Frame
from vdeblur.settings import Cut
from vdeblur.source import video

HOP = 8  # frames that are shown from one pass over a window of frames


@dataclass(frozen=True)
class FrameChoice:
    """The frames to show, by their times in seconds from the video's start.

    times: of single frames, each the one that is visible then. cut: the part to show instead; every: each n-th of its
    frames. Without both, the frame in the middle.
    """

    times: tuple[Fraction, ...] = ()
    cut: Cut | None = None
    every: int = 1

    def placed(self, duration: Fraction | None) -> "FrameChoice":
        """Return the choice for a video of this duration; None: unknown."""
        if self.times or self.cut is not None:
            return self
        return replace(self, times=((duration or Fraction(0)) / 2,))

    def begin(self) -> Fraction:
        """Return the first time that is shown."""
        return min(self.times) if self.times else (self.cut and self.cut.start) or Fraction(0)


@dataclass(frozen=True)
class Moment:
    """A frame of the video. seconds: from its start. is_wanted: whether it is shown."""

    seconds: Fraction
    frame: Frame
    is_wanted: bool


def chosen_moments(source: video.Source, choice: FrameChoice, after: int) -> Iterator[Moment]:
    """Yield the frames, up to `after` beyond the last one to show.

    Raises: InputError if a time is beyond the last frame.
    """
    origin = source.start_seconds
    missing, count, beyond, end = sorted(choice.times), 0, 0, Fraction(0)
    cut = choice.cut or Cut()
    for frame, following in pairwise(chain(source.frames(), (None,))):
        assert frame is not None
        seconds = frame.seconds - origin
        end = (
            following.seconds - origin
            if following
            else seconds + (frame.duration * frame.time_base or 1 / source.info.rate)
        )
        if choice.times:
            is_wanted = bool(missing) and missing[0] < end
            missing = [time for time in missing if time >= end]
            is_over = not missing
        else:
            is_inside = seconds >= (cut.start or 0) and (cut.stop is None or seconds < cut.stop)
            is_wanted = is_inside and count % choice.every == 0 and (cut.frames is None or count < cut.frames)
            count += is_inside
            is_over = (cut.stop is not None and end >= cut.stop) or (cut.frames is not None and count >= cut.frames)
        yield Moment(seconds, frame, is_wanted)
        beyond += is_over and not is_wanted
        if is_over and beyond >= after:
            return
    if missing:
        raise InputError(f"{source.path} has no frame at {float(missing[-1]):g} s: it ends at {float(end):.3f} s",
                         "choose an earlier --at")  # fmt: skip


def windows(moments: Iterable[Moment], before: int, after: int) -> Iterator[tuple[list[Moment], list[int]]]:
    """Yield groups of frames, with the numbers of those to show: each has `before` and `after` frames around it.

    No group is longer than before + HOP + after. Groups without a frame to show are left out.
    """
    held: list[Moment] = []
    first = 0  # number of the first frame in held that no group has shown
    for moment in moments:
        held.append(moment)
        if len(held) == first + HOP + after:
            yield from _wanted_of(held, range(first, first + HOP))
            drop = max(first + HOP - before, 0)
            del held[:drop]
            first += HOP - drop
    yield from _wanted_of(held, range(first, len(held)))


def _wanted_of(held: list[Moment], numbers: range) -> Iterator[tuple[list[Moment], list[int]]]:
    wanted = [number for number in numbers if held[number].is_wanted]
    if wanted:
        yield list(held), wanted
