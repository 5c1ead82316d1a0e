"""Choose the video's encoder and its options; formats.py chooses its pixel format.

Encoders are those of PyAV's libraries; where these have none, or none for the depth and chroma, imageio-ffmpeg's ffmpeg
has more (see external.py).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import av
from torch.backends.cpu import get_cpu_capability

from vdeblur.errors import OutputError, UsageError
from vdeblur.events import Warn
from vdeblur.frame import has_alpha, layout_of, planar_name
from vdeblur.output.external import external_formats, external_options
from vdeblur.output.trials import holds_video
from vdeblur.output.user_options import check_encoder_options
from vdeblur.source.hdr import Hdr
from vdeblur.source.info import SourceInfo


@dataclass(frozen=True)
class Encoder:
    """The options and limits of one of FFmpeg's encoders.

    odd_sizes: whether it takes odd sizes in subsampled formats. quality: its option for --crf; `q` for the quantiser
    scale of MPEG's older codecs. speed: its option for --preset. presets: the option's value for each --preset, None
    where they are the same. crf: least and most of --crf. numbers: least and most number that --preset takes instead of
    a name, None where it takes no numbers. has_bitrate: whether --bitrate works. options: always set. interlaced:
    whether it codes fields. counted: whether it numbers frames at a constant rate instead of timing them. external:
    whether imageio-ffmpeg's ffmpeg runs it.
    """

    name: str
    odd_sizes: bool = False
    quality: str = "crf"
    speed: str = "preset"
    presets: dict[str, str] | None = None
    options: dict[str, str] = field(default_factory=dict)
    interlaced: bool = False
    counted: bool = False
    external: bool = False
    crf: tuple[float, float] = (0, 51)
    numbers: tuple[int, int] | None = None
    has_bitrate: bool = True


PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
SVT_PRESETS = dict(zip(PRESETS, ("12", "11", "10", "9", "8", "7", "5", "4", "3"), strict=True))
VPX_PRESETS = dict(zip(PRESETS, ("8", "7", "6", "5", "4", "3", "2", "1", "0"), strict=True))
RAV1E_PRESETS = dict(zip(PRESETS, ("10", "9", "8", "7", "6", "5", "4", "3", "2"), strict=True))

ENCODERS = {
    "libx264": Encoder("libx264", interlaced=True),
    "libx264rgb": Encoder("libx264rgb", odd_sizes=True),
    "libx265": Encoder("libx265", options={"x265-params": "log-level=error"}),
    "libsvtav1": Encoder("libsvtav1", presets=SVT_PRESETS, crf=(0, 63), numbers=(0, 13)),
    "libvpx-vp9": Encoder(
        *("libvpx-vp9", True, "crf", "cpu-used", VPX_PRESETS, {"b": "0", "row-mt": "1"}), crf=(0, 63), numbers=(0, 8)
    ),
    "libvpx": Encoder("libvpx", True, "crf", "cpu-used", VPX_PRESETS, {"b": "20M"}, crf=(4, 63), numbers=(0, 16)),
    "rawvideo": Encoder("rawvideo", True, "", "", has_bitrate=False),
    "ffv1": Encoder(*("ffv1", True, "", "", None, {"level": "3", "slicecrc": "1"}), interlaced=True, has_bitrate=False),
    # Profiles follow the pixel format: 422 HQ, or 4444.
    "prores_ks": Encoder("prores_ks", True, "", "", None, {"vendor": "apl0"}, interlaced=True, has_bitrate=False),
    "dnxhd": Encoder("dnxhd", quality="", speed="", interlaced=True, has_bitrate=False),
    "mpeg2video": Encoder("mpeg2video", True, "q", "", interlaced=True, counted=True),
    "mpeg4": Encoder("mpeg4", True, "q", "", interlaced=True, counted=True),
    "mjpeg": Encoder("mjpeg", True, "q", ""),
    "png": Encoder("png", True, "", "", has_bitrate=False),
    "qtrle": Encoder("qtrle", True, "", "", has_bitrate=False),
    "utvideo": Encoder("utvideo", True, "", "", has_bitrate=False),
    "libaom-av1": Encoder(
        *("libaom-av1", True, "crf", "cpu-used", VPX_PRESETS, {"b": "0", "row-mt": "1"}), crf=(0, 63), numbers=(0, 8)
    ),
    "librav1e": Encoder("librav1e", True, "qp", "speed", RAV1E_PRESETS, crf=(0, 63), numbers=(0, 10)),
}
# Lossless codecs. Input in one becomes FFV1, which is smaller and holds all their formats; --codec can choose them.
LOSSLESS = ("huffyuv", "ffvhuff", "magicyuv", "rawvideo", "v210", "v410", "lagarith")
# Names that people use for encoders and codecs, in lower case, beside FFmpeg's.
USUAL_NAMES = {
    **dict.fromkeys(("x264", "avc", "avc1", "h.264", "mpeg4-avc"), "libx264"),
    **dict.fromkeys(("x265", "h.265", "hvc1", "hev1"), "libx265"),
    **dict.fromkeys(("svt-av1", "svtav1", "av01"), "libsvtav1"),
    **dict.fromkeys(("aom", "aom-av1", "libaom"), "libaom-av1"),
    **dict.fromkeys(("vp09", "vpx-vp9", "vp9.0"), "libvpx-vp9"),
    "vp8.0": "libvpx",
    "rav1e": "librav1e",
    **dict.fromkeys(("prores422", "prores-422", "apple-prores"), "prores_ks"),
    **dict.fromkeys(("mpeg-2", "mpeg2-video"), "mpeg2video"),
    **dict.fromkeys(("ut-video", "ut_video"), "utvideo"),
}
# Codec of the input, or name that a user may give, to encoder.
FAMILIES = {
    "h264": "libx264",
    "hevc": "libx265",
    "h265": "libx265",
    "av1": "libsvtav1",
    "libdav1d": "libsvtav1",
    "vp9": "libvpx-vp9",
    "libvpx-vp9": "libvpx-vp9",
    "vp8": "libvpx",
    "libvpx": "libvpx",
    "ffv1": "ffv1",
    "prores": "prores_ks",
    "dnxhd": "dnxhd",
    "dnxhr": "dnxhd",
    "png": "png",
    "qtrle": "qtrle",
    "utvideo": "utvideo",
    "mpeg2": "mpeg2video",
    **dict.fromkeys(LOSSLESS, "ffv1"),
}
LOSSLESS_ENCODERS = {*LOSSLESS, "ffv1", "png", "qtrle", "utvideo"}
# Used only when requested: low quality for their size.
ASKED_ONLY = {"mpeg2", "mpeg2video", "mpeg4", "mjpeg"}
PICTURE_CODECS = {
    "png",
    "mjpeg",
    "tiff",
    "webp",
}  # of pictures in a folder; another codec in the output needs no warning
# Usual encoders of containers; the first is the default. --codec may choose others.
USUAL_ENCODERS = {
    ".webm": ("libvpx-vp9", "libvpx", "libsvtav1"),
    ".mp4": ("libx264", "libx265", "libsvtav1", "libvpx-vp9"),
    ".m4v": ("libx264", "libx265"),
    ".mov": ("libx264", "libx265", "prores_ks", "dnxhd", "png", "qtrle"),
    ".ts": ("libx264", "libx265", "mpeg2video"),
    ".m2ts": ("libx264", "libx265", "mpeg2video"),
    ".avi": ("libx264", "ffv1", "utvideo", "png"),
    ".mpg": ("mpeg2video",),
    ".vob": ("mpeg2video",),
    ".mxf": ("mpeg2video", "dnxhd", "prores_ks"),
    ".ogv": ("libvpx",),
}
RATE_OPTIONS = {"b", "b:v", "crf"}  # of the user's -e: they choose the quality instead of --crf
# Tried in this order for containers without a line above.
FALLBACKS = ("libx264", "libx265", "libvpx-vp9", "libvpx", "mpeg2video", "ffv1", "mpeg4", "mjpeg", "png")
HDR_ENCODERS = {"libx265", "libsvtav1"}
PLAYED = {".mp4", ".m4v", ".mov"}
UNSHOWN = "common players do not show RGB in {}, but odd sizes need it: scale to even sizes, or name the output *.mkv"
DNXHR_SMALLEST = (256, 120)  # width and height, SMPTE ST 2019-1
LIBRARY_OPTIONS = {  # the option that passes on options of the encoder's library, "key=value:key=value"
    "libx265": "x265-params",
    "libsvtav1": "svtav1-params",
    "libx264": "x264-params",
    "libx264rgb": "x264-params",
}


@dataclass(frozen=True)
class Coding:
    """The encoder and its settings.

    format: the pixel format. crf, preset, options, bitrate: from the user; a bitrate replaces crf. lossless: set no
    quality. keep_fields: the frames are interlaced and stay so.
    """

    encoder: Encoder
    format: str
    crf: float
    preset: str
    options: tuple[tuple[str, str], ...] = ()
    lossless: bool = False
    keep_fields: bool = False
    bitrate: int | None = None

    @property
    def has_rate(self) -> bool:
        """Return whether a bitrate is asked for, by --bitrate or an option of the encoder."""
        return self.bitrate is not None or any(name in RATE_OPTIONS for name, _ in self.options)


def choose_encoder(
    info: SourceInfo,
    suffix: str,
    container_name: str,
    codec: str | None,
    *,
    lossless: bool,
    pictures: bool,
    keep: bool,
    warn: Warn,
) -> Encoder:
    """Choose the encoder: the requested one, else that of the input's codec if usual in the container.

    container_name: FFmpeg's name. pictures: whether the input is a folder of pictures. keep: whether to keep the
    input's pixel format.

    Raises: OutputError where the encoder does not exist, or the container holds none that vdeblur knows.
    """
    if lossless:
        if suffix.lower() != ".mkv":
            raise OutputError(f"--lossless writes FFV1 in Matroska, not {suffix}", "name the output *.mkv")
        return ENCODERS["ffv1"]
    if codec:
        codec = USUAL_NAMES.get(codec.lower(), codec.lower())
        name = codec if codec in LOSSLESS else FAMILIES.get(codec, codec)
    else:
        name = _family(info, suffix.lower(), container_name, pictures, warn)
    layout = layout_of(info.picture_format)
    if name == "libx264" and layout is not None and layout.rgb and keep:
        if not is_for_players(info, suffix, name):
            name = "libx264rgb"
        elif not is_even(info):
            name = "libx264rgb"
            warn("W_PIX_FMT", UNSHOWN.format(suffix))
    if _is_internal(name):
        if name not in ENCODERS:
            warn("W_CODEC", f"--crf and --preset have no effect on {name}; use its own options with -e")
        return ENCODERS.get(name, Encoder(name, quality="", speed=""))
    if not external_formats(name):
        known = ", ".join(sorted({*ENCODERS, *FAMILIES}))
        raise OutputError(f"there is no encoder {name!r} here", f"choose one of: {known}")
    return run_outside(ENCODERS.get(name, Encoder(name, quality="", speed="")))


def _family(info: SourceInfo, suffix: str, container_name: str, pictures: bool, warn: Warn) -> str:
    """Return the encoder of the input's codec, or the container's default, with a warning."""
    known = info.codec in FAMILIES and info.codec not in ASKED_ONLY and not pictures
    name = FAMILIES[info.codec] if known else "libx264"
    if name == "dnxhd" and (info.width < DNXHR_SMALLEST[0] or info.height < DNXHR_SMALLEST[1]):
        name, known = "libx264", False
    usual = USUAL_ENCODERS.get(suffix)
    if usual is None:
        usual = tuple(each for each in (name, *FALLBACKS) if _is_held(container_name, each))
    if not usual:
        raise OutputError(
            f"{suffix or container_name} holds no video that vdeblur can write", "name the output *.mp4, *.mkv or *.mov"
        )
    if name not in usual:
        name, known = usual[0], known and name in HDR_ENCODERS | {"libvpx", "libvpx-vp9", "libx264"}
    is_same = FAMILIES.get(info.codec, info.codec) == name
    if not known and not is_same and not (pictures and info.codec in PICTURE_CODECS):
        warn(
            "W_CODEC",
            f"the input's codec {info.codec} is not used for the output, but {name} (--codec chooses another)",
        )
    return name


def _is_held(container_name: str, name: str) -> bool:
    """Return whether a container takes an encoder of PyAV's libraries; rawvideo and external ones are not asked."""
    if name == "rawvideo" or container_name == "yuv4mpegpipe" or not _is_internal(name):
        return True
    formats = [pixel_format.name for pixel_format in av.Codec(name, "w").video_formats or []]
    return holds_video(container_name, name, "yuv420p" if "yuv420p" in formats or not formats else formats[0])


def is_for_players(info: SourceInfo, suffix: str, name: str) -> bool:
    """Return whether RGB should become what common players show: in MP4 and MOV, unless the input is such a file."""
    is_such = info.path.suffix.lower() in PLAYED and FAMILIES.get(info.codec) == name
    return suffix.lower() in PLAYED and not is_such


def is_even(info: SourceInfo) -> bool:
    """Return whether width and height are even, as 4:2:0 needs."""
    return info.width % 2 == 0 and info.height % 2 == 0


def _is_internal(name: str) -> bool:
    try:
        av.Codec(name, "w")
    except ValueError:
        return False
    return True


def run_outside(encoder: Encoder) -> Encoder:
    """Return an encoder as imageio-ffmpeg's ffmpeg runs it."""
    return replace(encoder, interlaced=False, counted=False, external=True)


def without_reordering(encoder: Encoder, given: Iterable[tuple[str, str]], warn: Warn) -> Encoder:
    """Return an encoder that does not reorder frames unless the user asks for it: AVI stores their order, no times.

    Reordered frames are shown later by as many frames as the decoder holds back, which sound is not. given: the user's
    options.
    """
    if any(key == "bf" and value.strip() not in ("0", "") for key, value in given):
        warn("W_TIMING", "AVI stores no times, so with -e bf players show the picture some frames after its sound")
    if encoder.name not in ("libx264", "libx264rgb"):  # the others that AVI holds reorder only if asked to
        return encoder
    return replace(encoder, options={**encoder.options, "bf": "0"})


def encoder_options(info: SourceInfo, coding: Coding) -> dict[str, str]:
    """Return the encoder's options; those of the user come last.

    Raises: OutputError where one of the user's options must not be passed on, UsageError where the encoder does not
    take the quality or the preset.
    """
    encoder = coding.encoder
    check_encoder_options(encoder.name, coding.options, external=encoder.external)
    _check_quality_range(coding)
    options = dict(encoder.options)
    if coding.bitrate is not None:
        options["b"] = str(coding.bitrate)
    elif coding.has_rate:
        pass  # options of the user's, which come last
    elif encoder.quality == "q":
        options |= _quantizer(coding.crf)
    elif encoder.quality and not coding.lossless:
        quality = round(coding.crf * 255 / 63) if encoder.name == "librav1e" else coding.crf
        options[encoder.quality] = f"{quality:g}"
    if encoder.speed and coding.preset:
        _check_preset(encoder, coding.preset)
        options[encoder.speed] = (encoder.presets or {}).get(coding.preset, coding.preset)
    layout = layout_of(planar_name(coding.format))
    if has_alpha(coding.format) and encoder.name.startswith("libvpx"):
        options["auto-alt-ref"] = "0"  # libvpx cannot code transparency with it
    if encoder.name == "dnxhd" and layout is not None:
        deep = "dnxhr_444" if layout.log2_width == 0 else "dnxhr_hqx"
        options["profile"] = deep if layout.bits > 8 else "dnxhr_hq"
    _add_parts(options, encoder.name, _hdr_parts(info.hdr, encoder.name))
    if info.chroma_location and _is_420(coding.format) and _is_420(info.picture_format):
        options["chroma_sample_location"] = info.chroma_location
    if carries_captions(encoder):
        options["a53cc"] = "1"  # x265's default is off
    if encoder.name in ("libx264", "libx264rgb") and get_cpu_capability() == "AVX512":
        # With AVX-512, x264 reads uninitialised memory: the same frames sometimes give different bytes (seen with PyAV
        # 18.1). With AVX2 it is as fast.
        _add_parts(options, encoder.name, {"asm": "avx2"})
    for key, value in coding.options:
        parts = [options.get(key, ""), value] if key == LIBRARY_OPTIONS.get(encoder.name) else [value]
        options[key] = ":".join(filter(None, parts))
    return options


def carries_captions(encoder: Encoder) -> bool:
    """Return whether an encoder writes the closed captions of its pictures."""
    if encoder.external:
        return "a53cc" in external_options(encoder.name)
    return any(option.name == "a53cc" for option in av.CodecContext.create(encoder.name, "w").supported_options.private)


def _is_420(name: str) -> bool:
    layout = layout_of(planar_name(name))
    return layout is not None and (layout.log2_width, layout.log2_height) == (1, 1)


def quality_in_words(coding: Coding) -> str:
    """Describe quality and preset, as "crf 16, preset medium"."""
    encoder, given = coding.encoder, dict(coding.options)
    rate = given.get("b") or given.get("b:v") or coding.bitrate
    if rate is not None:
        words = [f"{rate} bit/s"]
    elif coding.lossless or not encoder.quality:
        words = ["lossless" if encoder.name in LOSSLESS_ENCODERS else "its own quality"]
    else:
        words = [f"crf {given.get('crf', f'{coding.crf:g}')}"]
    return ", ".join(words + ([f"preset {coding.preset}"] if encoder.speed and coding.preset else []))


def _check_quality_range(coding: Coding) -> None:
    """Refuse a quality that the encoder does not take.

    Raises: UsageError.
    """
    encoder = coding.encoder
    if coding.bitrate is not None and not encoder.has_bitrate:
        raise UsageError(f"{encoder.name} has no bitrate to choose", "leave out --bitrate, or choose another --codec")
    if coding.has_rate or coding.lossless or not encoder.quality:
        return
    least, most = encoder.crf
    if not least <= coding.crf <= most:
        raise UsageError(
            f"--crf {coding.crf:g} is out of range for {encoder.name}",
            f"use {least:g} to {most:g}; a lower number means better quality",
        )


def _check_preset(encoder: Encoder, preset: str) -> None:
    """Refuse a preset that the encoder does not have.

    Raises: UsageError.
    """
    if preset in PRESETS or (preset == "placebo" and encoder.presets is None):
        return
    numbers = encoder.numbers
    if numbers and preset.isascii() and preset.isdigit() and numbers[0] <= int(preset) <= numbers[1]:
        return
    names = [*PRESETS, *(["placebo"] if encoder.presets is None else [])]
    hint = f"choose from {', '.join(names)}" + (f", or {numbers[0]} to {numbers[1]}" if numbers else "")
    raise UsageError(f"{encoder.name} has no preset {preset!r}", hint)


def _quantizer(crf: float) -> dict[str, str]:
    """Return the quantiser scale of MPEG's older codecs for a CRF of x264.

    H.264's step is 2^((QP - 4) / 6), MPEG-2's is twice the scale.
    """
    scale = max(1.0, min(31.0, 2 ** ((crf - 4) / 6) / 2))
    return {"flags": "+qscale", "global_quality": str(round(118 * scale))}  # 118 is FF_QP2LAMBDA


def _hdr_parts(hdr: Hdr, name: str) -> dict[str, str]:
    if name == "libx265" and hdr.x265_params():
        return {**hdr.x265_params(), "hdr10": "1", "repeat-headers": "1"}
    return hdr.svtav1_params() if name == "libsvtav1" else {}


def _add_parts(options: dict[str, str], name: str, parts: dict[str, str]) -> None:
    """Add options of the encoder's library."""
    if parts:
        key = LIBRARY_OPTIONS[name]
        options[key] = ":".join([*filter(None, [options.get(key, "")]), *(f"{k}={v}" for k, v in parts.items())])
