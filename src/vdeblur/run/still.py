"""`vdeblur still`: the sharpest picture of one moment, from the frame of that moment and its neighbours.

    frames around the moment -> restored, as `run` restores them -> aligned and combined -> one picture

What the neighbours change is added to the planes of the restored frame (restore/color.py), so depth, colours and tags
are those of the pictures that `run` writes.
"""

import gc
from collections import deque
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path

import torch
from torch import Tensor

from vdeblur import files
from vdeblur.errors import DeviceError, OutputError, UsageError
from vdeblur.events import Ask, Notify, Stop, ignore, never
from vdeblur.frame import Copier, Frame
from vdeblur.output.pictures import PictureEncoding
from vdeblur.restore import color, combine, processor, scenes, streams
from vdeblur.restore.plan import plan_tiles
from vdeblur.restore.restorer import Restorer
from vdeblur.run import auto
from vdeblur.run.context import Context
from vdeblur.run.loading import Loaded, check_model, prepare_network, settled
from vdeblur.settings import Settings
from vdeblur.source import demux
from vdeblur.source.deinterlace import deinterlaced
from vdeblur.source.urls import check_no_url, check_output_is_no_url
from vdeblur.source.video import Source, open_source

NEIGHBOURS = 3  # before and after the frame; see restore/combine.py
STILL_SUFFIXES = (".png", ".tif", ".tiff")  # lossless, and 16 bits deep
MARGIN = Fraction(1, 2)  # seconds read before the frames that are needed: times of variable rates differ
USUAL_FRAMES = 30  # that a still needs, for estimates of time


@dataclass(frozen=True)
class Still:
    """A picture that was written.

    at: when its frame is shown, in seconds from the video's start. neighbours: how many frames were combined with it.
    share: of the picture that comes from them, 0 to 1. warnings: their codes.
    """

    output: Path
    at: Fraction
    model: str
    neighbours: int
    share: float
    warnings: tuple[str, ...]


def write_still(
    source_path: Path,
    output: Path,
    at: Fraction,
    settings: Settings,
    *,
    neighbours: int = NEIGHBOURS,
    notify: Notify = ignore,
    ask: Ask | None = None,
    stop: Stop = never,
) -> Still:
    """Write the sharpest picture of the moment `at`, in seconds from the video's start.

    output: *.png, *.tif or *.tiff; it appears complete or not at all. settings: those of a run that concern the model,
    the device and overwriting. neighbours: frames on each side to combine; 0: the frame as `run` restores it.

    Raises: UsageError for a pipe, another kind of picture, or a moment beyond the end; what restore_file raises.
    """
    if demux.PIPE in (source_path, output):
        raise UsageError("still takes no pipes", "name a file")
    check_no_url(str(source_path))
    check_output_is_no_url(str(output))
    if output.suffix.lower() not in STILL_SUFFIXES:
        raise UsageError(f"{output} is neither PNG nor TIFF", f"name a picture, as {output.stem or 'still'}.png")
    settings = replace(settings, resume=False)
    check_model(settings)
    context = Context(source_path, output, settings, notify, ask, stop)
    with processor.with_threads(settings.threads):
        return _write(context, at, neighbours)


def _write(context: Context, at: Fraction, neighbours: int) -> Still:
    output, overwrite = context.output, context.settings.encoding.overwrite
    files.check_output(output, context.source_path, overwrite)
    if output.is_dir():
        raise OutputError(f"{output} is a folder", "name a file, as still.png")
    source = open_source(context.source_path, context.settings.cut, context.warn)
    try:
        encoding = PictureEncoding(source.info, context.warn, output.suffix)
        if source.info.duration_seconds is None or at >= source.info.duration_seconds:
            _frames_at(source, at, 0, 0, context)  # a moment beyond the end is wrong before any download
        info = replace(source.info, frames_estimate=USUAL_FRAMES)
        if context.settings.model == auto.AUTO:
            context.settings = auto.settled_settings(context, info)
        loaded = prepare_network(context, info)
        context.settings = settled(context.settings, loaded)
        before, after = streams.frames_around(loaded.network)
        frames, place = _frames_at(source, at, neighbours + before, neighbours + after, context)
        restored = _restored(context, source, loaded, frames)
        if restored[place].is_guarded:
            context.warn_of_guarded([restored[place].seconds - source.start_seconds])
        frame, used, share = _combined(restored, place, neighbours, loaded.device)
        data = encoding.encode(frame)
    except torch.OutOfMemoryError as error:
        raise DeviceError("the device is out of memory", "use --tile 512, or --device cpu") from error
    finally:
        source.close()
        gc.collect()  # PyAV's containers and streams refer to each other
    with files.drafted_output(output, overwrite) as draft, files.fresh_file(draft) as file:
        file.write(data)
    codes = tuple(code for code, _ in context.warnings)
    still = Still(output, frame.seconds - source.start_seconds, loaded.model, used, share, codes)
    facts: dict[str, object] = {"input": str(context.source_path), "output": str(output), "at": float(still.at)}
    facts |= {"model": still.model, "neighbours": used, "share": round(share, 4)}
    context.notify("still", {**facts, "seconds": round(context.seconds(), 3), "warnings": list(codes)})
    return still


def _frames_at(source: Source, at: Fraction, before: int, after: int, context: Context) -> tuple[list[Frame], int]:
    """Read the frame that is visible at a moment with the frames around it; return them and its place among them.

    Raises: UsageError if the moment lies beyond the last frame.
    """
    moment = source.start_seconds + at
    seek = moment - (before + 1) / source.info.rate - MARGIN
    is_near = source.info.duration_seconds is not None and at < source.info.duration_seconds
    frames = source.frames(seek if source.seekable and is_near and seek > source.first_seconds else None)
    progressive = deinterlaced(frames, context.settings.encoding.deinterlace)
    held: deque[Frame] = deque(maxlen=before + 1)
    for frame in progressive:
        context.talk.check_stop()
        if held and frame.seconds > moment:
            following = [frame, *islice(progressive, after - 1)] if after else []
            return [*held, *following], len(held) - 1
        held.append(frame)
    last = held[-1]
    end = last.seconds + (last.duration * last.time_base or 1 / source.info.rate)
    if moment >= end:
        length = float(end - source.start_seconds)
        message = f"{source.path} has no frame at {float(at):g} s: it is {length:.3f} s long"
        raise UsageError(message, "choose an earlier --at")
    return [*held], len(held) - 1


def _restored(context: Context, source: Source, loaded: Loaded, frames: list[Frame]) -> list[Frame]:
    """Restore frames as `run` does, scene by scene."""
    info, settings = replace(source.info, frames_estimate=len(frames)), context.settings
    tiles = plan_tiles(settings, info.height, info.width, loaded.network, loaded.device)
    restorer = Restorer(loaded.network, tiles, loaded.device, settings, context.stop, context.warn)
    restored: list[Frame] = []
    for frame in restorer.restore(iter(frames)):
        restored.append(frame)
        context.notify_progress(info, len(restored), len(restored))
    return restored


def _combined(restored: list[Frame], place: int, neighbours: int, device: torch.device) -> tuple[Frame, int, float]:
    """Combine a restored frame with its neighbours of the same scene; return it, their number, and their share.

    Neighbours in which the network failed are left out.
    """
    around = range(max(place - neighbours, 0), min(place + neighbours + 1, len(restored)))
    device = device if device.type == "cuda" else torch.device("cpu")  # others lack bicubic sampling
    frame = restored[place]
    same = (other for other in _same_scene(restored, around, place) if other != place)
    others = [other for other in same if not restored[other].is_guarded]
    space = color.ColorSpace.of(frame.picture, frame.chroma_location)
    planes = color.planes_of(frame, space, device)
    own = color.to_rgb(planes, space)
    sharper, share = combine.combined_with(own, (_rgb(restored[other], device) for other in others))
    changed = color.add_difference(planes, sharper - own, space)
    picture = color.with_planes(Copier().copy(frame.picture), changed, space)
    return replace(frame, picture=picture), len(others), share


def _same_scene(frames: list[Frame], numbers: range, place: int) -> range:
    """Return those of the numbered frames that no cut divides from the one at this place."""
    detector = scenes.SceneDetector()
    cuts = [number for number in numbers if detector.is_cut(_rgb(frames[number], torch.device("cpu")))]
    bounds = [numbers.start, *cuts, numbers.stop]
    return next(range(begin, end) for begin, end in pairwise(bounds) if begin <= place < end)


def _rgb(frame: Frame, device: torch.device) -> Tensor:
    space = color.ColorSpace.of(frame.picture, frame.chroma_location)
    return color.to_rgb(color.planes_of(frame, space, device), space)
