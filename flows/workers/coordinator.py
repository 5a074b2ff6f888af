"""The coordinator's side of pool mode: makes stages on workers, as `Machine` does here.

Before it asks a worker for a stage it asks the remote. A result that any machine has finished for
any coordinator is taken and never made again. The coordinator fetches only what it shows; dvc.lock
records the rest, which `dvc pull` fetches.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from flows.dvc.curves import fetch_curves
from flows.dvc.project import load_whole_graph
from flows.dvc.remote import RemoteError, push_result, result_key, take_result, with_patience
from flows.dvc.resume import identify_point
from flows.graph import DagError, Outcome, Stage
from flows.stage import StageFailedError
from flows.workers.dispatch import LostError, PrefectDispatcher
from flows.workers.request import Request, make_request, take_snapshot

ATTEMPTS = 3  # to make a stage from the same resume point

Log = Callable[[str], None]


class Fleet:
    """Makes stages on workers and records their results here."""

    def __init__(self, root: Path, dispatcher: PrefectDispatcher) -> None:
        """Take the present state of the project at `root`.

        Raises:
            UncommittedError: workers would not see all of it.
        """
        self._root = root
        self._dispatcher = dispatcher
        self._graph = load_whole_graph(root)
        self._snapshot = take_snapshot(root, self._graph)
        self._on_remote: set[str] = set()  # stages whose outputs are known to be there
        self._pushing = threading.Lock()  # so that each input is pushed once
        self._stopping = threading.Event()

    def run(self, stage: Stage, order: int, log: Log) -> Outcome:
        """See `Maker.run`."""
        try:
            return self._run(stage, log)
        except (RemoteError, DagError) as error:
            raise StageFailedError(
                f"{stage.name}: {error}\n  What workers finished is kept; mend this and run again"
            ) from error

    def stop(self) -> None:
        """Withdraw the requests to workers, and start no more stages."""
        self._stopping.set()
        self._dispatcher.stop()

    def _sleep(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise StageFailedError("stopped before it was done")

    def _run(self, stage: Stage, log: Log) -> Outcome:
        started = time.monotonic()
        self._sleep(0)
        if self._take(stage, log):
            seconds = round(time.monotonic() - started, 2)
            return Outcome(stage.name, stage.group, "restored", seconds)
        key = result_key(self._root, stage.name, stage.needs)
        self._push_inputs(stage, log)
        request = make_request(self._root, self._graph, stage, key, self._snapshot)
        made = self._make(request, stage, log)
        log(f"{made.outcome} {made.message}")
        self._on_remote.add(stage.name)
        return made

    def _make(self, request: Request, stage: Stage, log: Log) -> Outcome:
        def look() -> None:
            with suppress(RemoteError, DagError):  # it is not missed until the stage is done
                fetch_curves(self._root, stage, request.key)

        reasons: list[str] = []
        start = self._identify_point(request, log)
        while len(reasons) < ATTEMPTS:
            try:
                made = self._dispatcher.make(request, stage.pool, log, look)
            except LostError as error:
                reason = str(error)
            else:
                if self._take(stage, log):
                    return made
                if result_key(self._root, stage.name, stage.needs) != request.key:
                    raise StageFailedError(
                        f"{stage.name} is not recorded, because its command, params or inputs here"
                        " changed while a worker made it; the remote has the result for those of"
                        " before; run the same again"
                    )
                reason = (
                    f"{made.message or 'a worker'} says that it is done, but the remote does not "
                    "have it; do all machines use one remote?"
                )
            if (reached := self._identify_point(request, log)) in (b"", start):
                reasons.append(reason)
                log(f"attempt {len(reasons)} of {ATTEMPTS}: {reason}")
            else:
                reasons, start = [], reached
                log(f"lost after it came further: {reason}")
        told = "\n  ".join(dict.fromkeys(reasons))
        raise StageFailedError(f"{stage.name}: given up after {ATTEMPTS} attempts:\n  {told}")

    def _identify_point(self, request: Request, log: Log) -> bytes:
        return with_patience(lambda: identify_point(self._root, request.key), log, self._sleep)

    def _take(self, stage: Stage, log: Log) -> bool:
        return with_patience(lambda: take_result(self._root, stage), log, self._sleep)

    def _push_inputs(self, stage: Stage, log: Log) -> None:
        with self._pushing:
            for need in set(stage.needs) - self._on_remote:
                push = partial(push_result, self._root, need, as_input=True)
                with_patience(push, log, self._sleep)
                self._on_remote.add(need)
