"""A paper's numbers as data: a TOML file per network, and per stage where its training has several.

recipes/NAME.toml, or recipes/NAME.STAGE.toml, says what to train, on what, how, and for how long, each number with its
source. The user's own file is merged over it, then single values. Comments stay, so that a printed recipe explains
itself.

Each table is a dataclass, with the rule for a value beside its field: [data] is data.Plan, [mixture] mixture.Mixture,
[optimiser] optimisers.OptimiserSettings, [schedule] a class in schedules.py, [training] Training; [loss] has the
objective's rules, and [network] the arguments of the network's constructor.

Numbers of updates may be given in epochs, as "500 epochs"; they become updates when the length of the set is known, see
Recipe.in_updates.
"""

import copy
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import InlineTable

from vdeblur.errors import UsageError
from vdeblur.models.registry import ModelEntry
from vdeblur.train import optimisers, schedules
from vdeblur.train.data import Plan
from vdeblur.train.merge import explain, merge, put
from vdeblur.train.mixture import Mixture
from vdeblur.train.objectives import OBJECTIVES
from vdeblur.train.optimisers import OptimiserSettings
from vdeblur.train.rules import ANYTHING, BELOW_ONE, COUNT, POSITIVE, TEXT, WHOLE, Rules, check_table, one_of, rules_of
from vdeblur.train.schedules import UPDATES
from vdeblur.train.variants import fit_network


@dataclass(frozen=True)
class Training:
    """A recipe's [training].

    batch: clips in a batch, over all processes. iterations, validate_every: in updates. epoch_updates: an epoch is the
    set as often as it fits into this many updates, at least once; None: once. accumulate: parts that a
    process cuts its share of a batch into. ema: decay of the weights' moving average; None for no average.
    stop_after: validations in a row without a new best, after which training stops. validation_frames: of each
    sequence.
    keep_minutes: most that is lost when a process is killed.

    Raises: UsageError for a batch that cannot be cut into that many parts.
    """

    batch: Annotated[int, COUNT]
    iterations: Annotated[int, UPDATES]
    validate_every: Annotated[int, UPDATES]
    epoch_updates: Annotated[int | None, COUNT] = None
    accumulate: Annotated[int, COUNT] = 1
    precision: Annotated[str, one_of(("fp32", "bf16", "fp16"))] = "fp32"
    ema: Annotated[float | None, BELOW_ONE] = None
    seed: Annotated[int, WHOLE] = 0
    save: Annotated[str, one_of(("fp32", "fp16"))] = "fp32"
    stop_after: Annotated[int | None, COUNT] = None
    validation_frames: Annotated[int, COUNT] = 10
    keep_minutes: Annotated[float, POSITIVE] = 10.0

    def __post_init__(self) -> None:
        if self.batch % self.accumulate:
            parts = f"a batch of {self.batch} cannot be cut into {self.accumulate} parts"
            raise UsageError(parts, "choose a batch that this number divides")


@dataclass(frozen=True)
class Recipe:
    """All that defines a training.

    model: its name in weights.toml. stage: empty for the main or only one. tables: the recipe as TOML, with comments.
    epoch: updates in an epoch; 1 until the set is known.
    """

    model: str
    stage: str
    tables: tomlkit.TOMLDocument
    epoch: int = 1

    @property
    def values(self) -> dict[str, Any]:
        """The recipe's keys and tables as plain values."""
        return self.tables.unwrap()

    @property
    def objective(self) -> str:
        """The objective's name."""
        return str(self.tables["objective"])

    @property
    def numbers(self) -> dict[str, Any]:
        """The objective's numbers: the table [loss], the number of frames in a sample, and that of all updates."""
        values = self.values
        return {**values["loss"], "frames": values["data"]["frames"], "iterations": self.training.iterations}

    @property
    def network(self) -> dict[str, Any]:
        """The table [network]: arguments of the network's constructor over those of the model."""
        return dict(self.values.get("network", {}))

    @property
    def has_epochs(self) -> bool:
        """Return whether some number of updates is given in epochs."""
        tables = (self.values["schedule"], self.values["training"])
        return any(schedules.is_in_epochs(value) for table in tables for value in table.values())

    def in_updates(self, samples: int) -> "Recipe":
        """Return the recipe for a set with this many samples, whose epochs are known."""
        training = self.training
        repeats = max((training.epoch_updates or 0) // max(samples // training.batch, 1), 1)
        batches = -(-samples * repeats // training.batch)
        return replace(self, epoch=batches * OBJECTIVES[self.objective].updates_of(self.numbers))

    @property
    def init_required(self) -> str | None:
        """The model whose weights this training starts from, if it needs some."""
        return self.values.get("init_required")

    @property
    def starts(self) -> dict[str, str]:
        """The start weights of each part of the network that has some."""
        return {part: name for part, name in self.values.get("start", {}).items() if name}

    @property
    def data(self) -> Plan:
        """The table [data]."""
        return Plan(**self.values["data"])

    @property
    def mixture(self) -> Mixture | None:
        """The table [mixture]: clips are made from sharp footage; None where training reads pairs."""
        table = self.values.get("mixture")
        return None if table is None else Mixture(**table)

    @property
    def optimisers(self) -> dict[str, OptimiserSettings]:
        """The table [optimiser], by the name "network", and the further optimisers in it."""
        table = self.values["optimiser"]
        names = ("network", *optimisers.further_names(table))
        return {name: optimisers.settings_of(table, name) for name in names}

    @property
    def schedule(self) -> schedules.Schedule:
        """The table [schedule]."""
        return schedules.schedule_of(self._counted("schedule"))

    @property
    def training(self) -> Training:
        """The table [training]."""
        return Training(**self._counted("training"))

    def _counted(self, table: str) -> dict[str, Any]:
        """Return a table with epochs as updates."""
        return {key: schedules.in_updates(value, self.epoch) for key, value in self.values[table].items()}

    @property
    def text(self) -> str:
        """The recipe as TOML, comments and all."""
        return tomlkit.dumps(self.tables)


def stages_of(entry: ModelEntry) -> list[str]:
    """Return the names of a model's stages in their order; the main stage's is empty."""
    found = [name.split(".") for name in _names()]
    return sorted((parts[1] if len(parts) > 1 else "" for parts in found if parts[0] == _base(entry)), reverse=True)


def trainable() -> list[str]:
    """Return the names of the models that have recipes."""
    return sorted({name.split(".")[0] for name in _names()})


def _names() -> Iterator[str]:
    folder = resources.files("vdeblur.train") / "recipes"
    for file in folder.iterdir():
        if file.name.endswith(".toml"):
            yield file.name.removesuffix(".toml")


def _base(entry: ModelEntry) -> str:
    """Return the model whose recipe trains a model: itself, or else its network's namesake."""
    known = trainable()
    return entry.name if entry.name in known else entry.network


def load_recipe(
    entry: ModelEntry,
    stage: str | None = None,
    *,
    config: Path | None = None,
    paper: bool = False,
    rate: float | None = None,
    values: Iterable[tuple[str, str]] = (),
) -> Recipe:
    """Read a model's recipe, and merge the paper's own numbers, a user's file and single values over it, in this order.

    stage: None or the model's name for the main one. values: dotted keys, as "optimiser.rate", with values as TOML
    writes them. rate: the learning rate; all other rates change by the same factor. Each value keeps, or gets, a
    comment that names its source.

    Raises: UsageError for a model without recipe, an unknown stage, and keys or values that the recipe cannot have.
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
    rules = _rules(copy.deepcopy(tables.unwrap()))
    of_paper = tables.pop("paper", None)
    usual_frames = int(tables["data"]["frames"])
    if paper:
        if of_paper is None:
            raise UsageError(f"the recipe of {entry.name} has no other numbers from the paper", "leave out --paper")
        merge(tables, of_paper, rules, "the recipe's [paper]", "paper")
    if config is not None:
        merge(tables, _read(config), rules, str(config), config.name)
    for key, value in values:
        merge(tables, _nested(key, value), rules, f"--set {key}={value}", "command line")
    recipe = Recipe(entry.name, wanted, tables)
    check_table(recipe.values, rules)
    fit_network(tables, entry, usual_frames)
    _check(recipe, rules)
    if rate is not None:
        _scale_rates(tables["optimiser"], rate / tables["optimiser"]["rate"])
        _check(recipe, rules)
    return recipe


def _scale_rates(optimiser: Any, factor: float) -> None:
    """Multiply all rates in a table [optimiser]: its own, Muon's, those by prefix and those of further optimisers."""
    if factor == 1:
        return
    for key in ("rate", "matrix_rate"):
        if key in optimiser:
            put(optimiser, key, float(f"{optimiser[key] * factor:.6g}"), "command line: --rate")
    for name, table in optimiser.items():
        if name == "rates":
            for part, value in table.items():
                table[part] = float(f"{value * factor:.6g}")
            if table and isinstance(table, InlineTable):
                explain(table, "command line: --rate")
        elif isinstance(table, Mapping):
            _scale_rates(table, factor)


def _read(path: Path) -> tomlkit.TOMLDocument:
    hint = "start from --print-config > FILE"
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}", hint) from error
    try:
        tomllib.loads(text)  # its messages are more readable than tomlkit's
    except tomllib.TOMLDecodeError as error:
        reason = str(error).replace("end of document", f"line {len(text.splitlines())}, the end")
        raise UsageError(f"{path} is not TOML, or not finished: {reason}", hint) from error
    return tomlkit.parse(text)


def _nested(key: str, value: str) -> dict[str, Any]:
    """Return {"a": {"b": value}} for "a.b" and a value in TOML; a value that is no TOML is a string."""
    try:
        parsed = tomlkit.parse(f"value = {value}").unwrap()["value"]
    except TOMLKitError:
        parsed = value
    *tables, last = key.split(".")
    nested: dict[str, Any] = {last: parsed}
    for table in reversed(tables):
        nested = {table: nested}
    return nested


def _rules(values: Mapping[str, Any]) -> Rules:
    """Return the rules for a recipe and all that may be merged over it; values: those of the recipe's own file."""
    optimiser = rules_of(OptimiserSettings)
    if values["optimiser"]["kind"] != "muon":
        for key in optimisers.MUON_KEYS:
            del optimiser[key]
    return {
        "model": TEXT,
        "objective": one_of(OBJECTIVES),
        "init_required": TEXT,
        "summary": TEXT,
        "start": {"*": TEXT},
        "network": {"*": ANYTHING},  # the network's constructor decides, see fit_network
        "data": rules_of(Plan),
        **({"mixture": rules_of(Mixture)} if "mixture" in values else {}),
        "optimiser": {**optimiser, **dict.fromkeys(optimisers.further_names(values["optimiser"]), optimiser)},
        "schedule": {"*": ANYTHING},  # its kind decides, see schedules.schedule_of
        "loss": OBJECTIVES[values["objective"]].rules,
        "training": rules_of(Training),
    }


def _check(recipe: Recipe, rules: Rules) -> None:
    """Refuse values that no training can use.

    Raises: UsageError.
    """
    _ = recipe.schedule
    check_table(recipe.values, rules)
    _ = recipe.optimisers, recipe.data, recipe.mixture, recipe.training
