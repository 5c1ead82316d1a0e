"""The folder of a training: its state, to resume from, its weights and its recipe.

- last.safetensors, best.safetensors   weights of the last validation, and of the best; metadata names their origin
- state.pt                             all that --resume needs (weights, optimisers, average, schedule, counters)
- recipe.toml                          the recipe in use
- log.csv                              losses, rates, validations
- samples/UPDATE/SEQUENCE.png          blurry, restored and sharp, at each validation
"""

import contextlib
import io
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from vdeblur.errors import InputError, OutputError, UsageError, VdeblurError
from vdeblur.events import Warn
from vdeblur.files import try_lock, write_whole
from vdeblur.models.pickles import load_pickle
from vdeblur.models.registry import find_entry
from vdeblur.models.switches import plain
from vdeblur.train.distributed import ProcessGroup
from vdeblur.train.log import writing
from vdeblur.train.recipes import Recipe

STATE, LOCK = "state.pt", ".lock"
STATE_KEYS = {"model", "stage", "recipe", "tables", "told", "run", "update", "seconds"}
RESULTS = ("best.safetensors", "last.safetensors", "log.csv")


@contextlib.contextmanager
def writing_alone(out: Path, group: ProcessGroup) -> Iterator[None]:
    """Hold the folder's lock, in the main process for all of a group.

    Raises: OutputError where another training is writing to the folder, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        fault = ""
        if group.is_main:
            try:
                is_free = stack.enter_context(try_lock(out / LOCK))
                fault = "" if is_free else f"another training is writing to {out}"
            except OSError as error:
                fault = f"{out} cannot be written: {error.strerror}"
        fault = group.agree(fault)
        if fault:
            raise OutputError(fault, "wait for it, or choose another --out" if "another" in fault else "check the path")
        yield


class TrainingFolder:
    """Reads and writes a training's folder; of several processes only the main one writes.

    saved_at: when the state was last written, by time.monotonic.
    """

    def __init__(self, out: Path, recipe: Recipe, group: ProcessGroup) -> None:
        self.out, self.recipe, self.group = out, recipe, group
        self.saved_at = time.monotonic()

    def open(self, resume: bool) -> dict[str, Any] | None:
        """Return the state in the folder, or None where the folder is free for a new training.

        Raises: OutputError where the folder has other files, or a state and resume is false; InputError for a broken
        state; UsageError for another model's.
        """
        problem: VdeblurError | None = None
        state: dict[str, Any] | None = None
        if not (self.out / STATE).is_file():
            files = [name for name in RESULTS if (self.out / name).exists()]
            if files:
                problem = OutputError(f"{self.out / files[0]} exists, but no {STATE} beside it", "choose another --out")
        else:
            try:
                state = load_pickle(self.out / STATE)
                if missing := STATE_KEYS - state.keys():
                    raise ValueError(f"it has no {min(missing)}")
                problem = self._unfit(state, resume)
            except Exception as error:
                problem = InputError(f"{self.out / STATE} cannot be read: {error}", "start again in another --out")
        self.group.agree(None)  # every process has looked before any of them writes
        if problem is not None:
            raise problem
        return state

    def _unfit(self, state: dict[str, Any], resume: bool) -> VdeblurError | None:
        """Return why a state cannot be resumed from."""
        model, stage = state["model"], state["stage"]
        if (model, stage) != (self.recipe.model, self.recipe.stage):
            training = f"{model}, stage {stage}" if stage else model
            return UsageError(f"{self.out} holds a training of {training}", "train that model, or choose another --out")
        # torchrun starts the processes of a run again where one was lost, and where machines come or go.
        again = self.group.restarts > 0 or (self.group.run and state["run"] == self.group.run)
        if not (resume or again):
            return OutputError(
                f"{self.out} already holds a training of {state['update']} updates",
                "continue it with --resume, or choose another --out",
            )
        return None

    def write_recipe(self, state: dict[str, Any] | None, options: dict[str, str], warn: Warn) -> None:
        """Write the recipe, and warn where it or an option differs from those of a state.

        options: see TrainingTask.options.
        """
        if state is not None and state["recipe"] != self.recipe.text:
            names = ", ".join(_differing(state["tables"], self.recipe.values))
            warn("W_RECIPE", f"the recipe has changed ({names}); continuing with the new one")
        for name, before in (state["told"] if state else {}).items():
            if before != options[name]:
                warn("W_RECIPE", f"--{name} was {before or 'not given'} before; continuing with the new value")
        if self.group.is_main:
            self._write("recipe.toml", self.recipe.text.encode())

    def save_state(self, state: dict[str, Any], options: dict[str, str]) -> None:
        """Write the state; the file appears complete or not at all."""
        if not self.group.is_main:
            return
        facts = {
            "recipe": self.recipe.text,
            "tables": self.recipe.values,
            "model": self.recipe.model,
            "stage": self.recipe.stage,
            "told": options,  # an old name, which earlier states have
            "run": self.group.run,
        }
        data = io.BytesIO()
        torch.save({**facts, **state}, data)
        self._write(STATE, data.getbuffer())
        self.saved_at = time.monotonic()

    def is_stale(self, minutes: float) -> bool:
        """Return whether the last state is older than this."""
        return time.monotonic() - self.saved_at > 60 * minutes

    def write_weights(self, name: str, network: nn.Module, about: dict[str, Any]) -> None:
        """Write weights that `run --weights` reads, with metadata about their training."""
        half = self.recipe.training.save == "fp16"
        tensors = {
            key: (value.half() if half and value.is_floating_point() else value).contiguous().cpu()
            for key, value in network.state_dict().items()
        }
        variant = plain(find_entry(self.recipe.model).with_arguments(self.recipe.network).variant)
        about = {"model": self.recipe.model, "stage": self.recipe.stage, "network": variant, **about}
        metadata = {"training": json.dumps(about), "recipe": self.recipe.text}
        self._write(f"{name}.safetensors", safetensors.torch.save(tensors, metadata))

    def _write(self, name: str, data: bytes | memoryview) -> None:
        with writing(self.out / name):
            write_whole(self.out / name, data)


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """Return the dotted names of what differs between two recipes."""
    names = []
    for key in dict.fromkeys(itertools.chain(old, new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += _differing(a, b, f"{where}{key}.")
        elif a != b:
            names.append(f"{where}{key}")
    return names or ["its comments"] if not where else names
