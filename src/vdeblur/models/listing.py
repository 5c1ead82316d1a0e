"""The known models as one flat list: a row for each file of weights."""

from dataclasses import dataclass

from vdeblur.models import choice
from vdeblur.models.cache import is_cached, state_of
from vdeblur.models.registry import ModelEntry, PublishedScore, Weights, known_models, weights_of
from vdeblur.restore import device

SPEED_SIZE = (720, 1280)  # height and width of the frame that speed is estimated for


@dataclass(frozen=True)
class ListedModel:
    """A model with one of its weights; the fields are the keys of `vdeblur models list --json`.

    name: what load_model and `-m` take, NAME or NAME@WEIGHTS. weights: empty if the model has none, or needs none.
    cached: whether it runs without a download. state: where the weights are, in words. license: of the weights.
    parameters_millions; gmacs: multiply-adds of a 256x256 frame, in 10^9. start_of: of weights that training starts
    from, the model they are for; these restore nothing. megabytes: size of the download. trained_on, blur: the data
    set, and how its blur was made. suits: the footage they are for: any, real or strong, see registry.SUITS; empty if
    unknown. scores: published results of these weights.
    seconds_per_720p_frame: estimated for this machine, if list_models was asked to.
    """

    name: str
    model: str
    weights: str
    description: str
    cached: bool
    state: str
    license: str
    notice: str
    paper: str
    parameters_millions: float | None
    gmacs: float | None
    start_of: str
    megabytes: float | None
    trained_on: str
    blur: str
    scores: tuple[PublishedScore, ...]
    seconds_per_720p_frame: float | None = None
    suits: str = ""


def list_models(*, speed: bool = False) -> list[ListedModel]:
    """Return all known models, a row for each of their weights.

        names = [model.name for model in vdeblur.list_models() if model.cached]

    speed: also estimate seconds_per_720p_frame on the device that "auto" chooses; that measures it for a moment.

    Raises: ModelError if the file that VDEBLUR_REGISTRY names is wrong.
    """
    seconds = seconds_per_frame_here() if speed else {}
    rows: list[ListedModel] = []
    for entry in known_models().values():
        every: list[Weights | None] = [*weights_of(entry).values()]
        rows += [_row(entry, weights, seconds.get(entry.name)) for weights in every or [None]]
    return rows


def seconds_per_frame_here() -> dict[str, float]:
    """Estimate how many seconds each model takes for a 1280x720 frame on this machine."""
    chosen = device.choose_device("auto")
    rates: dict[str, float] = {}
    seconds = {}
    for entry in known_models().values():
        if entry.gmacs and entry.network:
            precision = device.choose_precision("auto", chosen, entry.network_class)
            if precision not in rates:
                rates[precision] = choice.multiply_adds_per_second(chosen, precision)
            seconds[entry.name] = round(choice.seconds_per_frame(entry, *SPEED_SIZE, rates[precision]), 3)
    return seconds


def _row(entry: ModelEntry, weights: Weights | None, seconds: float | None) -> ListedModel:
    is_default = weights is None or weights.name == entry.default
    return ListedModel(
        name=entry.name if is_default or weights is None else f"{entry.name}@{weights.name}",
        model=entry.name,
        weights="" if weights is None else weights.name,
        description=entry.description,
        cached=not entry.no_weights if weights is None else is_cached(entry, weights),
        state=state_of(entry, weights),
        license=entry.license,
        notice=entry.notice,
        paper=(weights.paper if weights else "") or entry.paper,
        parameters_millions=entry.parameters_millions,
        gmacs=entry.gmacs,
        start_of=entry.start_of,
        megabytes=None if weights is None else weights.megabytes,
        trained_on="" if weights is None else weights.trained_on,
        blur="" if weights is None else weights.blur,
        scores=entry.scores if weights is None else weights.scores,
        seconds_per_720p_frame=seconds,
        suits="" if weights is None else weights.suits,
    )
