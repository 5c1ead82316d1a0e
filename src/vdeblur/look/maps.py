"""Draw values from inside a network as pictures: flow, maps, grids of channels, each with its range in writing.

Everything is uint8 RGB (H, W, 3). Small maps are enlarged by whole factors, so that each value stays a square.
"""

import math
from collections.abc import Sequence

import numpy

from vdeblur.look.labels import text_dots

# The usual colour wheel of optical flow (Baker et al., "A Database and Evaluation Methodology for Optical Flow", IJCV
# 2011): how many hues lie between two of red, yellow, green, cyan, blue, magenta and red.
WHEEL = (15, 6, 4, 11, 13, 6)
CORNERS = ((255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255), (255, 0, 0))
SHARE = 99.0  # per cent: values beyond this share of them get the last colour, or one outlier would hide the rest
LEAST_SIDE = 480  # pixels; smaller maps are enlarged up to it
TILE = 200  # pixels, least width of a channel in a grid: room for its caption
COLUMNS = 8  # of a grid
MOST_CHANNELS = 64  # in a grid
MOST_WIDTH = 320  # pixels of a channel in a grid; larger ones are averaged, or a grid of 720p would have 59 megapixels
GAP = 6  # pixels around pictures and texts
TEXT = 2  # pixels for each dot of the font
GAIN = 4  # of differences, as in look/compose.py
LEGEND = 160  # pixels, side of the colour wheel
NEGATIVE, POSITIVE = (33, 102, 172), (178, 24, 43)  # ends of the colours of signed values; zero is white


def flow_picture(flow: numpy.ndarray, title: str) -> numpy.ndarray:
    """Draw a flow (2, h, w), horizontal first, in the usual colour wheel, with the wheel as a legend.

    The hue is the direction, the saturation the speed: white is no motion.
    """
    speed = numpy.hypot(*flow)
    full = max(float(numpy.percentile(speed, SHARE)), 1e-6)
    sides = numpy.linspace(-1, 1, LEGEND)
    wheel = numpy.stack(numpy.meshgrid(sides, sides))
    legend = flow_colors(wheel, 1.0)
    legend[numpy.hypot(*wheel) > 1] = 255
    lines = [title, f"full colour {full:.2f} px, largest {speed.max():.2f} px"]
    return _titled(_beside(enlarged(flow_colors(flow, full)), legend), lines)


def flow_colors(flow: numpy.ndarray, full: float) -> numpy.ndarray:
    """Return the colours of a flow (2, h, w), saturated where its speed is at least `full`."""
    hues = numpy.concatenate(
        [
            numpy.linspace(begin, end, count, endpoint=False)
            for begin, end, count in zip(CORNERS[:-1], CORNERS[1:], WHEEL, strict=True)
        ]
    )
    # Motion to the right is red, and hues follow with the angle as it is seen, downwards first.
    place = (numpy.arctan2(flow[1], flow[0]) / (2 * math.pi) % 1) * len(hues)
    first = place.astype(int) % len(hues)
    between = (place - numpy.floor(place))[..., None]
    hue = hues[first] * (1 - between) + hues[(first + 1) % len(hues)] * between
    strength = (numpy.hypot(*flow) / full).clip(0, 1)[..., None]
    return _as_bytes(255 - strength * (255 - hue))


def map_picture(values: numpy.ndarray, title: str, unit: str = "") -> numpy.ndarray:
    """Draw a map (h, w) in grey, or where it has both signs in blue and red, with a scale bar and its range."""
    low, high = _limits(values)
    bar = numpy.linspace(high, low, LEGEND)[:, None].repeat(LEGEND // 6, 1)
    top, bottom = (_text(f"{value:.3g}") for value in (high, low))
    width = max(top.shape[1], bottom.shape[1], bar.shape[1])
    legend = _stacked([_widened(part, width) for part in (top, scaled_colors(bar, low, high), bottom)])
    lines = [title, _range_text(values, low, unit)]
    return _titled(_beside(enlarged(scaled_colors(values, low, high)), legend), lines)


def rgb_picture(values: numpy.ndarray, title: str) -> numpy.ndarray:
    """Draw a picture (3, h, w) in [0, 1]; values beyond are clipped, and the range is written."""
    lines = [title, f"from {values.min():.3f} to {values.max():.3f}"]
    return _titled(enlarged(_as_bytes(255 * values.transpose(1, 2, 0))), lines)


def difference_picture(values: numpy.ndarray, title: str) -> numpy.ndarray:
    """Draw a difference of pictures (3, h, w) around grey, four times as large."""
    lines = [title, f"grey is 0, drawn {GAIN} times; from {values.min():.3f} to {values.max():.3f}"]
    return _titled(enlarged(_as_bytes(127.5 + GAIN * 255 * values.transpose(1, 2, 0))), lines)


def channels_picture(
    values: numpy.ndarray, title: str, names: Sequence[str] = (), unit: str = "", *, common: bool = False
) -> numpy.ndarray:
    """Draw channels (C, h, w) as a grid, each in its own range, which is written above it.

    If the values have both signs, zero is white in all channels, negative values are blue and positive ones red.
    names: of the channels; else their numbers. common: one range for all, in grey. Of more than 64 channels, those with
    the largest spread are drawn. Channels of one value each are drawn as one row of cells.
    """
    all_limits = (float(values.min()), float(values.max())) if common else _limits(values)
    is_signed = all_limits[0] < 0 < all_limits[1] and not common
    range_text = _range_text(values, all_limits[0] if is_signed else 0, unit)
    if values.shape[1:] == (1, 1):
        row = enlarged(scaled_colors(values[:, 0, 0][None], *all_limits), most=24)
        return _titled(row.repeat(-(-TILE // row.shape[0]), 0), [f"{title}: a value for each channel", range_text])
    shown = sorted(numpy.argsort(-values.std((1, 2)), kind="stable")[:MOST_CHANNELS])
    count = f"{len(shown)} of {len(values)} channels, those with the largest spread" if len(shown) < len(values) else ""
    tiles = []
    for index in shown:
        channel = values[index]
        small = _averaged(channel)
        low, high = all_limits if common else _limits(channel, is_signed)
        colors = scaled_colors(small, low, high, is_signed=is_signed)
        picture = _widened(enlarged(colors, TILE), TILE)
        head = [names[index] if names else str(index), f"{channel.min():.2g}..{channel.max():.2g}"]
        tiles.append(
            _stacked([_widened(_text(line), picture.shape[1])[:, : picture.shape[1]] for line in head] + [picture])
        )
    columns = math.isqrt(len(tiles)) if common else -(-len(tiles) // -(-len(tiles) // COLUMNS))
    blank = numpy.full_like(tiles[0], 255)
    rows = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
    grid = [numpy.concatenate([_framed(tile) for tile in (row + [blank] * columns)[:columns]], 1) for row in rows]
    return _titled(_stacked(grid), [title, *([count] if count else []), range_text])


def labelled_rows(panels: Sequence[tuple[str, numpy.ndarray]], title: str) -> numpy.ndarray:
    """Stack pictures of one width, each under its label."""
    return _titled(_stacked([part for label, panel in panels for part in (_text(label), panel)]), [title])


def enlarged(picture: numpy.ndarray, least: int = LEAST_SIDE, most: int = 16) -> numpy.ndarray:
    """Repeat the pixels of a picture until its width is at least `least`, at most `most` times each."""
    factor = min(max(-(-least // picture.shape[1]), 1), most)
    return picture.repeat(factor, 0).repeat(factor, 1)


def scaled_colors(values: numpy.ndarray, low: float, high: float, *, is_signed: bool | None = None) -> numpy.ndarray:
    """Return the colours of a map (h, w): black to white; if it is signed blue, white at 0, red.

    is_signed: None: if low and high have different signs.
    """
    if low < 0 < high if is_signed is None else is_signed:
        share = (values / max(-low, high)).clip(-1, 1)[..., None]
        ends = numpy.where(share < 0, NEGATIVE, POSITIVE)
        return _as_bytes(255 - numpy.abs(share) * (255 - ends))
    return _as_bytes(255 * (values - low) / max(high - low, 1e-12))[..., None].repeat(3, -1)


def _limits(values: numpy.ndarray, is_signed: bool = False) -> tuple[float, float]:
    """Return the values of the first and the last colour; the same distance from 0 if there are both signs."""
    low, high = (float(value) for value in numpy.percentile(values, (100 - SHARE, SHARE)))
    if is_signed or low < 0 < high:
        largest = max(-low, high, 1e-12)
        return -largest, largest
    return low, high


def _range_text(values: numpy.ndarray, low: float, unit: str) -> str:
    signs = "; blue below 0, red above" if low < 0 < values.max() else ""
    return f"from {values.min():.4g} to {values.max():.4g}{f' ({unit})' if unit else ''}{signs}"


def _averaged(channel: numpy.ndarray) -> numpy.ndarray:
    """Average a channel (h, w) over blocks, so that it is at most MOST_WIDTH wide; rows and columns left are cut."""
    factor = -(-channel.shape[1] // MOST_WIDTH)
    rows, columns = (max(side // factor, 1) for side in channel.shape)
    if factor == 1 or channel.shape[0] < factor:
        return channel
    blocks = channel[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor)
    means: numpy.ndarray = blocks.mean((1, 3))
    return means


def _as_bytes(values: numpy.ndarray) -> numpy.ndarray:
    rounded: numpy.ndarray = numpy.nan_to_num(values).clip(0, 255).round().astype(numpy.uint8)
    return rounded


def _text(line: str) -> numpy.ndarray:
    """Return a line of text, black on white."""
    dots = numpy.pad(text_dots(line), 1).repeat(TEXT, 0).repeat(TEXT, 1)
    return numpy.where(dots, 0, 255).astype(numpy.uint8)[..., None].repeat(3, -1)


def _widened(picture: numpy.ndarray, width: int) -> numpy.ndarray:
    missing = max(width - picture.shape[1], 0)
    return numpy.pad(picture, ((0, 0), (0, missing), (0, 0)), constant_values=255)


def _stacked(parts: Sequence[numpy.ndarray]) -> numpy.ndarray:
    width = max(part.shape[1] for part in parts)
    return numpy.concatenate([_widened(part, width) for part in parts])


def _framed(picture: numpy.ndarray) -> numpy.ndarray:
    return numpy.pad(picture, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)


def _beside(left: numpy.ndarray, right: numpy.ndarray) -> numpy.ndarray:
    """Join two pictures at their tops, with a gap."""
    height = max(left.shape[0], right.shape[0])
    padded = [
        numpy.pad(part, ((0, height - part.shape[0]), (0, 2 * GAP), (0, 0)), constant_values=255)
        for part in (left, right)
    ]
    return numpy.concatenate(padded, 1)


def _titled(picture: numpy.ndarray, lines: Sequence[str]) -> numpy.ndarray:
    """Write lines of text above a picture."""
    return _framed(_stacked([*(_text(line) for line in lines), picture]))
