"""Turns requests into runs of a Prefect deployment; Prefect finds a worker, and notices its loss.

A run's idempotency key is made of the hash of the stage's inputs. Two coordinators that want the
same stage, or one that was killed and started again, so wait for the same run.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import TypeVar

import httpx
from prefect import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from flows.graph import Outcome
from flows.stage import StageFailedError
from flows.workers.coordinator import LostError
from flows.workers.request import Request
from flows.workers.stage_flow import FLOW, STAGE_FAILED, UNFIT

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_WITHOUT_SERVER = 300.0
MOST_RUNS = 100  # of one stage, from all coordinators so far
STOPPED = "ovis-dag-stopped"  # tag of a run that a coordinator cancelled as it was stopped

Log = Callable[[str], None]
Result = TypeVar("Result")


class PrefectDispatcher:
    """Makes stages by runs of the deployments `ovis-dag-stage/<pool>`."""

    def __init__(self) -> None:
        """Use the server of PREFECT_API_URL."""
        self._stopping = threading.Event()

    def make(self, request: Request, pool: str, log: Log) -> Outcome:
        """As `Dispatcher.make`.

        Raises:
            StageFailedError: the stage itself failed, this was stopped, or a person cancelled it.
            LostError: no worker could, or the server is gone.
        """
        while True:
            run = self._wait(self._start(request, pool, log), request.stage, log)
            state, told = run.state, run.state.message or ""
            if state.name == UNFIT:
                log("that worker has left the pool; the next one's turn")
            elif state.is_cancelled() and STOPPED in run.tags:
                log("the coordinator that had asked for it too was stopped; asking again")
            else:
                break
        if state.is_completed():
            group, seconds = request.stage.split("@")[0], run.total_run_time.total_seconds()
            return Outcome(request.stage, group, state.name.lower(), round(seconds, 2), told)
        if state.is_cancelled():
            raise StageFailedError(f"{request.stage} was cancelled on Prefect's server")
        if state.name == STAGE_FAILED:
            raise StageFailedError(told)
        raise LostError(f"{state.name}: {told}")

    def stop(self) -> None:
        """Have each `make` cancel its run, whose worker then stops the stage, and return."""
        self._stopping.set()

    def _start(self, request: Request, pool: str, log: Log) -> FlowRun:
        """Join the run of this stage that is not final yet, or start the next one."""
        for number in range(MOST_RUNS):
            run = self._ask(
                lambda number=number: run_deployment(
                    f"{FLOW}/{pool}",
                    parameters={"request": asdict(request)},
                    flow_run_name=request.stage,
                    timeout=0,
                    idempotency_key=f"{pool}-{request.key}-{number}",
                ),
                log,
            )
            if not run.state.is_final():
                log(f"waits for a worker of pool {pool}")
                return run
        raise LostError(f"{request.stage}: {MOST_RUNS} runs of it have ended in vain")

    def _wait(self, run: FlowRun, stage: str, log: Log) -> FlowRun:
        """Return the run in its final state, and tell of every state on the way there.

        A state may last for less than the time between looks, so all of them are read.
        """

        def look() -> tuple[FlowRun, list[State]]:
            with get_client(sync_client=True) as client:
                found = client.read_flow_run(run.id)
                changed = found.state.id not in told
                return found, client.read_flow_run_states(run.id) if changed else []

        told = {run.state.id}
        while not run.state.is_final():
            if self._stopping.wait(SECONDS_BETWEEN_LOOKS):
                self._cancel(run)
                raise StageFailedError(f"{stage} was stopped")
            run, states = self._ask(look, log)
            for state in states:
                if state.id not in told:
                    log(f"{state.name}: {state.message}" if state.message else state.name)
            told |= {state.id for state in states}
        return run

    def _cancel(self, run: FlowRun) -> None:
        # A server that is away cannot be asked; the run then ends by itself and its result is kept.
        with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
            client.update_flow_run(run.id, tags=[*run.tags, STOPPED])
            client.set_flow_run_state(run.id, Cancelling(message="the coordinator was stopped"))

    def _ask(self, question: Callable[[], Result], log: Log) -> Result:
        """Return the server's answer, if need be after a restart of it."""
        deadline = time.monotonic() + SECONDS_WITHOUT_SERVER
        while True:
            try:
                return question()
            except ObjectNotFound as error:
                raise StageFailedError(
                    f"Prefect's server has no such deployment: {error}; `make pools` makes them"
                ) from error
            except httpx.HTTPError as error:
                response = getattr(error, "response", None)
                if response is not None and response.is_client_error:
                    raise StageFailedError(f"Prefect's server refuses: {error}") from error
                if time.monotonic() > deadline:
                    raise LostError(f"Prefect's server does not answer: {error!r}") from error
                log(f"Prefect's server does not answer ({error!r}); trying again")
                if self._stopping.wait(SECONDS_BETWEEN_LOOKS):
                    raise StageFailedError("stopped") from error
