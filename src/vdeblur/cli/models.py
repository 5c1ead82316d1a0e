"""`vdeblur models`: list models; download, import, verify and remove their weights."""

import re
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vdeblur.cli.lines import duration_in_words
from vdeblur.cli.printable import echo_line, printable
from vdeblur.cli.report import HumanReporter, reported
from vdeblur.cli.terminal import question, show_table
from vdeblur.cli.types import YES
from vdeblur.errors import ModelError

if TYPE_CHECKING:
    from vdeblur.models.registry import ModelEntry, Weights

# torch takes seconds to import, and --help must not wait: vdeblur.models is imported inside the commands.


LICENSE_WIDTH = 10  # characters, so that a line fits 90 columns
MINUTE_FRAMES = 1800  # of a minute at 30 frames per second


@click.group("models", short_help="List models; download, import and verify their weights.")
def models_command() -> None:
    """List models; download, import and verify their weights.

    `vdeblur models path` prints the folder that holds the weights; VDEBLUR_CACHE names another one. VDEBLUR_REGISTRY
    names a file with more models, in the format of weights.toml.

    \b
    Examples:
      vdeblur models list
      vdeblur models download dstnet
    """


@models_command.command("list", short_help="List the models and their weights.")
@click.option("--json", is_flag=True, help="Print a JSON list.")
def list_command(json: bool) -> None:
    """List the models, one line per weights: where they are, published PSNR, time here, footage, licence.

    The PSNR is published by the authors; protocols differ, see `models show`. The time for a minute of 1280x720 video
    at 30 frames per second is an estimate from the model's cost and a short measurement of this machine. A * after a
    licence: `models show NAME` has its conditions, and the training data.

    \b
    Examples:
      vdeblur models list
      vdeblur models list --json
    """
    with reported(HumanReporter(), ["models list"]):
        from vdeblur.models import registry
        from vdeblur.models.listing import seconds_per_frame_here

        rows: list[tuple[ModelEntry, Weights | None]] = []
        for entry in registry.known_models().values():
            rows += [(entry, weights) for weights in registry.weights_of(entry).values()] or [(entry, None)]
        seconds = seconds_per_frame_here()
        if json:
            facts = [
                {**_facts(entry, weights), "seconds_per_720p_frame": seconds.get(entry.name)} for entry, weights in rows
            ]
            click.echo(dumps(facts, indent=1))
            return
        heads = ("MODEL", "WEIGHTS", "PSNR", "TIME", "FOR", "LICENCE")
        show_table(heads, [_row(entry, weights, seconds.get(entry.name)) for entry, weights in rows])
        click.echo(
            "TIME: estimate for a minute of 1280x720 video at 30 fps on this machine. FOR: any footage, real blur of "
            "handheld cameras, or strong shake of action cameras. *: see vdeblur models show",
            err=True,
        )


def _row(entry: "ModelEntry", weights: "Weights | None", seconds: float | None) -> tuple[str, ...]:
    from vdeblur.models import cache

    name = entry.name if weights is None or weights.name == entry.default else f"{entry.name}@{weights.name}"
    scores = entry.scores if weights is None else weights.scores
    return (
        name,
        cache.state_of(entry, weights),
        f"{scores[0].psnr:.2f} {scores[0].data.replace('-', ' ').split()[0]}" if scores else "",
        "" if seconds is None else duration_in_words(seconds * MINUTE_FRAMES),
        "" if weights is None else weights.suits,
        _short_license(entry.license),
    )


def _short_license(license: str) -> str:
    """Return a licence's name without its details; a star if `models show` has conditions beside it."""
    name = re.split(r"[;,(]", license)[0].strip()
    star = "*" if name != license else ""
    return f"{name}{star}" if len(name) <= LICENSE_WIDTH else "see show"


@models_command.command("show", short_help="Show everything about a model.")
@click.argument("name")
@click.option("--json", is_flag=True, help="Print a JSON object.")
def show_command(name: str, json: bool) -> None:
    """Show model NAME: paper, licence, weights, their sources, digests, published scores, and the paper's BibTeX entry.

    \b
    Examples:
      vdeblur models show lite
      vdeblur models show lite --json
    """
    with reported(HumanReporter(), [name]):
        from vdeblur.models import registry

        entry, chosen = registry.choose_weights(name)
        several = [chosen] if "@" in name and chosen else list(registry.weights_of(entry).values())
        facts = {**_entry_facts(entry), "weights": [_weights_facts(entry, weights) for weights in several]}
        facts["bibtex"] = entry.bibtex
        if json:
            click.echo(dumps(facts, indent=1))
        else:
            _show_facts(facts)


def _show_facts(facts: dict[str, Any]) -> None:
    from vdeblur.models.registry import SUITS

    for key, value in facts.items():
        if key == "weights":
            for weights in value:
                click.echo()
                echo_line(f"{facts['model']}@{weights.pop('weights')}")
                _show_facts({f"  {name}": rest for name, rest in weights.items()})
        elif key == "published_time" and value:
            source = f" ({value['source']})" if value["source"] else ""
            echo_line(f"{key}: {value['seconds']:g} s for a frame of {value['size']}, {value['device']}{source}")
        elif key == "bibtex" and value:
            click.echo("\n" + "\n".join(map(printable, value.splitlines())))
        elif key.strip() == "scores":
            for score in value:
                ssim = "" if score["ssim"] is None else f", SSIM {score['ssim']:g} ({score['ssim_kind']})"
                protocol = f"; {score['protocol']}" if score["protocol"] else ""
                echo_line(f"{key}: {score['data']} {score['psnr']:g} dB{ssim}{protocol}")
        elif key.strip() == "checks":
            for number, item in enumerate(value, 1):
                echo_line(f"{key}: not done yet, {number}: {item}")
        elif key.strip() == "suits" and value:
            echo_line(f"{key}: {SUITS[value]}")
        elif isinstance(value, list):
            for item in value:
                echo_line(f"{key}: {item}")
        elif isinstance(value, dict):
            for name, rest in value.items():
                echo_line(f"{key}: {name} {rest}")
        elif value not in (None, ""):
            echo_line(f"{key}: {value}")


def _entry_facts(entry: "ModelEntry") -> dict[str, Any]:
    return {
        "model": entry.name,
        "description": entry.description,
        "paper": entry.paper,
        "license": entry.license,
        "notice": entry.notice,
        "parameters_millions": entry.parameters_millions,
        "gmacs": entry.gmacs,
        "time_gmacs": entry.time_gmacs,
        "default": entry.default,
        "start_of": entry.start_of,
        "no_weights": entry.no_weights,
        "scores": [vars(score) for score in entry.scores],
        "published_time": None if entry.time is None else vars(entry.time),
    }


def _weights_facts(entry: "ModelEntry", weights: "Weights") -> dict[str, Any]:
    from vdeblur.models import cache

    return {
        "weights": weights.name,
        "state": cache.state_of(entry, weights),
        "file": weights.remote.name,
        "sources": [f"{source.kind} {source.place}".strip() for source in weights.remote.sources],
        "verification": "imported" if weights.imported else weights.verification,
        "pins": weights.remote.pins,
        "megabytes": weights.megabytes,
        "trained_on": weights.trained_on,
        "blur": weights.blur,
        "paper": weights.paper,
        "suits": weights.suits,
        "scores": [vars(score) for score in weights.scores],
        "checks": list(weights.checks),
    }


def _facts(entry: "ModelEntry", weights: "Weights | None") -> dict[str, Any]:
    facts = _entry_facts(entry)
    if weights is None:
        return facts
    return {**facts, **_weights_facts(entry, weights), "paper": weights.paper or entry.paper}


@models_command.command("download", short_help="Download weights into the cache.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@YES
@click.option("--offline", is_flag=True, help="Do not use the network; report whether the weights are in the cache.")
def download_command(names: tuple[str, ...], yes: bool, offline: bool) -> None:
    """Download the weights of each NAME or NAME@WEIGHTS into the cache, verify them, and print their paths.

    \b
    Examples:
      vdeblur models download dstnet
      vdeblur models download cdvd-tsp@dvd pvdnet --yes
    """
    reporter = HumanReporter()
    with reported(reporter, [names[0]]) as stop:
        from vdeblur.events import Talk
        from vdeblur.models import cache, registry

        talk = Talk(offline, yes, reporter.notify, question(), stop)
        for name in names:
            entry, chosen = registry.choose_weights(name)
            if chosen is None:
                raise ModelError(f"{name} has no weights to download", entry.no_weights or "it needs none")
            click.echo(cache.obtain_weights(entry, chosen, talk))


@models_command.command("import", short_help="Add a downloaded or self-trained file to the cache.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--as",
    "name",
    required=True,
    metavar="NAME[@WEIGHTS]",
    help="Model and weights that FILE is for; for your own weights, choose a new name as WEIGHTS.",
)
def import_command(file: Path, name: str) -> None:
    """Add FILE, which you downloaded by hand or trained yourself, to the cache.

    The file must fit the network. Under a known NAME@WEIGHTS it must also have the published digest; without one, a
    warning says that it cannot be verified. For weights of your own, choose a new name as WEIGHTS and run with
    --model NAME@WEIGHTS.

    \b
    Examples:
      vdeblur models import CDVD_TSP_GOPRO.pt --as cdvd-tsp@gopro
      vdeblur models import runs/lite/best.safetensors --as lite@mine
    """
    reporter = HumanReporter()
    with reported(reporter, [str(file)]) as stop:
        from vdeblur.events import Talk
        from vdeblur.models import cache

        entry, imported = cache.import_file(file, name, Talk(notify=reporter.notify, stop=stop))
        use = f"run with -m {entry.name}@{imported.name}" if entry.network else f"train {entry.start_of} with it"
        echo_line(f"imported {file} as {entry.name}@{imported.name}: {use}", err=True)


@models_command.command("verify", short_help="Compare cached weights with their digests.")
@click.argument("names", nargs=-1, metavar="[NAME...]")
def verify_command(names: tuple[str, ...]) -> None:
    """Compare the weights of each NAME, or all cached weights, with their digests.

    "whole": the file is unchanged since its download or import, and it is the published file unless the line adds that
    you imported it or that it is not, or only partly, verified.

    \b
    Examples:
      vdeblur models verify
      vdeblur models verify lite dstnet@dvd
    """
    with reported(HumanReporter(), [names[0] if names else "models verify"]):
        from vdeblur.models import cache, registry

        bad = []
        for name in names or registry.known_models():
            entry, chosen = registry.choose_weights(name)
            several = [chosen] if "@" in name and chosen else list(registry.weights_of(entry).values())
            for weights in several:
                state = cache.verification_of(entry, weights)
                if state != cache.CacheState.ABSENT or names:
                    echo_line(f"{entry.name}@{weights.name}: {state}")
                if state in (cache.CacheState.DAMAGED, cache.CacheState.UNREADABLE):
                    bad.append(f"{entry.name}@{weights.name}")
        if bad:
            raise ModelError(
                f"damaged or not readable: {', '.join(bad)}",
                f"vdeblur models download {' '.join(bad)} downloads damaged ones again",
            )


@models_command.command("path", short_help="Print the path of weights, or of the cache.")
@click.argument("name", required=False)
def path_command(name: str | None) -> None:
    """Print the file that holds the weights of NAME, or the cache folder.

    \b
    Examples:
      vdeblur models path
      vdeblur models path lite
    """
    with reported(HumanReporter(), [name or "models path"]):
        if name is None:
            from vdeblur.files import cache_folder

            click.echo(cache_folder())
        else:
            from vdeblur.models import cache

            click.echo(cache.path_of(name))


@models_command.command("remove", short_help="Remove weights from the cache.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--forget",
    is_flag=True,
    help="Also forget the digest of the first download, so that a changed file without a published digest is accepted.",
)
def remove_command(names: tuple[str, ...], forget: bool) -> None:
    """Remove the weights of each NAME or NAME@WEIGHTS from the cache.

    NAME alone removes the published weights; those that you imported under your own name need the full NAME@WEIGHTS.

    \b
    Examples:
      vdeblur models remove dstnet
      vdeblur models remove cdvd-tsp@gopro --forget
    """
    with reported(HumanReporter(), [names[0]]):
        from vdeblur.models import cache

        for name in names:
            removed = cache.remove_weights(name, forget)
            click.echo(f"removed {', '.join(removed)}" if removed else f"{name}: nothing in the cache", err=True)
            if kept := cache.imported_of(name):
                click.echo(f"kept {', '.join(kept)}, which you imported: use their full names to remove them", err=True)
