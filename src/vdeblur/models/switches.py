"""The arguments of a network's constructor, which make its variants: sizes, and the switches of the papers' ablations.

They come from weights.toml, the user's registry, a recipe's table [network], or the metadata of weights.
"""

import inspect
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vdeblur.networks.layers import Network

FROM_ZERO = {"blocks", "filter_blocks", "gating", "encoder", "middle", "decoder"}
"""Arguments that count blocks, of which there may be none. Every other whole number is a size, which cannot be 0."""


def defaults_of(network: type[Network]) -> dict[str, Any]:
    """Return the arguments of a network's constructor with their defaults."""
    parameters = inspect.signature(network).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments as TOML and JSON hold them: tuples as lists."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}


def described(arguments: Mapping[str, Any]) -> str:
    """Return arguments for a message, as "scales = [1, 3]"."""
    return ", ".join(f"{key} = {_as_toml(value)}" for key, value in sorted(plain(arguments).items()))


def fault_in(network: type[Network], arguments: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the argument that a network's constructor cannot take, and what it could be; None if it takes all."""
    signature = inspect.signature(network)
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return None  # the user's own network, which takes anything
    try:
        hints = get_type_hints(network.__init__)
    except (NameError, TypeError, AttributeError):  # the user's own network may have annotations of any kind
        hints = {}
    for key, value in arguments.items():
        if key not in signature.parameters:
            known = ", ".join(signature.parameters)
            return f"there is no {key!r}", f"choose from {known}" if known else "the network has no arguments"
        least = 0 if key in FROM_ZERO or signature.parameters[key].default == 0 else 1
        if key in hints and not _fits(value, hints[key], least):
            return f"{key} is {_as_toml(value)}", f"it must be {_words(hints[key], least)}"
    return None


def _fits(value: Any, hint: Any, least: int) -> bool:
    """Return whether a value read from TOML is one of a type; least: smallest whole number."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in inner and isinstance(value, str) == isinstance(inner[0], str)
    if origin in (Union, UnionType):
        return any(_fits(value, one, least) for one in inner)
    if origin in (tuple, list):
        return isinstance(value, (list, tuple)) and len(value) > 0 and all(_fits(one, inner[0], least) for one in value)
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return not isinstance(hint, type) or hint is NoneType or isinstance(value, hint)


def _words(hint: Any, least: int) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (tuple, list):
        return f"a list, each {_words(inner[0], least)}"
    words = {bool: "true or false", int: f"a whole number, {least} or above", float: "a number", str: "a string"}
    return words.get(hint, str(hint))


def _as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
