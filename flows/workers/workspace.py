"""A checkout for one stage: a git worktree of the worker's clone at the coordinator's exact commit.

Whatever the clone itself has checked out, and however many stages it runs at once, each stage gets
its own folder and sees nothing that another left. All share the clone's DVC cache, so an input is
fetched once per machine, and a finished result survives until it is pushed.
"""

import fcntl
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from ruamel.yaml import YAML

from flows.dvc.project import share_cache
from flows.dvc.remote import RemoteError
from flows.environment import STATE_FOLDER
from flows.git import GitError, git
from flows.overlay import PARAMS
from flows.workers.request import KEY, RECORD, RefusedError, Request

FOLDER = Path(STATE_FOLDER) / "workspaces"
NOW = fcntl.LOCK_EX | fcntl.LOCK_NB  # or BlockingIOError
COMMIT = re.compile("[0-9a-f]{40}")
RESUME = ".resume"  # where stages keep resume points


def fetch_commit(clone: Path, commit: str) -> None:
    """Fetch a commit that is on a branch of origin.

    A server also serves commits that are on no branch, such as those of forks and pull requests.

    Raises:
        RefusedError: it is on no branch, or is not a full commit hash.
        RemoteError: origin cannot be reached.
    """
    if not COMMIT.fullmatch(commit):
        raise RefusedError(f"commit {commit!r} is not 40 hexadecimal digits")
    with _hold(clone):
        if _is_on_a_branch(clone, commit):
            return
        try:
            git(clone, "fetch", "--quiet", "origin", "+refs/heads/*:refs/remotes/origin/*")
        except GitError as error:
            raise RemoteError(str(error)) from error
        if not _is_on_a_branch(clone, commit):
            raise RefusedError(f"commit {commit[:12]} is on no branch of {clone}'s origin; push it")


@contextmanager
def checkout(clone: Path, request: Request, name: str) -> Iterator[Path]:
    """Yield a folder with the request's commit and params, without records; remove it afterwards.

    `fetch_commit` has fetched the commit. The name is unique among all running stages.
    """
    folder = clone / FOLDER / name
    with _hold(clone, name, NOW):
        with _hold(clone):
            remove_leftovers(clone)
            add = ("worktree", "add", "--detach", "--force", "--end-of-options")
            git(clone, *add, str(folder), request.commit)
        try:
            _fill(clone, folder, request)
            yield folder
        finally:
            with _hold(clone):
                _remove(clone, folder)


def remove_leftovers(clone: Path) -> None:
    """Remove the workspaces of stages that were killed: those whose lock nobody holds."""
    for lock in (clone / FOLDER).glob("*.lock"):
        folder = lock.with_suffix("")
        if folder.is_dir():
            with suppress(BlockingIOError), _hold(clone, folder.name, NOW):
                _remove(clone, folder)


def _fill(clone: Path, folder: Path, request: Request) -> None:
    (folder / PARAMS).write_text(request.params, encoding="utf-8")
    for path in folder.rglob(RECORD):
        path.unlink()  # the commit's records may belong to other params
    share_cache(clone, folder)  # and local settings: the remote's credentials or its address


def _is_on_a_branch(clone: Path, commit: str) -> bool:
    try:
        return bool(git(clone, "for-each-ref", f"--contains={commit}", "refs/remotes/origin"))
    except GitError:
        return False  # the commit is not here


def link_resume(clone: Path, folder: Path, key: str) -> Path:
    """Return the folder of a checkout's resume points: in the clone, by the result's key."""
    place = clone / RESUME / key
    with pulling(clone):
        (folder / RESUME).symlink_to(place)
    return place


def write_records(folder: Path, request: Request) -> None:
    """Write the records of upstream stages, which `check_stage` has checked, into a checkout."""
    for path, stages in request.records.items():
        YAML(typ="safe").dump({"schema": "2.0", "stages": stages}, folder / path)


def _remove(clone: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".lock").unlink(missing_ok=True)
    git(clone, "worktree", "prune")


def idle_points(clone: Path, present: Iterable[Path]) -> list[Path]:
    """Return the resume points that none of the checkouts has linked; call in `pause_pulls`."""
    used = {(folder / RESUME).resolve() for folder in present}
    found = sorted((clone / RESUME).glob("*"))
    return [path for path in found if KEY.fullmatch(path.name) and path.resolve() not in used]


def workspaces(clone: Path) -> list[Path]:
    """Return the present checkouts, after removing those of killed stages."""
    with _hold(clone):
        remove_leftovers(clone)
    return [path for path in (clone / FOLDER).glob("*") if path.is_dir()]


def pulling(clone: Path) -> AbstractContextManager:
    """Keep the cache and resume points within the block; recorded and linked ones stay after it."""
    return _hold(clone, "cache", fcntl.LOCK_SH)


def pause_pulls(clone: Path) -> AbstractContextManager:
    """Keep everybody from `pulling` within the block."""
    return _hold(clone, "cache")


@contextmanager
def _hold(clone: Path, name: str = "clone", how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a lock of the clone for the block; it ends with the process, however that ends."""
    path = clone / FOLDER / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, how)
        yield
