"""Picture files to 8-bit RGB and back.

PNG decodes as everywhere. A JPEG's chroma is brought to full size by whoever decodes it, in ways that differ: papers
used libjpeg, this uses FFmpeg's scaler, bilinear, which comes nearest (a picture of strong colour waves, 4:2:0: 53 dB
to libjpeg's, 34 dB with bicubic, 21 dB as FFmpeg does by itself). So figures on JPEGs may differ by some hundredths of
a decibel from those of papers.
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


def decoder_of(path: Path) -> str:
    """Say how a picture file is decoded, for reports."""
    return JPEG_DECODER if path.suffix.lower() in (".jpg", ".jpeg") else "exact"


def read_rgb(path: Path) -> Tensor:
    """Decode a picture to uint8 (3, H, W), RGB.

    Raises: InputError where it cannot be read.
    """
    picture, _ = read_picture(path)
    return of_frame(picture)


def of_frame(frame: av.VideoFrame) -> Tensor:
    """Give uint8 (3, H, W), RGB, of a frame of any format."""
    array = frame.reformat(format="rgb24", interpolation=UPSAMPLING).to_ndarray()
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def to_frame(picture: Tensor) -> av.VideoFrame:
    """Give a frame, rgb24, of uint8 (3, H, W)."""
    return av.VideoFrame.from_ndarray(picture.permute(1, 2, 0).contiguous().cpu().numpy(), format="rgb24")


def write_png(path: Path, picture: Tensor) -> None:
    """Write uint8 (3, H, W), RGB, as PNG, and the folders around it.

    Raises: OutputError where that cannot be.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture_bytes(to_frame(picture)))
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}", "make room, or choose another folder"
        ) from error
