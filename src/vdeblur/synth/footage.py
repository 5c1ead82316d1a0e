"""Sharp footage: videos, folders of pictures and photographs, decoded upright to 8-bit RGB."""

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from statistics import median

import av
import av.error
import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur import events, settings
from vdeblur.datasets.pictures import of_frame
from vdeblur.errors import InputError, UsageError
from vdeblur.events import ignore
from vdeblur.frame import Frame
from vdeblur.networks import lucas_kanade
from vdeblur.restore import color
from vdeblur.run.jobs import VIDEO_SUFFIXES
from vdeblur.source import deinterlace, hdr, pictures, times
from vdeblur.source.demuxers import SAFE_INPUT
from vdeblur.source.video import VideoSource, open_source

SHORT_SIDE = 540  # greatest height of takes; their clips are reduced by at least 2 from here
STILLS_BYTES = 1 << 29  # most memory for decoded photographs
LOOKS = 6  # positions in a video at which its motion is measured
LOOK_WIDTH = 480  # pixels; motion is measured on pictures of about this width
ROWS = 64  # of a frame, converted at once; intermediate values stay in a processor's cache
FAST = 0.95  # percentile of the motion that counts: moving objects may be small

FootageSource = VideoSource | pictures.PictureSource


@dataclass(frozen=True)
class Footage:
    """A video, a folder of consecutive pictures (kind "pictures"), or a photograph (kind "still")."""

    path: Path
    kind: str

    @property
    def name(self) -> str:
        """The file's or folder's name, which decides its split."""
        return self.path.resolve().name

    def digest(self) -> str:
        """Return the SHA-256 of the file; for a folder, that of its pictures' names and SHA-256.

        Raises: InputError for an unreadable file or folder.
        """
        try:
            if self.kind != "pictures":
                with self.path.open("rb") as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
            lines = hashlib.sha256()
            for picture in sorted(p for p in self.path.iterdir() if p.suffix.lower() in pictures.PICTURE_SUFFIXES):
                lines.update(f"{hashlib.sha256(picture.read_bytes()).hexdigest()} {picture.name}\n".encode())
            return lines.hexdigest()
        except FileNotFoundError as error:
            raise InputError(f"{self.path}: no such file or folder", "check the path") from error
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}", "check its permissions") from error


def find_sequences(paths: Iterable[Path]) -> list[Footage]:
    """Return videos and folders of consecutive pictures; a folder of videos stands for all of them.

    Raises: InputError for a folder without either; UsageError for a single picture.
    """
    found = []
    for path in paths:
        if not path.is_dir():
            if path.suffix.lower() in pictures.PICTURE_SUFFIXES:
                raise UsageError(f"{path} is one picture, which has no motion", "use --way camera, or name a folder")
            found.append(Footage(path, "video"))
            continue
        videos = _inside(path, VIDEO_SUFFIXES, deep=False)
        if _inside(path, pictures.PICTURE_SUFFIXES, deep=False):
            found.append(Footage(path, "pictures"))
        elif not videos:
            raise InputError(f"{path}: no sharp frames in this folder", "name one with videos or numbered pictures")
        found += [Footage(video, "video") for video in videos]
    return found


def find_stills(paths: Iterable[Path]) -> list[Footage]:
    """Return photographs and videos, those in folders and their subfolders too.

    Raises: InputError for a folder without any.
    """
    found = []
    for path in paths:
        if path.is_dir():
            stills = _inside(path, pictures.PICTURE_SUFFIXES, deep=True)
            videos = _inside(path, VIDEO_SUFFIXES, deep=True)
            if not stills and not videos:
                raise InputError(f"{path}: no photographs in this folder, and no videos", "check the path")
            found += [Footage(file, "still") for file in stills] + [Footage(file, "video") for file in videos]
        else:
            kind = "still" if path.suffix.lower() in pictures.PICTURE_SUFFIXES else "video"
            found.append(Footage(path, kind))
    return found


def _inside(folder: Path, suffixes: set[str], *, deep: bool) -> list[Path]:
    try:
        entries = folder.rglob("*") if deep else folder.iterdir()
        files = [e for e in entries if e.suffix.lower() in suffixes and e.is_file() and not e.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}", "check its permissions") from error
    return sorted(files) if deep else sorted(files, key=pictures.natural_key)


def open_footage(footage: Footage, warn: events.Warn) -> FootageSource:
    """Open a video or a folder of consecutive pictures.

    Raises: InputError for unreadable footage.
    """
    return open_source(footage.path, settings.Cut(), warn)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Translate an OSError while a file is read, for instance from a broken disk.

    Raises: InputError with the path.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", "check the file and its disk") from error


def warn_of_footage(footage: Footage, warn: events.Warn) -> None:
    """Warn of what a video's pairs will not reproduce: the light of HDR, uneven times.

    Raises: InputError for an unreadable video.
    """
    source = VideoSource(footage.path, settings.Cut(), ignore)
    with reading(footage.path), contextlib.closing(source):
        coding = {hdr.PQ: "PQ", hdr.HLG: "HLG"}.get(source.info.color["transfer"])
        variable = times.read(source).variable
    if coding:
        meaning = "its values are averaged as if they were SDR, so pairs look pale and their blur is not physical"
        warn("W_HDR", f"{footage.path} is HDR ({coding}): {meaning} (tone-map it to SDR first)")
    if variable:
        meaning = "its frames are treated as evenly spaced, so blur has gaps and motion jumps where they are not"
        warn("W_VFR", f"{footage.path} has a variable frame rate: {meaning} (use footage of a constant rate)")


def pictures_of(source: FootageSource) -> Iterator[Tensor]:
    """Yield every frame, progressive and upright: uint8 (3, H, W) RGB."""
    for frame in deinterlace.deinterlaced(source.frames(), "auto"):
        yield _upright(frame, source)


def _upright(frame: Frame, source: FootageSource) -> Tensor:
    if source.pictures:  # a JPEG's chroma is sited differently from a video's
        rgb = of_frame(frame.picture)
    else:
        space = color.ColorSpace.of(frame.picture, frame.chroma_location)
        rgb = _to_bytes(color.planes_of(frame, space, torch.device("cpu")), space)
    return torch.rot90(rgb, source.info.rotation // 90, (1, 2)).contiguous()


def _to_bytes(planes: list[Tensor], space: color.ColorSpace) -> Tensor:
    """Convert planes to uint8 (3, H, W) RGB in stretches of rows; equal to a conversion of all rows at once."""
    height, width = planes[0].shape
    rgb = torch.empty((3, height, width), dtype=torch.uint8)
    log2 = space.layout.log2_height
    beside = 2 << log2  # chroma is interpolated between rows
    for top in range(0, height, ROWS):
        first, last = max(top - beside, 0), min(top + ROWS + beside, height)
        stretch = [planes[0][first:last], *(plane[first >> log2 : -(-last >> log2)] for plane in planes[1:])]
        light = color.to_rgb(stretch, space)[:, top - first :][:, :ROWS]
        rgb[:, top : top + ROWS] = (light * 255).round_()
    return rgb


def reduced(picture: Tensor, width: int, height: int) -> Tensor:
    """Reduce uint8 (3, H, W) to this size by averaging areas, and round."""
    if picture.shape[1:] == (height, width):
        return picture
    small = F.interpolate(picture[None].float(), (height, width), mode="area")[0]
    return small.round().to(torch.uint8)


def motion_of(footage: Footage) -> float:
    """Return how far the picture moves from frame to frame, in pixels at the footage's own size.

    The median over up to six positions of the 95th percentile of Lucas-Kanade's flow between two neighbours; a high
    percentile, since often only something small moves.
    """
    source = open_footage(footage, ignore)
    seen: dict[int, float] = {}
    try:
        begin, length = source.start_seconds, source.info.duration_seconds or Fraction(0)
        for index in range(LOOKS):
            couple = list(islice(source.frames(begin + length * index / LOOKS), 2))
            if len(couple) == 2 and couple[0].pts not in seen:
                seen[couple[0].pts] = _distance(*(_upright(frame, source) for frame in couple))
    finally:
        source.close()
    return median(seen.values()) if seen else 0.0


def _distance(a: Tensor, b: Tensor) -> float:
    factor = max(round(a.shape[2] / LOOK_WIDTH), 1)
    small = [F.avg_pool2d(p.float().mean(0)[None, None] / 255, factor, ceil_mode=True) for p in (a, b)]
    if min(small[0].shape[2:]) < lucas_kanade.SMALLEST:
        return 0.0
    return float(lucas_kanade.flow(*small).norm(dim=1).flatten().quantile(FAST)) * factor


class Stills:
    """Photographs of at least a size, uint8 (3, H, W), decoded on demand; a cache keeps those used last."""

    def __init__(self, footage: Iterable[Footage], least_side: float) -> None:
        self.footage = [still for still in footage if min(_size_of(still)) >= least_side]
        self.kept: OrderedDict[int, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self.footage)

    def __getitem__(self, index: int) -> Tensor:
        """Return a photograph."""
        if index not in self.kept:
            self.kept[index] = read_still(self.footage[index].path)
            while len(self.kept) > 1 and sum(still.numel() for still in self.kept.values()) > STILLS_BYTES:
                self.kept.popitem(last=False)
        self.kept.move_to_end(index)
        return self.kept[index]


def _size_of(still: Footage) -> tuple[int, int]:
    try:
        with av.open(str(still.path.absolute()), options=SAFE_INPUT) as container:
            context = container.streams.video[0].codec_context
            if context.width and context.height:
                return context.width, context.height
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise InputError(f"{still.path} cannot be read as a picture: {error}", "remove or replace it") from error
    height, width = read_still(still.path).shape[1:]  # some formats have no size until they are decoded
    return width, height


def read_still(path: Path) -> Tensor:
    """Decode a photograph to uint8 (3, H, W) RGB, upright.

    By FFmpeg's own conversion, despite its weakness with chroma, since the clips for `lite` were made with it.

    Raises: InputError for an unreadable file.
    """
    picture, _ = pictures.read_picture(path)
    rgb = torch.from_numpy(picture.to_ndarray(format="rgb24")).permute(2, 0, 1)
    return torch.rot90(rgb, picture.rotation // 90, (1, 2)).contiguous()


class Take:
    """A video of which any slice can be read, uint8 (N, 3, H, W), reduced to a height of `SHORT_SIDE` at most.

    It is read once for its length, and then from a keyframe on for each slice; only a slice is in memory.
    """

    def __init__(self, footage: Footage, warn: events.Warn) -> None:
        self.footage = footage
        self.source = VideoSource(footage.path, settings.Cut(), warn)
        self.times = [frame.pts for frame in self.source.frames()]
        self.source.warn = ignore  # every warning has been sent
        scale = min(SHORT_SIDE / self.source.info.height, 1.0)
        self.width = int(self.source.info.width * scale) // 2 * 2
        self.height = int(self.source.info.height * scale) // 2 * 2
        across = (self.width, self.height) if self.source.info.rotation % 180 else (self.height, self.width)
        self.shape = torch.Size((len(self.times), 3, *across))

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, stretch: slice) -> Tensor:
        """Return consecutive frames."""
        first, stop, _ = stretch.indices(len(self.times))
        seek = self.times[first] * self.source.info.time_base
        for begin in (seek, None):  # a file whose index is wrong is read from its beginning
            found = self._read(begin, first, stop)
            if found is not None:
                return torch.stack(found)
        raise InputError(f"{self.footage.path} has other frames than before", "it may have changed; start again")

    def _read(self, seek: Fraction | None, first: int, stop: int) -> list[Tensor] | None:
        """Read the frames from first to stop; None where other frames arrive."""
        wanted = self.times[first:stop]
        found: list[Tensor] = []
        for frame in self.source.frames(seek):
            if frame.pts == wanted[len(found)]:
                found.append(self._small(frame))
            elif found:
                break
            if len(found) == len(wanted):
                return found
        return None

    def _small(self, frame: Frame) -> Tensor:
        small = frame.picture.reformat(self.width, self.height, "rgb24", interpolation="AREA")
        rgb = torch.from_numpy(small.to_ndarray()).permute(2, 0, 1)
        return torch.rot90(rgb, self.source.info.rotation // 90, (1, 2))
