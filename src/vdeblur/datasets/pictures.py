"""Picture files to 8-bit RGB and back.

PNG decodes the same everywhere. JPEG decoders differ in how they upsample chroma. The papers used libjpeg; this uses
FFmpeg's bilinear scaler, which comes nearest (a picture of strong colour waves, 4:2:0: 53 dB to libjpeg's, 34 dB with
bicubic, 21 dB with FFmpeg's default). So scores on JPEGs may differ by some hundredths of a decibel from the papers'.
"""

from pathlib import Path

import av
import torch
from av.video.reformatter import Interpolation
from torch import Tensor

from vdeblur.errors import OutputError
from vdeblur.output.pictures import picture_bytes
from vdeblur.source.pictures import read_picture

UPSAMPLING = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
JPEG_DECODER = "FFmpeg's, chroma bilinear (papers: libjpeg)"


def picture_decoder(path: Path) -> str:
    """Return how a picture file is decoded, for reports."""
    return JPEG_DECODER if path.suffix.lower() in (".jpg", ".jpeg") else "exact"


def read_rgb(path: Path) -> Tensor:
    """Decode a picture to uint8 (3, H, W), RGB.

    Raises: InputError if it cannot be read.
    """
    picture, _ = read_picture(path)
    return of_frame(picture)


def of_frame(frame: av.VideoFrame) -> Tensor:
    """Convert a frame of any format to uint8 (3, H, W), RGB."""
    array = frame.reformat(format="rgb24", interpolation=UPSAMPLING).to_ndarray()
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def to_frame(picture: Tensor) -> av.VideoFrame:
    """Convert uint8 (3, H, W) to a frame, rgb24."""
    return av.VideoFrame.from_ndarray(picture.permute(1, 2, 0).contiguous().cpu().numpy(), format="rgb24")


def write_png(path: Path, picture: Tensor) -> None:
    """Write uint8 (3, H, W), RGB, as PNG; create missing folders.

    Raises: OutputError if the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture_bytes(to_frame(picture)))
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}", "make room, or choose another folder"
        ) from error
