"""The weights on this machine, as files: obtain_weights downloads, verifies and converts them once to safetensors.

import_file and remove_weights add and remove files. weights.py loads a file into a network; fetch/ downloads.
"""

import contextlib
import dataclasses
import shlex
import shutil
from enum import StrEnum
from importlib import resources
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from vdeblur import files
from vdeblur.errors import ModelError
from vdeblur.events import Talk
from vdeblur.fetch import http, sources
from vdeblur.fetch.sources import DownloadSource, RemoteFile
from vdeblur.models import own
from vdeblur.models.checkpoint import fit_model, fit_start, read_checkpoint, refuse_other_training, refuse_variant
from vdeblur.models.records import WeightsRecord, cached_path, read_record, record_path, write_record
from vdeblur.models.registry import NAME, ModelEntry, Weights, choose_weights, find_entry, known_models, weights_of

QUIET = Talk()  # reports nothing and asks nothing: files without a published digest are refused


class CacheState(StrEnum):
    """The states of cached weights; the values are the words of `vdeblur models verify`."""

    WHOLE = "whole"  # as it was downloaded or imported
    DAMAGED = "damaged"  # or not the expected file
    ABSENT = "absent"
    UNREADABLE = "not readable by you"


def is_cached(entry: ModelEntry, weights: Weights) -> bool:
    """Return whether weights are on this machine, without reading them."""
    return weights.in_package or cached_path(entry.name, weights.name).is_file()


def check_cached(entry: ModelEntry, weights: Weights) -> CacheState:
    """Compare cached weights with their digests."""
    if weights.in_package:
        found = sources.digests(_packaged_path(weights))["sha256"]
        return CacheState.WHOLE if found == weights.remote.pins["sha256"] else CacheState.DAMAGED
    path = cached_path(entry.name, weights.name)
    try:
        if not path.is_file():
            return CacheState.ABSENT
        for file in (path, record_path(path)):
            if file.exists():
                file.open("rb").close()
    except PermissionError:
        return CacheState.UNREADABLE
    record = read_record(path)
    if record is None or any(record.digests.get(kind) != pin for kind, pin in weights.remote.pins.items()):
        return CacheState.DAMAGED
    try:
        return CacheState.WHOLE if sources.digests(path)["sha256"] == record.converted_sha256 else CacheState.DAMAGED
    except OSError:
        return CacheState.DAMAGED


def verification_of(entry: ModelEntry, weights: Weights) -> str:
    """Return what check_cached found, and how much that proves."""
    state = check_cached(entry, weights)
    if state is not CacheState.WHOLE:
        return state
    if weights.imported:
        return f"{state}, imported by you"
    return {
        "pinned": state,
        "partly": f"{state}, partly verified: by 8 digits of its SHA-256",
        "unpinned": f"{state}, not verified: no published digest",
    }[weights.verification]


def _packaged_path(weights: Weights) -> Path:
    return Path(str(resources.files("vdeblur.models") / weights.remote.name))


def read_cached(path: Path) -> dict[str, Tensor]:
    """Read converted weights.

    Raises: ModelError if they are damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "see vdeblur models verify") from error


def obtain_weights(entry: ModelEntry, weights: Weights, talk: Talk = QUIET) -> Path:
    """Return the safetensors file of weights, verified; download and convert it if it is not cached.

    Raises: ModelError if that fails, with what to do by hand.
    """
    full_name = f"{entry.name}@{weights.name}"
    if weights.in_package:
        if check_cached(entry, weights) is not CacheState.WHOLE:
            raise ModelError(
                f"the weights of {entry.name} are damaged: their SHA-256 is wrong", "install vdeblur again"
            )
        return _packaged_path(weights)
    path = cached_path(entry.name, weights.name)
    state = check_cached(entry, weights)
    if state is CacheState.WHOLE:  # before the lock, so that a read-only cache works, too
        return path
    if state is CacheState.UNREADABLE:
        message = f"{path} cannot be read: permission denied"
        raise ModelError(message, "ask its owner for access, or set VDEBLUR_CACHE to another folder")
    with files.locked(path.with_suffix(".lock"), talk):
        state = check_cached(entry, weights)
        if state is CacheState.WHOLE:  # another process has just fetched it
            return path
        if weights.imported:
            raise ModelError(
                f"the imported file of {full_name} is {state}", f"vdeblur models import FILE --as {full_name}"
            )
        if state is CacheState.DAMAGED:
            message = f"{full_name} in the cache is damaged or not the expected file; downloading it again"
            talk.notify("warning", {"code": "W_CACHE", "message": message})
        return _download(entry, weights, path, talk)


def _download(entry: ModelEntry, weights: Weights, path: Path, talk: Talk) -> Path:
    """Download, verify and convert weights to path; the caller holds the lock."""
    full_name = f"{entry.name}@{weights.name}"
    remote = _with_remembered(weights.remote, path)
    if not weights.is_fetchable:
        raise ModelError(f"{remote.name} has no automatic download", manual_hint(entry, weights))
    if not talk.is_offline and not remote.pins:
        _ask_for_unpinned(entry, weights, talk)
    folder = _download_folder(full_name)
    try:
        fetched = sources.fetch(remote, folder, talk, lambda source: _announce(entry, weights, source, talk))
    except http.FetchError as error:
        if remote.remembered and "has changed since" in error.message:
            accept = f"vdeblur models remove {full_name} --forget accepts the new one"
            hint = f"{accept}; without a download: {available_models_hint()}"
        elif talk.is_offline:
            hint = f"with a network: vdeblur models download {full_name}; or {manual_hint(entry, weights)}"
        else:
            hint = manual_hint(entry, weights)
        raise ModelError(error.message, hint) from error
    try:
        tensors = _read_original(fetched.path, entry)
    except ModelError as error:
        if not weights.remote.pins:
            shutil.rmtree(folder, ignore_errors=True)
        message = f"the file from {fetched.place} is not usable: {error.message}"
        raise ModelError(message, manual_hint(entry, weights)) from error
    size = fetched.path.stat().st_size
    record = WeightsRecord(fetched.path.name, fetched.place, fetched.digests, size, converted_sha256="")
    _store(tensors, entry, weights.name, record)
    shutil.rmtree(folder, ignore_errors=True)
    facts = {"model": entry.name, "weights": weights.name, "file": remote.name, "sha256": fetched.digests["sha256"]}
    talk.notify("download_done", {**facts, "verification": weights.verification, "path": str(path)})
    return path


def _download_folder(full_name: str) -> Path:
    return files.cache_folder() / "downloads" / full_name


def _with_remembered(remote: RemoteFile, cached: Path) -> RemoteFile:
    """Pin a file without a published digest to the digest of its first download, if there was one."""
    record = read_record(cached)
    if remote.pins or record is None:
        return remote
    return dataclasses.replace(remote, pins={"sha256": record.digests["sha256"]}, remembered=True)


def _ask_for_unpinned(entry: ModelEntry, weights: Weights, talk: Talk) -> None:
    """Ask the user to accept a download whose authors published no digest.

    Raises: ModelError if the user declines, or nobody can be asked.
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
            f"{full_name} has no digest from its authors to verify it: {text}.{notice}",
            f"to accept it: vdeblur models download {full_name} --yes; without a download: {available_models_hint()}",
        )
    if not talk.ask(f"{text}: its authors published no digest to verify it.{notice} Download it?"):
        raise ModelError(f"{full_name} was not downloaded", f"without a download: {available_models_hint()}")


def _announce(entry: ModelEntry, weights: Weights, source: DownloadSource, talk: Talk) -> None:
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


def manual_hint(entry: ModelEntry, weights: Weights) -> str:
    """Return how to get a file of weights by hand, and which models run without a download."""
    full_name = f"{entry.name}@{weights.name}"
    name = weights.remote.name
    text = next((source.facts.get("text") for source in weights.remote.sources if source.kind == "manual"), None)
    page = f"get {name} from {weights.remote.page}{f' ({text})' if text else ''}"
    command = f"vdeblur models import {shlex.quote(name)} --as {full_name}"
    return f"{page}, then: {command}; without a download: {available_models_hint()}"


def available_models_hint() -> str:
    """Return the options that choose the models which need no download."""
    names = [
        f"-m {entry.name}"
        for entry in known_models().values()
        if entry.network and entry.default and is_cached(entry, entry.weights[entry.default])
    ]
    return " or ".join(names)


def _read_original(path: Path, entry: ModelEntry) -> dict[str, Tensor]:
    """Read an original checkpoint as the cache keeps it: fitted to its network or part.

    Raises: ModelError if it cannot be read, or does not fit.
    """
    refuse_other_training(path, entry)
    if entry.network:
        refuse_variant(path, entry)
    tensors = read_checkpoint(path)
    if not entry.network:
        return fit_start(tensors, entry, path.name)
    return fit_model(tensors, entry.build(), entry, path.name)


def _store(tensors: dict[str, Tensor], entry: ModelEntry, weights: str, record: WeightsRecord) -> None:
    """Write weights and their record to the cache; they appear complete or not at all.

    record: what is known of the original; converted_sha256 is computed here.
    Raises: ModelError if the cache cannot be written.
    """
    path = cached_path(entry.name, weights)
    # Tensors that share memory cannot be stored in safetensors.
    tensors = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    sha256 = record.digests["sha256"]
    metadata = {"model": entry.name, "weights": weights, "source": record.source, "sha256": sha256, "format": "pt"}
    try:
        with files.drafted(path) as draft:
            safetensors.torch.save_file(tensors, draft, metadata)
            write_record(path, dataclasses.replace(record, converted_sha256=sources.digests(draft)["sha256"]))
            # safetensors makes files that other users cannot read; the record has the user's umask.
            draft.chmod(record_path(path).stat().st_mode & 0o666)
    except (OSError, safetensors.SafetensorError) as error:
        raise files.cache_error(error if isinstance(error, OSError) else OSError(str(error))) from error


def import_file(path: Path, name: str, talk: Talk = QUIET) -> tuple[ModelEntry, Weights]:
    """Copy the user's file into the cache as NAME[@WEIGHTS]; a new WEIGHTS registers it under that name.

    Raises: ModelError if it is not the file that the name stands for, or does not fit the model.
    """
    entry, wanted = _import_target(name)
    if path.is_dir():
        raise ModelError(f"{path} is a folder, not a checkpoint", "name the file in it")
    if not path.is_file():
        raise ModelError(f"{path}: no such file", "check the path")
    weights = entry.weights.get(wanted)
    cached = cached_path(entry.name, wanted)
    with files.locked(cached.with_suffix(".lock"), talk):
        digests = sources.digests(path) if weights is None else _verify_import(path, entry, weights)
        tensors = _read_original(path, entry)
        size = path.stat().st_size
        record = WeightsRecord(path.name, str(path.absolute()), digests, size, "", imported=weights is None)
        _store(tensors, entry, wanted, record)
    if weights is not None and not weights.remote.pins:
        theirs = weights.remote.name
        renamed = f", and its name is not theirs, {theirs}" if path.name != theirs else ""
        message = f"{path.name} fits {entry.name}, but is not verified: its authors published no digest{renamed}"
        talk.notify("warning", {"code": "W_UNVERIFIED", "message": message})
    return entry, weights_of(entry)[wanted]


def _import_target(name: str) -> tuple[ModelEntry, str]:
    """Return the model and the name of the weights that a file can be imported as.

    Raises: ModelError if there is no such model, or it takes no such weights.
    """
    if own.is_file_name(name):
        raise ModelError(f"{name} is not in the registry", f"use the file directly: -m {name} --weights FILE")
    plain, _, wanted = name.partition("@")
    entry = find_entry(plain)
    wanted = wanted or entry.default or ""
    if not entry.weights and not entry.build().state_dict():
        raise ModelError(f"{plain} has no weights", "it needs none")
    if not wanted:
        raise ModelError(f"{plain} has no published weights", f"name the file's weights: --as {plain}@mine")
    if not NAME.fullmatch(wanted):
        raise ModelError(f"{wanted!r} is not a valid name", "use only lowercase letters, digits and . _ + -")
    if not entry.network and wanted not in entry.weights:
        raise ModelError(f"{plain} takes no weights of your own", f"use {plain}@{entry.default}")
    if wanted in entry.weights and entry.weights[wanted].in_package:
        raise ModelError(f"{plain}@{wanted} is in the package", f"choose another name: --as {plain}@mine")
    return entry, wanted


def _verify_import(path: Path, entry: ModelEntry, weights: Weights) -> dict[str, str]:
    """Return the digests of a file that is to be imported as published weights.

    Raises: ModelError if it is not the published file, or not the one of the first download.
    """
    remote = _with_remembered(weights.remote, cached_path(entry.name, weights.name))
    try:
        return sources.verify_file(path, dataclasses.replace(remote, name=path.name))
    except http.DigestError as error:
        forget = f"if you trust the new one: vdeblur models remove {entry.name}@{weights.name} --forget"
        hint = forget if remote.remembered else _other_name(entry, weights.name, path)
        if "web page" in error.message:
            hint = "open it in a browser: it says where the file is, or why it could not be downloaded"
        raise ModelError(error.message, hint) from error


def _other_name(entry: ModelEntry, wanted: str, path: Path) -> str:
    """Return the name under which a file can be imported that is not `wanted`."""
    for name, weights in entry.weights.items():
        if weights.remote.pins and name != wanted:
            with contextlib.suppress(http.DigestError):
                sources.verify_file(path, weights.remote)
                return f"it is {entry.name}@{name}: use --as {entry.name}@{name}"
    return f"if it is your own file: --as {entry.name}@mine"


def path_of(name: str) -> Path:
    """Return the file of a model's weights on this machine.

    Raises: ModelError if there is none.
    """
    entry, weights = choose_weights(name)
    if weights is None:
        raise ModelError(f"{name} has no weights", entry.no_weights or "it needs none")
    if not is_cached(entry, weights):
        raise ModelError(f"{entry.name}@{weights.name} is not in the cache", f"vdeblur models download {name}")
    return _packaged_path(weights) if weights.in_package else cached_path(entry.name, weights.name)


def digest_of(entry: ModelEntry, weights: Weights) -> str:
    """Return the SHA-256 of the original file of cached weights, before it was converted."""
    if weights.in_package:
        return weights.remote.pins["sha256"]
    record = read_record(cached_path(entry.name, weights.name))
    return record.digests["sha256"] if record else ""


def remove_weights(name: str, forget: bool = False, talk: Talk = QUIET) -> list[str]:
    """Remove weights from the cache, those of NAME@WEIGHTS or all fetched ones of NAME; return the removed names.

    Weights that the user imported under a new name are removed only by NAME@WEIGHTS.

    forget: also forget the digest of the first download of a file without a published digest.
    Raises: ModelError if the weights are in the package.
    """
    entry, chosen = choose_weights(name)
    candidates = [chosen] if "@" in name and chosen is not None else list(entry.weights.values())
    if len(candidates) == 1 and candidates[0].in_package:
        kept = imported_of(name)
        hint = f"remove your own by their full names: {', '.join(kept)}" if kept else "there is nothing to remove"
        raise ModelError(f"{entry.name} is in the package", hint)
    return [
        f"{entry.name}@{weights.name}"
        for weights in candidates
        if not weights.in_package and _remove_one(entry, weights, forget, talk)
    ]


def _remove_one(entry: ModelEntry, weights: Weights, forget: bool, talk: Talk) -> bool:
    """Remove weights and unfinished downloads of them; return whether there were weights."""
    path = cached_path(entry.name, weights.name)
    if not path.parent.is_dir():
        return False
    with files.locked(path.with_suffix(".lock"), talk):
        try:
            was_cached = path.is_file()
            path.unlink(missing_ok=True)
            if forget or weights.imported:
                record_path(path).unlink(missing_ok=True)
            shutil.rmtree(_download_folder(f"{entry.name}@{weights.name}"), ignore_errors=True)
            for source in weights.remote.sources:
                if source.kind == "drive" and "member" in source.facts:
                    sources.kept_archive(source).unlink(missing_ok=True)
        except OSError as error:
            raise files.cache_error(error) from error
    return was_cached


def imported_of(name: str) -> list[str]:
    """Return the full names of the weights that the user imported for a model; none for NAME@WEIGHTS."""
    if "@" in name:
        return []
    return [f"{name}@{weights.name}" for weights in weights_of(find_entry(name)).values() if weights.imported]


def state_of(entry: ModelEntry, weights: Weights | None) -> str:
    """Return in a few words where a model's weights are."""
    if weights is None:
        if entry.own is not None:
            return "needs --weights" if own.needs_weights(entry.own) else "needs none"
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
