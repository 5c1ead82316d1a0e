"""The reasons of a run's decisions in words, for the event `plan` and for --verbose."""

from vdeblur.output.encoding import VideoEncoding
from vdeblur.restore import plan as plans
from vdeblur.restore.tiles import TilePlan
from vdeblur.run.loading import Loaded
from vdeblur.run.parts import Encoding
from vdeblur.settings import Settings
from vdeblur.source.info import SourceInfo

# Of models that `run` chooses itself.
MODEL_REASONS = {"auto": "it suits the footage and this machine", "best": "the strongest that is quick enough here"}


def reasons_of(
    settings: Settings, info: SourceInfo, encoding: Encoding, loaded: Loaded, tiles: TilePlan
) -> dict[str, str]:
    """Return why each decision of a plan is as it is, by the decision's key in the event."""
    reasons = {
        "model": MODEL_REASONS.get(settings.model, "as named, or the default"),
        "device": _device_reason(settings, loaded),
        "precision": _precision_reason(settings, loaded),
        "tile": _tile_reason(settings, tiles),
        "only_blurred": _only_blurred_reason(settings, loaded),
        "guard": _guard_reason(settings),
        "segments": "the video is one segment" if settings.segment is None else f"{float(settings.segment):g} s each",
    }
    if isinstance(encoding, VideoEncoding):
        reasons |= {"encoder": _encoder_reason(settings, info, encoding), "container": _container_reason(settings)}
        reasons["pixel_format"] = _format_reason(settings, info, encoding)
    else:
        is_named = encoding.is_single or encoding.names
        reasons["encoder"] = "by the output's suffix" if is_named else "without loss: TIFF for TIFF, otherwise PNG"
        reasons["container"] = "the output is one picture" if encoding.is_single else "the output is a folder"
        reasons["pixel_format"] = f"what {encoding.codec} holds of {info.picture_format}"
    return reasons


def _device_reason(settings: Settings, loaded: Loaded) -> str:
    if settings.device != "auto":
        return "as named"
    return "no GPU works here" if loaded.device.type == "cpu" else "the first GPU that works"


def _precision_reason(settings: Settings, loaded: Loaded) -> str:
    if settings.precision != "auto":
        return "as named"
    if loaded.precision != "fp32":
        return f"{loaded.model} keeps its quality in {loaded.precision}, and {loaded.device} is faster in it"
    if not loaded.network.half_precision:
        return f"{loaded.model} loses quality in half precision"
    return f"{loaded.device} is not quicker in a precision in which {loaded.model} keeps its quality"


def _tile_reason(settings: Settings, tiles: TilePlan) -> str:
    return "as named" if settings.tile != "auto" else f"{plans.in_words(tiles)} fit the free memory"


def _only_blurred_reason(settings: Settings, loaded: Loaded) -> str:
    if settings.only_blurred is None:
        return f"{loaded.model} is not known to alter sharp frames"
    return f"{loaded.model} alters sharp frames" if settings.only_blurred and loaded.alters_sharp else "as named"


def _guard_reason(settings: Settings) -> str:
    if bool(settings.guard) == (settings.checkpoint is None):
        return "the default with --weights" if settings.checkpoint else "the default"
    return "as named"


def _encoder_reason(settings: Settings, info: SourceInfo, encoding: VideoEncoding) -> str:
    if settings.encoding.lossless:
        return "--lossless"
    if settings.encoding.codec is not None:
        return f"--codec {settings.encoding.codec}"
    return f"the input is {info.codec}; {encoding.container_name} usually holds this encoder"


def _container_reason(settings: Settings) -> str:
    return "by the output's suffix" if settings.encoding.format is None else "--format"


def _format_reason(settings: Settings, info: SourceInfo, encoding: VideoEncoding) -> str:
    if settings.encoding.pix_fmt != "keep":
        return "--pix-fmt"
    if encoding.format.replace("yuvj", "yuv") == info.picture_format.replace("yuvj", "yuv"):
        return "the input's"
    return f"the nearest to the input's {info.picture_format} that {encoding.coding.encoder.name} takes"
