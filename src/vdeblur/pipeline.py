"""A blurry video in, a sharp one out: the stages joined. Read this file first.

    decode -> RGB on the device -> split at scene cuts -> tiles -> network stream -> blend
           -> difference onto the original planes -> encode

Every arrow is an iterator of frames. Decoding and encoding run in threads of their own behind bounded queues, so the
device waits for neither of them and memory does not grow with the video's length.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import torch

from vdeblur import choice, decode, device, encode, tiles, weights
from vdeblur.download import Talk
from vdeblur.errors import DeviceError, ExitStatus, UsageError
from vdeblur.frame import Frame
from vdeblur.networks.layers import Network
from vdeblur.plan import plan_tiles
from vdeblur.restore import Restorer, never
from vdeblur.settings import Settings

QUEUE_FRAMES = 6  # between the stages' threads
BEST = "best"  # the model that is chosen for the machine

Notify = Callable[[str, dict[str, object]], None]


@dataclass(frozen=True)
class Result:
    """What came of one file."""

    output: Path
    frames: int
    seconds: float
    warnings: tuple[str, ...]


def ignore(event: str, facts: dict[str, object]) -> None:
    """Take an event and do nothing with it."""


def run(
    source_path: Path,
    output: Path,
    settings: Settings,
    *,
    notify: Notify = ignore,
    ask: Callable[[str], bool] | None = None,
    stop: Callable[[], ExitStatus | None] = never,
) -> Result:
    """Restore one video file or folder of pictures.

    notify: takes the events probe, plan, progress, warning and file_done, and download, download_progress and
    download_done where weights are fetched, each with its facts. ask: puts to a person whether to fetch weights
    whose authors published no digest; None where there is nobody to ask. stop: asked before every frame; a status
    means that a signal came, and the run ends with InterruptedRunError.

    Raises: VdeblurError, one kind for each fault; the output's name then holds what it held before.
    """
    begun = time.monotonic()
    warnings: list[str] = []

    def warn(code: str, message: str) -> None:
        warnings.append(code)
        notify("warning", {"code": code, "message": message})

    if settings.model != BEST:
        weights.find_entry(settings.model)  # a misspelt name is told before a file is opened
    elif settings.checkpoint is not None:
        raise UsageError("--weights needs the model it is for", f"-m {BEST} takes a model's own weights")
    source = decode.open_source(source_path, settings.cut, warn)
    try:
        info = source.info
        encode.check_output(output, source_path, settings.encoding.overwrite)
        notify(
            "probe",
            {
                "input": str(source_path),
                "width": info.width,
                "height": info.height,
                "frames_estimate": info.frames_estimate,
                "duration": None if info.duration_seconds is None else float(info.duration_seconds),
                "vfr": info.variable_rate,
                "streams": info.streams,
                "color": info.color,
            },
        )
        talk = Talk(settings.offline, settings.yes, notify, ask, stop)
        model, network, chosen, precision = _load_network(settings, info, talk, warn)
        plan = plan_tiles(settings, info.height, info.width, network, chosen)
        writer = open_writer(output, source, settings, warn)
        try:
            notify("plan", _plan_facts(source_path, model, chosen, precision, plan, writer, info))
            restorer = Restorer(network, plan, chosen, settings, stop, warn)
            frames = _pump(source, writer, restorer, lambda done: _progress(notify, source_path, info, begun, done))
        except BaseException:
            writer.abort()
            raise
    except torch.OutOfMemoryError as error:
        raise DeviceError("the device is out of memory", "use --tile 512, or --device cpu") from error
    finally:
        source.close()
    seconds = time.monotonic() - begun
    notify(
        "file_done",
        {
            "input": str(source_path),
            "output": str(output),
            "frames": frames,
            "seconds": round(seconds, 3),
            "fps": round(frames / seconds, 3),
            "warnings": warnings,
        },
    )
    return Result(output, frames, seconds, tuple(warnings))


def _load_network(
    settings: Settings, info: decode.SourceInfo, talk: Talk, warn: decode.Warn
) -> tuple[str, Network, torch.device, str]:
    """Choose a device and, where that is asked for, a model, fetch its weights, and place it.

    Gives the model's name, the network, where it computes and in which precision.
    """
    faults: list[str] = []
    chosen = device.choose_device(settings.device, faults.append)
    model = settings.model
    if model == BEST:
        best = choice.strongest(chosen, settings.precision, info.height, info.width, info.frames_estimate, talk)
        model = best.model
        talk.notify("choice", {"model": model, "reason": best.reason})
    network = weights.load_model(model, settings.checkpoint, talk)
    size = (info.height, info.width, info.frames_estimate)
    placed = choice.settle(network, weights.find_entry(model), chosen, settings, faults, size)
    if placed.fallback:
        warn("W_DEVICE", placed.fallback)
    if placed.precision != "fp32" and placed.precision not in network.half_precision:
        warn("W_PRECISION", f"{model} loses quality in {placed.precision}; it is meant for fp32")
    return model, placed.network, placed.device, placed.precision


def _plan_facts(
    source_path: Path,
    model: str,
    chosen: torch.device,
    precision: str,
    plan: tiles.TilePlan,
    writer: encode.Writer,
    info: decode.SourceInfo,
) -> dict[str, object]:
    return {
        "input": str(source_path),
        "model": model,
        "device": str(chosen),
        "precision": precision,
        "tile": f"{plan.tile[1]}x{plan.tile[0]}" if plan.count > 1 else "none",
        "segments": 1,
        "keep": writer.kept,
        "drop": writer.dropped,
        "frames_estimate": info.frames_estimate,
    }


def _pump(
    source: "decode.VideoSource | decode.PictureSource",
    writer: encode.Writer,
    restorer: Restorer,
    progress: Callable[[int], None],
) -> int:
    """Move everything from the source through the restorer to the writer; gives the number of frames."""
    thread = encode.WriterThread(writer, QUEUE_FRAMES)
    items = decode.threaded(source.items(), QUEUE_FRAMES)

    def frames() -> Iterator[Frame]:
        for item in items:
            if isinstance(item, av.Packet):
                thread.put(item)  # overtakes the frames that the network holds back; the container sorts them by time
            else:
                yield item

    count = 0
    try:
        for frame in restorer.restore(frames()):
            thread.put(frame)
            count += 1
            progress(count)
        restorer.check_stop()
        thread.finish()
    except BaseException:
        items.close()
        thread.abort()
        raise
    return count


def open_writer(
    output: Path, source: "decode.VideoSource | decode.PictureSource", settings: Settings, warn: decode.Warn
) -> encode.Writer:
    """Open what the output's name asks for: pictures where it is a folder or has no suffix, else a video."""
    if settings.pictures or output.is_dir() or not output.suffix:
        return encode.PictureWriter(output, source, settings.encoding, warn)
    return encode.VideoWriter(output, source, settings.cut, settings.encoding, warn)


def _progress(notify: Notify, path: Path, info: decode.SourceInfo, begun: float, done: int) -> None:
    rate = done / max(time.monotonic() - begun, 1e-6)
    left = None if info.frames_estimate is None else max(info.frames_estimate - done, 0) / rate
    facts = {"input": str(path), "frame": done, "frames_estimate": info.frames_estimate}
    notify("progress", {**facts, "fps": round(rate, 3), "eta_seconds": None if left is None else round(left, 1)})
