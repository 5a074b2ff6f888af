"""What a sweep will run, known before anything starts: equal stage runs of several points are one.

A stage run has a recipe: its command, params, files and the recipes of what it needs. Points with
the same recipe for a stage get the same bytes. Sources are no part of it: all points have the same.
When it runs, the key of its result says the same of what was really made (flows/place.py).
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.dvc.plan import make_plan
from flows.graph import Stage, Status, Step
from flows.params import look_up, read_params
from flows.server import call_flow
from flows.sweeps.points import Point
from flows.sweeps.report import Question, Result
from flows.sweeps.worktrees import Worktrees, only_sweep
from flows.table import align

CACHED = (Status.UP_TO_DATE, Status.RESTORABLE)


@dataclass(frozen=True)
class PlannedPoint:
    """A point with its worktree, what is to be done there, and the recipe of each stage."""

    point: Point
    folder: Path
    steps: list[Step]
    recipes: dict[str, str]  # by the stage's name


@dataclass(frozen=True)
class SweepPlan:
    """All points of a sweep, and the state of the workspace that they start from."""

    points: list[PlannedPoint]
    workspace: str

    def counts(self) -> dict[str, tuple[int, int, int, int]]:
        """Return per group of shards its runs in all points, distinct, cached and to be run."""
        runs: dict[str, list[str]] = {}
        missing: set[str] = set()
        for planned in self.points:
            for step in planned.steps:
                recipe = planned.recipes[step.stage.name]
                runs.setdefault(step.stage.group, []).append(recipe)
                if step.status not in CACHED:
                    missing.add(recipe)
        counts = {}
        for group, recipes in runs.items():
            distinct = set(recipes)
            to_run = len(distinct & missing)
            counts[group] = (len(recipes), len(distinct), len(distinct) - to_run, to_run)
        return counts

    def summary(self) -> str:
        """Return the counts of all stages in one sentence."""
        total = [sum(column) for column in zip(*self.counts().values(), strict=True)]
        return (
            f"{len(self.points)} points, {total[0]} stage runs: {total[1]} distinct,"
            f" of these {total[2]} cached and {total[3]} to run"
        )

    def table(self) -> str:
        """Return one line of counts per group of shards."""
        rows: list[tuple[str, ...]] = [("stage", "in all points", "distinct", "cached", "to run")]
        rows += [(group, *map(str, counts)) for group, counts in self.counts().items()]
        return align(rows, right=range(1, 5))


def run_points(
    root: Path,
    name: str,
    points: Sequence[Point],
    cores: int | None = None,
    question: Question | None = None,
    pools: bool = False,
) -> list[Result]:
    """Run the sweep, here or on workers; return what came out of each point, failed ones too."""
    with only_sweep(root):
        arguments = (name, list(points), cores, question, pools)
        results, _ = call_flow(root, "flows.sweeps.flow:sweep", *arguments)
    return results


def plan_sweep(root: Path, points: Iterable[Point]) -> SweepPlan:
    """Make the points' worktrees, and return what is to be done in each; run nothing."""
    worktrees = Worktrees(root)
    planned = [_plan_point(point, worktrees.place(point)) for point in points]
    return SweepPlan(planned, f"{worktrees.head} {worktrees.tree}")


def _plan_point(point: Point, folder: Path) -> PlannedPoint:
    steps = make_plan(folder, list(point.targets) if point.targets is not None else None)
    return PlannedPoint(point, folder, steps, recipes(steps, read_params(folder)))


def recipes(steps: Iterable[Step], params: dict[str, Any]) -> dict[str, str]:
    """Return a digest per stage of all that decides its outputs; `steps` are upstream first."""
    found: dict[str, str] = {}
    for stage in (step.stage for step in steps):
        found[stage.name] = _digest(stage, params, [found[need] for need in stage.needs])
    return found


def _digest(stage: Stage, params: dict[str, Any], inputs: list) -> str:
    values = {key: look_up(params, key) for key in stage.params}
    facts = [stage.command, values, stage.inputs, stage.outputs, inputs]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
