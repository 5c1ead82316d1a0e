"""The training loop: batches of clips to weights, interrupted and resumed at any batch, alone or under torchrun.

    train -> Trainer: loader (data.py) -> Learner (a batch's steps) -> Journal, Validator, TrainingFolder

The clips of a batch, and all that its steps draw at random, depend only on the seed and the batch's number. So a
resumed training gives the same weights, bit for bit on one device, as an uninterrupted one: on CPUs always, on GPUs
with --deterministic if PyTorch has a deterministic way for all that the network does.

What is counted:
    update: a step of the network's optimiser, or a batch without such a step. Learner.update counts them; a recipe's
        `iterations` is their number in a complete training. Schedules, validations, logs and --stop-at count updates.
    batch: what one Learner.step uses, for one update or several. Learner.batches_used counts them; by this number the
        loader chooses the clips.
    turn: one pass over a batch, and a step of one optimiser (Objective.turns): the network's, or a discriminator's.
    part: a micro-batch. --accumulate cuts a process's share of a batch into parts whose gradients add up.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vdeblur.datasets import layouts
from vdeblur.errors import DeviceError, ExitStatus, InterruptedRunError, UsageError, VdeblurError
from vdeblur.events import Ask, Notify, Stop, Talk, ignore, never
from vdeblur.models.registry import find_entry
from vdeblur.restore import device, memory
from vdeblur.train import data, start
from vdeblur.train.distributed import ProcessGroup, is_parted, joined
from vdeblur.train.folder import TrainingFolder, writing_alone
from vdeblur.train.learner import Learner
from vdeblur.train.log import Journal, Log, Progress
from vdeblur.train.mixture import Mixture
from vdeblur.train.mixture_loader import MixtureLoader, write_validation
from vdeblur.train.objectives import OBJECTIVES
from vdeblur.train.objectives.base import Batch, Objective
from vdeblur.train.recipes import Recipe
from vdeblur.train.sets import open_sets
from vdeblur.train.sharp_pictures import SharpPictures
from vdeblur.train.validate import Validator
from vdeblur.version import __version__

Sequences = tuple[layouts.Sequence, ...]


@dataclass(frozen=True)
class TrainingTask:
    """A recipe and the options of `vdeblur train` beside it.

    dataset: a set's name, or a folder of pairs; for a recipe with a table [mixture] a folder of sharp footage.
    data_folder: the user's copy of a named set (--data). validation: a folder to validate on. init: a checkpoint, or
    NAME[@WEIGHTS] of the registry. frozen: prefixes of parameters that keep their values.
    limit: frames of each sequence at most. stop_at: an update to stop at, with the schedule of the whole training.
    deterministic: see device.make_deterministic.
    """

    recipe: Recipe
    dataset: str
    out: Path
    data_folder: Path | None = None
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

    @property
    def options(self) -> dict[str, str]:
        """The options that the weights depend on, by their names; empty where not given."""
        given = {"dataset": self.dataset, "validation": self.validation, "limit": self.limit, "freeze": self.frozen}
        return {name: "" if not value else str(value) for name, value in given.items()}


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training.

    update: updates made. best: the best validation's score, higher is better: PSNR in dB, or minus the loss; -inf
    without a validation. best_update: the update of that validation.
    """

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

    Raises: VdeblurError of the kind that fits: data, weights, device, output; DeviceError at a NaN or infinite loss;
    InterruptedRunError when `stop` returns a status, after the state is saved.
    """
    if task.deterministic:
        device.make_deterministic()
    with joined(task.device) as group:
        torch.backends.cudnn.benchmark = not task.deterministic  # crops are all of one size
        notify_once = notify if group.is_main else ignore
        with writing_alone(task.out, group):
            trainer = Trainer(task, group, Talk(task.offline, task.yes, notify_once, ask, stop))
            with data.explain_lost_workers():
                return trainer.run()


class Trainer:
    """One training, from opening its folder and data to its last validation."""

    def __init__(self, task: TrainingTask, group: ProcessGroup, talk: Talk) -> None:
        self.task, self.group, self.talk = task, group, talk
        self.folder = TrainingFolder(task.out, task.recipe, group)
        state = self.folder.open(task.resume)
        makes_clips = self._makes_clips()
        if makes_clips:
            self._refuse_epochs()
        # Before the data are opened, or even fetched: what lacks start weights or names no part ends at once.
        training = task.recipe.training
        self.share = data.WorkerShare(training.batch, group.rank, group.size, training.accumulate)
        self.learner = Learner(self._build(state is None), task.recipe, group, task.frozen)
        self.best, self.best_update = -math.inf, 0
        if state is not None:
            self._restore(state)
        self.learner.distribute(self._warn)

        opened = None if makes_clips else self._open_pairs()
        self.task = task = replace(task, recipe=self._counted(opened))
        self.folder.recipe = recipe = task.recipe
        self.learner.count_updates(recipe)
        self.training = recipe.training
        self.stop_at = min(task.stop_at or self.training.iterations, self.training.iterations)
        self.loader: data.Loader | MixtureLoader
        self.loader, held_out, held_out_clips = self._mixture() if opened is None else self._pairs(*opened)
        below = recipe.mixture.below if makes_clips and recipe.mixture else None
        frames, samples = self.training.validation_frames, task.out / "samples"
        self.validator = Validator(self.learner.objective, held_out, held_out_clips, frames, group, samples, below)

        self.folder.write_recipe(state, task.options, self._warn)
        update = self.learner.update
        log = Log(task.out / "log.csv", update, active=group.is_main, tensorboard=task.tensorboard)
        self.journal = Journal(log, talk.notify, self.training.iterations, self.stop_at, update)
        self.progress = Progress(0.0 if state is None else state["seconds"])

    def _warn(self, code: str, message: str) -> None:
        self.talk.notify("warning", {"code": code, "message": message})

    def _build(self, is_new: bool) -> Objective:
        """Return the network with its losses, on the device, with the weights that a new training starts from.

        The objective's numbers count an epoch as one update until the data are open.
        """
        recipe = self.task.recipe
        entry = find_entry(recipe.model).with_arguments(recipe.network)
        torch.manual_seed(recipe.training.seed)
        network = entry.build()
        objective = OBJECTIVES[recipe.objective](network, recipe.numbers)
        objective.initialise()
        if is_new:
            start.begin(network, entry, recipe, self.task.init, self.talk)
        # Channels last makes convolutions faster, on CPUs several times.
        moved: Objective = objective.to(self.group.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return moved

    def _makes_clips(self) -> bool:
        """Return whether the clips are made of sharp footage: the recipe can, and --dataset is no set of pairs."""
        folder = Path(self.task.dataset)
        can = self.task.recipe.mixture is not None and self.task.data_folder is None and folder.is_dir()
        return can and not layouts.has_pairs(folder)

    def _refuse_epochs(self) -> None:
        """Refuse numbers in epochs for clips that are made while training.

        Raises: UsageError.
        """
        if self.task.recipe.has_epochs:
            raise UsageError("clips that are made of footage have no epochs", "give numbers of updates")

    def _open_pairs(self) -> tuple[data.ClipSource, Sequences]:
        """Open a data set: return its clips, and the sequences that validate."""
        task, plan, talk = self.task, self.task.recipe.data, self.talk
        sets: dict[str, Any] = {
            "data": task.data_folder,
            "validation": task.validation,
            "blur": plan.blur,
            "limit": task.limit,
        }
        training, held_out = self.group.main_first(lambda: open_sets(task.dataset, **sets, talk=talk, warn=self._warn))
        options: dict[str, Any] = {"cache": task.cache, "talk": talk, "warn": self._warn}
        source = self.group.main_first(lambda: data.open_clips(training.sequences, plan, **options))
        return source, held_out.sequences

    def _counted(self, opened: tuple[data.ClipSource, Sequences] | None) -> Recipe:
        """Return the recipe with the length of the set's epochs."""
        recipe = self.task.recipe
        if opened is None:
            return recipe
        return recipe.in_updates(len(data.Sampler(opened[0].lengths, recipe.data, recipe.training.seed)))

    def _pairs(self, source: data.ClipSource, held_out: Sequences) -> tuple[data.Loader, Sequences, data.Clips | None]:
        """Return the loader of a data set, and what validates."""
        task, plan, talk = self.task, self.task.recipe.data, self.talk
        frames = sum(len(sequence.pairs) for sequence in source.sequences)
        talk.notify("training", self._facts(len(source.sequences), frames, len(held_out)))
        objective = self.learner.objective
        clips = data.training_clips(source, plan, objective.prepare, self.training.seed)
        loader = data.Loader(clips, self.share, workers=task.workers, pin=self.group.device.type == "cuda")
        held_out_clips = None
        if not objective.restores:
            held_out_source = data.open_clips(held_out, plan, talk=talk, warn=self._warn)
            held_out_clips = data.training_clips(held_out_source, plan, objective.prepare, 0)
        return loader, held_out, held_out_clips

    def _mixture(self) -> tuple[MixtureLoader, Sequences, None]:
        """Open sharp footage: return the loader that makes clips of it, and the clips that validate.

        Raises: UsageError for options that belong to pairs.
        """
        task, mixture = self.task, self.task.recipe.mixture
        assert mixture is not None
        folder = Path(task.dataset)
        if task.limit or task.cache:
            raise UsageError(
                f"{folder} holds sharp footage, of which clips are made: --limit and --cache do not apply",
                "leave them out, or name a folder of pairs",
            )
        pictures = SharpPictures(folder, mixture.window, held_out=mixture.held_out)
        if task.validation is None:
            held_out = self.group.main_first(lambda: self._make_validation(folder, mixture))
        else:
            held_out = layouts.open_dataset(task.validation, blur="blur", talk=self.talk, warn=self._warn).sequences
        count = len(pictures.pyramids)
        self.talk.notify("training", self._facts(count, count, len(held_out)))
        loader = MixtureLoader(mixture, pictures, self.share, self.training.seed, self.group.device, task.workers)
        return loader, held_out, None

    def _make_validation(self, folder: Path, mixture: Mixture) -> Sequences:
        pictures = SharpPictures(folder, mixture.window, held_out=mixture.held_out, validates=True)
        return write_validation(mixture, pictures, self.task.out / "validation")

    def _restore(self, state: dict[str, Any]) -> None:
        """Continue from a saved state.

        Raises: UsageError for the state of a training with other parts.
        """
        try:
            self.learner.load_state_dict(state)
            self.best, self.best_update = state["best"], state["best_update"]
        except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise UsageError(
                f"the training in {self.task.out} has other options: {' '.join(str(error).split())[:200]}",
                "use those, or another --out",
            ) from error

    def _facts(self, sequences: int, frames: int, validation_sequences: int) -> dict[str, object]:
        """Return the payload of the event "training"."""
        return {
            "model": self.task.recipe.model,
            "stage": self.task.recipe.stage,
            "dataset": self.task.dataset,
            "sequences": sequences,
            "frames": frames,
            "validation_sequences": validation_sequences,
            "device": str(self.group.device),
            "precision": self.training.precision,
            "processes": self.group.size,
            "update": self.learner.update,
            "iterations": self.training.iterations,
            "parameters": sum(p.numel() for p in self.learner.objective.network.parameters() if p.requires_grad),
        }

    def run(self) -> TrainingResult:
        """Train to the end, or until talk.stop returns a status."""
        try:
            self._run()
        except (MemoryError, RuntimeError) as error:
            if is_parted(error):
                raise DeviceError("another process of this training was lost", "see its own messages") from error
            if not memory.is_lacking(error):
                raise
            raise DeviceError(
                f"not enough memory on {self.group.device}", "use a smaller --crop or --batch, or --accumulate"
            ) from error
        finally:
            self.journal.log.close()
        result = TrainingResult(self.learner.update, self.best, self.best_update)
        facts = {"out": str(self.task.out), "model": self.task.recipe.model, "measure": self.validator.measure}
        self.talk.notify("trained", {**vars(result), **facts})
        return result

    def _run(self) -> None:
        learner = self.learner
        if learner.batches_used == 0 and self.task.init is not None:
            self._validate()  # so that the best is never worse than the start
        for parts in self._batches():
            self.progress.add(learner.step(parts), self.share.batch, self.loader)
            validates = learner.passed_multiple_of(self.training.validate_every) or learner.update >= self.stop_at
            if validates:
                self._validate()
            elif self.progress.is_due():
                self._report(None)
            if self.folder.is_stale(self.training.keep_minutes):
                self._save_state()
            self._check_stop()
            if validates and learner.is_exhausted():
                return

    def _batches(self) -> Iterator[list[Batch]]:
        """Yield this process's parts of each batch that is still to be used."""
        made = self.loader.batches(self.learner.batches_used)
        while self.learner.update < self.stop_at:
            try:
                parts = [next(made) for _ in range(self.share.parts)]
            except VdeblurError:
                self._save_state()  # nothing is lost but the unreadable batch
                raise
            yield [self.group.upload(part) for part in parts]

    def _check_stop(self) -> None:
        """Save the state and stop, in all processes together, when a signal has arrived.

        Raises: InterruptedRunError.
        """
        status = self.talk.stop()
        if self.group.any(status is not None):
            self._save_state()
            error = InterruptedRunError(status or ExitStatus.TERMINATED)
            error.message = f"stopped at update {self.learner.update}; its state is kept"
            error.hint = "continue with --resume"
            raise error

    def _validate(self) -> None:
        """Validate, report, and write the weights and the state."""
        with self.progress.paused():
            facts, samples = self.validator.run(self.learner.evaluated, self.learner.update)
            self.learner.set_modes()
            score = self.validator.score(facts)
            is_best = score > self.best
            if is_best:
                self.best, self.best_update = score, self.learner.update
            self.learner.plateau.observe(score, counts=not self.learner.is_preparing)
        self._report(facts)
        if self.group.is_main:
            self.journal.log.pictures(samples, self.learner.update)
            for name in ("last", "best") if is_best else ("last",):
                self.folder.write_weights(name, self.learner.evaluated, self._metadata(facts))
        self._save_state()  # last: a training that resumes from an older state does all this again

    def _report(self, score: dict[str, Any] | None) -> None:
        learner = self.learner
        self.journal.report(self.progress, learner.update, learner.rate, learner.updates_per_batch, score)

    def _metadata(self, score: dict[str, Any]) -> dict[str, Any]:
        """Return the metadata of weights: how they were trained."""
        task = self.task
        return {
            "update": self.learner.update,
            "iterations": self.training.iterations,
            "epoch": self.task.recipe.epoch if self.task.recipe.has_epochs else None,
            "seconds": round(self.progress.seconds),
            "dataset": Path(task.dataset).name if task.data_folder is None else f"{task.dataset} (a copy)",
            "init": task.init,
            "score": score,
            "version": __version__,
        }

    def _save_state(self) -> None:
        """Write the state."""
        results = {"best": self.best, "best_update": self.best_update, "seconds": self.progress.seconds}
        self.folder.save_state({**self.learner.state_dict(), **results}, self.task.options)
