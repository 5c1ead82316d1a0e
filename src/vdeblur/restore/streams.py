"""Feeding a network: the frames of one scene in, restored frames out, one function for each kind of network.

Each function takes a network, an iterator of padded frames, (1, 3, H, W) RGB in [0, 1] float32, and a plan of tiles. It
yields as many restored frames, in order, not clamped. It decides how far it reads ahead, and which of the network's
steps see whole frames and which see tiles. With a plan of one tile, several clips of one length can be fed together,
along B.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import Any, Protocol

import torch
from torch import Tensor

from vdeblur.errors import ModelError
from vdeblur.networks.layers import RECORDER, Network, show, shown_as
from vdeblur.restore.tiles import TilePlan

# If memory allows; a plan for less memory scales them down:
WINDOW, LOOK_AHEAD = 30, 10  # frames that a bidirectional network holds, and how many of them are only look-ahead
CLIP, CLIP_OVERLAP = 30, 5  # frames restored as one clip, as many as training saw, and the frames at its ends not used
WINDOWS = {"bidirectional": WINDOW, "clip": CLIP}  # feedings that hold a window
WARM_UP = 10  # frames after which a state is close to that of a network which has seen all earlier frames
RUNAWAY = 8.0  # a state larger than this many times its size after the first window has diverged
# Feedings whose networks restore each frame by a call of its own, without a state: unneeded calls can be left out.
SKIPPING = {"frame", "neighbours", "view", "window", "pair"}

Skip = Callable[[], bool]  # asked once for each frame, in order: whether nobody needs its restoration


def none_skipped() -> bool:
    """Skip no frame."""
    return False


def stream(network: Network, frames: Iterator[Tensor], plan: TilePlan, skip: Skip = none_skipped) -> Iterator[Tensor]:
    """Feed a scene to a network in the way that it declares; yield its restored frames (1, 3, H, W).

    skip: of the feedings in SKIPPING, such frames come out as they are; their neighbours see them all the same. Other
    networks restore every frame: a state must not miss one.

    Raises: ModelError if the network, which may be the user's own, does not return frames of the size that it got.
    """
    options = {"skip": skip} if network.feeding in SKIPPING else {}
    for restored in FEEDINGS[network.feeding](network, frames, plan, **options):
        if not isinstance(restored, Tensor) or restored.shape[-3:] != (3, *plan.padded):
            found = tuple(restored.shape) if isinstance(restored, Tensor) else type(restored).__name__
            height, width = plan.padded
            raise ModelError(
                f"{type(network).__name__} returned {found} for frames (1, 3, {height}, {width})",
                "restored frames must have the shape of the blurry ones",
            )
        yield restored


def stream_frames(
    network: Network, frames: Iterator[Tensor], plan: TilePlan, skip: Skip = none_skipped
) -> Iterator[Tensor]:
    """Feed a network that takes one frame at a time."""
    for frame in frames:
        yield frame if skip() else plan.apply(network, frame)


def stream_neighbours(
    network: Network, frames: Iterator[Tensor], plan: TilePlan, skip: Skip = none_skipped
) -> Iterator[Tensor]:
    """Feed a network that takes a frame and its two neighbours, which are None beyond the scene's ends."""
    previous: Tensor | None = None
    current = next(frames, None)
    while current is not None:
        following = next(frames, None)
        yield current if skip() else plan.apply(network, previous, current, following)
        previous, current = current, following


def stream_views(
    network: Network, frames: Iterator[Tensor], plan: TilePlan, skip: Skip = none_skipped
) -> Iterator[Tensor]:
    """Feed a network that looks at a whole frame and its neighbours first, and then restores tiles by its view.

    So motion and statistics of the whole frame do not depend on the tiles. Neighbours are None beyond the scene's ends.
    Where the network allows it, a thread looks at the next frame meanwhile. Neither step alone keeps all cores busy.
    """
    steps: Any = network
    looked = _looked_ahead if _may_look_ahead(network) else _looked
    for current, view in looked(network, frames, skip):
        yield current if view is None else current + plan.apply(steps.difference, *view)


def _may_look_ahead(network: Network) -> bool:
    on_cpu = all(parameter.device.type == "cpu" for parameter in network.parameters())
    return network.looks_ahead and on_cpu and torch.get_num_threads() > 1 and RECORDER.get() is None


def _looked(network: Any, frames: Iterator[Tensor], skip: Skip) -> Iterator[tuple[Tensor, Any]]:
    """Yield each frame with what the network's look returns of it; with None if it is skipped."""
    previous: Tensor | None = None
    current = next(frames, None)
    while current is not None:
        following = next(frames, None)
        yield current, None if skip() else network.look(previous, current, following)
        previous, current = current, following


def _looked_ahead(network: Any, frames: Iterator[Tensor], skip: Skip) -> Iterator[tuple[Tensor, Any]]:
    """Yield as _looked does; while the caller uses a view, a thread computes the next one."""
    inference = torch.is_inference_mode_enabled()  # it holds for one thread

    def look(*window: Tensor | None) -> Any:
        with torch.inference_mode(inference):
            return network.look(*window)

    current = next(frames, None)
    if current is None:
        return
    with ThreadPoolExecutor(1, "look") as thread:

        def begin(*window: Tensor | None) -> "Future[Any] | None":
            return None if skip() else thread.submit(look, *window)

        following = next(frames, None)
        view = begin(None, current, following)
        while following is not None:
            try:
                after = next(frames, None)
            except Exception:
                yield current, _result(view)  # what was read before the failure is restored first
                raise
            found = _result(view)
            view = begin(current, following, after)
            yield current, found
            current, following = following, after
        yield current, _result(view)


def _result(view: "Future[Any] | None") -> Any:
    return None if view is None else view.result()


def stream_windows(
    network: Network, frames: Iterator[Tensor], plan: TilePlan, skip: Skip = none_skipped
) -> Iterator[Tensor]:
    """Feed a network that restores the middle frame of a window (B, T, 3, H, W); end frames are repeated."""
    length = 2 * network.radius + 1
    window: deque[Tensor] = deque(maxlen=length)

    def restored() -> Iterator[Tensor]:
        if len(window) == length:
            middle = window[network.radius]
            yield middle if skip() else plan.apply(lambda *tiles: network(torch.stack(tiles, 1)), *window)

    for frame in frames:
        window.extend([frame] * (1 if window else network.radius + 1))
        yield from restored()
    for _ in range(network.radius if window else 0):
        window.append(window[-1])
        yield from restored()


def stream_pairs(
    network: Network, frames: Iterator[Tensor], plan: TilePlan, skip: Skip = none_skipped
) -> Iterator[Tensor]:
    """Feed a network that takes a frame and the next one; the last frame is paired with the one before it, if any."""
    previous: Tensor | None = None
    current = next(frames, None)
    while current is not None:
        following = next(frames, None)
        neighbour = following if following is not None else previous if previous is not None else current
        yield current if skip() else plan.apply(network, current, neighbour)
        previous, current = current, following


class Cascade(Protocol):
    """A network that restores the middle one of three frames, in several stages."""

    stages: int

    def pyramid(self, frame: Tensor) -> Any:
        """Return the features of a frame that all its windows share."""

    def align(self, frames: tuple[Tensor, ...], pyramids: tuple[Any, ...]) -> Tensor:
        """Return the input of `restore`, from three whole frames and their pyramids."""

    def restore(self, aligned: Tensor) -> Tensor:
        """Return the restored middle frame, whole or in tiles."""


def stream_cascade(network: Cascade, frames: Iterator[Tensor], plan: TilePlan) -> Iterator[Tensor]:
    """Feed a network that restores the middle one of three frames, stage after stage (CDVD-TSP).

    A stage yields one frame less at each end than it gets. Stages are chained iterators, so each frame passes every
    stage once. As in the reference, the clip is extended by its own first and last frames, in forward order: 0, 1 come
    before 0, 1, ..., and n-2, n-1 after ..., n-2, n-1.
    """
    restored = _extended(frames, network.stages)
    for stage in range(1, network.stages + 1):
        restored = _cascade_stage(network, restored, plan, stage)
    return restored


def _extended(frames: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    first = list(islice(frames, count))
    if not first:
        return
    missing = count - len(first)  # in a clip that is shorter
    yield from [first[0]] * missing + first
    last: deque[Tensor] = deque(maxlen=len(first))
    for frame in chain(first, frames):
        yield frame
        last.append(frame)
    yield from [*last] + [last[-1]] * missing


def _cascade_stage(network: Cascade, frames: Iterator[Tensor], plan: TilePlan, stage: int) -> Iterator[Tensor]:
    """Restore all frames but the first and the last. stage: its number, from 1."""
    index = stage - network.stages  # of the next result in the clip; the extension has frames before its first
    window: deque[tuple[Tensor, Any]] = deque(maxlen=3)
    for frame in frames:
        window.append((frame, network.pyramid(frame)))
        if len(window) == 3:
            pictures, pyramids = zip(*window, strict=True)
            # Flow and prior need the whole frame; only the rest is tiled.
            with shown_as(index, f"stage{stage}"):
                restored = plan.apply(network.restore, network.align(pictures, pyramids))
                if stage < network.stages:
                    show(network, "stage1", restored)
            index += 1
            yield restored


class Bidirectional(Protocol):
    """A network that propagates features through a clip in both directions; see dstnet.DSTNet."""

    def features(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the features of each whole frame."""

    def propagate_backward(self, features: Sequence[Tensor], keep: int | None = None) -> list[Tensor]:
        """Propagate features, whole or in tiles, from the last frame to the first.

        keep: return only those of the first `keep` frames; None: all.
        """

    def propagate_forward(self, backward: list[Tensor], state: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """Propagate them forward from a state; return them and the last state."""

    def reconstruct(self, frame: Tensor, propagated: Tensor) -> Tensor:
        """Return the restored frame, whole or in tiles."""


def stream_bidirectional(
    network: Bidirectional,
    frames: Iterator[Tensor],
    plan: TilePlan,
    window: int | None = None,
    ahead: int | None = None,
) -> Iterator[Tensor]:
    """Feed a network that propagates features through a clip, backward and then forward (DSTNet).

    window: how many frames' features are held, by default the plan's number. The backward pass begins at the last of
    them. Unless that ends the clip, the last `ahead` of them, by default a third, are left to the next window, which
    sees further. The forward state continues from window to window. A clip of at most `window` frames is restored as
    one.
    """
    window = window or plan.window or WINDOW
    ahead = min(LOOK_AHEAD, window // 3) if ahead is None else ahead
    waiting: deque[Tensor] = deque()  # frames that are read, but not restored

    def queued() -> Iterator[Tensor]:
        for frame in frames:
            waiting.append(frame)
            yield frame

    features = network.features(queued())
    window_features: list[Tensor] = []
    states: list[Tensor | None] = [None] * len(plan.groups())
    largest: float | None = None  # that a state may become
    while True:
        window_features += islice(features, window - len(window_features))
        ready = len(window_features) if len(window_features) < window else window - ahead  # frames to restore now
        if not ready:
            return
        parts = []
        for index, group in enumerate(plan.groups()):
            backward = network.propagate_backward([plan.split(part, group) for part in window_features], ready)
            propagated, states[index] = network.propagate_forward(backward, states[index])
            parts.append(propagated)
        del window_features[:ready]
        for tiles in zip(*parts, strict=True):
            yield plan.apply(network.reconstruct, waiting.popleft(), plan.join(tiles))
        # Each step is quadratic in the state, and training saw only short clips: reset a state that diverges.
        strength = max(float(state.detach().abs().amax()) for state in states if state is not None)
        largest = RUNAWAY * strength if largest is None else largest
        if not strength <= largest:  # also if it is NaN
            states = [None] * len(states)


def stream_chunks(network: Network, frames: Iterator[Tensor], plan: TilePlan, chunk: int) -> Iterator[Tensor]:
    """Feed a bidirectional or a clip network as its reference does: in independent chunks.

    For a clip network (BasicVSR++) the last chunk is the rest of the clip. For a bidirectional one (DSTNet) it is the
    clip's last `chunk` frames, and only those that are new are yielded. A network with a cell has a way of its own.
    """
    if network.feeding == "cell":
        cellular: Any = network
        yield from _cell_chunks(cellular, frames, plan, chunk)
        return
    feed: Feeding = stream_clip if network.feeding == "clip" else stream_bidirectional
    recent: list[Tensor] = []
    while fresh := list(islice(frames, chunk)):
        recent = fresh if network.feeding == "clip" else (recent + fresh)[-chunk:]
        restored = list(feed(network, iter(recent), plan, window=len(recent) + 1))
        yield from restored[-len(fresh) :]


class Recurrent(Protocol):
    """A network that also takes its result for the frame before, aligned by the motion between whole frames."""

    def align(self, restored: Tensor, current: Tensor, seen: Any) -> tuple[Tensor, Any]:
        """Return the last restored frame aligned to the current one, and what the next step can reuse."""

    def __call__(self, aligned: Tensor, previous: Tensor, current: Tensor, following: Tensor) -> Tensor:
        """Return the restored frame, whole or in tiles."""


def stream_recurrent(network: Recurrent, frames: Iterator[Tensor], plan: TilePlan) -> Iterator[Tensor]:
    """Feed a network that takes a frame, its neighbours, and its result for the frame before (PVDNet).

    At the ends of a clip a frame is its own neighbour, and the first frame stands in for the last result.
    """
    current = next(frames, None)
    previous, restored, seen = current, current, None
    while current is not None:
        following = next(frames, None)
        assert restored is not None
        aligned, seen = network.align(restored, current, seen)
        restored = plan.apply(network, aligned, previous, current, current if following is None else following)
        yield restored
        previous, current = current, following


class Causal(Protocol):
    """A network that restores a frame from itself and a state that it made of earlier frames; see turtle.Turtle."""

    def __call__(self, frame: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the restored frame, whole or in tiles, and the state for the next one.

        state: None for the first frame of a scene.
        """


def stream_causal(network: Causal, frames: Iterator[Tensor], plan: TilePlan) -> Iterator[Tensor]:
    """Feed a network that takes a frame and a state, and never looks ahead (Turtle).

    Each group of tiles has a state of its own.
    """
    groups = plan.groups()
    states: list[Any] = [None] * len(groups)
    for frame in frames:
        parts = []
        for index, group in enumerate(groups):
            restored, states[index] = network(plan.split(frame, group), states[index])
            parts.append(restored)
        yield plan.join(parts)


class Clipwise(Protocol):
    """A network that restores a clip as one; see basicvsrpp.BasicVSRPP."""

    def analyse(self, frames: Iterable[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Yield each whole frame with what `restore` needs of it."""

    def restore(self, clip: Sequence[tuple[Tensor, ...]], first: int = 0, last: int | None = None) -> Iterator[Tensor]:
        """Yield the restored frames from `first` to the one before `last`, whole or in tiles."""


def stream_clip(
    network: Clipwise,
    frames: Iterator[Tensor],
    plan: TilePlan,
    window: int | None = None,
    overlap: int | None = None,
) -> Iterator[Tensor]:
    """Feed a network in which every frame depends on the whole clip (BasicVSR++).

    window: how many frames are restored as one, by default the plan's number. Windows share 2 `overlap` frames, by
    default a third, and each yields the half of them next to its middle. A clip of at most `window` frames is restored
    as one.
    """
    window = window or plan.window or CLIP
    overlap = min(CLIP_OVERLAP, window // 6) if overlap is None else overlap
    analysed = network.analyse(frames)
    window_frames: list[tuple[Tensor, ...]] = []
    first, ended = 0, False
    while not ended:
        window_frames += islice(
            analysed, window + 1 - len(window_frames)
        )  # one more, to know whether the clip continues
        ended = len(window_frames) <= window
        assert ended or window > 2 * overlap, "windows must advance"
        last = len(window_frames) if ended else window - overlap
        parts: list[Iterator[Tensor]] = []
        for group in plan.groups():
            tiles = [tuple(plan.split(part, group) for part in frame) for frame in window_frames[:window]]
            part = network.restore(tiles, first, last)
            # Results need less memory than the analysed frames, so one tile after another is restored.
            parts.append(part if plan.count == 1 else iter(list(part)))
        for restored in zip(*parts, strict=True):
            yield plan.join(restored)
        first = overlap
        del window_frames[: last - overlap]


class Cellular(Protocol):
    """A recurrent cell over frames, and a fusion of its features of 2 radius + 1 frames; see estrnn.ESTRNN."""

    radius: int

    def begin(self) -> Any:
        """Return what is computed once for a clip, for `look`."""

    def step(self, frame: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the features of a frame and the next state, whole or in tiles."""

    def look(self, begun: Any, window: Sequence[Tensor]) -> Tensor:
        """Return what `fuse` needs to know of the features of whole frames."""

    def fuse(self, looked: Tensor, *window: Tensor) -> Tensor:
        """Return the restored middle frame of a window of features, whole or in tiles."""


def stream_cell(network: Cellular, frames: Iterator[Tensor], plan: TilePlan) -> Iterator[Tensor]:
    """Feed a network that carries a state forward, and restores the middle frame of a window of features (ESTRNN).

    The scene is extended by `radius` frames at each end, reflected in time without the edge frame: 2 1 | 0 1 2 ...
    """
    return _fused(network, _reflected(frames, network.radius), plan)


def _fused(network: Cellular, frames: Iterator[Tensor], plan: TilePlan) -> Iterator[Tensor]:
    """Yield restored frames, but none for the first and the last `radius` frames."""
    begun = network.begin()
    window: deque[Tensor] = deque(maxlen=2 * network.radius + 1)
    states: list[Tensor | None] = [None] * len(plan.groups())
    largest = 0.0  # that a state may become
    for index, frame in enumerate(frames):
        tiles = []
        with shown_as(index - network.radius):
            for number, group in enumerate(plan.groups()):
                features, states[number] = network.step(plan.split(frame, group), states[number])
                tiles.append(features)
            window.append(plan.join(tiles))
        if len(window) == window.maxlen:
            with shown_as(index - 2 * network.radius):
                looked = network.look(begun, window)
                yield plan.apply(functools.partial(network.fuse, looked), *window)
        # Nothing bounds the state, and training saw only short clips: begin anew if it diverges. Not at every frame,
        # because a GPU would have to finish its work for that.
        if (index + 1) % WARM_UP == 0:
            strength = max(float(state.detach().abs().amax()) for state in states if state is not None)
            largest = largest or RUNAWAY * strength
            if not strength <= largest:  # also if it is NaN
                states = [None] * len(states)


def _reflected(frames: Iterator[Tensor], radius: int) -> Iterator[Tensor]:
    """Extend a clip by `radius` frames at each end, reflected in time; one frame is repeated."""
    first = list(islice(frames, radius + 1))
    period = max(2 * (len(first) - 1), 1)
    if len(first) <= radius:  # shorter than the reflection, which is reflected again
        for index in range(-radius if first else 0, len(first) + radius if first else 0):
            yield first[min(index % period, -index % period)]
        return
    yield from first[:0:-1]
    last: deque[Tensor] = deque(maxlen=radius + 1)
    for frame in chain(first, frames):
        yield frame
        last.append(frame)
    yield from list(last)[-2::-1]


def _cell_chunks(network: Cellular, frames: Iterator[Tensor], plan: TilePlan, chunk: int) -> Iterator[Tensor]:
    """Restore chunks as ESTRNN's authors do: each from a state of zeros, without reflection.

    A chunk begins 2 `radius` frames before the end of the last one, so that results follow each other; the last chunk
    is the clip's last `chunk` frames, of which only new results count. The first and the last `radius` frames have no
    result, and are yielded as they are.
    """
    margin = network.radius
    recent = list(islice(frames, chunk))
    yield from recent[:margin]
    yield from _fused(network, iter(recent), plan)
    while fresh := list(islice(frames, chunk - 2 * margin)):
        recent = (recent + fresh)[-chunk:]
        yield from list(_fused(network, iter(recent), plan))[-len(fresh) :]
    yield from recent[max(len(recent) - margin, margin) :]


Feeding = Callable[..., Iterator[Tensor]]  # takes a network, an iterator of frames and a plan
FEEDINGS: dict[str, Feeding] = {
    "frame": stream_frames,
    "neighbours": stream_neighbours,
    "view": stream_views,
    "window": stream_windows,
    "pair": stream_pairs,
    "recurrent": stream_recurrent,
    "cascade": stream_cascade,
    "bidirectional": stream_bidirectional,
    "clip": stream_clip,
    "cell": stream_cell,
    "causal": stream_causal,
}


def frames_around(network: Network) -> tuple[int, int]:
    """Return how many frames before and after a part of a scene are needed to restore it as within the scene.

    With them, networks without a state return exactly the same result, and so do causal ones that declare how many
    earlier frames count. Others with a state would need all earlier frames for that; after WARM_UP of them its state is
    close.
    """
    reach = network.radius if network.feeding == "window" else getattr(network, "stages", 0)
    return {
        "frame": (0, 0),
        "neighbours": (1, 1),
        "view": (1, 1),
        "window": (reach, reach),
        "pair": (1, 1),
        "recurrent": (WARM_UP, 1),
        "cascade": (reach, reach),
        "bidirectional": (WARM_UP, LOOK_AHEAD),
        "clip": (CLIP_OVERLAP, CLIP_OVERLAP),
        "cell": (WARM_UP, network.radius),
        "causal": (WARM_UP if network.earlier is None else network.earlier, 0),
    }[network.feeding]
