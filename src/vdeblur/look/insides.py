"""Show what happens inside a network while it restores a clip: pictures, arrays, and an index of them.

A network declares what it can show (layers.Network.shows) and hands it over while it runs (layers.show). Frames are
restored with as many frames around them as `run` would use, as whole frames and without tiles.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from vdeblur import files
from vdeblur.errors import DeviceError, InputError, InterruptedRunError, UsageError
from vdeblur.events import Notify, Stop, ignore, never
from vdeblur.look import maps
from vdeblur.look.moments import FrameChoice, Moment, chosen_moments, windows
from vdeblur.look.page import png_bytes
from vdeblur.models.model import Model
from vdeblur.networks.layers import Inside, Network, Recorder, Shown, recording
from vdeblur.restore import color, memory, streams
from vdeblur.restore.plan import plan_tiles
from vdeblur.restore.scenes import SceneDetector
from vdeblur.settings import Cut, Settings
from vdeblur.source import demux, video

DIFFERENCE = "difference"  # shown of every network
INDEX = "index.json"
MARGIN = Fraction(1, 2)  # seconds read before the frames that the network needs: times of variable rates differ


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

    Raises: UsageError for names that are unknown, or of which the network showed nothing, InputError if the source
    cannot be read or has none of the frames, OutputError if the folder is not empty (unless overwrite) or cannot be
    written, DeviceError if memory does not suffice.
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
        _refuse_missing(names or (), {item["show"] for item in files_written}, model.name)
    except OSError as error:
        raise files.write_error(folder, error) from error
    return index


def _refuse_missing(names: Sequence[str], shown: set[str], model: str) -> None:
    """Refuse names of which nothing was shown, as the user's own network may declare more than it hands over.

    Raises: UsageError.
    """
    if missing := [name for name in names if name not in shown]:
        others = ", ".join(sorted(shown - {"frame", "restored"})) or "nothing else"
        raise UsageError(f"{model} showed no {', '.join(missing)} of these frames", f"it showed {others}")


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
        for group, shown_numbers in windows(chosen_moments(source, choice, after), before, after):
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
