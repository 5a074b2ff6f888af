"""Work pools, deployments and the lost-machine automation on a Prefect server: `make pools`.

Calling it again updates what is there.
"""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from prefect import get_client
from prefect.automations import Automation
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.states import StateType
from ruamel.yaml import YAML

from flows.server import require_server
from flows.workers.stage_flow import FLOW

POOL, POOL_TYPE = "ovis-dag-{}", "process"  # names on a server that other teams use too
LOST_RULE = "ovis-dag: a stage whose machine is lost runs elsewhere"
# Of the worker's heartbeat; on a busy machine three may go missing before it counts as lost.
SECONDS_UNTIL_LOST = 90
ALIVE = ("Pending", "Submitting", "InfrastructurePending", "Running", "heartbeat")


def make_pools(root: Path) -> list[str]:
    """Create what prefect.yaml names on the server of PREFECT_API_URL; say what exists now.

    Raises:
        ValueError: there is no prefect.yaml, or a pool of that name has another type.
        RuntimeError: the server does not answer, or `prefect deploy` failed.
    """
    path = root / "prefect.yaml"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; it has the deployments")
    deployments = YAML(typ="safe").load(path)["deployments"]
    require_server()
    for deployment in deployments:
        pool = deployment["work_pool"]["name"]
        if not has_pool(pool):
            with get_client(sync_client=True) as client:
                client.create_work_pool(WorkPoolCreate(name=pool, type=POOL_TYPE))
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])} failed:\n{done.stdout}{done.stderr}")
    _make_rule()
    return [
        *(f"deployment {d['name']} in pool {d['work_pool']['name']}" for d in deployments),
        f"automation: {LOST_RULE}",
    ]


def has_pool(name: str) -> bool:
    """Say whether the server has that pool.

    Raises:
        ValueError: it has another type; stages need processes in a worker's own clone.
    """
    try:
        with get_client(sync_client=True) as client:
            found = client.read_work_pool(name).type
    except ObjectNotFound:
        return False
    if found != POOL_TYPE:
        raise ValueError(
            f"work pool {name} on Prefect's server is of type {found}, not {POOL_TYPE}; "
            "delete it there, then `make pools`"
        )
    return True


def _make_rule() -> None:
    rule = lost_rule()
    try:
        rule.id = Automation.read(name=LOST_RULE).id
    except ValueError:  # there is none
        rule.create()
    else:
        rule.update()


def lost_rule() -> Automation:
    """Return the automation that returns a silent stage run to its pool.

    After a run was claimed or sent a heartbeat, another event must follow in time: a heartbeat or
    its end. Each state emits an event of its name; the states of `stage_flow` have their own names.
    The run itself counts how often it was lost (`stage_flow.MOST_STARTS`).
    """
    prefix = "prefect.flow-run."
    return Automation(
        name=LOST_RULE,
        description="No heartbeat: the machine is gone, or the worker with its stage was killed",
        trigger=EventTrigger(
            match={"prefect.resource.id": f"{prefix}*"},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": FLOW},
            after={f"{prefix}{name}" for name in ALIVE},
            expect={f"{prefix}*"},
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
