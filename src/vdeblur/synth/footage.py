"""Sharp footage as it is shown: videos, folders of pictures and photographs, upright, to 8-bit RGB."""

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
from vdeblur.run.batch import VIDEO_SUFFIXES
from vdeblur.source import deinterlace, hdr, pictures, times
from vdeblur.source.video import VideoSource, open_source

SHORT_SIDE = 540  # takes are kept at this height at most; their clips are reduced by at least 2 from here
STILLS_BYTES = 1 << 29  # of decoded photographs that are kept
LOOKS = 6  # places of a video at which its motion is measured
LOOK_WIDTH = 480  # pixels; motion is measured on pictures of about this width
ROWS = 64  # of a frame that are converted at once; what comes in between stays in a processor's cache
FAST = 0.95  # share of the positions that move less than what counts as the motion: what moves may be small

FootageSource = VideoSource | pictures.PictureSource


@dataclass(frozen=True)
class Footage:
    """A video, a folder of consecutive pictures (kind "pictures"), or a photograph (kind "still")."""

    path: Path
    kind: str

    @property
    def name(self) -> str:
        """Give the file's or folder's name, which decides whether it is for test."""
        return self.path.resolve().name

    def digest(self) -> str:
        """Give the SHA-256 of the file; of a folder of pictures, that of their names' and their own.

        Raises: InputError where it cannot be read.
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
    """Give videos and folders of consecutive pictures; a folder of videos stands for each of them.

    Raises: InputError where there are none, UsageError where a single picture is named.
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
            raise InputError(f"{path}: no sharp frames in this folder", "it should hold videos, or numbered pictures")
        found += [Footage(video, "video") for video in videos]
    return found


def find_stills(paths: Iterable[Path]) -> list[Footage]:
    """Give photographs and videos, those in folders and the folders below them too.

    Raises: InputError where there are none.
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

    Raises: InputError where that cannot be.
    """
    return open_source(footage.path, settings.Cut(), warn)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name what cannot be read, for instance because its disk is gone or broken.

    Raises: InputError.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", "check the file and its disk") from error


def warn_of_footage(footage: Footage, warn: events.Warn) -> None:
    """Say before the work what a video has that the pairs made of it will not: HDR's light, uneven times.

    Raises: InputError where it cannot be read.
    """
    source = VideoSource(footage.path, settings.Cut(), ignore)
    with reading(footage.path), contextlib.closing(source):
        coding = {hdr.PQ: "PQ", hdr.HLG: "HLG"}.get(source.info.color["transfer"])
        variable = times.read(source).variable
    if coding:
        meaning = "its codes are averaged as if they were SDR's, so pairs look pale and their blur is not that of light"
        warn("W_HDR", f"{footage.path} is HDR ({coding}): {meaning} (tone-map it to SDR first)")
    if variable:
        meaning = "its frames count as evenly spaced, so blur has gaps and motion jumps where they are not"
        warn("W_VFR", f"{footage.path} has a variable frame rate: {meaning} (use footage of a constant rate)")


def pictures_of(source: FootageSource) -> Iterator[Tensor]:
    """Give every frame in turn, progressive and upright: uint8 (3, H, W) RGB."""
    for frame in deinterlace.deinterlaced(source.frames(), "auto"):
        yield _upright(frame, source)


def _upright(frame: Frame, source: FootageSource) -> Tensor:
    if source.pictures:  # a JPEG's chroma lies otherwise than a video's
        rgb = of_frame(frame.picture)
    else:
        space = color.ColorSpace.of(frame.picture)
        rgb = _to_bytes(color.planes_of(frame, space, torch.device("cpu")), space)
    return torch.rot90(rgb, source.info.rotation // 90, (1, 2)).contiguous()


def _to_bytes(planes: list[Tensor], space: color.ColorSpace) -> Tensor:
    """Convert planes to uint8 (3, H, W) RGB in stretches of rows, which gives what all at once would."""
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
    """Average areas of uint8 (3, H, W) down to this size, and round."""
    if picture.shape[1:] == (height, width):
        return picture
    small = F.interpolate(picture[None].float(), (height, width), mode="area")[0]
    return small.round().to(torch.uint8)


def motion_of(footage: Footage) -> float:
    """Measure how far the picture moves from frame to frame, in pixels at the footage's own size.

    At up to six places of it Lucas-Kanade's flow between two neighbours is estimated; of its lengths the 95th
    percentile counts, since often only something small moves, and of the places the median.
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
    """Photographs of at least a size, uint8 (3, H, W), decoded when they are needed; those needed last are kept."""

    def __init__(self, footage: Iterable[Footage], least_side: float) -> None:
        self.footage = [still for still in footage if min(_size_of(still)) >= least_side]
        self.kept: OrderedDict[int, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self.footage)

    def __getitem__(self, index: int) -> Tensor:
        """Give one."""
        if index not in self.kept:
            self.kept[index] = read_still(self.footage[index].path)
            while len(self.kept) > 1 and sum(still.numel() for still in self.kept.values()) > STILLS_BYTES:
                self.kept.popitem(last=False)
        self.kept.move_to_end(index)
        return self.kept[index]


def _size_of(still: Footage) -> tuple[int, int]:
    try:
        with av.open(str(still.path.absolute())) as container:
            context = container.streams.video[0].codec_context
            if context.width and context.height:
                return context.width, context.height
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise InputError(f"{still.path} cannot be read as a picture: {error}", "remove or replace it") from error
    height, width = read_still(still.path).shape[1:]  # some formats tell only when they are decoded
    return width, height


def read_still(path: Path) -> Tensor:
    """Decode a photograph to uint8 (3, H, W) RGB, upright.

    By FFmpeg's own conversion, whatever its weakness with chroma: so the clips of `lite` were made, and can be again.

    Raises: InputError where it cannot be read.
    """
    picture, _ = pictures.read_picture(path)
    rgb = torch.from_numpy(picture.to_ndarray(format="rgb24")).permute(2, 0, 1)
    return torch.rot90(rgb, picture.rotation // 90, (1, 2)).contiguous()


class Take:
    """A video of which any stretch can be had, uint8 (N, 3, H, W), reduced to a height of `SHORT_SIDE` at most.

    It is read once to know its length, and then from a keyframe on for each stretch; never more of it is in memory.
    """

    def __init__(self, footage: Footage, warn: events.Warn) -> None:
        self.footage = footage
        self.source = VideoSource(footage.path, settings.Cut(), warn)
        self.times = [frame.pts for frame in self.source.frames()]
        self.source.warn = ignore  # what there is to say has been said
        scale = min(SHORT_SIDE / self.source.info.height, 1.0)
        self.width = int(self.source.info.width * scale) // 2 * 2
        self.height = int(self.source.info.height * scale) // 2 * 2
        across = (self.width, self.height) if self.source.info.rotation % 180 else (self.height, self.width)
        self.shape = torch.Size((len(self.times), 3, *across))

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, stretch: slice) -> Tensor:
        """Give some frames that follow each other."""
        first, stop, _ = stretch.indices(len(self.times))
        seek = self.times[first] * self.source.info.time_base
        for begin in (seek, None):  # a file whose index is wrong is read from its beginning
            found = self._read(begin, first, stop)
            if found is not None:
                return torch.stack(found)
        raise InputError(f"{self.footage.path} gives other frames than before", "it may have changed; begin anew")

    def _read(self, seek: Fraction | None, first: int, stop: int) -> list[Tensor] | None:
        """Read the frames from first to stop; None where these are not what comes."""
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
