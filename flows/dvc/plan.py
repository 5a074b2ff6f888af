"""The exact plan: what the next execution will do with each stage, and why.

`dvc status` looks only one stage deep. This plan is transitive: stages downstream see the hashes
that restored stages will have. tests/flows/dvc/test_dag.py checks it against what `dvc repro` does.
"""

import os
from collections.abc import Callable, Collection, Iterable
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from dvc.stage import Stage as DvcStage
from dvc.stage.cache import _can_hash
from dvc.stage.loader import StageLoader
from dvc.stage.serialize import to_single_stage_lockfile
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.meta import Meta
from dvc_data.hashfile.tree import Tree

from flows.dvc.project import is_params, load_stage, locked_repo, read_graph
from flows.graph import CHANGES_UPSTREAM, NEVER_RAN, Stage, Status, Step, overlap, select
from flows.overlay import flatten

SHOWN_CHANGES = 4  # at most so many changes of one dependency are listed


class Files:
    """The hashes that dependencies have now, or will have once stages are restored.

    Each file is hashed once and each params file parsed once, because nothing changes while DVC's
    lock is held; DVC itself parses params again for every stage.
    """

    def __init__(self) -> None:
        self._params: dict[str, Any] = {}
        self._coming: dict[str, HashInfo] = {}
        self._folders: set[str] = set()
        self._now: dict[tuple[str, ...], HashInfo | None] = {}
        self.elsewhere: set[str] = set()  # hashes of outputs that need not be here

    def has_elsewhere(self, out: Any) -> bool:
        """Say whether the output, as it is recorded, can be fetched."""
        return out.hash_info.value in self.elsewhere

    def read_params(self, dep: Any) -> dict[str, Any]:
        """Return the dependency's keys that exist, as its own `read_params` does."""
        if dep.fs_path not in self._params:
            whole = copy(dep)
            whole.params = []
            self._params[dep.fs_path] = whole.read_params()
        found = {}
        for key in dep.params:
            inner = self._params[dep.fs_path]
            for part in key.split("."):
                if not isinstance(inner, dict) or part not in inner:
                    return dep.read_params()  # missing, or one of DVC's patterns
                inner = inner[part]
            found[key] = inner
        return found if dep.params else self._params[dep.fs_path]

    def restore(self, hashes: dict[str, HashInfo]) -> None:
        """Note the hashes of files that will be restored, by absolute path."""
        self._coming.update(hashes)
        self._folders.update(str(folder) for path in hashes for folder in Path(path).parents)

    def coming(self, dep: Any) -> HashInfo | None:
        """Return the hash that a dependency will have if part of it is restored; else None.

        A folder's hash is that of the list of its files, each an output of some stage.
        """
        if dep.fs_path not in self._folders:
            return self._coming.get(dep.fs_path)
        tree, inside = Tree(), dep.fs_path + os.sep
        for out in dep.repo.index.outs:
            if overlap(Path(out.fs_path).as_posix(), Path(dep.fs_path).as_posix()):
                for path, info in files_of(out).items():
                    if path.startswith(inside):
                        key = tuple(path.removeprefix(inside).split(os.sep))
                        tree.add(key, None, self._coming.get(path, info))
        tree.digest()
        return tree.hash_info

    def now(self, dep: Any) -> HashInfo | None:
        """Return the present hash of a file, folder or params; None if missing."""
        question = (dep.fs_path, *(dep.params if is_params(dep) else ()))
        if question not in self._now:
            values = self.read_params(dep) if is_params(dep) else {}
            if is_params(dep) and all(key in values for key in dep.params):
                # As DVC keeps them
                self._now[question] = HashInfo(dep.PARAM_PARAMS, values)  # type: ignore[arg-type]
            else:  # it raises for missing params
                self._now[question] = dep.get_hash() if dep.exists else None
        return self._now[question]


def make_plan(
    root: Path,
    targets: list[str] | None = None,
    find_elsewhere: Callable[[Iterable[Any]], set[str]] = lambda outs: set(),
) -> list[Step]:
    """Return what the next execution will do, stage by stage; raises as `load_graph`.

    `find_elsewhere` returns which of these absent outputs need not be here, by their hashes.
    """
    with locked_repo(root) as repo:
        graph, originals = read_graph(repo, root)
        planned: dict[str, Step] = {}
        files, stages = Files(), select(graph, targets)
        recorded = (out for name in stages for out in originals[name].outs if out.hash_info)
        files.elsewhere = find_elsewhere(out for out in recorded if not out.exists)
        for name, stage in stages.items():
            planned[name] = _plan_stage(repo, originals[name], stage, planned, files)
        return list(planned.values())


def _plan_stage(
    repo: Repo, original: DvcStage, stage: Stage, planned: dict[str, Step], files: Files
) -> Step:
    upstream = [planned[need] for need in stage.needs]
    due = [step for step in upstream if step.status in (Status.MUST_RUN, Status.MAY_RUN)]
    if due:
        groups = ", ".join(dict.fromkeys(step.stage.group for step in due))
        return Step(stage, Status.MAY_RUN, (f"after {groups}",))
    before = _changes_upstream(original, files) if original.cmd else []
    absent = [out for out in original.outs if files.has_elsewhere(out) and not out.exists]
    enough = {out.def_path for out in absent} - stage.brought if original.cmd else ()
    reasons = tuple(before or _changes_of_outputs(original, enough))
    if not reasons:
        for out in absent:
            files.restore(files_of(out))
        return Step(stage, Status.UP_TO_DATE)
    restored = _find_restored(repo, original, files, unchanged=not before) if original.cmd else None
    if restored is None:
        return Step(stage, Status.MUST_RUN, reasons)
    files.restore(restored)
    return Step(stage, Status.RESTORABLE, reasons)


def is_here(root: Path, stage: Stage) -> bool:
    """Say whether `dvc repro -s` would run nothing: the result is up to date, or in the cache.

    The stage's inputs must be here.
    """
    with locked_repo(root) as repo:
        alone = replace(stage, needs=())
        step = _plan_stage(repo, load_stage(repo, root, stage.name), alone, {}, Files())
    return step.status in (Status.UP_TO_DATE, Status.RESTORABLE)


def is_cached(out: Any) -> bool:
    """Say whether the cache has the output, or the workspace if it is kept out of the cache."""
    return not (out.changed_cache() if out.use_cache else out.changed())


def files_of(out: Any) -> dict[str, HashInfo]:
    """Return the hash of the output, or of every file in it if it is a folder."""
    if not out.hash_info.isdir:
        return {out.fs_path: out.hash_info}
    return {os.path.join(out.fs_path, *key): hash_info for key, _, hash_info in out.get_obj() or ()}


def _changes_upstream(original: DvcStage, files: Files) -> list[str]:
    """Describe how command, params and inputs differ from those in dvc.lock."""
    if not any(dep.hash_info for dep in original.deps):
        return [NEVER_RAN]
    changes = ["the command changed"] if original.changed_stage() else []
    for dep in original.deps:
        if is_params(dep):
            changes += _changes_of_params(dep, files)
        elif (coming := files.coming(dep)) is not None:
            if coming != dep.hash_info:
                changes.append(f"{dep.def_path} {CHANGES_UPSTREAM}")
        elif (now := files.now(dep)) != dep.hash_info:
            changes.append(f"{dep.def_path} {_plain('deleted' if now is None else 'modified')}")
    return changes


def _changes_of_params(dep: Any, files: Files) -> list[str]:
    if not dep.exists or dep.hash_info.value is None:
        return [f"{dep.def_path} {_plain(state)}" for state in dep.status().values()]
    before, now = dep.hash_info.value, files.read_params(dep)
    listed = dep.params or {**before, **now}
    changed = [k for k in listed if k not in now or k not in before or now[k] != before[k]]
    if not changed:
        return []
    recorded, actual = dict(flatten(before, ".")), dict(flatten(now, "."))
    keys = [key for key in {**recorded, **actual} if recorded.get(key) != actual.get(key)]
    words = [f"{key}: {recorded.get(key, '–')} → {actual.get(key, '–')}" for key in keys]
    words = words or [f"{key} {'changed' if key in now else 'is missing'}" for key in changed]
    if len(words) > SHOWN_CHANGES:
        words[SHOWN_CHANGES:] = [f"{len(words) - SHOWN_CHANGES} more params"]
    return words


def _changes_of_outputs(original: DvcStage, elsewhere: Collection[str] = ()) -> list[str]:
    outs = [out for out in original.outs if out.def_path not in elsewhere]
    return [f"{out.def_path} {_plain(s)}" for out in outs for s in out.status().values()]


def _plain(state: str) -> str:
    words = {"deleted": "is missing", "new": "is new", "modified": "changed"}
    return words.get(state, f"is {state}")


def _find_restored(
    repo: Repo, original: DvcStage, files: Files, unchanged: bool
) -> dict[str, HashInfo] | None:
    """Return the hash of each file that DVC would restore; None if it would run the stage.

    As in `StageCache.restore`, an unchanged stage is restored from dvc.lock, a changed one from the
    run cache.
    """
    for dep in original.deps:
        found = files.coming(dep) or files.now(dep)
        if found is None:
            return None
        # In memory only. Sizes are not in the cache's key, and the file need not exist yet.
        dep.hash_info, dep.meta, dep.get_hash = found, Meta(), partial(getattr, dep, "hash_info")
    if not _can_hash(original):
        return None
    in_lock = unchanged and all(out.hash_info for out in original.outs)
    entry = to_single_stage_lockfile(original) if in_lock else repo.stage_cache._load(original)
    if entry is None:
        return None
    StageLoader.fill_from_lock(original, entry)  # in memory only
    if not all(is_cached(out) or files.has_elsewhere(out) for out in original.outs):
        return None
    return {path: info for out in original.outs for path, info in files_of(out).items()}
