"""Exchanges single results, with their run-cache entries, through the DVC remote.

`dvc push --run-cache` and `dvc repro --pull` copy every entry each time, and `repro --pull`
executes what it cannot find. These functions move the entries of one stage and never run anything.
tests/flows/dvc/test_remote.py checks them against what `dvc repro` then does.

They raise RemoteError if the remote cannot be used. They raise DagError if the project has no
remote or no such stage, an input is missing, or DVC keeps no run of the stage.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from dvc.config import NoRemoteError
from dvc.fs import LocalFileSystem
from dvc.fs import generic as transfer
from dvc.repo import Repo
from dvc.stage import Stage as DvcStage
from dvc.stage.cache import _can_hash, _get_stage_hash
from dvc.stage.loader import StageLoader

from flows.dvc.project import load_stage, lock, locked_repo, open_repo
from flows.environment import PATIENCE, seconds
from flows.graph import DagError

Result = TypeVar("Result")


class RemoteError(RuntimeError):
    """The DVC remote cannot be used; the message names it and says what to do."""


def check_remote(root: Path) -> str:
    """Return the address of the project's default remote, after a test of writing to it."""
    with open_remote(root) as (_, remote):
        probe = remote.fs.join(remote.path, f".probe-{uuid.uuid4().hex}")
        remote.fs.fs.pipe_file(probe, b"ovis-dag")
        remote.fs.remove(probe)
        return remote.fs.unstrip_protocol(remote.path)


def has_remote(root: Path) -> bool:
    """Say whether the project has a default remote, even if it is away."""
    with open_repo(root) as repo:
        return bool(repo.config["core"].get("remote"))


def result_key(root: Path, name: str) -> str:
    """Return the hash that names this stage's result from its present inputs on any machine.

    It covers the command, the params, the content of all inputs and the names of outputs, so
    machines with the same hash make the same result.
    """
    with locked_repo(root) as repo:
        return _key(load_stage(repo, root, name))


def fetch_result(root: Path, name: str) -> bool:
    """Bring the result of this stage for its present inputs into the local cache.

    Returns whether it is there; if so, `dvc repro -s` will restore it and run nothing.
    """
    with open_remote(root) as (repo, remote):
        with lock(repo):
            stage = load_stage(repo, root, name)
            if not stage.changed():
                return True
            key, cache = _key(stage), repo.stage_cache
            if cache._load(stage) is None:
                _copy_entries(key, remote.legacy_odb, repo.cache.legacy)
            entry = cache._load(stage)
            if entry is None:
                return False
            StageLoader.fill_from_lock(stage, entry)  # in memory only
            if stage.outs_cached():
                return True
        _move(repo.cloud.pull, stage)  # other threads may use the remote meanwhile
        return stage.outs_cached()


def push_result(root: Path, name: str, as_input: bool = False) -> None:
    """Push the stage's outputs, then its run-cache entry, so that no entry lacks its data.

    As an input of other stages it needs no entry.
    """
    with open_remote(root) as (repo, remote):
        with lock(repo):
            stage = load_stage(repo, root, name)
            key = None if as_input else _key(stage)
        if not stage.outs_cached():
            raise RemoteError(f"{name}: its outputs are not in the cache; run `dvc checkout`")
        _move(repo.cloud.push, stage)
        if key:
            _copy_entries(key, repo.cache.legacy, remote.legacy_odb)


def pull_inputs(root: Path, targets: list[str]) -> None:
    """Fetch outputs, or files in them, by their hashes in dvc.lock into cache and workspace."""
    if targets:
        with open_remote(root) as (repo, _):
            repo.pull([str(root / target) for target in targets])


def with_patience(
    action: Callable[[], Result],
    log: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """Return what `action` returns; try again while the remote fails, up to OVIS_PATIENCE.

    `sleep` may raise to end the waiting.

    Raises:
        RemoteError: it failed for OVIS_PATIENCE seconds.
    """
    deadline = time.monotonic() + seconds(PATIENCE)
    delay = 1.0
    while True:
        try:
            return action()
        except RemoteError as error:
            if time.monotonic() + delay > deadline:
                raise
            log(f"{error}; trying again in {delay:.0f} s")
            sleep(delay)
            delay = min(2 * delay, 30.0)


@contextmanager
def open_remote(root: Path) -> Iterator[tuple[Repo, Any]]:
    """Yield DVC's view of a project and its default remote, after checking that it exists."""
    with open_repo(root) as repo:
        try:
            remote = repo.cloud.get_remote()
        except NoRemoteError as error:
            raise DagError(
                f"{root}: the project has no DVC remote, through which machines exchange results; "
                "`dvc remote add --default <name> <address>` names one"
            ) from error
        try:
            _require_holder(remote)
            yield repo, remote
        except (DagError, RemoteError):
            raise
        except Exception as error:  # each file system has its own errors
            address = remote.fs.unstrip_protocol(remote.path)
            raise RemoteError(f"DVC remote {address}: {error or type(error).__name__}") from error


def _require_holder(remote: Any) -> None:
    """Raise if the folder or bucket is missing.

    DVC would create the folder, which may be the mount point of an absent disk, and treat a missing
    bucket as an empty one.
    """
    local = isinstance(remote.fs, LocalFileSystem)
    holder = remote.path if local else remote.path.split("/")[0]
    try:
        remote.fs.info(holder)  # `exists` would also say no if a bucket cannot be reached
    except FileNotFoundError as error:
        address, what = remote.fs.unstrip_protocol(remote.path), "folder" if local else "bucket"
        raise RemoteError(
            f"DVC remote {address}: there is no {what} {holder}; mount or make it"
        ) from error


def _key(stage: DvcStage) -> str:
    missing = [dep.def_path for dep in stage.deps if not (hasattr(dep, "params") or dep.exists)]
    if missing:
        raise DagError(f"{stage.name}: its input {missing[0]} is missing")
    stage.save_deps()  # in memory only
    if not _can_hash(stage):
        raise DagError(f"{stage.name}: DVC keeps no run of it, so another machine cannot run it")
    return _get_stage_hash(stage)


def _move(push_or_pull: Any, stage: DvcStage) -> None:
    # force: DVC must not ask on the terminal if a folder's list of files is nowhere
    for objects in stage.get_used_objs(force=True).values():
        failed = push_or_pull(objects).failed
        if failed:
            raise RemoteError(f"{stage.name}: {len(failed)} objects were not transferred")


def _copy_entries(key: str, source: Any, target: Any) -> None:
    """Copy the run-cache entries of one key; no error if there are none."""
    folder = source.fs.join(source.path, "runs", key[:2], key)
    if not source.fs.exists(folder):
        return
    for path in source.fs.find(folder):
        copy = target.fs.join(target.path, "runs", key[:2], key, source.fs.name(path))
        target.fs.makedirs(target.fs.parent(copy))
        transfer.copy(source.fs, path, target.fs, copy)
