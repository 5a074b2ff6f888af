"""Fetches files over HTTP, whole or not at all: resumes interrupted ones and checks them.

A file has the name ".<name>.partial" until its size and checksum are right. Only then does it get
its final name. So a file with its final name is complete and is not fetched again.
"""

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fetch import answers
from stages.common.runtime.storage import read_json, write_json

CHUNK = 1 << 20
# Status codes after which we try again; any other refusal is final.
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class FetchError(RuntimeError):
    """A file cannot be fetched; the message names the address, the file and what to do."""


class _BrokenOffError(Exception):
    """An attempt failed, but another may succeed; `wait` is what the server asked for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Remote:
    """A file to fetch.

    Attributes:
        url: http, https or file.
        path: where to put it.
        size: the published size in bytes.
        md5: the published checksum in hexadecimal digits.
    """

    url: str
    path: Path
    size: int | None = None
    md5: str | None = None

    @property
    def partial(self) -> Path:
        """Return the path of the file until it is complete."""
        return self.path.with_name(f".{self.path.name}.partial")

    @property
    def origin(self) -> Path:
        """Return the path of the note that says which version the partial file is of."""
        return self.path.with_name(f".{self.path.name}.origin.json")

    def on_disk(self) -> int:
        """Return how many bytes are there and need not be fetched."""
        for path in (self.path, self.partial):
            if path.is_file():
                return path.stat().st_size
        return 0


@dataclass(frozen=True)
class Patience:
    """How long to keep trying.

    Attributes:
        attempts: consecutive attempts without a new byte before a file is given up.
        first_wait: seconds to wait after the first failure; doubled after each further one.
        longest_wait: seconds; also limits what a server may ask for.
        timeout: seconds without a byte.
    """

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 120.0
    timeout: float = 60.0


def fetch(
    remote: Remote, patience: Patience, progress: Callable[[int], Any] = lambda number: None
) -> None:
    """Fetch one file, unless it is there.

    Args:
        remote: the file and where to put it.
        patience: how long to keep trying.
        progress: called with the number of bytes received; negative if bytes were discarded.

    Raises:
        FetchError: it cannot be fetched, or differs from what was published.
        OSError: it cannot be written.
    """
    if remote.path.is_file():
        return
    remote.path.parent.mkdir(parents=True, exist_ok=True)
    failures, wait, most = 0, patience.first_wait, remote.on_disk()
    while True:
        try:
            facts = _attempt(remote, patience.timeout, progress)
            _check(remote, facts, progress)
            os.replace(remote.partial, remote.path)
            remote.origin.unlink(missing_ok=True)
            return
        except _BrokenOffError as error:
            if remote.on_disk() > most:
                failures, wait, most = 0, patience.first_wait, remote.on_disk()
            failures += 1
            if failures >= patience.attempts:
                raise FetchError(
                    f"{remote.url}: given up after {failures} attempts: {error}. To go on from what"
                    f" came, run the command again; or bring the file to {remote.path} by other"
                    " means"
                ) from error
            time.sleep(min(wait if error.wait is None else error.wait, patience.longest_wait))
            wait *= 2


def remote_size(remote: Remote, timeout: float) -> int | None:
    """Return the size in bytes that is published or that the server states; None if unknown.

    Raises:
        FetchError: there is no such file.
    """
    if remote.size is not None:
        return remote.size
    try:
        with _open(remote, {}, timeout, method="HEAD") as response:
            length = response.headers.get("Content-Length")
            return int(length) if length is not None else None
    except _BrokenOffError:
        return None  # not every server answers this; fetching will report what is wrong


def _attempt(remote: Remote, timeout: float, progress: Callable[[int], Any]) -> dict[str, Any]:
    """Fetch the missing bytes; return what the server says about the whole file."""
    have = remote.partial.stat().st_size if remote.partial.is_file() else 0
    version = _read_origin(remote) if have else None
    headers = {"Range": f"bytes={have}-", "If-Range": version} if version else {}
    try:
        response = _open(remote, headers, timeout)
    except _RangeRefused:
        with suppress(FetchError), _open(remote, {}, timeout, method="HEAD") as answer:
            facts = {"size": answers.total(answer, False), "md5": answers.told_md5(answer)}
            if facts["size"] == have:  # whole: stopped before it was checked
                return facts
        _discard(remote, progress)
        raise _BrokenOffError("the server has another file than the part that is here") from None
    with response:
        resumed = response.status == HTTPStatus.PARTIAL_CONTENT
        total = answers.total(response, resumed)
        told = answers.version(response)
        if resumed and (answers.first_byte(response) != have or told not in (None, version)):
            _discard(remote, progress)
            raise _BrokenOffError(f"the server sent another part than asked for, from byte {have}")
        facts = {"size": total, "md5": answers.told_md5(response)}
        if not resumed:
            progress(-have)
            remote.partial.unlink(missing_ok=True)  # before the note says it is of this version
            write_json(remote.origin, {"url": remote.url, "version": told})
        mode = "ab" if resumed else "wb"
        with writing(remote.partial), remote.partial.open(mode) as file:
            _copy(response, file, progress)
            have = file.tell()
    if total is not None and have < total:
        raise _BrokenOffError(f"the connection ended after {have} of {total} bytes")
    return facts


def _copy(response: Any, file: Any, progress: Callable[[int], Any]) -> None:
    while True:
        try:
            chunk = response.read(CHUNK)
        except http.client.IncompleteRead as error:
            chunk = error.partial  # the next read is empty
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenOffError(
                f"the connection broke: {error or type(error).__name__}"
            ) from error
        if not chunk:
            return
        file.write(chunk)
        progress(len(chunk))


class _RangeRefused(Exception):  # noqa: N818
    """The requested range lies beyond the end of the file."""


def _open(remote: Remote, headers: dict[str, str], timeout: float, method: str = "GET") -> Any:
    request = urllib.request.Request(remote.url, headers=headers, method=method)
    try:
        return urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _RangeRefused from None
        told = f"HTTP {error.code} {error.reason}"
        if error.code in PASSING:
            raise _BrokenOffError(
                told, answers.retry_after(error.headers.get("Retry-After"))
            ) from error
        raise FetchError(
            f"{remote.url}: {told}; {remote.path} cannot be had there: look whether the address is"
            " still right, or give a mirror that has it by --mirror"
        ) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, FileNotFoundError):
            raise FetchError(
                f"{remote.url}: no such file, wanted as {remote.path}; does --mirror have it?"
            ) from error
        if remote.url.startswith("file:"):
            reason = error.reason
            why = reason.strerror if isinstance(reason, OSError) else reason
            raise FetchError(f"{remote.url}: cannot be read: {why}") from error
        raise _BrokenOffError(f"no connection{_proxy(request)}: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        told = str(error) or type(error).__name__
        raise _BrokenOffError(f"no answer{_proxy(request)}: {told}") from error


def _proxy(request: urllib.request.Request) -> str:
    """Say which proxy, named by the environment, a request went through, if any."""
    own = urlsplit(request.full_url).netloc
    return f" through the proxy {request.host}" if request.host not in (None, own) else ""


def _check(remote: Remote, facts: dict[str, Any], progress: Callable[[int], Any]) -> None:
    """Check the whole file against what was published or sent; delete it if it differs."""
    size = remote.partial.stat().st_size
    for source, expected in (("published", remote.size), ("told by the server", facts["size"])):
        if expected is not None and size != expected:
            _discard(remote, progress)
            raise _BrokenOffError(f"{size} bytes came, {source} are {expected}")
    for source, expected in (("published", remote.md5), ("told by the server", facts["md5"])):
        if expected is not None and (found := _md5(remote.partial)) != expected:
            _discard(remote, progress)
            raise _BrokenOffError(f"wrong bytes: MD5 {found}, {source} is {expected}")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _discard(remote: Remote, progress: Callable[[int], Any]) -> None:
    progress(-remote.partial.stat().st_size)
    remote.partial.unlink()
    remote.origin.unlink(missing_ok=True)


def _read_origin(remote: Remote) -> str | None:
    """Return the version that the partial file is of, if it can be requested again."""
    if not remote.origin.is_file():
        return None
    facts = read_json(remote.origin)
    return facts["version"] if facts["url"] == remote.url else None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in OSErrors of the block: that of a full disk names none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error


def check_free_space(folder: Path, needed: int) -> None:
    """Check that a disk has room.

    Raises:
        FetchError: it does not.
    """
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        raise FetchError(
            f"{folder.absolute()}: {in_words(needed)} are needed and {in_words(free)} are free;"
            " make room, or give another folder in params.yaml"
        )


def in_words(size: float) -> str:
    """Return a number of bytes in readable form."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
