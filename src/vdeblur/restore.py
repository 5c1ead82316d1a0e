"""Frames to restored frames, on the device: how they are cut up, and the stages between decoding and encoding."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vdeblur import color, scenes, streams, tiles
from vdeblur.errors import DeviceError, ExitStatus, InterruptedRunError, UsageError
from vdeblur.frame import Frame
from vdeblur.networks.layers import Network
from vdeblur.settings import Settings

AUTO_TILE = 1024


def never() -> ExitStatus | None:
    """Never ask to stop."""
    return None


def plan_tiles(settings: Settings, height: int, width: int, network: Network, chosen: torch.device) -> tiles.TilePlan:
    """Plan tiles as --tile says.

    Raises: UsageError where the value makes no sense.
    """
    overlap = network.overlap if settings.tile_overlap is None else settings.tile_overlap
    tile: tuple[int, int] | None
    if settings.tile == "none":
        tile = None
    elif settings.tile == "auto":
        side = max(AUTO_TILE, 4 * overlap)
        tile = None if height * width <= network.whole_pixels else (side, side)
    else:
        sides = settings.tile.lower().split("x")
        if len(sides) > 2 or not all(side.isdigit() for side in sides):
            raise UsageError(f"--tile {settings.tile} is not understood", "use auto, none, N or WxH, in pixels")
        tile = (int(sides[-1]), int(sides[0]))
    if tile is not None and (min(tile) < 32 or min(tile) < 2 * overlap):
        raise UsageError(
            f"tiles of {tile[1]}x{tile[0]} are too small for an overlap of {overlap} pixels",
            "they must be at least 32 pixels and twice --tile-overlap",
        )
    # One tile at a time keeps a CPU's caches warm; a GPU wants them together.
    at_once = 1 if chosen.type == "cpu" else 8
    return tiles.plan_tiles(
        height,
        width,
        tile,
        overlap,
        network.multiple,
        network.smallest,
        network.padding,
        at_once,
        network.reach,
        network.tile_multiple,
    )


class Restorer:
    """Frames to restored frames, on the device."""

    def __init__(
        self,
        network: Network,
        plan: tiles.TilePlan,
        chosen: torch.device,
        settings: Settings,
        stop: Callable[[], ExitStatus | None] = never,
    ) -> None:
        self.network, self.plan, self.device, self.settings, self.stop = network, plan, chosen, settings, stop
        self.detector: scenes.SceneDetector | None = None

    def check_stop(self) -> None:
        """Ask whether a signal came."""
        status = self.stop()
        if status is not None:
            raise InterruptedRunError(status)

    @torch.inference_mode()
    def restore(self, frames: Iterator[Frame]) -> Generator[Frame]:
        """Give every frame restored, in order, scene by scene."""
        self.detector = scenes.SceneDetector() if self.settings.scene_detect else None
        uploaded = self._upload(frames)
        first = next(uploaded, None)
        while first is not None:
            scene = _Scene(first, uploaded)
            waiting: deque[_Uploaded] = deque()

            def padded(scene: "_Scene" = scene, waiting: "deque[_Uploaded]" = waiting) -> Iterator[Tensor]:
                for item in scene.items():
                    waiting.append(item)
                    yield self.plan.pad(item.rgb[None])

            for restored in streams.stream(self.network, padded(), self.plan):
                yield self._finish(waiting.popleft(), restored)
            first = scene.next_first

    def _upload(self, frames: Iterator[Frame]) -> "Iterator[_Uploaded]":
        for frame in frames:
            self.check_stop()
            space = color.ColorSpace.of(frame.picture)
            planes = color.planes_of(frame, space, self.device)
            rgb = color.to_rgb(planes, space)
            cut = self.detector is not None and self.detector.is_cut(rgb)
            yield _Uploaded(frame, space, planes, rgb, cut)

    def _finish(self, item: "_Uploaded", restored: Tensor) -> Frame:
        """Add what the network changed to the frame's own planes."""
        difference = (self.plan.crop(restored)[0].float() - item.rgb) * self.settings.strength
        if not bool(torch.isfinite(difference.sum())):
            raise DeviceError(
                f"the network gave values that are not numbers at {float(item.frame.seconds):.3f} s",
                "use --precision fp32",
            )
        planes = color.add_difference(item.planes, difference, item.space)
        picture = color.with_planes(item.frame, planes, item.space)
        return Frame(picture, item.frame.pts, item.frame.time_base, item.frame.name)


@dataclass
class _Uploaded:
    frame: Frame
    space: color.ColorSpace
    planes: list[Tensor]
    rgb: Tensor
    begins_scene: bool


class _Scene:
    """The frames up to the next cut; the frame after it is kept for the next scene."""

    def __init__(self, first: _Uploaded, rest: Iterator[_Uploaded]) -> None:
        self.first, self.rest = first, rest
        self.next_first: _Uploaded | None = None

    def items(self) -> Iterator[_Uploaded]:
        yield self.first
        for item in self.rest:
            if item.begins_scene:
                self.next_first = item
                return
            yield item
