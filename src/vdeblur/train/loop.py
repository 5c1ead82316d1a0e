"""The training loop: batches of clips to weights, stopped and gone on with at any batch, alone or under torchrun.

A folder holds all of a training:

- last.safetensors, best.safetensors   weights: of the last validation, and of the best one; metadata says whence
- state.pt                             all that is needed to go on (weights, optimisers, average, schedule, numbers)
- recipe.toml                          what it is made with
- log.csv                              losses, rates, validations
- samples/UPDATE/SEQUENCE.png          blurry, restored and sharp, at each validation

What a batch holds, and what is drawn at random in its steps, depends on nothing but the seed and its number. So a
training that goes on gives the same weights, bit for bit on one device, as one that was never interrupted: on CPUs
always, on GPUs where --deterministic is given and PyTorch has a deterministic way for all that the network does.
"""

import contextlib
import io
import itertools
import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vdeblur import __version__
from vdeblur.datasets import layouts
from vdeblur.datasets.layouts import DataSet
from vdeblur.errors import (
    DeviceError,
    ExitStatus,
    InputError,
    InterruptedRunError,
    OutputError,
    UsageError,
    VdeblurError,
)
from vdeblur.events import Ask, Notify, Stop, Talk, Warn, ignore, never
from vdeblur.models.registry import find_entry
from vdeblur.networks.layers import Network
from vdeblur.restore import device, memory
from vdeblur.train import data, optimisers, start
from vdeblur.train.distributed import ProcessGroup, is_parted, joined
from vdeblur.train.log import Log, Progress, write_whole
from vdeblur.train.objectives import OBJECTIVES
from vdeblur.train.objectives.base import Batch, Objective
from vdeblur.train.recipes import Recipe
from vdeblur.train.validate import validate

STATE = "state.pt"
RESULTS = ("best.safetensors", "last.safetensors", "log.csv")
KEEP_MINUTES = 10.0  # at most so much is lost where a process is killed
SLOW_DATA = 0.25  # of the time; more than that spent waiting for data is worth a warning


@dataclass(frozen=True)
class TrainingTask:
    """What `vdeblur train` is told beside the recipe.

    dataset: a set's name, or a folder; copy: where a copy of a named set is. validation: a folder of its own for that.
    init: a checkpoint, or NAME[@WEIGHTS] of the registry. frozen: prefixes of parameters that keep their values.
    limit: at most so many frames of each sequence, and whatever of them there is. stop_at: end at this update already,
    with the schedule of the whole. deterministic: see device.make_deterministic.
    """

    recipe: Recipe
    dataset: str
    out: Path
    copy: Path | None = None
    validation: str | None = None
    init: str | None = None
    frozen: tuple[str, ...] = ()
    resume: bool = False
    limit: int | None = None
    stop_at: int | None = None
    device: str = "auto"
    workers: int = 2
    cache: Path | None = None
    tensorboard: bool = False
    deterministic: bool = False
    yes: bool = False
    offline: bool = False


@dataclass(frozen=True)
class TrainingResult:
    """Where a training ended: updates made, and the best validation's score and update."""

    update: int
    best: float
    best_update: int


def train(
    task: TrainingTask,
    *,
    notify: Notify = ignore,
    ask: Ask | None = None,
    stop: Stop = never,
) -> TrainingResult:
    """Train a network by a recipe; under torchrun in all its processes together.

    Raises: VdeblurError of the kind that fits: data, weights, device, output; where losses are not numbers any more;
    InterruptedRunError once `stop` gives a status, after all has been kept.
    """
    if task.deterministic:
        device.make_deterministic()
    with joined(task.device) as group:
        torch.backends.cudnn.benchmark = not task.deterministic  # crops are all of one size
        quiet = notify if group.leads else ignore
        trainer = Trainer(task, group, quiet, Talk(task.offline, task.yes, quiet, ask, stop))
        with data.lost_workers_named():
            return trainer.run(stop)


class Trainer:
    """One training: what is trained, by what, on what, and how far it is."""

    def __init__(self, task: TrainingTask, group: ProcessGroup, notify: Notify, talk: Talk) -> None:
        self.task, self.group, self.notify = task, group, notify
        self.recipe, self.numbers = task.recipe, task.recipe["training"]
        self.rate, self.schedule = task.recipe["optimiser"]["rate"], task.recipe["schedule"]
        self.stop_at = min(task.stop_at or self.numbers["iterations"], self.numbers["iterations"])
        state = self._open_folder()
        self.training, self.held_out = self._open_sets(talk)
        self.share = data.WorkerShare(
            self.numbers["batch"], group.rank, group.size, int(self.numbers.get("accumulate", 1))
        )
        self.objective = self._build(state is None, talk)
        self.optimisers = self._build_optimisers()
        self.plateau = optimisers.Plateau(self.schedule)
        self.average = self._build_average()
        self.precision = device.DTYPES[self.numbers.get("precision", "fp32")]
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=self.precision == torch.float16)
        self.update = self.number = 0  # updates made, batches used
        self.best, self.best_update, self.seconds = -math.inf, 0, 0.0
        if state is not None:
            self._restore(state)
        self._set_modes()
        self.model = self._distribute()
        self.first_update, self.kept, self.warned = self.update, time.monotonic(), False
        plan = data.Plan(**self.recipe["data"])
        clips = data.training_clips(self._source(plan, talk), plan, self.objective.prepare, self.seed)
        self.held_out_clips = None if self.objective.restores else self._clips_to_validate_on(plan, talk)
        self.loader = data.Loader(clips, self.share, workers=task.workers, pin=group.device.type == "cuda")
        self._write_recipe(state)
        self.log = Log(task.out / "log.csv", self.update, active=group.leads, tensorboard=task.tensorboard)

    @property
    def seed(self) -> int:
        """Give the seed of all that is drawn."""
        return int(self.numbers.get("seed", 0))

    # How it begins

    def _open_folder(self) -> dict[str, Any] | None:
        """Give the state that is in the folder, or None where it is free for a new training."""
        out = self.task.out
        problem: VdeblurError | None = None
        state: dict[str, Any] | None = None
        if not (out / STATE).is_file():
            there = [name for name in RESULTS if (out / name).exists()]
            if there:
                problem = OutputError(f"{out / there[0]} is there already, without a {STATE}", "choose another --out")
        else:
            try:
                state = torch.load(out / STATE, map_location="cpu", weights_only=True)
                problem = self._unfit(state)
            except Exception as error:
                problem = InputError(f"{out / STATE} cannot be read: {error}", "begin anew in another --out")
        self.group.agree(None)  # all have looked before any of them writes
        if problem is not None:
            raise problem
        return state

    def _unfit(self, state: dict[str, Any]) -> VdeblurError | None:
        """Tell why a state is not to be gone on with."""
        theirs = (state["model"], state["stage"])
        if theirs != (self.recipe.model, self.recipe.stage):
            told = f"{theirs[0]}, stage {theirs[1]}" if theirs[1] else theirs[0]
            return UsageError(f"{self.task.out} holds a training of {told}", "name that, or another --out")
        # torchrun starts the processes again, of the same run, where one was lost, or where machines come or go.
        again = self.group.restarts > 0 or (self.group.run and state["run"] == self.group.run)
        if not (self.task.resume or again):
            return OutputError(
                f"{self.task.out} holds a training already, {state['update']} updates long",
                "--resume goes on with it; or choose another --out",
            )
        return None

    def _write_recipe(self, state: dict[str, Any] | None) -> None:
        """Write the recipe beside the weights; tell what has changed since the state was kept."""
        if state is not None and state["recipe"] != self.recipe.text:
            names = _differing(state["tables"], self.recipe.tables.unwrap())
            told = f"the recipe has changed ({', '.join(names)}); going on by the new one"
            self.notify("warning", {"code": "W_RECIPE", "message": told})
        for name, before in (state["told"] if state else {}).items():
            if before != self._told()[name]:
                told = f"--{name} was {before or 'not given'} before; going on with what is given now"
                self.notify("warning", {"code": "W_RECIPE", "message": told})
        if self.group.leads:
            write_whole(self.task.out / "recipe.toml", self.recipe.text.encode())

    def _told(self) -> dict[str, str]:
        """Give what else a training depends on."""
        task = self.task
        told = {"dataset": task.dataset, "validation": task.validation, "limit": task.limit, "freeze": task.frozen}
        return {name: "" if not value else str(value) for name, value in told.items()}

    def _build(self, fresh: bool, talk: Talk) -> Objective:
        """Give the network with its losses, on the device, with the weights that a training begins with."""
        entry = find_entry(self.recipe.model)
        torch.manual_seed(self.seed)
        network = entry.build()
        objective = OBJECTIVES[self.recipe.objective](network, self.recipe.numbers)
        objective.initialise()
        if fresh:
            start.begin(network, entry, self.recipe, self.task.init, talk)
        # Convolutions like it best so, on CPUs several times.
        moved: Objective = objective.to(self.group.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return moved

    def _build_optimisers(self) -> dict[str, optimisers.Optimiser]:
        table = dict(self.recipe["optimiser"])
        if self.task.frozen:
            table["rates"] = {**table.get("rates", {}), **_prefixes(self.objective, self.task.frozen)}
        others = [
            name for name, part in table.items() if isinstance(part, Mapping) and name not in optimisers.BY_PREFIX
        ]
        return {name: optimisers.build(self.objective, name, table) for name in ("network", *others)}

    def _set_modes(self) -> None:
        """Set everything to training, but the batch normalisation of what is frozen, which would go on moving."""
        self.objective.train()
        for module in self.objective.modules():
            own = list(module.parameters())
            if isinstance(module, nn.BatchNorm2d) and own and not any(p.requires_grad for p in own):
                module.eval()

    def _build_average(self) -> AveragedModel | None:
        """Give the exponential moving average of the network's weights, if the recipe wants one."""
        decay = self.numbers.get("ema")
        if decay is None:
            return None
        return AveragedModel(self.objective.network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    def _distribute(self) -> nn.Module:
        """Share the gradients among the processes, and the statistics of batch normalisation where GPUs can."""
        if self.group.size == 1:
            return self.objective
        on_gpu = self.group.device.type == "cuda"
        if any(isinstance(module, nn.BatchNorm2d) and module.training for module in self.objective.modules()):
            if on_gpu:
                self.objective.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.objective.network)
            else:
                message = (
                    "on CPUs each process normalises by its own share of a batch; results differ from one process's"
                )
                self.notify("warning", {"code": "W_BATCH_NORM", "message": message})
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # it has a new name since torch 2.13
            return DistributedDataParallel(
                self.objective,
                device_ids=[self.group.device] if on_gpu else None,
                broadcast_buffers=False,  # statistics are shared, or meant to differ; all others are constants
                find_unused_parameters=not self.objective.reaches_all,
            )

    def _open_sets(self, talk: Talk) -> tuple[DataSet, DataSet]:
        """Find the clips; the leading process first, which may have to fetch them."""
        sets: tuple[DataSet, DataSet] | None = None
        for leads in (True, False):
            if self.group.leads == leads:
                sets = _find_sets(self.task, str(self.recipe["data"].get("blur", "blur")), talk)
            self.group.agree(None)
        assert sets is not None
        return sets

    def _source(self, plan: data.Plan, talk: Talk) -> data.ClipSource:
        """Give what training reads; the leading process first, which may have to write memory maps."""
        source: data.ClipSource | None = None
        for leads in (True, False):
            if self.group.leads == leads:
                sequences, warn = self.training.sequences, _warner(talk)
                source = data.open_clips(sequences, plan, cache=self.task.cache, talk=talk, warn=warn)
            self.group.agree(None)
        assert source is not None
        self.notify("training", self._facts(source))
        return source

    def _clips_to_validate_on(self, plan: data.Plan, talk: Talk) -> data.Clips:
        source = data.open_clips(self.held_out.sequences, plan, talk=talk, warn=_warner(talk))
        return data.training_clips(source, plan, self.objective.prepare, 0)

    def _facts(self, source: data.ClipSource) -> dict[str, object]:
        return {
            "model": self.recipe.model,
            "stage": self.recipe.stage,
            "dataset": self.task.dataset,
            "sequences": len(source.sequences),
            "frames": sum(len(sequence.pairs) for sequence in source.sequences),
            "validation_sequences": len(self.held_out.sequences),
            "device": str(self.group.device),
            "precision": self.numbers.get("precision", "fp32"),
            "processes": self.group.size,
            "update": self.update,
            "iterations": self.numbers["iterations"],
            "parameters": sum(p.numel() for p in self.objective.network.parameters() if p.requires_grad),
        }

    # How it goes

    def run(self, stop: Stop) -> TrainingResult:
        """Train to the end, or until `stop` gives a status."""
        progress = Progress(self.seconds)
        try:
            if self.number == 0 and self.task.init is not None:
                self._validate(progress)  # so that the best is never worse than what was there
            for parts in self._batches():
                progress.add(self.step(parts), self.share.batch, self.loader)
                self.seconds = progress.seconds
                validated = self._crossed(self.numbers["validate_every"]) or self.update >= self.stop_at
                if validated:
                    self._validate(progress)
                elif progress.is_due():
                    self._tell(progress, None)
                self._keep_now_and_then()
                self._check_stop(stop)
                if validated and self._is_enough():
                    break
        except (MemoryError, RuntimeError) as error:
            if is_parted(error):
                raise DeviceError("another process of this training was lost", "see what it said itself") from error
            if not memory.is_lacking(error):
                raise
            raise DeviceError(
                f"not enough memory on {self.group.device}", "use a smaller --crop or --batch, or --accumulate"
            ) from error
        finally:
            self.log.close()
        facts = {"update": self.update, "best": self.best, "best_update": self.best_update, "out": str(self.task.out)}
        self.notify("trained", {**facts, "model": self.recipe.model, "measure": self._measure})
        return TrainingResult(self.update, self.best, self.best_update)

    def _check_stop(self, stop: Stop) -> None:
        """Keep everything and end, in all processes together, where a signal has come."""
        status = stop()
        if self.group.any(status is not None):
            self._keep()
            error = InterruptedRunError(status or ExitStatus.TERMINATED)
            error.message, error.hint = f"stopped at update {self.update}; it is all kept", "--resume goes on"
            raise error

    def _keep_now_and_then(self) -> None:
        """Keep the state where the last one is old."""
        if time.monotonic() - self.kept > 60 * float(self.numbers.get("keep_minutes", KEEP_MINUTES)):
            self._keep()

    @property
    def _measure(self) -> str:
        """Tell by what the best weights are chosen: psnr, in dB, or loss, where the network restores nothing yet."""
        return "psnr" if self.objective.restores else "loss"

    def _batches(self) -> Iterator[list[Batch]]:
        """Give this process's parts of each batch that is still to be used."""
        made = self.loader.batches(self.number)
        while self.update < self.stop_at:
            try:
                parts = [next(made) for _ in range(self.share.parts)]
            except VdeblurError:
                self._keep()  # nothing is lost but what could not be read
                raise
            yield [self._uploaded(part) for part in parts]

    def _uploaded(self, batch: Batch) -> Batch:
        return {name: value.to(self.group.device, non_blocking=True) for name, value in batch.items()}

    def _crossed(self, every: int) -> bool:
        """Tell whether the last batch led past a multiple of this; a batch may be good for several updates."""
        return self.update // every > self.before // every

    def step(self, parts: list[Batch]) -> dict[str, float]:
        """Do all turns of one batch; gives the mean losses over its turns."""
        self.before = self.update
        turns = self.objective.turns(self.update)
        carried: list[Any] = [None] * len(parts)
        sums: dict[str, list[float]] = {}
        for turn, name in enumerate(turns):
            losses = self.backward(parts, turn, carried)
            for key, value in losses.items():
                if key != "loss" or name == turns[-1]:  # others have losses of their own, by their names
                    sums.setdefault(key, []).append(value)
            optimiser = self.optimisers[name]
            optimiser.step(self._factor(), self.scaler if self.scaler.is_enabled() else None)
            optimiser.zero_grad()
            if name == "network":
                self.update += 1
                if self.average is not None:
                    self.average.update_parameters(self.objective.network)
        self.update += "network" not in turns
        self.number += 1
        return {key: math.fsum(values) / len(values) for key, values in sums.items()}

    def backward(self, parts: list[Batch], turn: int, carried: list[Any]) -> dict[str, float]:
        """Compute the gradients of one turn over all parts of a batch; gives its losses."""
        # What steps draw at random depends on the seed, the batch, the turn and the process alone.
        torch.manual_seed(_mixed(self.seed, self.number, turn, self.group.rank))
        sums: dict[str, float] = {}
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            with self._without_exchange(not last):
                with torch.autocast(self.group.device.type, self.precision, self.precision != torch.float32):
                    losses, carried[index] = self.model(part, turn, self.before, carried[index])
                self.scaler.scale(losses["loss"] / len(parts)).backward()
                found = torch.stack([loss.detach().float() for loss in losses.values()])
                # The one wait for the GPU, and only after all its work is on the way.
                values = dict(zip(losses, self.group.mean(found).tolist(), strict=True))
                self._check(values)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value / len(parts)
        return sums

    def _without_exchange(self, wanted: bool) -> contextlib.AbstractContextManager[Any]:
        """Let processes exchange gradients only with the last part of a batch."""
        if wanted and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _check(self, losses: dict[str, float]) -> None:
        """Stop where a loss is no number; the state of the last validation stays.

        Raises: DeviceError.
        """
        wrong = [name for name, value in losses.items() if not math.isfinite(value)]
        if wrong:
            told = ", ".join(f"{name} = {losses[name]}" for name in wrong)
            raise DeviceError(
                f"at update {self.update + 1} a loss is not a number any more: {told}",
                "--resume goes on from the last kept state; with a lower --rate, or --set optimiser.clip=0.01",
            )

    def _factor(self) -> float:
        """Give what the rates are multiplied by at this update."""
        scheduled = optimisers.factor(self.schedule, self.update, self.numbers["iterations"], self.rate)
        return scheduled * self.plateau.factor

    # What is kept and told

    def _validate(self, progress: Progress) -> None:
        """Measure, keep the state and the weights, and tell."""
        begun = time.monotonic()
        facts, samples = self._measured()
        score = facts["psnr"] if self.objective.restores else -facts["validation_loss"]
        better = score > self.best
        if better:
            self.best, self.best_update = score, self.update
        self.plateau.observe(score)
        progress.pause(time.monotonic() - begun)
        self._tell(progress, facts)
        if self.group.leads:
            self.log.pictures(samples, self.update)
            self._write_weights("last", facts)
            if better:
                self._write_weights("best", facts)
        self._keep()  # last, since a training that goes on from an older state does all this again

    def _measured(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Measure what the network restores on held-out clips, or, where it restores nothing yet, its loss on them."""
        frames = int(self.numbers.get("validation_frames", 10))
        if self.objective.restores:
            shown = self.task.out / "samples" / f"{self.update:07}"
            score, samples = validate(self._evaluated(), self.held_out.sequences, frames, self.group, shown)
            return vars(score), samples
        assert self.held_out_clips is not None
        self.objective.eval()
        found = []
        with torch.no_grad():
            for number in range(self.group.rank, frames * len(self.held_out.sequences), self.group.size):
                batch = self._uploaded(data.stacked([self.held_out_clips[number]]))
                found.append(float(self.objective(batch, 0, 0, None)[0]["loss"]))
        self._set_modes()
        losses = list(itertools.chain.from_iterable(self.group.gather(found)))
        return {"validation_loss": math.fsum(losses) / len(losses)}, {}

    def _is_enough(self) -> bool:
        """Tell whether validations say that nothing more is to be hoped for."""
        most = self.numbers.get("stop_after")
        return self.plateau.finished or (most is not None and self.plateau.waited >= most)

    def _evaluated(self) -> Network:
        network = self.objective.network if self.average is None else self.average.module
        assert isinstance(network, Network)
        return network

    def _tell(self, progress: Progress, score: dict[str, Any] | None) -> None:
        """Log what there is since the last time, and a validation's figures."""
        facts = {"update": self.update, **progress.take(), "rate": self.rate * self._factor()}
        facts |= score or {}
        left = max(self.stop_at - self.update, 0)
        pace = facts["updates_per_second"] = facts.pop("batches_per_second") * max(len(self._network_turns()), 1)
        self.log.add(facts)
        self._warn_of_slow_data(facts)
        told = {**facts, "iterations": self.numbers["iterations"], "eta_seconds": left / pace if pace else None}
        self.notify("train_progress" if score is None else "validation", told)

    def _warn_of_slow_data(self, facts: dict[str, Any]) -> None:
        if facts["waited_share"] > SLOW_DATA and not self.warned and self.update > self.first_update:
            self.warned = True
            share = f"{facts['waited_share']:.0%} of the time goes by waiting for data"
            message = f"{share}; more --workers, or a --cache, helps where there are processors left"
            self.notify("warning", {"code": "W_WAITING", "message": message})

    def _network_turns(self) -> list[str]:
        return [name for name in self.objective.turns(self.update) if name == "network"]

    def _write_weights(self, name: str, score: dict[str, Any]) -> None:
        """Write weights that `run --weights` takes, and how they came about."""
        half = self.numbers.get("save") == "fp16"
        tensors = {
            key: (value.half() if half and value.is_floating_point() else value).contiguous().cpu()
            for key, value in self._evaluated().state_dict().items()
        }
        about = {
            "model": self.recipe.model,
            "stage": self.recipe.stage,
            "update": self.update,
            "seconds": round(self.seconds),
            "dataset": self.task.dataset if self.task.copy is None else f"{self.task.dataset} (a copy)",
            "init": self.task.init,
            "score": score,
            "version": __version__,
        }
        metadata = {"training": json.dumps(about), "recipe": self.recipe.text}
        write_whole(self.task.out / f"{name}.safetensors", safetensors.torch.save(tensors, metadata))

    def _keep(self) -> None:
        """Write the state of the training, whole or not at all."""
        if not self.group.leads:
            return
        state = {
            "recipe": self.recipe.text,
            "tables": self.recipe.tables.unwrap(),
            "model": self.recipe.model,
            "stage": self.recipe.stage,
            "told": self._told(),
            "run": self.group.run,
            "objective": self.objective.state_dict(),
            "optimisers": {name: one.state_dict() for name, one in self.optimisers.items()},
            "average": None if self.average is None else self.average.state_dict(),
            "plateau": self.plateau.state_dict(),
            "scaler": self.scaler.state_dict(),
            **{name: getattr(self, name) for name in COUNTED},
        }
        whole = io.BytesIO()
        torch.save(state, whole)
        write_whole(self.task.out / STATE, whole.getbuffer())
        self.kept = time.monotonic()

    def _restore(self, state: dict[str, Any]) -> None:
        """Go on from a state that was kept."""
        try:
            self.objective.load_state_dict(state["objective"])
            for name, one in self.optimisers.items():
                one.load_state_dict(state["optimisers"][name])
            if self.average is not None and state["average"] is not None:
                self.average.load_state_dict(state["average"])
            self.plateau.load_state_dict(state["plateau"])
            if state["scaler"] and self.scaler.is_enabled():
                self.scaler.load_state_dict(state["scaler"])
            for name in COUNTED:
                setattr(self, name, state[name])
        except (KeyError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"the training in {self.task.out} was made with other options: {' '.join(str(error).split())[:200]}",
                "use those, or another --out",
            ) from error


COUNTED = ("update", "number", "best", "best_update", "seconds")


def _mixed(*numbers: int) -> int:
    """Give a seed out of several numbers, such that neighbours have nothing in common."""
    return int(numpy.random.SeedSequence(numbers).generate_state(1, numpy.uint64)[0] >> 1)


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """Give the dotted names of what differs between two recipes."""
    names = []
    for key in dict.fromkeys(itertools.chain(old, new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += _differing(a, b, f"{where}{key}.")
        elif a != b:
            names.append(f"{where}{key}")
    return names or ["its comments"] if not where else names


def _prefixes(objective: Objective, frozen: tuple[str, ...]) -> dict[str, float]:
    """Give rates of zero for what is to keep its values.

    Raises: UsageError where nothing is called so.
    """
    names = [name for name, _ in objective.network.named_parameters()]
    for prefix in frozen:
        if not any(f"{name}.".startswith(f"{prefix}.") for name in names):
            tops = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise UsageError(f"no part of the network is called {prefix!r}", f"choose from {tops}, or parts of them")
    return dict.fromkeys(frozen, 0.0)


def _find_sets(task: TrainingTask, blur: str, talk: Talk) -> tuple[DataSet, DataSet]:
    """Find what to train on, and what to validate on: --validation, or else what open_sets takes for that."""
    warn = _warner(talk)
    if task.validation is None:
        return data.open_sets(task.dataset, data=task.copy, blur=blur, limit=task.limit, talk=talk, warn=warn)
    training = layouts.open_dataset(
        task.dataset, data=task.copy, split="train", limit=task.limit, blur=blur, talk=talk, warn=warn
    )
    return training, layouts.open_dataset(task.validation, blur=blur, talk=talk, warn=warn)


def _warner(talk: Talk) -> Warn:
    def warn(code: str, message: str) -> None:
        talk.notify("warning", {"code": code, "message": message})

    return warn
