"""Servers that redirect, ask for passwords, never end, or send archives that unpack to any size."""

import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gdown
import pytest
import requests

from vdeblur.datasets import obtain
from vdeblur.events import Talk
from vdeblur.fetch import http, sources
from vdeblur.fetch.http import FetchError, RangeFile, download_file
from vdeblur.fetch.sources import DownloadSource, RemoteFile


class Hostile(ThreadingHTTPServer):
    """Answers /endless without an end, /ranges with parts that are too long, /to?URL with a redirect; notes headers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str]] = []  # path and Authorization
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore connections that the client breaks."""


class _Handler(BaseHTTPRequestHandler):
    server: Hostile

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.server.asked.append((path, self.headers.get("Authorization", "")))
        if path == "/to":
            self.send_response(302)
            self.send_header("Location", query)
            self.end_headers()
        elif path == "/ranges":
            self.send_response(206)
            begin, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            self.send_header("Content-Range", f"bytes {begin}-{last}/1000000")
            self.end_headers()
            self.endless()
        elif path == "/endless":
            self.send_response(200)
            self.end_headers()
            self.endless()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.files[path])))
            self.end_headers()
            self.wfile.write(self.server.files[path])

    def endless(self) -> None:
        for _ in range(10_000):  # 10 GB: a client that reads it all fails the test by its time
            self.wfile.write(bytes(1 << 20))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hostile]:
    monkeypatch.setattr(http, "WAIT_SECONDS", 0.01)
    running = Hostile()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield running
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


@pytest.mark.parametrize(("size", "most"), [(3_000_000, 200 * 10**9), (None, 3_000_000)])
def test_a_body_without_an_end(server: Hostile, tmp_path: Path, size: int | None, most: int) -> None:
    """C low: a server that sends on and on filled the disk."""
    part = tmp_path / "x.part"
    with pytest.raises(FetchError, match="more than the 3000000 bytes"):
        download_file(f"{server.url}/endless", part, "x", Talk(), pinned=True, size=size, most_bytes=most)
    assert not part.exists() or part.stat().st_size == 0


def test_a_part_without_an_end(server: Hostile) -> None:
    """C low: a part of a remote archive was read whole, however long it was."""
    file = RangeFile.open_url(f"{server.url}/ranges", "x", Talk())
    assert file is not None
    with file:
        assert file.read(1000) == bytes(1000)


def test_sizes_that_are_about_known_bound_the_download() -> None:
    """C low: the size in weights.toml, rounded, is a bound, too."""
    place = (DownloadSource("https", {"url": "https://x"}),)
    assert RemoteFile("x", place, size=5).most_bytes == 5
    assert 60e6 <= RemoteFile("x", place, megabytes=30).most_bytes <= 100e6
    assert RemoteFile("x", place).most_bytes == http.LARGEST_BYTES


# Passwords and redirects ---------------------------------------------------------------------------------------------


def test_passwords_of_netrc_stay_at_home(server: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C low: requests sends the passwords of ~/.netrc to every server it names, after redirects, too."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\ndefault login me password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.files["/file"] = b"data"
    download_file(f"{server.url}/to?{server.url}/file", tmp_path / "x.part", "x", Talk(), pinned=True)
    assert (tmp_path / "x.part").read_bytes() == b"data"
    assert [path for path, _ in server.asked] == ["/to", "/file"]
    assert {password for _, password in server.asked} == {""}
    assert requests.get(f"{server.url}/file", timeout=9) is not None
    assert server.asked[-1][1], "requests alone sends it"


def test_google_drive_gets_no_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C low: the package that reads Google Drive sent the passwords of ~/.netrc, too."""
    (tmp_path / "netrc").write_text("default login me password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert requests.utils.get_netrc_auth("https://drive.google.com")
    found: list[object] = []

    def download(output: str, **options: object) -> None:
        found.append(requests.utils.get_netrc_auth("https://drive.google.com"))
        Path(output).write_bytes(b"data")

    monkeypatch.setattr(gdown, "download", download)
    source = DownloadSource("drive", {"id": "x"})
    sources.fetch(RemoteFile("x.pth", (source,)), tmp_path / "d", Talk())
    assert found == [None]
    assert os.environ["NETRC"] == str(tmp_path / "netrc")


class _Tls(requests.adapters.BaseAdapter):
    """Answers https requests by a redirect to an address."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target

    def send(self, request: Any, *arguments: Any, **options: Any) -> requests.Response:
        answer = requests.Response()
        answer.status_code, answer.url, answer.request = 302, request.url, request
        answer.headers["Location"] = self.target
        answer.raw = io.BytesIO()
        return answer

    def close(self) -> None:
        pass


@pytest.mark.parametrize("last", ["file", "to?https://127.0.0.1:1/file"])
def test_no_request_follows_from_https_to_http(
    server: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """C low: the unencrypted request was sent first, and refused afterwards, or not at all if it led back to https."""
    make = http.new_session

    def with_tls() -> Any:
        session = make()
        session.mount("https://", _Tls(f"{server.url}/{last}"))
        return session

    monkeypatch.setattr(http, "new_session", with_tls)
    with pytest.raises(FetchError, match="not encrypted"):
        download_file("https://example.org/x", tmp_path / "x.part", "x", Talk(), pinned=True)
    with pytest.raises(FetchError, match="not encrypted"):
        RangeFile.open_url("https://example.org/x", "x", Talk())
    assert server.asked == []


# Archives ----------------------------------------------------------------------------------------------------------


def _zip(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def test_a_member_that_is_too_large(server: Hostile, tmp_path: Path) -> None:
    """C low: a zip of some kilobytes unpacked to any size."""
    server.files["/x.zip"] = _zip({"a/x.pth": bytes(50_000_000)})
    source = DownloadSource("zip", {"url": f"{server.url}/x.zip", "member": "x.pth"})
    with pytest.raises(FetchError, match="has 50000000 bytes, and at most 1000 fit"):
        sources.fetch(RemoteFile("x.pth", (source,), {"sha256": "0" * 64}, size=1000), tmp_path / "d", Talk())
    assert not list((tmp_path / "d").glob("x.pth*"))


def test_pictures_of_a_data_set_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C low: and so did the members of a data set."""
    monkeypatch.setattr(obtain, "LARGEST_MEMBER", 1000)
    zipped = io.BytesIO(_zip({"a.png": bytes(10), "b.png": bytes(2000)}))
    with pytest.raises(FetchError, match="a picture of 0 MB"):
        obtain._unpack_zip(zipped, "x.zip", lambda name: True, tmp_path, Talk())
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w:gz") as archive:
        info = tarfile.TarInfo("b.png")
        info.size = 2000
        archive.addfile(info, io.BytesIO(bytes(2000)))
    with pytest.raises(FetchError, match="a picture of 0 MB"):
        obtain._unpack_tar(io.BytesIO(tarred.getvalue()), "x.tar", lambda name: True, tmp_path, Talk())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../x.png", "/x.png", "a/../../x.png", "..\\x.png"])
def test_members_that_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    """C: names of members that lead elsewhere are refused."""
    folder = tmp_path / "d"
    folder.mkdir()
    with pytest.raises(FetchError, match="has a member called"):
        obtain._unpack_zip(io.BytesIO(_zip({name: b"x"})), "x.zip", lambda name: True, folder, Talk())
    assert not list(folder.iterdir())
    assert list(tmp_path.iterdir()) == [folder]


# Links and pipes in the cache --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", ".json"])
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_links_and_pipes_in_place_of_a_partial_download(
    server: Hostile, tmp_path: Path, ending: str, kind: str
) -> None:
    """C high 1: .part was written through a link; C low: a FIFO in the cache hung."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    part = tmp_path / "x.part"
    place = part.with_name(part.name + ending)
    place.symlink_to(victim) if kind == "link" else os.mkfifo(place)
    server.files["/file"] = b"data"
    download_file(f"{server.url}/file", part, "x", Talk(), pinned=True)
    assert victim.read_bytes() == b"precious"
    assert part.read_bytes() == b"data"


def test_a_pipe_in_place_of_a_record(vdeblur, tmp_path: Path) -> None:
    """C low: `models list`, `verify` and `show` hung at a FIFO in the cache."""
    folder = tmp_path / "cache" / "models" / "dstnet"
    folder.mkdir(parents=True)
    for name in ("gopro.json", "mine.json", "gopro.safetensors", "mine.safetensors"):
        os.mkfifo(folder / name)
    for words in (("list",), ("show", "dstnet"), ("verify",), ("remove", "dstnet")):
        result = vdeblur("models", *words)
        assert result.exit_code in (0, 5), result.output
        assert "Traceback" not in result.output


def test_google_drive_follows_no_redirect_to_http(
    server: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C low: the package that reads Google Drive followed redirects to http."""
    make = requests.sessions.Session.__init__
    usual = requests.Session.get_redirect_target

    def with_tls(session: requests.Session) -> None:
        make(session)
        session.mount("https://", _Tls(f"{server.url}/file"))

    monkeypatch.setattr(requests.sessions.Session, "__init__", with_tls)
    server.files["/file"] = b"data"
    source = DownloadSource("drive", {"id": "x"})
    with pytest.raises(FetchError, match="not encrypted"):
        sources.fetch(RemoteFile("x.pth", (source,)), tmp_path / "d", Talk())
    assert server.asked == []
    assert requests.Session.get_redirect_target is usual


@pytest.mark.parametrize("text", ["²", "9" * 5000, "-1", "1e3", ""])
def test_lengths_that_are_none(text: str) -> None:
    """B: "²" is a digit to str.isdigit, but no number to int: an internal error."""
    answer = requests.Response()
    answer.status_code = 200
    answer.headers["Content-Length"] = text
    assert http._content_range(answer) == (0, None)
    answer.status_code = 206
    answer.headers["Content-Range"] = f"bytes 0-9/{text}"
    assert http._content_range(answer) == (0, None)
