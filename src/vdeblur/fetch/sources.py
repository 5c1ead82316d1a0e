"""Files from their authors' servers, complete and verified.

A source is a file on the Hub, at an https address, in a zip at an https address, on Google Drive (in a public folder,
by its id, or in a zip with an id), or one that must be downloaded by hand. FETCHERS has a function for each kind but
the last, "manual". `fetch` tries a file's sources in order and returns the first file that passes verification.
Interrupted downloads resume.
"""

import contextlib
import hashlib
import io
import lzma
import os
import re
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
from vdeblur.fetch.drive import download_drive
from vdeblur.fetch.http import (
    CHUNK_BYTES,
    LARGEST_BYTES,
    RANGE_BYTES,
    DigestError,
    FetchError,
    RangeFile,
    download_file,
    first_sentence,
    validator_path,
)
from vdeblur.files import cache_error, cache_folder, fresh_file, hub_folder, locked

ROUNDED, SPARE_BYTES = 2, 16 << 20  # sizes in weights.toml are rounded, some to 10 MB
DIGESTS = {"sha256": 64, "sha256_prefix": 8, "git_blob_sha1": 40}  # kinds of pins and their hex digits
# What zipfile raises for archives that are damaged, encrypted, forged, or compressed by an unknown method.
BAD_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(ValueError, OverflowError, EOFError, RuntimeError, OSError),
)


@dataclass(frozen=True)
class DownloadSource:
    """A source of a file: its kind, a key of FETCHERS or "manual", and the other keys of its table in weights.toml."""

    kind: str
    facts: dict[str, str]

    @property
    def place(self) -> str:
        """Return the address to show."""
        if self.kind == "hub":
            endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
            return f"{endpoint}/{self.facts['repo']}"
        if self.kind == "drive":
            folder = self.facts.get("folder")
            return f"https://drive.google.com/{'drive/folders/' + folder if folder else 'uc?id=' + self.facts['id']}"
        return self.facts.get("url") or self.facts.get("page") or ""


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch: its name, its sources, and what is known of its content.

    pins: digests by kind (DIGESTS), hex. size: bytes, if known exactly; megabytes: about so many. remembered: the pin
    is the digest of the first download, because nobody published one.
    """

    name: str
    sources: tuple[DownloadSource, ...]
    pins: dict[str, str] = field(default_factory=dict)
    size: int | None = None
    remembered: bool = False
    megabytes: float | None = None

    @property
    def most_bytes(self) -> int:
        """Return how many bytes the file has at most: whoever sends more does not send this file."""
        if self.size is not None:
            return self.size
        return LARGEST_BYTES if self.megabytes is None else round(ROUNDED * self.megabytes * 1e6) + SPARE_BYTES

    @property
    def page(self) -> str:
        """Return the page from which to download the file by hand."""
        by_hand = [source for source in self.sources if source.kind == "manual"]
        return (by_hand or list(self.sources))[0].place if self.sources else ""


@dataclass(frozen=True)
class Fetched:
    """A verified file: its path, the address it came from, and its digests by kind."""

    path: Path
    place: str
    digests: dict[str, str]


def digests(path: Path) -> dict[str, str]:
    """Compute a file's digests by kind."""
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
            blob.update(chunk)
    full = sha256.hexdigest()
    return {"sha256": full, "sha256_prefix": full[:8], "git_blob_sha1": blob.hexdigest()}


def verify_file(path: Path, file: RemoteFile) -> dict[str, str]:
    """Compare a file with its pins and size; return its digests.

    Raises: DigestError if they differ, or the file is a web page or a Git LFS pointer.
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
            fault = "has changed since it was first fetched" if file.remembered else "is not the published file"
            raise DigestError(f"{file.name} {fault}: its {kind} is {found[kind]} instead of {wanted}")
    return found


def text_kind(head: bytes) -> str:
    """Return what servers send instead of weights if a file begins with `head`; empty for anything else."""
    head = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.lower().startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (the address of the file, not its content)"
    if b"\0" in head:
        return ""
    if head.startswith(b"<"):
        return "a page of XML"
    return "a page of JSON" if re.match(rb'\{\s*["}]|\[\s*["{\]]', head) else ""


def fetch(
    file: RemoteFile, folder: Path, talk: Talk, announce: Callable[[DownloadSource], None] = lambda source: None
) -> Fetched:
    """Fetch a file from its first working source, verified, into folder or the Hub's cache.

    announce: called with each source before it is tried.
    Raises: FetchError with the reason of each source; InterruptedRunError if a signal arrived.
    """
    target = folder / file.name
    reasons = []
    try:
        if target.is_file() and file.pins:  # complete, from a process that stopped before it used the file
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
    """Fetch and verify; if a cached or resumed file is wrong, fetch it again from the start."""
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
    """Return the https address of a file of a data set on the Hub, which supports ranges."""
    import huggingface_hub

    return huggingface_hub.hf_hub_url(repo, file, repo_type="dataset", revision=revision)


def _fetch_hub(source: DownloadSource, file: RemoteFile, target: Path, talk: Talk, fresh: bool) -> tuple[Path, bool]:
    """Fetch from the Hub, whose library has a cache, locks and resuming of its own."""
    import huggingface_hub
    from huggingface_hub.utils import logging as hub_logging

    talk.check_stop()
    hub_logging.set_verbosity_error()  # hides its warnings of retries; the final error is reported below
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
    talk.check_stop()  # in the library's threads, exceptions get lost
    return Path(path), not fresh


def _progress_class(name: str, talk: Talk) -> Any:
    """Return a progress bar for huggingface_hub that reports to talk."""
    from tqdm import tqdm

    class Progress(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.done = int(kwargs.get("initial") or 0)
            self.size = kwargs.get("total")
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.done += int(n or 0)
            talk.show_progress(name, self.done, self.size)
            return None

        # Overridden so that the library's Xet downloads do not count bytes twice.
        def update_transfer(self, n: float) -> None:
            pass

        def set_transfer_postfix_str(self, *args: Any, **kwargs: Any) -> None:
            pass

    return Progress


def _fetch_https(source: DownloadSource, file: RemoteFile, target: Path, talk: Talk, fresh: bool) -> tuple[Path, bool]:
    """Fetch from an https address."""
    part = target.with_name(target.name + ".part")
    if fresh:
        part.unlink(missing_ok=True)
    reused = download_file(source.facts["url"], part, file.name, talk, bool(file.pins), file.size, file.most_bytes)
    part.replace(target)
    validator_path(part).unlink(missing_ok=True)
    return target, reused


def _fetch_zip(source: DownloadSource, file: RemoteFile, target: Path, talk: Talk, fresh: bool) -> tuple[Path, bool]:
    """Fetch one member of a zip, alone if the server supports ranges."""
    url = source.facts["url"]
    member = source.facts.get("member", file.name)
    remote = RangeFile.open_url(url, file.name, talk)
    if remote is not None:
        with contextlib.closing(remote), io.BufferedReader(remote, RANGE_BYTES) as opened:
            _extract(opened, member, target, file.most_bytes, talk)
        return target, False
    # The server sends only the complete archive. It may build the archive anew for each request, and the digest of a
    # member does not show whether two halves of the archive fit together.
    part = target.with_name(target.name + ".zip.part")
    if fresh:
        part.unlink(missing_ok=True)
    reused = download_file(url, part, f"the archive of {file.name}", talk, False)
    try:
        with part.open("rb") as opened:
            _extract(opened, member, target, file.most_bytes, talk)
    finally:
        part.unlink(missing_ok=True)
        validator_path(part).unlink(missing_ok=True)
    return target, reused


def _extract(opened: Any, member: str, target: Path, most_bytes: int, talk: Talk) -> None:
    """Copy the member of this name, in any folder of the archive, to target; refuse more than most_bytes."""
    draft = target.with_name(target.name + ".member")
    try:
        file = fresh_file(draft)
    except OSError as error:
        raise cache_error(error) from error
    try:
        with file, zipfile.ZipFile(opened) as archive:
            found = [info for info in archive.infolist() if info.filename.rpartition("/")[2] == member]
            if len(found) != 1:
                raise FetchError(f"the archive holds {len(found) or 'no'} files called {member}")
            if found[0].file_size > most_bytes:  # zipfile unpacks no more than this size
                raise FetchError(
                    f"{member} in the archive has {found[0].file_size} bytes, and at most {most_bytes} fit"
                )
            done = 0
            with archive.open(found[0]) as stored:
                while chunk := stored.read(CHUNK_BYTES):
                    _write(file, chunk)
                    done += len(chunk)
                    talk.show_progress(member, done, found[0].file_size)
    except BAD_ZIP as error:
        draft.unlink(missing_ok=True)
        raise FetchError(f"not a usable zip ({first_sentence(error)})") from error
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    draft.replace(target)


def _write(file: Any, chunk: bytes) -> None:
    """Write without buffering, so that a full disk is not mistaken for a damaged archive."""
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        raise cache_error(error) from error


def kept_archive(source: DownloadSource) -> Path:
    """Return where the archive of a source of kind `drive` with a `member` is kept, for its other members."""
    return cache_folder() / "downloads" / "archives" / source.facts["id"] / "archive.zip"


def _fetch_drive(source: DownloadSource, file: RemoteFile, target: Path, talk: Talk, fresh: bool) -> tuple[Path, bool]:
    """Fetch from a public Google Drive folder, or a file by its id, or one member of a zip by the zip's id.

    Drive sends only complete files, so a zip is kept: other weights in it then need no download.
    """
    member = source.facts.get("member")
    if member is None:
        return target, download_drive(source.facts, target, file.name, file.most_bytes, talk, fresh)
    archive = kept_archive(source)
    with locked(archive.with_suffix(".lock"), talk):
        kept = archive.is_file() and not fresh
        if not kept:
            download_drive(source.facts, archive, f"the archive of {file.name}", LARGEST_BYTES, talk, fresh)
        try:
            with archive.open("rb") as opened:
                _extract(opened, member, target, file.most_bytes, talk)
            return target, kept
        except FetchError:
            archive.unlink(missing_ok=True)
            if not kept:
                raise
    return _fetch_drive(source, file, target, talk, fresh=True)  # the kept archive was damaged, or an older one


FETCHERS = {"hub": _fetch_hub, "https": _fetch_https, "zip": _fetch_zip, "drive": _fetch_drive}
