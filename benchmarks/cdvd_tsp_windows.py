"""CDVD-TSP as its reference schedules it, to compare with: each window of five frames anew.

    vdeblur bench --speed --model cdvd-tsp --size 256x256 --precision fp32 --reference benchmarks/cdvd_tsp_windows.py

That is three restorations and one for every frame, with the layers that `run` uses, so the ratio tells what a stream
saves by doing nothing twice. Its last line is the seconds for a frame.
"""

import sys
import time

import torch

from vdeblur.bench.network_speed import load_network
from vdeblur.restore import watch

WINDOWS = 2  # timed; each costs the same


def main() -> None:
    """Measure as the arguments WIDTHxHEIGHT, FRAMES (not needed here) and DEVICE say."""
    width, height = (int(side) for side in sys.argv[1].split("x"))
    chosen = torch.device(sys.argv[3])
    network = load_network("cdvd-tsp")[0].to(chosen).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    window = [torch.rand(1, 3, height, width, device=chosen) for _ in range(5)]
    with torch.inference_mode():
        for index in range(WINDOWS + 1):
            if index == 1:  # the first one warms up
                watch.synchronize(chosen)
                begun = time.perf_counter()
            network(*(network(*window[place : place + 3]) for place in range(3)))
    watch.synchronize(chosen)
    print((time.perf_counter() - begun) / WINDOWS)


if __name__ == "__main__":
    main()
