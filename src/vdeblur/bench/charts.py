"""A scatter plot as SVG, with a name beside each point."""

import math
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 320  # units of the drawing; about as many pixels on a page
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 26, 48  # margins around the points
LETTER, LINE = 6.6, 14  # width of a letter and height of a line of its text
RADIUS = 5  # of a point
STEPS = (1, 2, 5)


@dataclass(frozen=True)
class Point:
    """A named point. The x axis is logarithmic, with a separate place for 0 at its left."""

    name: str
    x: float
    y: float
    is_baseline: bool = False


def scatter(points: list[Point], x_name: str, y_name: str) -> str:
    """Draw the points; there must be at least one."""
    x_axis, y_axis = _LogAxis([point.x for point in points]), _Axis([point.y for point in points])
    parts = [_grid(x_axis, y_axis, x_name, y_name)]
    taken = [(x_axis.at(point.x) - 7, y_axis.at(point.y) - 7, 14.0, 14.0) for point in points]
    for point in sorted(points, key=lambda point: -point.y):
        x, y = x_axis.at(point.x), y_axis.at(point.y)
        hint = f"<title>{escape(point.name)}: {point.y:.2f} at {point.x:.3g}</title>"
        if point.is_baseline:
            shape = (
                f'<rect class="point baseline" x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9">{hint}</rect>'
            )
        else:
            shape = f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}">{hint}</circle>'
        box = _free_place(x, y, LETTER * len(point.name), taken)
        taken.append(box)
        parts.append(f'{shape}<text class="label" x="{box[0]:.1f}" y="{box[1] + 11:.1f}">{escape(point.name)}</text>')
    name = escape(f"{y_name} against {x_name}; the table of models has the same numbers")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{"".join(parts)}</svg>'


Box = tuple[float, float, float, float]  # left, top, width, height


def _free_place(x: float, y: float, width: float, taken: list[Box]) -> Box:
    """Return a free place for a name near its point: beside it, else above or below."""
    offsets = sorted(range(-6, 7), key=abs)
    places = [
        (left, y - LINE / 2 + offset * LINE / 2, width, float(LINE))
        for offset in offsets
        for left in (x + 9, x - 9 - width, x - width / 2)
    ]
    inside = [
        box
        for box in places
        if box[0] >= LEFT and box[0] + width <= WIDTH - 2 and box[1] >= TOP - 4 and box[1] + LINE <= HEIGHT - BOTTOM
    ]
    free = [box for box in inside if not any(_overlap(box, other) for other in taken)]
    return (free or inside or places)[0]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def _grid(x_axis: "_LogAxis", y_axis: "_Axis", x_name: str, y_name: str) -> str:
    bottom = HEIGHT - BOTTOM
    parts = []
    for value in y_axis.ticks:
        y = y_axis.at(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.{y_axis.digits}f}</text>')
    for value in x_axis.ticks:
        x = x_axis.at(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>')
    parts.append(f'<text x="4" y="14">{escape(y_name)}</text>')
    return "".join(parts)


class _Axis:
    """The linear y axis, with room around the values."""

    def __init__(self, values: list[float]) -> None:
        low, high = min(values), max(values)
        room = 0.08 * (high - low) or 0.5
        self.low, self.high = low - room, high + room
        step = _nice((self.high - self.low) / 5)
        self.digits = max(0, -math.floor(math.log10(step)))
        self.ticks = [k * step for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]

    def at(self, value: float) -> float:
        """Return the position of a value."""
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - 4 - share * (HEIGHT - BOTTOM - TOP - 8)


class _LogAxis:
    """The logarithmic x axis; zeros get a place at its left."""

    def __init__(self, values: list[float]) -> None:
        positive = [value for value in values if value > 0] or [1.0]
        low, high = math.log10(min(positive)), math.log10(max(positive))
        room = max(0.08 * (high - low), 0.2)  # 10 ** 0.4 > 5 / 2, the widest step: a mark is always inside
        self.low, self.high = low - room, high + room
        self.zeros = len(positive) < len(values) or min(values) <= 0
        self.left = LEFT + (34 if self.zeros else 0)
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        steps = STEPS if self.high - self.low < 2 else (1,)
        marks = [step * 10.0**decade for decade in decades for step in steps]
        self.ticks = [mark for mark in marks if self.low <= math.log10(mark) <= self.high]
        if self.zeros:
            self.ticks.insert(0, 0.0)

    def at(self, value: float) -> float:
        """Return the position of a value."""
        if value <= 0:
            return LEFT + 10
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.left + share * (WIDTH - RIGHT - self.left)


def _nice(step: float) -> float:
    """Round a step up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * mark for mark in (*STEPS, 10) if power * mark >= step)
