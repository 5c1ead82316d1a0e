"""Make small clips and examine outputs with an independent ffmpeg: the program of imageio-ffmpeg."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import av
import imageio_ffmpeg
import numpy

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def ffmpeg(*arguments: object) -> str:
    """Run ffmpeg and return its stdout."""
    command = [FFMPEG, "-v", "error", "-y", *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make(
    path: Path,
    *,
    size: str = "64x48",
    frames: int = 10,
    rate: str = "25",
    pix_fmt: str = "yuv420p",
    codec: tuple[str, ...] = ("-c:v", "ffv1"),
    audio: tuple[str, ...] = (),
    inputs: tuple[object, ...] = (),
    extra: tuple[object, ...] = (),
) -> Path:
    """Make a clip of ffmpeg's moving test picture, which has a counter. audio: codec options; adds a tone."""
    sound: tuple[object, ...] = ()
    if audio:
        sound = ("-f", "lavfi", "-i", f"sine=440:duration={frames / float(rate):.3f}")
    width, height = (int(side) for side in size.split("x"))
    # testsrc2 draws even sizes only: draw a larger picture, and crop it before chroma is subsampled.
    drawing = f"testsrc2=size={width + width % 2}x{height + height % 2}:rate={rate}"
    drawing += f",format=gbrp,crop={width}:{height}:0:0:exact=1"
    ffmpeg(
        *("-f", "lavfi", "-i", drawing), *sound, *inputs,
        *("-frames:v", frames, "-pix_fmt", pix_fmt), *codec, *audio, *extra, path,
    )  # fmt: skip
    return path


def frame_hashes(path: Path) -> list[str]:
    """Return a digest of the samples of each frame of the first video stream."""
    text = ffmpeg("-i", path, "-map", "0:v:0", "-fps_mode", "passthrough", "-f", "framemd5", "-")
    return [line.split(",")[-1].strip() for line in text.splitlines() if line and not line.startswith("#")]


def packet_hashes(path: Path, stream: str) -> list[str]:
    """Return a digest of each packet of a stream, as stored in the file."""
    text = ffmpeg("-i", path, "-map", f"0:{stream}", "-c", "copy", "-f", "framemd5", "-")
    return [line.split(",")[5].strip() for line in text.splitlines() if line and not line.startswith("#")]


@dataclass(frozen=True)
class Facts:
    """Times, streams and format of a video file."""

    seconds: list[float]
    streams: list[tuple[str, str]]
    pix_fmt: str
    size: tuple[int, int]


def facts(path: Path) -> Facts:
    """Decode a file and describe it; a stream is its type and codec."""
    with av.open(str(path)) as container:
        streams = [(stream.type, stream.codec_context.name) for stream in container.streams]
        context = container.streams.video[0].codec_context
        seconds = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
        return Facts(seconds, streams, str(context.pix_fmt), (context.width, context.height))


def rgb(path: Path) -> numpy.ndarray:
    """Decode a file with the independent ffmpeg: uint8, (T, H, W, 3)."""
    size = facts(path).size
    command = [FFMPEG, "-v", "error", "-i", str(path), "-fps_mode", "passthrough"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    return numpy.frombuffer(data, numpy.uint8).reshape(-1, size[1], size[0], 3)


def psnr(a: numpy.ndarray, b: numpy.ndarray) -> float:
    """Compute the PSNR in dB of 8-bit frames (T, H, W, 3), averaged over frames."""
    error = ((a.astype(numpy.float64) - b) ** 2).mean((1, 2, 3))
    return float((10 * numpy.log10(255**2 / error)).mean())


def ffmpeg_rgb(path: Path) -> numpy.ndarray:
    """Decode the first frame with the independent ffmpeg, rotated as players do: uint8, (H, W, 3)."""
    command = [FFMPEG, "-v", "error", "-i", str(path), "-frames:v", "1", "-pix_fmt", "rgb24"]
    command += ["-f", "image2pipe", "-c:v", "ppm", "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    _, size, _, samples = data.split(b"\n", 3)
    width, height = map(int, size.split())
    return numpy.frombuffer(samples, numpy.uint8).reshape(height, width, 3)
