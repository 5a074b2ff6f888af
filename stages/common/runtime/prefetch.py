"""Prepare the next items in background threads while the device works on the current one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = 4  # threads suffice because decoding an image releases Python's lock
AHEAD = 8  # items in preparation or waiting; bounds the memory


def prefetch(
    prepare: Callable[[Item], Result], items: Iterable[Item], ahead: int = AHEAD
) -> Iterator[Result]:
    """Yield `prepare(item)` for each item, in order, prepared up to `ahead` items early.

    The caller's thread draws the items, in order. `prepare` must depend on its item only. An error
    that it raises is raised here at the item's turn.
    """
    source = iter(items)
    with ThreadPoolExecutor(min(THREADS, ahead), "prefetch") as pool:
        pending = deque(pool.submit(prepare, item) for item in islice(source, ahead))
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(prepare, item) for item in islice(source, 1))
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
