"""How much memory each network takes for a clip, beside what its reference takes.

    python -m benchmarks.network_memory [--models dstnet,nafnet-32] [--size 256x256] [--frames 5] [--precisions fp32]
    python -m benchmarks.network_memory --models dstnet --size 1280x720 --windows 10,30 --precisions bf16

Each measurement is a process of its own. On the CPU it prints the peak of the process's resident memory, and what was
resident before the first frame; on CUDA the peak that was allocated. `--windows` are those of bidirectional networks;
the clip is then two frames longer, so that the window has been full and has moved on.
"""

import argparse
import resource
import subprocess
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from vdeblur import device, streams, weights
from vdeblur.networks import NETWORKS
from vdeblur.restore import plan_tiles
from vdeblur.settings import Settings

# Of the references' own code, in bytes: BasicVSR++ 5 frames of 256x256, peak resident; NAFNet a frame of 1280x720 with
# exact TLC, above the loaded network; both in float32.
REFERENCE = {
    ("basicvsrpp", "256x256"): 445e6,
    ("nafnet-32", "1280x720"): 1.1e9,
    ("nafnet-64", "1280x720"): 2.2e9,
}


def main() -> None:
    """Start a process for each measurement, or measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default="cdvd-tsp,pvdnet,dstnet,dstnet-plus,basicvsrpp,nafnet-32,spn,flow-rnn")
    parser.add_argument("--precisions", default="fp32")
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--windows", default="0")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        measure(options)
        return
    for model in options.models.split(","):
        for precision in options.precisions.split(","):
            for window in options.windows.split(","):
                command = [sys.executable, "-m", "benchmarks.network_memory", "--here", "--models", model]
                command += ["--precisions", precision, "--size", options.size, "--device", options.device]
                command += ["--frames", str(options.frames), "--windows", window]
                subprocess.run(command, check=True)


@torch.inference_mode()
def measure(options: argparse.Namespace) -> None:
    """Print the peak for one model, precision and window."""
    entry = weights.find_entry(options.models)
    chosen = device.choose_device(options.device)
    torch.manual_seed(0)
    network = NETWORKS[entry.network](**entry.arguments).eval()
    for parameter in network.parameters():
        parameter.data.mul_(0.5)  # keeps an untrained recurrence from running away
    network = device.place(network, chosen, options.precisions)
    width, height = (int(side) for side in options.size.split("x"))
    plan = plan_tiles(Settings(tile="none"), height, width, network, chosen)
    window = int(options.windows)
    count = window + 2 if window else options.frames

    def frames() -> Iterator[Tensor]:
        for _ in range(count):
            yield plan.pad(torch.rand(1, 3, height, width, device=chosen))

    before = _peak(chosen)
    if window:
        ahead = min(streams.AHEAD, window // 3)
        restored = streams.stream_bidirectional(network, frames(), plan, window, ahead)  # type: ignore[arg-type]
    else:
        restored = streams.stream(network, frames(), plan)
    for _ in restored:
        pass
    peak = _peak(chosen)
    line = f"{options.models} {options.size} {options.precisions} on {chosen}, {count} frames"
    line += f", window {window}: " if window else ": "
    line += f"peak {peak / 1e9:.2f} GB, {(peak - before) / 1e9:.2f} GB above the loaded network"
    if (options.models, options.size) in REFERENCE and options.precisions == "fp32":
        line += f"; reference {REFERENCE[options.models, options.size] / 1e9:.2f} GB"
    print(line, flush=True)


def _peak(chosen: torch.device) -> int:
    if chosen.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
