"""Recognise Dolby Vision whose base layer is no picture that other players show."""

import struct
from pathlib import Path

import av

from vdeblur.errors import InputError
from vdeblur.source.properties import StreamProperties
from vdeblur.source.side_data import side_data_of

IPT_C2 = 15  # AVCOL_SPC_IPT_C2, Dolby's colour space
WITHOUT_BASE = {5, 10, 20}  # profiles (HEVC, AV1, MV-HEVC) whose compatibility 0 means a base layer in IPT-C2
HEADER = struct.Struct("@BHBBBBBBB")  # AVDOVIRpuDataHeader: type, format, profile, level, ..., full range


def refuse_dolby_vision(path: Path, picture: av.VideoFrame, properties: StreamProperties) -> None:
    """Refuse a video whose samples need Dolby Vision's metadata to become colours, such as profile 5.

    Raises: InputError.
    """
    profile, compatibility = properties.dolby_vision or (0, 0)
    if int(picture.colorspace) == IPT_C2 or (profile in WITHOUT_BASE and not compatibility) or _is_profile_5(picture):
        raise InputError(
            f"{path} is Dolby Vision profile {profile or 5}: its samples are no colours without a Dolby Vision player",
            "convert it to HDR10 or SDR first: ffmpeg with -vf libplacebo, or get another version of it",
        )


def _is_profile_5(picture: av.VideoFrame) -> bool:
    """Return whether a frame's metadata is of profile 5, as FFmpeg guesses it where the container does not say."""
    for data in side_data_of(picture).get("DOVI_METADATA", ()):
        (offset,) = struct.unpack_from("@N", data)
        _, _, profile, *_, full_range = HEADER.unpack_from(data, offset)
        if profile == 0 and full_range:
            return True
    return False
