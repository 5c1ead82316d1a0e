"""`vdeblur models`: which models there are, and their weights in the cache."""

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vdeblur.cli.report import HumanReporter, reported
from vdeblur.cli.terminal import question, show_table
from vdeblur.errors import ModelError

if TYPE_CHECKING:
    from vdeblur.models.registry import Entry, Weights

# torch takes seconds to import, and --help must not wait: `weights` is imported inside the commands.


@click.group(short_help="List models; fetch, import and verify their weights.")
def models() -> None:
    """List models; fetch, import and verify their weights.

    Weights are kept in the folder that `vdeblur models path` prints; VDEBLUR_CACHE names another one. VDEBLUR_REGISTRY
    names a file of further models, written like weights.toml.

    \b
    Examples:
      vdeblur models list
      vdeblur models download dstnet
    """


@models.command("list", short_help="List the models and where their weights are.")
@click.option("--json", is_flag=True, help="Write a JSON list.")
def list_models(json: bool) -> None:
    """List the models, one line for each of their weights: where these are, how good, how slow here, which licence.

    PSNR is the published one on the set that the weights are for; protocols differ, see `models show`. Seconds for a
    1280x720 frame are estimated from the model's cost and a short measurement of this machine.

    \b
    Examples:
      vdeblur models list
      vdeblur models list --json
    """
    with reported(HumanReporter(), ["models list"]):
        from vdeblur.models import cache

        rows: list[tuple[Entry, Weights | None]] = []
        for entry in cache.known_models().values():
            rows += [(entry, one) for one in cache.weights_of(entry).values()] or [(entry, None)]
        seconds = _speeds()
        if json:
            facts = [{**_facts(entry, one), "seconds_per_720p_frame": seconds.get(entry.name)} for entry, one in rows]
            click.echo(dumps(facts, indent=1))
            return
        heads = ("MODEL", "WEIGHTS", "PSNR", "720P FRAME", "LICENCE", "TRAINED ON")
        show_table(heads, [_row(entry, one, seconds.get(entry.name)) for entry, one in rows])


def _speeds() -> dict[str, float]:
    """Estimate how long each model takes for a 1280x720 frame on this machine, in seconds."""
    from vdeblur.models import cache, choice
    from vdeblur.networks import NETWORKS
    from vdeblur.restore import device

    chosen = device.choose_device("auto")
    rates: dict[str, float] = {}
    seconds = {}
    for entry in cache.known_models().values():
        if entry.gmacs and entry.network:
            precision = device.choose_precision("auto", chosen, NETWORKS[entry.network])
            if precision not in rates:
                rates[precision] = choice.multiply_adds_per_second(chosen, precision)
            seconds[entry.name] = round(choice.seconds_per_frame(entry, 720, 1280, rates[precision]), 3)
    return seconds


def _row(entry: "Entry", one: "Weights | None", seconds: float | None) -> tuple[str, ...]:
    from vdeblur.models import cache

    name = entry.name if one is None or one.name == entry.default else f"{entry.name}@{one.name}"
    scores = entry.scores if one is None else one.scores
    return (
        name,
        cache.state_of(entry, one),
        f"{scores[0].psnr:.2f} {scores[0].data}" if scores else "",
        "" if seconds is None else f"{seconds:.2g} s",
        entry.license.partition(";")[0] + (", see show" if entry.notice else ""),
        entry.description if one is None else f"{one.trained_on}; {one.blur}".strip("; "),
    )


@models.command(short_help="Show all that is known of a model.")
@click.argument("name")
@click.option("--json", is_flag=True, help="Write a JSON object.")
def show(name: str, json: bool) -> None:
    """Show all that is known of model NAME: paper, licence, weights, their sources, digests and published scores.

    The paper's BibTeX entry comes last.

    \b
    Examples:
      vdeblur models show lite
      vdeblur models show lite --json
    """
    with reported(HumanReporter(), [name]):
        from vdeblur.models import cache

        entry, chosen = cache.choose_weights(name)
        several = [chosen] if "@" in name and chosen else list(cache.weights_of(entry).values())
        facts = {**_entry_facts(entry), "weights": [_weights_facts(entry, one) for one in several]}
        facts["bibtex"] = entry.bibtex
        if json:
            click.echo(dumps(facts, indent=1))
        else:
            _show_facts(facts)


def _show_facts(facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        if key == "weights":
            for one in value:
                click.echo(f"\n{facts['model']}@{one.pop('weights')}")
                _show_facts({f"  {name}": rest for name, rest in one.items()})
        elif key == "bibtex" and value:
            click.echo(f"\n{value}")
        elif key.strip() == "scores":
            for score in value:
                ssim = "" if score["ssim"] is None else f", SSIM {score['ssim']:g} ({score['ssim_kind']})"
                protocol = f"; {score['protocol']}" if score["protocol"] else ""
                click.echo(f"{key}: {score['data']} {score['psnr']:g} dB{ssim}{protocol}")
        elif isinstance(value, list):
            for item in value:
                click.echo(f"{key}: {item}")
        elif isinstance(value, dict):
            for name, rest in value.items():
                click.echo(f"{key}: {name} {rest}")
        elif value not in (None, ""):
            click.echo(f"{key}: {value}")


def _entry_facts(entry: "Entry") -> dict[str, Any]:
    return {
        "model": entry.name,
        "description": entry.description,
        "paper": entry.paper,
        "license": entry.license,
        "notice": entry.notice,
        "parameters_millions": entry.parameters_millions,
        "gmacs": entry.gmacs,
        "default": entry.default,
        "start_of": entry.start_of,
        "no_weights": entry.no_weights,
        "scores": [vars(score) for score in entry.scores],
    }


def _weights_facts(entry: "Entry", one: "Weights") -> dict[str, Any]:
    from vdeblur.models import cache

    return {
        "weights": one.name,
        "state": cache.state_of(entry, one),
        "file": one.remote.name,
        "sources": [f"{source.kind} {source.place}".strip() for source in one.remote.sources],
        "verification": "imported" if one.imported else one.verification,
        "pins": one.remote.pins,
        "megabytes": one.megabytes,
        "trained_on": one.trained_on,
        "blur": one.blur,
        "scores": [vars(score) for score in one.scores],
    }


def _facts(entry: "Entry", one: "Weights | None") -> dict[str, Any]:
    facts = _entry_facts(entry)
    return facts if one is None else {**facts, **_weights_facts(entry, one)}


@models.command(short_help="Fetch weights into the cache.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--yes", is_flag=True, help="Fetch them unasked, even if their authors published no digest.")
@click.option("--offline", is_flag=True, help="Never use the network: only say whether they are there.")
def download(names: tuple[str, ...], yes: bool, offline: bool) -> None:
    """Fetch the weights of each NAME or NAME@WEIGHTS into the cache, verify them, and print where they are.

    \b
    Examples:
      vdeblur models download dstnet
      vdeblur models download cdvd-tsp@dvd pvdnet --yes
    """
    reporter = HumanReporter()
    with reported(reporter, [names[0]]) as stop:
        from vdeblur.events import Talk
        from vdeblur.models import cache

        talk = Talk(offline, yes, reporter.notify, question(), stop)
        for name in names:
            entry, chosen = cache.choose_weights(name)
            if chosen is None:
                raise ModelError(f"{name} has no weights to fetch", entry.no_weights or "it needs none")
            click.echo(cache.obtain_weights(entry, chosen, talk))


@models.command("import", short_help="Take a checkpoint that you have into the cache.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--as", "name", required=True, metavar="NAME[@WEIGHTS]", help="What it is; a new WEIGHTS names your own.")
def import_model(file: Path, name: str) -> None:
    """Take FILE, downloaded by hand or trained by yourself, into the cache.

    It has to fit its network. Under a name of weights.toml it must be the published file, too, where its authors
    published a digest; where they did not, that is not known, and a warning says so. Under a new name it is yours, and
    runs as --model NAME@WEIGHTS.

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
        use = f"run with -m {entry.name}@{imported.name}" if entry.network else f"start weights of {entry.start_of}"
        click.echo(f"{file} is {entry.name}@{imported.name} now: {use}", err=True)


@models.command(short_help="Compare the weights that are there with their digests.")
@click.argument("names", nargs=-1, metavar="[NAME...]")
def verify(names: tuple[str, ...]) -> None:
    """Read the weights of each NAME, or all that are there, and compare them with their digests.

    "whole" means that a file is what was fetched or imported, and, if nothing else is said, what its authors published.

    \b
    Examples:
      vdeblur models verify
      vdeblur models verify lite dstnet@dvd
    """
    with reported(HumanReporter(), [names[0] if names else "models verify"]):
        from vdeblur.models import cache

        bad = []
        for name in names or cache.known_models():
            entry, chosen = cache.choose_weights(name)
            several = [chosen] if "@" in name and chosen else list(cache.weights_of(entry).values())
            for one in several:
                state = cache.verification_of(entry, one)
                if state != "absent" or names:
                    click.echo(f"{entry.name}@{one.name}: {state}")
                if state in ("damaged", cache.UNREADABLE):
                    bad.append(f"{entry.name}@{one.name}")
        if bad:
            raise ModelError(
                f"damaged or not readable: {', '.join(bad)}",
                f"vdeblur models download {' '.join(bad)} fetches damaged ones again",
            )


@models.command(short_help="Print where weights are.")
@click.argument("name", required=False)
def path(name: str | None) -> None:
    """Print the file that holds the weights of NAME, or the cache's folder.

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


@models.command(short_help="Take weights out of the cache.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--forget", is_flag=True, help="Forget, too, the digest of a file that has no published one.")
def remove(names: tuple[str, ...], forget: bool) -> None:
    """Take the weights of each NAME that weights.toml knows, or those of NAME@WEIGHTS, out of the cache.

    What you imported under a name of your own is removed only by its full NAME@WEIGHTS.

    \b
    Examples:
      vdeblur models remove dstnet
      vdeblur models remove cdvd-tsp@gopro --forget
    """
    with reported(HumanReporter(), [names[0]]):
        from vdeblur.models import cache

        for name in names:
            removed = cache.remove_weights(name, forget)
            click.echo(f"removed {', '.join(removed)}" if removed else f"{name}: nothing is in the cache", err=True)
            if kept := cache.imported_of(name):
                click.echo(f"kept {', '.join(kept)}, which you imported: remove them by their full names", err=True)
