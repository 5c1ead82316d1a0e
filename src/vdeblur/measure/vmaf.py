"""VMAF, Netflix's measure of how similar two videos look, by the libvmaf filter of imageio-ffmpeg's ffmpeg."""

import json
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import imageio_ffmpeg
import torch
from torch import Tensor

from vdeblur.errors import UsageError

# Each input picture has the restored frame above the sharp one; libvmaf is made for 4:2:0.
GRAPH = (
    "split[a][b];[a]crop=iw:ih/2:0:0,format=yuv420p[restored];[b]crop=iw:ih/2:0:ih/2,format=yuv420p[sharp];"
    "[restored][sharp]libvmaf=log_fmt=json:log_path=vmaf.json"
)


def check_vmaf() -> None:
    """Check that ffmpeg has the filter.

    Raises: UsageError if it has not.
    """
    executable = imageio_ffmpeg.get_ffmpeg_exe()
    filters = subprocess.run([executable, "-v", "error", "-filters"], capture_output=True, text=True, check=False)  # noqa: S603
    if " libvmaf " not in filters.stdout:
        raise UsageError(f"{executable} has no filter libvmaf", "leave out --vmaf")


class Vmaf:
    """Scores the frames of a sequence, in order: about 0 to 100, by the filter's default model (v0.6.1).

    A context that ends ffmpeg's process at exit. A score depends on motion, so also on the frames before.
    """

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="vdeblur-vmaf-")
        self.process: subprocess.Popen[bytes] | None = None

    def add(self, restored: Tensor, sharp: Tensor) -> None:
        """Add the next frame: uint8 (3, H, W) each.

        Raises: UsageError if ffmpeg fails.
        """
        both = torch.cat((restored, sharp), 1).permute(1, 2, 0).contiguous().cpu().numpy()
        if self.process is None:
            size = f"{both.shape[1]}x{both.shape[0]}"
            source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", "25", "-i", "-"]
            command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, "-lavfi", GRAPH, "-f", "null", "-"]
            self.process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=self.folder.name
            )
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(both.data)
        except OSError as error:
            raise _failure() from error

    def finish(self) -> list[float]:
        """Return the score of each frame; at least one must have been added.

        Raises: UsageError if ffmpeg fails.
        """
        assert self.process is not None
        try:
            self.process.communicate()
            log = json.loads((Path(self.folder.name) / "vmaf.json").read_text("utf-8"))
            return [float(frame["metrics"]["vmaf"]) for frame in log["frames"]]
        except (OSError, ValueError, KeyError) as error:
            raise _failure() from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        self.folder.cleanup()


def _failure() -> UsageError:
    return UsageError("ffmpeg's libvmaf cannot measure these pictures", "leave out --vmaf")
