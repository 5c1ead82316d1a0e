"""Types of parameters: what they take, and what they refuse in words."""

from fractions import Fraction

import click
import pytest

from vdeblur.cli.types import NamesType, NoiseType, RangeType, ShareType, SizeType, TimeType


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (TimeType(), "1:30", Fraction(90)),
        (TimeType(), "00:01:30.5", Fraction(181, 2)),
        (TimeType(), "200ms", Fraction(1, 5)),
        (ShareType(), "3/8", (3, 8)),
        (SizeType(), "640x360", (640, 360)),
        (SizeType(), "96", (96, 96)),
        (RangeType(int, 1, 9), "3..7", (3, 7)),
        (RangeType(float, 0, 1), "0.5", (0.5, 0.5)),
        (NoiseType(), "1.5/2", (1.5, 2.0)),
        (NamesType(), "lite, dstnet", ("lite", "dstnet")),
    ],
)
def test_what_is_understood(kind: click.ParamType, text: str, value: object) -> None:
    assert kind.convert(text, None, None) == value


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (TimeType(), "soon", "is not a time"),
        (TimeType(), "-5", "is negative"),
        (TimeType(), "1:-30", "is not a time"),  # was 30 s
        (TimeType(), "1:2:3:4", "is not a time"),
        (TimeType(), "1/2", "is not a time"),
        (TimeType(), "²", "is not a time"),
        (TimeType(), "1:75", "below 60"),
        (ShareType(), "²/3", "is not K/N"),  # str.isdigit takes it, int() does not
        (ShareType(), "9/8", "is not K/N"),
        (SizeType(), "64x³", "is not WIDTHxHEIGHT"),
        (SizeType(), "0x48", "is not WIDTHxHEIGHT"),
        (RangeType(int, 1, 9), "7..3", "lowest first"),
        (RangeType(int, 1, 9), "many", "neither a number nor LOW..HIGH"),
        (NoiseType(), "1/300", "does not lie within 0..255"),
        (NamesType(("fp32", "bf16")), "fp8", "is not one of fp32, bf16"),
    ],
)
def test_what_is_refused(kind: click.ParamType, text: str, words: str) -> None:
    with pytest.raises(click.BadParameter, match=words):
        kind.convert(text, None, None)
