"""The Prefect flow: one task per DVC stage, in the order and with the parallelism the graph allows.

DVC decides what must run and is the only cache; Prefect decides when, and shows it. Branches that
do not depend on a failed stage go on; what depends on it is not run.
"""

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State

from flows.artifacts import StageProgress, show_outcomes, show_plan
from flows.dvc.plan import make_plan
from flows.dvc.records import sort_lock
from flows.environment import WORKER_CLONE
from flows.graph import Outcome, Status, Step, unchanged
from flows.journal import is_shown, remember
from flows.place import Machine, Place, interruptible, tell
from flows.resources import CoreBudget
from flows.server import outlives_this_process
from flows.stage import StageFailedError
from flows.table import name_execution, summarize_plan
from flows.tracking import PREFECT_LINK_TAG, Tracking
from flows.workers.coordinator import Fleet

LONGEST_MESSAGE = 4000  # of a Prefect state


@task(task_run_name="{step.stage.name}", cache_policy=NO_CACHE, persist_result=False)
def run_stage(
    step: Step,
    place: Place,
    order: int,
    root: Path,
    tracking: Tracking | None = None,
    label: str = "",
) -> State:
    """Bring one stage up to date and show it in MLflow; the state carries its `Outcome`.

    The label goes before each line of output on the terminal.
    """
    stage = step.stage
    if step.status is Status.UP_TO_DATE:
        return Completed(name="Unchanged", data=unchanged([step])[0])
    log, progress = get_run_logger(), StageProgress(stage.name)

    def take(line: str) -> None:
        tell(f"{label}[{stage.name}] {line}")
        log.info(line)
        progress.see(line)

    if tracking:
        tracking.begin(stage)
    try:
        outcome = place.run(root, stage, order, take)
    except StageFailedError as error:
        outcome = Outcome(stage.name, stage.group, "failed", 0.0, str(error))
    if tracking:
        tracking.end(stage, outcome)
    if outcome.outcome == "failed":
        return Failed(message=outcome.message[-LONGEST_MESSAGE:], data=outcome)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    remember(root, stage=stage.name, outcome=outcome.outcome, seconds=outcome.seconds, at=now)
    return Completed(name=outcome.outcome.capitalize(), data=outcome, message=outcome.message)


@flow(name="ovis-dag-experiment", validate_parameters=False, persist_result=False)
def experiment(
    root: str | None = None,
    targets: list[str] | None = None,
    cores: int | None = None,
    pools: bool = False,
) -> State:
    """Bring the targets (all stages by default) and their upstream up to date, and publish.

    Stages run on this machine, on so many of its cores, or on workers of the work pools. The final
    state carries the list of `Outcome`; it is failed if any stage failed. Without `root`, as a
    deployment, it runs in the clone of its worker.
    """
    folder = Path(root or os.environ[WORKER_CLONE])
    steps = make_plan(folder, targets)
    print(summarize_plan(steps), flush=True)
    show_plan(steps)
    if is_shown(folder, steps):  # by the last run of a schedule
        return Completed(name="Unchanged", data=unchanged(steps))
    place = open_place([folder], cores, pools)
    with Tracking(folder, name_execution(steps), _prefect_tags()) as tracking:
        with interruptible(place.stop):
            outcomes = _run_all(steps, place, folder, tracking)
        return _publish(folder, tracking, steps, outcomes)


def open_place(roots: Iterable[Path], cores: int | None, pools: bool) -> Place:
    """Return where the stages of these worktrees run: on workers, or on so many cores here."""
    if pools:
        from flows.workers.dispatch import PrefectDispatcher  # most are spared its imports

        dispatcher = PrefectDispatcher()
        return Place({root: Fleet(root, dispatcher) for root in roots})
    budget = CoreBudget(cores)
    return Place({root: Machine(root, budget) for root in roots})


def _prefect_tags() -> dict[str, str]:
    tags = {"prefect.flow_run_id": str(flow_run.id)}
    if outlives_this_process():
        tags[PREFECT_LINK_TAG] = str(flow_run.ui_url)
    return tags


def _run_all(steps: list[Step], place: Place, root: Path, tracking: Tracking) -> list[Outcome]:
    futures: dict[str, PrefectFuture] = {}
    for order, step in enumerate(steps):
        upstream = [futures[name] for name in step.stage.needs]
        task = run_stage.submit(step, place, order, root, tracking, wait_for=upstream)
        futures[step.stage.name] = task
    return [outcome_of(step, futures[step.stage.name]) for step in steps]


def outcome_of(step: Step, future: PrefectFuture) -> Outcome:
    """Wait for the task of `run_stage` and return how it ended, whatever that is."""
    future.wait()
    stage, state = step.stage, future.state
    if state.name == "NotReady":  # something upstream failed
        return Outcome(stage.name, stage.group, "not run", 0.0, state.message or "")
    result = state.result(raise_on_failure=False)
    if isinstance(result, Outcome):
        return result
    return Outcome(stage.name, stage.group, "failed", 0.0, f"{stage.name}: {state}: {result}")


def _publish(root: Path, tracking: Tracking, steps: list[Step], outcomes: list[Outcome]) -> State:
    sort_lock(root)
    failed = [outcome for outcome in outcomes if outcome.outcome == "failed"]
    show_outcomes(outcomes)
    done = {outcome.stage for outcome in outcomes if outcome.outcome not in ("failed", "not run")}
    tracking.publish_or_tell([s.stage for s in steps if s.stage.name in done], outcomes)
    if failed:
        names = ", ".join(outcome.stage for outcome in failed)
        return Failed(message=f"{len(failed)} stages failed: {names}", data=outcomes)
    return Completed(data=outcomes)
