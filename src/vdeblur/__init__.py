"""vdeblur: remove motion blur from video.

    result = vdeblur.deblur("in.mp4", "out.mp4", model="lite", crf=18)   # a file
    model = vdeblur.load_model("lite"); sharp = model(clip)              # tensors and arrays
    with vdeblur.open("in.mp4") as video: ...                            # frames with their times

This file is the whole public API; docs/python.md explains it. PyTorch, PyAV and NumPy load at the first use.
"""

import difflib
import importlib
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from vdeblur.errors import (
    BatchError,
    DamageError,
    DeviceError,
    ExitStatus,
    InputError,
    InterruptedRunError,
    ModelError,
    OutputError,
    UsageError,
    VdeblurError,
    VerificationError,
)
from vdeblur.events import Ask, Notify, Stop, ignore, never
from vdeblur.settings import Cut, EncodeOptions, Settings
from vdeblur.version import __version__

if TYPE_CHECKING:
    from vdeblur.look.probe import probe
    from vdeblur.models.listing import ListedModel, list_models
    from vdeblur.models.model import Model
    from vdeblur.restore.opened import OpenedVideo, TimedFrame, open_video
    from vdeblur.run.context import RunResult

    load_model = Model.load
    open = open_video

# Names that load PyTorch or PyAV at their first use. Public name: module[:attribute].
_LAZY = {
    "ListedModel": "models.listing",
    "Model": "models.model",
    "OpenedVideo": "restore.opened",
    "RunResult": "run.context",
    "TimedFrame": "restore.opened",
    "list_models": "models.listing",
    "load_model": "models.model:Model.load",
    "open": "restore.opened:open_video",
    "probe": "look.probe",
}

# `open` is not in it: `from vdeblur import *` must not replace the builtin.
__all__ = [
    "BatchError",
    "Cut",
    "DamageError",
    "DeviceError",
    "EncodeOptions",
    "ExitStatus",
    "InputError",
    "InterruptedRunError",
    "ListedModel",
    "Model",
    "ModelError",
    "OpenedVideo",
    "OutputError",
    "RunResult",
    "Settings",
    "TimedFrame",
    "UsageError",
    "VdeblurError",
    "VerificationError",
    "__version__",
    "compare",
    "deblur",
    "list_models",
    "load_model",
    "probe",
]

if not TYPE_CHECKING:  # type checkers and editors see the imports above, and report names that do not exist

    def __getattr__(name: str) -> Any:
        """Import a name of the API at its first use (PEP 562)."""
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, path = _LAZY[name].partition(":")
        found = importlib.import_module(f"{__name__}.{module}")
        for part in (path or name).split("."):
            found = getattr(found, part)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*__all__, *_LAZY})


class RunOptions(TypedDict, total=False):
    """The keywords of deblur: every field of Settings, EncodeOptions and Cut, which describe them.

    weights: the same option as checkpoint; give only one of them.
    """

    # Settings
    model: str
    checkpoint: str | os.PathLike[str] | None
    weights: str | os.PathLike[str] | None
    yes: bool
    offline: bool
    device: str
    precision: str
    threads: int | None
    tile: str
    tile_overlap: int | None
    scene_detect: bool
    strength: float
    guard: bool | None
    region: tuple[int, int, int, int] | str | None
    mask: str | os.PathLike[str] | None
    only_blurred: bool | None
    pictures: bool
    picture_names: str
    cut: Cut
    encoding: EncodeOptions
    resume: bool
    segment: float | Fraction | None
    share: tuple[int, int] | None
    deterministic: bool
    strict: bool
    fail_on_damage: bool
    dry_run: bool
    profile: bool
    compare: str | None
    sample: bool
    sample_seconds: float | Fraction
    # EncodeOptions
    codec: str | None
    crf: float
    bitrate: int | str | None
    preset: str
    options: Mapping[str, str] | tuple[tuple[str, str], ...]
    pix_fmt: str
    lossless: bool
    overwrite: bool
    format: str | None
    audio: bool
    subtitles: bool
    deinterlace: str
    # Cut
    start: float | Fraction | None
    stop: float | Fraction | None
    frames: int | None


def deblur(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    settings: Settings | None = None,
    notify: Notify = ignore,
    ask: Ask | None = None,
    should_stop: Stop = never,
    **options: Unpack[RunOptions],
) -> "RunResult":
    """Restore a video file or a folder of numbered pictures, as `vdeblur run` does.

        result = vdeblur.deblur("in.mp4", "out.mp4", model="lite", crf=18, overwrite=True)
        vdeblur.deblur("in.mp4", "part.mp4", start=1.5, frames=50, strength=0.8, device="cpu")

    source: is never written to. output: a file; a folder, which exists or ends in "/": it gets a video under its own
    name, or the pictures of a folder of pictures; or a pattern such as "dir/%06d.png" for the pictures of a video. It
    appears only when it is complete. settings: options as one object. options: fields of Settings, EncodeOptions
    and Cut as keywords; they replace those of settings. model is "lite" and overwrite False by default. start, stop and
    segment are seconds.
    notify: takes events, a name and a dict each; docs/json.md lists them. ask: puts a question to a person, such as
    whether to download weights that cannot be verified. should_stop: called before every frame; returns None, or an
    ExitStatus to stop.

    Raises: VdeblurError, of the kind that fits: UsageError for wrong or unknown options, InputError, OutputError,
    ModelError, DeviceError, DamageError (with strict or fail_on_damage), InterruptedRunError.
    """
    settings = _settings(settings or Settings(), dict(options))
    from vdeblur.run.batch import run_job
    from vdeblur.run.jobs import plan_job
    from vdeblur.source.urls import check_no_url

    check_no_url(os.fspath(source))
    job = plan_job(Path(source), os.fspath(output), settings)
    return run_job(job, settings, notify=notify, ask=ask, stop=should_stop)


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    output: str | os.PathLike[str],
    mode: str | None = None,
    *,
    overwrite: bool = False,
    offset: float | Fraction | None = None,
    truth: str | os.PathLike[str] | None = None,
    row: int | None = None,
    column: int | None = None,
    notify: Notify = ignore,
    should_stop: Stop = never,
) -> int:
    """Write two videos of the same scene, or folders of pictures, into one comparison; return its number of frames.

        vdeblur.compare("in.mp4", "out.mp4", "page.html")
        vdeblur.compare("in.mp4", "out.mp4", "wipe.mp4", mode="wipe")

    a: the blurry video; the comparison keeps its times, colour and sound. b: the restored one. mode: "side" (a left, b
    right), "split" (half of each), "wipe" (the divide moves), "diff" (changes around grey), "html" (a page with a
    slider over at most twelve frames), "profile" (a PNG of one row or column of pixels over time); by default "html" if
    output is named *.html, else "side". offset: seconds from a's first frame to b's if b is an excerpt of a, negative
    if a is one of b; None: find it. truth, row, column: of "profile", a third video and the pixels; by default the
    middle row.

    Raises: UsageError, InputError if they cannot be read or their sizes differ, OutputError.
    """
    from vdeblur.look.compare import write_comparison
    from vdeblur.look.compose import MODES

    target = Path(output)
    mode = mode or ("html" if target.suffix.lower() in (".html", ".htm") else "side")
    if mode not in (*MODES, "html", "profile"):
        raise UsageError(f"unknown mode {mode!r} of comparison", f"choose from {', '.join(MODES)}, html, profile")
    place = None if offset is None else Fraction(offset)
    if mode == "profile":
        from vdeblur.look.slices import Line, write_profile

        third = None if truth is None else Path(truth)
        return write_profile(
            Path(a), Path(b), target, Line(row, column), truth=third, overwrite=overwrite, offset=place, notify=notify,
            stop=should_stop,
        )  # fmt: skip
    if (truth, row, column) != (None, None, None):
        raise UsageError(f"truth, row and column belong to mode profile, not {mode}", "leave them out")
    return write_comparison(
        Path(a), Path(b), target, mode, overwrite=overwrite, offset=place, notify=notify, stop=should_stop
    )


def _settings(settings: Settings, options: dict[str, Any]) -> Settings:
    """Return settings with the fields of options replaced.

    options: fields of Settings, EncodeOptions and Cut; weights stands for checkpoint. It is changed.

    Raises: UsageError if an option is unknown or its value is wrong.
    """
    if "weights" in options:
        if "checkpoint" in options:
            raise UsageError("weights and checkpoint are the same option", "leave out one of them")
        options["checkpoint"] = options.pop("weights")
    names = {kind: {field.name for field in fields(kind)} for kind in (Settings, EncodeOptions, Cut)}
    known = {"weights"}.union(*names.values())
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known))
            hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(sorted(known))}"
            raise UsageError(f"unknown option {name!r}", hint)
    if options.get("checkpoint") is not None:
        options["checkpoint"] = Path(options["checkpoint"])
    if isinstance(options.get("options"), Mapping):
        options["options"] = tuple(options["options"].items())
    for_settings, for_encoding, for_cut = (
        {name: value for name, value in options.items() if name in names[kind]}
        for kind in (Settings, EncodeOptions, Cut)
    )
    settings = replace(settings, **for_settings)
    return replace(settings, encoding=replace(settings.encoding, **for_encoding), cut=replace(settings.cut, **for_cut))
