"""The published data sets that datasets.toml describes."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class NumberSpan:
    """The frames of a sequence of a known set: how many, and the names of the first and the last, if known."""

    count: int
    first: str = ""
    last: str = ""


@dataclass(frozen=True)
class Archive:
    """One archive of a set: on the Hub (repo, revision, file), at a URL, or on Google Drive.

    drive: the archive's id there; folder: the id of a public folder that has it under the name `file`. megabytes: of
    10^6 bytes, approximate. sha256: of the whole archive, if published.
    """

    url: str = ""
    repo: str = ""
    revision: str = ""
    file: str = ""
    drive: str = ""
    folder: str = ""
    sha256: str = ""
    megabytes: float | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.file or self.url.rpartition("/")[2]

    @property
    def pinned(self) -> bool:
        """True if it cannot change unnoticed: a revision identifies its content, as a digest does."""
        return bool(self.sha256 or self.revision)


@dataclass(frozen=True)
class Origin:
    """Archives that together hold some splits of a set. members: a pattern for the names of the files needed."""

    splits: tuple[str, ...]
    members: str
    archives: tuple[Archive, ...]


@dataclass(frozen=True)
class KnownSet:
    """A data set of datasets.toml.

    splits: the sequences of each split, with their frames; "*" stands for all that a copy has, if their names are not
    known.
    """

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
        Origin(tuple(source["splits"]), source["members"], tuple(Archive(**facts) for facts in source["archives"]))
        for source in table.get("sources", ())
    )
    plain = {key: table[key] for key in ("title", "paper", "license", "split", "page")}
    return KnownSet(name, splits=splits, sources=sources, **plain)


def number_names(names: str) -> list[str]:
    """Return the names that "000..029" stands for, or the name itself."""
    first, dots, last = names.partition("..")
    return [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)] if dots else [names]


def _span(frames: int | str) -> NumberSpan:
    if isinstance(frames, int):
        return NumberSpan(frames)
    first, _, last = frames.partition("..")
    return NumberSpan(int(last) - int(first) + 1, first, last)


def names() -> list[str]:
    """Return the names that --dataset takes; "bsd" is one of three sets, by the exposure of the user's folder."""
    return [*(name for name in known_sets() if not name.startswith("bsd-")), "bsd"]
