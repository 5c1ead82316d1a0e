"""The part of a training that a batch changes: network, losses, optimisers, moving average, and counters."""

import contextlib
import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vdeblur.errors import DeviceError, UsageError
from vdeblur.events import Warn
from vdeblur.networks.layers import Network
from vdeblur.restore import device
from vdeblur.train import optimisers
from vdeblur.train.distributed import ProcessGroup
from vdeblur.train.objectives.base import Batch, Objective
from vdeblur.train.recipes import Recipe
from vdeblur.train.schedules import Plateau


class Learner:
    """An objective in training, by a recipe's numbers.

    frozen: prefixes of parameters that keep their values. update, batches_used: updates made and batches used so far.
    before: updates made before the current batch. The header of loop.py defines updates, batches, turns and parts.

    Call `distribute` before the first step, and after load_state_dict.

    Raises: UsageError where no parameter has a frozen prefix.
    """

    def __init__(self, objective: Objective, recipe: Recipe, group: ProcessGroup, frozen: tuple[str, ...] = ()) -> None:
        self.objective, self.group = objective, group
        self.training, self.schedule = recipe.training, recipe.schedule
        settings = recipe.optimisers
        self.base_rate = settings["network"].rate
        rates = {**settings["network"].rates, **_frozen_rates(objective, frozen)}
        settings["network"] = replace(settings["network"], rates=rates)
        self.optimisers = {name: optimisers.build(objective, name, own) for name, own in settings.items()}
        self.plateau = Plateau(self.schedule)
        self.average = None if self.training.ema is None else _average_of(objective.network, self.training.ema)
        self.precision = device.DTYPES[self.training.precision]
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=self.precision == torch.float16)
        self.update = self.batches_used = self.before = 0
        self.model: nn.Module = objective

    def count_updates(self, recipe: Recipe) -> None:
        """Use the numbers of updates of the same recipe, now that the length of its epochs is known."""
        self.training, self.schedule = recipe.training, recipe.schedule
        self.objective.numbers.update(recipe.numbers)

    def set_modes(self) -> None:
        """Set everything to training, except batch normalisation that is frozen: its statistics would still change."""
        self.objective.train()
        for module in self.objective.modules():
            own = list(module.parameters())
            if isinstance(module, nn.BatchNorm2d) and own and not any(p.requires_grad for p in own):
                module.eval()

    def distribute(self, warn: Warn) -> None:
        """Share gradients among the processes, and batch normalisation's statistics where GPUs can."""
        self.set_modes()
        if self.group.size == 1:
            return
        on_gpu = self.group.device.type == "cuda"
        if any(isinstance(module, nn.BatchNorm2d) and module.training for module in self.objective.modules()):
            if on_gpu:
                self.objective.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.objective.network)
            else:
                warn(
                    "W_BATCH_NORM",
                    "on CPUs each process normalises its own share of a batch, so results differ from one process's",
                )
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # it has a new name since torch 2.13
            self.model = DistributedDataParallel(
                self.objective,
                device_ids=[self.group.device] if on_gpu else None,
                broadcast_buffers=False,  # statistics are shared, or meant to differ; all others are constants
                find_unused_parameters=not self.objective.reaches_all,
            )

    def step(self, parts: list[Batch]) -> dict[str, float]:
        """Do all turns of a batch; return the mean losses over its turns.

        parts: the micro-batches of this process's share.
        """
        self.before = self.update
        turns = self.objective.turns(self.update)
        carried: list[Any] = [None] * len(parts)
        sums: dict[str, list[float]] = {}
        for turn, name in enumerate(turns):
            losses = self.backward(parts, turn, carried)
            for key, value in losses.items():
                if key != "loss" or name == turns[-1]:  # other turns report their loss under its own name
                    sums.setdefault(key, []).append(value)
            optimiser = self.optimisers[name]
            optimiser.step(self._multiplier(), self.scaler if self.scaler.is_enabled() else None)
            optimiser.zero_grad()
            if name == "network":
                self.update += 1
                if self.average is not None:
                    self.average.update_parameters(self.objective.network)
        self.update += "network" not in turns
        self.batches_used += 1
        return {key: math.fsum(values) / len(values) for key, values in sums.items()}

    def backward(self, parts: list[Batch], turn: int, carried: list[Any]) -> dict[str, float]:
        """Compute the gradients of one turn over all parts of a batch; return its losses.

        carried: what the turn before left for each part; replaced by what this one leaves.
        """
        # What a step draws at random depends on the seed, the batch, the turn and the process alone.
        torch.manual_seed(_mixed(self.training.seed, self.batches_used, turn, self.group.rank))
        sums: dict[str, float] = {}
        for index, part in enumerate(parts):
            with self._exchange(index == len(parts) - 1):
                with torch.autocast(self.group.device.type, self.precision, self.precision != torch.float32):
                    losses, carried[index] = self.model(part, turn, self.before, carried[index])
                self.scaler.scale(losses["loss"] / len(parts)).backward()
                found = torch.stack([loss.detach().float() for loss in losses.values()])
                # The one wait for the GPU, after all its work is queued.
                values = dict(zip(losses, self.group.mean(found).tolist(), strict=True))
                self._check_losses(values)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value / len(parts)
        return sums

    def _exchange(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """Let processes exchange gradients only at the last part of a batch."""
        if not is_last and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _check_losses(self, losses: dict[str, float]) -> None:
        """Stop at a NaN or infinite loss; the last kept state stays.

        Raises: DeviceError.
        """
        wrong = [f"{name} = {value}" for name, value in losses.items() if not math.isfinite(value)]
        if wrong:
            raise DeviceError(
                f"a loss is NaN or infinite at update {self.update + 1}: {', '.join(wrong)}",
                "--resume continues from the last kept state; add a lower --rate, or --set optimiser.clip=0.01",
            )

    def _multiplier(self) -> float:
        scheduled = self.schedule.multiplier(self.update, self.training.iterations, self.base_rate)
        return scheduled * self.plateau.factor

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        return self.base_rate * self._multiplier()

    @property
    def updates_per_batch(self) -> int:
        """Updates that the next batch is good for."""
        return max(self.objective.turns(self.update).count("network"), 1)

    @property
    def evaluated(self) -> Network:
        """The network to validate and to write: the moving average where there is one."""
        network = self.objective.network if self.average is None else self.average.module
        assert isinstance(network, Network)
        return network

    @property
    def is_preparing(self) -> bool:
        """Return whether no batch so far has trained the network itself, see Objective.is_preparing."""
        return self.update > 0 and self.objective.is_preparing(self.update - 1)

    def passed_multiple_of(self, every: int) -> bool:
        """Return whether the last batch reached or passed a multiple of `every` updates."""
        return self.update // every > self.before // every

    def is_exhausted(self) -> bool:
        """Return whether too many validations in a row were no better than the best."""
        most = self.training.stop_after
        return self.plateau.finished or (most is not None and self.plateau.waited >= most)

    def state_dict(self) -> dict[str, Any]:
        """Return what load_state_dict reads: plain values and tensors."""
        return {
            "objective": self.objective.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "average": None if self.average is None else self.average.state_dict(),
            "plateau": self.plateau.state_dict(),
            "scaler": self.scaler.state_dict(),
            "update": self.update,
            "number": self.batches_used,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state_dict.

        Raises: KeyError, ValueError or RuntimeError for a state of other parts.
        """
        self.objective.load_state_dict(state["objective"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        self.plateau.load_state_dict(state["plateau"])
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.update, self.batches_used = state["update"], state["number"]


def _average_of(network: nn.Module, decay: float) -> AveragedModel:
    """Return the exponential moving average of a network's weights."""
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def _mixed(*numbers: int) -> int:
    """Return a seed made of several numbers; seeds of neighbouring numbers have nothing in common."""
    return int(numpy.random.SeedSequence(numbers).generate_state(1, numpy.uint64)[0] >> 1)


def _frozen_rates(objective: Objective, frozen: tuple[str, ...]) -> dict[str, float]:
    """Return rates of zero for prefixes.

    Raises: UsageError for a prefix of no parameter.
    """
    names = [name for name, _ in objective.network.named_parameters()]
    for prefix in frozen:
        if not any(f"{name}.".startswith(f"{prefix}.") for name in names):
            tops = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise UsageError(f"no part of the network is called {prefix!r}", f"choose from {tops}, or parts of them")
    return dict.fromkeys(frozen, 0.0)
