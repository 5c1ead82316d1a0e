"""The question for weights without a published digest, put before several files are started."""

from vdeblur.events import Talk
from vdeblur.models import cache, registry
from vdeblur.models.registry import CHOSEN_NAMES
from vdeblur.settings import Settings


def answer_questions(settings: Settings, talk: Talk) -> None:
    """Ask now about weights that no digest verifies, and download them if the user agrees.

    Several files run in threads. There a question could be put for each file, amid the progress of others, and Ctrl-C
    would not end it, because Python handles signals in the main thread only.

    Raises: ModelError if the user declines or the download fails, InterruptedRunError.
    """
    if talk.ask is None or settings.model in CHOSEN_NAMES or settings.checkpoint is not None:
        return
    entry, weights = registry.choose_weights(settings.model)
    if weights is not None and weights.verification == "unpinned" and not cache.is_cached(entry, weights):
        cache.obtain_weights(entry, weights, talk)
