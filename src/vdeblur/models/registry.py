"""The models and their weights: weights.toml, the user's registry, imported weights, and the user's own networks.

`choose_weights` resolves every model name of the command line and the Python API.
"""

import difflib
import functools
import os
import re
import tomllib
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from vdeblur.errors import ModelError
from vdeblur.fetch.http import LARGEST_BYTES
from vdeblur.fetch.sources import DIGESTS, DownloadSource, RemoteFile
from vdeblur.models import own, records, switches
from vdeblur.networks import NETWORKS
from vdeblur.networks.layers import Network

NAME = re.compile(r"[a-z0-9][a-z0-9._+-]*")
# The required and the allowed keys of each kind of source. fetch.sources.FETCHERS downloads all but package and manual.
SOURCES: dict[str, tuple[set[str], set[str]]] = {
    "package": (set(), set()),
    "hub": ({"repo"}, {"file", "revision"}),
    "https": ({"url"}, set()),
    "zip": ({"url"}, {"member"}),
    "drive": (set(), {"folder", "id", "file", "member"}),
    "manual": ({"page"}, {"text"}),
}
# The kind of each key's value.
ENTRY_KEYS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("network", "description", "license", "notice", "paper", "bibtex", "no_weights", "default"), str),
    **dict.fromkeys(("start_of", "part", "prefix"), str),
    **dict.fromkeys(("parameters_millions", "gmacs", "time_gmacs"), (int, float)),
    **dict.fromkeys(("arguments", "weights", "time"), dict),
    **dict.fromkeys(("scores", "ignored"), list),
    "alters_sharp": bool,
}
WEIGHTS_KEYS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("file", "trained_on", "blur", "paper", "suits", *DIGESTS), str),
    **dict.fromkeys(("sources", "scores", "checks"), list),
    "size": int,
    "megabytes": (int, float),
}
# The footage that weights are for, in words; `-m auto` chooses by these keys.
SUITS = {
    "any": "any footage: a moderate gain, and sharp frames stay nearly as they are",
    "real": "real blur, as of handheld phones and cameras",
    "strong": "strong shake, as of action cameras; may do harm where real blur is mild",
}
CHOSEN_NAMES = ("auto", "best")  # of `run -m`: not models, but ways to choose one for each video


@dataclass(frozen=True)
class PublishedScore:
    """A published result: the data set, PSNR in dB, SSIM of a kind (2D, 3D, Koehler), and how it was measured.

    bench: the protocols of `vdeblur bench` that measure the same way.
    """

    data: str
    psnr: float
    ssim: float | None
    ssim_kind: str
    protocol: str
    bench: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublishedTime:
    """The published seconds per frame of a size on a device; source: who measured, if not the authors."""

    seconds: float
    size: str
    device: str
    source: str = ""


@dataclass(frozen=True)
class Weights:
    """One file of weights of a model.

    trained_on, blur: the data set, and how its blur was made. suits: a key of SUITS; empty: unknown. paper: of these
    weights, if it is not the model's. checks: what nobody has looked at yet, because nobody has downloaded the file.
    imported: the user added the file by `vdeblur models import`; weights.toml does not list it.
    """

    name: str
    remote: RemoteFile
    megabytes: float | None = None
    trained_on: str = ""
    blur: str = ""
    scores: tuple[PublishedScore, ...] = ()
    imported: bool = False
    paper: str = ""
    checks: tuple[str, ...] = ()
    suits: str = ""

    @property
    def in_package(self) -> bool:
        """Return whether the file comes with vdeblur."""
        return any(source.kind == "package" for source in self.remote.sources)

    @property
    def is_fetchable(self) -> bool:
        """Return whether the file can be downloaded automatically."""
        return any(source.kind not in ("package", "manual") for source in self.remote.sources)

    @property
    def verification(self) -> str:
        """Return how well digests identify the file: "pinned", "partly" (a few digits), or "unpinned" (none)."""
        if self.remote.pins.keys() - {"sha256_prefix"}:
            return "pinned"
        return "partly" if self.remote.pins else "unpinned"


@dataclass(frozen=True)
class ModelEntry:
    """One model of weights.toml, or the user's own network.

    network: a key of NETWORKS; for the user's own network what the user typed, FILE.py:CLASS or the name of an entry
    point; empty for start weights. arguments: of the network's constructor. own: the class of the user's own network,
    None for all others. is_users: the registry that VDEBLUR_REGISTRY names has it, not weights.toml. Start weights are
    for training only, and restore nothing: start_of names the model that they start, part the part of its network that
    they are for, a key of PARTS. prefix: what the authors' checkpoints put before each tensor's name. ignored: tensors
    in them that the network lacks. no_weights: why no weights are published. time: how long a frame took, as published.
    gmacs: the cost of a 256x256 frame in a long stream, in 10^9 multiply-adds. time_gmacs: the cost by which times are
    estimated, where much time does not go to multiply-adds. bibtex: the entry to cite the paper with. alters_sharp:
    whether the model was measured to change sharp frames, so that --only-blurred is on for it.
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
    time_gmacs: float | None = None
    default: str | None = None
    weights: dict[str, Weights] = field(default_factory=dict)
    no_weights: str = ""
    scores: tuple[PublishedScore, ...] = ()
    time: PublishedTime | None = None
    start_of: str = ""
    part: str = ""
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    alters_sharp: bool = False
    own: type[Network] | None = None
    is_users: bool = False

    @property
    def network_class(self) -> type[Network]:
        """Return the class of the model's network."""
        return NETWORKS[self.network] if self.own is None else self.own

    @property
    def variant(self) -> dict[str, Any]:
        """All arguments of the network's constructor, with those of the entry over the defaults."""
        return {**switches.defaults_of(self.network_class), **self.arguments}

    def with_arguments(self, arguments: Mapping[str, Any]) -> "ModelEntry":
        """Return the entry of a variant, with other arguments over its own.

        Raises: ModelError for arguments that the network's constructor does not take.
        """
        changed = replace(self, arguments={**self.arguments, **arguments})
        changed.check_arguments()
        return changed

    def check_arguments(self) -> None:
        """Refuse arguments that the network's constructor does not take.

        Raises: ModelError.
        """
        if fault := switches.fault_in(self.network_class, self.arguments):
            raise ModelError(f"the network of {self.name}: {fault[0]}", fault[1])

    def build(self) -> Network:
        """Construct the network with its arguments, without weights.

        Raises: ModelError for arguments that the network's constructor does not take.
        """
        self.check_arguments()
        if self.own is not None:
            return self.network_class(**self.arguments)
        try:
            return self.network_class(**self.arguments)
        except (ValueError, ZeroDivisionError) as error:
            message = f"the network of {self.name} cannot be built with {switches.described(self.arguments)}: {error}"
            raise ModelError(message, "choose other values") from error


def known_models() -> dict[str, ModelEntry]:
    """Return the models whose networks this version has, by name."""
    return read_registry(NETWORKS)


def find_entry(name: str) -> ModelEntry:
    """Return the model that NAME or NAME@WEIGHTS stands for.

    Raises: ModelError if there is no such model, or no such weights.
    """
    return choose_weights(name)[0]


def choose_weights(name: str) -> tuple[ModelEntry, Weights | None]:
    """Resolve a model name to its entry and weights; the weights are None if the model has none.

    name: NAME for a model's default weights, NAME@WEIGHTS for others, or the user's own network: FILE.py:CLASS or the
    name of an entry point (see own.py).
    Raises: ModelError if there is no such model, or no such weights.
    """
    if own.is_file_name(name):
        return _own_entry(name, own.load_file(name)), None
    plain, at, wanted = name.partition("@")
    known = known_models()
    entry = known.get(plain)
    if entry is None and plain in own.plugin_names():
        entry = _own_entry(plain, own.load_plugin(plain))
    if entry is None and plain in CHOSEN_NAMES:
        message = f"{name} is no model: `run -m {plain}` chooses a model for each video, and says which"
        raise ModelError(message, "name a model, see vdeblur models list")
    if entry is None:
        runnable = sorted(name for name, entry in known.items() if entry.network)
        names = [*runnable, *own.plugin_names()]
        near = difflib.get_close_matches(plain, names, 2)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise ModelError(f"unknown model {plain!r}", f"{meant}choose from {', '.join(names)}, or best or auto")
    if not at:
        return entry, entry.weights[entry.default] if entry.default else None
    weights = weights_of(entry)
    if wanted not in weights:
        choices = f"choose from {', '.join(f'{plain}@{key}' for key in weights)}"
        raise ModelError(f"{plain} has no weights {wanted!r}", choices if weights else "it has no weights at all")
    return entry, weights[wanted]


def weights_of(entry: ModelEntry) -> dict[str, Weights]:
    """Return all weights of a model by name: first those of the registry, then those that the user imported."""
    found = dict(entry.weights)
    for name, record in records.imported_records(entry.name):
        if name not in found:
            remote = RemoteFile(record.file, (), {"sha256": record.digests["sha256"]}, remembered=True)
            found[name] = Weights(name, remote, megabytes=round(record.size / 1e6, 1), imported=True)
    return found


def _own_entry(name: str, network: type[Network]) -> ModelEntry:
    description = (network.__doc__ or "").strip().partition("\n")[0]
    return ModelEntry(name=name, network=name, description=description, license="", own=network)


def read_registry(networks: Collection[str]) -> dict[str, ModelEntry]:
    """Read weights.toml and the file that VDEBLUR_REGISTRY names, and leave out models of other networks.

    networks: keys of NETWORKS. Each file is parsed once, until it changes.
    Raises: ModelError if the user's file is not valid, or has a model of the same name.
    """
    paths = [_packaged()]
    if os.environ.get("VDEBLUR_REGISTRY"):
        paths.append(Path(os.environ["VDEBLUR_REGISTRY"]).expanduser())
    entries: dict[str, ModelEntry] = {}
    for path in paths:
        try:
            status = path.stat()
            parsed = _parse_file(path, (status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}", "check VDEBLUR_REGISTRY") from error
        if repeated := entries.keys() & parsed.keys():
            raise ModelError(f"{path}: there is already a model {min(repeated)!r}", "give it another name")
        entries |= {name: replace(entry, is_users=path != paths[0]) for name, entry in parsed.items()}
    found = {name: entry for name, entry in entries.items() if entry.network in networks}
    starts = {name: entry for name, entry in entries.items() if entry.start_of in found}
    return found | starts


@functools.lru_cache(maxsize=8)
def _parse_file(path: Path, version: tuple[int, int, int]) -> dict[str, ModelEntry]:
    """Parse a registry. version: identifies the file's content, so that a changed file is parsed again."""
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as TOML: {error}", "check VDEBLUR_REGISTRY") from error
    entries = {}
    for name, table in tables.items():
        try:
            entries[name] = _parse_entry(name, table)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"{path}: [{name}] is not valid: {error}", "see CONTRIBUTING.md") from error
    return entries


def _packaged() -> Path:
    """Return the package's weights.toml. A checkout has it at its top, and the build copies it."""
    packaged = Path(str(resources.files("vdeblur.models") / "weights.toml"))
    return packaged if packaged.is_file() else Path(__file__).parents[3] / "weights.toml"


def _parse_entry(name: str, table: dict[str, Any]) -> ModelEntry:
    _check_name(name)
    needed = {"description", "license"} | ({"part"} if "start_of" in table else {"network"})
    _check_keys(table, needed, ENTRY_KEYS.keys())
    _check_kinds(table, ENTRY_KEYS)
    weights = {key: _parse_weights(key, value) for key, value in table.get("weights", {}).items()}
    default = table.get("default", next(iter(weights), None))
    if default is not None and default not in weights:
        raise ValueError(f"its default {default!r} is not one of its weights")
    plain = {
        key: value for key, value in table.items() if key not in ("weights", "default", "scores", "ignored", "time")
    }
    return ModelEntry(
        name=name,
        weights=weights,
        default=default,
        scores=_parse_scores(table),
        ignored=tuple(table.get("ignored", ())),
        time=_parse_time(table["time"]) if "time" in table else None,
        **{"network": "", **plain},
    )


def _parse_weights(name: str, table: dict[str, Any]) -> Weights:
    _check_name(name)
    _check_keys(table, {"file", "sources"}, WEIGHTS_KEYS.keys())
    _check_kinds(table, WEIGHTS_KEYS)
    if Path(table["file"]).name != table["file"]:
        raise ValueError(f"{table['file']!r} is not a file name")
    sources = []
    for facts in table["sources"]:
        facts = dict(facts)
        kind = facts.pop("kind", None)
        if kind not in SOURCES:
            raise ValueError(f"unknown kind of source {kind!r}; choose from {', '.join(SOURCES)}")
        needed, allowed = SOURCES[kind]
        _check_keys(facts, needed, needed | allowed)
        _check_kinds(facts, dict.fromkeys(facts, str))
        if kind == "drive" and not facts.keys() & {"folder", "id"}:
            raise ValueError("a source of kind 'drive' needs folder or id")
        if kind == "drive" and "member" in facts and "id" not in facts:
            raise ValueError("a source of kind 'drive' with a member needs the id of the zip")
        sources.append(DownloadSource(kind, facts))
    pins = {kind: str(table[kind]).lower() for kind in DIGESTS if kind in table}
    for kind, value in pins.items():
        if not re.fullmatch(f"[0-9a-f]{{{DIGESTS[kind]}}}", value):
            raise ValueError(f"{kind} must have {DIGESTS[kind]} hexadecimal digits")
    _check_sizes(table)
    if table.get("suits", "any") not in SUITS:
        raise ValueError(f"suits {table['suits']!r} is none of {', '.join(SUITS)}")
    return Weights(
        name=name,
        remote=RemoteFile(table["file"], tuple(sources), pins, table.get("size"), megabytes=table.get("megabytes")),
        megabytes=table.get("megabytes"),
        trained_on=table.get("trained_on", ""),
        blur=table.get("blur", ""),
        scores=_parse_scores(table),
        paper=table.get("paper", ""),
        checks=_parse_checks(table),
        suits=table.get("suits", ""),
    )


def _check_sizes(table: dict[str, Any]) -> None:
    """Check the name and the sizes of a file of weights.

    Raises: ValueError.
    """
    if (
        not isinstance(table["file"], str)
        or not re.fullmatch(r"[^/\\\0]+", table["file"])
        or table["file"] in (".", "..")
    ):
        raise ValueError(f"file {table['file']!r} is not the name of a file")
    for key, kinds in (("size", int), ("megabytes", int | float)):
        value = table.get(key, 1)
        if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < LARGEST_BYTES:
            raise ValueError(f"{key} {value!r} is not a number above 0")


def _parse_checks(table: dict[str, Any]) -> tuple[str, ...]:
    checks = tuple(table.get("checks", ()))
    if not all(isinstance(check, str) for check in checks):
        raise TypeError(f"checks are {list(checks)!r}, and not all of them are texts")
    return checks


def _parse_scores(table: dict[str, Any]) -> tuple[PublishedScore, ...]:
    for score in table.get("scores", ()):
        _check_kinds({"data": score["data"], "psnr": score["psnr"]}, {"data": str, "psnr": (int, float)})
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


def _parse_time(table: dict[str, Any]) -> PublishedTime:
    _check_keys(table, {"seconds", "size", "device"}, {"seconds", "size", "device", "source"})
    _check_kinds(table, {"seconds": (int, float), "size": str, "device": str, "source": str})
    return PublishedTime(**table)


def _check_kinds(table: dict[str, Any], kinds: dict[str, type | tuple[type, ...]]) -> None:
    for key, value in table.items():
        if not isinstance(value, kinds[key]) or isinstance(value, bool) != (kinds[key] is bool):
            raise TypeError(f"{key} is {value!r}, which is of the wrong kind")


def _check_keys(table: dict[str, Any], needed: set[str], allowed: Set[str]) -> None:
    if missing := needed - table.keys():
        raise ValueError(f"{min(missing)} is missing")
    if unknown := table.keys() - allowed:
        raise ValueError(f"unknown key {min(unknown)!r}")


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a valid name: use only lowercase letters, digits and . _ + -")
