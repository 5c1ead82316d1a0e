"""Choose the pixel format in which a video is encoded, and the colour tags that go with it."""

from dataclasses import replace

import av

from vdeblur.errors import OutputError
from vdeblur.events import Warn
from vdeblur.frame import (
    FULL,
    LIMITED,
    UNTAGGED,
    PlaneLayout,
    has_alpha,
    is_always_full,
    layout_of,
    planar_name,
    usual_matrix,
)
from vdeblur.output.codecs import ENCODERS, UNSHOWN, Encoder, is_even, is_for_players, run_outside
from vdeblur.output.external import external_formats
from vdeblur.output.trials import takes_format
from vdeblur.source.info import SourceInfo

# Pixel formats of y4m; more than 8 bits are an extension of FFmpeg's.
Y4M_DEPTHS = ("", "9le", "10le", "12le", "14le", "16le")
Y4M_FORMATS = [
    *(f"yuv{chroma}p{depth}" for depth in Y4M_DEPTHS for chroma in ("420", "422", "444")),
    *("yuv411p", "gray", "gray9le", "gray10le", "gray12le", "gray16le"),
]
RAW_FORMATS = [*Y4M_FORMATS, "gbrp", "gbrp10le", "gbrp12le", "gbrp16le", "gbrap", "yuva420p", "yuva422p", "yuva444p"]
# Encoders of imageio-ffmpeg's ffmpeg that hold more depths or chroma formats.
DEEPER = {"libsvtav1": "libaom-av1", "libvpx-vp9": "libvpx-vp9"}
# Phones, browsers and QuickTime do not show RGB of these encoders in these files.
RGB_ENCODERS = {"libx264", "libx265", "libvpx-vp9", "libsvtav1", "libaom-av1"}
# x265 writes beyond its memory below 32 lines if a frame is 33 to 48 samples wide (measured; also in ffmpeg alone). It
# does not say why, so the limit has a margin.
X265_HEIGHT, X265_WIDTH, X265_SAFE_WIDTH = 32, 33, 64
NO_ALPHA = "{} has no transparency, so it is lost (ffv1 and png in .mkv keep it)"


def choose_format(info: SourceInfo, encoder: Encoder, suffix: str, wanted: str, warn: Warn) -> tuple[Encoder, str]:
    """Return encoder and pixel format: the input's format where the encoder takes it, else the nearest, with a warning.

    The encoder changes to an external one of the same codec where only that holds the format.

    Raises: OutputError where the encoder does not take the requested format, or the size in it.
    """
    if encoder.name == "libx265" and info.height < X265_HEIGHT and X265_WIDTH <= info.width < X265_SAFE_WIDTH:
        raise OutputError(
            f"libx265 crashes on frames of {info.width}x{info.height}", "use --codec h264, or --lossless with an .mkv"
        )
    source = info.picture_format
    names = _held_formats(encoder, suffix)
    chosen = wanted if wanted != "keep" else _shown_format(info, encoder, suffix, names, warn) or _same(source, names)
    if encoder.name in DEEPER and not encoder.external and (chosen is None or chosen not in names):
        deeper = run_outside(ENCODERS[DEEPER[encoder.name]])
        deep_names = _held_formats(deeper, suffix)
        found = wanted if wanted in deep_names else _same(source, deep_names) if wanted == "keep" else None
        if found is not None and takes_format(deeper.name, found, external=True):
            encoder, names, chosen = deeper, deep_names, found
    if wanted != "keep" and wanted not in names:
        raise OutputError(f"{encoder.name} does not take {wanted}", f"it takes {', '.join(names)}")
    if wanted == "keep" and (chosen is None or not _works(encoder, chosen)):
        chosen = _nearest(source, names, encoder, warn)
    assert chosen is not None
    layout = layout_of(planar_name(chosen))
    if layout is not None and not encoder.odd_sizes:
        odd_width, odd_height = info.width % (1 << layout.log2_width), info.height % (1 << layout.log2_height)
        if odd_width or odd_height:
            raise OutputError(
                f"{encoder.name} cannot write {info.width}x{info.height} in {chosen}",
                "use --pix-fmt yuv444p, --codec vp9, or --lossless with an .mkv",
            )
    return encoder, chosen


def tags_for(info: SourceInfo, pixel_format: str) -> SourceInfo:
    """Return the info with the matrix and range that pictures of this format have after convert_picture.

    The matrix of RGB is allowed in 4:4:4 only (H.264, E.2.1), so subsampled formats never have it.
    """
    source, target = layout_of(info.picture_format), layout_of(planar_name(pixel_format))
    assert source is not None
    color = dict(info.color)
    if target is None or source.rgb == target.rgb:
        if color["matrix"] == 0 and not source.rgb:
            color["matrix"] = UNTAGGED
        if pixel_format.startswith("yuvj"):
            color["range"] = FULL
    elif target.rgb:
        color |= {"matrix": 0, "range": FULL}
    else:
        full = is_always_full(pixel_format)
        color |= {"matrix": usual_matrix(info.width, info.height), "range": FULL if full else LIMITED}
    return replace(info, color=color)


def _works(encoder: Encoder, name: str) -> bool:
    return encoder.name == "rawvideo" or takes_format(encoder.name, name, external=encoder.external)


def _shown_format(info: SourceInfo, encoder: Encoder, suffix: str, names: list[str], warn: Warn) -> str | None:
    """Return the format for RGB in MP4 and MOV that common players show, with a warning; None for everything else."""
    layout = layout_of(info.picture_format)
    is_meant = is_for_players(info, suffix, encoder.name) and encoder.name in RGB_ENCODERS
    if layout is None or not layout.rgb or not is_meant:
        return None
    if not is_even(info) and not encoder.odd_sizes:
        warn("W_PIX_FMT", UNSHOWN.format(suffix))
        return None
    chosen = "yuv420p10le" if layout.bits > 8 and "yuv420p10le" in names else "yuv420p"
    exact = "libx264rgb" if encoder.name == "libx264" else f"{encoder.name} --pix-fmt {info.picture_format}"
    reason = f"common players do not show RGB in {suffix}"
    warn("W_PIX_FMT", f"RGB becomes {chosen}, because {reason} (--codec {exact}, or an .mkv, keeps it)")
    if layout.alpha:
        warn("W_ALPHA", NO_ALPHA.format(encoder.name))
    return chosen


def _held_formats(encoder: Encoder, suffix: str) -> list[str]:
    """Return the pixel formats that an encoder takes and the container keeps."""
    if encoder.external:
        names = external_formats(encoder.name)
    elif encoder.name == "rawvideo":
        names = Y4M_FORMATS if suffix == ".y4m" else RAW_FORMATS
    else:
        names = [pixel_format.name for pixel_format in av.Codec(encoder.name, "w").video_formats or []]
    if encoder.name == "mjpeg":
        names = [name for name in names if name.startswith("yuvj")]
    alpha_beside = encoder.name.startswith("libvpx")  # its alpha is side data of packets, which only Matroska keeps
    if alpha_beside and suffix.lower() in (".webm", ".mkv"):
        names = [name for name in names if not has_alpha(name) or name == "yuva420p"]  # the only one that players read
    elif alpha_beside or encoder.name == "libx265":
        names = [name for name in names if not has_alpha(name)]
    return names


def _same(source: str, names: list[str]) -> str | None:
    """Return the format that holds the same samples; None where there is none."""
    chosen = next((name for name in names if name == source.replace("yuvj", "yuv")), None)
    return chosen or next((name for name in names if planar_name(name) == source), None)


def _nearest(source: str, names: list[str], encoder: Encoder, warn: Warn) -> str:
    wanted = layout_of(source)
    assert wanted is not None
    options = {name: layout_of(planar_name(name)) for name in names}
    full = encoder.name == "mjpeg"  # which takes no limited range
    usable = {name: layout for name, layout in options.items() if layout is not None and ("j" not in name or full)}
    if not usable:
        raise OutputError(f"{encoder.name} takes no pixel format that vdeblur knows", "choose another with --codec")
    ranked = sorted(usable, key=lambda name: _distance(wanted, usable[name]))
    chosen = next((name for name in ranked if _works(encoder, name)), ranked[0])
    got = usable[chosen]
    if wanted.alpha and not got.alpha:
        warn("W_ALPHA", NO_ALPHA.format(encoder.name))
        if (wanted.bits, wanted.rgb, wanted.log2_width, wanted.log2_height) == (
            got.bits, got.rgb, got.log2_width, got.log2_height
        ):  # fmt: skip
            return chosen
    warn("W_PIX_FMT", f"{encoder.name} cannot hold {source}; writing {chosen}")
    return chosen


def _distance(wanted: PlaneLayout, layout: PlaneLayout) -> tuple[int, ...]:
    """Return a sort key: first what a format loses of the wanted depth, chroma and alpha, then what it adds."""
    coarser = max(layout.log2_width - wanted.log2_width, 0) + max(layout.log2_height - wanted.log2_height, 0)
    size = layout.bits + 8 * (4 - layout.log2_width - layout.log2_height) + layout.alpha
    less = (wanted.gray < layout.gray, wanted.alpha > layout.alpha, max(wanted.bits - layout.bits, 0), coarser)
    return (*less, wanted.rgb != layout.rgb, layout.alpha, size)
