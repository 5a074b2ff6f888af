"""This machine as a place where stages run: its cores, its CUDA devices, and what stops them."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from flows.cores import CoreBudget, CoresClosedError
from flows.devices import DeviceSlots
from flows.graph import Stage
from flows.stage import Outcome, StageFailedError, StageRunner

WORKERS = "OVIS_WORKERS"  # processes of a stage, stages.common.parallel.num_workers
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Machine:
    """Runs stages of one execution here, as many at once as cores and devices allow."""

    def __init__(self, root: Path, budget: CoreBudget, label: str = "") -> None:
        """Run the project at `root` on the budget's cores; `label` goes before lines of output."""
        self.budget = budget
        self.devices = DeviceSlots()
        self.runner = StageRunner(root, echo=lambda line: _tell(f"{label}{line}"))
        self.runner.load()

    def run(self, stage: Stage, order: int, log: Callable[[str], None]) -> Outcome:
        """Bring one stage up to date when there is room for it; the lowest `order` goes first.

        Raises:
            StageFailedError: the stage failed, or was stopped.
        """
        # The device first: a stage that waits for one must not keep cores from others.
        with (
            self.devices.reserve(stage.gpus) as visible,
            self._cores(stage.name, stage.cores, order) as cores,
        ):
            log(f"{stage.name}: {stage.command} on {cores} cores {visible or ''}")
            workers = {} if WORKERS in os.environ else {WORKERS: str(cores)}
            return self.runner.run(stage, log, {**visible, **workers})

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
