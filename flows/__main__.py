"""`python -m flows <command>`: run the experiment, say what would run, edit params and deps."""

import argparse
import errno
import os
import subprocess
import sys
import time
from pathlib import Path

from flows.environment import apply_settings
from flows.graph import Outcome, Status, Step
from flows.table import (
    name_execution,
    plan_table,
    read_results,
    results_table,
    stages_table,
    summarize_plan,
)

FIXES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "take a checkout that can be written",
    errno.EACCES: "take a checkout that this user can write",
    errno.EPERM: "take a checkout that this user can write",
}
MLFLOW_PAGE = "make ui, then http://127.0.0.1:5000/#/experiments?workflowType=machine_learning"


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the process's exit code: 0, or 1 failed, 2 wrong input."""
    parser = _parser()
    options, options.more = parser.parse_known_args(arguments)
    if options.more and options.command is not predict:
        parser.error(f"unrecognized arguments: {' '.join(options.more)}")
    root = Path.cwd()
    try:
        apply_settings(root)
        return options.command(root, options)
    except ValueError as error:
        print(f"flows: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"flows: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in FIXES:
            raise
        print(f"flows: {error}; {FIXES[error.errno]} and run the same again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("flows: stopped; run the same again to go on from here", file=sys.stderr)
        return 130


def run(root: Path, options: argparse.Namespace) -> int:
    """Bring the targets up to date through Prefect; with nothing to do, only show the results."""
    # Imported where needed: DVC takes 0.7 s, Prefect and MLflow 5 s, Prefect's server 10 s.
    from flows.dvc.plan import make_plan
    from flows.journal import was_tracked

    started = time.monotonic()
    if options.pools:
        _require_fleet(root)
    steps = make_plan(root, options.targets)
    if any(step.status is not Status.UP_TO_DATE for step in steps):
        from flows.stage import Preflight

        preflight = (
            Preflight(root, steps) if not options.pools else None
        )  # workers have the weights
        from flows.server import call_flow

        if preflight:
            preflight.finish()
        arguments = (options.targets, options.cores, options.pools)
        outcomes, failed = call_flow(
            root, "flows.flow:experiment", *arguments, run_name=name_execution(steps)
        )
    else:
        outcomes, failed = _unchanged(steps), False
        if not was_tracked(root, os.environ["MLFLOW_TRACKING_URI"]):
            from flows.tracking import Tracking

            Tracking(root, name_execution(steps)).publish([step.stage for step in steps], outcomes)
    _report(root, steps, outcomes, time.monotonic() - started)
    return int(failed)


def _require_fleet(root: Path) -> None:
    """Raise before anything starts if workers could not do what this working tree says."""
    from flows.dvc.project import load_graph
    from flows.dvc.remote import check_remote
    from flows.workers.request import take_snapshot

    if not os.environ.get("PREFECT_API_URL"):
        raise ValueError("PREFECT_API_URL is not set: which Prefect server is the fleet's?")
    commit = take_snapshot(root, load_graph(root)).commit
    print(f"Workers work at commit {commit[:12]}, with results through {check_remote(root)}")


def _unchanged(steps: list[Step]) -> list[Outcome]:
    return [Outcome(step.stage.name, step.stage.group, "unchanged") for step in steps]


def _report(root: Path, steps: list[Step], outcomes: list[Outcome], seconds: float) -> None:
    from flows.journal import last_seconds

    print("\n" + stages_table(outcomes, last_seconds(root)))
    failed = [outcome for outcome in outcomes if outcome.outcome == "failed"]
    if not failed:
        print("\n" + results_table(read_results(root)))
    images = [path for step in steps for path in step.stage.outputs if path.endswith(".png")]
    print(f"\nImages  {'  '.join(path for path in images if (root / path).is_file()) or '–'}")
    print(f"Metrics   {MLFLOW_PAGE}")
    if all(outcome.outcome == "unchanged" for outcome in outcomes):
        print(f"Nothing to do: all {len(outcomes)} stages and shards are up to date", end=" ")
    else:
        print("Done" if not failed else "Not done", end=" ")
    print(f"({seconds:.1f} s)")
    for outcome in failed:
        print(f"\n{outcome.message}", file=sys.stderr)


def plan(root: Path, options: argparse.Namespace) -> int:
    """Say what the next run will do with each stage and shard, and why; run nothing."""
    from flows.dvc.plan import make_plan
    from flows.stage import Preflight

    steps = make_plan(root, options.targets)
    Preflight(root, steps).finish()
    print(plan_table(steps))
    print("\n" + summarize_plan(steps), flush=True)
    return 0


def predict(root: Path, options: argparse.Namespace) -> int:
    """Find objects of any names in new images, with a trained detector."""
    from flows.predictor import find

    folder = find(root, options.model)
    command = [sys.executable, "-m", "predict", *options.more, "--model", str(folder)]
    return subprocess.run(command, cwd=root).returncode


def profile(root: Path, options: argparse.Namespace) -> int:
    """Merge experiments/<name>.yaml into params.yaml."""
    from flows.overlay import apply_profile

    for change in apply_profile(root, options.name):
        print(change)
    print("`git checkout params.yaml` takes the default back")
    return 0


def verify(root: Path, options: argparse.Namespace) -> int:
    """Hash all results, and their copies in the cache, anew and compare them with dvc.lock."""
    from flows.dvc.records import find_damage

    count, damage = find_damage(root)
    print("\n".join(damage) or f"dvc.lock: all {count} outputs are as it says")
    return int(bool(damage))


def readme(root: Path, options: argparse.Namespace) -> int:
    """Write the generated tables of README.md and docs/ anew."""
    from flows.readme import write_readme

    changed = write_readme(root)
    print(f"Tables: {', '.join(changed) or 'nothing'} changed")
    return 0


def sweep(root: Path, options: argparse.Namespace) -> int:
    """Run a grid of params, what its points have in common once, and compare the points."""
    from flows.sweeps.plan import plan_sweep, run_points
    from flows.sweeps.points import make_points, sweep_name
    from flows.sweeps.report import BEST, METRICS, Question, count_outcomes
    from flows.sweeps.worktrees import only_sweep, results_folder

    points = make_points(root, options.set, options.points, options.targets)
    if options.plan:
        with only_sweep(root):
            plan = plan_sweep(root, points)
        print(f"{plan.table()}\n\n{plan.summary()}")
        return 0
    metrics = tuple(options.metric or METRICS)
    question = Question(metrics, options.best or BEST, options.direction, options.over)
    name = sweep_name(points, options.name)
    results = run_points(root, name, points, options.cores, question)
    print(f"\n{count_outcomes(results)}\nAll of it  {results_folder(root, name)}")
    print(f"Metrics    {MLFLOW_PAGE}; `dvc exp show` has the points too")
    return int(any(result.failed for result in results))


def claims(root: Path, options: argparse.Namespace) -> int:
    """Measure the claims seed after seed into docs/claims, and print the table of all seeds."""
    from flows.claims.measure import measure_claims

    print(measure_claims(root, options.seeds, options.cores, options.accept_older))
    return 0


def pools(root: Path, options: argparse.Namespace) -> int:
    """Make the work pools and deployments of prefect.yaml on the server of PREFECT_API_URL."""
    from flows.workers.pools import make_pools

    print("\n".join(make_pools(root)))
    return 0


def worker(root: Path, options: argparse.Namespace) -> int:
    """Make this clone a worker: run stages of one pool until it is stopped."""
    from flows.workers.worker import become_worker

    become_worker(root, options.pool, options.name, options.stages)
    return 0


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, found {text}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number >= 0, found {text}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flows", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in (run, plan, predict, profile, verify, readme, sweep, claims, pools, worker):
        sub = commands.add_parser(command.__name__, help=command.__doc__)
        sub.set_defaults(command=command)
        if command in (run, plan, sweep):
            sub.add_argument("--targets", nargs="+", help="stages, with all that they need")
        if command in (run, sweep, claims):
            sub.add_argument("--cores", type=_positive, help="cores to keep busy; all by default")
        if command is run:
            sub.add_argument("--pools", action="store_true", help="run stages on workers, not here")
        if command is worker:
            sub.add_argument("--pool", required=True, help="cpu or gpu")
            sub.add_argument("--name", help="as shown in Prefect; by default host, pool and PID")
            sub.add_argument("--stages", type=_positive, help="how many at once")
        if command is predict:
            sub.epilog = "Everything else goes to `python -m predict`; see its --help."
            sub.add_argument("--model", help="finetune, detector, a folder, or an MLflow URI")
        if command is profile:
            sub.add_argument("name", help="experiments/<name>.yaml")
        if command is sweep:
            _add_sweep_options(sub)
        if command is claims:
            sub.add_argument(
                "--seeds", type=_seed, nargs="*", default=[1, 2, 3], help="none: only the table"
            )
            older = "count records of other params, code or packages, too"
            sub.add_argument("--accept-older", action="store_true", help=older)
    return parser


def _add_sweep_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-S", "--set", action="append", default=[], metavar="KEY=VALUE,VALUE", help="one axis")
    add("--points", type=Path, help="YAML list of points, each a mapping of params to values")
    add("--name", help="of the sweep; by default its params")
    add("--plan", action="store_true", help="only say what would run")
    add("--over", default="seed", help="param over which mean and spread are taken")
    add("--metric", action="append", help="pattern such as 'evaluation/*/novel/*/AP50'")
    add("--best", help="metric of which the best point is looked for")
    add("--direction", choices=("max", "min"), default="max", help="which value is best")


if __name__ == "__main__":
    sys.exit(main())
