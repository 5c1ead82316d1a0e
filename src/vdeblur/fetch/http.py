"""Downloads over HTTP that resume, and remote files read in ranges."""

import contextlib
import io
import json
import os
import time
from pathlib import Path
from typing import Any

from vdeblur.errors import ModelError
from vdeblur.events import Talk

CHUNK_BYTES = 1 << 18
RANGE_BYTES = 1 << 20  # read at once out of a zip that stays on its server
TIMEOUT_SECONDS = 30.0  # without a byte
ATTEMPTS = 5  # in a row that bring nothing
ATTEMPTS_ALTOGETHER = 100  # for one file, whatever they bring
WAIT_SECONDS = 1.0  # before the second attempt, doubled for each further one


class FetchError(ModelError):
    """One source did not give the file; another one may."""


class DigestError(FetchError):
    """A file is not what it should be."""


def first_sentence(error: Exception) -> str:
    """Return the first sentence of an error's text, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0].partition(". ")[0] if lines else type(error).__name__)[:200]


class _GoneError(FetchError):
    """The server will not give the file, however often it is asked."""


def download_file(url: str, part: Path, name: str, talk: Talk, pinned: bool, size: int | None = None) -> bool:
    """Get a whole file into part, beginning with what is there already; tells whether anything was.

    pinned: that a digest will show if the old part belongs to another version. Otherwise old bytes are kept only where
    the server can tell that they still fit.
    """
    import requests

    validator = _read_validator(part, url)
    if not validator and not pinned:
        part.unlink(missing_ok=True)
    reused = part.is_file() and part.stat().st_size > 0
    most = part.stat().st_size if reused else 0
    failures = 0
    with requests.Session() as session:
        for attempt in range(ATTEMPTS_ALTOGETHER):
            try:
                _download_rest(session, url, part, name, talk, size)
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


def _download_rest(session: Any, url: str, part: Path, name: str, talk: Talk, size: int | None) -> None:
    """Ask once for what is missing, and append it."""
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
            raise FetchError("the server has another file than before")
        _check_answer(answer, url)
        begins, total = _content_range(answer)
        if begins not in (0, have):
            raise _GoneError("the server does not keep to the part that was asked for")
        if size is not None and total is not None and total != size:
            raise _GoneError(f"the server offers {total} bytes instead of {size}")
        _write_validator(part, url, answer)
        done = begins
        with part.open("ab" if begins else "wb") as file:
            for chunk in answer.iter_content(CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                talk.show_progress(name, done, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done != total:
        raise FetchError(f"the connection ended after {done} of {total} bytes")


def _check_answer(answer: Any, url: str) -> None:
    """Refuse errors, pages and addresses that lost their encryption on the way."""
    if answer.status_code >= 400:
        error = _GoneError if answer.status_code < 500 and answer.status_code not in (408, 429) else FetchError
        raise error(f"{answer.status_code} {answer.reason}")
    if url.startswith("https:") and not str(answer.url).startswith("https:"):
        raise _GoneError(f"led to {answer.url}, which is not encrypted")
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        raise _GoneError("gave a web page instead of the file (moved, or over its quota?)")


def _content_range(answer: Any) -> tuple[int, int | None]:
    """Give the first byte of an answer and the size of the whole file, as far as it tells."""
    if answer.status_code != 206:
        length = answer.headers.get("Content-Length")
        return 0, int(length) if length and length.isdigit() else None
    unit, _, rest = answer.headers.get("Content-Range", "").partition(" ")
    span, _, total = rest.partition("/")
    begins = span.partition("-")[0]
    if unit != "bytes" or not begins.isdigit():
        raise _GoneError("the server's answer has no place in the file")
    return int(begins), int(total) if total.isdigit() else None


def validator_path(part: Path) -> Path:
    """Return the file that remembers which version a partial download belongs to."""
    return part.with_name(part.name + ".json")


def _read_validator(part: Path, url: str) -> str:
    """Give what identifies the version that part belongs to; empty where nothing does."""
    try:
        facts = json.loads(validator_path(part).read_text("utf-8"))
        return str(facts["validator"]) if facts["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _write_validator(part: Path, url: str, answer: Any) -> None:
    etag = answer.headers.get("ETag", "")
    validator = answer.headers.get("Last-Modified", "") if etag.startswith("W/") or not etag else etag
    validator_path(part).write_text(json.dumps({"url": url, "validator": validator}), "utf-8")


def _wait(seconds: float, talk: Talk) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        talk.check_stop()
        time.sleep(min(0.1, seconds))


def request_reason(error: Exception) -> str:
    """Say in a few words why a request failed; requests repeats the address and objects' numbers at length."""
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
    """A file on a server that answers ranges, to be read and sought in."""

    def __init__(self, session: Any, asked: str, url: str, size: int, validator: str, talk: Talk) -> None:
        self.session, self.size, self.validator, self.talk = session, size, validator, talk
        self.asked, self.url = asked, url  # what was asked for, and where that led
        self.position = 0

    @classmethod
    def open_url(cls, url: str, name: str, talk: Talk) -> "RangeFile | None":
        """Open it, asking several times if need be; None where the server gives whole files only."""
        import requests

        headers = {"Range": "bytes=0-0", "Accept-Encoding": "identity"}
        with contextlib.ExitStack() as stack:
            session = stack.enter_context(requests.Session())
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
            stack.pop_all()  # the session goes on with the file
        return cls(session, url, location, size, "" if etag.startswith("W/") else etag, talk)

    def readable(self) -> bool:
        """Tell that it is."""
        return True

    def seekable(self) -> bool:
        """Tell that it is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; nothing is asked of the server yet."""
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def tell(self) -> int:
        """Give the place, in bytes."""
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Ask for as many bytes as there is room for, several times if need be; gives how many came."""
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
                    data = answer.content
                    self.url = str(answer.url)
                break
            except (requests.RequestException, FetchError) as error:
                gone = isinstance(error, _GoneError) and self.url == self.asked
                if gone or attempt == ATTEMPTS - 1:
                    raise FetchError(request_reason(error)) from error
                if isinstance(error, _GoneError):  # stores sign the addresses they lead to for an hour or so
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
