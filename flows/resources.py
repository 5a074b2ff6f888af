"""What stages share of a machine: its cores, and its CUDA devices.

A stage says in dvc.yaml how many cores it keeps busy and starts when they are free: two trainings
that each take all cores ran five times slower side by side than one after the other. A device is
held by a lock on a file. So flows and workers that share a machine share its devices, and a process
that is killed gives its own back.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

VARIABLE = "CUDA_VISIBLE_DEVICES"
SECONDS_BETWEEN_LOOKS = 0.2


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


def list_devices() -> list[str]:
    """Return the devices that this process may use: those of CUDA_VISIBLE_DEVICES, or all."""
    named = os.environ.get(VARIABLE)
    if named is None and shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True)
        named = ",".join(done.stdout.split()) if done.returncode == 0 else ""
    devices = [device.strip() for device in (named or "").split(",")]
    return [device for device in devices if device not in ("", "-1")]


class DeviceSlots:
    """Hands out devices to threads and processes of one user on one machine."""

    def __init__(self, devices: list[str] | None = None, folder: Path | None = None) -> None:
        """Take these devices, by default all, whose locks are files in `folder`."""
        self.devices = list_devices() if devices is None else devices
        user = os.getuid() if hasattr(os, "getuid") else 0
        self._folder = folder or Path(tempfile.gettempdir()) / f"ovis-dag-devices-{user}"
        self._closed = threading.Event()

    @contextmanager
    def reserve(self, wanted: int) -> Iterator[dict[str, str]]:
        """Wait for `wanted` devices, hold them for the block, and give a stage's environment.

        A stage that wants more than there are gets all. Where there are none it gets no variable,
        and computes on its cores. A stage that wants none sees none, so that it cannot take one,
        and computes on its cores even where DEVICE names a device for the others.
        Returns with nothing as soon as `close` is called.
        """
        wanted = min(wanted, len(self.devices))
        with ExitStack() as held:
            taken = self._wait_for(wanted, held) if wanted else []
            none = {"DEVICE": "cpu"} if self.devices and not wanted else {}
            yield {VARIABLE: ",".join(taken), **none} if self.devices else {}

    def close(self) -> None:
        """Let nobody wait any more."""
        self._closed.set()

    def _wait_for(self, wanted: int, held: ExitStack) -> list[str]:
        while not self._closed.is_set():
            taken = []
            for device in self.devices:
                if len(taken) < wanted and self._lock(device, held):
                    taken.append(device)
            if len(taken) == wanted:
                return taken
            held.close()  # all or nothing: two that each hold half would wait for ever
            self._closed.wait(SECONDS_BETWEEN_LOOKS)
        return []

    def _lock(self, device: str, held: ExitStack) -> bool:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = (self._folder / device.replace("/", "_")).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        held.enter_context(file)
        return True
