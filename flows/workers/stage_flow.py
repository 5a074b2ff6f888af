"""The Prefect flow that a work pool's workers run: one request, one stage.

Its final state is its report: Executed or Restored, StageFailed if the stage itself failed or took
its machines down or no machine may do it, Unfit if this machine cannot do it and so leaves the pool
(worker.py). Any other end is an attempt, which another run may repeat.
"""

import os
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State

from flows.dvc.remote import RemoteError
from flows.graph import DagError
from flows.stage import StageFailedError
from flows.workers.reproduce import CLONE, NAME, UnfitError, reproduce
from flows.workers.request import Request

FLOW = "ovis-dag-stage"  # on a server that other teams use too
STAGE_FAILED, UNFIT = "StageFailed", "Unfit"
LONGEST_MESSAGE = 4000  # of a Prefect state
MOST_STARTS = 3  # of one run, each after its machine was lost


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
    starts = flow_run.run_count or 1
    if starts > MOST_STARTS:
        return Failed(
            name=STAGE_FAILED,
            message=f"{wanted.stage}: {starts - 1} machines were lost while they ran it; "
            "does it need more memory than they have?",
        )
    try:
        checkout = f"{flow_run.id}-{starts}"
        outcome = reproduce(Path(os.environ[CLONE]), wanted, checkout, log.info)
    except (StageFailedError, UnfitError, RemoteError, DagError) as error:
        names = {StageFailedError: STAGE_FAILED, UnfitError: UNFIT}
        message = f"on {here}: {error}"[-LONGEST_MESSAGE:]
        return Failed(name=names.get(type(error), "Failed"), message=message)
    return Completed(
        name=outcome.outcome.capitalize(), message=f"on {here} in {outcome.seconds:.1f} s"
    )
