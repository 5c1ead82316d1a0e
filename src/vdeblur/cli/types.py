"""Parameter types, and options that several commands share."""

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import click

CONFIG_FILE = "vdeblur.toml"
PATH = click.Path(path_type=Path, readable=False)  # whoever opens it reports that it cannot be read
FOLDER = click.Path(path_type=Path, file_okay=False)

DEVICE = click.option(
    "-d",
    "--device",
    default="auto",
    show_default=True,
    help="Device for the network: auto, cpu, cuda, cuda:1, mps, xpu.",
)
YES = click.option("--yes", is_flag=True, help="Download without asking, even files without a published digest.")
OFFLINE = click.option("--offline", is_flag=True, help="Do not use the network.")
JSON_EVENTS = click.option("--json", is_flag=True, help="Write events to stdout, one JSON object per line.")
DATASET = click.option(
    "--dataset", metavar="NAME|DIR", help="gopro, dvd, bsd, reds, or a folder of blurry and sharp pictures."
)
LIMIT = click.option("--limit", type=click.IntRange(1), help="Use only the first N frames of each sequence.")

# FFmpeg's times, but neither negative nor in exponents: none of the numbers after a colon has a sign.
TIME = re.compile(r"(?:(?:([0-9]+):)?([0-9]+):)?([0-9]+\.?[0-9]*|\.[0-9]+)(s|ms|us)?", re.ASCII)
UNITS = {None: 1, "s": 1, "ms": 1000, "us": 1_000_000}

Command = Callable[..., Any]


def with_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that adds options to a command; its help lists them in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


class KeyValueType(click.ParamType):
    """KEY=VALUE."""

    name = "key=value"

    def convert(
        self, value: str | tuple[str, str], param: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, str]:
        """Return key and value."""
        if isinstance(value, tuple):
            return value
        key, sign, rest = value.partition("=")
        if not key or not sign:
            self.fail(f"{value!r} is not KEY=VALUE", param, context)
        return key, rest


class TimeType(click.ParamType):
    """FFmpeg's time syntax: [HH:]MM:SS[.m...], or S[.m...] with an optional s, ms or us."""

    name = "time"

    def convert(self, value: str | Fraction, param: click.Parameter | None, context: click.Context | None) -> Fraction:
        """Return seconds."""
        if isinstance(value, Fraction):
            return value
        text = str(value)
        if TIME.fullmatch(text.removeprefix("-")) and text.startswith("-"):
            self.fail(f"{text!r} is negative", param, context)
        found = TIME.fullmatch(text)
        if found is None:
            self.fail(f"{text!r} is not a time; write 90, 1:30, 00:01:30.5 or 200ms", param, context)
        hours, minutes, seconds, unit = found.groups()
        if minutes is not None and (Fraction(seconds) >= 60 or (hours is not None and int(minutes) >= 60)):
            self.fail(f"{text!r} is not a time: after a colon, numbers are below 60", param, context)
        return Fraction(seconds) / UNITS[unit] + 60 * int(minutes or 0) + 3600 * int(hours or 0)


class ShareType(click.ParamType):
    """K/N, with 1 <= K <= N."""

    name = "k/n"

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, int]:
        """Return both numbers."""
        if isinstance(value, tuple):
            return value
        first, sign, second = value.partition("/")
        if not (sign and is_number(first) and is_number(second) and 1 <= int(first) <= int(second)):
            self.fail(f"{value!r} is not K/N, as 3/8: the third of eight shares", param, context)
        return int(first), int(second)


class NamesType(click.ParamType):
    """Names separated by commas, each one of `choices` if there are any."""

    name = "names"

    def __init__(self, choices: tuple[str, ...] = ()) -> None:
        self.choices = choices

    def convert(
        self, value: str | tuple[str, ...], param: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, ...]:
        """Return the names."""
        if isinstance(value, tuple):
            return value
        names = tuple(name.strip() for name in value.split(","))
        if not all(names):
            self.fail(f"{value!r} has an empty name", param, context)
        for name in names if self.choices else ():
            if name not in self.choices:
                self.fail(f"{name!r} is not one of {', '.join(self.choices)}", param, context)
        return names


class RangeType(click.ParamType):
    """A number, or LOW..HIGH."""

    name = "n|low..high"

    def __init__(self, kind: type, least: float, most: float) -> None:
        self.kind, self.least, self.most = kind, least, most

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[float, float]:
        """Return lowest and highest."""
        if isinstance(value, tuple):
            return value
        low, dots, high = str(value).partition("..")
        try:
            ends = (self.kind(low), self.kind(high if dots else low))
        except ValueError:
            self.fail(f"{value!r} is neither a number nor LOW..HIGH", param, context)
        if not self.least <= ends[0] <= ends[1] <= self.most:
            self.fail(f"{value!r} does not lie within {self.least}..{self.most}, lowest first", param, context)
        return ends


class NoiseType(click.ParamType):
    """READ, or READ/SHOT: standard deviations in 0..255."""

    name = "read[/shot]"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[float, float]:
        """Return read noise and shot noise."""
        if isinstance(value, tuple):
            return value
        read, _, shot = str(value).partition("/")
        try:
            both = (float(read), float(shot or 0))
        except ValueError:
            self.fail(f"{value!r} is not READ or READ/SHOT, as 1.5/2", param, context)
        if not all(0 <= part <= 255 for part in both):
            self.fail(f"{value!r} does not lie within 0..255", param, context)
        return both


class SizeType(click.ParamType):
    """WxH in pixels, or N for NxN."""

    name = "wxh"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[int, int]:
        """Return width and height."""
        if isinstance(value, tuple):
            return value
        width, _, height = str(value).partition("x")
        height = height or width
        if not (is_number(width) and is_number(height) and int(width) and int(height)):
            self.fail(f"{value!r} is not WIDTHxHEIGHT, as 640x360, or N", param, context)
        return int(width), int(height)


def is_number(text: str) -> bool:
    """Return whether a text is ASCII digits alone; str.isdigit also takes superscripts, which int() refuses."""
    return text.isascii() and text.isdigit()
