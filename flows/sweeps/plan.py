"""What a sweep will run: equal stage runs of several points are one run, known before any starts.

A stage run has a recipe: its command, params, files and the recipes of what it needs. Points with
the same recipe for a stage get the same bytes, so one of them, the owner, runs it and the others
take its result out of DVC's run cache. Sources are no part of it: all points have the same.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flows.dvc.plan import make_plan
from flows.dvc.project import recorded
from flows.graph import Stage, Status, Step, overlap
from flows.nested import look_up
from flows.overlay import read_params
from flows.sweeps.points import Point
from flows.sweeps.worktrees import Worktrees
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

    @cached_property
    def owners(self) -> dict[str, str]:
        """The point that runs each recipe that has to run: the first without it in its reach."""
        owners: dict[str, str] = {}
        for planned in self.points:
            for step in planned.steps:
                if step.status not in CACHED:
                    owners.setdefault(planned.recipes[step.stage.name], planned.point.name)
        return owners

    def counts(self) -> dict[str, tuple[int, int, int, int]]:
        """Return per group of shards its runs in all points, distinct, cached and to be run."""
        runs: dict[str, list[str]] = {}
        for planned in self.points:
            for step in planned.steps:
                runs.setdefault(step.stage.group, []).append(planned.recipes[step.stage.name])
        counts = {}
        for group, recipes in runs.items():
            distinct = set(recipes)
            to_run = len(distinct & self.owners.keys())
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
        rows = [("stage", "in all points", "distinct", "cached", "to run")]
        rows += [(group, *map(str, counts)) for group, counts in self.counts().items()]
        return align(rows, right=range(1, 5))


def plan_sweep(root: Path, points: Iterable[Point]) -> SweepPlan:
    """Make the points' worktrees, and return what is to be done in each; run nothing.

    Raises:
        ValueError: there is no such target, or a graph cannot be read.
        RuntimeError: git failed, or an earlier sweep still works in a worktree.
    """
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


def content_key(folder: Path, stage: Stage) -> str:
    """Return a digest of the stage's command, params and the recorded bytes of its inputs.

    Different recipes can give the same bytes, such as when another threshold selects the same
    boxes. What is upstream must have been made in `folder`.
    """
    needs = [need for need in stage.needs if not need.endswith(".dvc")]  # the same in all points
    made = {
        out["path"]: out["md5"]
        for entry in recorded(folder, needs).values()
        for out in entry["outs"]
        if any(overlap(out["path"], path) for path in stage.inputs)
    }
    return _digest(stage, read_params(folder), sorted(made.items()))


def _digest(stage: Stage, params: dict[str, Any], inputs: list) -> str:
    values = {key: look_up(params, key) for key in stage.params}
    facts = [stage.command, values, stage.inputs, stage.outputs, inputs]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
