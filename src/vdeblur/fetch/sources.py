"""Files of weights from where their authors put them, whole and verified, or a reason.

A source is a file on the Hub, at an https address, in a zip at an https address, in a public Google Drive folder, or
one that only a person can fetch. Each kind but the last is a function in FETCHERS; `fetch` tries a file's sources in
their order and gives the first result that agrees with what is known of the file. What was fetched in part is gone on
with the next time.
"""

import contextlib
import hashlib
import io
import lzma
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vdeblur.errors import InterruptedRunError
from vdeblur.events import Talk
from vdeblur.fetch.http import (
    ATTEMPTS,
    CHUNK_BYTES,
    RANGE_BYTES,
    TIMEOUT_SECONDS,
    DigestError,
    FetchError,
    RangeFile,
    download_file,
    first_sentence,
    request_reason,
    validator_path,
)
from vdeblur.files import cache_error, hub_folder

DIGESTS = {"sha256": 64, "sha256_prefix": 8, "git_blob_sha1": 40}  # kinds of pins and their hex digits
# What zipfile raises over archives that are damaged, encrypted, made up, or packed in a way it does not know.
BAD_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(ValueError, OverflowError, EOFError, RuntimeError, OSError),
)


@dataclass(frozen=True)
class DownloadSource:
    """Where a file may be had: its kind, a key of FETCHERS or "manual", and that kind's facts from weights.toml."""

    kind: str
    facts: dict[str, str]

    @property
    def place(self) -> str:
        """Give the address to show to people."""
        if self.kind == "hub":
            endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
            return f"{endpoint}/{self.facts['repo']}"
        if self.kind == "drive":
            folder = self.facts.get("folder")
            return f"https://drive.google.com/{'drive/folders/' + folder if folder else 'uc?id=' + self.facts['id']}"
        return self.facts.get("url") or self.facts.get("page") or ""


@dataclass(frozen=True)
class RemoteFile:
    """A file of weights: its name, where it may be had, and what is known of its content.

    pins: digests by kind (DIGESTS), hex. size: bytes, where they are known exactly. remembered: that the pin is what
    was fetched the first time, since nobody published one.
    """

    name: str
    sources: tuple[DownloadSource, ...]
    pins: dict[str, str] = field(default_factory=dict)
    size: int | None = None
    remembered: bool = False

    @property
    def page(self) -> str:
        """Give the page where a person finds the file."""
        by_hand = [source for source in self.sources if source.kind == "manual"]
        return (by_hand or list(self.sources))[0].place if self.sources else ""


@dataclass(frozen=True)
class Fetched:
    """A verified file: where it lies, where it came from, and its digests by their kind."""

    path: Path
    place: str
    digests: dict[str, str]


def digests(path: Path) -> dict[str, str]:
    """Compute a file's digests, by their kind."""
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
            blob.update(chunk)
    whole = sha256.hexdigest()
    return {"sha256": whole, "sha256_prefix": whole[:8], "git_blob_sha1": blob.hexdigest()}


def verify_file(path: Path, file: RemoteFile) -> dict[str, str]:
    """Compare a file with what is known of it; gives its digests.

    Raises: DigestError where they differ, or the file is a page or a stand-in.
    """
    size = path.stat().st_size
    with path.open("rb") as opened:
        if kind := text_kind(opened.read(512)):
            raise DigestError(f"{file.name} is {kind}, not the file")
    if file.size is not None and size != file.size:
        raise DigestError(f"{file.name} has {size} bytes instead of {file.size}")
    found = digests(path)
    for kind, wanted in file.pins.items():
        if found[kind] != wanted:
            other = "has changed since it was first fetched" if file.remembered else "is not the published file"
            raise DigestError(f"{file.name} {other}: its {kind} is {found[kind]} instead of {wanted}")
    return found


def text_kind(head: bytes) -> str:
    """Say what a file that begins so is, where servers send it instead of weights; empty for anything else."""
    head = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.lower().startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (the place of the file, not its content)"
    if b"\0" in head:
        return ""
    if head.startswith(b"<"):
        return "a page of XML"
    return "a page of JSON" if re.match(rb'\{\s*["}]|\[\s*["{\]]', head) else ""


def fetch(
    file: RemoteFile, folder: Path, talk: Talk, announce: Callable[[DownloadSource], None] = lambda source: None
) -> Fetched:
    """Get a file from the first of its sources that has it, verified; it lies in folder, or in the Hub's cache.

    announce: is told each source before it is tried.

    Raises: FetchError with each source's reason; InterruptedRunError where a signal came.
    """
    target = folder / file.name
    reasons = []
    try:
        if target.is_file() and file.pins:  # fetched whole by a process that was stopped before it used the file
            with contextlib.suppress(DigestError):
                return Fetched(target, file.sources[0].place, verify_file(target, file))
        target.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cache_error(error) from error
    for source in file.sources:
        if source.kind not in FETCHERS or (talk.is_offline and source.kind != "hub"):
            continue
        if not talk.is_offline:
            announce(source)
        try:
            return _fetch_from(source, file, target, talk)
        except FetchError as error:
            reasons.append(f"{urlsplit(source.place).hostname}: {error.message}")
    if talk.is_offline:
        raise FetchError(f"{file.name} is not in the cache, and the network is off")
    raise FetchError(f"{file.name} could not be fetched: {'; '.join(reasons)}")


def _fetch_from(source: DownloadSource, file: RemoteFile, target: Path, talk: Talk) -> Fetched:
    """Fetch and verify; where a cached or resumed file proves wrong, once more from its first byte."""
    fetcher = FETCHERS[source.kind]
    for fresh in (False, True):
        try:
            path, reused = fetcher(source, file, target, talk, fresh)
            try:
                return Fetched(path, source.place, verify_file(path, file))
            except DigestError:
                target.unlink(missing_ok=True)
                if fresh or not reused or talk.is_offline:
                    raise
        except OSError as error:
            if isinstance(error, (FileNotFoundError, ConnectionError, TimeoutError)):
                raise FetchError(first_sentence(error)) from error
            raise cache_error(error) from error
    raise AssertionError


def hub_address(repo: str, revision: str, file: str) -> str:
    """Give the https address of a file of a data set on the Hub, which answers ranges."""
    import huggingface_hub

    return huggingface_hub.hf_hub_url(repo, file, repo_type="dataset", revision=revision)


# The Hub: its library has a cache, locks and resuming of its own.


def _fetch_hub(source: DownloadSource, file: RemoteFile, target: Path, talk: Talk, fresh: bool) -> tuple[Path, bool]:
    import huggingface_hub
    from huggingface_hub.utils import logging as hub_logging

    talk.check_stop()
    hub_logging.set_verbosity_error()  # its warnings of retries; what fails in the end is told below
    try:
        path = huggingface_hub.hf_hub_download(
            source.facts["repo"],
            source.facts.get("file", file.name),
            revision=source.facts.get("revision"),
            cache_dir=hub_folder(),
            local_files_only=talk.is_offline,
            force_download=fresh,
            tqdm_class=_progress_class(file.name, talk),
        )
    except InterruptedRunError:
        raise
    except Exception as error:  # the library's own, its HTTP client's, and the system's
        raise FetchError(first_sentence(error)) from error
    talk.check_stop()  # the library may have met the signal in a thread where exceptions end
    return Path(path), not fresh


def _progress_class(name: str, talk: Talk) -> Any:
    """Make what huggingface_hub believes to be a progress bar."""
    from tqdm import tqdm

    class Progress(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.done = int(kwargs.get("initial") or 0)
            self.whole = kwargs.get("total")
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.done += int(n or 0)
            talk.show_progress(name, self.done, self.whole)
            return None

        # With these two, the library's other way of fetching counts each byte once.
        def update_transfer(self, n: float) -> None:
            pass

        def set_transfer_postfix_str(self, *args: Any, **kwargs: Any) -> None:
            pass

    return Progress


# https


def _fetch_https(source: DownloadSource, file: RemoteFile, target: Path, talk: Talk, fresh: bool) -> tuple[Path, bool]:
    part = target.with_name(target.name + ".part")
    if fresh:
        part.unlink(missing_ok=True)
    reused = download_file(source.facts["url"], part, file.name, talk, bool(file.pins), file.size)
    part.replace(target)
    validator_path(part).unlink(missing_ok=True)
    return target, reused


# One member of a zip


def _fetch_zip(source: DownloadSource, file: RemoteFile, target: Path, talk: Talk, fresh: bool) -> tuple[Path, bool]:
    url = source.facts["url"]
    member = source.facts.get("member", file.name)
    remote = RangeFile.open_url(url, file.name, talk)
    if remote is not None:
        with contextlib.closing(remote), io.BufferedReader(remote, RANGE_BYTES) as opened:
            _extract(opened, member, target, talk)
        return target, False
    # The server gives the archive only as a whole. It is put together by the server, so every answer may differ, and
    # only a digest of the member could tell whether two halves fit together.
    part = target.with_name(target.name + ".zip.part")
    if fresh:
        part.unlink(missing_ok=True)
    reused = download_file(url, part, f"the archive of {file.name}", talk, False)
    try:
        with part.open("rb") as opened:
            _extract(opened, member, target, talk)
    finally:
        part.unlink(missing_ok=True)
        validator_path(part).unlink(missing_ok=True)
    return target, reused


def _extract(opened: Any, member: str, target: Path, talk: Talk) -> None:
    """Copy the member of this name, in whichever folder of the archive, to target."""
    temporary = target.with_name(target.name + ".member")
    try:
        file = temporary.open("wb")
    except OSError as error:
        raise cache_error(error) from error
    try:
        with file, zipfile.ZipFile(opened) as archive:
            found = [info for info in archive.infolist() if info.filename.rpartition("/")[2] == member]
            if len(found) != 1:
                raise FetchError(f"the archive holds {len(found) or 'no'} files called {member}")
            done = 0
            with archive.open(found[0]) as stored:
                while chunk := stored.read(CHUNK_BYTES):
                    _write(file, chunk)
                    done += len(chunk)
                    talk.show_progress(member, done, found[0].file_size)
    except BAD_ZIP as error:
        temporary.unlink(missing_ok=True)
        raise FetchError(f"not a usable zip ({first_sentence(error)})") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(target)


def _write(file: Any, chunk: bytes) -> None:
    """Write at once, so that a full cache is not taken for a fault of the archive."""
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        raise cache_error(error) from error


# Google Drive


def _fetch_drive(source: DownloadSource, file: RemoteFile, target: Path, talk: Talk, fresh: bool) -> tuple[Path, bool]:
    import gdown
    import requests

    talk.check_stop()
    # In a folder of its own, since gdown names its unfinished file itself.
    folder = target.parent / "drive"
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    reused = any(folder.iterdir())
    common: dict[str, Any] = {"quiet": True, "use_cookies": False, "timeout": TIMEOUT_SECONDS}
    try:
        number = source.facts.get("id")
        if number is None:
            listed: Any = gdown.download_folder(id=source.facts["folder"], skip_download=True, **common)
            name = source.facts.get("file", file.name)
            numbers = [item.id for item in listed if Path(item.path).name == name]
            if len(numbers) != 1:
                raise FetchError(f"the folder holds {len(numbers) or 'no'} files called {name}")
            number = numbers[0]
        gdown.download(
            id=number,
            output=str(folder / file.name),
            resume=True,
            retries=ATTEMPTS - 1,
            progress=lambda done, total: talk.show_progress(file.name, done, total),
            **common,
        )
    except (FetchError, InterruptedRunError):
        raise
    except requests.RequestException as error:
        raise FetchError(request_reason(error)) from error
    except OSError:
        raise
    except Exception as error:  # gdown's own, and whatever a changed page makes its parser raise
        raise FetchError(_drive_reason(error)) from error
    (folder / file.name).replace(target)
    shutil.rmtree(folder, ignore_errors=True)
    return target, reused


def _drive_reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "Too many users" in text or "many accesses" in text or "quota" in text.lower():
        return "over its quota, or no longer public"
    return text[:200] or type(error).__name__


FETCHERS = {"hub": _fetch_hub, "https": _fetch_https, "zip": _fetch_zip, "drive": _fetch_drive}
