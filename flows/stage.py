"""Runs a stage as `dvc --wait-for-lock repro -s <stage>`, shows its output, and stops it cleanly.

DVC runs in a fork of a process that has loaded it (flows/dvc/command.py). The stage writes to a
file that this process follows. With a pipe, a stage that outlives a killed flow would fail. Such an
orphan should finish: its result is recorded, and the next execution uses it.
"""

import codecs
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import psutil

from flows.dvc import command as dvc
from flows.dvc.command import Command
from flows.dvc.project import between_writes
from flows.dvc.records import forget, late_changes
from flows.environment import STATE_FOLDER, stage_environment
from flows.git import GitError, git
from flows.graph import Outcome, Stage, Status, Step
from flows.resources import list_devices, require_devices

SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_PER_SIGNAL = 5.0  # grace for a stage to stop before the next, harder signal
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
LAST_LINES = 25
LEAST_FREE = 1 << 14  # bytes that a log needs
# DVC's advice about git and remotes, which is noise here.
NOISE = re.compile(
    r"(Updating|Generating) lock file|To track the changes with git|\tgit add|To enable auto"
    r"|\tdvc config core\.autostage|Use `dvc push`|> python -m (stages|comparators) |\s*$"
)
RECEIPT = "OVIS_RECEIPT"  # file where a stage notes its inputs and machine, stages/__main__.py
BUSY = re.compile(r"\(PID (\d+)\)")


class StageFailedError(RuntimeError):
    """A stage ended with an error or was stopped; the message ends with its last lines."""


def preflight(plans: Mapping[Path, Iterable[Step]], pools: bool = False) -> Callable[[], None]:
    """Start checking the params of all stages that must run, and the devices, in two seconds.

    So no execution fails after hours because of a param, file or GPU that is wrong now. Workers
    (`pools`) have their own files and GPUs. The returned function waits for the end; it raises
    ValueError with key, file and fix of each fault.
    """
    gpus, folders = 0, dict[tuple[str, ...], list[Path]]()  # with these sections to check
    for root, steps in plans.items():
        due = [s.stage for s in steps if s.status in (Status.MUST_RUN, Status.MAY_RUN)]
        gpus = max([gpus, *(stage.gpus for stage in due)])
        keys = {key.split(".")[0] for stage in due for key in stage.params}
        if own := tuple(sorted(key for key in keys if any(root.glob(f"*/{key}/params.py")))):
            folders.setdefault(own, []).append(root)
    processes = []
    for sections, roots in folders.items():
        command = [sys.executable, "-m", "stages.preflight", *sections, *["--elsewhere"] * pools]
        command += [f"--folder={root}" for root in roots if len(plans) > 1]
        process = subprocess.Popen(command, cwd=roots[0], stderr=subprocess.PIPE, encoding="utf-8")
        processes.append(process)

    def finish() -> None:
        told = [process.communicate()[1].strip() for process in processes]
        if any(process.returncode for process in processes):
            raise ValueError("\n".join(filter(None, told)))
        if gpus and not pools and (devices := list_devices()):  # without any, on cores
            require_devices(len(devices), gpus)

    return finish


def load_dvc(root: Path) -> Path:
    """Start loading DVC for the first stage, unless that is done; return the log of its errors."""
    log = root / STATE_FOLDER / "logs" / "dvc-server.log"
    dvc.load(log)
    return log


class StageRunner:
    """Runs stages of the project at `root`; several threads may use it at once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._stopping = threading.Event()
        self._server_log = load_dvc(root)

    def stop(self) -> None:
        """Make every running stage stop and every later one refuse; `run` returns soon after."""
        self._stopping.set()

    def run(
        self,
        stage: Stage,
        log: Callable[[str], None] = lambda line: None,
        environment: Mapping[str, str] | None = None,
        lock: int | None = None,
    ) -> Outcome:
        """Run the stage and return its outcome; `log` gets each line of output.

        Its processes get `environment` in addition to this one's, and also hold the file `lock`.

        Raises:
            StageFailedError: the stage failed or was stopped, or its inputs changed meanwhile.
        """
        started = time.monotonic()
        receipt = self._state_file("receipts", stage.name, "json")
        receipt.unlink(missing_ok=True)
        more = {**stage_environment(), **(environment or {}), RECEIPT: str(receipt.absolute())}
        commit = _commit(self._root)
        lines = self._run_to_end(stage.name, log, more, lock)
        seconds = round(time.monotonic() - started, 2)
        outcome, made = _outcome(stage, lines), {}
        if outcome == "executed" and receipt.is_file():
            facts = json.loads(receipt.read_text(encoding="utf-8"))
            # DVC hashes inputs after the stage's end.
            ended = receipt.stat().st_mtime
            if changed := late_changes(self._root, stage.name, facts["inputs"], ended):
                forget(self._root, stage.name)
                raise StageFailedError(
                    f"{stage.name} is not recorded, for this changed as it ended:"
                    f" {'; '.join(changed)}; run the same again"
                )
            made = {**facts["made"], "worker": socket.gethostname(), **commit}
        return Outcome(stage.name, stage.group, outcome, seconds, made=made)

    def _run_to_end(
        self, name: str, log: Callable[[str], None], environment: dict[str, str], lock: int | None
    ) -> list[str]:
        code, lines = self._run_once(name, log, environment, lock)
        while code and any(map(_is_alive, pids := _blockers(lines))):
            told = ", ".join(map(str, pids))
            log(f"another execution is making this (PID {told}); waiting for it")
            while any(map(_is_alive, pids)) and not self._stopping.is_set():
                time.sleep(SECONDS_BETWEEN_LOOKS)
            code, lines = self._run_once(name, log, environment, lock)
        if code:
            end = "\n".join(f"  {line}" for line in lines[-LAST_LINES:])
            how = "was stopped" if self._stopping.is_set() else f"failed (exit code {code})"
            log_file = self._state_file("logs", name, "log")
            where = log_file.relative_to(self._root)
            if shutil.disk_usage(log_file.parent).free < LEAST_FREE:
                end += f"\n  The disk of {where.parent} is full; make room and run the same again"
            raise StageFailedError(f"{name} {how}; its last lines, all in {where}:\n{end}")
        return lines

    def _state_file(self, folder: str, name: str, suffix: str) -> Path:
        path = self._root / STATE_FOLDER / folder / f"{name.replace('/', '.')}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _run_once(
        self, name: str, log: Callable[[str], None], environment: dict[str, str], lock: int | None
    ) -> tuple[int, list[str]]:
        path = self._state_file("logs", name, "log")
        path.unlink(missing_ok=True)  # an orphan may still write to the old file
        if self._stopping.is_set():
            return 1, ["stopped before it started"]
        path.touch()
        lines: list[str] = []
        with path.open("rb") as follow:
            arguments = ["--wait-for-lock", "repro", "-s", name]
            process = dvc.run(arguments, self._root, environment, path, self._server_log, lock)
            for line in self._follow(process, follow):
                lines.append(line)
                if not NOISE.match(line):
                    log(line)
        assert process.returncode is not None  # `_follow` has waited
        return process.returncode, lines

    def _follow(self, process: Command, file: BinaryIO) -> Iterator[str]:
        """Yield whole lines until the process has ended; when stopping, make it end."""
        # The file may end within a character, and stages may print bytes that are none.
        decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        partial, signals, patience = "", iter(STOP_SIGNALS), 0.0
        while True:
            ended = process.poll() is not None
            *whole, partial = re.split(r"\r\n|[\r\n]", partial + decoder.decode(file.read(), ended))
            yield from whole
            if ended:
                if partial:
                    yield partial
                return
            if self._stopping.is_set() and time.monotonic() >= patience:
                with between_writes(self._root), suppress(ProcessLookupError):
                    if process.poll() is None:  # it has not ended meanwhile
                        os.killpg(process.pid, next(signals, signal.SIGKILL))
                patience = time.monotonic() + SECONDS_PER_SIGNAL
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _commit(root: Path) -> dict[str, str]:
    """Return the commit whose code a stage runs that starts now; nothing without git.

    A "+" stands for changes to it, except to dvc.lock, which the stages before have written.
    """
    with suppress(GitError):
        changed = git(root, "status", "--porcelain", "--", ".", ":(exclude,glob)**/dvc.lock")
        return {"commit": git(root, "rev-parse", "HEAD") + "+" * bool(changed)}
    return {}


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _blockers(lines: list[str]) -> list[int]:
    """Return the processes that hold this stage's files, if that is why DVC refused to run it."""
    busy = any("is busy, it is being blocked by" in line for line in lines)
    return [int(pid) for line in lines for pid in BUSY.findall(line)] if busy else []


def _outcome(stage: Stage, lines: list[str]) -> str:
    if f"Stage '{stage.name}' didn't change, skipping" in lines:
        return "unchanged"
    restored = f"Stage '{stage.name}' is cached - skipping run, checking out outputs"
    return "restored" if restored in lines else "executed"
