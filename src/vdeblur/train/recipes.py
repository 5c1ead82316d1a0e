"""A paper's numbers as data: a TOML file per network, and per stage where its training has several.

recipes/NAME.toml, or recipes/NAME.STAGE.toml, says what is trained, on what, how, and for how long, each number with
its source. The user's own file is merged over it, then single values. Comments stay, so that it can be read when
printed.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from vdeblur.errors import UsageError
from vdeblur.registry import Entry

# What a recipe may say beside what its own file says, by table.
OPTIONAL: dict[str, set[str]] = {
    "": {"start", "init_required", "paper", "summary"},
    "data": {"limit", "margin", "ends", "blur", "augment", "noise", "scale"},
    "optimiser": {"betas", "epsilon", "weight_decay", "rates", "frozen", "clip"},
    "training": {"precision", "ema", "seed", "accumulate", "save", "stop_after", "validation_frames", "keep_minutes"},
}
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Recipe:
    """What a training is made with.

    model: its name in weights.toml. stage: empty where its training has only one. tables: the recipe's keys and tables.
    """

    model: str
    stage: str
    tables: tomlkit.TOMLDocument

    def __getitem__(self, table: str) -> Mapping[str, Any]:
        """Give a table as plain values."""
        value: Mapping[str, Any] = self.tables.unwrap().get(table, {})
        return value

    @property
    def objective(self) -> str:
        """Give the objective's name."""
        return str(self.tables["objective"])

    @property
    def numbers(self) -> dict[str, Any]:
        """Give what an objective is told: the table [loss], and the number of frames in a sample."""
        return {**self["loss"], "frames": self["data"]["frames"]}

    @property
    def starts(self) -> dict[str, str]:
        """Give the start weights of each part that begins with some."""
        return {part: name for part, name in self["start"].items() if name}

    @property
    def text(self) -> str:
        """Give it as TOML, comments and all."""
        return tomlkit.dumps(self.tables)


def stages_of(entry: Entry) -> list[str]:
    """Give the names of a model's stages, the first one first; an empty one is its main stage."""
    found = [name.split(".") for name in _names()]
    return sorted((parts[1] if len(parts) > 1 else "" for parts in found if parts[0] == _base(entry)), reverse=True)


def trainable() -> list[str]:
    """Give the names of the models that recipes are for."""
    return sorted({name.split(".")[0] for name in _names()})


def _names() -> Iterator[str]:
    folder = resources.files("vdeblur.train") / "recipes"
    for file in folder.iterdir():
        if file.name.endswith(".toml"):
            yield file.name.removesuffix(".toml")


def _base(entry: Entry) -> str:
    """Give the model whose recipe a model is trained by: its own, or else that of its network."""
    known = trainable()
    return entry.name if entry.name in known else entry.network


def load(
    entry: Entry,
    stage: str | None = None,
    *,
    config: Path | None = None,
    paper: bool = False,
    values: Iterable[tuple[str, str]] = (),
) -> Recipe:
    """Read a model's recipe; the paper's own numbers, a user's file and single values over it, in this order.

    stage: None for the main one, which may also be called by the model's name. values: dotted keys, as
    "optimiser.rate", with values as TOML writes them.

    Raises: UsageError where there is none, or it is not understood.
    """
    base = _base(entry)
    if base not in trainable():
        raise UsageError(f"there is no recipe for {entry.name}", f"choose from {', '.join(trainable())}")
    wanted = "" if stage in (None, base, entry.name) else str(stage)
    if wanted not in stages_of(entry):
        choices = ", ".join(name or base for name in stages_of(entry))
        raise UsageError(f"{entry.name} has no stage {stage!r}", f"choose from {choices}")
    name = f"{base}.{wanted}" if wanted else base
    text = (resources.files("vdeblur.train") / "recipes" / f"{name}.toml").read_text("utf-8")
    tables = tomlkit.parse(text)
    known = copy.deepcopy(tables.unwrap())
    of_paper = tables.pop("paper", None)
    if paper:
        if of_paper is None:
            raise UsageError(f"the paper of {entry.name} says nothing else than its recipe", "leave out --paper")
        _merge(tables, of_paper.unwrap(), known, "the recipe's [paper]")
    if config is not None:
        _merge(tables, _read(config), known, str(config))
    for key, value in values:
        _merge(tables, _nested(key, value), known, f"--set {key}={value}")
    recipe = Recipe(entry.name, wanted, tables)
    _check(recipe)
    return recipe


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomlkit.parse(path.read_text("utf-8")).unwrap()
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}", "begin with --print-config > FILE") from error


def _nested(key: str, value: str) -> dict[str, Any]:
    """Give {"a": {"b": value}} of "a.b" and a value as TOML writes it; what is no TOML is a string."""
    try:
        parsed = tomlkit.parse(f"value = {value}").unwrap()["value"]
    except TOMLKitError:
        parsed = value
    *tables, last = key.split(".")
    nested: dict[str, Any] = {last: parsed}
    for table in reversed(tables):
        nested = {table: nested}
    return nested


def _merge(into: Any, given: Mapping[str, Any], known: Mapping[str, Any], source: str, where: str = "") -> None:
    """Put given values over those of a table, key by key; refuses what no recipe of this kind has."""
    for key, value in given.items():
        if not where and key == "paper":
            continue
        here = f"{where}.{key}" if where else key
        free = where in ("start", "optimiser.rates", "optimiser.frozen") or where.endswith("schedule")
        if key not in known and key not in OPTIONAL.get(where, ()) and not free:
            choices = sorted({*known, *OPTIONAL.get(where, ())} - {"paper"})
            raise UsageError(f"{source}: there is no {here!r}", f"choose from {', '.join(choices)}")
        if isinstance(value, Mapping) and isinstance(into.get(key), Mapping):
            old = into[key]
            if here == "schedule" and value.get("kind", old["kind"]) != old["kind"]:  # it has other numbers
                into[key] = tomlkit.item(dict(value))
                continue
            _merge(old, value, known.get(key, {}), source, here)
        elif key not in into or into[key] != value:  # what is not changed keeps its looks
            into[key] = tomlkit.item(value)


def _check(recipe: Recipe) -> None:
    """Refuse numbers that no training can be made with."""
    training, data = recipe["training"], recipe["data"]
    wrong = [
        *(f"data.{name} is {data.get(name)!r}" for name in ("frames", "crop") if not _is_count(data.get(name))),
        *(
            f"training.{name} is {training.get(name)!r}"
            for name in ("batch", "iterations", "validate_every")
            if not _is_count(training.get(name))
        ),
    ]
    if wrong:
        raise UsageError(wrong[0], "it must be a whole number above 0")
    if training.get("precision", "fp32") not in PRECISIONS:
        raise UsageError(f"training.precision is {training['precision']!r}", f"choose from {', '.join(PRECISIONS)}")
    rate = recipe["optimiser"].get("rate")
    if not isinstance(rate, (int, float)) or not 0 < rate < 1:
        raise UsageError(f"optimiser.rate is {rate!r}", "it must lie between 0 and 1")
    accumulate = training.get("accumulate", 1)
    if not _is_count(accumulate) or training["batch"] % accumulate:
        raise UsageError(f"a batch of {training['batch']} cannot be cut into {accumulate} parts", "let it be divisible")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
