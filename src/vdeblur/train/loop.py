"""Train a network on a pool of synthetic clips; stops and goes on at any step.

    python -m vdeblur.train.loop OUT_DIR --pool DIR --validation DIR

OUT_DIR/state.pt holds everything that is needed to go on (weights, averaged weights, optimisers, random state) and
is replaced whole every few minutes; OUT_DIR/best.safetensors holds the averaged weights with the best validation
score so far, in the file's metadata how they came about; OUT_DIR/log.csv a line per validation. Interrupting loses
at most the time since the last validation. The rate is constant after a short warm-up; `--cooldown N` lets it fall
to zero over N steps, which is how weights are finished for shipping.
"""

import contextlib
import csv
import itertools
import json
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy
import safetensors.torch
import torch
from torch import Tensor, nn

from vdeblur.networks.lite import Lite
from vdeblur.train import losses

WARM_UP_STEPS = 100
SPECTRAL_WEIGHT = 0.3
LOG_ERROR_WEIGHT = 0.02  # brings its gradients to the size of the other loss's, for the clipping
AVERAGE_DECAY = 0.998  # of the averaged weights, per step
GRADIENT_NORM = 0.5
OTHERS_RATE = 1.0  # rate of what Muon does not move (ends, weighing, biases), as a share of Muon's


class ClipPool:
    """Random crops of the clips in a folder of shards (see pool.py); shards that appear later are found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: list[numpy.ndarray] = []
        self.refresh()
        if not self.shards:
            raise click.UsageError(f"no shard-*.npy in {folder}: make them with python -m vdeblur.train.pool")

    def refresh(self) -> None:
        """Map the shards that are there now."""
        self.shards = [numpy.load(path, mmap_mode="r") for path in sorted(self.folder.glob("shard-*.npy"))]

    def draw(self, rng: numpy.random.Generator, clips: int, frames: int, side: int) -> Tensor:
        """Give uint8 (2, clips, frames, 3, side, side), blurry and sharp, randomly turned, mirrored and reversed."""
        batch = []
        for _ in range(clips):
            shard = self.shards[rng.integers(len(self.shards))]
            clip = shard[rng.integers(len(shard))]  # (2, T, 3, H, W)
            first, top, left = (
                int(rng.integers(have - want + 1))
                for have, want in zip((clip.shape[1], *clip.shape[3:]), (frames, side, side), strict=True)
            )
            clip = clip[:, first : first + frames, :, top : top + side, left : left + side]
            clip = numpy.rot90(clip, int(rng.integers(4)), axes=(3, 4))
            if rng.random() < 0.5:
                clip = clip[..., ::-1]
            if rng.random() < 0.5:
                clip = clip[:, ::-1]
            batch.append(torch.from_numpy(numpy.ascontiguousarray(clip)))
        return torch.stack(batch, 1)

    def batches(self, seed: int, first: int, clips: int, frames: int, side: int) -> Iterator[Tensor]:
        """Give the batches of step `first` and those after it, drawn in a thread of their own."""
        ready: queue.Queue[Tensor] = queue.Queue(4)

        def work() -> None:
            for number in itertools.count(first):
                if number % 200 == 0:
                    self.refresh()
                # A step's batch depends on nothing but its number, so that training can go on anywhere.
                ready.put(self.draw(numpy.random.default_rng((seed, number)), clips, frames, side))

        threading.Thread(target=work, daemon=True).start()
        while True:
            yield ready.get()


@dataclass(frozen=True)
class Score:
    """Mean PSNR in dB over validation clips: of the blurry input, of its restoration, and of what was sharp already."""

    blurry: float
    restored: float
    untouched: float


@torch.no_grad()
def validate(network: nn.Module, shards: list[numpy.ndarray], device: torch.device) -> Score:
    """Score a network on whole clips, bf16 where training uses it."""
    network.eval()
    blurry_scores, restored_scores, untouched_scores = [], [], []
    for shard in shards:
        for clip in shard:
            blurry, sharp = torch.from_numpy(numpy.array(clip)).to(device).float().div(255).unbind()
            with torch.autocast(device.type, torch.bfloat16):
                restored = network(blurry[None])[0].float()
            restored = restored.clamp(0, 1).mul(255).round().div(255)
            score = _psnr(restored, sharp)
            if torch.equal(blurry, sharp):
                untouched_scores.append(score)
            else:
                blurry_scores.append(_psnr(blurry, sharp))
                restored_scores.append(score)
    network.train()

    def mean(values: list[float]) -> float:
        return sum(values) / max(len(values), 1)

    return Score(mean(blurry_scores), mean(restored_scores), mean(untouched_scores))


def _psnr(restored: Tensor, sharp: Tensor) -> float:
    """Give the mean over frames (T, 3, H, W) in [0, 1] of the PSNR in dB, at most 60 a frame."""
    error = (restored - sharp).square().mean((1, 2, 3)).clamp(1e-6)
    return float((-10 * error.log10()).mean())


class Optimiser:
    """Muon for the convolutions' weights seen as matrices, AdamW for everything else.

    Muon (K. Jordan, 2024; PyTorch's own) makes each step's matrix nearly orthogonal. On one batch of five clips learnt
    by heart it gained 6.6 dB in 120 steps, AdamW at its best rate 4.4 dB.
    """

    def __init__(self, network: nn.Module, rate: float, kind: str) -> None:
        self.rate = rate
        named = dict(network.named_parameters())
        others = ("extract.0.", "reconstruct.", "weigh.")
        chosen = [n for n, p in named.items() if p.ndim == 4 and not n.startswith(others)] if kind == "muon" else []
        self.kernels = [named[name] for name in chosen]
        # Each matrix shares its kernel's storage; its gradient is handed over before each step.
        self.matrices = [nn.Parameter(kernel.data.flatten(1)) for kernel in self.kernels]
        rest = [parameter for name, parameter in named.items() if name not in set(chosen)]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=rate * OTHERS_RATE, betas=(0.9, 0.99), weight_decay=0.0)
        ]
        if self.matrices:
            self.parts.append(
                torch.optim.Muon(self.matrices, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
            )

    def step(self, factor: float) -> None:
        """Update the network's parameters from their gradients, at the base rate times factor; clear the gradients."""
        for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
            kernel.grad = None
        for part in self.parts:
            share = OTHERS_RATE if part is self.parts[0] else 1.0
            for group in part.param_groups:
                group["lr"] = self.rate * share * factor
            part.step()
            part.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        """Give what load_state_dict takes."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Go on from a state_dict."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(path.name + ".draft")
    draft.write_bytes(data)
    os.replace(draft, path)


@dataclass(frozen=True)
class Settings:
    """What a training is made with; kept in the weights' metadata."""

    channels: int
    blocks: int
    clips: int
    frames: int
    side: int
    rate: float
    optimiser: str
    loss: str
    seed: int


def train(
    out_dir: Path,
    pool_dir: Path,
    validation_dir: Path,
    settings: Settings,
    *,
    iterations: int,
    cooldown: int,
    validate_every: int,
    init: Path | None,
    device: torch.device,
) -> None:
    """Train until `iterations` (counted over all runs); with a cooldown, that many more steps with a falling rate."""
    out_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    network = Lite(settings.channels, settings.blocks).to(device)
    if init is not None:
        network.load_state_dict(safetensors.torch.load_file(init))
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    optimiser = Optimiser(network, settings.rate, settings.optimiser)
    step, seconds, best = 0, 0.0, float("-inf")
    state_file = out_dir / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        average = state["average"]
        optimiser.load_state_dict(state["optimiser"])
        step, seconds, best = state["step"], state["seconds"], state["best"]
        click.echo(f"going on from step {step}", err=True)
    last = step + cooldown if cooldown else iterations
    pool = ClipPool(pool_dir)
    shards = [numpy.load(path) for path in sorted(validation_dir.glob("shard-*.npy"))]
    batches = pool.batches(settings.seed, step, settings.clips, settings.frames, settings.side)
    running: list[float] = []
    begun = time.monotonic()

    while step < last:
        blurry, sharp = next(batches).to(device).float().div_(255).unbind()
        with torch.autocast(device.type, torch.bfloat16):
            restored = network(blurry)
        restored = restored.float()
        if settings.loss == "psnr":
            loss = LOG_ERROR_WEIGHT * losses.log_error(restored, sharp)
        else:
            loss = losses.charbonnier(restored, sharp) + SPECTRAL_WEIGHT * losses.spectral(restored, sharp)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
        factor = (last - step) / cooldown if cooldown else min(1.0, (step + 1) / WARM_UP_STEPS)
        optimiser.step(factor)
        step += 1
        running.append(float(loss.detach()))
        with torch.no_grad():
            decay = min(AVERAGE_DECAY, step / (step + 10))
            for name, value in network.state_dict().items():
                average[name].lerp_(value, 1 - decay)

        if step % validate_every == 0 or step == last:
            seconds += time.monotonic() - begun
            weights = {name: value.clone() for name, value in network.state_dict().items()}
            network.load_state_dict(average)
            score = validate(network, shards, device)
            begun = time.monotonic()
            facts = {"step": step, "seconds": round(seconds), "loss": sum(running) / len(running), **vars(score)}
            if score.restored > best:
                best = score.restored
                metadata = {"training": json.dumps({**vars(settings), **facts})}
                half = {name: value.half().contiguous().cpu() for name, value in average.items()}
                replace_file(out_dir / "best.safetensors", safetensors.torch.save(half, metadata))
            network.load_state_dict(weights)
            state = {"network": weights, "average": average, "optimiser": optimiser.state_dict()}
            state |= {"step": step, "seconds": seconds, "best": best}
            draft = state_file.with_name("state.pt.draft")
            torch.save(state, draft)
            os.replace(draft, state_file)
            _log(out_dir / "log.csv", facts)
            click.echo(
                f"step {step}: {len(running) and facts['loss']:.5f}  {score.blurry:.3f} -> {score.restored:.3f} dB "
                f"({score.restored - score.blurry:+.3f}), untouched {score.untouched:.2f} dB, {seconds / 60:.1f} min",
                err=True,
            )
            running.clear()


def _log(path: Path, facts: dict[str, float]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(facts))
        if fresh:
            writer.writeheader()
        writer.writerow(facts)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("out_dir", type=click.Path(path_type=Path, file_okay=False))
@click.option("--pool", required=True, type=click.Path(path_type=Path, exists=True), help="Folder of shards.")
@click.option("--validation", required=True, type=click.Path(path_type=Path, exists=True), help="Folder of shards.")
@click.option("--iterations", default=200_000, help="Stop at this step, counted over all runs.")
@click.option("--cooldown", default=0, help="Make this many more steps with a rate falling to zero, then stop.")
@click.option("--validate-every", default=250, help="Steps between validations.")
@click.option("--init", type=click.Path(path_type=Path, exists=True), help="Weights to start from.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
@click.option("--channels", default=48)
@click.option("--blocks", default=5)
@click.option("--clips", default=4, help="Clips in a batch.")
@click.option("--frames", default=6, help="Frames of each clip.")
@click.option("--side", default=128, help="Side of the crops in pixels.")
@click.option("--rate", default=1e-3, help="Learning rate.")
@click.option("--optimiser", type=click.Choice(["muon", "adamw"]), default="muon")
@click.option("--loss", type=click.Choice(["charbonnier", "psnr"]), default="psnr")
@click.option("--seed", default=0)
def main(
    out_dir: Path,
    pool: Path,
    validation: Path,
    iterations: int,
    cooldown: int,
    validate_every: int,
    init: Path | None,
    device: str,
    **settings: Any,
) -> None:
    """Train `lite` on POOL, keeping everything in OUT_DIR; the same command again goes on."""
    with contextlib.suppress(KeyboardInterrupt):
        train(
            out_dir,
            pool,
            validation,
            Settings(**settings),
            iterations=iterations,
            cooldown=cooldown,
            validate_every=validate_every,
            init=init,
            device=torch.device(device),
        )


if __name__ == "__main__":
    main()
