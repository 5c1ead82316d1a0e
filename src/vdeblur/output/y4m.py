"""Write YUV4MPEG2 with the shape of pixels in its header, which PyAV cannot pass on to FFmpeg's muxer."""

import os
import re
from fractions import Fraction
from typing import BinaryIO

STDOUT = "pipe:1"
UNKNOWN_SHAPE = re.compile(rb" A\d+:\d+")  # in the first line of a file, which begins with YUV4MPEG2


class Y4mFile:
    """A file or standard output with `write` alone, which corrects the header that is written first."""

    def __init__(self, target: str, aspect: Fraction) -> None:
        """Open the target. aspect: width of a pixel by its height.

        Raises: OSError.
        """
        self.file: BinaryIO = os.fdopen(os.dup(1), "wb") if target == STDOUT else open(target, "wb")  # noqa: SIM115
        self.shape = b" A%d:%d" % (aspect.numerator, aspect.denominator)
        self.has_header = False

    def write(self, data: bytes) -> int:
        """Write everything; return the length of `data`."""
        corrected = bytes(data)
        if not self.has_header:
            header, end, rest = corrected.partition(b"\n")
            corrected, self.has_header = UNKNOWN_SHAPE.sub(self.shape, header, count=1) + end + rest, True
        self.file.write(corrected)
        self.file.flush()
        return len(data)

    def close(self) -> None:
        """Close the file."""
        self.file.close()
