"""Tiles and windows that fit into memory.

A network declares its memory per pixel (layers.Memory), memory.py measures what the device has. The plan is made before
the first frame. It depends on the free memory, but coarsely, because tiles and windows come in few sizes. With
--deterministic it depends on the total memory, and so is the same in every run.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from vdeblur.errors import UsageError
from vdeblur.networks.layers import Network
from vdeblur.restore import memory
from vdeblur.restore.streams import WINDOWS
from vdeblur.restore.tiles import TileNeeds, TilePlan, cut_tiles
from vdeblur.settings import Settings

AUTO_TILE = 1024  # pixels; side of the largest tile that --tile auto tries, unless four overlaps are more
LEAST_TILE = 32
STACK = 8  # tiles that a GPU computes together; a CPU's caches prefer one at a time
NEARLY = 1.1  # if nothing fits, plans within this factor of the least memory count as equal
LEAST_WINDOW = 6  # frames; fewer leave next to no look-ahead
# Shares of the free memory; the rest is for fragmentation and, on the CPU, for codecs and other programs.
CPU_SHARE, GPU_SHARE = 0.6, 0.85
# Bytes per pixel of a frame beside the network: to upload it, to add the difference and to pass it on (measured with
# identity, 1920x1080 on a CPU: 121 in 8-bit 4:2:0, 116 in 10-bit 4:4:4); and, for each frame that waits in a window,
# its planes and, if frames are padded, its picture without padding.
FRAME_BYTES, WAITING_BYTES = 125, 18


def plan_tiles(
    settings: Settings, height: int, width: int, network: Network, device: torch.device, window: int | None = None
) -> TilePlan:
    """Plan tiles as --tile says, and the frames of a window, to fit into memory.

    window: the window of an earlier plan, if this one must keep it.
    If nothing fits, return the first plan that needs at most NEARLY times the least memory.
    Raises: UsageError if --tile is not valid, or too small for the overlap.
    """
    overlap = overlap_of(settings, network)
    needs = TileNeeds.of(network)
    sizes = _sizes(settings, height, width, network, overlap)
    available = memory.total_bytes(device) / 2 if settings.deterministic else memory.free_bytes(device)
    room = available * (CPU_SHARE if device.type == "cpu" else GPU_SHARE)
    most = 1 if device.type == "cpu" else STACK
    plans = []
    for length in _windows(network) if window is None else (window,):
        for tile in sizes:
            plan = replace(cut_tiles(height, width, tile, overlap, needs, most), window=length)
            while needed_bytes(network, plan) > room and plan.at_once > 1:
                plan = replace(plan, at_once=plan.at_once // 2)
            if needed_bytes(network, plan) <= room:
                return plan
            plans.append(plan)
    # This may be enough all the same. Some networks need most memory for whole frames; smaller tiles only cost time.
    least = min(needed_bytes(network, plan) for plan in plans)
    return next(plan for plan in plans if needed_bytes(network, plan) <= NEARLY * least)


def overlap_of(settings: Settings, network: Network) -> int:
    """Return how many pixels neighbouring tiles share."""
    return network.overlap if settings.tile_overlap is None else settings.tile_overlap


def needed_bytes(network: Network, plan: TilePlan) -> float:
    """Estimate the peak memory of restoring by this plan, in bytes, without the network's weights."""
    cost = network.memory if network.float32_weights is None else network.half_memory
    held = plan.window or WINDOWS.get(network.feeding, 0)
    frame = FRAME_BYTES + cost.frame + held * (WAITING_BYTES + cost.frame_held)
    tile = cost.tile + held * cost.tile_held
    together = min(plan.at_once, plan.count)
    return frame * plan.padded[0] * plan.padded[1] + tile * plan.tile[0] * plan.tile[1] * together


def smaller(plan: TilePlan, overlap: int, network: Network) -> TilePlan | None:
    """Return the next smaller plan: fewer tiles together, then smaller tiles, then a shorter window.

    None if no useful plan is left.
    """
    if min(plan.at_once, plan.count) > 1:
        return replace(plan, at_once=1)
    side = max(plan.tile) // 2
    if side >= max(LEAST_TILE, 2 * overlap):
        cut = replace(cut_tiles(*plan.size, (side, side), overlap, TileNeeds.of(network)), window=plan.window)
        if cut.tile[0] * cut.tile[1] < plan.tile[0] * plan.tile[1]:
            return cut
    window = (plan.window or WINDOWS.get(network.feeding, 0)) // 2
    return replace(plan, window=window) if window >= LEAST_WINDOW else None


def in_words(plan: TilePlan) -> str:
    """Describe a plan in words."""
    rows, columns = plan.tile
    words = f"tiles of {columns}x{rows}" if plan.count > 1 else "whole frames"
    return words if plan.window is None else f"{words}, a window of {plan.window} frames"


def _sizes(settings: Settings, height: int, width: int, network: Network, overlap: int) -> list[tuple[int, int] | None]:
    """Return the sizes of tiles to choose from, the best first; None is the whole frame."""
    if settings.tile == "none":
        return [None]
    if settings.tile == "auto":
        side = max(network.best_tile or AUTO_TILE, 4 * overlap)
        fits_whole = network.best_tile is None and height * width <= network.whole_pixels
        sizes: list[tuple[int, int] | None] = [None] if fits_whole else []
        while side >= max(4 * overlap, 4 * LEAST_TILE):  # smaller ones would mostly be overlap
            sizes.append((side, side))
            side //= 2
        return sizes
    sides = settings.tile.split("x")  # Settings has checked it
    tile = (int(sides[-1]), int(sides[0]))
    if min(tile) < LEAST_TILE or min(tile) < 2 * overlap:
        raise UsageError(
            f"tiles of {tile[1]}x{tile[0]} are too small for an overlap of {overlap} pixels",
            f"they must be at least {LEAST_TILE} pixels and twice --tile-overlap",
        )
    return [tile]


def _windows(network: Network) -> Iterator[int | None]:
    """Yield the lengths of windows to choose from, the best first; None if the network needs no window."""
    window = WINDOWS.get(network.feeding)
    if window is None:
        yield None
        return
    while window >= LEAST_WINDOW:
        yield window
        window = window * 2 // 3
