"""This machine as a place where stages run: its cores, its CUDA devices, and what stops them."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType

from flows.dvc.remote import result_key
from flows.graph import DagError, Outcome, Stage
from flows.resources import (
    CoreBudget,
    CoresClosedError,
    DeviceError,
    DeviceSlots,
    Reservation,
)
from flows.stage import StageFailedError, StageRunner

WORKERS = "OVIS_WORKERS"  # processes of a stage, stages.common.parallel.num_workers
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class InFlight:
    """The results that this process makes, by their keys; who wants one too waits for it."""

    def __init__(self) -> None:
        """Begin with none."""
        self._results: dict[str, Future[None]] = {}
        self._guard = threading.Lock()

    def key(self, root: Path, stage: Stage) -> str:
        """Return the key of the stage's result in the project at `root`.

        Raises:
            StageFailedError: DVC can give none.
        """
        try:
            return result_key(root, stage.name)
        except DagError as error:
            raise StageFailedError(f"{stage.name}: {error}") from error

    def share(self, key: str, make: Callable[[], Outcome], take: Callable[[], Outcome]) -> Outcome:
        """Return `make()`; where another call with the key has begun, its end first, then `take()`.

        Raises:
            Exception: what the first call raised, in all of them.
        """
        mine: Future[None] = Future()
        with self._guard:
            first = self._results.setdefault(key, mine)
        if first is not mine:
            first.result()
            return take()
        try:
            outcome = make()
        except BaseException as error:
            mine.set_exception(error)
            raise
        mine.set_result(None)
        return outcome


class Machine:
    """Runs stages of one execution here, as many at once as cores and devices allow."""

    def __init__(
        self, root: Path, budget: CoreBudget, label: str = "", in_flight: InFlight | None = None
    ) -> None:
        """Run the project at `root` on the budget's cores; `label` goes before lines of output.

        `in_flight` is shared with the machines of other worktrees that may want the same results.
        """
        self.root = root
        self.budget = budget
        self._in_flight = in_flight
        self.devices = DeviceSlots()
        self.runner = StageRunner(root, echo=lambda line: _tell(f"{label}{line}"))
        self.runner.load()

    def run(self, stage: Stage, order: int, log: Callable[[str], None]) -> Outcome:
        """Bring one stage up to date when there is room for it; the lowest `order` goes first.

        A result that another worktree is making is waited for, and then taken out of the run cache.

        Raises:
            StageFailedError: the stage failed, here or in the other worktree, or was stopped.
        """
        if self._in_flight is None or not stage.command:
            return self._run(stage, order, log)
        restored = replace(stage, cores=1, gpus=0)
        return self._in_flight.share(
            self._in_flight.key(self.root, stage),
            partial(self._run, stage, order, log),
            partial(self._run, restored, order, log),
        )

    def _run(self, stage: Stage, order: int, log: Callable[[str], None]) -> Outcome:
        # The device first: a stage that waits for one must not keep cores from others.
        with (
            self._devices(stage) as devices,
            self._cores(stage.name, stage.cores, order) as cores,
        ):
            visible = devices.environment
            log(f"{stage.name}: {stage.command} on {cores} cores {visible or ''}")
            workers = {} if WORKERS in os.environ else {WORKERS: str(cores)}
            return self.runner.run(stage, log, {**visible, **workers}, devices.lock)

    @contextmanager
    def _devices(self, stage: Stage) -> Iterator[Reservation]:
        try:
            with self.devices.reserve(stage.gpus) as devices:
                yield devices
        except DeviceError as error:
            raise StageFailedError(f"{stage.name}: {error}") from error

    @contextmanager
    def _cores(self, label: str, wanted: int, order: int) -> Iterator[int]:
        try:
            with self.budget.reserve(wanted, order) as cores:
                yield cores
        except CoresClosedError as error:
            raise StageFailedError(f"{label}: {error}") from error

    def stop(self) -> None:
        """Stop running stages and start no more."""
        self.budget.close()
        self.devices.close()
        self.runner.stop()


def _tell(line: str) -> None:
    with suppress(OSError):  # the terminal was closed; stages still have to be stopped
        print(line, flush=True)


@contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[None]:
    """Within the block Ctrl-C, SIGTERM and SIGHUP call `stop` before they stop this process.

    SIGHUP comes when the terminal is closed; under `nohup` it stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        stop()
        _tell(f"\nStopping on {signal.Signals(number).name} …")
        raise KeyboardInterrupt

    wanted = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
