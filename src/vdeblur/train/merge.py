"""Merge TOML over a recipe: values, and with each value the comment that names its source.

A comment explains one value, so it goes when that value is replaced: the replacement brings its own, or gets the name
of where it comes from. The keys of an inline table, as `rates = { ... }`, share one comment.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import tomlkit
from tomlkit.container import Container
from tomlkit.items import AbstractTable, InlineTable, Item, Table

from vdeblur.errors import UsageError
from vdeblur.train.rules import Rules


def merge(into: Any, given: Any, rules: Rules, source: str, comment: str, where: str = "") -> bool:
    """Write given values over a recipe's table, key by key; return whether that changed it.

    into, given: tables of tomlkit. rules: the keys that may be given. source: where the values come from, for errors;
    comment: the same for values without a comment of their own. where: the table's dotted name, empty for the recipe.
    An empty table clears the recipe's.

    Raises: UsageError for a key without a rule, and for a value in place of a table.
    """
    changed = False
    for key, value in _items(given):
        if not where and key == "paper":
            continue
        name = f"{where}.{key}" if where else key
        rule = rules.get(key, rules.get("*"))
        if rule is None:
            raise UsageError(f"{source}: there is no {name!r}", f"choose from {', '.join(sorted(rules))}")
        if isinstance(rule, Mapping) and not isinstance(value, Mapping):
            raise UsageError(f"{source}: {name} is {_plain(value)!r}", f"it must be a table; its values are {name}.KEY")
        old = into.get(key)
        # Schedules of other kinds have other keys.
        is_other = name == "schedule" and isinstance(value, Mapping) and value.get("kind", old["kind"]) != old["kind"]
        if isinstance(value, Mapping) and isinstance(old, Mapping) and value and not is_other:
            if merge(old, value, rule if isinstance(rule, Mapping) else {"*": rule}, source, comment, name):
                changed = True
                if isinstance(old, InlineTable):
                    explain(old, _comment_of(value) or comment)
        elif key not in into or _plain(old) != _plain(value):  # unchanged values keep their formatting
            put(into, key, value, comment)
            changed = True
    return changed


def put(into: Any, key: str, value: Any, comment: str) -> None:
    """Set a key of a table to a value; comment: its source, where the value is no item with a comment."""
    plain = _plain(value)
    if isinstance(value, Table):
        into[key] = _explained_table(value, comment)
        return
    item = tomlkit.item(_inline(plain) if isinstance(plain, Mapping) else plain)
    if not isinstance(into, InlineTable):  # comments cannot stand within one
        explain(item, _comment_of(value) or comment)
    into[key] = item


def explain(item: Item, comment: str) -> None:
    """Set the comment behind an item."""
    item.trivia.comment_ws = "  "
    item.trivia.comment = f"# {comment}"


def _explained_table(table: Table, comment: str) -> Table:
    made = tomlkit.table()
    for key, value in _items(table):
        put(made, key, value, comment)
    if about := _comment_of(table):
        explain(made, about)
    return made


def _items(table: Any) -> Iterator[tuple[str, Any]]:
    """Yield a table's keys and values, those of tomlkit with their comments: its items() yields booleans without."""
    for key, value in table.items():
        container = table.value if isinstance(table, AbstractTable) else table
        yield key, container.item(key) if isinstance(container, Container) and isinstance(value, bool) else value


def _inline(values: Mapping[str, Any]) -> InlineTable:
    table = tomlkit.inline_table()
    table.update(values)
    return table


def _comment_of(value: Any) -> str:
    return value.trivia.comment.removeprefix("#").strip() if isinstance(value, Item) else ""


def _plain(value: Any) -> Any:
    return value.unwrap() if isinstance(value, Item) else value
