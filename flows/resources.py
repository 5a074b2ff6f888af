"""Shares a machine's cores and CUDA devices among stages.

A stage says in dvc.yaml how many cores it keeps busy, and starts when they are free: two trainings
that each take all cores ran five times slower at the same time than one after the other. A device
is held by a lock that the stage's processes inherit. So flows, workers and SLURM jobs on one
machine can share its devices, and a stage whose flow was killed keeps its devices until it ends.
"""

import fcntl
import hashlib
import os
import re
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "CUDA_VISIBLE_DEVICES"
FEWER = "OVIS_FEWER_GPUS"  # =1: stages take the GPUs that are there, or cores where there are none
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_FOR_DRIVER = 120  # it starts slowly if nothing else keeps it loaded
LOCKS = Path("/tmp/ovis-dag-devices.lock")  # not in TMPDIR, which differs between jobs and users
SYSTEM = Path("/")  # where Linux shows its devices
NVIDIA, DISPLAY = "0x10de", "0x03"  # vendor and class on the PCI bus
LISTED = re.compile(r"(?P<inside>\s*)(?:GPU|MIG) .*\(UUID: (?P<uuid>[^)]+)\)")


class DeviceError(ValueError):
    """The wanted CUDA devices are not available; the message says what to fix."""


class CoresClosedError(RuntimeError):
    """The budget was closed while somebody waited for cores."""


def count_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class CoreBudget:
    """Hands out cores to threads.

    Of the waiting threads that fit, the one with the lowest `order` goes first. So narrow stages
    can overtake a wide one, but no core idles while somebody fits. The graph is finite, so all
    stages get their turn.
    """

    def __init__(self, total: int | None = None) -> None:
        """Hand out `total` cores, by default all of this machine."""
        self.total = count_cores() if total is None else total
        if self.total < 1:
            raise ValueError(f"cores: expected at least 1, found {self.total}")
        self._free = self.total
        self._waiting: list[tuple[int, int]] = []  # (order, cores)
        self._closed = False
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, wanted: int, order: int = 0) -> Iterator[int]:
        """Hold cores for the block, at least 1 and at most all, and yield their number.

        Raises:
            CoresClosedError: `close` was called before this thread's turn came.
        """
        cores = max(1, min(wanted, self.total))
        ticket = (order, cores)
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._closed or self._is_next(ticket))
            self._waiting.remove(ticket)
            self._changed.notify_all()
            if self._closed:
                raise CoresClosedError("stopped before it started")
            self._free -= cores
        try:
            yield cores
        finally:
            with self._changed:
                self._free += cores
                self._changed.notify_all()

    def close(self) -> None:
        """Refuse all waiting and all later threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _is_next(self, ticket: tuple[int, int]) -> bool:
        return min((t for t in self._waiting if t[1] <= self._free), default=None) == ticket


def list_devices() -> list[str]:
    """Return the UUIDs of the CUDA devices that this process may use; instances of MIG are devices.

    CUDA_VISIBLE_DEVICES names them by number, by UUID or by the beginning of a UUID; if it is not
    set, all devices count. Two SLURM jobs on one node may both say "0" for different devices, so
    only UUIDs identify them.

    Raises:
        DeviceError: the variable names a device that is not there, or a device's driver fails.
    """
    named = os.environ.get(VARIABLE)
    entries = [entry.strip() for entry in (named or "").split(",")]
    entries = entries[: entries.index("-1")] if "-1" in entries else list(filter(None, entries))
    if named is not None and not entries:
        return []
    gpus = _ask_driver()
    devices = [device for gpu in gpus for device in gpu]
    if named is None:
        return devices
    found: list[str] = []
    for entry in entries:
        by_name = [device for device in devices if device.startswith(entry)]
        own = dict(enumerate(gpus)).get(int(entry), []) if entry.isdigit() else by_name
        if not own:
            raise DeviceError(
                f"{VARIABLE}: there is no device {entry!r}; `nvidia-smi -L` lists"
                f" {', '.join(devices) or 'none'}. {VARIABLE}= (empty) computes on cores"
            )
        found += own
    return list(dict.fromkeys(found))


def _ask_driver() -> list[list[str]]:
    """Return the devices of each GPU: its instances if MIG divides it, else the GPU itself."""
    command = ["nvidia-smi", "-L"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_FOR_DRIVER)
        answer, failed = done.stdout + done.stderr, done.returncode != 0
    except (FileNotFoundError, PermissionError):
        answer, failed = "it is not on PATH", any((SYSTEM / "dev").glob("nvidia[0-9]*"))
    except subprocess.TimeoutExpired:
        answer, failed = f"no answer in {SECONDS_FOR_DRIVER} s", True
    # In a SLURM job without a GPU the driver shows none, and nvidia-smi fails.
    hardware = None if "No devices" in answer or not failed else _hardware()
    if hardware:
        told = answer.strip().splitlines()[0] if answer.strip() else f"exit code {done.returncode}"
        raise DeviceError(
            f"this machine has an NVIDIA device, {hardware}, but `nvidia-smi -L` fails: {told}; "
            f"mend the driver, or set {VARIABLE}= (empty) to compute on cores"
        )
    gpus: list[list[str]] = []
    for line in filter(None, map(LISTED.match, answer.splitlines())):
        if not line["inside"]:
            gpus.append([line["uuid"]])
        else:
            gpus[-1] = [*(uuid for uuid in gpus[-1] if uuid.startswith("MIG")), line["uuid"]]
    return gpus


def _hardware() -> str | None:
    """Name an NVIDIA device of this machine, with or without a driver."""
    if nodes := sorted((SYSTEM / "dev").glob("nvidia[0-9]*")):
        return f"/dev/{nodes[0].name}"
    for vendor in sorted((SYSTEM / "sys/bus/pci/devices").glob("*/vendor")):
        kind = vendor.with_name("class").read_text(encoding="utf-8")
        if vendor.read_text(encoding="utf-8").strip() == NVIDIA and kind.startswith(DISPLAY):
            return f"PCI {vendor.parent.name}"
    return None


def require_devices(there: int, wanted: int) -> None:
    """Raise DeviceError if there are too few CUDA devices, unless OVIS_FEWER_GPUS=1."""
    if there < wanted and os.environ.get(FEWER) != "1":
        cores = "" if there else ", on cores"
        raise DeviceError(
            f"{wanted} CUDA devices are wanted and this machine has {there}; "
            f"{FEWER}=1 computes all the same{cores}, for longer and with other rounding"
        )


@dataclass(frozen=True)
class Reservation:
    """Held devices: the stage's environment, and the lock that its processes inherit."""

    environment: dict[str, str]
    lock: int | None = None  # descriptor of an empty file


class DeviceSlots:
    """Hands out devices to threads, processes and users of one machine."""

    def __init__(self, devices: list[str] | None = None, locks: Path | None = None) -> None:
        self.devices = list_devices() if devices is None else devices
        self._locks = locks or LOCKS
        self._closed = threading.Event()

    @contextmanager
    def reserve(
        self, wanted: int, log: Callable[[str], None] = lambda line: None
    ) -> Iterator[Reservation]:
        """Wait for `wanted` devices; hold them for the block and for processes with the lock.

        If it must wait, `log` gets a line that says so.

        On a machine without devices the stage gets no variable and computes on its cores. A stage
        that wants none sees none, so that it cannot take one, and computes on its cores even if
        DEVICE names a device for the others. Returns with nothing as soon as `close` is called.

        Raises:
            DeviceError: there are some, but fewer than wanted, and OVIS_FEWER_GPUS is not 1.
        """
        if not self.devices:
            yield Reservation({})
        elif not wanted:
            yield Reservation({VARIABLE: "", "DEVICE": "cpu"})
        else:
            require_devices(len(self.devices), wanted)
            taken, lock = self._wait_for(min(wanted, len(self.devices)), log)
            try:
                yield Reservation({VARIABLE: ",".join(taken)}, lock)
            finally:
                if lock is not None:
                    os.close(lock)

    def close(self) -> None:
        """End all waiting."""
        self._closed.set()

    def _wait_for(self, wanted: int, log: Callable[[str], None]) -> tuple[list[str], int | None]:
        waits = False
        while not self._closed.is_set():
            lock = _open_for_all(self._locks)
            taken: list[str] = []
            for device in self.devices:
                if len(taken) < wanted and _take(lock, device):
                    taken.append(device)
            if len(taken) == wanted:
                return taken, lock
            os.close(lock)  # all or nothing: two stages that each hold half would wait forever
            if not waits:
                log(f"waits for {wanted} GPU{'s' * (wanted > 1)} that others use")
            waits = True
            self._closed.wait(SECONDS_BETWEEN_LOOKS)
        return [], None


def _open_for_all(path: Path) -> int:
    """Return a descriptor of the file, which every user may open."""
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        os.fchmod(lock, 0o666)
        return lock


def _take(lock: int, device: str) -> bool:
    """Lock the device's byte for the open file, shared by all processes with the descriptor.

    There is one file for all devices, so a stage inherits one descriptor for any number of them.
    """
    byte = int.from_bytes(hashlib.blake2b(device.encode(), digest_size=7).digest())
    wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    try:
        fcntl.fcntl(lock, fcntl.F_OFD_SETLK, wanted)
    except (BlockingIOError, PermissionError):
        return False
    return True
