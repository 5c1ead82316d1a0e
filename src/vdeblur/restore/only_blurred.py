"""`vdeblur run --only-blurred`: each frame gets as much of its restoration as its blur asks for.

    frames -> slope of each (measure/blur.py) -> strength by the scene (strength.py) -> smoothed over time

Frames with a strength of 0 pass unchanged, to the bit. A network without a state is not even called for them; one with
a state sees every frame, because its memory must not miss any. Of a file, strengths depend on nothing but the frames
around and what a first pass found, so resumed and divided runs give the same. A pipe is read only once, in order: its
strengths depend on the frames before, too, back to the last cut, and are kept from one segment to the next.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.frame import Frame
from vdeblur.measure import blur
from vdeblur.restore import color
from vdeblur.restore.area import Area
from vdeblur.restore.scenes import SMALL, SceneDetector
from vdeblur.restore.strength import SMOOTHED, highest_slope, raw_strength, smoothed_strength
from vdeblur.restore.watch import OFF, Watch

AROUND = SMOOTHED + 1  # frames to decode before and after a part: the outermost are measured between their neighbours
HELD = 250  # slopes of a scene from which a pipe's strengths are computed
REREAD = 1000  # frames of a pipe whose strengths are kept: more than any network sees around a border
MOST_MEASURES = 200  # of a scene in the first pass; if there are more, every second one is left out
LEAST_SIDE = 128  # pixels of an area; in smaller ones slopes mean little, and the whole frame is measured
LARGEST_PTS = 1 << 62  # FFmpeg's times are 64 bits wide

Part = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class SceneStart:
    """The beginning of a scene, as a first pass found it.

    pts: of its first frame. highest: the slope from which its frames need no restoration.
    """

    pts: int
    highest: float


def scenes_as_json(scenes: Sequence[SceneStart] | None) -> list[list[float]] | None:
    """Return scenes as JSON holds them."""
    return None if scenes is None else [[scene.pts, scene.highest] for scene in scenes]


def scenes_from_json(value: Any) -> list[SceneStart] | None:
    """Return scenes that were read.

    Raises: TypeError or ValueError where they are not what scenes_as_json returns.
    """
    if value is None:
        return None
    scenes = [SceneStart(pts, highest) for pts, highest in value]
    for scene in scenes:
        is_time = isinstance(scene.pts, int) and abs(scene.pts) <= LARGEST_PTS
        if not is_time or not isinstance(scene.highest, float) or not math.isfinite(scene.highest):
            raise ValueError("not scenes")
    return scenes


def measuring_device(device: torch.device) -> torch.device:
    """Return the device to measure on, for a network on a device: the same where it has float64, else the CPU."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def measured_part(area: Area | None) -> Part | None:
    """Return the rows and columns to measure where an area is restored; None: all, also where the area is small."""
    return None if area is None or min(area.size) < LEAST_SIDE else (area.rows, area.columns)


def measured_luma(frame: Frame, device: torch.device, part: Part | None = None) -> Tensor:
    """Return a frame's luma as measure/blur.py takes it: (1, 1, H, W) in [0, 1], short side at most 540 pixels.

    part: rows and columns to measure; None: all.
    """
    rows, columns = (slice(None), slice(None)) if part is None else part
    space = color.ColorSpace.of(frame.picture, frame.chroma_location)
    planes = color.planes_of(frame, space, device)
    if space.layout.rgb:
        return blur.reduced_luma(blur.luma_from_rgb(color.to_rgb(planes, space)[None, :, rows, columns]))
    black, extent = space.luma
    return blur.reduced_luma(((planes[0][rows, columns].float() - black) / extent).clamp_(0, 1)[None, None])


class CutFinder:
    """Detects cuts as scenes.SceneDetector does, from frames that are not converted to RGB at full size."""

    def __init__(self, detects: bool) -> None:
        self.detector = SceneDetector() if detects else None

    def begins_scene(self, frame: Frame) -> bool:
        """Return whether a frame begins a new scene; the first frame does not."""
        return self.detector is not None and self.detector.is_cut(_small_rgb(frame))


def _small_rgb(frame: Frame) -> Tensor:
    """Return a frame reduced to 64x36, as RGB: the planes are averaged before they are converted."""
    space = color.ColorSpace.of(frame.picture, frame.chroma_location)
    planes = color.planes_of(frame, space, torch.device("cpu"))
    small = [F.adaptive_avg_pool2d(plane.float()[None], SMALL)[0] for plane in planes]
    whole = replace(space.layout, log2_width=0, log2_height=0)  # chroma now has the size of luma
    return color.to_rgb(small, replace(space, layout=whole))


@dataclass
class SceneSlopes:
    """Samples the slopes of a scene in a first pass: of every second frame, of fewer in long scenes."""

    pts: int
    part: Part | None = None  # of the frames that is measured
    measures: list[blur.BlurMeasure] = field(default_factory=list)
    step: int = 2  # frames from one that is measured to the next; the first is the one after the scene's first
    count: int = 0
    window: list[Tensor] = field(default_factory=list)  # luma of the frame to measure, and of the one before

    def add(self, frame: Frame, device: torch.device) -> None:
        """Add the next frame; measure the one before if it is that one's turn."""
        place, self.count = self.count % self.step, self.count + 1
        if place > 2:
            return
        luma = measured_luma(frame, device, self.part)
        if len(self.window) == 2:
            self._measure(luma)
        if place < 2:
            self.window = [luma] if place == 0 else [*self.window, luma]

    def end(self) -> SceneStart:
        """Return the result: no frame follows."""
        if len(self.window) == 2:
            self._measure(None)
        slopes = [measure.slope_along for measure in self.measures if measure.motion >= blur.STILL]
        return SceneStart(self.pts, round(highest_slope(slopes), 4))

    def _measure(self, following: Tensor | None) -> None:
        previous, current = self.window
        self.measures.append(blur.blur_of(previous, current, following))
        self.window = []
        if len(self.measures) > MOST_MEASURES:
            self.measures = self.measures[::2]
            self.step *= 2


@torch.inference_mode()
def scene_starts(
    frames: Iterator[Frame], device: torch.device, detects_scenes: bool, area: Area | None = None
) -> list[SceneStart]:
    """Return all scenes of a video, each with the slope from which its frames need no restoration."""
    cuts = CutFinder(detects_scenes)
    scenes: list[SceneStart] = []
    scene: SceneSlopes | None = None
    for frame in frames:
        is_cut = cuts.begins_scene(frame)
        if scene is None or is_cut:
            scenes += [] if scene is None else [scene.end()]
            scene = SceneSlopes(frame.pts, measured_part(area))
        scene.add(frame, device)
    return scenes if scene is None else [*scenes, scene.end()]


@dataclass
class _Measured:
    """A frame with its own strength. begins: whether it begins a scene."""

    frame: Frame
    begins: bool
    luma: Tensor
    strength: float = 0.0


class OnlyBlurred:
    """Measures frames before they are restored, and sets the strength of each.

    scenes: what a first pass found, in order. None: the input cannot be read twice; cuts are then detected here, and
    the slopes of the last frames of the scene stand for all. area: the part of frames that is restored; None: all.
    """

    def __init__(
        self,
        scenes: Sequence[SceneStart] | None,
        device: torch.device,
        detects_scenes: bool = True,
        watch: Watch = OFF,
        area: Area | None = None,
    ) -> None:
        self.scenes, self.detects_scenes, self.watch = scenes, detects_scenes, watch
        self.device = measuring_device(device)
        self.times = [scene.pts for scene in scenes or ()]
        self.firsts = set(self.times)
        self.part = measured_part(area)
        # Of a pipe, over all its segments: frames around a border are read twice, and must get the same again.
        self.cuts = CutFinder(detects_scenes and scenes is None)
        self.slopes: deque[float] = deque(maxlen=HELD)
        self.begins: dict[int, bool] = {}  # by pts
        self.strengths: dict[int, float] = {}  # of frames by themselves, by pts

    @torch.inference_mode()
    def with_strengths(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Yield every frame with its strength; read AROUND frames ahead.

        Call it for each segment. Those of a pipe must come in order, each with AROUND frames before and after it.
        """
        measured = self._measured(frames)
        past: deque[float] = deque(maxlen=SMOOTHED)  # of the frames of the scene that were yielded
        ahead: deque[_Measured] = deque()
        while True:
            while len(ahead) <= SMOOTHED and (item := next(measured, None)) is not None:
                ahead.append(item)
            if not ahead:
                return
            current = ahead.popleft()
            if current.begins:
                past.clear()
            following = []
            for item in ahead:
                if item.begins:
                    break
                following.append(item.strength)
            smoothed = smoothed_strength([*past, current.strength, *following], len(past))
            past.append(current.strength)
            yield replace(current.frame, strength=smoothed)

    def _measured(self, frames: Iterator[Frame]) -> Iterator[_Measured]:
        """Yield frames with their own strengths; read one frame ahead."""
        previous: _Measured | None = None
        current = self._look(next(frames, None))
        while current is not None:
            following = self._look(next(frames, None))
            if current.begins:
                previous = None
            if current.frame.pts in self.strengths:
                current.strength = self.strengths[current.frame.pts]
            else:
                with self.watch.stage("blur"):
                    self._measure(current, previous, following)
            yield current
            previous, current = current, following

    def _look(self, frame: Frame | None) -> _Measured | None:
        if frame is None:
            return None
        with self.watch.stage("blur"):
            return _Measured(frame, self._begins(frame), measured_luma(frame, self.device, self.part))

    def _begins(self, frame: Frame) -> bool:
        """Return whether a frame begins a scene."""
        if self.scenes is not None:
            return frame.pts in self.firsts
        if frame.pts not in self.begins:
            _keep(self.begins, frame.pts, self.cuts.begins_scene(frame))
        return self.begins[frame.pts]

    def _measure(self, current: _Measured, previous: _Measured | None, following: _Measured | None) -> None:
        """Set a frame's own strength."""
        before = None if previous is None else previous.luma
        after = None if following is None or following.begins else following.luma
        measure = blur.blur_of(before, current.luma, after)
        if self.scenes is None:
            if current.begins:
                self.slopes.clear()
            is_moving = measure.motion >= blur.STILL
            highest = highest_slope([*self.slopes, *([measure.slope_along] if is_moving else [])])
        else:
            place = bisect_right(self.times, current.frame.pts) - 1
            highest = self.scenes[place].highest if place >= 0 else blur.HIGHEST
        current.strength = raw_strength(measure, highest, before is not None or after is not None)
        if self.scenes is None and following is not None:  # else the next segment measures it with its neighbour
            self.slopes += [measure.slope_along] if is_moving else []
            _keep(self.strengths, current.frame.pts, current.strength)


def _keep(values: dict[int, Any], pts: int, value: Any) -> None:
    """Add a value, and forget the oldest."""
    values[pts] = value
    if len(values) > REREAD:
        del values[next(iter(values))]


@dataclass
class StrengthSum:
    """Counts frames by their strength. restored: with a strength above 0. total: the sum of all strengths."""

    frames: int = 0
    restored: int = 0
    total: float = 0.0

    def add(self, strength: float) -> None:
        """Count a frame."""
        self.frames += 1
        self.restored += strength > 0
        self.total += strength

    def facts(self) -> dict[str, object]:
        """Return the payload of an event."""
        mean = round(self.total / self.frames, 4) if self.frames else 0.0
        return {"frames": self.frames, "restored": self.restored, "mean_strength": mean}
