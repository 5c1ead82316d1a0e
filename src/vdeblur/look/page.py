"""Self-contained pages: one HTML file with its style, script and pictures, which loads nothing from a network.

`page_html` wraps a body; `slider_html` returns a part of a body, two pictures with a divider that pointer and keyboard
move; `picture_uri` embeds a picture.
"""

import base64
import json
from fractions import Fraction
from html import escape
from importlib import resources
from typing import Any

import av
import numpy

# Forbids the browser to load anything, even if a text on the page tries to.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
NAMES = ("blurry", "restored", "sharp")


def page_html(title: str, body: str, data: Any = None) -> str:
    """Return a complete page.

    body: HTML. data: what the page shows, embedded as JSON under the id `data`.
    """
    style, script = (
        resources.files("vdeblur.look").joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js")
    )
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")  # so that no text ends the element
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
{body}
<script type="application/json" id="data">{text}</script>
<script>
{script}</script>
</body>
</html>
"""


def slider_html(
    before: str, after: str, truth: str | None = None, caption: str = "", names: tuple[str, str, str] = NAMES
) -> str:
    """Return a figure with a divider between two pictures; with a truth, buttons choose two of the three.

    before, after, truth: URIs of pictures of the same size, see picture_uri. caption: text below. names: of the
    pictures.
    """
    uris = [before, after] if truth is None else [before, after, truth]
    sides = ["left", "right", ""]
    pictures = "".join(
        f'<img src="{uri}" alt="{escape(name)}: {escape(caption)}" data-name="{escape(name)}"'
        + (f' data-side="{side}">' if side else ">")
        for uri, name, side in zip(uris, names, sides, strict=False)
    )
    return (
        '<figure class="slider"><div class="stage">'
        f"{pictures}"
        '<span class="divide"></span>'
        f'<span class="side left">{escape(names[0])}</span><span class="side right">{escape(names[1])}</span>'
        f'<input type="range" min="0" max="100" value="50" '
        f'aria-label="Divider between the pictures: {escape(caption)}">'
        f"</div>{'' if truth is None else _choice(names)}<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _choice(names: tuple[str, str, str]) -> str:
    """Return buttons to choose two of three pictures."""
    options = "".join(
        f'<label><input type="radio" name="pictures" value="{left} {right}"{" checked" * (left + right == 1)}> '
        f"{escape(names[left])} | {escape(names[right])}</label>"
        for left, right in ((0, 1), (1, 2), (0, 2))
    )
    # Radio buttons of one name belong together within their form.
    return f'<form><fieldset class="choice"><legend>Pictures</legend>{options}</fieldset></form>'


def picture_uri(picture: numpy.ndarray) -> str:
    """Return a URI that embeds a picture, uint8 (H, W, 3) RGB, losslessly as PNG."""
    return f"data:image/png;base64,{base64.b64encode(png_bytes(picture)).decode('ascii')}"


def png_bytes(picture: numpy.ndarray) -> bytes:
    """Return a picture, uint8 (H, W, 3) RGB, as the content of a PNG file."""
    encoder = av.CodecContext.create("png", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.height, encoder.width, encoder.pix_fmt = picture.shape[0], picture.shape[1], "rgb24"
    encoder.time_base = Fraction(1, 25)
    encoder.options = {"pred": "mixed"}
    frame = av.VideoFrame.from_ndarray(numpy.ascontiguousarray(picture), format="rgb24")
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
