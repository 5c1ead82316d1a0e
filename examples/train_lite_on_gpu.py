"""Train lite on a GPU that is yours for some minutes only.

    python examples/train_lite_on_gpu.py FOOTAGE OUT [--minutes 7] [--init lite] [--batch 256]

FOOTAGE is a folder of sharp photographs and videos. Clips are made on the GPU, between the steps, so it never waits for
the CPU. The learning rate follows the clock: it reaches 0 when the time is over. OUT gets weights every two minutes
and at the end, for `vdeblur run --weights`. Without --batch, the batch that trains most frames a second is chosen.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import safetensors.torch
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vdeblur.models import registry, weights
from vdeblur.train import optimisers, recipes
from vdeblur.train.data import WorkerShare
from vdeblur.train.mixture_loader import MixtureLoader
from vdeblur.train.objectives.base import Batch
from vdeblur.train.objectives.lite import LiteObjective
from vdeblur.train.sharp_pictures import SharpPictures

BATCHES = (64, 128, 256, 512)
WARM_UP = 10.0  # seconds
SAVE_EVERY = 120.0  # seconds


class Session:
    """lite in training on one device."""

    def __init__(self, footage: Path, device: torch.device, init: str | None) -> None:
        self.recipe = recipes.load_recipe(registry.find_entry("lite"))
        mixture = self.recipe.mixture
        assert mixture is not None
        # More clips at once, and fewer of them kept, than on a CPU: the GPU makes them quickly.
        self.mixture = replace(mixture, clips=64 if device.type == "cuda" else 4, kept=32)
        self.pictures = SharpPictures(footage, mixture.window, held_out=mixture.held_out)
        self.device = device
        torch.manual_seed(0)
        network = weights.load_model(init) if init else registry.find_entry("lite").build()
        self.objective = LiteObjective(network, self.recipe.numbers).to(device).train()
        self.objective.network.to(memory_format=torch.channels_last)
        self.optimiser = optimisers.build(self.objective, "network", self.recipe.optimisers["network"])
        self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.998))
        self.updates = 0

    def batches(self, batch: int, seed: int) -> Iterator[Batch]:
        """Yield endless batches, made on the device."""
        return MixtureLoader(self.mixture, self.pictures, WorkerShare(batch), seed, self.device, workers=0).batches()

    def step(self, batch: Batch, factor: float) -> None:
        """Train on a batch, with the recipe's rates times factor."""
        with torch.autocast(self.device.type, torch.bfloat16):
            losses, _ = self.objective(batch, 0, self.updates, None)
        losses["loss"].backward()
        self.optimiser.step(factor)
        self.optimiser.zero_grad()
        self.average.update_parameters(self.objective.network)
        self.updates += 1

    def rate(self, batch: int, steps: int = 5) -> float:
        """Return how many frames a second train at this batch; clips are made beforehand."""
        made = self.batches(batch, seed=1)
        ready = [next(made) for _ in range(2)]
        self.step(ready[0], 0.0)
        self._wait()
        begun = time.perf_counter()
        for number in range(steps):
            self.step(ready[number % 2], 0.0)
        self._wait()
        return batch * steps / (time.perf_counter() - begun)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def save(self, path: Path) -> None:
        """Write the average of the weights, in half precision."""
        state = self.average.module.state_dict()
        halves = {name: tensor.half().contiguous().cpu() for name, tensor in state.items()}
        safetensors.torch.save_file(halves, path, {"network": "lite", "updates": str(self.updates)})


def main() -> None:
    """Train for the time given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--init", metavar="NAME", help="a model to start from, such as lite")
    parser.add_argument("--batch", type=int, help="frames in a batch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    begun = time.monotonic()
    given.out.mkdir(parents=True, exist_ok=True)
    session = Session(given.footage, torch.device(given.device), given.init)
    rates = {} if given.batch else {batch: session.rate(batch) for batch in BATCHES}
    batch = given.batch or max(rates, key=lambda size: rates[size])
    print(f"batch {batch}; frames a second: {rates}", flush=True)
    length, saved = given.minutes * 60 - (time.monotonic() - begun), 0.0
    begun = time.monotonic()
    made = session.batches(batch, seed=0)
    for number in count():
        spent = time.monotonic() - begun
        if spent >= length:
            break
        session.step(next(made), min(spent / WARM_UP, 1 - spent / length))
        if spent - saved >= SAVE_EVERY:
            saved = spent
            session.save(given.out / f"lite_{round(spent):04}.safetensors")
            print(f"{spent:.0f} s: {number + 1} updates, {batch * (number + 1) / spent:.0f} frames/s", flush=True)
    session.save(given.out / "lite.safetensors")
    print(f"{session.updates} updates of {batch} frames in {given.minutes:g} minutes")


if __name__ == "__main__":
    main()
