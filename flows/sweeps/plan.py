"""Plans a sweep before anything starts; each point has its own worktree.

A worktree under .sweeps/points/ is a copy of the workspace at the start of the sweep, including
uncommitted changes and new files, with the point's params and the project's DVC cache. A worktree
that is already in this state is left alone, so that what a killed sweep finished there, and the
resume points of its trainings, stay.

The recipe of a stage run consists of its command, params, files and the recipes of its upstream
stages. Points with the same recipe for a stage get the same bytes, as the code is the same for all.
When a stage runs, the key of its result does the same for what was made (flows/place.py).
"""

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from flows.dvc import command
from flows.dvc.plan import make_plan
from flows.dvc.project import share_cache
from flows.dvc.remote import elsewhere
from flows.environment import STATE_FOLDER
from flows.git import git
from flows.graph import Status, Step
from flows.overlay import PARAMS, apply_overlay, look_up, nest, read_params
from flows.server import call_flow
from flows.stage import preflight
from flows.sweeps.points import Point
from flows.sweeps.report import Question, Result
from flows.table import align, counted

FOLDER = Path(".sweeps")
MARKER = Path(STATE_FOLDER) / "point.json"
PROGRAMS = {"dvc", command.__name__}  # modules that `python -m` runs


@dataclass(frozen=True)
class PlannedPoint:
    """A point with its worktree, its plan, and the recipe of each stage."""

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
        """Return for each group of shards the number of all, distinct, cached and due runs."""
        runs: dict[str, list[str]] = {}
        missing: set[str] = set()
        for planned in self.points:
            for step in planned.steps:
                recipe = planned.recipes[step.stage.name]
                runs.setdefault(step.stage.group, []).append(recipe)
                if step.status in (Status.MUST_RUN, Status.MAY_RUN):
                    missing.add(recipe)
        return {
            group: (len(own), len({*own}), len({*own} - missing), len({*own} & missing))
            for group, own in runs.items()
        }

    def summary(self) -> str:
        """Return the counts of all stages in one sentence."""
        total = [sum(column) for column in zip(*self.counts().values(), strict=True)]
        return (
            f"{counted(len(self.points), 'point')}, {counted(total[0], 'stage run')}:"
            f" {total[1]} distinct,"
            f" of these {total[2]} cached and {total[3]} to run"
        )

    def table(self) -> str:
        """Return one line of counts per group of shards."""
        rows: list[tuple[str, ...]] = [("stage", "in all points", "distinct", "cached", "to run")]
        rows += [(group, *map(str, counts)) for group, counts in self.counts().items()]
        return align(rows, right=range(1, 5))


def preview(root: Path, points: Sequence[Point], pools: bool = False) -> SweepPlan:
    """Return the plan of the sweep, and keep no worktree that was not there before."""
    with only_sweep(root):
        new = [folder for point in points if not (folder := worktree(root, point)).exists()]
        try:
            return plan_sweep(root, points, pools)
        finally:
            for folder in filter(Path.exists, new):
                git(root, "worktree", "remove", "--force", str(folder))


def run_points(
    root: Path,
    name: str,
    points: Sequence[Point],
    cores: int | None = None,
    question: Question | None = None,
    pools: bool = False,
) -> list[Result]:
    """Run the sweep, here or on workers; return the result of each point, including failed ones."""
    with only_sweep(root):
        arguments = (name, list(points), cores, question, pools)
        return call_flow(root, "flows.sweeps.flow:sweep", *arguments)


def plan_sweep(root: Path, points: Iterable[Point], pools: bool = False) -> SweepPlan:
    """Create the points' worktrees and return the plan of each; run nothing.

    Raises:
        ValueError: params of a point are wrong, or files that it needs here are missing.
    """
    worktrees, planned = Worktrees(root), []
    for point in points:
        folder = worktrees.place(point)
        targets = list(point.targets) if point.targets is not None else None
        steps = make_plan(folder, targets, elsewhere(folder, pools))
        planned.append(PlannedPoint(point, folder, steps, recipes(steps, read_params(folder))))
    preflight({point.folder: point.steps for point in planned}, pools)()
    return SweepPlan(planned, f"{worktrees.head} {worktrees.tree}")


def recipes(steps: Iterable[Step], params: dict[str, Any]) -> dict[str, str]:
    """Return per stage a digest of all that decides its outputs; `steps` are upstream first."""
    found: dict[str, str] = {}
    for stage in (step.stage for step in steps):
        values = {key: look_up(params, key) for key in stage.params}
        upstream = [found[need] for need in stage.needs]
        facts = [stage.command, values, stage.inputs, stage.outputs, upstream]
        text = json.dumps(facts, sort_keys=True)
        found[stage.name] = hashlib.sha256(text.encode()).hexdigest()
    return found


@contextmanager
def only_sweep(root: Path) -> Iterator[None]:
    """Lock the project's sweeps: two at once would run the same stages twice."""
    path = root / FOLDER / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another sweep of {root} is running; wait for its end") from None
        yield


class Worktrees:
    """The workspace at `root` as it is now, to be checked out once per point."""

    def __init__(self, root: Path) -> None:
        """Save the workspace's state in git's object store, without touching its index."""
        self._root = root
        git(root, "var", "GIT_COMMITTER_IDENT")  # saving an experiment makes a commit
        self.head = git(root, "rev-parse", "HEAD")
        with tempfile.TemporaryDirectory() as folder:
            index = {"GIT_INDEX_FILE": f"{folder}/index"}
            git(root, "read-tree", "HEAD", **index)
            git(root, "add", "--all", **index)
            self.tree = git(root, "write-tree", **index)

    def place(self, point: Point) -> Path:
        """Return the point's worktree, in the state of this workspace with the point's params.

        It raises RuntimeError if a stage of an earlier sweep still runs there in another state.
        """
        folder = worktree(self._root, point)
        marker = folder / MARKER
        state = json.dumps([self.head, self.tree, point.values], sort_keys=True)
        if marker.is_file() and marker.read_text(encoding="utf-8") == state:
            return folder
        _refuse_used(folder)
        if not (folder / ".git").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            git(self._root, "worktree", "prune")
            git(self._root, "worktree", "add", "--detach", "--force", str(folder), self.head)
        marker.unlink(missing_ok=True)
        git(folder, "checkout", "--quiet", "--force", "--detach", self.head)
        git(folder, "clean", "--force", "-d", "--quiet")
        git(folder, "restore", "--source", self.tree, "--staged", "--worktree", "--", ".")
        apply_overlay(folder / PARAMS, nest(point.values), f"sweep, point {point.name}")
        share_cache(self._root, folder)
        marker.parent.mkdir(exist_ok=True)
        marker.write_text(state, encoding="utf-8")
        return folder


def worktree(root: Path, point: Point) -> Path:
    """Return the folder of the point's worktree, whether it exists or not."""
    return root / FOLDER / "points" / point.name


def results_folder(root: Path, name: str) -> Path:
    """Return the folder of a sweep's table and results."""
    return root / FOLDER / "results" / name


def _refuse_used(folder: Path) -> None:
    """Raise if a killed sweep's DVC still runs there: it would record a result of mixed files."""
    for process in psutil.process_iter():
        try:
            runs_dvc = not PROGRAMS.isdisjoint(process.cmdline())
            used = runs_dvc and Path(process.cwd()).is_relative_to(folder)
        except psutil.Error:  # has ended meanwhile, or belongs to another user
            continue
        if used:
            raise RuntimeError(
                f"{folder}: process {process.pid} still makes a stage there with other code or"
                " params; wait for its end or stop it"
            )
