"""The Prefect flow: one task per DVC stage, in the order and with the parallelism the graph allows.

DVC decides what must run and is the only cache; Prefect decides when, and shows it. Branches that
do not depend on a failed stage go on; what depends on it is not run.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State

from flows.cores import CoreBudget, CoresClosedError
from flows.graph import Status, Step, mermaid
from flows.journal import remember
from flows.plan import make_plan, sort_lock
from flows.stage import Outcome, StageFailedError, StageRunner
from flows.table import read_results, result_rows, summarize_plan
from flows.tracking import Tracking

LONGEST_MESSAGE = 4000  # of a Prefect state


class Machine:
    """What all stages of one execution share: the cores, and the runner that starts processes."""

    def __init__(self, root: Path, cores: int | None) -> None:
        """Take `cores` of this machine, by default all, for the project at `root`."""
        self.root = root
        self.budget = CoreBudget(cores)
        self.runner = StageRunner(root, echo=lambda line: print(line, flush=True))
        self.runner.load()

    def stop(self) -> None:
        """Stop running stages and start no more."""
        self.budget.close()
        self.runner.stop()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within the block Ctrl-C and SIGTERM stop the stages before they stop this process."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(number: int, frame: FrameType | None) -> None:
            print(f"\nStopping on {signal.Signals(number).name} …", flush=True)
            self.stop()
            raise KeyboardInterrupt

        before = {number: signal.signal(number, interrupt) for number in STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


STOPPING = (signal.SIGINT, signal.SIGTERM)


@task(task_run_name="{step.stage.name}", cache_policy=NO_CACHE, persist_result=False)
def run_stage(step: Step, machine: Machine, order: int) -> State:
    """Bring one stage up to date; the state carries its `Outcome`."""
    stage = step.stage
    if step.status is Status.UP_TO_DATE:
        outcome = Outcome(stage.name, stage.group, "unchanged")
        return Completed(name="Unchanged", data=outcome)
    log = get_run_logger()
    try:
        with machine.budget.reserve(stage.cores, order) as cores:
            log.info("%s: %s on %d cores", stage.name, stage.command, cores)
            outcome = machine.runner.run(stage, log.info)
            remember(machine.root, stage=stage.name, outcome=outcome.outcome, **_when(outcome))
    except (StageFailedError, CoresClosedError) as error:
        message = str(error)
        return Failed(
            message=message[-LONGEST_MESSAGE:],
            data=Outcome(stage.name, stage.group, "failed", 0.0, message),
        )
    return Completed(name=outcome.outcome.capitalize(), data=outcome)


@flow(name="experiment", validate_parameters=False, persist_result=False)
def experiment(root: str, targets: list[str] | None = None, cores: int | None = None) -> State:
    """Bring the targets (all stages by default) and their upstream up to date, and publish.

    The final state carries the list of `Outcome`; it is failed if any stage failed.
    """
    folder = Path(root)
    steps = make_plan(folder, targets)
    print(summarize_plan(steps), flush=True)
    _show_plan(steps)
    tracking = Tracking(folder)
    machine = Machine(folder, cores)
    with machine.interruptible():
        outcomes = _run_all(steps, machine)
    return _publish(folder, tracking, steps, outcomes)


def _run_all(steps: list[Step], machine: Machine) -> list[Outcome]:
    futures: dict[str, PrefectFuture] = {}
    for order, step in enumerate(steps):
        upstream = [futures[name] for name in step.stage.needs]
        futures[step.stage.name] = run_stage.submit(step, machine, order, wait_for=upstream)
    return [_outcome(step, futures[step.stage.name]) for step in steps]


def _outcome(step: Step, future: PrefectFuture) -> Outcome:
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
    create_table_artifact(
        key="stages",
        table=[{"stage": o.stage, "outcome": o.outcome, "seconds": o.seconds} for o in outcomes],
        description="What happened to each stage",
    )
    results = read_results(root)
    if results:
        create_table_artifact(
            key="results", table=result_rows(results), description="AP50 (AP), percent"
        )
    done = {outcome.stage for outcome in outcomes if outcome.outcome not in ("failed", "not run")}
    stages = [step.stage for step in steps if step.stage.name in done]
    tracking.publish(stages, outcomes, {"prefect.flow_run_id": str(flow_run.id)})
    if failed:
        names = ", ".join(outcome.stage for outcome in failed)
        return Failed(message=f"{len(failed)} stages failed: {names}", data=outcomes)
    return Completed(data=outcomes)


def _when(outcome: Outcome) -> dict[str, str | float]:
    return {"seconds": outcome.seconds, "at": datetime.now(UTC).isoformat(timespec="seconds")}


def _show_plan(steps: list[Step]) -> None:
    create_table_artifact(
        key="plan",
        table=[
            {"stage": s.stage.name, "plan": s.status.value, "why": "; ".join(s.reasons)}
            for s in steps
        ],
        description=summarize_plan(steps),
    )
    create_markdown_artifact(key="dag", markdown=mermaid(steps), description="The graph of stages")
