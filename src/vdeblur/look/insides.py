"""Show what happens inside a network while it restores a clip: pictures, arrays, and an index of them.

A network declares what it can show (layers.Network.shows) and hands it over while it runs (layers.show). Frames are
restored with as many frames around them as `run` would use, as whole frames and without tiles.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from io import BytesIO
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from vdeblur import files
from vdeblur.errors import DeviceError, InputError, InterruptedRunError, UsageError
from vdeblur.events import Notify, Stop, ignore, never
from vdeblur.frame import Frame
from vdeblur.look import maps
from vdeblur.look.page import png_bytes
from vdeblur.models.model import Model
from vdeblur.networks.layers import Inside, Network, Recorder, Shown, recording
from vdeblur.restore import color, memory, streams
from vdeblur.restore.plan import plan_tiles
from vdeblur.restore.scenes import SceneDetector
from vdeblur.settings import Cut, Settings
from vdeblur.source import demux, video

DIFFERENCE = "difference"  # shown of every network
HOP = 8  # frames that are shown from one pass over a window of frames
INDEX = "index.json"
MARGIN = Fraction(1, 2)  # seconds read before the frames that the network needs: times of variable rates differ


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


def names_to_show(network: Network, names: Sequence[str] | None, model: str) -> frozenset[str]:
    """Return the names to show; None: all that the network shows.

    Raises: UsageError for a name that it does not show.
    """
    known = (*network.shows, DIFFERENCE)
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise UsageError(f"{model} does not show {', '.join(unknown)}", f"it shows {', '.join(known)}")
    return frozenset(names or known)


def write_insides(
    source_path: Path,
    folder: Path,
    model: Model,
    choice: FrameChoice,
    names: Sequence[str] | None = None,
    *,
    overwrite: bool = False,
    notify: Notify = ignore,
    stop: Stop = never,
) -> dict[str, Any]:
    """Write what a model shows of some frames into a folder; return the index, which is also written, as the last file.

    Raises: UsageError for unknown names, InputError if the source cannot be read or has none of the frames, OutputError
    if the folder is not empty (unless overwrite) or cannot be written, DeviceError if memory does not suffice.
    """
    wanted_names = names_to_show(model.network, names, model.name)
    if source_path == demux.PIPE:
        raise UsageError("inspect cannot read a pipe", "save it to a file first")
    files.check_output(folder, source_path, overwrite, makes_folder=True)
    files_written: list[dict[str, Any]] = []
    frames: list[dict[str, Any]] = []
    try:
        for seconds, before, after, shown in _insides_of_clip(source_path, model, choice, wanted_names, notify):
            if (status := stop()) is not None:
                raise InterruptedRunError(status)
            place = f"{float(seconds):09.3f}s"
            frames.append({"seconds": round(float(seconds), 6), "folder": place})
            files_written += _write_frame(folder / place, model.network, before, after, shown, wanted_names)
            done = len(frames)
            notify("progress", {"input": str(source_path), "frame": done, "frames_estimate": None, "fps": 0.0,
                                "eta_seconds": None})  # fmt: skip
        index = {
            "v": 1,
            "input": str(source_path),
            "model": model.name,
            "precision": model.precision,
            "frames": frames,
            "shows": _declared(model.network, wanted_names),
            "items": files_written,
        }
        files.write_whole(folder / INDEX, json.dumps(index, indent=1).encode())
    except OSError as error:
        raise files.write_error(folder, error) from error
    return index


def _declared(network: Network, names: frozenset[str]) -> dict[str, dict[str, Any]]:
    kinds = {**network.shows, DIFFERENCE: DIFFERENCE_INSIDE}
    return {name: {"text": kinds[name].text, "kind": kinds[name].kind} for name in kinds if name in names}


DIFFERENCE_INSIDE = Inside("the restored frame minus the blurry one", "picture")


def _insides_of_clip(
    path: Path, model: Model, choice: FrameChoice, names: frozenset[str], notify: Notify
) -> Iterator[tuple[Fraction, Tensor, Tensor, list[Shown]]]:
    """Yield of each frame to show its time, the frame, the restored one, both (3, H, W), and what the network shows."""

    def warn(code: str, message: str) -> None:
        notify("warning", {"code": code, "message": message})

    network = model.network
    before, after = streams.frames_around(network)
    with_all = video.open_source(path, Cut(), warn)
    length = with_all.info.duration_seconds
    choice = choice.placed(length)
    lead = before / with_all.info.rate + MARGIN
    with_all.close()
    begin = choice.begin() if length is None or not choice.times else min(choice.begin(), length)
    start = max(begin - lead, Fraction(0))
    source = video.open_source(path, Cut(start=start or None), warn)
    try:
        is_empty = True
        rotation = source.info.rotation
        for group, shown_numbers in windows(_moments(source, choice, after), before, after):
            for scene, numbers in _scenes(group, shown_numbers, rotation):
                moments, pictures = [group[number] for number in scene], _pictures([group[n] for n in scene], rotation)
                restored, shown = insides_of(network, model.device, pictures, numbers, names)
                for number in numbers:
                    is_empty = False
                    of_frame = [item for item in shown if item.frame == number]
                    yield moments[number].seconds, pictures[number], restored[number], of_frame
        if is_empty:
            raise InputError(f"{path} has no frame in the part asked for", "check --at, -ss, -t and --to")
    finally:
        source.close()


def _moments(source: video.Source, choice: FrameChoice, after: int) -> Iterator[Moment]:
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


def _pictures(moments: Sequence[Moment], rotation: int) -> list[Tensor]:
    """Return frames as upright RGB, (3, H, W) float32 in [0, 1]."""
    pictures = []
    for moment in moments:
        space = color.ColorSpace.of(moment.frame.picture, moment.frame.chroma_location)
        rgb = color.to_rgb(color.planes_of(moment.frame, space, torch.device("cpu")), space)
        pictures.append(torch.rot90(rgb, rotation // 90, (1, 2)).contiguous())
    return pictures


def _scenes(group: list[Moment], wanted: list[int], rotation: int) -> Iterator[tuple[range, list[int]]]:
    """Divide a group at its cuts; yield the numbers of each scene's frames, and of its wanted ones within the scene."""
    detector = SceneDetector()
    begins = [0] + [i for i, picture in enumerate(_pictures(group, rotation)) if detector.is_cut(picture)]
    for begin, end in pairwise([*begins, len(group)]):
        numbers = [number - begin for number in wanted if begin <= number < end]
        if numbers:
            yield range(begin, end), numbers


@torch.inference_mode()
def insides_of(
    network: Network, device: torch.device, pictures: Sequence[Tensor], numbers: Sequence[int], names: frozenset[str]
) -> tuple[list[Tensor], list[Shown]]:
    """Restore a scene as whole frames; return its frames on the CPU, and what the network shows of some of them.

    pictures: (3, H, W) float32 in [0, 1]. numbers: of the frames to show. Padding is removed from all values.

    Raises: DeviceError if memory does not suffice.
    """
    height, width = pictures[0].shape[1:]
    plan = replace(plan_tiles(Settings(tile="none"), height, width, network, device), window=len(pictures) + 1)
    recorder = Recorder(network, names, frozenset(numbers))
    try:
        with recording(recorder):
            padded = (plan.pad(picture[None].to(device)) for picture in pictures)
            restored = [plan.crop(result)[0].float().cpu() for result in streams.stream(network, padded, plan)]
    except (RuntimeError, MemoryError) as error:
        if not memory.is_lacking(error):
            raise
        raise DeviceError(
            f"{device} is out of memory for whole frames of {width}x{height}", "crop or scale the clip, or use -d cpu"
        ) from error
    shown = [replace(item, values=_without_padding(item.values, plan.size, plan.padded)) for item in recorder.shown]
    return restored, shown


def _without_padding(values: Tensor, size: tuple[int, int], padded: tuple[int, int]) -> Tensor:
    """Cut a map (C, h, w) at some fraction of the padded size to the same fraction of the frame's size, rounded up."""
    if values.shape[1:] == (1, 1):
        return values
    rows, columns = (-(-side * found // full) for side, found, full in zip(size, values.shape[1:], padded, strict=True))
    return values[:, :rows, :columns]


def _write_frame(
    folder: Path, network: Network, before: Tensor, after: Tensor, shown: Sequence[Shown], names: frozenset[str]
) -> Iterator[dict[str, Any]]:
    """Write the pictures and arrays of one frame; yield their lines in the index."""
    inner = {"frame": Inside("the blurry frame", "picture"), "restored": Inside("the restored frame", "picture")}
    values = [Shown("frame", "", 0, before), Shown("restored", "", 0, after), *shown]
    if DIFFERENCE in names:
        values.append(Shown(DIFFERENCE, "", 0, after - before))
    for item in values:
        inside = {**network.shows, **inner, DIFFERENCE: DIFFERENCE_INSIDE}[item.name]
        array = item.values.contiguous().numpy()
        stem = _title(item.name, item.part).replace(".", "_").replace(" ", "_")
        contents = BytesIO()
        numpy.save(contents, array, allow_pickle=False)
        files.write_whole(folder / f"{stem}.npy", contents.getvalue())
        files.write_whole(folder / f"{stem}.png", png_bytes(drawn(item.name, item.part, inside, array)))
        yield {
            "folder": folder.name,
            "show": item.name,
            "part": item.part,
            "unit": inside.unit,
            "array": f"{folder.name}/{stem}.npy",
            "picture": f"{folder.name}/{stem}.png",
            "shape": list(array.shape),
            "least": float(array.min()),
            "greatest": float(array.max()),
            **({"channels": list(inside.channels)} if inside.channels else {}),
        }


def _title(name: str, part: str) -> str:
    """Return name and part, once where the part begins with the name, as flow2."""
    return part if part.startswith(name) else f"{name} {part}".strip()


def drawn(name: str, part: str, inside: Inside, array: numpy.ndarray) -> numpy.ndarray:
    """Return a picture, uint8 (H, W, 3), of values (C, h, w) from inside a network."""
    title = _title(name, part).replace("_", " ")
    if name == DIFFERENCE:
        return maps.difference_picture(array, title)
    if inside.kind == "flow":
        return maps.flow_picture(array, title)
    if inside.kind == "picture":
        return maps.rgb_picture(array, title)
    if inside.kind == "map":
        return maps.map_picture(array[0], title, inside.unit)
    return maps.channels_picture(array, title, inside.channels, inside.unit, common=name == "volume")
