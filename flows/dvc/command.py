"""Runs DVC's commands in forks of a process that has already loaded DVC.

`python -m dvc` takes 1.4 s before it does anything, a fork 0.05 s. A fork runs the command line's
own entry point in its own process and session, so locks, signals and orphans are as without the
server. The fork server of `multiprocessing` would not do: while a stage outlives its flow, it keeps
the flow's output open, and it imports the flow's main module for each command.

The server ends with the process that started it. If OVIS_STOP_ORPHANS is set, it then stops the
commands that still run.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import psutil

from flows.environment import STOP_ORPHANS

LOST = -signal.SIGKILL  # exit code if nobody saw the command end
# Modules that `dvc repro` imports on its way, apart from those that these import themselves.
LOADED = (
    "dvc.cli.parser dvc.repo.reproduce dvc.repo.artifacts dvc.repo.datasets dvc.repo.metrics"
    " dvc.repo.params dvc.repo.plots dvc.repo.stage dvc.scm dvc.lock dvc.dirs dvc.parsing"
    " dvc.cachemgr dvc.data_cloud dvc.utils.strictyaml dvc_data.hashfile.db.local dulwich.worktree"
    " dulwich.ignore psutil ruamel.yaml"
).split()

_lock = threading.Lock()
_server: tuple[subprocess.Popen, socket.socket] | None = None


class Command:
    """A command that runs in a fork, as a `subprocess.Popen` as far as we need it."""

    def __init__(self, channel: socket.socket) -> None:
        """Wait until it runs; `channel` sends its process id and later its exit code.

        If the server has died before it could start it, `pid` is 0, and it is lost.
        """
        self._channel, self._answers = channel, channel.makefile("rb")
        self.pid = int(self._read(self._answers.readline) or 0)
        self.returncode: int | None = None

    @staticmethod
    def _read(read: Callable[[], bytes]) -> bytes:
        with suppress(ConnectionResetError):  # the other end has died with something unread
            return read()
        return b""

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self.returncode is None and select.select([self._channel], [], [], 0)[0]:
            with self._channel, self._answers:
                self.returncode = int(self._read(self._answers.read) or LOST)
        return self.returncode


def load(log: Path) -> None:
    """Start loading DVC, unless that is done; return at once. The server's errors go to `log`."""
    with _lock:
        _ensure_server(log)


def run(
    arguments: Sequence[str],
    folder: Path,
    environment: dict[str, str],
    output: Path,
    log: Path,
    given: int | None = None,
) -> Command:
    """Start `dvc <arguments>` in the folder, with this environment, and return when it runs.

    Its output is appended to the existing file `output`. `given` is the descriptor of an empty file
    that replaces /dev/null as standard input, the only descriptor that DVC passes on to what it
    runs.
    """
    ours, theirs = socket.socketpair()
    request = json.dumps([list(arguments), str(folder), environment]).encode()
    with output.open("ab") as out, theirs, _lock, suppress(BrokenPipeError):  # or it is LOST
        handed = [theirs.fileno(), out.fileno(), *([] if given is None else [given])]
        socket.send_fds(_ensure_server(log), [b"."], handed)
        ours.sendall(request)
        ours.shutdown(socket.SHUT_WR)
    return Command(ours)


def _ensure_server(log: Path) -> socket.socket:
    global _server
    if _server is None or _server[0].poll() is not None:
        ours, theirs = socket.socketpair()
        log.parent.mkdir(parents=True, exist_ok=True)
        with theirs, log.open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "flows.dvc.command"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,  # DVC asks here whether to use colours
                stderr=errors,
                start_new_session=True,  # Ctrl-C reaches the flow, which stops the commands
            )
        _server = process, ours
        atexit.register(_end_server, process, ours)
    return _server[1]


def _end_server(process: subprocess.Popen, channel: socket.socket) -> None:
    channel.close()
    process.wait()  # not for its commands


def _serve() -> None:
    """Start a fork per request until no process can send another request."""
    for name in LOADED:
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps those that ended
    with socket.socket(fileno=os.dup(0)) as requests:
        while True:
            asked, descriptors, _, _ = socket.recv_fds(requests, 1, 3)
            if not asked:
                break
            if os.fork() == 0:
                requests.close()
                _become(*descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
    if STOP_ORPHANS in os.environ:
        from flows.dvc.project import between_writes  # silences DVC, so not before a fork

        for command in psutil.Process().children():
            with (
                suppress(psutil.NoSuchProcess, ProcessLookupError),  # it has ended meanwhile
                between_writes(Path(command.cwd())),
            ):
                os.killpg(command.pid, signal.SIGTERM)


def _become(answers: int, output: int, given: int | None = None) -> NoReturn:
    """Turn this fork into the command and never return."""
    code = 255
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY) if given is None else given, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # not in typeshed
        with socket.socket(fileno=os.dup(answers)) as channel, channel.makefile("rb") as request:
            channel.sendall(f"{os.getpid()}\n".encode())
            arguments, folder, environment = json.load(request)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv = ["dvc", *arguments]  # DVC's locks take the command's name from it
        code = import_module("dvc.cli").main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(BrokenPipeError):  # the flow was killed
            os.write(answers, str(code).encode())
        os._exit(code)  # the parent's exit handlers must not run here


if __name__ == "__main__":
    _serve()
