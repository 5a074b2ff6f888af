"""The flow that workers of a pool run: one request, one stage, exactly or not at all.

A stage runs alone, in its own checkout, and only if the worker computes the coordinator's hash of
command, params and inputs. So with a stale clone, another environment or a wrong remote a worker
may refuse work, but it never makes a wrong result.

The final state of the run is its report: Executed or Restored; StageFailed if the stage itself
failed, took its machines down, or no machine may run it; Unfit if this machine cannot run it and so
leaves the pool (worker.py). The run's labels say what the result was made with. A machine that is
stopped returns the run to the pool as Preempted. Any other end counts as an attempt, which another
run may repeat.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, get_client, get_run_logger
from prefect.exceptions import Abort, TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, Scheduled, State

from flows.dvc.curves import push_curves, remove_curves
from flows.dvc.project import load_whole_graph
from flows.dvc.remote import (
    RemoteError,
    check_remote,
    fetch_result,
    pull_inputs,
    push_result,
    result_key,
    with_patience,
)
from flows.dvc.resume import ResumePoint
from flows.environment import PERIOD, WORKER_CLONE, WORKER_NAME, seconds
from flows.git import GitError
from flows.graph import DagError, Graph, Outcome, Stage
from flows.resources import DeviceError, DeviceSlots, Reservation, require_devices
from flows.stage import StageFailedError, StageRunner
from flows.workers.request import (
    RefusedError,
    Request,
    check_stage,
    inputs_made_upstream,
    versions_here,
)
from flows.workers.space import FULL_DISK, UnfitError, require_space
from flows.workers.workspace import checkout, fetch_commit, link_resume, pulling, write_records

FLOW = "ovis-dag-stage"  # on a server that other teams use too
STAGE_FAILED, UNFIT, PREEMPTED = "StageFailed", "Unfit", "Preempted"
MADE = "made."  # prefix of the run's labels that say what the result was made with
LONGEST_MESSAGE = 4000  # characters of a Prefect state's message
MOST_STARTS = 3  # of one run from the same resume point, each after its machine was lost

Log = Callable[[str], None]


@flow(name=FLOW, persist_result=False, validate_parameters=False)
def stage(request: dict[str, Any]) -> State:
    """Make the stage of a `Request`, given as JSON, in a checkout of this worker's clone."""
    here, log = os.environ[WORKER_NAME], get_run_logger()
    try:
        wanted = Request(**request)
    except TypeError as error:  # a coordinator of another version
        return Failed(
            name=UNFIT, message=f"on {here}: {error}; `git pull` in its clone and start it again"
        )
    run, count = str(flow_run.id), flow_run.run_count or 1
    try:
        start = count - _count_preemptions() if count > 1 else 1
        clone = Path(os.environ[WORKER_CLONE])
        outcome = reproduce(clone, wanted, f"{run}-{count}", log.info, run, start)
    except (StageFailedError, UnfitError, RemoteError, DagError) as error:
        names: dict[type[Exception], str] = {StageFailedError: STAGE_FAILED, UnfitError: UNFIT}
        message = f"on {here}: {error}"[-LONGEST_MESSAGE:]
        return Failed(name=names.get(type(error), "Failed"), message=message)
    except TerminationSignal as stopped:
        with get_client(sync_client=True) as client:
            if not client.read_flow_run(flow_run.id).state.is_running():
                raise  # the run was cancelled
            state = Scheduled(name=PREEMPTED, message=f"{here} was stopped; it goes on elsewhere")
            client.set_flow_run_state(flow_run.id, state, force=True)
        raise Abort from stopped  # the run is another worker's now: report nothing more
    try:
        if outcome.made:
            made = {**outcome.made, "worker": here}
            with get_client(sync_client=True) as client:
                labels = {f"{MADE}{key}": value for key, value in made.items()}
                client.update_flow_run_labels(flow_run.id, labels)
    except httpx.HTTPError as error:  # the result is made all the same
        log.warning(f"what it was made with could not be told: {error!r}")
    return Completed(
        name=outcome.outcome.capitalize(), message=f"on {here} in {outcome.seconds:.1f} s"
    )


def _count_preemptions() -> int:
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(flow_run.id)
    return sum(state.name == PREEMPTED for state in states)


def reproduce(
    clone: Path, request: Request, name: str, log: Log, run: str = "", start: int = 1
) -> Outcome:
    """Make one stage or shard in a checkout called `name`, and push it with its run-cache entry.

    The name is unique among all running stages. This is start number `start` of this `run`, which
    starts again after each loss.

    Raises:
        StageFailedError: the stage itself failed or the request is wrong, as on any machine.
        UnfitError: something about this machine failed.
        RemoteError, DagError: something failed that may or may not be this machine's fault.
    """
    try:
        require_space(clone, log)
        _reach(lambda: fetch_commit(clone, request.commit), log)
        with checkout(clone, request, name) as folder:
            _require_versions(folder, request)
            _reach(lambda: check_remote(folder), log)
            graph = load_whole_graph(folder)
            stage = check_stage(request, graph)
            slots = DeviceSlots()
            wanted = max(stage.gpus, 1) if stage.pool == "gpu" else stage.gpus
            require_devices(len(slots.devices), wanted)
            point = ResumePoint(folder, link_resume(clone, folder, request.key), request.key)
            _require_progress(stage, point, run, start, log)
            with pulling(clone):
                _pull(folder, request, graph, stage, log)
            push = partial(_push, folder, stage, point, log)
            with slots.reserve(stage.gpus) as devices:
                outcome = _run(folder, stage, log, devices, push)
            with_patience(lambda: push_result(folder, stage.name), log)
            with_patience(point.remove, log)
            with_patience(lambda: remove_curves(folder, request.key), log)
            return outcome
    except RefusedError as error:
        raise StageFailedError(f"{request.stage}: refused: {error}") from error
    except (GitError, OSError, DeviceError) as error:
        raise UnfitError(f"{request.stage}: {error}") from error


def _require_progress(stage: Stage, point: ResumePoint, run: str, start: int, log: Log) -> None:
    """Take the newest resume point; raise if the last starts of this run made no progress."""
    with_patience(lambda: point.pull(log), log)
    starts = with_patience(lambda: point.count_start(run, start), log)
    if starts > MOST_STARTS:
        raise StageFailedError(
            f"{stage.name}: {starts - 1} machines were lost while they ran it, and it came no "
            "further; does it need more memory than they have?"
        )


def _pull(folder: Path, request: Request, graph: Graph, stage: Stage, log: Log) -> None:
    """Fetch the stage's inputs, and its result if the remote has it."""
    write_records(folder, request)
    with_patience(lambda: pull_inputs(folder, inputs_made_upstream(graph, stage)), log)
    if result_key(folder, stage.name) != request.key:
        raise RefusedError(
            f"command, params or inputs at {request.commit[:12]} are not those of the "
            "coordinator's working tree; did it change since it was started?"
        )
    with_patience(lambda: fetch_result(folder, stage.name), log)


def _run(
    folder: Path, stage: Stage, log: Log, devices: Reservation, push: Callable[[], None]
) -> Outcome:
    """Run the stage in another thread; signals reach this thread, which then stops the stage.

    How far it is gets pushed periodically, and when the stage is stopped.
    """
    runner = StageRunner(folder)
    period = seconds(PERIOD)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(runner.run, stage, log, devices.environment, devices.lock)
        try:
            while not wait([future], period).done:
                push()
            return future.result()
        except StageFailedError as error:
            if FULL_DISK in str(error):
                raise UnfitError(f"{stage.name}: {error}") from error
            raise
        except BaseException:
            runner.stop()
            wait([future])
            push()
            raise


def _push(folder: Path, stage: Stage, point: ResumePoint, log: Log) -> None:
    try:
        point.push(log)
        push_curves(folder, stage, point.key)
    except (RemoteError, DagError) as error:  # the stage continues without it
        log(f"its resume point or curve could not be pushed: {error}")


def _require_versions(folder: Path, request: Request) -> None:
    here = versions_here(folder)
    other = {
        f"{package} {here.get(package)} (coordinator: {version})"
        for package, version in request.versions.items()
        if here.get(package) != version
    }
    if other:
        raise UnfitError(
            f"another environment than the coordinator's: {', '.join(sorted(other))}; "
            "install the lock of the same commit"
        )


def _reach(action: Callable[[], object], log: Log) -> None:
    """Run an action that must succeed in the end on every machine: reach origin or the remote."""
    try:
        with_patience(action, log)
    except (RemoteError, DagError) as error:
        raise UnfitError(str(error)) from error
