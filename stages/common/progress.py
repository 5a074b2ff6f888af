"""Progress of long work: a bar with rate and time left on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yield `items`, reporting to stderr how many are done, the rate and the time left."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, total=total, smoothing=0.1)
        return
    started = last = time.monotonic()
    done = 0
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            print(_line(what, done, total, now - started), file=sys.stderr, flush=True)
    print(_line(what, done, total, time.monotonic() - started), file=sys.stderr, flush=True)


def _line(what: str, done: int, total: int | None, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    left = f", {(total - done) / rate:.0f} s left" if total and done and total > done else ""
    return f"{what}: {done}{f'/{total}' if total else ''} in {seconds:.0f} s ({rate:.1f}/s{left})"
