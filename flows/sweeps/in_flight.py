"""Stages of one sweep that run right now, by the content of their inputs."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class InFlight:
    """Lets no stage run beside another with the same inputs; the plan knows only most of them."""

    def __init__(self) -> None:
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._guard = threading.Lock()

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """Hold the key for the block; who comes later finds the result in the run cache."""
        with self._guard:
            lock = self._locks[key]
        with lock:
            yield
