"""The Prefect flow that a work pool's workers run: one request, one stage.

Its final state is its report: Executed or Restored, StageFailed if the stage itself failed or took
its machines down or no machine may do it, Unfit if this machine cannot do it and so leaves the pool
(worker.py). What the result was made with is in the run's labels. A machine that is stopped gives
the run back to the pool as Preempted. Any other end is an attempt, which another run may repeat.
"""

import os
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, get_client, get_run_logger
from prefect.exceptions import Abort, TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, Scheduled, State

from flows.dvc.remote import RemoteError
from flows.graph import DagError, Outcome
from flows.stage import StageFailedError
from flows.workers.reproduce import CLONE, NAME, reproduce
from flows.workers.request import Request
from flows.workers.space import UnfitError

FLOW = "ovis-dag-stage"  # on a server that other teams use too
STAGE_FAILED, UNFIT, PREEMPTED = "StageFailed", "Unfit", "Preempted"
MADE = "made."  # before what the result was made with, in the run's labels
LONGEST_MESSAGE = 4000  # of a Prefect state


@flow(name=FLOW, persist_result=False, validate_parameters=False)
def stage(request: dict[str, Any]) -> State:
    """Make the stage of a `Request`, given as JSON, in a checkout of this worker's clone."""
    here, log = os.environ[NAME], get_run_logger()
    try:
        wanted = Request(**request)
    except TypeError as error:  # a coordinator of another version
        return Failed(
            name=UNFIT, message=f"on {here}: {error}; `git pull` in its clone and start it again"
        )
    run, count = str(flow_run.id), flow_run.run_count or 1
    try:
        start = count - _count_preemptions() if count > 1 else 1
        clone = Path(os.environ[CLONE])
        outcome = reproduce(clone, wanted, f"{run}-{count}", log.info, run, start)
    except (StageFailedError, UnfitError, RemoteError, DagError) as error:
        names: dict[type[Exception], str] = {StageFailedError: STAGE_FAILED, UnfitError: UNFIT}
        message = f"on {here}: {error}"[-LONGEST_MESSAGE:]
        return Failed(name=names.get(type(error), "Failed"), message=message)
    except TerminationSignal as stopped:
        with get_client(sync_client=True) as client:
            if not client.read_flow_run(flow_run.id).state.is_running():
                raise  # it was cancelled
            state = Scheduled(name=PREEMPTED, message=f"{here} was stopped; it goes on elsewhere")
            client.set_flow_run_state(flow_run.id, state, force=True)
        raise Abort from stopped  # the run is another worker's now: not a word more of it
    try:
        _label(here, outcome)
    except httpx.HTTPError as error:  # it is made all the same
        log.warning(f"what it was made with could not be told: {error!r}")
    return Completed(
        name=outcome.outcome.capitalize(), message=f"on {here} in {outcome.seconds:.1f} s"
    )


def _count_preemptions() -> int:
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(flow_run.id)
    return sum(state.name == PREEMPTED for state in states)


def _label(here: str, outcome: Outcome) -> None:
    if outcome.made:
        made = {f"{MADE}{key}": value for key, value in {**outcome.made, "worker": here}.items()}
        with get_client(sync_client=True) as client:
            client.update_flow_run_labels(flow_run.id, made)
