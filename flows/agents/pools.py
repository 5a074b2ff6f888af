"""Work pools, deployments and the lost-machine rule on a Prefect server: `make pools`, once.

Calling it again changes nothing, or brings what is there up to date.
"""

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
from ruamel.yaml import YAML

from flows.agents.stage_flow import stage

LOST_RULE = "a stage whose machine is lost runs elsewhere"
# Of the worker's heartbeat below; three may go missing on a busy machine before it counts as lost.
SECONDS_UNTIL_LOST = 90
ALIVE = ("Pending", "Submitting", "InfrastructurePending", "Running", "heartbeat")
HEARTBEAT_SECONDS = 30  # the least that Prefect 3.8 takes


def make_pools(root: Path) -> list[str]:
    """Make what is missing on the server of PREFECT_API_URL and say what there is now.

    Not by `prefect deploy`: its 3.8.8 ends with an error after the first deployment, in a question
    about workers that its own server refuses.

    Raises:
        ValueError: there is no prefect.yaml.
    """
    path = root / "prefect.yaml"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; it has the deployments")
    deployments = YAML(typ="safe").load(path)["deployments"]
    with get_client(sync_client=True) as client:
        flow = client.create_flow(stage)
        for deployment in deployments:
            pool = deployment["work_pool"]
            with suppress(ObjectAlreadyExists):
                client.create_work_pool(WorkPoolCreate(name=pool["name"], type="process"))
            client.create_deployment(
                flow_id=flow,
                name=deployment["name"],
                description=deployment["description"],
                entrypoint=deployment["entrypoint"],
                work_pool_name=pool["name"],
                job_variables=pool["job_variables"],
            )
    try:
        rule = Automation.read(name=LOST_RULE)
    except ValueError:
        rule = lost_rule().create()
    return [
        *(f"deployment stage/{d['name']} in pool {d['work_pool']['name']}" for d in deployments),
        f"automation: {rule.name}",
    ]


def lost_rule() -> Automation:
    """Return the automation that gives a silent stage run back to its pool.

    A run that was claimed, or that sent a heartbeat, must be heard of again in time, be it of its
    end: each state makes an event of that name, and those of `stage_flow` have names of their own.
    How often a run may be lost, it counts itself (`stage_flow.MOST_STARTS`).
    """
    prefix = "prefect.flow-run."
    return Automation(
        name=LOST_RULE,
        description="No heartbeat: the machine is gone, or the worker with its stage was killed",
        trigger=EventTrigger(
            match={"prefect.resource.id": f"{prefix}*"},
            match_related={
                "prefect.resource.role": "flow",
                "prefect.resource.name": "stage",
            },
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
