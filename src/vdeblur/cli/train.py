"""`vdeblur train`: weights of one's own, by a paper's recipe."""

import os
from pathlib import Path
from typing import Any

import click

from vdeblur.cli.report import ErrorReporter, HumanReporter, JsonReporter, Reporter, reported
from vdeblur.cli.terminal import question
from vdeblur.cli.types import KeyValueType
from vdeblur.errors import UsageError

FOLDER = click.Path(path_type=Path, file_okay=False)
# Options that stand for one number of the recipe; --set reaches all of them.
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


@click.command(short_help="Train or fine-tune a network by its paper's recipe.")
@click.option("-m", "--model", required=True, help="Model to train, see vdeblur models list.")
@click.option("--stage", help="Part of the training, where there are several: pvdnet has bimnet, then pvdnet.")
@click.option("--dataset", metavar="NAME|DIR", help="gopro, dvd, bsd, reds, or a folder of blurry and sharp pictures.")
@click.option("--data", type=FOLDER, help="Where a copy of the named data set is.")
@click.option("--validation", metavar="DIR", help="Pairs to validate on.  [default: the set's own, or a tenth]")
@click.option("--limit", type=click.IntRange(1), help="At most so many frames of each sequence.")
@click.option("--out", type=FOLDER, help="Folder for all that comes of it.  [default: runs/MODEL]")
@click.option("--resume", is_flag=True, help="Go on with the training in --out, if there is one.")
@click.option("--init", metavar="FILE|NAME", help="Weights to begin with: a checkpoint, or NAME[@WEIGHTS].")
@click.option("--freeze", multiple=True, metavar="PREFIX", help="Keep parameters called so; may be repeated.")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="TOML file merged over the recipe.")
@click.option(
    "--set", "values", type=KeyValueType(), multiple=True, help="One value, as optimiser.clip=0.01; repeatable."
)
@click.option("--paper", is_flag=True, help="By the paper's text where the authors' code does otherwise.")
@click.option("--print-config", is_flag=True, help="Write the recipe as it would be used to stdout, and stop.")
@click.option("--iterations", type=click.IntRange(1), help="Updates of the weights.  [default: the recipe's]")
@click.option("--stop-at", type=click.IntRange(1), help="End at this update already; --resume goes on.")
@click.option("--batch", type=click.IntRange(1), help="Clips in a batch, over all processes.  [default: the recipe's]")
@click.option("--accumulate", type=click.IntRange(1), help="Parts a process cuts its batch into, to save memory.")
@click.option("--crop", type=click.IntRange(1), help="Side of the crops in pixels.  [default: the recipe's]")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="Learning rate; all rates change alike.  [default: the recipe's]",
)
@click.option("--ema", type=click.FloatRange(0, 1), help="Decay of the weights' moving average, as 0.999.")
@click.option("--seed", type=click.IntRange(0), help="Of weights, order and crops.  [default: the recipe's]")
@click.option("--validate-every", type=click.IntRange(1), help="Updates between validations.")
@click.option("-d", "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps or xpu.")
@click.option(
    "-p", "--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="Of the steps.  [default: the recipe's]"
)
@click.option("--workers", type=click.IntRange(0), default=2, show_default=True, help="Processes that read clips.")
@click.option("--cache", type=FOLDER, help="Folder for memory maps of all frames: faster, and large.")
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard's files, to OUT/tensorboard.")
@click.option("--deterministic", is_flag=True, help="The same weights each time on GPUs, too, where possible; slower.")
@click.option("--yes", is_flag=True, help="Fetch unasked, even what has no published digest.")
@click.option("--offline", is_flag=True, help="Never use the network.")
@click.option("--json", is_flag=True, help="Write events as JSON lines to stdout.")
def train(model: str, json: bool, print_config: bool, **given: Any) -> None:
    """Train a network by its paper's recipe, on a data set or on pairs from vdeblur synth.

    OUT gets best.safetensors and last.safetensors, for vdeblur run --weights, a log, sample pictures, and all that is
    needed to go on with --resume, bit for bit as if never interrupted. Under torchrun several processes share each
    batch, on one machine or many. With --init and a low --rate it fine-tunes.

    \b
    Examples:
      vdeblur train --model dstnet --dataset gopro --out runs/dstnet
      vdeblur train --model lite --dataset pairs/ --init lite --rate 1e-4 --iterations 5000
      torchrun --nproc-per-node 8 -m vdeblur train --model pvdnet --dataset dvd --resume
    """
    reporter: Reporter = JsonReporter() if json else HumanReporter()
    if int(os.environ.get("RANK", "0")):
        reporter = ErrorReporter()  # of several processes, one tells how it goes
    with reported(reporter, [model]) as stop:
        from vdeblur.models import cache
        from vdeblur.train import recipes

        short = [(SHORT[name], str(given[name])) for name in SHORT if given[name] is not None]
        name, at, _ = model.partition("@")
        if at:
            raise UsageError(f"{model} names weights, and training makes them", f"-m {name} --init {model}")
        entry = cache.find_entry(name)
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
            copy=given["data"],
            frozen=given["freeze"],
            **{name: given[name] for name in (*names, "yes", "offline")},
        )
        loop.train(task, notify=reporter.notify, ask=question(json), stop=stop)
