"""What people see of an execution on Prefect's pages beside its graph: the plan, and progress."""

import re
import time
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException

from flows.graph import Outcome, Step
from flows.table import summarize_plan

# Lines of stages/common/runtime/progress.py: "wspn, classify: 120/400 in 10 s (12.0/s, 23 s left)".
PROGRESS = re.compile(r"(?P<what>[^:]+): (?P<done>\d+)/(?P<total>\d+) in \d+ s \((?P<rate>.*)\)$")
SECONDS_BETWEEN_UPDATES = 5.0


def show_plan(steps: list[Step]) -> None:
    """Show what the execution will do with each stage, and why."""
    create_table_artifact(
        key="plan",
        table=[
            {"stage": s.stage.name, "plan": s.status.value, "why": "; ".join(s.reasons)}
            for s in steps
        ],
        description=summarize_plan(steps),
    )


def show_outcomes(outcomes: list[Outcome]) -> None:
    """Show what happened to each stage; results and images are on MLflow's page."""
    create_table_artifact(
        key="stages",
        table=[{"stage": o.stage, "outcome": o.outcome, "seconds": o.seconds} for o in outcomes],
        description="What happened to each stage",
    )


class StageProgress:
    """Turns the progress lines of one stage into a progress artifact, a few seconds apart."""

    def __init__(self, stage: str, seconds_between: float = SECONDS_BETWEEN_UPDATES) -> None:
        """Watch the stage of that name; nothing is shown before its first unfinished line."""
        self._stage = stage
        self._seconds = seconds_between
        self._artifact: UUID | None = None
        self._next = 0.0  # when the next line is shown
        self._broken = False

    def see(self, line: str) -> None:
        """Take a line of the stage's output."""
        found = PROGRESS.match(line.strip())
        if not found or self._broken:
            return
        done, total = int(found["done"]), int(found["total"])
        if not self._artifact if done >= total else time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._seconds
        percent = 100 * done / max(total, 1)
        words = f"{found['what']}: {done}/{total}, {found['rate']}"
        try:
            if self._artifact:
                update_progress_artifact(self._artifact, percent, words)
            else:  # under a key that Prefect accepts: `pseudo_boxes@0` becomes `pseudo-boxes-0`
                key = re.sub(r"[^a-z0-9-]+", "-", f"progress-{self._stage}".lower())
                self._artifact = create_progress_artifact(percent, key=key, description=words)
        except (PrefectException, httpx.HTTPError) as error:
            # A stage must not fail because the page about it cannot be written.
            self._broken = True
            print(f"[{self._stage}] no more progress on Prefect's page: {error}", flush=True)
