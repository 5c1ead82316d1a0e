"""Measure how much memory each network needs: the numbers behind `--tile auto`.

    python -m benchmarks.network_memory [--models dstnet,nafnet-32] [--precisions fp32,bf16] [--side 512]

Each measurement is a process of its own, which first restores a small clip to load the libraries. On the CPU it is the
growth of the process's peak of resident memory from then on; on CUDA the peak of allocated memory. Clips are restored
untiled and in tiles, and by networks with windows also with two lengths of window; the differences give the bytes per
pixel of layers.Memory. For other sizes, `--frames N --tile N --window N` measures one such clip.
"""

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vdeblur.models import registry
from vdeblur.networks.layers import Network
from vdeblur.restore import device, streams
from vdeblur.restore.plan import plan_tiles
from vdeblur.settings import Settings

MODELS = "cdvd-tsp,pvdnet,pvdnet-large,dstnet,dstnet-l,dstnet-plus,dstnet-plus-l,basicvsrpp,nafnet-32,nafnet-64"
MODELS += ",estrnn,spn,flow-rnn,lite,turtle,turtle-bsd"
WINDOWS = (6, 12)  # lengths, for networks that hold a window
FRAMES = 5  # of clips for the others; with more frames memory does not grow


def main() -> None:
    """Start the processes and print the results; with --here, be one of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--side", type=int, default=512, help="side of the frames in pixels, a multiple of 64")
    parser.add_argument("--size", help="WIDTHxHEIGHT of the frames, for one measurement")
    parser.add_argument("--tile", default="none")
    parser.add_argument("--window", type=int, default=0)
    parser.add_argument("--frames", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(measure(options))
        return
    for model in options.models.split(","):
        for precision in options.precisions.split(","):
            if options.frames:
                size = options.size or f"{options.side}x{options.side}"
                peak = _measured(options, model, precision, size, options.tile, options.window, options.frames)
                print(f"{model} {precision} {size} tile {options.tile} window {options.window}: {peak / 1e9:.2f} GB")
            else:
                facts = per_pixel(options, model, precision)
                print(f"{model} {precision}: {json.dumps(facts)} bytes per pixel", flush=True)


def per_pixel(options: argparse.Namespace, model: str, precision: str) -> dict[str, int]:
    """Return a network's layers.Memory, in bytes per pixel."""
    side = options.side
    size, pixels = f"{side}x{side}", side**2
    tile = str(side // 2)
    network = registry.find_entry(model).network_class
    if network.feeding not in streams.WINDOWS:
        whole = _measured(options, model, precision, size, "none", 0, FRAMES) / pixels
        tiled = _measured(options, model, precision, size, tile, 0, FRAMES) / pixels
        per_tile = max(whole - tiled, 0) / 0.75  # a tile has a quarter of the pixels
        return {"tile": round(per_tile), "frame": round(max(whole - per_tile, 0))}
    short, long = WINDOWS
    whole, whole_long = (_measured(options, model, precision, size, "none", n, n + 2) / pixels for n in WINDOWS)
    tiled, tiled_long = (_measured(options, model, precision, size, tile, n, n + 2) / pixels for n in WINDOWS)
    # whole = tile + frame + n (tile_held + frame_held), tiled = tile / 4 + frame + n (tile_held / 4 + frame_held)
    held, held_tiled = (whole_long - whole) / (long - short), (tiled_long - tiled) / (long - short)
    rest, rest_tiled = max(whole - short * held, 0), max(tiled - short * held_tiled, 0)
    tile_held, per_tile = max(held - held_tiled, 0) / 0.75, max(rest - rest_tiled, 0) / 0.75
    frame, frame_held = max(rest - per_tile, 0), max(held - tile_held, 0)
    return {
        "tile": round(per_tile),
        "frame": round(frame),
        "tile_held": round(tile_held),
        "frame_held": round(frame_held),
    }


def _measured(
    options: argparse.Namespace, model: str, precision: str, size: str, tile: str, window: int, frames: int
) -> int:
    command = [sys.executable, "-m", "benchmarks.network_memory", "--here", "--models", model, "--size", size]
    command += ["--precisions", precision, "--tile", tile, "--window", str(window), "--frames", str(frames)]
    done = subprocess.run([*command, "--device", options.device], check=True, capture_output=True, text=True)
    print(f"  {model} {precision} {size} tile {tile} window {window}: {int(done.stdout) / 1e6:.0f} MB", file=sys.stderr)
    return int(done.stdout)


@torch.inference_mode()
def measure(options: argparse.Namespace) -> int:
    """Return the peak for one model, precision, tile and window above the loaded network, in bytes."""
    entry = registry.find_entry(options.models)
    chosen = device.choose_device(options.device)
    torch.manual_seed(0)
    network = entry.build().eval()
    for parameter in network.parameters():
        parameter.data.mul_(0.5)  # keeps an untrained recurrence from running away
    network = device.place(network, chosen, options.precisions)
    width, height = (int(side) for side in options.size.split("x"))
    restore_clip(network, chosen, (64, 64), 3, "none", 0)
    gc.collect()
    before = _resident("VmRSS")
    if chosen.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    restore_clip(network, chosen, (height, width), options.frames, options.tile, options.window)
    if chosen.type == "cuda":
        return torch.cuda.max_memory_allocated() - allocated
    return _resident("VmHWM") - before


def restore_clip(
    network: Network, chosen: torch.device, size: tuple[int, int], count: int, tile: str, window: int
) -> None:
    """Restore this many frames of noise."""
    overlap = min(network.overlap, int(tile) // 2) if tile.isdigit() else None
    plan = replace(plan_tiles(Settings(tile=tile, tile_overlap=overlap), *size, network, chosen), window=window or None)

    def frames() -> Iterator[Tensor]:
        for _ in range(count):
            yield plan.pad(torch.rand(1, 3, *size, device=chosen))

    for _ in streams.stream(network, frames(), plan):
        pass


def _resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


if __name__ == "__main__":
    main()
