"""Where stages run: on this machine or on workers, for one worktree or for all those of a sweep.

A result has one key, DVC's own hash of command, params and inputs. Whoever asks for a key that is
being made waits for it and takes the result from the run cache. A stage that fails or is stopped
raises StageFailedError.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Protocol

from flows.dvc.plan import is_here
from flows.dvc.remote import RemoteError, fetch_result, has_remote, result_key
from flows.graph import DagError, Outcome, Stage
from flows.resources import CoreBudget, CoresClosedError, DeviceError, DeviceSlots
from flows.stage import StageFailedError, StageRunner

WORKERS = "OVIS_WORKERS"  # processes of a stage, stages.common.runtime.parallel.num_workers
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Log = Callable[[str], None]


class Maker(Protocol):
    """Brings stages of one worktree up to date."""

    def run(self, stage: Stage, order: int, log: Log) -> Outcome:
        """Make the stage, or take its result from where it is; the lowest `order` goes first."""

    def stop(self) -> None:
        """Stop what runs and start no more."""


class Place:
    """Makes the stages of all worktrees, each with its worktree's maker and each result once."""

    def __init__(self, makers: Mapping[Path, Maker]) -> None:
        self._makers = makers
        self._ends: dict[str, Future[None]] = {}  # by key; a future ends when its result is made
        self._guard = threading.Lock()

    def run(self, folder: Path, stage: Stage, order: int, log: Log) -> Outcome:
        """Bring one stage of the worktree up to date; others that need the same result wait."""
        maker = self._makers[folder]
        if len(self._makers) == 1 or not stage.command:
            return maker.run(stage, order, log)  # nobody else can ask for it
        mine: Future[None] = Future()
        try:
            key = result_key(folder, stage.name, stage.needs)
        except DagError as error:
            raise StageFailedError(f"{stage.name}: {error}") from error
        with self._guard:
            first = self._ends.setdefault(key, mine)
        if first is not mine:
            first.result()
            return maker.run(replace(stage, cores=1, gpus=0), order, log)  # only restores
        try:
            outcome = maker.run(stage, order, log)
        except BaseException as error:
            mine.set_exception(error)
            raise
        mine.set_result(None)
        return outcome

    def stop(self) -> None:
        """Stop what runs and start no more."""
        for maker in self._makers.values():
            maker.stop()


class Machine:
    """Runs the stages of one worktree here, as many at once as cores and devices allow."""

    def __init__(self, root: Path, budget: CoreBudget) -> None:
        self._root, self._budget = root, budget
        self._slots = DeviceSlots()
        self._runner = StageRunner(root)
        self._asks_remote = has_remote(root)

    def run(self, stage: Stage, order: int, log: Log) -> Outcome:
        """Like `Maker.run`, but fetch the result if the DVC remote has it."""
        if stage.command and self._is_there(stage, log):
            return self._runner.run(stage, log)  # only restores, so it needs no cores
        try:
            # Device first: a stage that waits for a device must not keep cores from others.
            with (
                self._slots.reserve(stage.gpus, log) as devices,
                self._budget.reserve(stage.cores, order) as cores,
            ):
                workers = {} if WORKERS in os.environ else {WORKERS: str(cores)}
                more = {**devices.environment, **workers}
                log(" ".join([*(f"{key}={value}" for key, value in more.items()), stage.command]))
                return self._runner.run(stage, log, more, devices.lock)
        except (DeviceError, CoresClosedError) as error:
            raise StageFailedError(f"{stage.name}: {error}") from error

    def _is_there(self, stage: Stage, log: Log) -> bool:
        """Say whether the local cache has the result; else fetch it from the remote if possible.

        A remote that fails is not asked again, because the result can be computed.
        """
        try:
            return is_here(self._root, stage) or (
                self._asks_remote and fetch_result(self._root, stage.name)
            )
        except RemoteError as error:
            self._asks_remote = False
            log(f"{error}; not looked for results there any more")
        except DagError as error:
            log(f"no result looked for: {error}")
        return False

    def stop(self) -> None:
        """Stop running stages and start no more."""
        self._budget.close()
        self._slots.close()
        self._runner.stop()


def tell(line: str) -> None:
    """Print a line for people."""
    with suppress(OSError):  # the terminal was closed; stages still have to be stopped
        print(line, flush=True)


@contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[None]:
    """Make Ctrl-C, SIGTERM and SIGHUP call `stop` before they stop this process.

    SIGHUP comes when the terminal is closed; under `nohup` it stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        stop()
        tell(f"\nStopping on {signal.Signals(number).name} …")
        raise KeyboardInterrupt

    wanted = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
