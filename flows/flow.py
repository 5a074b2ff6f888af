"""The Prefect flow: one task per DVC stage that is not up to date, in the graph's order.

DVC decides what must run and is the only cache; Prefect decides when, and shows it. Stages that
depend on a failed stage do not run; other branches go on.
"""

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State

from flows.dvc.plan import make_plan
from flows.dvc.records import sort_lock
from flows.dvc.remote import elsewhere
from flows.environment import WORKER_CLONE
from flows.graph import UNDONE, Outcome, Status, Step, unchanged
from flows.journal import remember, was_tracked
from flows.place import Machine, Place, interruptible, tell
from flows.resources import CoreBudget
from flows.server import outlives_this_process
from flows.stage import StageFailedError, preflight
from flows.table import counted, name_execution, summarize_plan
from flows.tracking import PREFECT_LINK_TAG, Tracking

LONGEST_MESSAGE = 4000  # characters of a Prefect state's message


@task(task_run_name="{label}{step.stage.name}", cache_policy=NO_CACHE, persist_result=False)
def run_stage(
    step: Step,
    place: Place,
    order: int,
    root: Path,
    tracking: Tracking | None = None,
    label: str = "",
) -> State:
    """Bring one stage up to date and show it in MLflow; the state carries its `Outcome`.

    The label precedes the task's name, and each line of output on the terminal.
    """
    stage = step.stage
    log = get_run_logger()

    def take(line: str) -> None:
        tell(f"{label}[{stage.name}] {line}")
        log.info(line)

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
    remember(root, stage=stage.name, outcome=outcome.outcome, seconds=outcome.seconds)
    return Completed(name=outcome.outcome.capitalize(), data=outcome, message=outcome.message)


@flow(name="ovis-dag-experiment", validate_parameters=False, persist_result=False)
def experiment(
    root: str | None = None,
    targets: list[str] | None = None,
    cores: int | None = None,
    pools: bool = False,
) -> State:
    """Bring the targets (all stages by default) and their upstream up to date, and publish.

    Stages run on `cores` cores of this machine, or on workers of the work pools. The final state
    carries the list of `Outcome`; it is failed if any stage failed. Without `root`, as a
    deployment, it runs in the clone of its worker.
    """
    folder = Path(root or os.environ[WORKER_CLONE])
    steps = make_plan(folder, targets, elsewhere(folder, pools))
    if root is None:  # whoever gives it has checked the params
        preflight({folder: steps}, pools)()
    print(summarize_plan(steps), flush=True)
    idle = all(step.status is Status.UP_TO_DATE for step in steps)
    if idle and was_tracked(folder):  # the last scheduled run has published it
        return Completed(name="Unchanged", data=unchanged(steps))
    place = open_place([folder], cores, pools)
    tags = {"prefect.flow_run_id": str(flow_run.id)}
    if outlives_this_process():
        tags[PREFECT_LINK_TAG] = str(flow_run.ui_url)
    with Tracking(folder, name_execution(steps), tags) as tracking:
        with interruptible(place.stop):
            futures = submit(steps, place, itertools.count(), folder, tracking)
            outcomes = wait_for(steps, futures)
        sort_lock(folder)
        undone = {one.stage: one.outcome for one in outcomes if one.outcome in UNDONE}
        done = [step.stage for step in steps if step.stage.name not in undone]
        tracking.publish_or_tell(done, outcomes)
    failed = [name for name, outcome in undone.items() if outcome == "failed"]
    if failed:
        return Failed(
            message=f"{counted(len(failed), 'stage')} failed: {', '.join(failed)}", data=outcomes
        )
    return Completed(data=outcomes)


def open_place(roots: Iterable[Path], cores: int | None, pools: bool) -> Place:
    """Return where the stages of these worktrees run: on workers, or on `cores` cores here."""
    if pools:
        from flows.workers.coordinator import Fleet  # slow imports that local runs do not need
        from flows.workers.dispatch import PrefectDispatcher

        dispatcher = PrefectDispatcher()
        return Place({root: Fleet(root, dispatcher) for root in roots})
    budget = CoreBudget(cores)
    return Place({root: Machine(root, budget) for root in roots})


def submit(
    steps: list[Step],
    place: Place,
    orders: Iterator[int],
    root: Path,
    tracking: Tracking | None = None,
    label: str = "",
) -> dict[str, PrefectFuture]:
    """Start a `run_stage` task per stage that is not up to date; return them by stage name."""
    futures: dict[str, PrefectFuture] = {}
    for step in steps:
        if step.status is not Status.UP_TO_DATE:
            upstream = [futures[need] for need in step.stage.needs if need in futures]
            futures[step.stage.name] = run_stage.submit(
                step, place, next(orders), root, tracking, label, wait_for=upstream
            )
    return futures


def wait_for(steps: list[Step], futures: dict[str, PrefectFuture]) -> list[Outcome]:
    """Wait until all stages have ended, and return how each one did."""
    return [_outcome(step, futures.get(step.stage.name)) for step in steps]


def _outcome(step: Step, future: PrefectFuture | None) -> Outcome:
    if future is None:
        return unchanged([step])[0]
    future.wait()
    stage, state = step.stage, future.state
    if state.name == "NotReady":  # something upstream failed
        return Outcome(stage.name, stage.group, "not run", 0.0, state.message or "")
    result = state.result(raise_on_failure=False)
    if isinstance(result, Outcome):
        return result
    return Outcome(stage.name, stage.group, "failed", 0.0, f"{stage.name}: {state}: {result}")
