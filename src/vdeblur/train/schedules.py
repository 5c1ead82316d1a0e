"""Schedules of the learning rate, from a recipe's table [schedule]: a class per kind, its fields the table's keys.

A schedule's `multiplier` scales all rates at an update. `Plateau` follows validation scores, for the schedule that
depends on them.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any

from vdeblur.errors import UsageError
from vdeblur.train.rules import BELOW_ONE, COUNT, POSITIVE, RATE, WHOLE, Rule, check_table, list_of, rules_of

EPOCHS = re.compile(r"(\d+(?:\.\d+)?) epochs?")


def is_in_epochs(value: Any) -> bool:
    """Return whether a value, or one in a list, is a number of epochs: "500 epochs"."""
    if isinstance(value, list):
        return any(map(is_in_epochs, value))
    found = EPOCHS.fullmatch(value) if isinstance(value, str) else None
    return found is not None and float(found[1]) > 0


def in_updates(value: Any, epoch: int) -> Any:
    """Return a value with numbers of epochs, of this many updates each, as numbers of updates."""
    if isinstance(value, list):
        return [in_updates(one, epoch) for one in value]
    if isinstance(value, str) and (found := EPOCHS.fullmatch(value)):
        return max(round(float(found[1]) * epoch), 1)
    return value


UPDATES = Rule(
    lambda value: COUNT.allows(value) or (not isinstance(value, list) and is_in_epochs(value)),
    f'{COUNT.words}, or of epochs, as "500 epochs"',
)


@dataclass(frozen=True)
class Schedule:
    """The kind "constant": the rates stay as they are. Base of all others."""

    def multiplier(self, update: int, iterations: int, rate: float) -> float:
        """Return the factor of all rates at an update, counted from 0.

        iterations: number of updates of the complete training. rate: the recipe's rate in [optimiser]; a schedule's
        `floor` is a rate, too, so it is divided by this one.
        """
        return 1.0


@dataclass(frozen=True)
class HalvingSchedule(Schedule):
    """The kind "halve": half the rates after every `every` updates."""

    every: Annotated[int, UPDATES]

    def multiplier(self, update: int, iterations: int, rate: float) -> float:
        """Return 0.5 to the power of the number of halvings so far."""
        return float(0.5 ** (update // self.every))


@dataclass(frozen=True)
class StepSchedule(Schedule):
    """The kind "steps": times `factor` at each of the updates `at`."""

    at: Annotated[Sequence[int], list_of(UPDATES)]
    factor: Annotated[float, RATE]

    def multiplier(self, update: int, iterations: int, rate: float) -> float:
        """Return the factor to the power of the number of steps so far."""
        return float(self.factor ** sum(update >= step for step in self.at))


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """The kind "cosine": half a cosine from the rate down to `floor`, a rate, at the end."""

    floor: Annotated[float, BELOW_ONE]

    def multiplier(self, update: int, iterations: int, rate: float) -> float:
        """Return the cosine's value."""
        return _half_cosine(min(update / iterations, 1.0), 1.0, self.floor / rate)


@dataclass(frozen=True)
class RestartSchedule(Schedule):
    """The kind "restarts": half a cosine in each of `periods`, in updates, from the period's weight down to `floor`.

    weights: one for each period; 1 if empty.
    """

    periods: Annotated[Sequence[int], list_of(UPDATES)]
    floor: Annotated[float, BELOW_ONE]
    weights: Annotated[Sequence[float], list_of(POSITIVE)] = ()

    def __post_init__(self) -> None:
        if self.weights and len(self.weights) != len(self.periods):
            periods = f"it must have one for each of {len(self.periods)} periods"
            raise UsageError(f"schedule.weights is {self.weights!r}", periods)

    def multiplier(self, update: int, iterations: int, rate: float) -> float:
        """Return the value of the current period's cosine; after the last one, the floor."""
        floor = self.floor / rate
        begin = 0
        for period, weight in zip(self.periods, self.weights or [1.0] * len(self.periods), strict=True):
            if update < begin + period:
                # As in BasicSR, the weight is that of the way down to the floor.
                return _half_cosine((update - begin) / period, floor + weight * (1 - floor), floor)
            begin += period
        return floor


@dataclass(frozen=True)
class PowerSchedule(Schedule):
    """The kind "power": (1 - update / iterations) to the `power`."""

    power: Annotated[float, POSITIVE]

    def multiplier(self, update: int, iterations: int, rate: float) -> float:
        """Return that power; 0 after the end."""
        return float(max(1 - update / iterations, 0.0) ** self.power)


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """The kind "linear": up over `warm_up` updates, a tenth of all at most, then a straight line to 0 at the end."""

    warm_up: Annotated[int, UPDATES]

    def multiplier(self, update: int, iterations: int, rate: float) -> float:
        """Return the lower of both lines; 0 after the end."""
        rise = max(min(self.warm_up, iterations // 10), 1)
        return float(max(min((update + 1) / rise, 1 - update / iterations), 0.0))


@dataclass(frozen=True)
class PlateauSchedule(Schedule):
    """The kind "plateau": validations decide, see Plateau.

    patience: number of validations in a row without a new best score that make a plateau. factor: multiplies the rates
    at each of the first `reductions` plateaus; training ends at the next plateau.
    """

    patience: Annotated[int, COUNT]
    reductions: Annotated[int, WHOLE]
    factor: Annotated[float, RATE] = 0.1


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Schedule,
    "halve": HalvingSchedule,
    "steps": StepSchedule,
    "cosine": CosineSchedule,
    "restarts": RestartSchedule,
    "power": PowerSchedule,
    "linear": LinearSchedule,
    "plateau": PlateauSchedule,
}


def schedule_of(table: Mapping[str, Any]) -> Schedule:
    """Read a recipe's [schedule].

    Raises: UsageError for an unknown kind, and for keys or values that do not suit the kind.
    """
    kind = str(table.get("kind"))
    if kind not in SCHEDULES:
        raise UsageError(f"the recipe has a schedule of kind {kind}", f"choose from {', '.join(SCHEDULES)}")
    schedule = SCHEDULES[kind]
    values = {key: value for key, value in table.items() if key != "kind"}
    if missing := [field.name for field in fields(schedule) if field.default is MISSING and field.name not in values]:
        raise UsageError(f"the recipe's schedule, {kind}, lacks {missing[0]}")
    known = [field.name for field in fields(schedule)]
    if unknown := sorted(values.keys() - set(known)):
        known_keys = f"known: {', '.join(['kind', *known])}"
        raise UsageError(f"the recipe's schedule, {kind}, has a key {unknown[0]}", known_keys)
    check_table(values, rules_of(schedule), "schedule")
    return schedule(**values)


def _half_cosine(done: float, first: float, last: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


class Plateau:
    """Validation scores: at plateaus the rates fall, and in the end training stops, see PlateauSchedule.

    With other schedules the rates never change here, and training is never finished.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule if isinstance(schedule, PlateauSchedule) else None
        self.best: float | None = None
        self.waited = 0  # validations since the best
        self.plateaus = 0

    def observe(self, score: float, *, counts: bool = True) -> None:
        """Add a validation's score; higher is better. counts: False where nothing could have improved it yet."""
        if self.best is None or score > self.best:
            self.best, self.waited = score, 0
            return
        if not counts:
            return
        self.waited += 1
        if self.schedule and self.waited >= self.schedule.patience:
            self.waited = 0
            self.plateaus += 1

    @property
    def factor(self) -> float:
        """The current factor of all rates, beside the schedule's multiplier."""
        if self.schedule is None:
            return 1.0
        return float(self.schedule.factor ** min(self.plateaus, self.schedule.reductions))

    @property
    def finished(self) -> bool:
        """Return whether plateaus outnumber reductions by one."""
        return self.schedule is not None and self.plateaus > self.schedule.reductions

    def state_dict(self) -> dict[str, Any]:
        """Return what load_state_dict reads."""
        return {"best": self.best, "waited": self.waited, "plateaus": self.plateaus}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state_dict."""
        self.best, self.waited, self.plateaus = state["best"], state["waited"], state["plateaus"]
