"""The public way to read a video: frames as RGB tensors with their times."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from vdeblur.errors import UsageError
from vdeblur.events import Notify, ignore
from vdeblur.frame import Frame
from vdeblur.restore import color
from vdeblur.settings import Cut
from vdeblur.source.deinterlace import deinterlaced
from vdeblur.source.demux import PIPE
from vdeblur.source.video import open_source


@dataclass(frozen=True)
class TimedFrame:
    """A frame of a video.

    seconds: when it is shown, on the file's own clock, on which a first frame is not always at 0. duration: seconds
    until the next frame; of the last one, by the video's frame rate. name: the file's, in a folder of pictures.
    """

    seconds: float
    duration: float
    name: str
    _frame: Frame = field(repr=False)

    def rgb(self) -> Tensor:
        """Return the picture as `vdeblur run` shows it to a network.

        (3, H, W), float32, R'G'B' in [0, 1], full range, by the frame's own matrix and range. A picture with a rotation
        tag is not turned; see OpenedVideo.rotation.
        """
        space = color.ColorSpace.of(self._frame.picture, self._frame.chroma_location)
        rgb = color.to_rgb(color.planes_of(self._frame, space, torch.device("cpu")), space)
        return rgb.contiguous()


class OpenedVideo:
    """An open video file or folder of pictures: an iterator of its frames, closed by `with` or `close`.

    width, height: pixels of a frame. rate: frames per second, the average where the rate varies. frames: their number
    as far as the file says, or None. duration: seconds of the part that is read, or None if unknown. rotation: degrees
    by which players turn the picture counterclockwise; torch.rot90(frame.rgb(), video.rotation // 90, (1, 2)) does it.
    """

    def __init__(self, path: Path, cut: Cut, notify: Notify = ignore) -> None:
        def warn(code: str, message: str) -> None:
            notify("warning", {"code": code, "message": message, "input": str(path)})

        self._source = open_source(path, cut, warn)
        self._close: Callable[[], None] | None = self._source.close
        info, seconds = self._source.info, self._source.wanted_seconds
        self.path, self.width, self.height, self.rotation = path, info.width, info.height, info.rotation
        self.rate, self.frames = float(info.rate), info.frames_estimate
        self.duration = None if seconds is None else float(seconds)
        self._frames = self._read()

    def _read(self) -> Iterator[TimedFrame]:
        """Yield each frame as soon as the time of the next one is known."""
        waiting: Frame | None = None
        for frame in deinterlaced(self._source.frames(), "auto"):
            if waiting is not None:
                yield self._timed(waiting, frame.seconds - waiting.seconds)
            waiting = frame
        if waiting is not None:
            yield self._timed(waiting, 1 / self._source.info.rate)

    def _timed(self, frame: Frame, duration: Fraction) -> TimedFrame:
        return TimedFrame(float(frame.seconds), float(duration), frame.name, frame)

    def __iter__(self) -> Iterator[TimedFrame]:
        return self

    def __next__(self) -> TimedFrame:
        if self._close is None:
            raise UsageError(f"{self.path} is closed", "read its frames inside the with block")
        return next(self._frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; frames that were read stay valid."""
        if self._close is not None:
            self._close()
            self._close = None

    def __del__(self) -> None:
        with suppress(Exception):  # where opening failed, there is nothing to close
            self.close()


def open_video(
    path: str | os.PathLike[str],
    *,
    start: float | Fraction | None = None,
    stop: float | Fraction | None = None,
    frames: int | None = None,
    notify: Notify = ignore,
) -> OpenedVideo:
    """Open a video file or a folder of numbered pictures to read its frames, in order, once.

        with vdeblur.open("in.mp4", start=1.5, frames=50) as video:
            for frame in video:
                print(frame.seconds, frame.rgb().shape)

    start, stop: seconds from the first frame on. frames: how many at most. Interlaced frames are deinterlaced, as
    `vdeblur run` does. notify: takes the event warning.

    Raises: InputError if it cannot be read or the part holds no frame, also while reading; UsageError for a pipe or a
    wrong value.
    """
    if Path(path) == PIPE:
        raise UsageError("vdeblur.open does not read pipes", "save the video to a file first")
    return OpenedVideo(Path(path), Cut(start, stop, frames), notify)  # type: ignore[arg-type]  # which it makes exact
