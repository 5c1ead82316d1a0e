"""CDVD-TSP as its reference code schedules it: each window of five frames from scratch.

    vdeblur bench --speed --model cdvd-tsp --size 256x256 --precision fp32 --reference benchmarks/cdvd_tsp_windows.py

That is four restorations per frame, with the layers that `run` uses, so the ratio shows what a stream saves by doing
nothing twice. The last line of its output is the seconds per frame.
"""

import sys
import time

import torch

from vdeblur.bench.network_speed import load_network
from vdeblur.restore import watch

WINDOWS = 2  # timed; each costs the same


def main() -> None:
    """Measure with the arguments WIDTHxHEIGHT, FRAMES (not used) and DEVICE."""
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
