"""A checkout for one stage: a git worktree of the agent's clone at the coordinator's exact commit.

Whatever the clone itself has checked out, and however many stages it runs at once, each gets a
folder of its own and none sees what another left. All share the clone's DVC cache, so an input is
fetched once per machine and a finished result survives until it is pushed.
"""

import fcntl
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ruamel.yaml import YAML

from flows.agents.request import PARAMS, Request
from flows.dvc.project import share_cache
from flows.environment import STATE_FOLDER

FOLDER = Path(STATE_FOLDER) / "workspaces"
RESUME = ".resume"  # where stages keep resume points, by fingerprint


class WorkspaceError(RuntimeError):
    """Git cannot make the checkout; the message says why."""


@contextmanager
def checkout(clone: Path, request: Request, name: str) -> Iterator[Path]:
    """Give a folder with the request's commit, params and upstream records; remove it afterwards.

    Args:
        clone: the agent's clone.
        request: what to check out.
        name: of the folder; unique among all that run.

    Raises:
        WorkspaceError: neither the clone nor its origin has the commit, or git failed.
    """
    folder = clone / FOLDER / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _hold(folder.with_suffix(".lock")):
        with _hold(clone / FOLDER / "clone.lock", wait=True):
            remove_leftovers(clone)
            _fetch_commit(clone, request.commit)
            _git(clone, "worktree", "add", "--detach", "--force", str(folder), request.commit)
        try:
            _fill(clone, folder, request)
            yield folder
        finally:
            with _hold(clone / FOLDER / "clone.lock", wait=True):
                _remove(clone, folder)


def remove_leftovers(clone: Path) -> None:
    """Remove the workspaces of stages that were killed: those whose lock nobody holds."""
    for lock in (clone / FOLDER).glob("*.lock"):
        folder = lock.with_suffix("")
        if folder.is_dir():
            with suppress(BlockingIOError), _hold(lock):
                _remove(clone, folder)


def _fill(clone: Path, folder: Path, request: Request) -> None:
    (folder / PARAMS).write_text(request.params, encoding="utf-8")
    for path in folder.rglob("dvc.lock"):
        path.unlink()  # what the commit recorded may be of other params
    for path, stages in request.records.items():
        YAML(typ="safe").dump({"schema": "2.0", "stages": stages}, folder / path)
    share_cache(clone, folder)  # and local settings: the remote's credentials, or the remote itself
    (clone / RESUME).mkdir(exist_ok=True)
    (folder / RESUME).symlink_to(clone / RESUME)


def _fetch_commit(clone: Path, commit: str) -> None:
    if _has(clone, commit):
        return
    # A server that serves no single commits may still have it on a branch.
    for wanted in ([commit], []):
        done = _run(clone, "fetch", "--quiet", "origin", *wanted)
        if _has(clone, commit):
            return
    raise WorkspaceError(
        f"commit {commit[:12]} is neither in {clone} nor at its origin; push it, or if it is "
        f"pushed, mend the origin: {done.stderr.strip() or 'fetched without an error'}"
    )


def _has(clone: Path, commit: str) -> bool:
    return _run(clone, "cat-file", "-e", f"{commit}^{{commit}}").returncode == 0


def _remove(clone: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".lock").unlink(missing_ok=True)
    _git(clone, "worktree", "prune")


@contextmanager
def _hold(path: Path, wait: bool = False) -> Iterator[IO[str]]:
    """Hold a lock on a file for the block; it ends with the process, however that ends.

    Raises:
        BlockingIOError: another process holds it, and this was not to wait.
    """
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield file


def _run(clone: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", *arguments], cwd=clone, capture_output=True, text=True)


def _git(clone: Path, *arguments: str) -> None:
    done = _run(clone, *arguments)
    if done.returncode:
        raise WorkspaceError(f"git {' '.join(arguments)} in {clone}: {done.stderr.strip()}")
