"""Fetches several files at once, from their official servers or a mirror, with progress."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from threading import Lock
from urllib.parse import quote, urlsplit

from tqdm import tqdm

from fetch.transfer import (
    FetchError,
    Patience,
    Remote,
    check_free_space,
    fetch,
    in_words,
    remote_size,
)
from stages.common.runtime.progress import SECONDS_BETWEEN_LINES, track

ADDRESSES = ("http", "https")  # of mirrors
NAMED_IN_ERROR = 5
LARGE_AT_ONCE = 8  # a few connections fill a line; small files spend most time waiting


def read_mirror(text: str) -> str:
    """Return a mirror's folder, with ~ expanded, or its address, with other characters as %XX.

    Raises:
        ValueError: there is no such folder, or the address is none.
    """
    if "://" not in text:
        folder = Path(text).expanduser()
        if not folder.is_dir():
            raise ValueError(f"{text}: no such folder; an address begins with http:// or https://")
        return str(folder)
    try:
        address = urlsplit(text)
        wrong = address.scheme not in ADDRESSES or not address.hostname or address.port == 0
    except ValueError:  # such as a port that is no number
        wrong = True
    if wrong:
        raise ValueError(f"{text}: expected a folder, or http:// or https:// and a server")
    return address._replace(path=quote(address.path, safe="/%:@!$&'()*+,;=~")).geturl()


class Fetcher:
    """Fetches files from their official servers or a mirror of them, several at once."""

    def __init__(self, mirror: str | None, workers: int, patience: Patience) -> None:
        """Take a folder or an address as the mirror (None: the official servers), and its pace.

        `workers` is the number of images that are fetched at once.
        """
        self._mirror, self._workers, self._patience = mirror, workers, patience

    def place(self, remote: Remote) -> Remote:
        """Return the file as the mirror has it, if there is a mirror."""
        if self._mirror is None:
            return remote
        key = urlsplit(remote.url).path.lstrip("/")
        if "://" in self._mirror:
            return replace(remote, url=f"{self._mirror.rstrip('/')}/{key}")
        nested, flat = Path(self._mirror, key), Path(self._mirror, Path(key).name)
        path = flat if flat.is_file() and not nested.is_file() else nested
        return replace(remote, url=path.absolute().as_uri())

    def fetch_files(self, remotes: Sequence[Remote], folder: Path, more_space: int = 0) -> None:
        """Fetch large files, at most `LARGE_AT_ONCE` at once, with progress in bytes.

        Args:
            remotes: the files, at their official addresses.
            folder: its disk must have room for them.
            more_space: further bytes needed there, for example to unpack the files.

        Raises:
            FetchError: one or more files failed; the others are there.
        """
        wanted = [self.place(remote) for remote in remotes if not remote.path.is_file()]
        if not wanted:
            return
        workers = min(self._workers, LARGE_AT_ONCE)
        with _threads(workers) as pool:
            sizes = list(pool.map(lambda r: remote_size(r, self._patience.timeout), wanted))
        there = sum(remote.on_disk() for remote in wanted)
        total = sum(size or 0 for size in sizes)
        check_free_space(folder, total - there + more_space)
        with _report_bytes(f"fetch {folder.name}", there, total) as progress:
            outcomes = self._fetch_all(wanted, workers, progress)
            _raise_all(outcomes, len(wanted))

    def fetch_images(self, remotes: Sequence[Remote], folder: Path, bytes_each: int) -> None:
        """Fetch many small files, with progress in files.

        Raises:
            FetchError: one or more files failed; the others are there.
        """
        wanted = [self.place(remote) for remote in remotes if not remote.path.is_file()]
        check_free_space(folder, bytes_each * len(wanted))
        outcomes = self._fetch_all(wanted, self._workers, lambda number: None)
        _raise_all(track(outcomes, f"fetch {folder.name}, images", len(wanted)), len(wanted))

    def _fetch_all(
        self, remotes: Iterable[Remote], workers: int, progress: Callable[[int], None]
    ) -> Iterator[FetchError | None]:
        def attempt(remote: Remote) -> FetchError | None:
            try:
                fetch(remote, self._patience, progress)
            except FetchError as error:
                return error
            return None

        source, failures = iter(remotes), 0
        with _threads(workers) as pool:
            pending = deque(pool.submit(attempt, r) for r in islice(source, 2 * workers))
            while pending:
                error = pending.popleft().result()
                failures = 0 if error is None else failures + 1
                if failures == 2 * workers:
                    raise FetchError(
                        f"{error}\n{failures} files in a row failed like this; what came is kept:"
                        " run the same again when the server answers, or give another by --mirror"
                    )
                yield error
                pending.extend(pool.submit(attempt, r) for r in islice(source, 1))


@contextmanager
def _threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool that nobody waits for after an error, such as KeyboardInterrupt."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _raise_all(outcomes: Iterable[FetchError | None], total: int) -> None:
    errors = [str(error) for error in outcomes if error is not None]
    if errors:
        more = len(errors) - NAMED_IN_ERROR
        raise FetchError(
            "\n".join(errors[:NAMED_IN_ERROR])
            + (f"\n… and {more} more" if more > 0 else "")
            + (f"\n{total - len(errors)} of {total} files are there" if total > 1 else "")
        )


@contextmanager
def _report_bytes(what: str, there: int, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the bytes received; shows a bar, or plain lines in a log."""
    lock, started = Lock(), time.monotonic()
    count, last = there, started

    def line() -> str:
        rate = max(count - there, 0) / max(time.monotonic() - started, 1e-9)
        left = f", {(total - count) / rate:.0f} s left" if rate and count < total else ""
        return f"{what}: {in_words(count)} of {in_words(total)} ({in_words(rate)}/s{left})"

    def add_to_log(number: int) -> None:
        nonlocal count, last
        with lock:
            count += number
            if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                print(line(), file=sys.stderr, flush=True)

    if not sys.stderr.isatty():
        yield add_to_log
        print(line(), file=sys.stderr, flush=True)
        return
    with tqdm(desc=what, initial=there, total=total, unit="B", unit_scale=True) as bar:

        def add_to_bar(number: int) -> None:
            with lock:
                bar.update(number)

        yield add_to_bar
