"""Downloads over HTTP that resume, and remote files read in ranges."""

import contextlib
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from vdeblur.errors import ModelError
from vdeblur.events import Talk
from vdeblur.files import write_whole

CHUNK_BYTES = 1 << 18
RANGE_BYTES = 1 << 20  # per request, from a zip on its server
LARGEST_BYTES = 200 * 10**9  # of a file whose size nobody knows; the largest data set has 150 GB
TIMEOUT_SECONDS = 30.0  # without a byte
DIGITS = 18  # of a number of bytes
ATTEMPTS = 5  # in a row that bring no new bytes
ATTEMPTS_ALTOGETHER = 100  # for one file
WAIT_SECONDS = 1.0  # before the second attempt, doubled for each later one


class FetchError(ModelError):
    """A source failed; another one may work."""


class DigestError(FetchError):
    """A file is not the expected one."""


def first_sentence(error: Exception) -> str:
    """Return the first sentence of an error's text, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0].partition(". ")[0] if lines else type(error).__name__)[:200]


class _GoneError(FetchError):
    """The server refuses the file; trying again is useless."""


def download_file(
    url: str, part: Path, name: str, talk: Talk, pinned: bool, size: int | None = None, most_bytes: int = LARGEST_BYTES
) -> bool:
    """Download a file to `part` and resume an earlier download; return whether there was one.

    pinned: a digest will show if the old bytes belong to another version. Without it, they are kept only if the server
    can confirm that they still fit. size: of the file, if known exactly. most_bytes: after so many the download fails.
    Raises: FetchError; InterruptedRunError if a signal arrived.
    """
    import requests

    for path in (part, validator_path(part)):
        if path.is_symlink() or (
            path.exists() and not path.is_file()
        ):  # never written or read through a link or a FIFO
            path.unlink()
    validator = _read_validator(part, url)
    if not validator and not pinned:
        part.unlink(missing_ok=True)
    reused = part.is_file() and part.stat().st_size > 0
    most = part.stat().st_size if reused else 0
    failures = 0
    most_bytes = most_bytes if size is None else size
    with new_session() as session:
        for attempt in range(ATTEMPTS_ALTOGETHER):
            try:
                _download_rest(session, url, part, name, talk, size, most_bytes)
                return reused
            except (requests.RequestException, FetchError) as error:
                if isinstance(error, _GoneError):
                    raise
                if not pinned and not _read_validator(part, url):
                    part.unlink(missing_ok=True)
                kept = part.stat().st_size if part.is_file() else 0
                failures = 1 if kept > most else failures + 1
                most = max(most, kept)
                if failures >= ATTEMPTS or attempt == ATTEMPTS_ALTOGETHER - 1:
                    raise FetchError(request_reason(error)) from error
                _wait(WAIT_SECONDS * 2 ** (failures - 1), talk)
    raise AssertionError


def _download_rest(
    session: Any, url: str, part: Path, name: str, talk: Talk, size: int | None, most_bytes: int
) -> None:
    """Request the missing bytes once, and append them."""
    talk.check_stop()
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"}  # offsets count the file's bytes, not compressed ones
    validator = _read_validator(part, url)
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as answer:
        if answer.status_code == 416:
            if answer.headers.get("Content-Range") == f"bytes */{have}":
                return
            part.unlink(missing_ok=True)
            raise FetchError("the file on the server has changed")
        _check_answer(answer, url)
        begins, total = _content_range(answer)
        if begins not in (0, have):
            raise _GoneError("the server ignored the requested range")
        if size is not None and total is not None and total != size:
            raise _GoneError(f"the server offers {total} bytes instead of {size}")
        if total is not None and total > most_bytes:
            raise _GoneError(f"the server offers {total} bytes, and the file has at most {most_bytes}")
        _write_validator(part, url, answer)
        done = begins
        with part.open("ab" if begins else "wb") as file:
            for chunk in answer.iter_content(CHUNK_BYTES):
                done += len(chunk)
                if done > most_bytes:
                    file.truncate(0)
                    raise _GoneError(f"the server sent more than the {most_bytes} bytes that the file can have")
                file.write(chunk)
                talk.show_progress(name, done, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done != total:
        raise FetchError(f"the connection ended after {done} of {total} bytes")


def _check_answer(answer: Any, url: str) -> None:
    """Refuse errors, web pages, and redirects from https to http.

    Raises: FetchError.
    """
    if answer.status_code >= 400:
        error = _GoneError if answer.status_code < 500 and answer.status_code not in (408, 429) else FetchError
        raise error(f"{answer.status_code} {answer.reason}")
    if url.startswith("https:") and not str(answer.url).startswith("https:"):
        raise _GoneError(f"redirects to {answer.url}, which is not encrypted")
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        raise _GoneError("sent a web page instead of the file (moved, or over its quota?)")


def _content_range(answer: Any) -> tuple[int, int | None]:
    """Return the offset of an answer in its file, and the file's size if the answer says it."""
    if answer.status_code != 206:
        length = answer.headers.get("Content-Length")
        return 0, _number(length or "")
    unit, _, rest = answer.headers.get("Content-Range", "").partition(" ")
    span, _, total = rest.partition("/")
    begins = span.partition("-")[0]
    if unit != "bytes" or _number(begins) is None:
        raise _GoneError("the server's answer does not say which part of the file it is")
    return int(begins), _number(total)


def _number(text: str) -> int | None:
    """Return a number of a header; None for anything else, such as superscripts, which str.isdigit takes."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= DIGITS else None


def validator_path(part: Path) -> Path:
    """Return the path that records which version of a file a partial download belongs to."""
    return part.with_name(part.name + ".json")


def _read_validator(part: Path, url: str) -> str:
    """Return the validator of the version that `part` belongs to; empty if unknown."""
    try:
        facts = json.loads(validator_path(part).read_text("utf-8"))
        return str(facts["validator"]) if facts["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _write_validator(part: Path, url: str, answer: Any) -> None:
    etag = answer.headers.get("ETag", "")
    validator = answer.headers.get("Last-Modified", "") if etag.startswith("W/") or not etag else etag
    write_whole(validator_path(part), json.dumps({"url": url, "validator": validator}).encode())


def new_session() -> Any:
    """Return a session of requests that sends no passwords of .netrc, and follows no redirect from https to http.

    Raises: a later request FetchError, before it reaches the unencrypted address.
    """
    import requests

    class Session(requests.Session):
        def get_redirect_target(self, answer: requests.Response) -> str | None:
            return _encrypted_target(answer, super().get_redirect_target(answer))

        def rebuild_auth(self, request: requests.PreparedRequest, answer: requests.Response) -> None:
            request.headers.pop("Authorization", None)

    session = Session()
    session.auth = _without_password  # else requests looks into .netrc, where passwords for other purposes may be
    return session


def _encrypted_target(answer: Any, target: str | None) -> str | None:
    """Return the target of an answer's redirect, None if it has none.

    Raises: FetchError where it leads from https to http.
    """
    place = urljoin(str(answer.url), target or "")
    if target is not None and str(answer.url).startswith("https:") and not place.startswith("https:"):
        raise _GoneError(f"redirects to {place}, which is not encrypted")
    return target


def _without_password(request: Any) -> Any:
    return request


@contextlib.contextmanager
def guarded_requests() -> Iterator[None]:
    """Let other packages that use requests find no passwords in .netrc, and follow no redirect from https to http.

    Raises: a request inside FetchError, before it reaches the unencrypted address.
    """
    import requests

    name = "get_redirect_target"
    usual = requests.Session.get_redirect_target

    def get_redirect_target(session: requests.Session, answer: requests.Response) -> str | None:
        return _encrypted_target(answer, usual(session, answer))

    before = os.environ.get("NETRC")
    os.environ["NETRC"] = os.devnull
    setattr(requests.Session, name, get_redirect_target)
    try:
        yield
    finally:
        setattr(requests.Session, name, usual)
        del os.environ["NETRC"]
        if before is not None:
            os.environ["NETRC"] = before


def _first_bytes(answer: Any, count: int) -> bytes:
    """Return the beginning of an answer, whose end may never come."""
    data = b""
    for chunk in answer.iter_content(CHUNK_BYTES):
        data += chunk
        if len(data) >= count:
            break
    return data[:count]


def _wait(seconds: float, talk: Talk) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        talk.check_stop()
        time.sleep(min(0.1, seconds))


def request_reason(error: Exception) -> str:
    """Return in a few words why a request failed; the texts of requests repeat the address at length."""
    import requests

    if isinstance(error, FetchError):
        return error.message
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted"
    if isinstance(error, requests.ConnectionError):
        return "cannot be reached"
    return "the connection broke" if isinstance(error, requests.RequestException) else first_sentence(error)


class RangeFile(io.RawIOBase):
    """A seekable file on a server that supports ranges."""

    def __init__(self, session: Any, asked: str, url: str, size: int, validator: str, talk: Talk) -> None:
        self.session, self.size, self.validator, self.talk = session, size, validator, talk
        self.asked, self.url = asked, url  # the requested address, and where it redirects
        self.position = 0

    @classmethod
    def open_url(cls, url: str, name: str, talk: Talk) -> "RangeFile | None":
        """Open a file, in several attempts; return None if the server does not support ranges."""
        import requests

        headers = {"Range": "bytes=0-0", "Accept-Encoding": "identity"}
        with contextlib.ExitStack() as stack:
            session = stack.enter_context(new_session())
            for attempt in range(ATTEMPTS):
                talk.check_stop()
                try:
                    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as answer:
                        _check_answer(answer, url)
                        size = _content_range(answer)[1] if answer.status_code == 206 else None
                        etag = answer.headers.get("ETag", "")
                        location = str(answer.url)
                    break
                except (requests.RequestException, FetchError) as error:
                    if isinstance(error, _GoneError) or attempt == ATTEMPTS - 1:
                        raise FetchError(request_reason(error)) from error
                    _wait(WAIT_SECONDS * 2**attempt, talk)
            if size is None:
                return None
            stack.pop_all()  # the file keeps the session
        return cls(session, url, location, size, "" if etag.startswith("W/") else etag, talk)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, without a request; return it."""
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def tell(self) -> int:
        """Return the position in bytes."""
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with one request, in several attempts; return how many bytes were read."""
        import requests

        last = min(self.position + len(buffer), self.size) - 1
        if last < self.position:
            return 0
        headers = {"Range": f"bytes={self.position}-{last}", "Accept-Encoding": "identity"}
        if self.validator:
            headers["If-Range"] = self.validator
        for attempt in range(ATTEMPTS):
            self.talk.check_stop()
            try:
                answer = self.session.get(self.url, headers=headers, timeout=TIMEOUT_SECONDS, stream=True)
                with answer:
                    _check_answer(answer, self.url)
                    if answer.status_code != 206 or _content_range(answer)[0] != self.position:
                        raise _GoneError("the archive changed while it was read")
                    data = _first_bytes(answer, last + 1 - self.position)
                    self.url = str(answer.url)
                break
            except (requests.RequestException, FetchError) as error:
                gone = isinstance(error, _GoneError) and self.url == self.asked
                if gone or attempt == ATTEMPTS - 1:
                    raise FetchError(request_reason(error)) from error
                if isinstance(error, _GoneError):  # redirects to file stores are signed for about an hour
                    self.url = self.asked
                    continue
                _wait(WAIT_SECONDS * 2**attempt, self.talk)
        data = data[: last + 1 - self.position]
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def close(self) -> None:
        """Close the connection."""
        self.session.close()
        super().close()
