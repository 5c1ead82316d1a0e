"""What weights.toml says: the models, their weights, and where those are to be had."""

import os
import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from vdeblur.errors import ModelError
from vdeblur.fetch.sources import DIGESTS, DownloadSource, RemoteFile

NAME = re.compile(r"[a-z0-9][a-z0-9._+-]*")
# What a source of each kind must tell, and what it may.
SOURCES: dict[str, tuple[set[str], set[str]]] = {
    "package": (set(), set()),
    "hub": ({"repo"}, {"file", "revision"}),
    "https": ({"url"}, set()),
    "zip": ({"url"}, {"member"}),
    "drive": (set(), {"folder", "id", "file"}),
    "manual": ({"page"}, {"text"}),
}
ENTRY_KEYS = {
    *(
        "network",
        "arguments",
        "description",
        "license",
        "notice",
        "paper",
        "bibtex",
        "parameters_millions",
        "gmacs",
        "default",
        "weights",
    ),
    *("no_weights", "scores", "start_of", "part", "prefix", "ignored"),
}
WEIGHTS_KEYS = {"file", "size", "megabytes", "sources", "trained_on", "blur", "scores", *DIGESTS}


@dataclass(frozen=True)
class PublishedScore:
    """A published result: the set, PSNR in dB, SSIM of a kind (2D, 3D, Koehler), and how it was measured.

    bench: the protocols of `vdeblur bench` that measure the same.
    """

    data: str
    psnr: float
    ssim: float | None
    ssim_kind: str
    protocol: str
    bench: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weights:
    """One file of weights of a model.

    trained_on, blur: the data set, and how its blur came about. imported: a user's own file, known to the cache only.
    """

    name: str
    remote: RemoteFile
    megabytes: float | None = None
    trained_on: str = ""
    blur: str = ""
    scores: tuple[PublishedScore, ...] = ()
    imported: bool = False

    @property
    def in_package(self) -> bool:
        """Tell whether the file comes with vdeblur."""
        return any(source.kind == "package" for source in self.remote.sources)

    @property
    def is_fetchable(self) -> bool:
        """Tell whether the file can be had without a person."""
        return any(source.kind not in ("package", "manual") for source in self.remote.sources)

    @property
    def verification(self) -> str:
        """Say how well a file of these weights is known: "pinned", "partly" (a few digits), or "unpinned"."""
        if self.remote.pins.keys() - {"sha256_prefix"}:
            return "pinned"
        return "partly" if self.remote.pins else "unpinned"


@dataclass(frozen=True)
class Entry:
    """One model of weights.toml.

    network: a key of NETWORKS, with its arguments; empty for start weights that are trained from, never run (start_of
    says of which model, part is a key of PARTS). prefix, ignored: what the authors' checkpoints put before each
    tensor's name, and tensors that do not belong to the network. no_weights: why none are to be had. gmacs: the cost of
    a 256x256 frame in a long stream, in 10^9 multiply-adds. bibtex: the entry to cite the paper with.
    """

    name: str
    network: str
    description: str
    license: str
    arguments: dict[str, Any] = field(default_factory=dict)
    notice: str = ""
    paper: str = ""
    bibtex: str = ""
    parameters_millions: float | None = None
    gmacs: float | None = None
    default: str | None = None
    weights: dict[str, Weights] = field(default_factory=dict)
    no_weights: str = ""
    scores: tuple[PublishedScore, ...] = ()
    start_of: str = ""
    part: str = ""
    prefix: str = ""
    ignored: tuple[str, ...] = ()


def read_registry(networks: Collection[str]) -> dict[str, Entry]:
    """Read weights.toml, and the file that VDEBLUR_REGISTRY names; models whose network is missing are left out.

    Raises: ModelError where the user's file is not understood, or names a model that exists.
    """
    places: list[Any] = [_packaged()]
    if os.environ.get("VDEBLUR_REGISTRY"):
        places.append(Path(os.environ["VDEBLUR_REGISTRY"]).expanduser())
    entries: dict[str, Entry] = {}
    for place in places:
        try:
            tables = tomllib.loads(place.read_text("utf-8"))
        except OSError as error:
            raise ModelError(f"{place} cannot be read: {error.strerror}", "check VDEBLUR_REGISTRY") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"{place} cannot be read as TOML: {error}", "check VDEBLUR_REGISTRY") from error
        for name, table in tables.items():
            if name in entries:
                raise ModelError(f"{place}: there is a model {name!r} already", "give it another name")
            try:
                entries[name] = _parse_entry(name, table)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ModelError(f"{place}: [{name}] is not understood: {error}", "see CONTRIBUTING.md") from error
    found = {name: entry for name, entry in entries.items() if entry.network in networks}
    starts = {name: entry for name, entry in entries.items() if entry.start_of in found}
    return found | starts


def _packaged() -> Any:
    """Return the package's weights.toml. A checkout has it at its top, and the build copies it."""
    packaged = resources.files("vdeblur.models") / "weights.toml"
    return packaged if packaged.is_file() else Path(__file__).parents[3] / "weights.toml"


def _parse_entry(name: str, table: dict[str, Any]) -> Entry:
    _check_name(name)
    _check_keys(table, {"description", "license"} | ({"part"} if "start_of" in table else {"network"}), ENTRY_KEYS)
    weights = {key: _parse_weights(key, value) for key, value in table.get("weights", {}).items()}
    default = table.get("default", next(iter(weights), None))
    if default is not None and default not in weights:
        raise ValueError(f"the default {default!r} is not among its weights")
    plain = {key: value for key, value in table.items() if key not in ("weights", "default", "scores", "ignored")}
    return Entry(
        name=name,
        weights=weights,
        default=default,
        scores=_parse_scores(table),
        ignored=tuple(table.get("ignored", ())),
        **{"network": "", **plain},
    )


def _parse_weights(name: str, table: dict[str, Any]) -> Weights:
    _check_name(name)
    _check_keys(table, {"file", "sources"}, WEIGHTS_KEYS)
    if Path(table["file"]).name != table["file"]:
        raise ValueError(f"{table['file']!r} is not a file's name")
    sources = []
    for facts in table["sources"]:
        facts = dict(facts)
        kind = facts.pop("kind", None)
        if kind not in SOURCES:
            raise ValueError(f"a source of kind {kind!r}; choose from {', '.join(SOURCES)}")
        needed, allowed = SOURCES[kind]
        _check_keys(facts, needed, needed | allowed)
        if kind == "drive" and not facts.keys() & {"folder", "id"}:
            raise ValueError("a source of kind 'drive' needs folder or id")
        sources.append(DownloadSource(kind, facts))
    pins = {kind: str(table[kind]).lower() for kind in DIGESTS if kind in table}
    for kind, value in pins.items():
        if not re.fullmatch(f"[0-9a-f]{{{DIGESTS[kind]}}}", value):
            raise ValueError(f"{kind} must have {DIGESTS[kind]} hexadecimal digits")
    return Weights(
        name=name,
        remote=RemoteFile(table["file"], tuple(sources), pins, table.get("size")),
        megabytes=table.get("megabytes"),
        trained_on=table.get("trained_on", ""),
        blur=table.get("blur", ""),
        scores=_parse_scores(table),
    )


def _parse_scores(table: dict[str, Any]) -> tuple[PublishedScore, ...]:
    return tuple(
        PublishedScore(
            data=score["data"],
            psnr=score["psnr"],
            ssim=score.get("ssim"),
            ssim_kind=score.get("ssim_kind", ""),
            protocol=score.get("protocol", ""),
            bench=tuple(score.get("bench", ())),
        )
        for score in table.get("scores", ())
    )


def _check_keys(table: dict[str, Any], needed: set[str], allowed: set[str]) -> None:
    if missing := needed - table.keys():
        raise ValueError(f"{min(missing)} is missing")
    if unknown := table.keys() - allowed:
        raise ValueError(f"unknown key {min(unknown)!r}")


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name: small letters, digits and . _ + - only")
