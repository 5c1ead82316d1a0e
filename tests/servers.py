"""A local server that plays the hosts of weights (the Hub, Google Drive, https), well-behaved or not."""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FOLDER = "folder-0123456789-0123456789"
QUOTA = (
    '<html><body><p class="uc-error-subcaption">Too many users have viewed or downloaded this file</p></body></html>'
)


@dataclass
class Place:
    """The file under a path, and how its server behaves.

    drop_after: the bytes after which the connection breaks, one number per request. ranges: the server supports Range.
    status: if not 200, answered instead of the file. kind: its Content-Type. until: the event that an answer waits for.
    """

    data: bytes = b""
    drop_after: list[int] = field(default_factory=list)
    ranges: bool = True
    etag: str = ""
    status: int = 200
    kind: str = "application/octet-stream"
    until: threading.Event | None = None


class Server(ThreadingHTTPServer):
    """Serves files by path: the Hub under /hub, Drive under /drive, others anywhere. Counts requests in `asked`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.places: dict[str, Place] = {}
        self.folder = FOLDER  # the Drive folder's id
        self.drive: dict[str, str] = {}  # names in the Drive folder: their paths in places
        self.asked: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore connections that the tests break."""


def lead_here(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    """Redirect requests for Google Drive and Dropbox to the server; the answers bear the original address."""
    send = requests.adapters.HTTPAdapter.send

    def redirected(self, request, **options):
        wanted = request.url
        request.url = wanted.replace("https://drive.google.com", server.url + "/drive")
        request.url = request.url.replace("https://www.dropbox.com", server.url + "/dropbox")
        answer = send(self, request, **options)
        answer.url = wanted
        return answer

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", redirected)


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        address = urlsplit(self.path)
        path, query = address.path, parse_qs(address.query)
        self.server.asked[f"{self.command} {path}"] += 1
        if path == "/drive/embeddedfolderview":
            known = query["id"] == [self.server.folder]
            return self.page(self.folder_page() if known else "", 200 if known else 404)
        headers = {}
        if path.startswith("/drive/"):
            path = query["id"][0]
            if path in self.server.places:
                headers["Content-Disposition"] = 'attachment; filename="file"'
        place = self.server.places.get(path)
        if place is None or place.status != 200:
            return self.page("<html>no</html>", place.status if place else 404)
        if place.kind == "text/html":
            return self.page(place.data.decode(), 200)
        if path.startswith("/hub/"):
            headers |= {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(place.data).hexdigest()}"'}
        self.file(place, headers, with_body)
        return None

    def page(self, text: str, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(text.encode())

    def folder_page(self) -> str:
        links = [
            f'<a href="https://drive.google.com/file/d/{number}/view">{name}</a>'
            for name, number in self.server.drive.items()
        ]
        return f"<html><head><title>weights</title></head><body>{''.join(links)}</body></html>"

    def file(self, place: Place, headers: dict[str, str], with_body: bool) -> None:
        if place.until is not None:
            place.until.wait()
        begin, end = 0, len(place.data)
        asked = self.headers.get("Range")
        fits = self.headers.get("If-Range") in (None, place.etag)
        if asked and place.ranges and fits:
            self.server.ranges.append(asked)
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last) + 1, end) if last else end
            if begin >= len(place.data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(place.data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(place.data)}")
        else:
            self.send_response(200)
        for key, value in ({"Content-Type": place.kind, "ETag": place.etag} | headers).items():
            if value:
                self.send_header(key, value)
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if not with_body:
            return
        data = place.data[begin:end]
        if place.drop_after:
            data = data[: place.drop_after.pop(0)]
            self.close_connection = True
        self.wfile.write(data)
        self.server.sent += len(data)


@contextmanager
def serving() -> Iterator[Server]:
    """Run the server in a thread."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
