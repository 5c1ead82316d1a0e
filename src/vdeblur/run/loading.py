"""The network of a run: choose the model, load its weights, place it on the device."""

import hashlib
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vdeblur.errors import DeviceError, ModelError, UsageError
from vdeblur.events import Talk
from vdeblur.models import cache, choice, own, registry, weights
from vdeblur.models.registry import CHOSEN_NAMES, ModelEntry, Weights
from vdeblur.networks.layers import Network
from vdeblur.restore import device
from vdeblur.run.context import Context
from vdeblur.run.store import ModelChoice, earlier_choice
from vdeblur.settings import Settings
from vdeblur.source.info import SourceInfo

BEST = "best"  # the model name that stands for the strongest one this machine can run


@dataclass(frozen=True)
class Loaded:
    """A network on its device.

    digest: of the weights before their conversion to the precision. weights_sha256: of their file; empty if the model
    needs none. alters_sharp: whether the registry says that the model changes sharp frames. download_megabytes: size of
    weights that a dry run did not download; 0 if there is nothing to download, None if the size is unknown.
    """

    model: str
    digest: str
    network: Network
    device: torch.device
    precision: str
    weights_sha256: str = ""
    alters_sharp: bool = False
    download_megabytes: float | None = 0


@dataclass(frozen=True)
class Placed:
    """A network on a device.

    fallback: if the device is not the one `auto` prefers, the reason and the expected time; else None.
    """

    network: Network
    device: torch.device
    precision: str
    fallback: str | None


def settled(settings: Settings, loaded: Loaded) -> Settings:
    """Return settings with the guard and --only-blurred on or off, where they were left to the model and weights."""
    only_blurred, guard = settings.only_blurred, settings.guard
    if only_blurred is None and loaded.alters_sharp:
        only_blurred = True
    if guard is None:  # nobody knows what weights of one's own are meant to change
        guard = settings.checkpoint is None
    return replace(settings, only_blurred=only_blurred, guard=guard)


def check_model(settings: Settings) -> None:
    """Check the model's name before any file is opened.

    Raises: ModelError for an unknown model, UsageError for `best` or `auto` with a checkpoint.
    """
    if settings.model not in CHOSEN_NAMES:
        registry.find_entry(settings.model)
    elif settings.checkpoint is not None:
        hint = f"name it with -m; {settings.model} uses published weights only"
        raise UsageError("--weights needs the model it is for", hint)


def choose_model(settings: Settings, info: SourceInfo, chosen: torch.device, talk: Talk) -> str:
    """Return the model's name. For `best`, choose the model for this device and video, and report the choice."""
    if settings.model != BEST:
        return settings.model
    best = choice.strongest(chosen, settings.precision, info.height, info.width, info.frames_estimate, talk)
    talk.notify("choice", {"model": best.model, "reason": best.reason})
    return best.model


def prepare_network(context: Context, info: SourceInfo) -> Loaded:
    """Load the network for a video, downloading its weights if needed, and place it on the device."""
    settings = context.settings
    faults: list[str] = []
    chosen = device.choose_device(settings.device, faults.append)
    model = best_model(context, info, chosen) if settings.model == BEST else settings.model
    missing = _missing_weights(context, model)
    if missing is None:
        network = weights.load_model(model, settings.checkpoint, context.talk)
        digest = checksum(network)
    else:  # its tensors do not matter for a plan
        network, digest = registry.find_entry(model).build().eval(), ""
    size = (info.height, info.width, info.frames_estimate)
    placed = settle(network, registry.find_entry(model), chosen, settings, faults, size)
    precision = placed.precision
    if placed.fallback:
        context.warn("W_DEVICE", placed.fallback)
    if precision != "fp32" and precision not in network.half_precision:
        context.warn("W_PRECISION", f"{model} loses quality in {precision}; it is meant for fp32")
    context.profile.use(placed.device)
    sha256 = "" if missing is not None else _file_digest(model, settings.checkpoint)
    megabytes = 0 if missing is None else missing.megabytes
    alters_sharp = registry.find_entry(model).alters_sharp
    return Loaded(model, digest, placed.network, placed.device, precision, sha256, alters_sharp, megabytes)


def best_model(context: Context, info: SourceInfo, chosen: torch.device) -> str:
    """Return the name of the model that `best` stands for: of a resumed run that of the earlier one."""
    earlier = earlier_model(context, BEST)  # a busier machine must not change it
    model = choose_model(context.settings, info, chosen, context.talk) if earlier is None else earlier.model
    context.chosen = ModelChoice(BEST, model)
    return model


def earlier_model(context: Context, asked: str) -> ModelChoice | None:
    """Return what an interrupted run of this input chose, asked in the same way; None if a new choice is due.

    It is due, too, if those weights would now ask before their download.

    Raises: OutputError, InputError; see earlier_choice.
    """
    settings = context.settings
    earlier = earlier_choice(context.output, context.source_path, asked) if settings.resume else None
    if earlier is None or earlier.model.partition("@")[0] not in registry.known_models():
        return None
    try:
        entry, chosen = registry.choose_weights(earlier.model)
    except ModelError:
        return None
    return earlier if chosen is not None and choice.is_at_hand(entry, context.talk, chosen) else None


def _missing_weights(context: Context, model: str) -> Weights | None:
    """Return the weights that a dry run leaves to the run to download; None if there are none."""
    entry, chosen = registry.choose_weights(model)
    if not context.settings.dry_run or context.settings.checkpoint is not None or chosen is None:
        return None
    if context.talk.is_offline or not chosen.is_fetchable or cache.is_cached(entry, chosen):
        return None
    return chosen


def _file_digest(model: str, checkpoint: Path | None) -> str:
    """Return the SHA-256 of the file of a model's weights; empty if it has none."""
    if checkpoint is not None:
        with checkpoint.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    entry, chosen = registry.choose_weights(model)
    return "" if chosen is None else cache.digest_of(entry, chosen)


def settle(
    network: Network,
    entry: ModelEntry,
    chosen: torch.device,
    settings: Settings,
    faults: list[str],
    size: tuple[int, int, int | None],
) -> Placed:
    """Place a network on the chosen device; if that fails and the device was chosen by `auto`, on the CPU.

    faults: why devices were passed over already. size: height, width and, if known, the number of frames.

    Raises: DeviceError if a device that the user named lacks memory for the network, or fails.
    """
    precision = device.choose_precision(settings.precision, chosen, network)
    try:
        network = device.place(network, chosen, precision)
    except device.FAULTS as error:
        fault = f"{chosen} cannot take the network: {device.in_a_line(error)}"
        if settings.device != "auto" or chosen.type == "cpu":
            raise DeviceError(fault, "close other programs that use it, or use --device cpu") from error
        faults = [*faults, fault]
        chosen = torch.device("cpu")
        precision = device.choose_precision(settings.precision, chosen, network)
        network = device.place(network, chosen, precision)
    if not faults:
        return Placed(network, chosen, precision, None)
    reason = f"{'; '.join(faults)}; computing on {chosen} instead"
    return Placed(network, chosen, precision, reason + _expected_time(entry, chosen, precision, size))


def _expected_time(entry: ModelEntry, chosen: torch.device, precision: str, size: tuple[int, int, int | None]) -> str:
    height, width, frames = size
    if not entry.gmacs:
        return ""
    seconds = choice.seconds_per_frame(entry, height, width, choice.multiply_adds_per_second(chosen, precision))
    return f", about {choice.time_in_words(seconds * (frames or 1000))} for {'this file' if frames else '1000 frames'}"


def checksum(network: Network) -> str:
    """Return the CRC-32 of a network's tensors and their names, and of a user's own code, as eight hex digits."""
    crc = own.code_checksum(network)
    for name, tensor in sorted(network.state_dict().items()):
        crc = zlib.crc32(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), zlib.crc32(name.encode(), crc)
        )
    return f"{crc:08x}"
