"""Downloads from every kind of source: interrupted, refused, changed, concurrent and offline."""

import hashlib
import io
import lzma
import multiprocessing
import random
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import FOLDER, QUOTA, Place, Server, lead_here, serving
from vdeblur import files
from vdeblur.errors import ExitStatus, InterruptedRunError, ModelError
from vdeblur.events import Talk
from vdeblur.fetch import http
from vdeblur.fetch.http import FetchError
from vdeblur.fetch.sources import DownloadSource, RemoteFile, fetch

DATA = random.Random(0).randbytes(700_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
BLOB = hashlib.sha1(b"blob %d\0" % len(DATA) + DATA).hexdigest()
DRIVE_ID = "file-0123456789-0123456789-01"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(http, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(http, "CHUNK_BYTES", 10_000)  # the most that a broken connection can lose
    with serving() as running:
        yield running


@pytest.fixture
def drive(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Send requests for Google to the test server."""
    lead_here(monkeypatch, server)
    # gdown waits two seconds and more before it tries again.
    import gdown

    monkeypatch.setattr(sys.modules[gdown.download.__module__], "_wait_or_cancel", lambda **_: None)
    return server


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Point huggingface_hub to the test server, as HF_ENDPOINT would."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url + "/hub")
    template = server.url + "/hub/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    return server


def https(server: Server, **known) -> RemoteFile:
    return RemoteFile("net.pth", (DownloadSource("https", {"url": f"{server.url}/net.pth"}),), **known)


PINNED = {"pins": {"sha256": SHA256}}


@pytest.mark.parametrize("pins", [{}, {"sha256": SHA256}, {"sha256_prefix": SHA256[:8]}, {"git_blob_sha1": BLOB}])
def test_a_complete_file(server: Server, tmp_path: Path, pins: dict[str, str]) -> None:
    server.places["/net.pth"] = Place(DATA)
    fetched = fetch(https(server, pins=pins, size=len(DATA)), tmp_path, Talk())
    assert fetched.path.read_bytes() == DATA
    assert fetched.digests == {"sha256": SHA256, "sha256_prefix": SHA256[:8], "git_blob_sha1": BLOB}
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["net.pth"]


@pytest.mark.parametrize("known", [PINNED, {}])
def test_broken_connections_resume(server: Server, tmp_path: Path, known: dict) -> None:
    server.places["/net.pth"] = Place(DATA, drop_after=[300_000, 200_000], etag='"one"')
    assert fetch(https(server, **known), tmp_path, Talk()).path.read_bytes() == DATA
    assert server.ranges == ["bytes=300000-", "bytes=500000-"]
    assert server.sent == len(DATA)


def test_a_stopped_download_resumes_later(server: Server, tmp_path: Path) -> None:
    server.places["/net.pth"] = Place(DATA, etag='"one"')
    seen: list[dict] = []

    def stop() -> ExitStatus | None:
        return ExitStatus.INTERRUPTED if seen else None

    with pytest.raises(InterruptedRunError):
        fetch(https(server), tmp_path, Talk(stop=stop, notify=lambda event, facts: seen.append(facts)))
    have = (tmp_path / "net.pth.part").stat().st_size
    assert 0 < have < len(DATA)
    assert fetch(https(server), tmp_path, Talk()).path.read_bytes() == DATA
    assert server.ranges == [f"bytes={have}-"]


def test_a_changed_file_starts_from_the_beginning(server: Server, tmp_path: Path) -> None:
    server.places["/net.pth"] = Place(DATA[::-1], drop_after=[300_000], etag='"one"')
    with pytest.raises(InterruptedRunError):
        fetch(https(server), tmp_path, Talk(stop=lambda: ExitStatus.TERMINATED if server.sent else None))
    server.places["/net.pth"] = Place(DATA, etag='"two"')
    assert fetch(https(server), tmp_path, Talk()).path.read_bytes() == DATA


def test_an_old_part_of_another_file_does_not_spoil_a_pinned_one(server: Server, tmp_path: Path) -> None:
    (tmp_path / "net.pth.part").write_bytes(b"x" * 1000)
    server.places["/net.pth"] = Place(DATA)
    assert fetch(https(server, **PINNED), tmp_path, Talk()).path.read_bytes() == DATA
    assert server.ranges == ["bytes=1000-"]


def test_a_server_without_ranges(server: Server, tmp_path: Path) -> None:
    server.places["/net.pth"] = Place(DATA, drop_after=[300_000], ranges=False)
    assert fetch(https(server, **PINNED), tmp_path, Talk()).path.read_bytes() == DATA


def test_a_connection_that_always_breaks(server: Server, tmp_path: Path) -> None:
    server.places["/net.pth"] = Place(DATA, drop_after=[0] * 50)
    with pytest.raises(FetchError, match=r"could not be fetched: 127.0.0.1: the connection broke"):
        fetch(https(server, **PINNED), tmp_path, Talk())
    assert server.asked["GET /net.pth"] == http.ATTEMPTS


def test_a_file_that_always_breaks_and_cannot_resume(server: Server, tmp_path: Path) -> None:
    server.places["/net.pth"] = Place(DATA, drop_after=[300_000] * 100_000)
    with pytest.raises(FetchError, match="could not be fetched"):
        fetch(https(server), tmp_path, Talk())
    assert server.asked["GET /net.pth"] == http.ATTEMPTS
    server.places["/all.zip"] = Place(archive(), ranges=False, drop_after=[300_000] * 100_000)
    with pytest.raises(FetchError, match="could not be fetched"):
        fetch(zipped(server), tmp_path, Talk())
    assert server.asked["GET /all.zip"] == 1 + http.ATTEMPTS, "one to see whether it answers ranges"


def test_a_server_that_sends_a_crumb_each_time(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "ATTEMPTS_ALTOGETHER", 12)
    server.places["/net.pth"] = Place(DATA, drop_after=[10_000] * 100_000)
    with pytest.raises(FetchError, match="could not be fetched"):
        fetch(https(server, **PINNED), tmp_path, Talk())
    assert server.asked["GET /net.pth"] == 12


def faulty(kind: str, server: Server) -> RemoteFile:
    server.places["/net.pth"] = {
        "digest": Place(DATA[::-1]),
        "size": Place(DATA[:-1]),
        "404": Place(status=404),
        "503": Place(status=503),
        "page": Place(QUOTA.encode(), kind="text/html"),
        "page in disguise": Place(b"\n<!DOCTYPE html><html>" + DATA),
    }[kind]
    return https(server, size=len(DATA), **PINNED) if kind == "size" else https(server, **PINNED)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("digest", "is not the published file: its sha256 is"),
        ("size", "offers 699999 bytes instead of 700000"),
        ("404", "404 Not Found"),
        ("503", "503 Service Unavailable"),
        ("page", "a web page instead of the file"),
        ("page in disguise", "is a web page, not the file"),
    ],
)
def test_a_wrong_file_is_refused(server: Server, tmp_path: Path, kind: str, words: str) -> None:
    with pytest.raises(FetchError, match=words) as caught:
        fetch(faulty(kind, server), tmp_path, Talk())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "net.pth").exists()
    assert server.asked["GET /net.pth"] == (http.ATTEMPTS if kind == "503" else 1)


@pytest.mark.parametrize("kind", ["digest", "404", "page"])
def test_the_next_source_is_tried(server: Server, tmp_path: Path, kind: str) -> None:
    first = faulty(kind, server).sources[0]
    server.places["/mirror"] = Place(DATA)
    both = RemoteFile("net.pth", (first, DownloadSource("https", {"url": f"{server.url}/mirror"})), **PINNED)
    assert fetch(both, tmp_path, Talk()).path.read_bytes() == DATA


def test_an_unreachable_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "WAIT_SECONDS", 0.01)
    with serving() as gone:
        remote = https(gone)
    with pytest.raises(FetchError, match=r"127.0.0.1: cannot be reached"):
        fetch(remote, tmp_path, Talk())


def archive() -> bytes:
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as made:
        made.writestr("weights/other.pth", random.Random(1).randbytes(6_000_000))
        made.writestr("weights/net.pth", DATA)
    return stored.getvalue()


def zipped(server: Server, name: str = "net.pth", **known) -> RemoteFile:
    return RemoteFile(name, (DownloadSource("zip", {"url": f"{server.url}/all.zip"}),), **known)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_member_of_a_zip(server: Server, tmp_path: Path, ranges: bool) -> None:
    data = archive()
    server.places["/all.zip"] = Place(data, ranges=ranges, drop_after=[] if ranges else [0, 400_000])
    assert fetch(zipped(server), tmp_path, Talk()).path.read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["net.pth"]
    if ranges:
        assert server.sent < 3_000_000, "only the directory and the member are read"
    with pytest.raises(FetchError, match=r"the archive holds no files called absent.pth"):
        fetch(zipped(server, "absent.pth"), tmp_path, Talk())


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_is_not_a_zip(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.places["/all.zip"] = Place(archive()[:-30], ranges=ranges)
    with pytest.raises(FetchError, match="not a usable zip"):
        fetch(zipped(server), tmp_path, Talk())
    assert not list(tmp_path.glob("*"))


def spoilt_zips() -> dict[str, bytes]:
    """Return archives for which the reader raises different kinds of errors."""

    def made(method: int, spoil: bool = True) -> bytearray:
        stored = io.BytesIO()
        with zipfile.ZipFile(stored, "w", method) as archive:
            archive.writestr("net.pth", DATA[:5000] + bytes(20_000))
        damaged = bytearray(stored.getvalue())
        if spoil:
            damaged[60:400] = b"\xff" * 340
        return damaged

    before = made(zipfile.ZIP_STORED, spoil=False)
    end = before.rfind(b"PK\x05\x06")
    before[end + 12 : end + 16] = (len(before) * 2).to_bytes(4, "little")  # its directory would begin before the file
    extra = made(zipfile.ZIP_STORED, spoil=False)
    entry = extra.rfind(b"PK\x01\x02")
    extra[entry + 42 : entry + 46] = b"\xf0\xff\xff\xff"  # the member lies beyond the end
    encrypted = made(zipfile.ZIP_STORED, spoil=False)
    encrypted[encrypted.rfind(b"PK\x01\x02") + 8] |= 1
    encrypted[6] |= 1
    return {
        "deflate": bytes(made(zipfile.ZIP_DEFLATED)),
        "lzma": bytes(made(zipfile.ZIP_LZMA)),
        "bzip2": bytes(made(zipfile.ZIP_BZIP2)),
        "crc": bytes(made(zipfile.ZIP_STORED)),
        "directory before the file": bytes(before),
        "member beyond the end": bytes(extra),
        "encrypted": bytes(encrypted),
    }


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("kind", spoilt_zips())
def test_a_damaged_zip_is_no_internal_error_and_the_next_source_is_tried(
    server: Server, tmp_path: Path, kind: str, ranges: bool
) -> None:
    server.places["/all.zip"] = Place(spoilt_zips()[kind], ranges=ranges)
    with pytest.raises(FetchError, match="not a usable zip"):
        fetch(zipped(server), tmp_path, Talk())
    assert not list(tmp_path.glob("*"))
    server.places["/net.pth"] = Place(DATA)
    both = RemoteFile("net.pth", (zipped(server).sources[0], https(server).sources[0]))
    assert fetch(both, tmp_path, Talk()).path.read_bytes() == DATA


@pytest.mark.parametrize("error", [ValueError, zlib.error, lzma.LZMAError, struct.error, OSError, OverflowError])
def test_every_error_of_the_zip_reader_is_reported_as_a_damaged_zip(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def spoilt(self, size: int = -1) -> bytes:
        raise error("Raw stream returned invalid position")

    server.places["/all.zip"] = Place(archive())
    monkeypatch.setattr(zipfile.ZipExtFile, "read", spoilt)
    with pytest.raises(FetchError, match="not a usable zip"):
        fetch(zipped(server), tmp_path, Talk())


def test_a_full_disk_is_not_reported_as_a_damaged_zip(server: Server, tmp_path: Path) -> None:
    server.places["/all.zip"] = Place(archive())
    (tmp_path / "net.pth.member").mkdir()
    with pytest.raises(ModelError, match=r"the cache .* cannot be used"):
        fetch(zipped(server), tmp_path, Talk())


def on_drive(name: str = "net.pth", **known) -> RemoteFile:
    return RemoteFile(name, (DownloadSource("drive", {"folder": FOLDER}),), **known)


def test_a_file_in_a_drive_folder(drive: Server, tmp_path: Path) -> None:
    drive.drive = {"net.pth": DRIVE_ID, "other.pth": DRIVE_ID + "2"}
    drive.places[DRIVE_ID] = Place(DATA, drop_after=[600_000])
    assert fetch(on_drive(), tmp_path, Talk()).path.read_bytes() == DATA
    assert drive.ranges[0] != "bytes=0-", "gone on with, not begun anew"
    with pytest.raises(FetchError, match=r"the folder holds no files called absent.pth"):
        fetch(on_drive("absent.pth"), tmp_path, Talk())


def test_a_drive_that_refuses(drive: Server, tmp_path: Path) -> None:
    drive.drive = {"net.pth": DRIVE_ID}
    drive.places[DRIVE_ID] = Place(QUOTA.encode(), kind="text/html")
    with pytest.raises(FetchError, match=r"drive.google.com: over its quota, or no longer public"):
        fetch(on_drive(), tmp_path, Talk())
    gone = RemoteFile("net.pth", (DownloadSource("drive", {"folder": FOLDER + "x"}),))
    with pytest.raises(FetchError, match="over its quota, or no longer public"):
        fetch(gone, tmp_path, Talk())
    assert not (tmp_path / "net.pth").exists()


def test_a_file_on_the_hub(hub: Server, tmp_path: Path) -> None:
    remote = RemoteFile("net.pth", (DownloadSource("hub", {"repo": "some/nets", "revision": "main"}),), **PINNED)
    hub.places["/hub/some/nets/resolve/main/net.pth"] = Place(DATA, drop_after=[])
    seen: list[dict] = []
    fetched = fetch(remote, tmp_path / "own", Talk(notify=lambda event, facts: seen.append(facts)))
    assert fetched.path.read_bytes() == DATA
    assert fetched.path.is_relative_to(tmp_path / "cache" / "hub"), "in the Hub's layout"
    assert seen[-1]["bytes"] == len(DATA)
    asked = hub.asked.total()
    again = fetch(remote, tmp_path / "own", Talk(offline=True))
    assert again.path == fetched.path
    assert hub.asked.total() == asked, "the Hub's cache serves without a network"
    fetched.path.resolve().write_bytes(b"damaged")
    assert fetch(remote, tmp_path / "own", Talk()).path.read_bytes() == DATA


def test_a_hub_without_the_file(hub: Server, tmp_path: Path) -> None:
    remote = RemoteFile("net.pth", (DownloadSource("hub", {"repo": "some/nets", "revision": "main"}),))
    with pytest.raises(FetchError, match=r"127.0.0.1|huggingface.co") as caught:
        fetch(remote, tmp_path, Talk())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("by", ["option", "variable"])
def test_offline_makes_no_requests(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    server.places["/net.pth"] = Place(DATA)
    if by == "variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchError, match="is not in the cache, and the network is off"):
        fetch(https(server), tmp_path, Talk(offline=by == "option"))
    assert not server.asked


def test_a_verified_file_left_by_a_stopped_process_is_used(server: Server, tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(DATA)
    assert fetch(https(server, **PINNED), tmp_path, Talk()).path.read_bytes() == DATA
    assert not server.asked


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelError, match=r"the cache .* cannot be used"):
        fetch(https(server), tmp_path / "file" / "folder", Talk())


def test_redirects_from_https_to_http_are_refused() -> None:
    class Answer:
        status_code, url = 200, "http://elsewhere"

    with pytest.raises(FetchError, match="not encrypted"):
        http._check_answer(Answer(), "https://here")


def _hold(lock: Path, begun, until) -> None:
    with files.locked(lock, Talk()):
        begun.set()
        until.wait()


def test_a_second_process_waits_and_can_be_stopped(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    begun, until = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "lock", begun, until), daemon=True)
    process.start()
    assert begun.wait()
    said: list[str] = []
    stop = iter([None, ExitStatus.INTERRUPTED])
    with (
        pytest.raises(InterruptedRunError),
        files.locked(tmp_path / "lock", Talk(stop=lambda: next(stop), notify=lambda event, facts: said.append(event))),
    ):
        raise AssertionError
    assert said == ["warning"]
    until.set()
    process.join()
