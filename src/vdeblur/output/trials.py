"""Try encoders and containers before the work, and put FFmpeg's reason into words where one refuses."""

import contextlib
import errno
import functools
import io
import os
import re
import subprocess
from collections.abc import Iterator
from fractions import Fraction

import av
import av.error
import imageio_ffmpeg

REFUSALS = (ValueError, av.error.FFmpegError, OSError)
TRIAL_SIZE = 256  # width and height: allowed by every encoder that has no fixed sizes
RATE = 25
# x265 writes to the terminal otherwise; libvpx codes no transparency with auto-alt-ref.
OPTIONS = {
    "libx265": {"x265-params": "log-level=error"},
    "libvpx": {"auto-alt-ref": "0"},
    "libvpx-vp9": {"auto-alt-ref": "0"},
}
# SVT-AV1 fills the terminal otherwise; 1 is for errors alone. It reads this once, when the first encoder is opened.
os.environ.setdefault("SVT_LOG", "1")


@functools.cache
def takes_format(encoder: str, pixel_format: str, *, external: bool = False) -> bool:
    """Return whether an encoder opens in a pixel format; some list formats that they refuse without -strict."""
    if external:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i"]
        command += [f"color=s={TRIAL_SIZE}x{TRIAL_SIZE}:r={RATE}", "-frames:v", "1", "-c:v", encoder]
        command += ["-pix_fmt", pixel_format, "-f", "null", "-"]
        return not subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False).returncode  # noqa: S603
    try:
        context = av.CodecContext.create(encoder, "w")
        assert isinstance(context, av.VideoCodecContext)
        context.width = context.height = TRIAL_SIZE
        context.pix_fmt, context.time_base, context.framerate = pixel_format, Fraction(1, RATE), Fraction(RATE)
        context.options = dict(OPTIONS.get(encoder, {}))
        context.open()
    except REFUSALS:
        return False
    return True


@functools.cache
def holds_video(container_name: str, encoder: str, pixel_format: str) -> bool:
    """Return whether a container takes an encoder's video.

    container_name: FFmpeg's name. pixel_format: one that the encoder takes.
    """
    try:
        with trial(container_name) as file:
            stream = file.add_stream(encoder, rate=RATE, options=dict(OPTIONS.get(encoder, {})))
            assert isinstance(stream, av.VideoStream)
            context = stream.codec_context
            context.width = context.height = TRIAL_SIZE
            context.pix_fmt, context.time_base = pixel_format, Fraction(1, RATE)
            file.start_encoding()
    except REFUSALS:
        return False
    return True


@contextlib.contextmanager
def trial(container_name: str) -> Iterator[av.container.OutputContainer]:
    """Open a container in memory; what its end without packets raises (MXF's does) is not an error."""
    file = av.open(io.BytesIO(), "w", format=container_name)
    try:
        yield file
    finally:
        with contextlib.suppress(*REFUSALS):
            file.close()


def refusal_words(error: Exception) -> str:
    """Return why FFmpeg refused, without its function names, numbers and option lists."""
    if not isinstance(error, av.error.FFmpegError):
        return str(error)
    words = error.strerror or ""
    if error.errno == errno.EINVAL or not words or "nknown error" in words:
        return "its settings or its pixel format do not fit"
    return re.sub(r"^[A-Z]", lambda found: found[0].lower(), words)
