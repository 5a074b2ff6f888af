"""The Prefect flow of a sweep: runs points and their stages concurrently.

Each point is an execution in its own worktree, on this machine or on workers, and a run in MLflow.
A result that several points need is made once (flows/place.py). A point whose stages are all done
is saved as a DVC experiment.
"""

import hashlib
import itertools
import json
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

from mlflow import MlflowClient
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State

from flows.dvc.records import sort_lock
from flows.environment import STATE_FOLDER
from flows.flow import open_place, submit, wait_for
from flows.git import GitError, git
from flows.graph import UNDONE, Outcome
from flows.place import interruptible
from flows.store import read_metrics
from flows.sweeps.plan import PlannedPoint, plan_sweep, results_folder
from flows.sweeps.points import Point
from flows.sweeps.report import Question, Result, write_report, write_results
from flows.table import counted, read_supervision
from flows.tracking import PARENT_TAG, Tracking


@flow(name="ovis-dag-sweep", validate_parameters=False, persist_result=False)
def sweep(
    root: str,
    name: str,
    points: list[Point],
    cores: int | None = None,
    question: Question | None = None,
    pools: bool = False,
) -> State:
    """Make every point, with shared stages run once, and report what the question asks.

    Stages run on `cores` cores of this machine, or on workers of the work pools. The final state
    carries the list of `Result`; it is failed if any point failed.
    """
    folder = Path(root)
    plan = plan_sweep(folder, points, pools)
    print(f"{plan.table()}\n\n{plan.summary()}", flush=True)
    with ExitStack() as runs:
        tags = {"sweep.workspace": plan.workspace}
        parent = runs.enter_context(Tracking(folder, name, tags, resume=True))
        client = MlflowClient(parent.uri)
        client.set_tag(parent.run_id, "prefect.flow_run_id", str(flow_run.id))
        trackings = [open_run(one, parent.run_id, runs) for one in plan.points]
        orders = itertools.count()
        place = open_place([planned.folder for planned in plan.points], cores, pools)
        with interruptible(place.stop):
            futures = [  # those of the first points go first
                submit(one.steps, place, orders, one.folder, tracking, f"{one.point.name} ")
                for one, tracking in zip(plan.points, trackings, strict=True)
            ]
            results = [_finish(*own) for own in zip(plan.points, futures, trackings, strict=True)]
        failed = [result.point.name for result in results if result.failed]
        own = results_folder(folder, name)
        write_results(own, results)
        if question is not None:
            print(f"\n{write_report(folder, own, results, question)}", flush=True)
        client.log_artifacts(parent.run_id, str(own))
    client.set_terminated(parent.run_id, "FAILED" if failed else "FINISHED")
    if failed:
        return Failed(
            message=f"{counted(len(failed), 'point')} failed: {', '.join(failed)}", data=results
        )
    return Completed(data=results)


def open_run(planned: PlannedPoint, parent: str, runs: ExitStack) -> Tracking:
    """Open the point's run in MLflow, or leave it as it is if it shows all there is.

    A run of the same name that has other values, of an earlier call, is another point's.
    """
    values = json.dumps(planned.point.values, sort_keys=True)
    tags = {PARENT_TAG: parent, "sweep.values": hashlib.sha256(values.encode()).hexdigest()}
    tracking = Tracking(planned.folder, planned.point.name, tags, resume=True)
    return tracking if tracking.has_published() else runs.enter_context(tracking)


def _finish(planned: PlannedPoint, futures: dict[str, PrefectFuture], tracking: Tracking) -> Result:
    """Wait for all stages of the point and record it."""
    outcomes = wait_for(planned.steps, futures)
    state = record_point(planned, outcomes, tracking, return_state=True)
    result = state.result(raise_on_failure=False)
    if isinstance(result, Result):
        return result
    print(f"\n{planned.point.name}: not recorded: {result}", file=sys.stderr, flush=True)
    return Result(planned.point, True, {}, _tally(outcomes))


@task(task_run_name="{planned.point.name}: record", cache_policy=NO_CACHE)
def record_point(planned: PlannedPoint, outcomes: list[Outcome], tracking: Tracking) -> Result:
    """Save the point as an experiment if all its stages are done; show it in MLflow in any case."""
    point, folder = planned.point, planned.folder
    undone = {outcome.stage for outcome in outcomes if outcome.outcome in UNDONE}
    sort_lock(folder)
    if not undone:
        _save_experiment(planned)
    stages = [step.stage for step in planned.steps if step.stage.name not in undone]
    if undone or not tracking.has_published():
        tracking.publish(stages, outcomes)
    for outcome in outcomes:
        if outcome.outcome == "failed":
            print(f"\n{point.name}: {outcome.message}", file=sys.stderr, flush=True)
    metrics, supervision = dict(read_metrics(folder, stages)), read_supervision(folder)
    return Result(point, bool(undone), metrics, _tally(outcomes), supervision)


def _tally(outcomes: list[Outcome]) -> dict[str, int]:
    return dict(Counter(outcome.outcome for outcome in outcomes))


def _save_experiment(planned: PlannedPoint) -> None:
    """Save the worktree as the DVC experiment of the point's name, unless it is saved already.

    This runs in a process of its own, because DVC changes the working directory. All outputs were
    committed when they were made, and not all are here, so the target is a folder without stages.
    """
    folder, name = planned.folder, planned.point.name
    head = git(folder, "rev-parse", "HEAD")
    reference = f"refs/exps/{head[:2]}/{head[2:]}/{name}"
    with suppress(GitError):  # there is none, or another one
        git(folder, "diff", "--quiet", reference, "--")
        return
    locks = git(folder, "ls-files", "--others", "--exclude-standard", "--", "*.lock").splitlines()
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "exp", "save", "--force"]
    command += ["--name", name, *(f"--include-untracked={lock}" for lock in locks)]
    command += ["--recursive", STATE_FOLDER]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])} in {folder}: {done.stderr.strip()}")
