"""Rules for the values in a recipe; they stand beside the fields they are for, as Annotated[int, COUNT].

A table's rules are a mapping from its keys to a rule each, or to another mapping for a table within it. The key "*"
stands for any other.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from vdeblur.errors import UsageError


@dataclass(frozen=True)
class Rule:
    """A test of a value, and the same in words, after "it must be"."""

    allows: Callable[[Any], bool]
    words: str


Rules = Mapping[str, "Rule | Rules"]


def one_of(names: Iterable[str]) -> Rule:
    """Return the rule for a word that must be one of some."""
    known = tuple(names)
    return Rule(lambda value: isinstance(value, str) and value in known, f"one of {', '.join(known)}")


def list_of(rule: Rule, length: int | None = None) -> Rule:
    """Return the rule for a list of values that each follow another rule."""

    def allows(value: Any) -> bool:
        return isinstance(value, list) and length in (None, len(value)) and all(map(rule.allows, value))

    return Rule(allows, f"a list{f' of {length}' if length else ''}, each {rule.words}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


COUNT = Rule(lambda value: _is_integer(value) and value > 0, "a whole number above 0")
WHOLE = Rule(lambda value: _is_integer(value) and 0 <= value < 2**63, "a whole number, 0 or above")
POSITIVE = Rule(lambda value: _is_number(value) and value > 0, "a number above 0")
NOT_NEGATIVE = Rule(lambda value: _is_number(value) and value >= 0, "a number, 0 or above")
RATE = Rule(lambda value: _is_number(value) and 0 < value < 1, "a number between 0 and 1")
BELOW_ONE = Rule(lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 to below 1")
SHARE = Rule(lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
FLAG = Rule(lambda value: isinstance(value, bool), "true or false")
TEXT = Rule(lambda value: isinstance(value, str), "a string")
ANYTHING = Rule(lambda value: True, "anything")


def rules_of(table: type) -> dict[str, Rule | Rules]:
    """Return the rules beside the fields of a dataclass that stands for a recipe's table."""
    hints = get_type_hints(table, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}


def check_table(table: Mapping[str, Any], rules: Rules, where: str = "") -> None:
    """Refuse values that break their rules, and keys without a rule.

    where: the table's dotted name; empty for a recipe as a whole.
    Raises: UsageError.
    """
    for key, value in table.items():
        name = f"{where}.{key}" if where else key
        rule = rules.get(key, rules.get("*"))
        if rule is None:
            raise UsageError(f"there is no {name!r}", f"choose from {', '.join(sorted(rules))}")
        if isinstance(rule, Rule):
            if not rule.allows(value):
                raise UsageError(f"{name} is {value!r}", f"it must be {rule.words}")
        elif isinstance(value, Mapping):
            check_table(value, rule, name)
        else:
            raise UsageError(f"{name} is {value!r}", f"it must be a table; its values are {name}.KEY")
