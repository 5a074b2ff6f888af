"""The Prefect flow that a work pool's workers run: one request, one stage.

Its final state is its report: Executed or Restored, StageFailed if the stage itself failed or took
its machines down, Unfit if this machine could not do it.
"""

import atexit
import os
import time
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State

from flows.agents.agent import UnfitError, reproduce
from flows.agents.request import Request
from flows.stage import StageFailedError

CLONE = "OVIS_AGENT_CLONE"  # where the worker was started
NAME = "OVIS_AGENT_NAME"
STAGE_FAILED, UNFIT = "StageFailed", "Unfit"
LONGEST_MESSAGE = 4000  # of a Prefect state
MOST_STARTS = 3  # of one run, each after its machine was lost
SECONDS_TO_COOL = 20  # an unfit agent leaves the next attempt to others for so long


@flow(name="stage", persist_result=False, validate_parameters=False)
def stage(request: dict[str, Any]) -> State:
    """Make the stage of a `Request`, given as JSON, in a checkout of this agent's clone."""
    wanted, log = Request(**request), get_run_logger()
    here = os.environ[NAME]
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
    except StageFailedError as error:
        return Failed(name=STAGE_FAILED, message=f"on {here}: {error}"[-LONGEST_MESSAGE:])
    except UnfitError as error:
        atexit.register(time.sleep, SECONDS_TO_COOL)  # this worker takes nothing while it sleeps
        return Failed(name=UNFIT, message=f"on {here}: {error}"[-LONGEST_MESSAGE:])
    return Completed(
        name=outcome.outcome.capitalize(), message=f"on {here} in {outcome.seconds:.1f} s"
    )
