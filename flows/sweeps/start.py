"""Start a sweep: one at a time in a project, and Prefect only when it is needed."""

from collections.abc import Sequence
from pathlib import Path

from flows.server import call_flow
from flows.sweeps.plan import SweepPlan, plan_sweep
from flows.sweeps.points import Point
from flows.sweeps.report import Question
from flows.sweeps.results import Result
from flows.sweeps.worktrees import only_sweep


def run_points(
    root: Path,
    name: str,
    points: Sequence[Point],
    cores: int | None = None,
    question: Question | None = None,
) -> list[Result]:
    """Run the sweep and return what came out of each point, failed ones too.

    Raises:
        ValueError: there is no such target or metric.
        RuntimeError: another sweep is running, or git, Prefect or MLflow cannot be used.
    """
    with only_sweep(root):
        results, _ = call_flow(root, "flows.sweeps.flow:sweep", name, list(points), cores, question)
    return results


def plan_points(root: Path, points: Sequence[Point]) -> SweepPlan:
    """Make the worktrees and say what would run.

    Raises:
        ValueError: there is no such target.
        RuntimeError: another sweep is running, or git failed.
    """
    with only_sweep(root):
        return plan_sweep(root, points)
