"""The clip that `vdeblur bench --speed` measures on."""

import math
from pathlib import Path

import av
import torch
from torch.nn import functional as F

REACH = 64  # pixels that the pan covers


def make_clip(path: Path, width: int, height: int, frames: int) -> Path:
    """Write a clip like filmed footage: H.264, 4:2:0, 25 frames per second, the same pictures every time.

    The camera pans along a curve across a texture that has detail of all sizes, as nature has. Each frame is blurred by
    the motion of a frame interval and has its own grain.
    """
    generator = torch.Generator().manual_seed(0)
    texture = torch.full((1, 3, height + REACH, width + REACH), 0.5)
    size = 4
    while size < 2 * max(height, width):
        octave = torch.rand(1, 3, min(size, height + REACH), min(size, width + REACH), generator=generator) - 0.5
        octave = 0.5 * octave + octave.mean(1, keepdim=True)  # more light and shade than colour
        texture += 0.35 * 0.75 ** math.log2(size) * F.interpolate(octave, texture.shape[2:], mode="bicubic")
        size *= 2
    codes = texture[0].clamp(0, 1) * 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "18", "preset": "veryfast"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            places = [_pan(index + part / 4) for part in range(4)]
            blurred = torch.stack([codes[:, y : y + height, x : x + width] for y, x in places]).mean(0)
            grain = 2 * torch.randn(height, width, generator=generator)
            picture = (blurred + grain).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _pan(moment: float) -> tuple[int, int]:
    """Return top and left of the camera's view; it moves about four pixels per frame. moment: in frames."""
    y, x = (round((1 + math.sin(moment * speed)) / 2 * REACH) for speed in (0.09, 0.14))
    return y, x
