"""Read a folder of numbered pictures, or one picture, as frames, each upright by its own orientation."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error

from vdeblur.errors import InputError
from vdeblur.events import Warn, ignore
from vdeblur.frame import (
    FULL,
    USUAL_CHROMA,
    Frame,
    PlaneLayout,
    convert_picture,
    is_rgb,
    layout_of,
    planar_name,
    to_planar,
)
from vdeblur.settings import Cut
from vdeblur.source.demux import ffmpeg_reason
from vdeblur.source.demuxers import SAFE_INPUT
from vdeblur.source.info import SourceInfo
from vdeblur.source.picture_header import PictureHeader, is_cut_off, read_header
from vdeblur.source.upright import display_matrix, matrix_orientation, turn_upright

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"}
CHROMA_OF_PICTURES = {"mjpeg": "center", "webp": "center", "tiff": "center"}  # JFIF; libwebp; TIFF 6.0, Sec. 21
PICTURE_RATE = Fraction(25)  # frames per second, since a folder of pictures has no rate of its own
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}  # which Windows puts into folders of pictures
NAMED = 3  # skipped files in a message


class PictureSource:
    """A folder of numbered pictures, in natural order of their names; or one picture.

    All frames have one upright size and one pixel format: the pictures' own, or if these differ, one that holds them
    all. files: the pictures of the part asked for.

    Raises: InputError where a picture is unreadable or has another upright size, before any frame is read.
    """

    pictures = True

    def __init__(self, path: Path, cut: Cut, warn: Warn = ignore) -> None:
        self.path, self.warn = path, warn
        self.is_single = not path.is_dir()
        files = [path] if self.is_single else _files_of(path, warn)
        # As in a video, a bound is the nearest time that a frame can have.
        self.first = round((cut.start or 0) * PICTURE_RATE)
        stop = len(files) if cut.stop is None else round(cut.stop * PICTURE_RATE)
        all_files, files = files, files[self.first : stop][: cut.frames]
        if not files:
            length = f"its {len(all_files)} pictures are {float(len(all_files) / PICTURE_RATE):.3f} s long"
            message = f"{path}: there is no picture in the part asked for; {length}"
            raise InputError(message, f"at {PICTURE_RATE} pictures a second; check -ss, -t and --to")
        self.files = files
        width, height, looks, color = _examine(files, warn)
        self.format = common_format(looks)
        if is_rgb(self.format):
            color |= {"matrix": 0, "range": FULL}
        self.info = SourceInfo(
            path=path,
            width=width,
            height=height,
            picture_format=self.format,
            codec=looks[0].codec,
            time_base=1 / PICTURE_RATE,
            rate=PICTURE_RATE,
            frames_estimate=len(files),
            duration_seconds=len(files) / PICTURE_RATE,
            streams=[f"{len(files)} pictures"],
            color=color,
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
            if (picture.width, picture.height) != (self.info.width, self.info.height):  # it has changed meanwhile
                raise _wrong_size(file, (picture.width, picture.height), (self.info.width, self.info.height))
            if picture.format.name != self.format:
                picture = convert_picture(picture, self.format)
            if is_cut_off(file):
                self.warn("W_INPUT_DAMAGED", f"{file} is cut off: below the place where it ends, the picture is grey")
            location = CHROMA_OF_PICTURES.get(self.info.codec, USUAL_CHROMA)
            yield Frame(picture, index, self.info.time_base, file.name, location)

    def close(self) -> None:
        """Do nothing: no file is open between pictures."""


@dataclass(frozen=True)
class Look:
    """The decoded form of pictures of one kind: codec, planar pixel format, FFmpeg's numbers of matrix and range."""

    codec: str
    format: str
    matrix: int
    range: int


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures of a folder, in natural order of their names.

    Raises: OSError.
    """
    files = [file for file in folder.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and _is_visible(file)]
    return sorted(files, key=natural_key)


def no_pictures(folder: Path) -> InputError:
    """Return the error for a folder without a picture that can be read."""
    others = sorted({file.suffix.lower() for file in folder.iterdir() if file.suffix and _is_visible(file)})
    kinds = ", ".join(sorted(PICTURE_SUFFIXES))
    if others:
        hint = f"convert them: pictures in a folder must be {kinds}"
        return InputError(f"{folder}: no pictures in this folder, and no videos, only {', '.join(others)}", hint)
    return InputError(f"{folder}: no pictures in this folder, and no videos", f"expected files ending in {kinds}")


def is_picture(path: Path) -> bool:
    """Return whether a file is one still picture, by its first bytes and its suffix.

    Raises: OSError.
    """
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        return False
    header = read_header(path)
    return header is not None and not header.animated


def _is_visible(file: Path) -> bool:
    return file.is_file() and not file.name.startswith(".") and file.name.lower() not in SYSTEM_FILES


def _files_of(folder: Path, warn: Warn) -> list[Path]:
    """Return the pictures of a folder; warn of the files beside them.

    Raises: InputError where there is no picture.
    """
    files = picture_files(folder)
    if not files:
        raise no_pictures(folder)
    skipped = sorted({file for file in folder.iterdir() if _is_visible(file)} - set(files), key=natural_key)
    if skipped:
        names = ", ".join(file.name for file in skipped[:NAMED]) + (", ..." if len(skipped) > NAMED else "")
        kinds = ", ".join(sorted(PICTURE_SUFFIXES))
        warn("W_SKIPPED", f"{folder}: {len(skipped)} other files are skipped: {names} (pictures are {kinds})")
    return files


def _examine(files: list[Path], warn: Warn) -> tuple[int, int, list[Look], dict[str, int]]:
    """Check that all pictures have one upright size; return it, the looks of all kinds, and the first one's colours.

    Only headers are read, and one picture of each kind is decoded, unless a header cannot be read. Warn of animations,
    of which only the first picture is read.

    Raises: InputError.
    """
    size = (0, 0)
    looks: dict[tuple[object, ...], Look] = {}
    color: dict[str, int] = {}
    for file in files:
        header = _header_of(file)
        if header is not None and not header.complete:
            read_picture(file)  # before the work: most such files cannot be decoded
        if header is not None and header.animated and header.kind[0] == "png":
            warn("W_SKIPPED", f"{file} is an animation; only its first picture is read")
        kind = header.kind if header is not None else (file,)
        found = header.upright_size if header is not None else (0, 0)
        if kind not in looks:
            picture, codec = read_picture(file)
            found = (picture.width, picture.height)
            name = planar_name(picture.format.name)
            if layout_of(name) is None:
                raise InputError(
                    f"{file}: pixel format {picture.format.name} is not supported", "convert it to 16-bit PNG or TIFF"
                )
            looks[kind] = Look(codec, name, int(picture.colorspace), int(picture.color_range))
            color = color or {"primaries": 2, "transfer": 2, "matrix": looks[kind].matrix, "range": looks[kind].range}
        size = size if all(size) else found
        if found != size:
            raise _wrong_size(file, found, size)
    return *size, list(looks.values()), color


def _wrong_size(file: Path, size: tuple[int, int], first: tuple[int, int]) -> InputError:
    header = _header_of(file)
    upright = " upright" if header is not None and header.orientation >= 5 else ""
    return InputError(
        f"{file} is {size[0]}x{size[1]}{upright}, the first picture {first[0]}x{first[1]}",
        "all pictures of a folder must have one size; put others into a folder of their own",
    )


def _header_of(file: Path) -> PictureHeader | None:
    """Return a picture's header.

    Raises: InputError where the file cannot be read.
    """
    try:
        return read_header(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}", "check its permissions") from error


def common_format(looks: Iterable[Look]) -> str:
    """Return the planar pixel format that holds pictures of all these looks.

    Y'CbCr of one matrix, range and depth gets the finest chroma; anything else that differs becomes RGB.
    """
    looks = list(looks)
    names = {look.format for look in looks}
    if len(names) == 1 and len({(look.matrix, look.range) for look in looks}) == 1:
        return looks[0].format
    layouts = [layout for look in looks if (layout := layout_of(look.format)) is not None]
    if all(layout.gray and not layout.alpha for layout in layouts):
        return "gray16le" if max(layout.bits for layout in layouts) > 8 else "gray"
    families = {(look.matrix, look.range, look.format[:4] == "yuvj", _bits(look), _is_ycc(look)) for look in looks}
    if len(families) == 1 and _is_ycc(looks[0]):
        finest = min(layouts, key=lambda layout: (layout.log2_width + layout.log2_height, not layout.alpha))
        if not any(_is_lost(layout, finest) for layout in layouts):
            return finest.name
        chroma = "yuvj444p" if looks[0].format.startswith("yuvj") else "yuv444p"
        if layout_of(chroma) is not None and finest.bits == 8 and not any(layout.alpha for layout in layouts):
            return chroma
    deep = "16le" if max(layout.bits for layout in layouts) > 8 else ""
    return f"gbrap{deep}" if any(layout.alpha for layout in layouts) else f"gbrp{deep}"


def _bits(look: Look) -> int:
    layout = layout_of(look.format)
    return 0 if layout is None else layout.bits


def _is_ycc(look: Look) -> bool:
    layout = layout_of(look.format)
    return layout is not None and not layout.rgb and not layout.gray


def _is_lost(layout: PlaneLayout, target: PlaneLayout) -> bool:
    """Return whether a target has coarser chroma, along any axis, or no alpha."""
    coarser = target.log2_width > layout.log2_width or target.log2_height > layout.log2_height
    return coarser or (layout.alpha and not target.alpha)


def natural_key(path: Path) -> list[tuple[int, str]]:
    """Return a sort key that orders names as people do: frame2 before frame10."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def read_picture(path: Path) -> tuple[av.VideoFrame, str]:
    """Decode a picture file, upright by its EXIF orientation; return the picture and its codec's name.

    Raises: InputError.
    """
    header = None
    try:
        header = read_header(path)
        with av.open(str(path.absolute()), options=SAFE_INPUT) as container:
            picture = next(container.decode(video=0))
            codec = container.streams.video[0].codec_context.name
    except (av.error.FFmpegError, OSError, StopIteration, IndexError) as error:
        reason = ffmpeg_reason(error)
        if header is not None and (header.animated or not header.complete):
            reason = "it is an animation" if header.complete else "it is cut off"
        raise InputError(f"{path} cannot be read as a picture: {reason}", "remove or replace it") from error
    orientation = header.orientation if header is not None else 1
    if orientation == 1 and picture.rotation:  # FFmpeg finds EXIF in places where read_header does not look
        orientation = matrix_orientation(display_matrix(picture))
    if orientation == 1 and not picture.rotation:
        return picture, codec
    planar = planar_name(picture.format.name)
    if planar != picture.format.name:
        picture = to_planar(picture, planar)
    return turn_upright(picture, orientation), codec
