"""Properties of a video stream that PyAV does not show; the ffmpeg program lists them.

Reading them takes it some 20 ms. Of a pipe nothing is known.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg

from vdeblur.frame import CHROMA_LOCATIONS

LIMIT_SECONDS = 60  # for ffmpeg to open a file
CROPPING = re.compile(r"^ +Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)", re.MULTILINE)
STEREO = re.compile(r"^ +Stereo ?3D: (?!2D)([^,\n]+)", re.MULTILINE | re.IGNORECASE)
SPHERICAL = re.compile(r"^ +Spherical(?: Mapping)?: (\w[^\n(]*)", re.MULTILINE | re.IGNORECASE)
DOLBY_VISION = re.compile(r"^ +DOVI configuration record: .*profile: (\d+).*compatibility id: (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class StreamProperties:
    """Properties of a video stream.

    chroma_location: a key of frame.CHROMA_LOCATIONS, or empty. cropping: columns at the left and right, lines at the
    top and bottom that players hide. stereo, spherical: how the pictures hold two views or a sphere, in FFmpeg's words,
    or empty. dolby_vision: profile, and compatibility of its base layer (0: none).
    """

    chroma_location: str = ""
    cropping: tuple[int, int, int, int] = (0, 0, 0, 0)
    stereo: str = ""
    spherical: str = ""
    dolby_vision: tuple[int, int] | None = None


NOTHING = StreamProperties()


def read_properties(path: Path, format_name: str, index: int) -> StreamProperties:
    """Return the properties of a file's stream.

    format_name: FFmpeg's name of the demuxer, which opens no other kind of file. index: the stream's.
    """
    options = ["-nostdin", "-hide_banner", "-v", "verbose", "-protocol_whitelist", "file"]
    name = format_name.split(",", maxsplit=1)[0]
    try:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), *options, "-f", name, "-i", f"file:{path.absolute()}"]
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, errors="replace", check=False, timeout=LIMIT_SECONDS
        )
    except (OSError, RuntimeError, subprocess.TimeoutExpired):  # RuntimeError: there is no ffmpeg program
        return NOTHING
    return parse_properties(done.stderr, index)


def parse_properties(text: str, index: int) -> StreamProperties:
    """Return the properties of a stream from what the ffmpeg program prints about its input."""
    found = re.search(rf"^ +Stream #0:{index}\b.*?(?=^ +Stream #|\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        return NOTHING
    line, _, rest = found[0].partition("\n")
    words = [word.strip() for word in re.split(r"[(),]", line)]
    location = next((word for word in words if word in CHROMA_LOCATIONS), "")
    cropping, dolby = CROPPING.search(rest), DOLBY_VISION.search(rest)
    stereo, spherical = STEREO.search(rest), SPHERICAL.search(rest)
    left, right, top, bottom = (int(number) for number in cropping.groups()) if cropping else (0, 0, 0, 0)
    return StreamProperties(
        location,
        (left, right, top, bottom),
        stereo[1].strip() if stereo else "",
        spherical[1].strip() if spherical else "",
        (int(dolby[1]), int(dolby[2])) if dolby else None,
    )
