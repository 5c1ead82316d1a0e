"""The published data sets that datasets.toml describes."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class NumberSpan:
    """The frames that a sequence of a known set has: how many, and the names they begin and end with, if known."""

    count: int
    first: str = ""
    last: str = ""


@dataclass(frozen=True)
class Archive:
    """One archive of a set: on the Hub (repo, revision), or at an address.

    megabytes: of 10^6 bytes, about. sha256: of the whole archive, where it was published.
    """

    url: str = ""
    repo: str = ""
    revision: str = ""
    file: str = ""
    sha256: str = ""
    megabytes: float | None = None

    @property
    def name(self) -> str:
        """Give the file's name."""
        return self.file or self.url.rpartition("/")[2]

    @property
    def pinned(self) -> bool:
        """Tell whether it cannot change unnoticed: a revision names its content, as a digest does."""
        return bool(self.sha256 or self.revision)


@dataclass(frozen=True)
class Origin:
    """Archives that hold some splits of a set together, and what the members are called that are wanted."""

    splits: tuple[str, ...]
    members: str
    archives: tuple[Archive, ...]


@dataclass(frozen=True)
class KnownSet:
    """A data set of datasets.toml; splits: the sequences of each, with their frames."""

    name: str
    title: str
    paper: str
    license: str
    split: str
    page: str
    splits: dict[str, dict[str, NumberSpan]]
    sources: tuple[Origin, ...] = ()


@cache
def known_sets() -> dict[str, KnownSet]:
    """Read datasets.toml."""
    tables = tomllib.loads((resources.files("vdeblur.datasets") / "datasets.toml").read_text("utf-8"))
    return {name: _parse(name, table) for name, table in tables.items()}


def _parse(name: str, table: dict[str, Any]) -> KnownSet:
    splits = {
        split: {sequence: _span(frames) for names, frames in rows.items() for sequence in number_names(names)}
        for split, rows in table["splits"].items()
    }
    sources = tuple(
        Origin(tuple(one["splits"]), one["members"], tuple(Archive(**archive) for archive in one["archives"]))
        for one in table.get("sources", ())
    )
    plain = {key: table[key] for key in ("title", "paper", "license", "split", "page")}
    return KnownSet(name, splits=splits, sources=sources, **plain)


def number_names(names: str) -> list[str]:
    """Give the names that "000..029" stands for, or the name itself."""
    first, dots, last = names.partition("..")
    return [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)] if dots else [names]


def _span(frames: int | str) -> NumberSpan:
    if isinstance(frames, int):
        return NumberSpan(frames)
    first, _, last = frames.partition("..")
    return NumberSpan(int(last) - int(first) + 1, first, last)


def names() -> list[str]:
    """Give the names that stand for data sets; bsd is whichever of its three exposures there is."""
    return [*(name for name in known_sets() if not name.startswith("bsd-")), "bsd"]
