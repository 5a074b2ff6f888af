"""A budget of cores: a stage says in dvc.yaml how many it keeps busy and starts when they are free.

Two trainings that each take all cores ran five times slower side by side than one after the other.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CoresClosedError(RuntimeError):
    """The budget was closed while somebody waited for cores."""


def count_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class CoreBudget:
    """Hands out cores to threads.

    Among those who wait, the lowest `order` that fits goes first. A wide stage can so be overtaken
    by narrow ones, but cores never idle while somebody fits, and a graph is finite, so all get on.
    """

    def __init__(self, total: int | None = None) -> None:
        """Take `total` cores, by default all of this machine.

        Raises:
            ValueError: `total` is below 1.
        """
        self.total = count_cores() if total is None else total
        if self.total < 1:
            raise ValueError(f"cores: expected at least 1, found {self.total}")
        self._free = self.total
        self._waiting: list[tuple[int, int]] = []  # (order, cores)
        self._closed = False
        self._changed = threading.Condition()

    def granted(self, wanted: int) -> int:
        """Return what a stage that wants `wanted` cores gets: at least 1, at most all there are."""
        return max(1, min(wanted, self.total))

    @contextmanager
    def reserve(self, wanted: int, order: int = 0) -> Iterator[int]:
        """Wait until the cores are free, hold them for the block, and give their number.

        Raises:
            CoresClosedError: `close` was called before it was this one's turn.
        """
        cores = self.granted(wanted)
        ticket = (order, cores)
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(lambda: self._closed or self._is_next(ticket))
                if self._closed:
                    raise CoresClosedError("stopped before it started")
                self._free -= cores
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield cores
        finally:
            with self._changed:
                self._free += cores
                self._changed.notify_all()

    def close(self) -> None:
        """Refuse everybody who waits or comes later."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _is_next(self, ticket: tuple[int, int]) -> bool:
        return min((t for t in self._waiting if t[1] <= self._free), default=None) == ticket
