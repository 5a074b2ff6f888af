"""Turns requests into runs of a Prefect deployment; Prefect finds a worker and notices its loss.

A run's idempotency key is derived from the hash of the stage's inputs. So two coordinators that
want the same stage, or one that was killed and started again, wait for the same run. The server
reports changes of all these runs over one connection.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import TypeVar
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.events.clients import RETRYABLE_EXCEPTIONS, get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from flows.graph import Outcome
from flows.stage import StageFailedError
from flows.workers.request import Request
from flows.workers.stage_flow import FLOW, MADE, STAGE_FAILED, UNFIT

SECONDS_BETWEEN_LOOKS = 30.0  # at a run without events
SECONDS_BETWEEN_ATTEMPTS = 1.0  # to reach the server
SECONDS_WITHOUT_SERVER = 300.0
PREFIX = "prefect.flow-run."  # begins the names of events and of their resources
MOST_RUNS = 100  # of one stage, over all coordinators and time
STOPPED = "ovis-dag-stopped"  # tag of a run that a coordinator cancelled when it was stopped

Log = Callable[[str], None]
Result = TypeVar("Result")


class LostError(RuntimeError):
    """No worker made the stage, for reasons outside the stage; another worker may."""


class PrefectDispatcher:
    """Makes stages through runs of the deployments `ovis-dag-stage/<pool>`."""

    def __init__(self) -> None:
        """Use the server of PREFECT_API_URL."""
        self._stopping = threading.Event()
        self._news = _News()
        self._client = ExitStack().enter_context(get_client(sync_client=True))

    def make(self, request: Request, pool: str, log: Log, look: Callable[[], None]) -> Outcome:
        """Return how the stage ended on a worker, or raise StageFailedError or LostError.

        Meanwhile `look` is called twice a minute, to see how far the stage is.
        """
        while True:
            run = self._wait(self._start(request, pool, log), request.stage, log, look)
            state, told = run.state, run.state.message or ""
            if state.name == UNFIT:
                log("that worker has left the pool; the next one's turn")
            elif state.is_cancelled() and STOPPED in run.tags:
                log("the coordinator that had asked for it too was stopped; asking again")
            else:
                break
        if state.is_completed():
            group, seconds = request.stage.split("@")[0], run.total_run_time.total_seconds()
            labels = run.labels.items()
            made = {k.removeprefix(MADE): v for k, v in labels if k.startswith(MADE)}
            outcome = state.name.lower()
            return Outcome(request.stage, group, outcome, round(seconds, 2), told, made)
        if state.is_cancelled():
            raise StageFailedError(f"{request.stage} was cancelled on Prefect's server")
        if state.name == STAGE_FAILED:
            raise StageFailedError(told)
        raise LostError(f"{state.name}: {told}")

    def stop(self) -> None:
        """Make each `make` cancel its run, whose worker then stops the stage, and return."""
        self._stopping.set()
        self._news.wake()

    def _start(self, request: Request, pool: str, log: Log) -> FlowRun:
        """Join the stage's run that has not ended yet, or start the next one."""
        name = f"{FLOW}/{pool}"
        for number in range(MOST_RUNS):
            run = self._ask(
                partial(
                    run_deployment,
                    name,
                    parameters={"request": asdict(request)},
                    flow_run_name=request.stage,
                    timeout=0,
                    idempotency_key=f"{pool}-{request.key}-{number}",
                ),
                f"has no deployment {name}; `make pools` makes it",
                log,
            )
            if not run.state.is_final():
                log(f"waits for a worker of pool {pool}")
                return run
        raise LostError(f"{request.stage}: {MOST_RUNS} runs of it have ended in vain")

    def _wait(self, run: FlowRun, stage: str, log: Log, look: Callable[[], None]) -> FlowRun:
        """Return the run in its final state, and log every state on the way there.

        Several states may have passed between looks, so all of them are read.
        """

        def ask() -> tuple[FlowRun, list[State]]:
            found = self._client.read_flow_run(run.id)
            changed = found.state.id not in told
            return found, self._client.read_flow_run_states(run.id) if changed else []

        gone = f"no longer has run {run.id} of {stage}; was it deleted? Run the same again"
        told = {run.state.id}
        with self._news.of(run.id) as news:
            while not run.state.is_final():
                news.wait(SECONDS_BETWEEN_LOOKS)
                news.clear()
                if self._stopping.is_set():
                    self._cancel(run)
                    raise StageFailedError(f"{stage} was stopped")
                run, states = self._ask(ask, gone, log)
                look()
                for state in states:
                    if state.id not in told:
                        log(f"{state.name}: {state.message}" if state.message else state.name)
                told |= {state.id for state in states}
        return run

    def _cancel(self, run: FlowRun) -> None:
        # A server that is away cannot be asked; the run then ends by itself and its result is kept.
        with suppress(httpx.HTTPError):
            self._client.update_flow_run(run.id, tags=[*run.tags, STOPPED])
            stopped = Cancelling(message="the coordinator was stopped")
            self._client.set_flow_run_state(run.id, stopped)

    def _ask(self, question: Callable[[], Result], gone: str, log: Log) -> Result:
        """Return the server's answer; wait if the server restarts.

        `gone` says of the server that it lacks what the question is about.
        """
        deadline = time.monotonic() + SECONDS_WITHOUT_SERVER
        while True:
            try:
                return question()
            except ObjectNotFound as error:
                raise StageFailedError(f"Prefect's server {gone}") from error
            except httpx.HTTPError as error:
                response = getattr(error, "response", None)
                if response is not None and response.is_client_error:
                    raise StageFailedError(f"Prefect's server refuses: {error}") from error
                if time.monotonic() > deadline:
                    raise LostError(f"Prefect's server does not answer: {error!r}") from error
                log(f"Prefect's server does not answer ({error!r}); trying again")
                if self._stopping.wait(SECONDS_BETWEEN_ATTEMPTS):
                    raise StageFailedError("stopped") from error


class _News:
    """Wakes threads that wait for flow runs when the server reports an event of their run."""

    def __init__(self) -> None:
        self._waiting: dict[threading.Event, str] = {}  # several threads may wait for one run
        self._lock = threading.Lock()
        self._listener: threading.Thread | None = None

    @contextmanager
    def of(self, run: UUID) -> Iterator[threading.Event]:
        """Yield an event that is set whenever the run has changed, or may have changed."""
        mine = threading.Event()
        mine.set()  # the run may have changed before we listened
        with self._lock:
            self._waiting[mine] = f"{PREFIX}{run}"
            if self._listener is None or not self._listener.is_alive():
                self._listener = threading.Thread(target=asyncio.run, args=[self._listen()])
                self._listener.daemon = True
                self._listener.start()
        try:
            yield mine
        finally:
            with self._lock:
                del self._waiting[mine]

    def wake(self, resource: str | None = None) -> None:
        """Wake the threads that wait for this run, given by its name in events, or all threads."""
        with self._lock:
            for news, run in self._waiting.items():
                if resource in (None, run):
                    news.set()

    def _is_awaited(self) -> bool:
        """Say whether any thread waits; if not, the next one starts another listener."""
        with self._lock:
            if not self._waiting:
                self._listener = None
            return bool(self._waiting)

    async def _listen(self) -> None:
        names = EventNameFilter(prefix=[PREFIX], exclude_name=[f"{PREFIX}heartbeat"])
        while self._is_awaited():
            # While the server is away, `_ask` says so.
            with suppress(*RETRYABLE_EXCEPTIONS, httpx.HTTPError):
                async with get_events_subscriber(EventFilter(event=names)) as subscriber:
                    self.wake()
                    async for event in subscriber:
                        self.wake(event.resource.id)
            await asyncio.sleep(SECONDS_BETWEEN_ATTEMPTS)
