"""One git worktree per point under .sweeps/points/, with the project's DVC cache.

Each is a copy of the workspace as it is when the sweep starts, uncommitted changes and new files
too, with the point's params. A worktree that is already so is left alone: what a killed sweep
finished there, and where its trainings resume, stays.
"""

import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from flows.dvc import command
from flows.dvc.project import share_cache
from flows.environment import STATE_FOLDER
from flows.git import git
from flows.params import PARAMS, apply_overlay, nest
from flows.sweeps.points import Point

FOLDER = Path(".sweeps")
MARKER = Path(STATE_FOLDER) / "point.json"
PROGRAMS = {"dvc", command.__name__}  # as `python -m` starts them


@contextmanager
def only_sweep(root: Path) -> Iterator[None]:
    """Hold the project's sweeps: two at once would run the same stages twice.

    Raises:
        RuntimeError: another process holds them.
    """
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
        """Remember the workspace's state in git's store, without touching its index.

        Raises:
            RuntimeError: git cannot do that, or does not know in whose name it commits.
        """
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

        Raises:
            RuntimeError: a stage of an earlier sweep still runs there, on other params or code.
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
    """Return the folder of the point's worktree, made or not."""
    return root / FOLDER / "points" / point.name


def results_folder(root: Path, name: str) -> Path:
    """Return the folder of a sweep's table and plot."""
    return root / FOLDER / "results" / name


def _refuse_used(folder: Path) -> None:
    """Raise if a killed sweep's DVC still runs there: it would record a result of mixed files."""
    for process in psutil.process_iter():
        try:
            runs_dvc = not PROGRAMS.isdisjoint(process.cmdline())
            used = runs_dvc and Path(process.cwd()).is_relative_to(folder)
        except psutil.Error:  # ended meanwhile, or of another user
            continue
        if used:
            raise RuntimeError(
                f"{folder}: process {process.pid} still makes a stage there with other code or"
                " params; wait for its end or stop it"
            )
