"""Kinds of options that several commands have."""

from fractions import Fraction

import click

CONFIG_FILE = "vdeblur.toml"


class KeyValueType(click.ParamType):
    """KEY=VALUE."""

    name = "key=value"

    def convert(
        self, value: str | tuple[str, str], param: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, str]:
        """Give both."""
        if isinstance(value, tuple):
            return value
        key, sign, rest = value.partition("=")
        if not key or not sign:
            self.fail(f"{value!r} is not KEY=VALUE", param, context)
        return key, rest


class TimeType(click.ParamType):
    """FFmpeg's time syntax: [-][HH:]MM:SS[.m...], or S[.m...] with an optional s, ms or us."""

    name = "time"

    def convert(self, value: str | Fraction, param: click.Parameter | None, context: click.Context | None) -> Fraction:
        """Give seconds."""
        if isinstance(value, Fraction):
            return value
        text = str(value)
        try:
            for unit, size in (("us", 1_000_000), ("ms", 1000), ("s", 1)):
                if text.endswith(unit):
                    seconds = Fraction(text.removesuffix(unit)) / size
                    break
            else:
                seconds = Fraction(0)
                for part in text.split(":"):
                    seconds = seconds * 60 + Fraction(part)
        except (ValueError, ZeroDivisionError):
            self.fail(f"{text!r} is not a time; write 90, 1:30, 00:01:30.5 or 200ms", param, context)
        if seconds < 0:
            self.fail(f"{text!r} is negative", param, context)
        return seconds


class ShareType(click.ParamType):
    """K/N."""

    name = "k/n"

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, int]:
        """Give both."""
        if isinstance(value, tuple):
            return value
        first, sign, second = value.partition("/")
        if not (sign and first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
            self.fail(f"{value!r} is not K/N, as 3/8: the third of eight shares", param, context)
        return int(first), int(second)
