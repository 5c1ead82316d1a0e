"""A container's video stream, and the decoder that reads it."""

import re
import subprocess
from itertools import islice
from pathlib import Path
from typing import cast

import av
import av.error
import imageio_ffmpeg

from vdeblur.errors import InputError
from vdeblur.source.demux import is_cover
from vdeblur.source.demuxers import SAFE_INPUT

# Decoders that read the alpha channel, which FFmpeg's default ones ignore.
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
LIMIT_SECONDS = 60  # for the ffmpeg program, which reads a header
ENCRYPTED_TAGS = {"encv", "drmi"}  # what MP4 calls video that only a licence opens: ISO/IEC 23001-7, FairPlay


def choose_video(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """Return the first video stream that is no cover.

    Raises: InputError where there is none, it is encrypted, or it has no decoder.
    """
    streams = [stream for stream in container.streams.video if not is_cover(stream)]
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise InputError(f"{path} has no video stream (only {kinds})", "give a file that holds video")
    video = streams[0]
    try:
        video.codec_context  # noqa: B018 - absent where FFmpeg knows no decoder
        has_decoder = video.codec_context is not None and video.codec_context.pix_fmt is not None
    except (AttributeError, av.error.FFmpegError):
        has_decoder = False
    if not has_decoder:
        try:
            for packet in islice(container.demux(video), 1):
                refuse_encrypted(packet, path)
        except av.error.FFmpegError as error:
            hint = "MP4 and MOV through a pipe must begin with their index: pipe nut or mkv, or give the file's path"
            raise InputError(f"{path}: its video cannot be read ({error.strerror})", hint) from error
        name = _foreign_codec(path)
        raise InputError(f"{path}: there is no decoder for its video ({name})", "convert it first")
    if video.codec_context.codec_tag in ENCRYPTED_TAGS:
        raise _encrypted(path)
    return video


def refuse_encrypted(packet: av.Packet, path: Path) -> None:
    """Refuse a file by one of its video packets.

    Raises: InputError where the packet is encrypted.
    """
    if packet.has_sidedata("encryption_info"):
        raise _encrypted(path)


def _encrypted(path: Path) -> InputError:
    return InputError(f"{path} is encrypted", "only whoever has its key can read it")


def decoder_of(video: av.VideoStream) -> av.VideoCodecContext:
    """Return FFmpeg's decoder for a stream, or where the stream has an alpha channel, one that reads it."""
    decoder = video.codec_context
    tags = {key.lower(): value for key, value in video.metadata.items()}
    if tags.get("alpha_mode") == "1" and decoder.name in ALPHA_DECODERS:
        default = decoder
        decoder = cast(av.VideoCodecContext, av.CodecContext.create(ALPHA_DECODERS[default.name], "r"))
        # The container's colour tags.
        decoder.color_primaries, decoder.color_trc = default.color_primaries, default.color_trc
        decoder.colorspace, decoder.color_range = default.colorspace, default.color_range
    decoder.thread_type = "AUTO"
    return decoder


def _foreign_codec(path: Path) -> str:
    """Return the name of a codec that PyAV's libraries cannot decode; imageio-ffmpeg's ffmpeg may know it."""
    limits = [word for name, value in SAFE_INPUT.items() if name != "pattern_type" for word in (f"-{name}", value)]
    try:
        command = [
            imageio_ffmpeg.get_ffmpeg_exe(),
            "-nostdin",
            "-hide_banner",
            *limits,
            "-i",
            f"file:{path.absolute()}",
        ]
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, errors="replace", check=False, timeout=LIMIT_SECONDS
        )
    except (OSError, RuntimeError, subprocess.TimeoutExpired):  # RuntimeError: there is no ffmpeg program
        return "unknown codec"
    found = re.search(r"Video: (\S+)", done.stderr)
    return found[1].rstrip(",") if found else "unknown codec"
