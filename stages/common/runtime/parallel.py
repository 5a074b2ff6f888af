"""Process many items in several processes, with results in the order of the items."""

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import TypeVar

import cv2

from stages.common.runtime.errors import note_place
from stages.common.runtime.params import environment_number

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNKS_AHEAD = 3  # per process; bounds the memory, whatever the number of items


def num_workers() -> int:
    """Return the number of processes to use: OVIS_WORKERS, or all cores that this process may use.

    It is not a param, because the number of processes never changes a result.

    Raises:
        ValueError: OVIS_WORKERS is not a whole number above 0.
    """
    if wanted := environment_number("OVIS_WORKERS"):
        return wanted
    if hasattr(os, "sched_getaffinity"):  # macOS lacks it
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, chunk_size: int = 16
) -> Iterator[Result]:
    """Yield `function(item)` for each item, in order, computed by `workers` processes.

    `function` must depend on its item only; it, the items and the results must be picklable. Memory
    does not grow with the number of items. A single worker is this process; several are new
    processes with one thread each, forked on Linux, because a fresh interpreter spends seconds on
    imports.

    Raises:
        concurrent.futures.process.BrokenProcessPool: a worker was killed, for lack of memory say.
    """
    if workers == 1:
        yield from map(function, items)
        return
    cv2.setNumThreads(1)  # ends OpenCV's threads; a fork would wait for them forever
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    source = iter(items)
    chunks = iter(lambda: list(islice(source, chunk_size)), [])
    pending: deque[Future[list[Result]]] = deque()
    with ProcessPoolExecutor(workers, context, _use_one_thread) as pool:

        def submit(chunk: list[Item]) -> Future[list[Result]]:
            return pool.submit(_map_chunk, function, chunk)

        pending.extend(map(submit, islice(chunks, CHUNKS_AHEAD * workers)))
        try:
            while pending:
                results = pending.popleft().result()
                pending.extend(map(submit, islice(chunks, 1)))
                yield from results
        finally:
            pool.shutdown(cancel_futures=True)


def _use_one_thread() -> None:
    """Let torch compute with one thread, whether it is imported already, later or never.

    A fork lacks its parent's OpenMP threads too; with one thread torch needs none.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def _map_chunk(function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    try:
        return [function(item) for item in items]
    except Exception as error:
        note_place(error)
        raise
