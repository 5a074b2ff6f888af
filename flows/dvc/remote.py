"""Exchanges single results, with their run-cache entries, through the DVC remote.

`dvc push --run-cache` and `dvc repro --pull` copy every entry each time, and `repro --pull`
executes what it cannot find. These functions move the entries of one stage and never run anything.
tests/flows/dvc/test_remote.py checks them against what `dvc repro` then does.

They raise RemoteError if the remote cannot be used. They raise DagError if the project has no
remote or no such stage, an input is missing, or DVC keeps no run of the stage.
"""

import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dvc.config import NoRemoteError
from dvc.fs import LocalFileSystem
from dvc.fs import generic as transfer
from dvc.repo import Repo
from dvc.stage import Stage as DvcStage
from dvc.stage.cache import _can_hash, _get_cache_hash, _get_stage_hash
from dvc.stage.loader import StageLoader
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.meta import Meta
from dvc_data.hashfile.tree import Tree

from flows.dvc.plan import Files, is_cached
from flows.dvc.project import load_stage, lock, locked_repo, open_repo
from flows.dvc.records import recorded
from flows.environment import PATIENCE, seconds
from flows.graph import DagError, Stage

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


def result_key(root: Path, name: str, needs: Iterable[str] = ()) -> str:
    """Return the hash that names this stage's result from its present inputs on any machine.

    It covers the command, the params, the content of all inputs and the names of outputs, so
    machines with the same hash make the same result. What the stages `needs` made need not be here:
    it counts as dvc.lock records it.
    """
    upstream = recorded(root, needs)
    with locked_repo(root) as repo:
        return _key(load_stage(repo, root, name), _files(repo, root, upstream))


def fetch_result(root: Path, name: str) -> bool:
    """Bring the result of this stage for its present inputs into the local cache.

    Returns whether it is there; if so, `dvc repro -s` will restore it and run nothing.
    """
    with open_remote(root) as (repo, remote):
        with lock(repo):
            stage = load_stage(repo, root, name)
            if not stage.changed():
                return True
            entry = _find_entry(repo, remote, stage, _key(stage, Files()))
            if entry is None:
                return False
            StageLoader.fill_from_lock(stage, entry)  # in memory only
            if stage.outs_cached():
                return True
        _move(repo.cloud.pull, stage)  # other threads may use the remote meanwhile
        return stage.outs_cached()


def take_result(root: Path, stage: Stage) -> bool:
    """Record the result of this stage in dvc.lock, if the cache and the remote have all of it.

    Only what `Stage.brought` names is fetched. Other outputs are in the workspace afterwards only
    if the cache has them. Returns whether there is a result.
    """
    entries = recorded(root, [*stage.needs, stage.name])
    entry = entries.pop(stage.name, None)
    with open_remote(root) as (repo, remote):
        with lock(repo):
            original = load_stage(repo, root, stage.name)
            key = _key(original, _files(repo, root, entries))
            # As DVC does: what dvc.lock has for these inputs goes before the run cache.
            if entry is None or _get_cache_hash({**entry}, key=True) != key:
                entry = _find_entry(repo, remote, original, key)
            if entry is None:
                return False
            StageLoader.fill_from_lock(original, entry)
        away = [out for out in original.outs if not is_cached(out)]
        if not _are_on(remote, away):
            return False
        for out in away:
            if out.def_path in stage.brought:
                _move(repo.cloud.pull, out)
        with lock(repo):
            for out in original.outs:
                out.checkout(force=True) if is_cached(out) else out.remove()
            original.ignore_outs()
            original.dump(update_pipeline=False)
    return True


def elsewhere(root: Path, pools: bool) -> Callable[[Iterable[Any]], set[str]]:
    """Return `find_elsewhere` of `make_plan`: with pools, results on the remote are enough."""

    def find(outs: Iterable[Any]) -> set[str]:
        if not (absent := [*outs] if pools else []):
            return set()
        with open_remote(root) as (_, remote):
            return _find(remote, absent)

    return find


def push_result(root: Path, name: str, as_input: bool = False) -> None:
    """Push the stage's outputs, then its run-cache entry, so that no entry lacks its data.

    As an input of other stages it needs no entry, and may be on the remote only.
    """
    with open_remote(root) as (repo, remote):
        with lock(repo):
            stage = load_stage(repo, root, name)
            key = None if as_input else _key(stage, Files())
        away = [out for out in stage.outs if not is_cached(out)]
        if away and not (as_input and _are_on(remote, away)):
            raise RemoteError(f"{name}: its outputs are not in the cache; run `dvc checkout`")
        for out in stage.outs:
            if out not in away:
                _move(repo.cloud.push, out)
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


def _key(stage: DvcStage, files: Files) -> str:
    for dep in stage.deps:  # in memory only
        found = files.coming(dep) or files.now(dep)
        if found is None:
            raise DagError(f"{stage.name}: its input {dep.def_path} is missing")
        dep.hash_info, dep.meta, dep.get_hash = found, Meta(), partial(getattr, dep, "hash_info")
    if not _can_hash(stage):
        raise DagError(f"{stage.name}: DVC keeps no run of it, so another machine cannot run it")
    return _get_stage_hash(stage)


def _files(repo: Repo, root: Path, upstream: dict[str, dict[str, Any]]) -> Files:
    """Return the hashes of what these entries of dvc.lock made, unless all of it is here."""
    files, outs = Files(), [out for entry in upstream.values() for out in entry["outs"]]
    if all((root / out["path"]).exists() for out in outs):
        return files
    for out in outs:
        path, info = str(root / out["path"]), HashInfo("md5", out["md5"])
        if not info.isdir:
            files.restore({path: info})
            continue
        try:
            listed = Tree.load(repo.cache.local, info)
        except FileNotFoundError:
            name = out["path"]
            raise DagError(f"{name}: its list of files is not here; `dvc fetch {name}`") from None
        files.restore({os.path.join(path, *key): own for key, _, own in listed})
    return files


def _find_entry(repo: Repo, remote: Any, stage: DvcStage, key: str) -> dict[str, Any] | None:
    """Return the newest entry of the run cache, here or else on the remote."""
    if repo.stage_cache._load(stage) is None:
        _copy_entries(key, remote.legacy_odb, repo.cache.legacy)
    return repo.stage_cache._load(stage)


def _find(remote: Any, outs: list[Any]) -> set[str]:
    """Return the hashes of outputs that the remote has; fetch the lists of files of folders.

    DVC pushes a folder's list after its files, so it stands for them.
    """
    hashes = {out.hash_info.value for out in outs}
    found = set(remote.odb.list_oids_exists(hashes))
    for out in outs:
        if out.hash_info.isdir and out.hash_info.value in found:
            out.get_dir_cache()
    return found


def _are_on(remote: Any, outs: list[Any]) -> bool:
    return {out.hash_info.value for out in outs} <= _find(remote, outs)


def _move(push_or_pull: Any, item: Any) -> None:
    """Push or pull the outputs of a stage, or one output."""
    # force: DVC must not ask on the terminal if a folder's list of files is nowhere
    for objects in item.get_used_objs(force=True).values():
        failed = push_or_pull(objects).failed
        if failed:
            raise RemoteError(f"{item}: {len(failed)} objects were not transferred")


def _copy_entries(key: str, source: Any, target: Any) -> None:
    """Copy the run-cache entries of one key; no error if there are none."""
    folder = source.fs.join(source.path, "runs", key[:2], key)
    if not source.fs.exists(folder):
        return
    for path in source.fs.find(folder):
        copy = target.fs.join(target.path, "runs", key[:2], key, source.fs.name(path))
        target.fs.makedirs(target.fs.parent(copy))
        transfer.copy(source.fs, path, target.fs, copy)
