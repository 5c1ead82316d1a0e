"""Carry over what FFmpeg's muxers leave out of a video: own tags, spherical and 3D video, uneven time code."""

import struct
from fractions import Fraction
from pathlib import Path

import av

from vdeblur.events import Warn
from vdeblur.output.boxes import VideoBoxes, box, complete_movie, video_boxes
from vdeblur.output.tracks import MATROSKA_LIKE, MP4_LIKE, without_tags
from vdeblur.source.info import SourceInfo
from vdeblur.source.pictures import PictureSource
from vdeblur.source.video import Source, VideoSource

CONTAINER_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder"}  # describe how the input was written
# How both views share a picture, in FFmpeg's words: the number in MP4's st3d, and Matroska's tag of the stream.
STEREO = {"top and bottom": (1, "top_bottom"), "side by side": (2, "left_right")}
EQUIRECTANGULAR = "equirectangular"
TIME_CODE_RATES = {24, 25, 30, 48, 50, 60, 100, 120, 150}  # that FFmpeg's muxer writes, rounded


def complete(path: Path, container_name: str, source: Source, warn: Warn) -> None:
    """Add to a finished file what its muxer has left out; containers other than MP4 and QuickTime stay as they are."""
    if isinstance(source, PictureSource) or container_name not in MP4_LIKE:
        return
    boxes = _boxes_for_mp4(source.info)
    with av.open(str(path), metadata_errors="replace") as written:
        tags = _lost_tags(source.container.metadata, written.metadata)
        time_code = _time_code(source.video.metadata)
        if time_code is not None and _time_code(written.streams.video[0].metadata) is None:
            rate = float(source.info.rate)
            warn("W_TIMECODE", f"{path.suffix} holds no time code {time_code} at {rate:.5g} fps, so it is left out")
    if not (boxes.entry or boxes.track or tags):
        return
    if not complete_movie(path, boxes, tags, quicktime=container_name == "mov"):
        warn("W_TAGS", f"these tags cannot be added to {path.suffix}: {', '.join(tags) or 'those of the views'}")


def time_code_rate(source: VideoSource) -> Fraction | None:
    """Return the frame rate that the video's time code counts, for the output's header; None if there is none.

    The average rate of an uneven video counts nothing: 26.47 fps is 29.97 with frames left out.
    """
    time_code = _time_code(source.video.metadata)
    if time_code is None:
        return None
    rates = [rate for rate in (source.video.base_rate, source.video.guessed_rate, source.video.average_rate) if rate]
    drops_frames = ";" in time_code
    fitting = [rate for rate in rates if round(rate) in TIME_CODE_RATES and not (drops_frames and round(rate) % 30)]
    return min(fitting, key=lambda rate: abs(rate - source.info.rate), default=None)


def _time_code(tags: dict[str, str]) -> str | None:
    """Return a stream's time code; Matroska's tags are in capitals."""
    return next((value for key, value in tags.items() if key.lower() == "timecode"), None)


def _lost_tags(wanted: dict[str, str], written: dict[str, str]) -> dict[str, str]:
    """Return the tags that were not written; FFmpeg's copies of tags by language (`title-eng`) do not count."""
    present = {key.lower() for key in written}
    lost = without_tags(wanted, CONTAINER_TAGS | {"creation_time", "timecode"} | present)
    return {key: value for key, value in lost.items() if wanted.get(key.rpartition("-")[0]) != value}


def _boxes_for_mp4(info: SourceInfo) -> VideoBoxes:
    """Return the boxes of spherical and 3D video: the input's own, or new ones where it is no MP4."""
    if not (info.stereo or info.spherical):
        return VideoBoxes()
    own = video_boxes(info.path)
    if own.entry or own.track:
        return own
    made = b""
    if info.stereo in STEREO:
        made += box(b"st3d", struct.pack(">IB", 0, STEREO[info.stereo][0]))
    if info.spherical == EQUIRECTANGULAR:
        header = box(b"svhd", bytes(4) + b"vdeblur\0")
        whole_sphere = box(b"prhd", bytes(16)) + box(b"equi", bytes(20))
        made += box(b"sv3d", header + box(b"proj", whole_sphere))
    return VideoBoxes(made)


def stereo_tags(info: SourceInfo, container_name: str) -> dict[str, str]:
    """Return the stream's tag that tells Matroska's muxer how views share the picture."""
    is_known = container_name in MATROSKA_LIKE and info.stereo in STEREO
    return {"stereo_mode": STEREO[info.stereo][1]} if is_known else {}


def warn_of_views(info: SourceInfo, container_name: str, warn: Warn) -> None:
    """Warn of spherical and 3D video that the container, or this program, cannot mark as such."""
    lost = []
    boxes = _boxes_for_mp4(info) if container_name in MP4_LIKE else VideoBoxes()
    is_marked = bool(boxes.track)  # version 1 holds both
    if info.stereo and not (is_marked or b"st3d" in boxes.entry or stereo_tags(info, container_name)):
        is_layered = info.stereo not in STEREO
        lost.append(f"3D ({info.stereo})" + (": only one view is restored" if is_layered else ""))
    if info.spherical and not (is_marked or b"sv3d" in boxes.entry):
        lost.append(f"spherical ({info.spherical})")
    if lost:
        warn(
            "W_VIEWS", f"the output is not marked as {' and '.join(lost)}; players show it flat (.mp4 keeps the marks)"
        )
