"""Check the encoder options that users give with -e: an option that names a file, or is not the encoder's, is refused.

Options may come from a settings file that was written by others. Encoders have options that write files of any name
(`stats`, or `csv` in x265-params), and the ffmpeg program would take `-y`, `-i` or `-progress` from the same place.
"""

import functools
import re
import subprocess
from collections.abc import Iterable

import imageio_ffmpeg

from vdeblur.errors import OutputError

# FFmpeg's options for every video encoder (AVCodecContext), in `ffmpeg -h full`; the list of an encoder has its own.
COMMON = frozenset(
    re.findall(
        r"\w+",
        "b bt flags flags2 g keyint_min qcomp qblur qmin qmax qdiff bf b_qfactor b_qoffset i_qfactor i_qoffset strict "
        "maxrate minrate bufsize rc_init_occupancy trellis refs subq me_range dia_size pre_dia_size last_pred mbd cmp "
        "subcmp mbcmp ildctcmp precmp skip_cmp dct idct lumi_mask tcplx_mask scplx_mask p_mask dark_mask "
        "global_quality compression_level threads thread_type slices profile level dc nssew mblmin mblmax "
        "bidir_refine mv0_threshold rc_max_vbv_use rc_min_vbv_use chroma_sample_location",
    )
)
OPTION_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
LISTED_NAME = re.compile(r"^  -(\S+) +<\w+> +E", re.MULTILINE)  # in the help of an encoder
NAMES_FILE = re.compile(
    r"(^|-)(files?|path|stats?|csv|logs?|dump|save|load|rpu|table|clbin|recon|input|output|config|info|pass|outdir|exec)"
    r"($|-)|(file|path|stats)$|^(roi|debug|errlog)$"
)
HARMLESS = re.compile(
    r"(csv-)?log-level|(no-|mb-)?info|(input|output|recon)-(depth|csp|res)|fast-?first-?pass|multi-?pass|slow-firstpass|profile"
)
# Options that take a file's name or one of these words.
WORDS = {"scaling-list": r"off|default", "cqm": r"flat|jvt", "film-grain": r"\d+", "aom-film-grain": r""}
FLAGS = re.compile(r"[+-]?[a-z_]+([+-][a-z_]+)*")  # as words: a number could switch on pass 1, which writes a file


def check_encoder_options(encoder: str, options: Iterable[tuple[str, str]], *, external: bool) -> None:
    """Refuse options that name files, and for the ffmpeg program (external) all that are not the encoder's.

    Raises: OutputError.
    """
    for key, value in options:
        hint = f"ffmpeg -h encoder={encoder} lists what -e takes, except options that name files"
        if not OPTION_NAME.fullmatch(key) or (external and key not in COMMON | _listed(encoder)):
            raise OutputError(f"{encoder} has no option {key!r}", hint)
        for name in (key, *_file_names(key, value)):
            if name != key or _is_file_name(key, value):
                raise OutputError(f"-e {key}: {name!r} names a file, which vdeblur does not pass on", hint)
        if key in ("flags", "flags2") and (not FLAGS.fullmatch(value) or "pass" in value):
            raise OutputError(f"-e {key}={value} is not a list of flags without passes", "write them as +cgop-loop")


def _file_names(key: str, value: str) -> list[str]:
    """Return the parts of a library's options ("key=value:key=value") that name files, or hide what they name."""
    if "=" not in value and not key.endswith(("params", "opts")):
        return []
    found = []
    for part in re.split("[:,]", value):
        name, sign, rest = part.strip().partition("=")
        if not re.fullmatch(r"[\w. -]*", name, re.ASCII) and sign:
            found.append(name)  # quotes and backslashes could spell another name
        elif _is_file_name(name.strip(), rest):
            found.append(name.strip())
    return found


def _is_file_name(key: str, value: str) -> bool:
    name = key.lower().replace("_", "-")
    if name in WORDS:
        return not re.fullmatch(WORDS[name], value)
    return NAMES_FILE.search(name) is not None and not HARMLESS.fullmatch(name)


@functools.cache
def _listed(encoder: str) -> frozenset[str]:
    """Return the options that imageio-ffmpeg's ffmpeg lists for an encoder."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-h", f"encoder={encoder}"]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603
    return frozenset(LISTED_NAME.findall(text))
