"""How long each network takes for a 256x256 frame on one thread, beside what its reference takes.

    python -m benchmarks.network_speed [--models cdvd-tsp,dstnet] [--side 256]

A clip goes through the code that `run` uses; two lengths of it are timed, and the difference is what one more frame
costs. Seconds are processor time, so that other work on the machine counts for little. The reference's figures are
of its own code on one thread of a like machine (AMD EPYC, torch 2.13), so a ratio holds roughly only; where the
reference computes things again and again that a stream can keep, that schedule is timed here as well, with the same
layers, and that ratio is exact.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vdeblur import device, streams, tiles, weights
from vdeblur.networks import NETWORKS
from vdeblur.networks.layers import Network

REFERENCE = {  # seconds
    "cdvd-tsp": 4.44,
    "pvdnet": 0.69,
    "pvdnet-large": 1.19,
    "dstnet": 0.785,
    "dstnet-l": 2.05,
    "dstnet-plus": 0.605,
    "dstnet-plus-l": 1.9,
    "basicvsrpp": 0.445,
    "nafnet-32": 0.45,
    "nafnet-64": 1.45,
}
SHORT, LONG = 3, 7  # frames


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default=",".join(["lite", *REFERENCE, "spn", "flow-rnn"]))
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'model':14}{'precision':>10}{'s/frame':>9}{'reference':>11}{'ratio':>7}{'its schedule':>14}{'ratio':>7}")
    for model in options.models.split(","):
        for precision in options.precisions.split(","):
            entry = weights.find_entry(model)
            torch.manual_seed(0)
            network = NETWORKS[entry.network](**entry.arguments).eval()
            for parameter in network.parameters():
                parameter.data.mul_(0.5)  # keeps untrained recurrences from running away
            network = device.place(network, torch.device("cpu"), precision)
            ours = _marginal(partial(_stream, network), options.side, options.repeats)
            line = f"{model:14}{precision:>10}{ours:9.3f}"
            if model in REFERENCE and options.side == 256:
                line += f"{REFERENCE[model]:11.2f}{REFERENCE[model] / ours:7.2f}"
            if model == "cdvd-tsp" and precision == "fp32":
                theirs = _marginal(partial(_windows, network), options.side, 1)
                line += f"{theirs:14.3f}{theirs / ours:7.2f}"
            print(line, flush=True)


def _marginal(restore: Callable[[list[Tensor]], None], side: int, repeats: int) -> float:
    seconds = {}
    for frames in (SHORT, LONG):
        clip = [torch.rand(1, 3, side, side) for _ in range(frames)]
        times = []
        for _ in range(repeats):
            begun = time.process_time()
            with torch.inference_mode():
                restore(clip)
            times.append(time.process_time() - begun)
        seconds[frames] = min(times)
    return (seconds[LONG] - seconds[SHORT]) / (LONG - SHORT)


def _stream(network: Network, clip: list[Tensor]) -> None:
    height, width = clip[0].shape[2:]
    plan = tiles.plan_tiles(height, width, None, 0, network.multiple, network.smallest, network.padding)
    for _ in streams.stream(network, map(plan.pad, clip), plan):
        pass


def _windows(network: Network, clip: list[Tensor]) -> None:
    """CDVD-TSP as its reference schedules it: each window of five frames anew, three restorations and one."""
    for index in range(len(clip)):
        window = [clip[min(max(place, 0), len(clip) - 1)] for place in range(index - 2, index + 3)]
        network(*(network(*window[place : place + 3]) for place in range(3)))


if __name__ == "__main__":
    main()
