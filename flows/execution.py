"""One execution of the experiment: brings its stages up to date, then reports the results."""

import os
import sys
import time
from pathlib import Path

from flows import table
from flows.environment import without_user
from flows.graph import Status, unchanged
from flows.journal import is_edited, last_seconds, was_tracked
from flows.server import LocalServer, call_flow

EXPERIMENTS = "/#/experiments?workflowType=machine_learning"  # page of MLflow


def execute(root: Path, targets: list[str] | None, cores: int | None, pools: bool) -> bool:
    """Bring the targets (None: all stages) up to date, show the results; say if all went well.

    They run on `cores` cores (all if None), or on workers. If there is nothing to do, neither
    Prefect nor its server is loaded, which would take 15 s. Bad input raises ValueError.
    """
    started = time.monotonic()
    server = LocalServer(root)
    if pools:
        require_fleet(root)
    elif is_edited(root):
        server.start()  # while DVC loads and the plan is made, which will hardly be empty
    from flows.dvc.plan import make_plan
    from flows.dvc.remote import elsewhere

    steps = make_plan(root, targets, elsewhere(root, pools))
    if any(step.status is not Status.UP_TO_DATE for step in steps):
        from flows.stage import load_dvc, preflight

        check = preflight({root: steps}, pools)
        if not pools:
            load_dvc(root)  # while Prefect's server starts
        flow, name = "flows.flow:experiment", table.name_execution(steps)
        outcomes = call_flow(
            root, flow, targets, cores, pools, run_name=name, check=check, server=server
        )
    else:
        server.stop()
        outcomes = unchanged(steps)
        if not was_tracked(root):
            from flows.tracking import Tracking

            try:
                tracking = Tracking(root, table.name_execution(steps))
            except RuntimeError as error:  # nothing is lost
                print(f"{error}. The same again publishes the results")
            else:
                tracking.publish_or_tell([step.stage for step in steps], outcomes)
    failed = [outcome for outcome in outcomes if outcome.outcome == "failed"]
    print("\n" + table.stages_table(outcomes, last_seconds(root)))
    if not failed:
        print("\n" + table.results_table(table.read_results(root), table.read_supervision(root)))
    images = [path for step in steps for path in step.stage.outputs if path.endswith(".png")]
    print(f"\nImages  {'  '.join(path for path in images if (root / path).is_file()) or '–'}")
    print(f"Metrics   {mlflow_page()}")
    if all(outcome.outcome == "unchanged" for outcome in outcomes):
        print(f"Nothing to do: {table.count_stages(outcomes)} up to date", end=" ")
    else:
        print("Done" if not failed else "Not done", end=" ")
    print(f"({time.monotonic() - started:.1f} s)")
    for outcome in failed:
        print(f"\n{outcome.message}", file=sys.stderr)
    return not failed


def mlflow_page() -> str:
    """Return where a person finds the metrics: on MLFLOW_TRACKING_URI's server, if it has one."""
    if is_server(uri := os.environ["MLFLOW_TRACKING_URI"]):
        return f"{without_user(uri).rstrip('/')}{EXPERIMENTS}"
    return f"make ui, then http://127.0.0.1:5000{EXPERIMENTS}"


def is_server(uri: str) -> bool:
    """Say whether MLflow's store is a server, which shows pages of its own."""
    return uri.startswith(("http:", "https:"))


def require_fleet(root: Path) -> None:
    """Print which commit workers would run, or raise ValueError if they cannot run this state."""
    from flows.dvc.project import load_whole_graph
    from flows.dvc.remote import check_remote
    from flows.workers.request import take_snapshot

    if not os.environ.get("PREFECT_API_URL"):
        raise ValueError("PREFECT_API_URL is not set: give the address of the workers' server")
    commit = take_snapshot(root, load_whole_graph(root)).commit
    print(f"Workers work at commit {commit[:12]}, with results through {check_remote(root)}")
