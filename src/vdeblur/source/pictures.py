"""Read a folder of numbered pictures as frames."""

import math
import re
import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.error
from av.sidedata.sidedata import SideData

from vdeblur.errors import InputError
from vdeblur.frame import Frame, layout_of, planar_name
from vdeblur.settings import Cut
from vdeblur.source.demux import ffmpeg_reason
from vdeblur.source.formats import SAFE_INPUT
from vdeblur.source.info import SourceInfo

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"}
PICTURE_RATE = Fraction(25)  # frames per second, since a folder of pictures has no rate of its own


class PictureSource:
    """A folder of numbered pictures, in natural order of their names."""

    pictures = True

    def __init__(self, path: Path, cut: Cut) -> None:
        self.path = path
        files = [file for file in path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file()]
        files.sort(key=natural_key)
        if not files:
            kinds = ", ".join(sorted(PICTURE_SUFFIXES))
            raise InputError(f"{path}: no pictures in this folder", f"expected files ending in {kinds}")
        self.first = math.ceil((cut.start or 0) * PICTURE_RATE)
        stop = len(files) if cut.stop is None else math.ceil(cut.stop * PICTURE_RATE)
        files = files[self.first : stop][: cut.frames]
        if not files:
            raise InputError(f"{path}: there is no picture in the part asked for", "check -ss, -t and --to")
        self.files = files
        picture, codec = read_picture(files[0])
        pixel_format = planar_name(picture.format.name)
        if layout_of(pixel_format) is None:
            raise InputError(f"{files[0]}: pixel format {picture.format.name} is not supported")
        self.info = SourceInfo(
            path=path,
            width=picture.width,
            height=picture.height,
            picture_format=pixel_format,
            codec=codec,
            time_base=1 / PICTURE_RATE,
            rate=PICTURE_RATE,
            frames_estimate=len(files),
            duration_seconds=len(files) / PICTURE_RATE,
            rotation=picture.rotation,
            display_matrix=display_matrix(picture),
            streams=[f"{len(files)} pictures"],
            color={"primaries": 2, "transfer": 2, "matrix": int(picture.colorspace), "range": int(picture.color_range)},
        )

    extras: tuple[av.stream.Stream, ...] = ()
    start_seconds = Fraction(0)
    cut_begin: Fraction | None = None
    cut_end: Fraction | None = None
    damaged = 0

    @property
    def first_seconds(self) -> Fraction:
        """The time of the first frame of the part asked for; segments count from here."""
        return self.first / PICTURE_RATE

    seekable = True
    is_pipe = False

    @property
    def wanted_seconds(self) -> Fraction:
        """The duration of the part asked for."""
        return len(self.files) / PICTURE_RATE

    def items(self) -> Iterator[Frame | av.Packet]:
        """Yield a frame per picture."""
        return self.frames()

    def frames(self, seek: Fraction | None = None) -> Iterator[Frame]:
        """Yield a frame per picture; see VideoSource.frames."""
        skipped = 0 if seek is None else max(math.floor(seek * PICTURE_RATE) - self.first, 0)
        for index, file in enumerate(self.files[skipped:], self.first + skipped):
            picture, _ = read_picture(file)
            if (picture.width, picture.height) != (self.info.width, self.info.height):
                raise InputError(
                    f"{file} is {picture.width}x{picture.height}, the first picture {self.info.width}x"
                    f"{self.info.height}",
                    "all pictures of a folder must have one size",
                )
            if planar_name(picture.format.name) != self.info.picture_format:
                raise InputError(
                    f"{file} has the pixel format {picture.format.name}, the first picture another one",
                    "all pictures of a folder must have one format; convert them to PNG of one kind",
                )
            if picture.format.name != self.info.picture_format:
                picture = to_planar(picture, self.info.picture_format)
            yield Frame(picture, index, self.info.time_base, file.name)

    def close(self) -> None:
        """Do nothing: no file is open between pictures."""


def natural_key(path: Path) -> list[tuple[int, str]]:
    """Return a sort key that orders names as people do: frame2 before frame10."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def read_picture(path: Path) -> tuple[av.VideoFrame, str]:
    """Decode a picture file; return the picture and its codec's name.

    Raises: InputError.
    """
    try:
        with av.open(str(path.absolute()), options=SAFE_INPUT) as container:
            picture = next(container.decode(video=0))
            return picture, container.streams.video[0].codec_context.name
    except (av.error.FFmpegError, OSError, StopIteration, IndexError) as error:
        raise InputError(
            f"{path} cannot be read as a picture: {ffmpeg_reason(error)}", "remove or replace it"
        ) from error


def to_planar(picture: av.VideoFrame, name: str) -> av.VideoFrame:
    """Convert to a planar format of the same samples; colour tags stay."""
    planar = picture.reformat(format=name)
    planar.colorspace, planar.color_range = picture.colorspace, picture.color_range
    planar.color_primaries, planar.color_trc = picture.color_primaries, picture.color_trc
    return planar


def display_matrix(picture: av.VideoFrame) -> tuple[int, ...]:
    """Return a picture's display matrix, nine integers; empty where it has none."""
    for data in cast(Iterable[SideData], picture.side_data):
        if data.type.name == "DISPLAYMATRIX":
            return struct.unpack("=9i", bytes(data))
    return ()
