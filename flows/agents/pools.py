"""Work pools, deployments and the lost-machine rule on a Prefect server: `make pools`, once per server.

Calling it again changes nothing, or brings what is there up to date.
"""

import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from prefect import get_client
from prefect.automations import Automation
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import StateType

POOLS = ("cpu", "gpu")
LOST_RULE = "a stage whose machine is lost runs elsewhere"
# Of the worker's heartbeat below; three may go missing on a busy machine before it counts as lost.
SECONDS_UNTIL_LOST = 90
HEARTBEAT_SECONDS = 30  # the least that Prefect 3.8 takes
ENDS = ("Completed", "Failed", "Crashed", "Cancelled", "Cancelling", "AwaitingRetry", "Scheduled")


def make_pools(root: Path) -> list[str]:
    """Make what is missing on the server of PREFECT_API_URL and say what there is now.

    Raises:
        RuntimeError: Prefect refused a deployment of prefect.yaml.
    """
    with get_client(sync_client=True) as client:
        for pool in POOLS:
            with suppress(ObjectAlreadyExists):
                client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"prefect.yaml: {(done.stdout + done.stderr)[-2000:]}")
    try:
        rule = Automation.read(name=LOST_RULE)
    except ValueError:
        rule = lost_rule().create()
    return [f"work pools {', '.join(POOLS)}, a deployment each", f"automation: {rule.name}"]


def lost_rule() -> Automation:
    """Return the automation that gives a silent stage run back to its pool.

    A run that was claimed, or that sent a heartbeat, must be heard of again in time. How often that
    may happen to one run, the run itself counts (`stage_flow.MOST_STARTS`).
    """
    prefix = "prefect.flow-run."
    alive = {f"{prefix}{name}" for name in ("heartbeat", "Pending", "Running")}
    return Automation(
        name=LOST_RULE,
        description="No heartbeat: the machine is gone, or the worker with its stage was killed",
        trigger=EventTrigger(
            match={"prefect.resource.id": f"{prefix}*"},
            match_related={
                "prefect.resource.role": "flow",
                "prefect.resource.name": "stage",
            },
            after=alive,
            expect=alive | {f"{prefix}{name}" for name in ENDS},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SECONDS_UNTIL_LOST),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.SCHEDULED,
                name="AwaitingRetry",
                message=f"not heard of for {SECONDS_UNTIL_LOST} s; its machine counts as lost",
            )
        ],
    )
