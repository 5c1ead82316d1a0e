"""Train `lite` on synthetic clips; stops and goes on at any step.

    python -m vdeblur.train.loop OUT_DIR --pool DIR --validation DIR

What `lite` sees along the motion needs no weights (networks/lite.py), so it is computed once per frame, kept in
memory in half precision, and only the convolutions are trained.

OUT_DIR/state.pt holds everything that is needed to go on (weights, optimiser, step) and is replaced whole at every
validation; OUT_DIR/best.safetensors holds the weights with the best validation score so far, in the file's metadata
how they came about; OUT_DIR/log.csv a line per validation. The rate rises during a short warm-up, then falls to zero
at --iterations.
"""

import csv
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy
import safetensors.torch
import torch
from torch import Tensor, nn

from vdeblur.bench.datasets import pictures_in
from vdeblur.bench.pictures import read_rgb
from vdeblur.networks.lite import Lite, look_along_motion
from vdeblur.train import losses

WARM_UP_STEPS = 100
SPECTRAL_WEIGHT = 0.3
GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Frames:
    """Frames to learn from.

    seen: (N, INPUTS, h, w) float16, see look_along_motion. blurry, sharp: (N, 3, H, W) uint8.
    """

    seen: Tensor
    blurry: Tensor
    sharp: Tensor


def load_frames(folder: Path, side: int, seed: int, *, ends: float, augment: bool) -> Frames:
    """Look along the motion of every frame of clips that `vdeblur synth` made, cropped to side x side pixels.

    ends: share of clips whose first and last frames are used too. augment: turn and mirror each clip at random.
    """
    sequences = sorted(path.parent for path in folder.glob("*/sharp"))
    if not sequences:
        raise click.UsageError(f"no SEQUENCE/sharp in {folder}: make them with vdeblur synth --way random")
    rng = numpy.random.default_rng(seed)
    seen, blurry, sharp = [], [], []
    for sequence in sequences:
        crop = _crop(rng, _read(sequence), side, augment)
        first, last = (0, crop.shape[1]) if rng.random() < ends else (1, crop.shape[1] - 1)
        pair = torch.from_numpy(crop)
        light = pair[0].float() / 255
        for index in range(first, last):
            before = light[index - 1 : index] if index else None
            after = light[index + 1 : index + 2] if index + 1 < len(light) else None
            seen.append(look_along_motion(before, light[index : index + 1], after, torch.float16))
            blurry.append(pair[0, index])
            sharp.append(pair[1, index])
    return Frames(torch.cat(seen), torch.stack(blurry), torch.stack(sharp))


def _read(sequence: Path) -> numpy.ndarray:
    """Read a clip: uint8 (2, T, 3, H, W), blurry, then sharp."""
    pair = [torch.stack([read_rgb(file) for file in pictures_in(sequence / kind)]) for kind in ("blur", "sharp")]
    return torch.stack(pair).numpy()


def _crop(rng: numpy.random.Generator, clip: numpy.ndarray, side: int, augment: bool) -> numpy.ndarray:
    """Cut a square out of a clip (2, T, 3, H, W), in the middle or anywhere, turned and mirrored or not."""
    room = [length - side for length in clip.shape[3:]]
    top, left = (int(rng.integers(r + 1)) if augment else r // 2 for r in room)
    cut = clip[..., top : top + side, left : left + side]
    if augment:
        cut = numpy.rot90(cut, int(rng.integers(4)), axes=(3, 4))
        cut = cut[..., ::-1] if rng.random() < 0.5 else cut
        cut = cut[:, ::-1] if rng.random() < 0.5 else cut
    return numpy.array(cut, order="C")


def restore(network: Lite, frames: Frames, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Restore some of the frames; gives them and the sharp ones, float32 in [0, 1]."""
    seen = frames.seen[index].to(device)
    blurry, sharp = (part[index].to(device).float() / 255 for part in (frames.blurry, frames.sharp))
    # The rest in bf16 needs no loss scaling; on a CPU it is also the fastest.
    with torch.autocast(device.type, torch.bfloat16):
        difference = network.difference(seen.to(torch.bfloat16))
    return blurry + difference, sharp


@dataclass(frozen=True)
class Score:
    """Mean PSNR in dB over validation frames: of the blurry input, of its restoration, and of what was sharp already.

    A frame counts as sharp already where it equals its truth.
    """

    blurry: float
    restored: float
    untouched: float


@torch.no_grad()
def validate(network: Lite, frames: Frames, device: torch.device) -> Score:
    """Score a network, 8-bit rounded."""
    scores: list[Tensor] = []
    for index in torch.arange(len(frames.seen)).split(50):
        restored, sharp = restore(network, frames, index, device)
        restored = restored.clamp(0, 1).mul(255).round().div(255)
        scores.append(_psnr(restored, sharp).cpu())
    before = _psnr(frames.blurry.float() / 255, frames.sharp.float() / 255)
    after, blurred = torch.cat(scores), before < 59
    return Score(float(before[blurred].mean()), float(after[blurred].mean()), float(after[~blurred].mean()))


def _psnr(restored: Tensor, sharp: Tensor) -> Tensor:
    """Give the PSNR in dB of each frame (N, 3, H, W) in [0, 1], at most 60."""
    return -10 * (restored - sharp).square().mean((1, 2, 3)).clamp(1e-6).log10()


class Optimiser:
    """Muon for the 3x3 convolutions inside, seen as matrices, AdamW for everything else.

    Muon (K. Jordan, 2024; PyTorch's own) makes each step's matrix nearly orthogonal.
    """

    def __init__(self, network: nn.Module, rates: tuple[float, float]) -> None:
        self.rates = rates
        inside = {name: p for name, p in network.named_parameters() if ".conv_" in name and p.ndim == 4}
        rest = [p for name, p in network.named_parameters() if name not in inside]
        self.kernels = list(inside.values())
        # Each matrix shares its kernel's storage; its gradient is handed over before each step.
        self.matrices = [nn.Parameter(kernel.data.flatten(1)) for kernel in self.kernels]
        muon, adamw = rates
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(self.matrices, lr=muon, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=adamw, betas=(0.9, 0.99), weight_decay=0.0),
        ]

    def step(self, factor: float) -> None:
        """Update the network's parameters from their gradients, at the rates times factor; clear the gradients."""
        for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
            kernel.grad = None
        for part, rate in zip(self.parts, self.rates, strict=True):
            for group in part.param_groups:
                group["lr"] = rate * factor
            part.step()
            part.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        """Give what load_state_dict takes."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Go on from a state_dict."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


@dataclass(frozen=True)
class Settings:
    """What a training is made with; kept in the weights' metadata."""

    channels: int
    blocks: int
    batch: int
    side: int
    muon_rate: float
    adamw_rate: float
    loss: str
    seed: int


def train(
    out_dir: Path,
    pool: Frames,
    validation: Frames,
    settings: Settings,
    *,
    iterations: int,
    stop_at: int,
    validate_every: int,
    init: Path | None,
    device: torch.device,
) -> None:
    """Train to step `stop_at` of a plan of `iterations`, from the state in out_dir where there is one."""
    out_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    network = Lite(settings.channels, settings.blocks).to(device)
    if init is not None:
        network.load_state_dict(safetensors.torch.load_file(init))
    optimiser = Optimiser(network, (settings.muon_rate, settings.adamw_rate))
    step, seconds, best = 0, 0.0, float("-inf")
    state_file = out_dir / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        step, seconds, best = state["step"], state["seconds"], state["best"]
        click.echo(f"going on from step {step}", err=True)
    running: list[float] = []
    begun = time.monotonic()
    while step < stop_at:
        # A step's frames depend on nothing but its number, so that training can go on anywhere.
        chosen = numpy.random.default_rng((settings.seed, step)).integers(len(pool.seen), size=settings.batch)
        restored, sharp = restore(network, pool, torch.from_numpy(chosen), device)
        if settings.loss == "psnr":
            loss = losses.log_error(restored, sharp)
        else:
            loss = losses.charbonnier(restored, sharp) + SPECTRAL_WEIGHT * losses.spectral(restored, sharp)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
        optimiser.step(min((step + 1) / WARM_UP_STEPS, 1 - step / iterations))
        step += 1
        running.append(float(loss.detach()))
        if step % validate_every and step != stop_at:
            continue

        seconds += time.monotonic() - begun
        score = validate(network, validation, device)
        facts = {"step": step, "seconds": round(seconds), "mean_loss": sum(running) / len(running), **vars(score)}
        weights = {name: value.contiguous() for name, value in network.state_dict().items()}
        if score.restored > best:
            best = score.restored
            metadata = {"training": json.dumps({**vars(settings), "frames": len(pool.seen), **facts})}
            half = {name: value.half().cpu() for name, value in weights.items()}
            _replace(out_dir / "best.safetensors", safetensors.torch.save(half, metadata))
        state = {"network": weights, "optimiser": optimiser.state_dict()}
        torch.save(state | {"step": step, "seconds": seconds, "best": best}, state_file.with_suffix(".draft"))
        os.replace(state_file.with_suffix(".draft"), state_file)
        _log(out_dir / "log.csv", facts)
        gain = score.restored - score.blurry
        click.echo(
            f"step {step}: loss {facts['mean_loss']:.4f}, {score.blurry:.3f} -> {score.restored:.3f} dB ({gain:+.3f}), "
            f"untouched {score.untouched:.2f} dB, {seconds / 60:.1f} min",
            err=True,
        )
        running.clear()
        begun = time.monotonic()


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(path.name + ".draft")
    draft.write_bytes(data)
    os.replace(draft, path)


def _log(path: Path, facts: dict[str, float]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(facts))
        if fresh:
            writer.writeheader()
        writer.writerow(facts)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("out_dir", type=click.Path(path_type=Path, file_okay=False))
@click.option("--pool", required=True, type=click.Path(path_type=Path, exists=True), help="Folder of sequences.")
@click.option("--validation", required=True, type=click.Path(path_type=Path, exists=True), help="Folder of sequences.")
@click.option("--iterations", default=20_000, help="Steps until the rate is zero.")
@click.option("--stop-at", type=int, help="Stop at this step already.  [default: --iterations]")
@click.option("--validate-every", default=500, help="Steps between validations.")
@click.option("--init", type=click.Path(path_type=Path, exists=True), help="Weights to start from.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="Where to train.")
@click.option("--channels", default=64, help="Width of the network.")
@click.option("--blocks", default=4, help="Residual blocks of the network.")
@click.option("--batch", default=24, help="Frames in a batch.")
@click.option("--side", default=96, help="Side of the crops in pixels.")
@click.option("--muon-rate", default=5e-4, help="Learning rate of the residual blocks.")
@click.option("--adamw-rate", default=1e-3, help="Learning rate of the rest.")
@click.option("--loss", type=click.Choice(["charbonnier", "psnr"]), default="psnr", help="What is minimised.")
@click.option("--seed", default=0, help="Of the initial weights, the crops and the order.")
def main(
    out_dir: Path,
    pool: Path,
    validation: Path,
    iterations: int,
    stop_at: int | None,
    validate_every: int,
    init: Path | None,
    device: str,
    **values: Any,
) -> None:
    """Train `lite` on POOL, keeping everything in OUT_DIR; the same command again goes on."""
    settings = Settings(**values)
    train(
        out_dir,
        load_frames(pool, settings.side, settings.seed, ends=0.15, augment=True),
        load_frames(validation, settings.side, settings.seed, ends=0.0, augment=False),
        settings,
        iterations=iterations,
        stop_at=iterations if stop_at is None else stop_at,
        validate_every=validate_every,
        init=init,
        device=torch.device(device),
    )


if __name__ == "__main__":
    main()
