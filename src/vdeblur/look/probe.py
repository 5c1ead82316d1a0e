"""Examine a video: its properties, how blurry its parts are, and what `vdeblur run` would write."""

import math
import shlex
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from vdeblur import events, settings
from vdeblur.errors import OutputError, UsageError
from vdeblur.frame import layout_of
from vdeblur.look.frames import FrameSample, sample_frames
from vdeblur.look.verdicts import ADVICE, PartVerdict
from vdeblur.measure.blur import BLURRED, SOFT
from vdeblur.models import choice
from vdeblur.models.registry import find_entry
from vdeblur.output import carry, tracks
from vdeblur.output.encoding import VideoEncoding
from vdeblur.output.pictures import PICTURE_ENCODERS
from vdeblur.restore import device
from vdeblur.source import counting, demux, pictures, video
from vdeblur.source.info import SourceInfo
from vdeblur.source.times import PacketTimes, read
from vdeblur.source.video import Source

OWN_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".m4v", ".ts")  # of inputs whose outputs get the same suffix
BRIEF_SECONDS = 3600  # for longer runs the notes suggest to try a part first
FAITHFUL = ".mkv"  # holds nearly every stream
# ITU-T H.273, tables 2 to 4, in FFmpeg's words.
PRIMARIES = {1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 11: "smpte431",
             12: "smpte432"}  # fmt: skip
TRANSFERS = {1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear", 13: "iec61966-2-1",
             14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084", 18: "arib-std-b67"}  # fmt: skip
MATRICES = {0: "gbr", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "ycgco", 9: "bt2020nc",
            10: "bt2020c"}  # fmt: skip
RANGES = {1: "limited", 2: "full"}
PQ, HLG = 16, 18
CHROMA = {(0, 0): "4:4:4", (1, 0): "4:2:2", (1, 1): "4:2:0", (2, 0): "4:1:1", (0, 1): "4:4:0", (2, 2): "4:1:0"}
METHOD = "slope of the structure function along the motion, of frames reduced to 540 lines; 0 is smooth, 1 white noise"
SMOOTH = 2 * math.log(1 / 4)  # the slope of a smooth picture


def probe(path: str | Path, suffix: str | None = None) -> dict[str, Any]:
    """Examine a video file or a folder of pictures; return the object that docs/json.md describes.

    It plans the streams, reads the packets' times, and decodes a few frames of every part. suffix: of the planned
    output, such as ".mp4"; None for the one that suits the input.

    Raises: InputError if it cannot be read, OutputError if no container has this suffix, UsageError for a pipe.
    """
    path = Path(path)
    if path == demux.PIPE:
        raise UsageError("probe cannot read a pipe", "save it to a file first")
    warnings: dict[str, str] = {}

    def warn(code: str, message: str) -> None:
        warnings.setdefault(code, message)

    source = video.open_source(path, settings.Cut(), warn)
    try:
        times = read(source) if isinstance(source, video.VideoSource) else None
        sample = sample_frames(source, times)
        if times is not None and times.frames is None:
            times.frames = counting.count_frames(source)  # of a large file, from its index
        output = _output_for(source, suffix)
        warnings |= _findings(source, sample, times)
        return {
            "v": 1,
            "input": str(path),
            **_picture_facts(source, sample),
            "color": _color_facts(source.info, sample),
            **_timing_facts(source, times),
            "streams": [asdict(plan) for plan in planned_streams(source, output.suffix)],
            "output": _output_facts(source.info, output, warn),
            "warnings": [{"code": code, "message": message} for code, message in warnings.items()],
            "sharpness": _sharpness_facts(sample),
            "suggestion": _suggestion(source, output, sample, times),
        }
    finally:
        source.close()


def planned_streams(source: Source, suffix: str) -> list[tracks.StreamPlan]:
    """Return the plan for the streams beside the video in a container of this suffix; empty for pictures.

    Raises: OutputError if there is no such container.
    """
    if not suffix or isinstance(source, pictures.PictureSource):
        return []
    return carry.plan_streams(source, carry.container_format(Path(f"output{suffix}")), tracks.MuxOptions())


def _output_for(source: Source, suffix: str | None) -> Path:
    """Return a path beside the input, with the suffix asked for, else the input's, or .mkv if it keeps more streams."""
    path = source.path
    if isinstance(source, pictures.PictureSource):
        if source.is_single:
            return path.with_name(f"{path.stem}_sharp{suffix or path.suffix}")
        return path.with_name(f"{path.resolve().name}_sharp{suffix or ''}")
    if suffix is None:
        suffix = path.suffix.lower() if path.suffix.lower() in OWN_SUFFIXES else ".mp4"
        if _dropped(source, suffix) > _dropped(source, FAITHFUL):
            suffix = FAITHFUL
    return path.with_name(f"{path.stem}_sharp{suffix}")


def _dropped(source: video.VideoSource, suffix: str) -> int:
    return sum(plan.action == "drop" for plan in planned_streams(source, suffix))


def _picture_facts(source: Source, sample: FrameSample) -> dict[str, Any]:
    info = source.info
    layout = layout_of(info.picture_format)
    assert layout is not None, "open_source refuses others"
    aspect = info.sample_aspect_ratio
    chroma = CHROMA.get((layout.log2_width, layout.log2_height), "other")
    return {
        "container": source.container.format.name if isinstance(source, video.VideoSource) else "pictures",
        "codec": info.codec,
        "width": info.width,
        "height": info.height,
        "pixel_format": info.picture_format,
        "bits": layout.bits,
        "chroma": "gray" if layout.gray else "RGB" if layout.rgb else chroma,
        "rotation": info.rotation,
        "sample_aspect_ratio": f"{aspect.numerator}:{aspect.denominator}" if aspect else None,
        "interlaced": sample.interlaced,
    }


def _color_facts(info: SourceInfo, sample: FrameSample) -> dict[str, Any]:
    transfer = info.color["transfer"]
    hdr = None
    if transfer == HLG:
        hdr = "HLG"
    elif transfer == PQ:
        hdr = "PQ"
        if "MASTERING_DISPLAY_METADATA" in sample.side_data:
            hdr = "HDR10+" if "DYNAMIC_HDR_PLUS" in sample.side_data else "HDR10"
    return {
        "primaries": _name(PRIMARIES, info.color["primaries"]),
        "transfer": _name(TRANSFERS, transfer),
        "matrix": _name(MATRICES, info.color["matrix"]),
        "range": _name(RANGES, info.color["range"]),
        "hdr": hdr,
    }


def _name(names: dict[int, str], number: int) -> str | None:
    """Return the name of a tag; None for "reserved" (0) and "unspecified" (2)."""
    return names.get(number, None if number in (0, 2) else str(number))


def _timing_facts(source: Source, times: PacketTimes | None) -> dict[str, Any]:
    info = source.info
    intervals = times.intervals if times else []
    return {
        "rate": round(float((times.rate if times else None) or info.rate), 3),
        "variable_rate": times.variable if times else False,
        "gaps": times.gaps if times and not times.variable else 0,
        "interval_seconds": [float(min(intervals)), float(times.usual or 0), float(max(intervals))]
        if times and intervals
        else None,
        "duration": None if info.duration_seconds is None else round(float(info.duration_seconds), 6),
        "frames": _frames(info, times),
        "frames_counted": times is None or times.frames is not None,
    }


def _frames(info: SourceInfo, times: PacketTimes | None) -> int | None:
    return times.frames if times and times.frames is not None else info.frames_estimate


def _findings(
    source: Source,
    sample: FrameSample,
    times: PacketTimes | None,
) -> dict[str, str]:
    found = {}
    if sample.damaged or (times and times.damaged):
        found["W_INPUT_DAMAGED"] = "the file is damaged; run leaves out what it cannot decode, and counts it"
    if times and times.missing_seconds:
        missing = float(times.missing_seconds)
        found["W_INPUT_TRUNCATED"] = (
            f"the last {missing:.2f} s of the header's duration are missing: copy the file again"
        )
    if times and times.untimed:
        found["W_TIMESTAMPS"] = "frames have no timestamps; run spaces them at the nominal rate"
    if isinstance(source, video.VideoSource) and source.video.metadata.get("alpha_mode") == "1":
        found["W_ALPHA"] = "its transparency is in a separate layer that no decoder here reads, so it is left out"
    if sample.interlaced:
        found["W_INTERLACED"] = "the video is interlaced, and blur is measured on whole frames"
    if not sample.is_complete:
        found["W_SAMPLED_BEGINNING"] = "the file has no index, so only its beginning was sampled"
    return found


def _output_facts(info: SourceInfo, output: Path, warn: events.Warn) -> dict[str, Any]:
    """Return what run would write; if it would refuse, warn with its reason and return None for encoder and format."""
    facts = {"file": str(output), "encoder": None, "pixel_format": None}
    if not output.suffix or output.suffix.lower() in PICTURE_ENCODERS:
        return facts
    try:
        encoding = VideoEncoding(info, output.suffix, settings.EncodeOptions(), warn)
    except OutputError as error:
        warn(error.code, str(error))
        return facts
    return {**facts, "encoder": encoding.coding.encoder.name, "pixel_format": encoding.format}


def _sharpness_facts(sample: FrameSample) -> dict[str, Any]:
    return {
        "method": METHOD,
        "sharp_from": _value(SOFT),
        "slightly_blurred_from": _value(BLURRED),
        "parts": [
            {"begin": round(float(part.begin), 3), "end": round(float(part.end), 3), **_verdict_facts(part.verdict)}
            for part in sample.parts
        ],
    }


def _verdict_facts(verdict: PartVerdict | None) -> dict[str, Any]:
    if verdict is None:
        return {"value": None, "word": "nothing to see", "kind": None}
    measure = verdict.measure
    value = _value(measure.slope_along)
    facts = {
        "value": value,
        "word": "sharp"
        if value >= _value(SOFT)
        else "slightly blurred"
        if value >= _value(BLURRED)
        else "strongly blurred",
        "kind": verdict.kind,
        "slope_along": round(measure.slope_along, 3),
        "slope_across": round(measure.slope_across, 3),
        "noise": round(measure.noise, 2),
        "motion_pixels": round(measure.motion, 2),
    }
    return facts if verdict.shutter is None else {**facts, "shutter": round(verdict.shutter, 2)}


def _value(slope: float) -> float:
    """Return a slope on a scale from 0, smooth, to 1, white noise."""
    return round(min(max(1 - slope / SMOOTH, 0), 1), 3)


def _advice(sample: FrameSample) -> list[str]:
    """Return notes on what deblurring will do for the kinds of footage that were found, the most frequent first."""
    kinds = [part.verdict.kind for part in sample.parts if part.verdict]
    if kinds and set(kinds) == {"sharp"}:
        return ["the sampled frames are sharp already; there may be little to gain"]
    found = sorted(set(kinds) - {"sharp"}, key=lambda kind: -kinds.count(kind))
    notes = [f"{ADVICE[kind]} ({kinds.count(kind)} of {len(kinds)} parts)" for kind in found]
    if "motion blur" in found and "sharp" in kinds:
        notes.append("--only-blurred restores the blurred frames alone, and passes sharp ones unchanged")
    return notes


def _suggestion(
    source: Source,
    output: Path,
    sample: FrameSample,
    times: PacketTimes | None,
) -> dict[str, Any]:
    """Suggest a command, and estimate how long lite takes for it on this machine."""
    info = source.info
    frames = _frames(info, times)
    chosen, precision, per_frame = _lite_speed(info.height, info.width)
    seconds = None if frames is None else frames * per_frame
    named = [_safe(source.path), _safe(output) + ("" if output.suffix else "/")]
    words = ["vdeblur", "run", *named]
    notes = []
    if seconds is not None and seconds > BRIEF_SECONDS:
        notes.append("try a part first: -ss 0:30 -t 10")
    notes += _advice(sample)
    return {
        "command": shlex.join(words),
        "notes": notes,
        "model": choice.FALLBACK,
        "device": chosen,
        "precision": precision,
        "network_seconds": None if seconds is None else round(seconds, 3),
    }


def _safe(path: Path) -> str:
    """Return a path that is not mistaken for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _lite_speed(height: int, width: int) -> tuple[str, str, float]:
    """Return lite's device, precision and estimated seconds per frame."""
    name, precision, rate = _measured()
    return name, precision, choice.seconds_per_frame(find_entry(choice.FALLBACK), height, width, rate)


@cache
def _measured() -> tuple[str, str, float]:
    chosen = device.choose_device("auto")
    entry = find_entry(choice.FALLBACK)
    assert entry.network is not None
    precision = device.choose_precision("auto", chosen, entry.network_class)
    return str(chosen), precision, choice.multiply_adds_per_second(chosen, precision)
