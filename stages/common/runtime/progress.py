"""Progress of long work: a bar with rate and time left on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


def track(
    items: Iterable[Item],
    what: str,
    total: int | None = None,
    size: Callable[[Item], int] = lambda item: 1,
) -> Iterator[Item]:
    """Yield `items` and report to stderr how many are done, the rate and the time left.

    Args:
        items: the items of the work; an item is done when the next one is requested.
        what: name of the work.
        total: the total of all sizes; None: the length of `items`, if they have one.
        size: how much an item counts, such as the number of images of a batch.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        with tqdm(desc=what, total=total, smoothing=0.1) as bar:
            for item in items:
                yield item
                bar.update(size(item))
        return
    started = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += size(item)
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            print(_line(what, done, total, now - started), file=sys.stderr, flush=True)
    print(_line(what, done, total, time.monotonic() - started), file=sys.stderr, flush=True)


def _line(what: str, done: int, total: int | None, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    left = f", {(total - done) / rate:.0f} s left" if total and done and total > done else ""
    return f"{what}: {done}{f'/{total}' if total else ''} in {seconds:.0f} s ({rate:.1f}/s{left})"
