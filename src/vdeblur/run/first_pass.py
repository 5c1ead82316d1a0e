"""The first pass of `--only-blurred`: decode a file once before it is restored, to learn how sharp its scenes become.

The result is kept in the run's plan, so a resumed run, and every share of a divided one, uses the same numbers. Shares
that start before the first of them has stored it make a pass, too; the one that is stored first counts.
"""

import time
from collections.abc import Iterator
from contextlib import closing

import torch

from vdeblur.errors import InputError, InterruptedRunError
from vdeblur.events import Stop, ignore
from vdeblur.frame import Frame
from vdeblur.restore.only_blurred import SceneStart, measuring_device, scene_starts
from vdeblur.run.context import Context
from vdeblur.run.reading import read_ahead
from vdeblur.source.video import Source, open_source


def find_scenes(context: Context, source: Source, device: torch.device, stop: Stop) -> list[SceneStart] | None:
    """Decode the part to restore, and measure its scenes; None for a pipe, which can be read only once.

    A damaged input is measured as far as it can be decoded; the run itself reports the damage.

    Raises: InterruptedRunError if a signal arrived.
    """
    if source.is_pipe:
        return None
    context.notify("first_pass", {"input": str(context.source_path), "frames_estimate": source.info.frames_estimate})
    # A source of its own, so that neither the place of the run's source nor its count of damaged packets changes.
    again = open_source(source.path, context.settings.cut, ignore)
    with closing(again), closing(read_ahead(context, again.frames(), again.info)) as frames:
        readable = _readable(frames, context, again, stop)
        scenes = scene_starts(readable, measuring_device(device), context.settings.scene_detect, context.area)
    context.restoring_since = time.monotonic()
    return scenes


def _readable(frames: Iterator[Frame], context: Context, source: Source, stop: Stop) -> Iterator[Frame]:
    """Yield frames up to damage; check for signals, and report the progress."""
    begun = time.monotonic()
    estimate = source.info.frames_estimate
    try:
        for count, frame in enumerate(context.profile.main.each(frames, "wait_decode"), 1):
            if (status := stop()) is not None:
                raise InterruptedRunError(status)
            yield frame
            rate = count / max(time.monotonic() - begun, 1e-6)
            left = None if estimate is None else round(max(estimate - count, 0) / rate, 1)
            facts = {"input": str(context.source_path), "frame": count, "frames_estimate": estimate}
            context.notify("first_pass_progress", {**facts, "fps": round(rate, 3), "eta_seconds": left})
    except InputError:
        return
