"""Draw labels into composed pictures, with a small font of its own: 5x7 dots per character, capitals only."""

from functools import cache

import numpy

from vdeblur.look.compose import ComposedFrames, Composer, Planes

HEIGHT_SHARE = 30  # the text's height is the picture's over this
ROWS, COLUMNS = 7, 5
# Seven rows of five dots, from the top; each row is a number whose bits are dots.
GLYPHS = {
    "A": "0e 11 11 1f 11 11 11", "B": "1e 11 11 1e 11 11 1e", "C": "0e 11 10 10 10 11 0e", "D": "1e 11 11 11 11 11 1e",
    "E": "1f 10 10 1e 10 10 1f", "F": "1f 10 10 1e 10 10 10", "G": "0e 11 10 17 11 11 0f", "H": "11 11 11 1f 11 11 11",
    "I": "0e 04 04 04 04 04 0e", "J": "07 02 02 02 02 12 0c", "K": "11 12 14 18 14 12 11", "L": "10 10 10 10 10 10 1f",
    "M": "11 1b 15 15 11 11 11", "N": "11 11 19 15 13 11 11", "O": "0e 11 11 11 11 11 0e", "P": "1e 11 11 1e 10 10 10",
    "Q": "0e 11 11 11 15 12 0d", "R": "1e 11 11 1e 14 12 11", "S": "0f 10 10 0e 01 01 1e", "T": "1f 04 04 04 04 04 04",
    "U": "11 11 11 11 11 11 0e", "V": "11 11 11 11 11 0a 04", "W": "11 11 11 15 15 15 0a", "X": "11 11 0a 04 0a 11 11",
    "Y": "11 11 11 0a 04 04 04", "Z": "1f 01 02 04 08 10 1f", "0": "0e 11 13 15 19 11 0e", "1": "04 0c 04 04 04 04 0e",
    "2": "0e 11 01 02 04 08 1f", "3": "1f 02 04 02 01 11 0e", "4": "02 06 0a 12 1f 02 02", "5": "1f 10 1e 01 01 11 0e",
    "6": "06 08 10 1e 11 11 0e", "7": "1f 01 02 04 08 08 08", "8": "0e 11 11 0e 11 11 0e", "9": "0e 11 11 0f 01 02 0c",
    ".": "00 00 00 00 00 0c 0c", "-": "00 00 00 1f 00 00 00", "_": "00 00 00 00 00 00 1f", ":": "00 0c 0c 00 0c 0c 00",
    "(": "02 04 08 08 08 04 02", ")": "08 04 02 02 02 04 08", "+": "00 04 04 1f 04 04 00", ",": "00 00 00 00 0c 04 08",
    "/": "00 01 02 04 08 10 00", "@": "0e 11 01 0d 15 15 0e", "=": "00 00 1f 00 1f 00 00", "%": "18 19 02 04 08 13 03",
    "[": "0e 08 08 08 08 08 0e", "]": "0e 02 02 02 02 02 0e", ";": "00 0c 0c 00 0c 04 08", "*": "00 15 0e 1f 0e 15 00",
    " ": "00 00 00 00 00 00 00", "?": "0e 11 01 02 04 00 04",
}  # fmt: skip


def labelled(mode: Composer, labels: tuple[str, str]) -> Composer:
    """Return a composer that also draws labels: a's at the top left, b's at the top of its half; none if empty."""

    def compose_with_labels(pair: ComposedFrames) -> Planes:
        planes = [plane.copy() for plane in mode(pair)]
        width = planes[pair.space.layout.colors[0]].shape[1]
        _draw(pair, planes, labels[0], 0, width // 2)
        _draw(pair, planes, labels[1], width // 2, width)
        return planes

    return compose_with_labels


def _draw(pair: ComposedFrames, planes: Planes, text: str, left: int, right: int) -> None:
    """Draw a text in white on black into the top of the columns from left to right, as much of it as fits."""
    if not text:
        return
    layout = pair.space.layout
    height = planes[layout.colors[0]].shape[0]
    block = 1 << max(layout.log2_width, layout.log2_height)
    scale = max(height // (HEIGHT_SHARE * ROWS), 1)
    dots = text_dots(text)[:, : max((right - left) // scale - 2, 0)]
    box = numpy.kron(numpy.pad(dots, 1), numpy.ones((scale, scale), bool))
    box = numpy.pad(box, [(0, -side % block) for side in box.shape])
    left -= left % block
    for index, plane in enumerate(planes):
        if index not in layout.colors:
            continue
        is_chroma = index != layout.colors[0] and not layout.rgb
        down, across = (1 << layout.log2_height, 1 << layout.log2_width) if is_chroma else (1, 1)
        marked = box[::down, ::across]
        target = plane[: marked.shape[0], left // across :][:, : marked.shape[1]]
        marked = marked[: target.shape[0], : target.shape[1]]
        # level() of chroma is the code of no colour, whatever the share.
        target[:] = numpy.where(marked, round(pair.level(index, 1)), round(pair.level(index, 0)))


@cache
def text_dots(text: str) -> numpy.ndarray:
    """Return a text as dots, bool (7, 6 per character)."""
    rows = numpy.zeros((ROWS, (COLUMNS + 1) * len(text)), bool)
    for place, character in enumerate(text.upper()):
        for row, bits in enumerate(GLYPHS.get(character, GLYPHS["?"]).split()):
            for column in range(COLUMNS):
                rows[row, (COLUMNS + 1) * place + column] = int(bits, 16) >> (COLUMNS - 1 - column) & 1
    return rows
