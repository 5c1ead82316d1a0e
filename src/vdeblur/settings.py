"""The settings of a run. They check themselves, and know which of them change the result.

A field marked `changes_result` voids the finished segments of an interrupted run when it differs (run/store.py).
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from vdeblur.errors import DeviceError, UsageError, VdeblurError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEINTERLACE_MODES = ("auto", "off", "on")
COMPARE_MODES = ("side", "split", "wipe", "diff", "html")

TILE = re.compile(r"auto|none|[0-9]{1,9}(x[0-9]{1,9})?")
REGION = re.compile(r"([0-9]{1,9})x([0-9]{1,9})\+([0-9]{1,9})\+([0-9]{1,9})")
DEVICE = re.compile(r"auto|cpu|(cuda|mps|xpu)(:[0-9]{1,4})?")
STRONGEST = 1.5  # of strength: beyond the network's result
LARGEST_DENOMINATOR = 1_000_000  # of seconds that are given as a float

BITRATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kKmMgG]?)")
BITRATE_UNITS = {"": 1, "k": 1000, "m": 1_000_000, "g": 1_000_000_000}
LARGEST_BITRATE = 2_000_000_000  # FFmpeg's encoders count bits in 32-bit integers
DEFAULT_CRF = 16.0

RESULT = {"changes_result": True}
NO_RESULT = {"changes_result": False}
# Of fields that earlier versions did not have: their finished segments stay usable while the default holds.
LATER_RESULT = {"changes_result": True, "left_out_by_default": True}


@dataclass(frozen=True)
class EncodeOptions:
    """Options of the encoder and the container; see `vdeblur run --help`.

    crf: quality, 0 or more; lower is better. bitrate: instead of crf, bits per second as a number or a text such as 8M.
    options: names and values for the encoder. pix_fmt: FFmpeg's name, or keep for the input's. format: FFmpeg's name of
    the container; None: by the output's suffix. deinterlace: auto, off or on.

    Raises: UsageError for a wrong value.
    """

    codec: str | None = field(default=None, metadata=RESULT)
    crf: float = field(default=DEFAULT_CRF, metadata=RESULT)
    bitrate: int | None = field(default=None, metadata=LATER_RESULT)
    preset: str = field(default="medium", metadata=RESULT)
    options: tuple[tuple[str, str], ...] = field(default=(), metadata=RESULT)
    pix_fmt: str = field(default="keep", metadata=RESULT)
    lossless: bool = field(default=False, metadata=RESULT)
    overwrite: bool = field(default=False, metadata=NO_RESULT)
    format: str | None = field(default=None, metadata=RESULT)
    audio: bool = field(default=True, metadata=NO_RESULT)  # copied at the end, when all segments are joined
    subtitles: bool = field(default=True, metadata=NO_RESULT)
    deinterlace: str = field(default="auto", metadata=RESULT)

    def __post_init__(self) -> None:
        crf = _number("crf", self.crf)
        if crf < 0:
            raise UsageError(f"crf {self.crf} is negative", "use 0 or more, say 16; lower is better")
        _set(self, "crf", crf)
        if self.bitrate is not None:
            _set(self, "bitrate", parse_bitrate(self.bitrate))
        _check_choice("deinterlace", self.deinterlace, DEINTERLACE_MODES)
        try:
            options = tuple((str(name), str(value)) for name, value in self.options)
        except (TypeError, ValueError) as error:
            raise UsageError(f"options {self.options!r} are not pairs", 'use (("name", "value"), ...)') from error
        _set(self, "options", options)
        self._check_quality()

    def _check_quality(self) -> None:
        """Refuse two ways to choose the quality at once.

        Raises: UsageError.
        """
        names = {name for name, _ in self.options}
        rates = [f"-e {name}" for name in ("b", "b:v") if name in names]
        rates += ["--bitrate"] if self.bitrate is not None else []
        ways = [*rates, *(["-e crf"] if "crf" in names else [])]
        ways += ["--crf"] if rates and self.crf != DEFAULT_CRF else []
        ways += ["--lossless"] if rates and self.lossless else []
        if len(ways) > 1:
            raise UsageError(f"{' and '.join(ways)} both choose the quality", "give one of them")


@dataclass(frozen=True)
class Cut:
    """The part of a video to restore.

    start, stop: seconds from its first frame, as Fraction, int or float; None: its beginning, its end. frames: at most
    so many; None: all.

    Raises: UsageError for a wrong value or an empty part.
    """

    start: Fraction | None = field(default=None, metadata=RESULT)
    stop: Fraction | None = field(default=None, metadata=RESULT)
    frames: int | None = field(default=None, metadata=RESULT)

    def __post_init__(self) -> None:
        for name in ("start", "stop"):
            _set(self, name, _seconds(name, getattr(self, name)))
        for name, value in (("start", self.start), ("stop", self.stop)):
            if value is not None and value < 0:
                raise UsageError(f"{name} {float(value):g} is negative", "use seconds from the first frame")
        if self.stop is not None and self.stop <= (self.start or 0):
            begin = float(self.start or 0)
            raise UsageError(
                f"the part from {begin:g} to {float(self.stop):g} seconds is empty", "stop must lie after start"
            )
        if self.frames is not None and _whole_number("frames", self.frames) < 1:
            raise UsageError(f"frames {self.frames} is less than 1", "use 1 or more, or leave it out for all frames")

    @property
    def whole(self) -> bool:
        """Return whether nothing is cut off."""
        return self.start is None and self.stop is None and self.frames is None


@dataclass(frozen=True)
class Settings:
    """The settings of a run; the defaults are the command line's.

    threads: of the network on a CPU, at most one for each core; None: as many as PyTorch chooses.
    checkpoint: weights of one's own for the model, a path as Path or str. yes: download weights whose authors published
    no digest. precision: auto, fp32, bf16 or fp16. tile: auto, none, N or WxH in pixels. tile_overlap: pixels; None:
    the network's own. strength: 0 to 1.5; 1 is what the network returns. only_blurred: add it only where frames are
    blurred; None: if the model is known to alter sharp ones. guard: blocks of a frame in which the network clearly
    failed keep the input; None: unless weights were given. region: (width, height, left, top), or a text as
    640x360+100+50, in pixels of the upright picture: frames are restored only there; None: everywhere. mask: a picture
    of the upright picture's size, a path as Path or str: frames are restored where it is white, partly where it is
    grey. pictures: write a folder of pictures even if the output's name has a suffix. picture_names: a pattern for
    their names, as %06d.png; "" for those of the input's pictures, or numbers. segment: seconds that are finished and
    kept together, as Fraction, int or float; None: the whole video. share: (k, n) makes only the k-th of n shares of
    the segments, and no output. strict: warnings are errors. fail_on_damage: a damaged input is an error at the end.
    dry_run: plan only. profile: measure seconds per stage and peak memory. compare: also write a comparison beside the
    output: side, split, wipe, diff or html. sample: instead of the output, write three short samples beside the input,
    each of sample_seconds.

    Raises: UsageError for a wrong value or for settings that exclude each other, DeviceError for an unknown device.
    """

    # The model and its weights change the result, but `best` and a file's name do not say what they are. A run's
    # fingerprint holds the name and the digest that they stand for.
    model: str = field(default="lite", metadata=NO_RESULT)
    checkpoint: Path | None = field(default=None, metadata=NO_RESULT)
    yes: bool = field(default=False, metadata=NO_RESULT)
    offline: bool = field(default=False, metadata=NO_RESULT)
    device: str = field(default="auto", metadata=NO_RESULT)  # a run that a GPU began may resume on the CPU
    precision: str = field(default="auto", metadata=RESULT)
    threads: int | None = field(default=None, metadata=NO_RESULT)  # sums may differ by rounding; a resumed run goes on
    tile: str = field(default="auto", metadata=RESULT)
    tile_overlap: int | None = field(default=None, metadata=RESULT)
    scene_detect: bool = field(default=True, metadata=RESULT)
    strength: float = field(default=1.0, metadata=RESULT)
    guard: bool | None = field(default=None, metadata=LATER_RESULT)
    region: tuple[int, int, int, int] | None = field(default=None, metadata=LATER_RESULT)
    mask: Path | None = field(default=None, metadata=NO_RESULT)  # a run's fingerprint holds its digest instead
    only_blurred: bool | None = field(default=None, metadata=LATER_RESULT)
    pictures: bool = field(default=False, metadata=RESULT)
    picture_names: str = field(default="", metadata=LATER_RESULT)
    cut: Cut = field(default_factory=Cut, metadata=RESULT)
    encoding: EncodeOptions = field(default_factory=EncodeOptions, metadata=RESULT)
    resume: bool = field(default=True, metadata=NO_RESULT)
    segment: Fraction | None = field(default=Fraction(10), metadata=RESULT)
    share: tuple[int, int] | None = field(default=None, metadata=NO_RESULT)
    deterministic: bool = field(default=False, metadata=RESULT)
    strict: bool = field(default=False, metadata=NO_RESULT)
    fail_on_damage: bool = field(default=False, metadata=NO_RESULT)
    dry_run: bool = field(default=False, metadata=NO_RESULT)
    profile: bool = field(default=False, metadata=NO_RESULT)
    compare: str | None = field(default=None, metadata=NO_RESULT)
    sample: bool = field(default=False, metadata=NO_RESULT)
    sample_seconds: Fraction = field(default=Fraction(2), metadata=NO_RESULT)

    def __post_init__(self) -> None:
        for name in ("checkpoint", "mask"):
            if isinstance(getattr(self, name), str):
                _set(self, name, Path(getattr(self, name)))
        _set(self, "region", _region(self.region))
        _check_match("device", self.device, DEVICE, DeviceError, "choose from auto, cpu, cuda, cuda:1, mps, xpu")
        _check_choice("precision", self.precision, PRECISIONS)
        if self.threads is not None and _whole_number("threads", self.threads) < 1:
            raise UsageError(f"threads {self.threads} is less than 1", "use 1 or more, or leave it out")
        if isinstance(self.tile, str):
            _set(self, "tile", self.tile.lower())
        elif isinstance(self.tile, int):
            _set(self, "tile", str(self.tile))
        _check_match("tile", self.tile, TILE, UsageError, "use auto, none, N or WxH, in pixels")
        if self.tile_overlap is not None and _whole_number("tile_overlap", self.tile_overlap) < 0:
            raise UsageError(f"tile_overlap {self.tile_overlap} is negative", "use 0 or more pixels")
        _set(self, "strength", _number("strength", self.strength))
        if not 0 <= self.strength <= STRONGEST:
            raise UsageError(f"strength {self.strength:g} is out of range", f"use 0 to {STRONGEST}")
        _set(self, "segment", _seconds("segment", self.segment))
        if self.segment is not None and self.segment <= 0:
            raise UsageError(
                f"segment {float(self.segment):g} is too short", "use seconds above 0, or None for one piece"
            )
        seconds = _seconds("sample_seconds", self.sample_seconds)
        if seconds is None or seconds <= 0:
            raise UsageError(f"sample_seconds {self.sample_seconds!r} is not above 0", "use seconds, say 2")
        _set(self, "sample_seconds", seconds)
        self._check_share()
        if self.compare is not None:
            _check_choice("compare", self.compare, COMPARE_MODES)
        self._check_together()

    def _check_share(self) -> None:
        if self.share is None:
            return
        try:
            number, shares = (_whole_number("share", part) for part in self.share)
        except (TypeError, ValueError):
            number, shares = 0, 0
        if not 1 <= number <= shares:
            raise UsageError(f"share {self.share!r} is not k of n", "use (3, 8) for the third of eight shares")
        _set(self, "share", (number, shares))

    def _check_together(self) -> None:
        """Refuse settings that exclude each other.

        Raises: UsageError.
        """
        extras = [f"--{name}" for name in ("compare", "sample") if getattr(self, name)]
        if len(extras) == 2:
            raise UsageError("--sample shows the input beside the output already", "leave out --compare")
        for option in extras:
            if self.share is not None:
                raise UsageError(
                    f"{option} needs an output, and --share makes none", "give it to the run that joins them"
                )
            if self.dry_run:
                raise UsageError(f"{option} needs an output, and --dry-run makes none", "leave out one of them")
        if self.sample and self.profile:
            raise UsageError("--profile measures a whole run, not samples", "leave out one of them")

    def changing_result(self) -> Iterator[tuple[str, object]]:
        """Yield names and values of the settings that change the result, those of cut and encoding too."""
        for part in (self, self.encoding, self.cut):
            for each in fields(part):
                value = getattr(part, each.name)
                is_left_out = each.metadata.get("left_out_by_default") and value == each.default
                if each.metadata["changes_result"] and each.name not in ("cut", "encoding") and not is_left_out:
                    yield each.name, value


def _set(settings: object, name: str, value: object) -> None:
    """Set a field of a frozen dataclass, only while it is made."""
    object.__setattr__(settings, name, value)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"unknown {name} {value!r}", f"choose from {', '.join(choices)}")


def _check_match(name: str, value: object, pattern: re.Pattern[str], kind: type[VdeblurError], hint: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise kind(f"unknown {name} {value!r}", hint)


def _number(name: str, value: Any) -> float:
    """Return a finite number as a float.

    Raises: UsageError.
    """
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{name} {value!r} is not a finite number", "use a number such as 0.5")
    return number


def _whole_number(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"{name} {value!r} is not a whole number", "use a whole number such as 2")
    return value


def parse_bitrate(value: object) -> int:
    """Return bits per second of a number or a text such as 8M or 800k.

    Raises: UsageError.
    """
    found = BITRATE.fullmatch(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else None
    bits = float(found[1]) * BITRATE_UNITS[found[2].lower()] if found else 0.0
    if not 1000 <= bits <= LARGEST_BITRATE:
        raise UsageError(f"bitrate {value!r} is not between 1k and 2G bits per second", "use a number such as 8M")
    return round(bits)


def _region(value: Any) -> tuple[int, int, int, int] | None:
    """Return width, height, left and top of a region, given so or as a text.

    Raises: UsageError.
    """
    if value is None:
        return None
    hint = "use WIDTHxHEIGHT+LEFT+TOP in pixels, as 640x360+100+50"
    found = REGION.fullmatch(value) if isinstance(value, str) else None
    parts = [int(part) for part in found.groups()] if found else value
    if isinstance(parts, str) or not isinstance(parts, list | tuple) or len(parts) != 4:
        raise UsageError(f"region {value!r} is not a region", hint)
    width, height, left, top = (_whole_number("region", part) for part in parts)
    if min(width, height) < 1 or min(left, top) < 0:
        raise UsageError(f"region {value!r} is empty or out of the picture", hint)
    return width, height, left, top


def _seconds(name: str, value: Any) -> Fraction | None:
    """Return seconds exactly; of a float the simplest fraction with a denominator up to LARGEST_DENOMINATOR.

    Raises: UsageError.
    """
    if value is None or isinstance(value, Fraction):
        return value
    if isinstance(value, int):
        return Fraction(value)
    return Fraction(_number(name, value)).limit_denominator(LARGEST_DENOMINATOR)
