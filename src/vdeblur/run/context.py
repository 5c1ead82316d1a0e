"""What the stages of one run share: the source, the encoding and the loaded network."""

from dataclasses import dataclass

import torch

from vdeblur.errors import DeviceError
from vdeblur.models.choice import multiply_adds_per_second, seconds_per_frame, time_in_words
from vdeblur.models.registry import Entry
from vdeblur.networks.layers import Network
from vdeblur.output.encoding import VideoEncoding
from vdeblur.output.pictures import PictureEncoding
from vdeblur.restore import device
from vdeblur.settings import Settings


@dataclass(frozen=True)
class Placed:
    """A network where it computes.

    fallback: where that is not what `auto` would rather have, why, and how long it will take.
    """

    network: Network
    device: torch.device
    precision: str
    fallback: str | None


def settle(
    network: Network,
    entry: Entry,
    chosen: torch.device,
    settings: Settings,
    faults: list[str],
    size: tuple[int, int, int | None],
) -> Placed:
    """Place a network on the device chosen; where it fails there and the choice was free, on the CPU.

    faults: why devices were passed over already. size: height, width and, if known, number of the frames.
    Raises: DeviceError where a device asked for by name has no room for the network, or fails.
    """
    precision = device.choose_precision(settings.precision, chosen, network)
    try:
        network = device.place(network, chosen, precision)
    except device.FAULTS as error:
        fault = f"{chosen} cannot take the network: {device.in_a_line(error)}"
        if settings.device != "auto" or chosen.type == "cpu":
            raise DeviceError(fault, "close what else uses it, or use --device cpu") from error
        faults = [*faults, fault]
        chosen = torch.device("cpu")
        precision = device.choose_precision(settings.precision, chosen, network)
        network = device.place(network, chosen, precision)
    if not faults:
        return Placed(network, chosen, precision, None)
    why = f"{'; '.join(faults)}; computing on {chosen} instead"
    return Placed(network, chosen, precision, why + _how_long(entry, chosen, precision, size))


def _how_long(entry: Entry, chosen: torch.device, precision: str, size: tuple[int, int, int | None]) -> str:
    height, width, frames = size
    if not entry.gmacs:
        return ""
    seconds = seconds_per_frame(entry, height, width, multiply_adds_per_second(chosen, precision))
    return f", about {time_in_words(seconds * (frames or 1000))} for {'this file' if frames else '1000 frames'}"


QUEUE_FRAMES = 6  # between the stages' threads
Encoding = VideoEncoding | PictureEncoding


@dataclass(frozen=True)
class Loaded:
    """A network on its device. digest: of its weights, before they were converted."""

    model: str
    digest: str
    network: Network
    device: torch.device
    precision: str
