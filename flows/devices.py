"""The CUDA devices of this machine, handed out to the stages that ask for them in dvc.yaml.

A device is held by a lock on a file. So flows and agents that share a machine share its devices,
and a process that is killed gives its own back.
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
