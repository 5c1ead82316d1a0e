"""A paper's numbers as data: a TOML file per network, and per stage where its training has several.

recipes/NAME.toml, or recipes/NAME.STAGE.toml, says what is trained, on what, how, and for how long, each number with
its source. The user's own file is merged over it, then single values. Comments stay, so that it can be read when
printed.
"""

import copy
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from vdeblur.errors import UsageError
from vdeblur.models.registry import Entry
from vdeblur.train import optimisers
from vdeblur.train.augment import AUGMENTATIONS, SCALE
from vdeblur.train.data import ENDS, SAMPLINGS, Plan
from vdeblur.train.objectives import OBJECTIVES

# What a recipe may say beside what its own file says, by table.
OPTIONAL: dict[str, set[str]] = {
    "": {"start", "init_required", "paper", "summary"},
    "data": {"limit", "margin", "ends", "blur", "augment", "noise"},
    "optimiser": {"betas", "epsilon", "weight_decay", "rates", "frozen", "clip"},
    "training": {"precision", "ema", "seed", "accumulate", "save", "stop_after", "validation_frames", "keep_minutes"},
}


@dataclass(frozen=True)
class Rule:
    """What a value must be: a test, and the same in words, after "it must be"."""

    allows: Callable[[Any], bool]
    words: str


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(names: Iterable[str]) -> Rule:
    known = tuple(names)
    return Rule(lambda value: isinstance(value, str) and value in known, f"one of {', '.join(known)}")


def _list_of(rule: Rule, length: int | None = None) -> Rule:
    def allows(value: Any) -> bool:
        return isinstance(value, list) and length in (None, len(value)) and all(map(rule.allows, value))

    return Rule(allows, f"a list{f' of {length}' if length else ''}, each {rule.words}")


COUNT = Rule(lambda value: _is_whole(value) and value > 0, "a whole number above 0")
WHOLE = Rule(lambda value: _is_whole(value) and 0 <= value < 2**63, "a whole number, 0 or above")
POSITIVE = Rule(lambda value: _is_number(value) and value > 0, "a number above 0")
NOT_NEGATIVE = Rule(lambda value: _is_number(value) and value >= 0, "a number, 0 or above")
RATE = Rule(lambda value: _is_number(value) and 0 < value < 1, "a number between 0 and 1")
BELOW_ONE = Rule(lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 to below 1")
SHARE = Rule(lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
FLAG = Rule(lambda value: isinstance(value, bool), "true or false")
TEXT = Rule(lambda value: isinstance(value, str), "a string")

# By dotted key, * for any. A further table in [optimiser] is as [optimiser] itself. Words in [loss] are checked by the
# objective.
VALUES = {
    "model": TEXT,
    "objective": _one_of(OBJECTIVES),
    "init_required": TEXT,
    "summary": TEXT,
    "start.*": TEXT,
    "data.frames": COUNT,
    "data.crop": COUNT,
    "data.sampling": _one_of(SAMPLINGS),
    "data.limit": COUNT,
    "data.margin": WHOLE,
    "data.ends": _one_of(ENDS),
    "data.blur": _one_of(("blur", "blur_gamma")),
    "data.augment": _list_of(_one_of((*AUGMENTATIONS, SCALE))),
    "data.noise": NOT_NEGATIVE,
    "optimiser.kind": _one_of(optimisers.KINDS),
    "optimiser.rate": RATE,
    "optimiser.betas": _list_of(BELOW_ONE, 2),
    "optimiser.epsilon": POSITIVE,
    "optimiser.weight_decay": NOT_NEGATIVE,
    "optimiser.rates.*": BELOW_ONE,
    "optimiser.frozen.*": WHOLE,
    "optimiser.clip": POSITIVE,
    "optimiser.matrix_rate": RATE,
    "optimiser.matrices": TEXT,
    "schedule.kind": _one_of(optimisers.SCHEDULES),
    "schedule.every": COUNT,
    "schedule.at": _list_of(COUNT),
    "schedule.factor": RATE,
    "schedule.floor": BELOW_ONE,
    "schedule.periods": _list_of(COUNT),
    "schedule.weights": _list_of(POSITIVE),
    "schedule.power": POSITIVE,
    "schedule.warm_up": COUNT,
    "schedule.patience": COUNT,
    "schedule.reductions": WHOLE,
    "loss.adversarial": TEXT,
    "loss.begin_with": TEXT,
    "loss.chance_share": SHARE,
    "loss.discriminator_first": WHOLE,
    "loss.discriminator_width": COUNT,
    "loss.distance": TEXT,
    "loss.ends": SHARE,
    "loss.epsilon": POSITIVE,
    "loss.flow_warm_up": WHOLE,
    "loss.hard_share": BELOW_ONE,
    "loss.hard_weight": NOT_NEGATIVE,
    "loss.joint": FLAG,
    "loss.lambda": NOT_NEGATIVE,
    "loss.noise": NOT_NEGATIVE,
    "loss.spectral_weight": NOT_NEGATIVE,
    "training.accumulate": COUNT,
    "training.batch": COUNT,
    "training.ema": BELOW_ONE,
    "training.iterations": COUNT,
    "training.keep_minutes": POSITIVE,
    "training.precision": _one_of(("fp32", "bf16", "fp16")),
    "training.save": _one_of(("fp32", "fp16")),
    "training.seed": WHOLE,
    "training.stop_after": COUNT,
    "training.validate_every": COUNT,
    "training.validation_frames": COUNT,
}
TABLES = ("start", "data", "optimiser", "optimiser.rates", "optimiser.frozen", "schedule", "loss", "training")


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


def load_recipe(
    entry: Entry,
    stage: str | None = None,
    *,
    config: Path | None = None,
    paper: bool = False,
    rate: float | None = None,
    values: Iterable[tuple[str, str]] = (),
) -> Recipe:
    """Read a model's recipe; the paper's own numbers, a user's file and single values over it, in this order.

    stage: None for the main one, which may also be called by the model's name. values: dotted keys, as
    "optimiser.rate", with values as TOML writes them. rate: what the learning rate is to be; all others change alike.

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
    _check(Recipe(entry.name, wanted, tables))
    if rate is not None:
        _scale_rates(tables["optimiser"], rate / tables["optimiser"]["rate"])
    recipe = Recipe(entry.name, wanted, tables)
    _check(recipe)
    return recipe


def _scale_rates(optimiser: Any, factor: float) -> None:
    """Multiply all rates of a table [optimiser]: its own, Muon's, those of parts and of further optimisers."""
    for key in ("rate", "matrix_rate"):
        if key in optimiser:
            optimiser[key] = float(f"{optimiser[key] * factor:.6g}")
    for name, table in optimiser.items():
        if name == "rates":
            for part, value in table.items():
                table[part] = float(f"{value * factor:.6g}")
        elif isinstance(table, Mapping):
            _scale_rates(table, factor)


def _read(path: Path) -> dict[str, Any]:
    hint = "begin with --print-config > FILE"
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}", hint) from error
    try:
        return tomllib.loads(text)  # its messages are for people, unlike tomlkit's
    except tomllib.TOMLDecodeError as error:
        reason = str(error).replace("end of document", f"line {len(text.splitlines())}, the end")
        raise UsageError(f"{path} is not TOML, or not finished: {reason}", hint) from error


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
        if (here in TABLES or isinstance(into.get(key), Mapping)) and not isinstance(value, Mapping):
            raise UsageError(f"{source}: {here} is {value!r}", f"it must be a table; its values are {here}.KEY")
        if isinstance(value, Mapping) and isinstance(into.get(key), Mapping):
            old = into[key]
            if here == "schedule" and value.get("kind", old["kind"]) != old["kind"]:  # it has other numbers
                into[key] = tomlkit.item(dict(value))
                continue
            _merge(old, value, known.get(key, {}), source, here)
        elif key not in into or into[key] != value:  # what is not changed keeps its looks
            into[key] = tomlkit.item(value)


def _check(recipe: Recipe) -> None:
    """Refuse what no training can be made with."""
    optimisers.check_schedule(recipe["schedule"])
    for path, value in _leaves(recipe.tables.unwrap()):
        rule = _rule(path)
        if rule is None:
            raise UsageError(f"there is no {'.'.join(path)!r}")
        if not rule.allows(value):
            raise UsageError(f"{'.'.join(path)} is {value!r}", f"it must be {rule.words}")
    optimisers.settings_of(recipe["optimiser"], "network")
    OBJECTIVES[recipe.objective].check(recipe.numbers)
    Plan(**recipe["data"])
    periods = recipe["schedule"].get("periods", [])
    weights = recipe["schedule"].get("weights", periods)
    if len(weights) != len(periods):
        raise UsageError(f"schedule.weights is {weights!r}", f"it must have one for each of {len(periods)} periods")
    batch, accumulate = recipe["training"]["batch"], recipe["training"].get("accumulate", 1)
    if batch % accumulate:
        raise UsageError(f"a batch of {batch} cannot be cut into {accumulate} parts", "let it be divisible")


def _leaves(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Give what is no table, and tables where there should be none, each with its keys from the top."""
    for key, value in table.items():
        here = (*path, key)
        if isinstance(value, Mapping) and _rule(here) is None:
            yield from _leaves(value, here)
        else:
            yield here, value


def _rule(path: tuple[str, ...]) -> Rule | None:
    """Give what a value must be, from its keys; those of a further optimiser are as those of the first."""
    paths = [path, ("optimiser", *path[2:])] if path[0] == "optimiser" else [path]
    for *tables, last in paths:
        for key in (last, "*"):
            if rule := VALUES.get(".".join((*tables, key))):
                return rule
    return None
