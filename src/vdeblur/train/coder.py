"""Video compression as a camera applies it: frames through x264 and back."""

from collections.abc import Sequence
from fractions import Fraction

import av
import numpy
from torch.backends.cpu import get_cpu_capability


class Coder:
    """Encodes pictures, uint8 (height, width, 3), with x264 and decodes them again, with some delay."""

    def __init__(self, width: int, height: int, crf: int) -> None:
        """Open encoder and decoder; width and height are even."""
        self.encoder = av.CodecContext.create("libx264", "w")
        self.encoder.width, self.encoder.height, self.encoder.pix_fmt = width, height, "yuv420p"
        self.encoder.time_base = Fraction(1, 25)
        options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
        if (
            get_cpu_capability() == "AVX512"
        ):  # its code encodes the same frames to different bytes now and then, see codecs.py
            options["x264-params"] = "asm=avx2"
        self.encoder.options = options
        self.decoder = av.CodecContext.create("h264", "r")
        self.decoder.thread_count = 1
        self.count = 0

    def push(self, picture: numpy.ndarray) -> list[numpy.ndarray]:
        """Encode the next picture; return those that are decoded."""
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts = self.count
        self.count += 1
        return self._decoded(self.encoder.encode(frame))

    def end(self) -> list[numpy.ndarray]:
        """Return the remaining pictures."""
        return self._decoded([*self.encoder.encode(None), None])

    def _decoded(self, packets: Sequence[av.Packet | None]) -> list[numpy.ndarray]:
        pictures = [frame for packet in packets for frame in self.decoder.decode(packet)]
        return [frame.to_ndarray(format="rgb24") for frame in pictures]
