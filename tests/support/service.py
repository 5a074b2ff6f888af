"""A process on loopback that has a log and can be stopped, killed or lost."""

import ctypes
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

HOST = "127.0.0.1"
_PR_SET_PDEATHSIG = 1  # of prctl(2)


@dataclass
class Service:
    """A command that runs in a folder until it is stopped; its output goes to `log`."""

    command: list[str]
    folder: Path
    environment: dict[str, str] = field(repr=False)
    log: Path
    user: str | None = None  # other than this one; needs root
    process: subprocess.Popen | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start it, or start it again; the log is appended to."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        other = {"user": self.user, "group": self.user, "extra_groups": []} if self.user else {}
        with self.log.open("a", encoding="utf-8") as out:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
                **other,
            )

    def family(self) -> list[psutil.Process]:
        """Return the process and all its descendants."""
        try:
            process = psutil.Process(self.process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def running(self, module: str) -> list[psutil.Process]:
        """Return the processes of the family that run `python -m <module>`."""
        found = []
        for process in self.family():
            with suppress(psutil.NoSuchProcess):  # it ended meanwhile
                if process.cmdline()[1:3] == ["-m", module]:
                    found.append(process)
        return found

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 60) -> bool:
        """Ask it to end, then kill what is left; say whether all ended without being killed."""
        if self.process is None:
            return True
        family = self.family()
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, alive = psutil.wait_procs(family, timeout=seconds)
        with self.log.open("a", encoding="utf-8") as out:
            for process in alive:
                print(f"still there after {seconds:.0f} s, and killed: {process}", file=out)
        kill_all(alive)
        self.process.wait()
        return not alive

    def kill(self, with_children: bool) -> None:
        """Kill it at once: alone, or as when its machine is lost."""
        kill_all(self.family() if with_children else [psutil.Process(self.process.pid)])
        self.process.wait()


def kill_all(processes: list[psutil.Process]) -> None:
    """Kill processes, of which some may have ended, and wait until they are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def _end_with_parent() -> None:
    """Make the kernel end this process when its parent is gone, however that ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    """Return a free port of the loopback address."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
