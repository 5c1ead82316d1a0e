"""`vdeblur train`: train or fine-tune a network by its paper's recipe."""

import os
from pathlib import Path
from typing import Any

import click

from vdeblur.cli.groups import GroupedCommand
from vdeblur.cli.report import ErrorReporter, HumanReporter, JsonReporter, Reporter, reported
from vdeblur.cli.terminal import question
from vdeblur.cli.types import (
    DATASET,
    DEVICE,
    FOLDER,
    JSON_EVENTS,
    LIMIT,
    OFFLINE,
    YES,
    FiniteType,
    KeyValueType,
    with_options,
)
from vdeblur.errors import UsageError
from vdeblur.settings import PRECISIONS

# Short forms of values in the recipe; --set reaches all values.
SHORT = {
    "iterations": "training.iterations",
    "batch": "training.batch",
    "accumulate": "training.accumulate",
    "precision": "training.precision",
    "seed": "training.seed",
    "ema": "training.ema",
    "validate_every": "training.validate_every",
    "crop": "data.crop",
}


TRAIN_GROUPS = {
    "What to train, and where": ("model", "stage", "out", "resume", "init", "freeze"),
    "Data": ("dataset", "data", "validation", "limit", "workers", "cache"),
    "Recipe": (
        *("config", "values", "paper", "print_config", "iterations", "stop_at", "batch", "accumulate", "crop"),
        *("rate", "ema", "seed", "precision"),
    ),
    "Work and reports": ("validate_every", "device", "tensorboard", "deterministic", "yes", "offline", "json"),
}


@click.command(
    "train", cls=GroupedCommand, groups=TRAIN_GROUPS, short_help="Train or fine-tune a network by its paper's recipe."
)
@with_options(
    click.option("-m", "--model", required=True, help="Model to train, as vdeblur models list shows."),
    click.option("--stage", help="Stage to train, if the model has several: pvdnet has bimnet, then pvdnet."),
    DATASET,
    click.option("--data", type=FOLDER, help="Folder that holds your copy of the data set."),
    click.option("--validation", metavar="DIR",
                 help="Pairs to validate on.  [default: the data set's own, or a tenth of it]"),
    LIMIT,
    click.option("--out", type=FOLDER,
                 help="Folder for weights, log and samples.  [default: runs/MODEL, or runs/MODEL-STAGE]"),
    click.option("--resume", is_flag=True, help="Continue the training in --out; start one if there is none."),
    click.option("--init", metavar="FILE|NAME", help="Weights to start from: a checkpoint, or NAME[@WEIGHTS]."),
    click.option("--freeze", multiple=True, metavar="PREFIX",
                 help="Do not train the parameters under PREFIX, the name of a part of the network; may be repeated."),
    click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="TOML file merged over the recipe."),
    click.option("--set", "values", type=KeyValueType(), multiple=True,
                 help="Set a value of the recipe, as optimiser.clip=0.01, or an argument of the network, as "
                      "network.stages=1; may be repeated."),
    click.option("--paper", is_flag=True, help="Follow the paper's text where the authors' code differs."),
    click.option("--print-config", is_flag=True, help="Print the resulting recipe, and stop."),
    click.option("--iterations", type=click.IntRange(1),
                 help="Length of the training in updates.  [default: the recipe's]"),
    click.option("--stop-at", type=click.IntRange(1),
                 help="Stop after this update, on the schedule of the full training; --resume continues."),
    click.option("--batch", type=click.IntRange(1),
                 help="Clips per batch, over all processes.  [default: the recipe's]"),
    click.option("--accumulate", type=click.IntRange(1),
                 help="Split each process's batch into N parts, which saves memory."),
    click.option("--crop", type=click.IntRange(1),
                 help="Side of the training crops, in pixels.  [default: the recipe's]"),
    click.option("--rate", type=FiniteType(0, min_open=True),
                 help="Learning rate; scales all rates alike.  [default: the recipe's]"),
    click.option("--ema", type=FiniteType(0, 1), help="Decay of a moving average of the weights, as 0.999."),
    click.option("--seed", type=click.IntRange(0),
                 help="Seed of initial weights, order and crops.  [default: the recipe's]"),
    click.option("--validate-every", type=click.IntRange(1), help="Number of updates between validations."),
    DEVICE,
    click.option("-p", "--precision", type=click.Choice(PRECISIONS[1:]),
                 help="Precision of the training steps.  [default: the recipe's]"),
    click.option("--workers", type=click.IntRange(0), default=2, show_default=True,
                 help="Number of processes that read clips; 0: read in the training process."),
    click.option("--cache", type=FOLDER, help="Folder for decoded frames: reads faster, but takes much space."),
    click.option("--tensorboard", is_flag=True, help="Also write a TensorBoard log, to OUT/tensorboard."),
    click.option("--deterministic", is_flag=True,
                 help="Make GPUs repeat a training exactly, where PyTorch can; slower. CPUs always do."),
    YES,
    OFFLINE,
    JSON_EVENTS,
)  # fmt: skip
def train_command(model: str, json: bool, print_config: bool, **given: Any) -> None:
    """Train a network by its paper's recipe, on a data set or on pairs from vdeblur synth.

    Writes to OUT: best.safetensors and last.safetensors, for vdeblur run --weights, a log, sample pictures, and the
    state from which --resume continues with the same result as an uninterrupted training. Under torchrun several
    processes share each batch, on one machine or many. To fine-tune, use --init and a low --rate.

    \b
    Examples:
      vdeblur train --model dstnet --dataset gopro --out runs/dstnet
      vdeblur train --model lite --dataset pairs/ --init lite --rate 1e-4 --iterations 5000
      torchrun --nproc-per-node 8 -m vdeblur train --model pvdnet --dataset dvd --resume
    """
    reporter: Reporter = JsonReporter() if json else HumanReporter()
    if int(os.environ.get("RANK", "0")):
        reporter = ErrorReporter()  # of several processes, one reports progress
    with reported(reporter, [model]) as stop:
        from vdeblur.models import registry
        from vdeblur.train import recipes

        short = [(SHORT[name], str(given[name])) for name in SHORT if given[name] is not None]
        name, at, _ = model.partition("@")
        if at:
            raise UsageError(f"{model} names weights, and training makes them", f"-m {name} --init {model}")
        entry = registry.find_entry(name)
        recipe = recipes.load_recipe(
            entry,
            given["stage"],
            config=given["config"],
            paper=given["paper"],
            rate=given["rate"],
            values=[*short, *given["values"]],
        )
        if print_config:
            click.echo(recipe.text, nl=False)
            return
        if given["dataset"] is None:
            raise UsageError("there is nothing to train on", "name a data set or a folder: --dataset gopro")
        from vdeblur.train import loop

        names = (
            "validation",
            "init",
            "resume",
            "limit",
            "stop_at",
            "device",
            "workers",
            "cache",
            "tensorboard",
            "deterministic",
        )
        task = loop.TrainingTask(
            recipe,
            given["dataset"],
            given["out"] or Path("runs") / (f"{entry.name}-{recipe.stage}" if recipe.stage else entry.name),
            data_folder=given["data"],
            frozen=given["freeze"],
            **{name: given[name] for name in (*names, "yes", "offline")},
        )
        loop.train(task, notify=reporter.notify, ask=question(json), stop=stop)
