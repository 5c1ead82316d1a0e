"""Weights on this machine: fetched, verified, converted once, imported, removed."""

import contextlib
import dataclasses
import json
import re
import shutil
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vdeblur import files
from vdeblur.errors import ModelError
from vdeblur.events import Talk
from vdeblur.fetch import http, sources
from vdeblur.fetch.sources import DownloadSource, RemoteFile
from vdeblur.models.checkpoint import fit, read_checkpoint
from vdeblur.models.registry import NAME, Entry, Weights, read_registry
from vdeblur.networks import NETWORKS, PARTS
from vdeblur.networks.layers import Network

QUIET = Talk()
UNREADABLE = "not readable by you"


def known_models() -> dict[str, Entry]:
    """Read the models whose networks there are, by name."""
    return read_registry(NETWORKS)


def find_entry(name: str) -> Entry:
    """Look up a model, NAME or NAME@WEIGHTS.

    Raises: ModelError where there is none of this name.
    """
    return choose_weights(name)[0]


def choose_weights(name: str) -> tuple[Entry, Weights | None]:
    """Look up a model and its weights: NAME takes the default, NAME@WEIGHTS one of several; None if it has none.

    Raises: ModelError where there are none of these names.
    """
    plain, at, wanted = name.partition("@")
    known = known_models()
    if plain not in known:
        runnable = sorted(name for name, entry in known.items() if entry.network)
        raise ModelError(f"unknown model {plain!r}", f"choose from {', '.join(runnable)}, or best")
    entry = known[plain]
    if not at:
        return entry, entry.weights[entry.default] if entry.default else None
    weights = weights_of(entry)
    if wanted not in weights:
        choices = f"choose from {', '.join(f'{plain}@{key}' for key in weights)}"
        raise ModelError(f"{plain} has no weights {wanted!r}", choices if weights else "it has none at all")
    return entry, weights[wanted]


def weights_of(entry: Entry) -> dict[str, Weights]:
    """Give all weights of a model by name: those of the registry, then those that the user imported."""
    found = dict(entry.weights)
    for path in sorted((files.cache_folder() / "models" / entry.name).glob("*.json")):
        record = _read_record(path)
        if record is not None and record.imported and path.stem not in found:
            remote = RemoteFile(record.file, (), {"sha256": record.digests["sha256"]}, remembered=True)
            found[path.stem] = Weights(path.stem, remote, megabytes=round(record.size / 1e6, 1), imported=True)
    return found


def read_cached(path: Path) -> dict[str, Tensor]:
    """Read converted weights; None where they are damaged."""
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "see vdeblur models verify") from error


def fitted(tensors: dict[str, Tensor], network: Network, entry: Entry, source: str) -> dict[str, Tensor]:
    """Give a network's state dict out of a checkpoint's tensors.

    Raises: ModelError saying what does not fit, and which model the file is for if there is one.
    """
    state, faults = fit(tensors, network, entry.prefix, entry.ignored)
    if not faults:
        return state
    # Where names and shapes fit, the values are at fault, and no other network will do better.
    others = () if _fits(tensors, entry) else known_models().values()
    for other in others:
        if other.network and other.name != entry.name and _fits(tensors, other):
            message = f"{source} holds the weights of {other.name}, not of {entry.name}"
            raise ModelError(message, f"use it with {other.name}")
    raise ModelError(f"{source} does not fit {entry.name}: {'; '.join(faults)}", "is it for another model?")


def _fitted_start(tensors: dict[str, Tensor], entry: Entry, source: str) -> dict[str, Tensor]:
    """Give the tensors of start weights under their authors' names, all that the part has and nothing else.

    Raises: ModelError saying what does not fit.
    """
    if entry.part not in PARTS:
        raise ModelError(f"{entry.name} is for {entry.part!r}, which is no part here", f"parts: {', '.join(PARTS)}")
    # Later ports of these networks call "net..." what was "module..." before.
    tensors = {re.sub(r"(?:^|(?<=\.))net(?=[A-Z])", "module", name): value for name, value in tensors.items()}
    part = PARTS[entry.part]
    state, faults = fit(tensors, part(), entry.prefix, entry.ignored)
    if faults:
        raise ModelError(f"{source} does not fit {entry.name}: {'; '.join(faults)}", "is it for another model?")
    return {part.official_name(name): value for name, value in state.items()}  # type: ignore[attr-defined]


def _fits(tensors: dict[str, Tensor], entry: Entry) -> bool:
    """Tell whether tensors have the names and shapes of a model, without giving it memory."""
    try:
        with torch.device("meta"):
            network = NETWORKS[entry.network](**entry.arguments)
        return bool(network.state_dict()) and not fit(tensors, network, entry.prefix, entry.ignored)[1]
    except Exception:  # a constructor that computes with its tensors cannot be built so; then it is only not named
        return False


@dataclass(frozen=True)
class WeightsRecord:
    """What is known of a cached file: the original's name, source, digests and size, and the converted file's SHA-256.

    imported: that the user gave it a name of its own.
    """

    file: str
    source: str
    digests: dict[str, str]
    size: int
    converted_sha256: str
    imported: bool = False


def _place(entry: Entry, weights: Weights) -> Path:
    return files.cache_folder() / "models" / entry.name / f"{weights.name}.safetensors"


def _read_record(path: Path) -> WeightsRecord | None:
    try:
        record = WeightsRecord(**json.loads(path.read_text("utf-8")))
        return record if isinstance(record.digests.get("sha256"), str) else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _write_record(path: Path, record: WeightsRecord) -> None:
    files.write_whole(path, (json.dumps(asdict(record), indent=1) + "\n").encode())


def is_cached(entry: Entry, weights: Weights) -> bool:
    """Tell whether weights are there, without reading them."""
    return weights.in_package or _place(entry, weights).is_file()


def check_cached(entry: Entry, weights: Weights) -> str:
    """Read weights that are there and compare them: "whole", "damaged", "absent", or "not readable by you"."""
    if weights.in_package:
        return (
            "whole" if sources.digests(_in_package(weights))["sha256"] == weights.remote.pins["sha256"] else "damaged"
        )
    place = _place(entry, weights)
    try:
        if not place.is_file():
            return "absent"
        for path in (place, place.with_suffix(".json")):
            if path.exists():
                path.open("rb").close()
    except PermissionError:
        return UNREADABLE
    record = _read_record(place.with_suffix(".json"))
    if record is None or any(record.digests.get(kind) != pin for kind, pin in weights.remote.pins.items()):
        return "damaged"
    try:
        return "whole" if sources.digests(place)["sha256"] == record.converted_sha256 else "damaged"
    except OSError:
        return "damaged"


def verification_of(entry: Entry, weights: Weights) -> str:
    """Say what `check` found, and how much that tells."""
    state = check_cached(entry, weights)
    if state != "whole" or weights.imported:
        return f"{state}, imported by you" if state == "whole" else state
    return {
        "pinned": state,
        "partly": f"{state}, partly verified: by 8 digits of its SHA-256",
        "unpinned": f"{state}, not verified: no published digest",
    }[weights.verification]


def _in_package(weights: Weights) -> Path:
    return Path(str(resources.files("vdeblur.models") / weights.remote.name))


def obtain_weights(entry: Entry, weights: Weights, talk: Talk = QUIET) -> Path:
    """Give the safetensors file of weights, verified; fetch and convert it where it is not there.

    Raises: ModelError where it cannot be had, with what to do by hand.
    """
    full_name = f"{entry.name}@{weights.name}"
    if weights.in_package:
        if check_cached(entry, weights) != "whole":
            raise ModelError(
                f"the weights of {entry.name} are damaged: their SHA-256 is wrong", "install vdeblur again"
            )
        return _in_package(weights)
    place = _place(entry, weights)
    state = check_cached(entry, weights)
    if state == "whole":  # before the lock, so that a cache which cannot be written to serves as well
        return place
    if state == UNREADABLE:
        message = f"{place} cannot be read: permission denied"
        raise ModelError(message, "have its owner allow it, or name another folder in VDEBLUR_CACHE")
    with files.locked(place.with_suffix(".lock"), talk):
        state = check_cached(entry, weights)
        if state == "whole":  # another process has just fetched it
            return place
        if weights.imported:
            raise ModelError(
                f"the imported file of {full_name} is {state}", f"vdeblur models import FILE --as {full_name}"
            )
        if state == "damaged":
            message = f"{full_name} in the cache is damaged or not the one wanted, and is fetched again"
            talk.notify("warning", {"code": "W_CACHE", "message": message})
        return _fetch(entry, weights, place, talk)


def _fetch(entry: Entry, weights: Weights, place: Path, talk: Talk) -> Path:
    """Fetch, verify and convert; the caller holds the lock."""
    full_name = f"{entry.name}@{weights.name}"
    remote = _with_remembered(weights.remote, place)
    if not weights.is_fetchable:
        raise ModelError(f"{remote.name} cannot be fetched without a person", by_hand(entry, weights))
    if not talk.is_offline and not remote.pins:
        _ask_for_unpinned(entry, weights, talk)
    folder = files.cache_folder() / "downloads" / full_name
    try:
        fetched = sources.fetch(remote, folder, talk, lambda source: _announce(entry, weights, source, talk))
    except http.FetchError as error:
        if remote.remembered and "has changed since" in error.message:
            hint = f"vdeblur models remove {full_name} --forget accepts the new one; at once: {models_at_hand()}"
        elif talk.is_offline:
            hint = f"with a network: vdeblur models download {full_name}; or {by_hand(entry, weights)}"
        else:
            hint = by_hand(entry, weights)
        raise ModelError(error.message, hint) from error
    try:
        _convert(fetched.path, entry, weights.name, place, fetched.digests, fetched.place)
    except ModelError as error:
        if not weights.remote.pins:
            shutil.rmtree(folder, ignore_errors=True)
        raise ModelError(
            f"{fetched.place} gave a file that cannot be used: {error.message}", by_hand(entry, weights)
        ) from error
    shutil.rmtree(folder, ignore_errors=True)
    facts = {"model": entry.name, "weights": weights.name, "file": remote.name, "sha256": fetched.digests["sha256"]}
    talk.notify("download_done", {**facts, "verification": weights.verification, "path": str(place)})
    return place


def _with_remembered(remote: RemoteFile, place: Path) -> RemoteFile:
    """Take the digest of the first download for a pin, where nobody published one."""
    record = _read_record(place.with_suffix(".json"))
    if remote.pins or record is None:
        return remote
    return dataclasses.replace(remote, pins={"sha256": record.digests["sha256"]}, remembered=True)


def _ask_for_unpinned(entry: Entry, weights: Weights, talk: Talk) -> None:
    """Have a download accepted whose authors published no digest.

    Raises: ModelError where it is not.
    """
    if talk.yes:
        return
    places = [
        source.place + (", unencrypted" if source.place.startswith("http:") else "")
        for source in weights.remote.sources
        if source.kind in sources.FETCHERS
    ]
    full_name = f"{entry.name}@{weights.name}"
    size = f"about {weights.megabytes:g} MB" if weights.megabytes else "size unknown"
    text = f"{weights.remote.name} ({size}, licence {entry.license}) from {' or else '.join(places)}"
    notice = f" Note: {entry.notice}." if entry.notice else ""
    if talk.ask is None:
        raise ModelError(
            f"{full_name} has no digest from its authors to verify it with: {text}.{notice}",
            f"to accept it: vdeblur models download {full_name} --yes; at once: {models_at_hand()}",
        )
    if not talk.ask(f"{text}: its authors published no digest to verify it with.{notice} Download it?"):
        raise ModelError(f"{full_name} was not downloaded", f"at once: {models_at_hand()}")


def _announce(entry: Entry, weights: Weights, source: DownloadSource, talk: Talk) -> None:
    talk.notify(
        "download",
        {
            "model": entry.name,
            "weights": weights.name,
            "file": weights.remote.name,
            "source": source.place,
            "megabytes": weights.megabytes,
            "license": entry.license,
            "notice": entry.notice,
            "verification": weights.verification,
        },
    )


def by_hand(entry: Entry, weights: Weights) -> str:
    """Say how a person gets a file of weights, and what runs without it."""
    full_name = f"{entry.name}@{weights.name}"
    name = weights.remote.name
    text = next((source.facts.get("text") for source in weights.remote.sources if source.kind == "manual"), None)
    page = f"get {name} from {weights.remote.page}{f' ({text})' if text else ''}"
    return f"{page}, then: vdeblur models import {name} --as {full_name}; at once: {models_at_hand()}"


def models_at_hand() -> str:
    """Name the models that need no download."""
    names = [
        f"-m {entry.name}"
        for entry in known_models().values()
        if entry.network and entry.default and is_cached(entry, entry.weights[entry.default])
    ]
    return " or ".join(names)


def _convert(
    path: Path,
    entry: Entry,
    weights: str,
    place: Path,
    digests: dict[str, str],
    source: str,
    imported: bool = False,
) -> None:
    """Write a checkpoint to its place in the cache under our names, with its record; it appears whole or not at all."""
    tensors = read_checkpoint(path)
    if entry.network:
        tensors = fitted(tensors, NETWORKS[entry.network](**entry.arguments), entry, path.name)
    else:
        tensors = _fitted_start(tensors, entry, path.name)
    # Tensors that share memory cannot be stored in safetensors.
    tensors = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    metadata = {"model": entry.name, "weights": weights, "source": source, "sha256": digests["sha256"], "format": "pt"}
    try:
        with files.drafted(place) as draft:
            safetensors.torch.save_file(tensors, draft, metadata)
            converted = sources.digests(draft)["sha256"]
            record = WeightsRecord(path.name, source, digests, path.stat().st_size, converted, imported)
            _write_record(place.with_suffix(".json"), record)
            # safetensors keeps its files from other users; the record was written by the user's umask.
            draft.chmod(place.with_suffix(".json").stat().st_mode & 0o666)
    except (OSError, safetensors.SafetensorError) as error:
        raise files.cache_error(error if isinstance(error, OSError) else OSError(str(error))) from error


def import_file(path: Path, name: str, talk: Talk = QUIET) -> tuple[Entry, Weights]:
    """Take a file that the user has into the cache as NAME[@WEIGHTS]; a new WEIGHTS registers it under that name.

    Raises: ModelError where it is not what that name stands for, or does not fit the model.
    """
    plain, _, wanted = name.partition("@")
    entry = find_entry(plain)
    wanted = wanted or entry.default or ""
    if not entry.weights and not NETWORKS[entry.network](**entry.arguments).state_dict():
        raise ModelError(f"{plain} has no weights", "it needs none")
    if not wanted:
        raise ModelError(f"{plain} has no weights of its own", f"give the file a name: --as {plain}@mine")
    if not NAME.fullmatch(wanted):
        raise ModelError(f"{wanted!r} is no name for weights", "use small letters, digits and . _ + - only")
    if not entry.network and wanted not in entry.weights:
        raise ModelError(f"{plain} is not a model to have weights of one's own", f"choose {plain}@{entry.default}")
    if path.is_dir():
        raise ModelError(f"{path} is a folder, not a checkpoint", "give the file in it")
    if not path.is_file():
        raise ModelError(f"{path}: no such file", "check the path")
    weights = entry.weights.get(wanted)
    if weights is not None and weights.in_package:
        raise ModelError(f"{plain}@{wanted} is in the package", f"give the file a name of its own: --as {plain}@mine")
    place = files.cache_folder() / "models" / entry.name / f"{wanted}.safetensors"
    with files.locked(place.with_suffix(".lock"), talk):
        if weights is None:
            found = sources.digests(path)
        else:
            remote = _with_remembered(weights.remote, place)
            try:
                found = sources.verify_file(path, dataclasses.replace(remote, name=path.name))
            except http.DigestError as error:
                forget = f"if you trust the new one: vdeblur models remove {entry.name}@{wanted} --forget"
                hint = forget if remote.remembered else _other_name(entry, wanted, path)
                raise ModelError(error.message, hint) from error
        _convert(path, entry, wanted, place, found, str(path.absolute()), imported=weights is None)
    if weights is not None and not weights.remote.pins:
        called = f", and is not called {weights.remote.name} as theirs is" if path.name != weights.remote.name else ""
        message = f"{path.name} fits {entry.name}, but is not verified: its authors published no digest{called}"
        talk.notify("warning", {"code": "W_UNVERIFIED", "message": message})
    return entry, weights_of(entry)[wanted]


def _other_name(entry: Entry, wanted: str, path: Path) -> str:
    """Say under which name a file may be imported that is not what the user took it for."""
    for name, weights in entry.weights.items():
        if weights.remote.pins and name != wanted:
            with contextlib.suppress(http.DigestError):
                sources.verify_file(path, weights.remote)
                return f"it is {entry.name}@{name}: use --as {entry.name}@{name}"
    return f"if it is a file of your own: --as {entry.name}@mine"


def path_of(name: str) -> Path:
    """Give where a model's weights are.

    Raises: ModelError where they are not there.
    """
    entry, weights = choose_weights(name)
    if weights is None:
        raise ModelError(f"{name} has no weights", entry.no_weights or "it needs none")
    if not is_cached(entry, weights):
        raise ModelError(f"{entry.name}@{weights.name} is not in the cache", f"vdeblur models download {name}")
    return _in_package(weights) if weights.in_package else _place(entry, weights)


def digest_of(entry: Entry, weights: Weights) -> str:
    """Give the SHA-256 of the file that weights came in, which are there; of the authors' file, where it is theirs."""
    if weights.in_package:
        return weights.remote.pins["sha256"]
    record = _read_record(_place(entry, weights).with_suffix(".json"))
    return record.digests["sha256"] if record else ""


def remove_weights(name: str, forget: bool = False, talk: Talk = QUIET) -> list[str]:
    """Take weights out of the cache: those named, or a model's fetched ones; gives the names of what was there.

    What the user imported under a name of its own goes only by NAME@WEIGHTS.

    forget: the digest, too, that was remembered of a file without a published one.

    Raises: ModelError where weights are in the package.
    """
    entry, chosen = choose_weights(name)
    several = [chosen] if "@" in name and chosen is not None else list(entry.weights.values())
    removed = []
    for weights in several:
        if weights.in_package:
            if len(several) == 1:
                raise ModelError(f"{entry.name} is in the package", _kept_hint(name))
            continue
        place = _place(entry, weights)
        if not place.parent.is_dir():
            continue
        with files.locked(place.with_suffix(".lock"), talk):
            try:
                if place.is_file():
                    place.unlink()
                    removed.append(f"{entry.name}@{weights.name}")
                if forget or weights.imported:
                    place.with_suffix(".json").unlink(missing_ok=True)
                shutil.rmtree(files.cache_folder() / "downloads" / f"{entry.name}@{weights.name}", ignore_errors=True)
            except OSError as error:
                raise files.cache_error(error) from error
    return removed


def imported_of(name: str) -> list[str]:
    """Give the full names of what the user imported for a model; nothing for NAME@WEIGHTS."""
    if "@" in name:
        return []
    return [f"{name}@{one.name}" for one in weights_of(find_entry(name)).values() if one.imported]


def _kept_hint(name: str) -> str:
    kept = imported_of(name)
    return f"your own go by their full names: {', '.join(kept)}" if kept else "there is nothing to remove"


def state_of(entry: Entry, weights: Weights | None) -> str:
    """Say in a few words where a model's weights are."""
    if weights is None:
        return "none to be had" if entry.no_weights else "needs none"
    if weights.in_package:
        return "in the package"
    if is_cached(entry, weights):
        return "imported" if weights.imported else "in the cache"
    if not weights.is_fetchable:
        return "by hand"
    return {"pinned": "downloads itself", "partly": "downloads itself", "unpinned": "asks, then downloads"}[
        weights.verification
    ]
