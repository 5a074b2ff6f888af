"""Runs DVC's commands in forks of a process that has DVC loaded already.

`python -m dvc` takes a second before it does anything: imports, then more imports when a command
first needs them. `python -m flows.warm_dvc` does all that once; each command then runs in a fork of
it within 0.05 s. It is the command line's own entry point, in a process and a session of its own,
so locks, signals and what a killed flow leaves behind are as without it.

The process reads one request a line, JSON, and answers {"id", "pid"} when a command starts and
{"id", "code"} when it ended. When nobody can ask any more it ends with the last command; where
OVIS_STOP_ORPHANS is set, it stops them.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

STOP_ORPHANS = "OVIS_STOP_ORPHANS"
LOST = -signal.SIGKILL  # exit code of a command whose end nobody saw
# A project whose one stage takes DVC through all that a stage needs.
WARM_UP = "stages: {first: {cmd: exit 0, deps: [dvc.yaml], params: [key], outs: [out]}}\n"


class Command:
    """A command that runs in a fork."""

    def __init__(self) -> None:
        """Wait for the first answer about it."""
        self.pid = 0
        self.returncode: int | None = None
        self.started = threading.Event()

    def poll(self) -> int | None:
        """Return the exit code as `subprocess` does, or None while it runs."""
        return self.returncode

    def note(self, pid: int = 0, code: int | None = None) -> None:
        """Take an answer."""
        self.pid = self.pid or pid
        self.returncode = code
        self.started.set()


class WarmDvc:
    """Starts DVC's commands from several threads, through one process."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        """Load DVC in this environment; `log` gets what goes wrong in the process itself."""
        self._environment = environment
        self._log = log
        self._process: subprocess.Popen | None = None
        self._commands: dict[int, Command] = {}
        self._lock = threading.Lock()

    def load(self) -> None:
        """Begin to load DVC, if that is not done; return at once."""
        with self._lock:
            self._ensure_process()

    def run(
        self, arguments: Sequence[str], folder: Path, environment: dict[str, str], output: Path
    ) -> Command:
        """Start `dvc <arguments>` and return when it runs.

        Args:
            arguments: of the command line.
            folder: to run in.
            environment: of the command, all of it.
            output: existing file that gets what it prints.
        """
        command = Command()
        with self._lock:
            process = self._ensure_process()
            number = len(self._commands)
            self._commands[number] = command
            request = [number, list(arguments), str(folder), environment, str(output)]
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
            except (BrokenPipeError, ValueError):  # it was killed, or closed
                command.note(code=LOST)
        command.started.wait()
        return command

    def close(self) -> None:
        """Start no more commands; the process ends with those that run."""
        with self._lock:
            if self._process is not None:
                self._process.stdin.close()

    def _ensure_process(self) -> subprocess.Popen:
        if self._process is None or self._process.poll() is not None:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "flows.warm_dvc"],
                    env=self._environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    start_new_session=True,  # Ctrl-C reaches the flow, which stops the commands
                )
            self._commands = {}
            weakref.finalize(self, self._process.stdin.close)
            arguments = (self._process, self._commands)
            threading.Thread(target=_listen, args=arguments, daemon=True).start()
        return self._process


def _listen(process: subprocess.Popen, commands: dict[int, Command]) -> None:
    with process:
        for line in process.stdout:
            answer = json.loads(line)
            commands[answer.pop("id")].note(**answer)
    for command in list(commands.values()):
        if command.poll() is None:
            command.note(code=LOST)


def _serve() -> None:
    """Answer requests until there are no more."""
    replies = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # DVC asks here whether to use colours
    main = _load()
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(woken)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ, "request")
    selector.register(wake, selectors.EVENT_READ, "ended")
    running: dict[int, int] = {}  # number of the request by process
    requests = b""
    open_ended = True
    while open_ended or running:
        ready = [key.data for key, _ in selector.select()]
        if "ended" in ready:
            os.read(wake, 65536)
            for pid, code in _ended():
                if pid in running:  # and not something that DVC started while loading
                    _reply(replies, id=running.pop(pid), code=code)
        if "request" in ready:
            chunk = os.read(0, 1 << 20)
            if not chunk:
                open_ended = False
                selector.unregister(0)
                if STOP_ORPHANS in os.environ:
                    for pid in running:
                        os.killpg(pid, signal.SIGTERM)
            *lines, requests = (requests + chunk).split(b"\n")
            for line in lines:
                number, *request = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    for descriptor in (wake, woken, replies):
                        os.close(descriptor)
                    _become(main, *request)
                running[pid] = number
                _reply(replies, id=number, pid=pid)


def _reply(replies: int, **answer: int) -> None:
    with suppress(BrokenPipeError):  # the flow was killed; what it started goes on
        os.write(replies, json.dumps(answer).encode() + b"\n")


def _ended() -> Iterator[tuple[int, int]]:
    """Yield (process, exit code) of the commands that have ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def _become(
    main: Callable[[list[str]], int],
    arguments: list[str],
    folder: str,
    environment: dict[str, str],
    output: str,
) -> NoReturn:
    """Turn this fork into the command and never return."""
    code = 255
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        out = os.open(output, os.O_WRONLY | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout.reconfigure(line_buffering=True)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv = ["dvc", *arguments]  # DVC's locks name the command by it
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # what the parent has registered to do at exit is the parent's


def _load() -> Callable[[list[str]], int]:
    """Import DVC, run it once in an empty project, and return its entry point."""
    import dvc.cli
    from tqdm import TMonitor

    from flows.plan import knows_dvc

    if knows_dvc():
        from flows import fast_lock

        fast_lock.install()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DVC_SITE_CACHE_DIR"] = str(Path(folder, "site"))
        os.chdir(folder)
        subprocess.run(["git", "init", "-q"], check=True)
        Path("dvc.yaml").write_text(WARM_UP, encoding="utf-8")
        Path("params.yaml").write_text("key: 1\n", encoding="utf-8")
        Path("out").write_text("out", encoding="utf-8")
        for command in (
            ["init"],
            ["config", "core.analytics", "false"],
            ["config", "core.check_update", "false"],
            ["repro", "-s", "first"],
            ["repro", "-f", "-s", "first"],
        ):
            dvc.cli.main([*command, "-q"])
        os.chdir(before)
    for thread in threading.enumerate():
        if isinstance(thread, TMonitor):
            thread.exit()  # a fork of a process with threads may hang; progress bars start another
    return dvc.cli.main


if __name__ == "__main__":
    _serve()
