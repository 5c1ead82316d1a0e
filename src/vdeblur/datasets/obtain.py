"""Download a split of a known data set into the cache; of large zips only the members needed.

From a zip on a server that supports ranges only these members are read, and each is checked by its CRC-32. Other
archives are downloaded, verified by their digest if there is one, unpacked, and removed. Files that exist already are
not downloaded again.
"""

import contextlib
import fnmatch
import io
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from vdeblur import files
from vdeblur.datasets.known import Archive, KnownSet, Origin
from vdeblur.errors import ModelError, OutputError
from vdeblur.events import Talk
from vdeblur.fetch import http, sources
from vdeblur.fetch.http import FetchError
from vdeblur.fetch.sources import DownloadSource, RemoteFile

READ_BYTES = 8 << 20  # per request to a zip on its server: several pictures
SPARE = 1.02  # times the room that members need, since file systems round up
LARGEST_MEMBER = 500_000_000  # bytes; a PNG of 8K with 16 bits has at most 200 MB
ATTEMPTS = 3  # per member, if it arrives damaged
BAD_TAR = (tarfile.TarError, zlib.error, EOFError, OSError)


def obtain_split(known: KnownSet, split: str, blur: str, talk: Talk) -> Path:
    """Return the folder of a split of a set; download the split if it is not in the cache.

    blur: the kind of blurry pictures; only a set's first origin has other kinds than "blur".

    Raises: ModelError if it cannot be downloaded, with what to do by hand; OutputError if there is no room.
    """
    folder = files.cache_folder() / "datasets" / known.name
    origins = [origin for origin in known.sources if split in origin.splits][: None if blur == "blur" else 1]
    if split not in known.splits or (known.sources and not origins):
        raise ModelError(f"{known.title} has no split {split!r}", f"choose from {', '.join(known.splits)}")
    if not origins:
        raise ModelError(f"{known.title} cannot be downloaded automatically", _by_hand(known))
    with files.locked(folder / ".lock", talk):
        for number, _ in enumerate(origins):
            if _mark(folder, split, number).is_file():
                return folder / str(number)
        if talk.is_offline:
            raise ModelError(f"{known.title} is not in the cache, and the network is off", _by_hand(known))
        reasons: list[str] = []
        for number, origin in enumerate(origins):
            try:
                _ask_for_unpinned(known, origin, talk)
                for archive in origin.archives:
                    _unpack(known, split, origin, archive, folder / str(number), talk)
            except ModelError as error:
                if not isinstance(error, FetchError) and not reasons:
                    raise
                reasons.append(error.message)
                continue
            _mark(folder, split, number).touch()
            talk.notify("dataset_done", {"dataset": known.title, "split": split, "path": str(folder / str(number))})
            return folder / str(number)
    raise ModelError(f"{known.title} could not be downloaded: {'; '.join(reasons)}", _by_hand(known))


def _mark(folder: Path, split: str, number: int) -> Path:
    """Return the file that marks a split as complete."""
    return folder / f"{number}-{split}.whole"


def _by_hand(known: KnownSet) -> str:
    name = known.name.partition("-")[0]
    return f"download it from {known.page}, then: vdeblur bench --dataset {name} --data FOLDER"


def _ask_for_unpinned(known: KnownSet, origin: Origin, talk: Talk) -> None:
    """Ask the user to accept archives whose authors published no digest.

    Raises: ModelError if nobody accepts them.
    """
    unpinned = [archive for archive in origin.archives if not archive.pinned]
    if not unpinned or talk.yes:
        return
    places = " and ".join(_source_of(archive).place + _size_in_words(archive) for archive in unpinned)
    text = f"{known.title} from {places}, licence {known.license}: its authors published no digest to verify it with"
    if talk.ask is None:
        raise ModelError(text, "to accept it: --yes")
    if not talk.ask(f"{text}. Download it?"):
        raise ModelError(f"{known.title} was not downloaded", _by_hand(known))


def _size_in_words(archive: Archive) -> str:
    return f" (about {archive.megabytes / 1000:.1f} GB)" if archive.megabytes else ""


def _unpack(known: KnownSet, split: str, origin: Origin, archive: Archive, folder: Path, talk: Talk) -> None:
    """Unpack the members of an archive that the split needs into a folder."""
    source = _source_of(archive)
    facts = {"dataset": known.title, "split": split, "file": archive.name, "source": source.place}
    facts["license"] = known.license
    verification = "pinned" if archive.pinned else "unpinned"
    talk.notify("dataset_download", {**facts, "megabytes": archive.megabytes, "verification": verification})
    patterns = [origin.members.format(split=split, sequence=name) for name in known.splits[split]]

    def is_wanted(name: str) -> bool:
        return any(fnmatch.fnmatchcase(f"/{name}", f"/{pattern}") for pattern in patterns)

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cache_error(error) from error
    if archive.name.endswith(".zip") and source.kind == "https":
        remote = http.RangeFile.open_url(source.facts["url"], archive.name, talk)
        if remote is not None:
            with contextlib.closing(remote), io.BufferedReader(remote, READ_BYTES) as opened:
                _unpack_zip(opened, archive.name, is_wanted, folder, talk)
            return
    with _downloaded(archive, source, folder, talk) as path, path.open("rb") as file:
        unpack = _unpack_zip if archive.name.endswith(".zip") else _unpack_tar
        unpack(file, archive.name, is_wanted, folder, talk)


def _source_of(archive: Archive) -> DownloadSource:
    if archive.drive:
        return DownloadSource("drive", {"id": archive.drive})
    if archive.folder:
        return DownloadSource("drive", {"folder": archive.folder, "file": archive.file})
    url = archive.url or sources.hub_address(archive.repo, archive.revision, archive.file)
    return DownloadSource("https", {"url": url})


@contextlib.contextmanager
def _downloaded(archive: Archive, source: DownloadSource, folder: Path, talk: Talk) -> Iterator[Path]:
    """Download an archive, verified if there is a digest, and remove it at the end."""
    begun = [folder / "archives" / f"{archive.name}{end}" for end in ("", ".part")]
    size = _bytes_at(source, archive, talk) - sum(path.stat().st_size for path in begun if path.is_file())
    # A tar stays on the disk while it is unpacked, and its pictures take about as much room again. Of a zip, only the
    # archive counts here; _unpack_zip checks the room for its members.
    _check_room(folder, size if archive.name.endswith(".zip") else 2 * size, archive.name)
    pins = {"sha256": archive.sha256} if archive.sha256 else {}
    remote = RemoteFile(archive.name, (source,), pins, megabytes=archive.megabytes)
    path = sources.fetch(remote, folder / "archives", talk).path
    yield path
    path.unlink()


def _bytes_at(source: DownloadSource, archive: Archive, talk: Talk) -> int:
    """Return an archive's bytes according to its server, else to datasets.toml; 0 if neither knows."""
    if source.kind == "https":
        with contextlib.suppress(FetchError):  # the download itself raises it again
            remote = http.RangeFile.open_url(source.facts["url"], archive.name, talk)
            if remote is not None:
                with contextlib.closing(remote):
                    return remote.size
    return round((archive.megabytes or 0) * 1e6)


def _check_room(folder: Path, needed_bytes: int, name: str) -> None:
    """Check that the folder has room for the file of this name.

    Raises: OutputError if it is too little.
    """
    free = shutil.disk_usage(folder).free
    if needed_bytes * SPARE > free:
        raise OutputError(
            f"{name} needs {needed_bytes / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free",
            "free some space, or set VDEBLUR_CACHE to another folder",
        )


def _unpack_zip(opened: Any, name: str, is_wanted: Callable[[str], bool], folder: Path, talk: Talk) -> None:
    """Copy the wanted members that are missing in the folder out of an open zip, in the zip's order.

    Raises: FetchError if the archive cannot be read, or has none of them.
    """
    try:
        archive = zipfile.ZipFile(opened)
        wanted = [info for info in archive.infolist() if not info.is_dir() and is_wanted(info.filename)]
    except sources.BAD_ZIP as error:
        raise FetchError(f"{name} is not a usable zip ({error})") from error
    if not wanted:
        raise FetchError(f"{name} holds none of the files needed")
    _check_members([info.file_size for info in wanted], name)
    absent = [info for info in wanted if not _is_complete(_target(folder, info.filename), info.file_size)]
    total = sum(info.file_size for info in absent)
    _check_room(folder, total, f"the part needed of {name}")
    done = 0
    for info in sorted(absent, key=lambda info: info.header_offset):
        data = _read_member(archive, info, name, talk)
        _write(_target(folder, info.filename), data)
        done += len(data)
        talk.show_progress(name, done, total)


def _check_members(sizes: list[int], name: str) -> None:
    """Refuse members that are far larger than pictures are: a forged archive could unpack to any size.

    Raises: FetchError.
    """
    if max(sizes) > LARGEST_MEMBER:
        raise FetchError(f"{name} holds a picture of {max(sizes) / 1e6:.0f} MB, which none of this data set has")


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, talk: Talk) -> bytes:
    """Read one member, some megabytes at most, checked by its CRC-32; retry if it arrives damaged."""
    for attempt in range(ATTEMPTS):
        talk.check_stop()
        try:
            return archive.read(info)
        except sources.BAD_ZIP as error:
            if attempt == ATTEMPTS - 1:
                raise FetchError(f"{name} is not a usable zip ({error})") from error
            _forget_buffered(archive)
    raise AssertionError


def _forget_buffered(archive: zipfile.ZipFile) -> None:
    """Make the next read ask the server again: seeking within the buffer would return the same bytes."""
    assert archive.fp is not None
    archive.fp.seek(0)
    archive.fp.read(1)


def _unpack_tar(opened: Any, name: str, is_wanted: Callable[[str], bool], folder: Path, talk: Talk) -> None:
    """Copy the wanted members out of an open, compressed tar.

    Raises: FetchError if the archive cannot be read, or has none of them.
    """
    found = 0
    try:
        with tarfile.open(fileobj=opened, mode="r|*") as archive:
            for info in archive:
                talk.check_stop()
                if is_wanted(info.name):
                    _check_members([info.size], name)
                stored = archive.extractfile(info) if info.isfile() and is_wanted(info.name) else None
                if stored is not None:
                    found += 1
                    _write(_target(folder, info.name), stored.read())
    except BAD_TAR as error:
        raise FetchError(f"{name} is not a usable tar ({error})") from error
    if not found:
        raise FetchError(f"{name} holds none of the files needed")


def _target(folder: Path, member: str) -> Path:
    """Return the path of a member in the folder.

    Raises: FetchError for names that lead out of the folder.
    """
    path = PurePosixPath(member.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise FetchError(f"the archive has a member called {member}")
    return folder / path


def _is_complete(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _write(path: Path, data: bytes) -> None:
    """Write a file; it appears complete or not at all.

    Raises: OutputError if it cannot be written.
    """
    try:
        files.write_whole(path, data)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}", "free some space in the cache") from error
