"""The DVC graph and the exact plan. Only this, remote.py and fast_lock.py know DVC's insides.

Nothing under `dvc.repo` is a public API, so the version is pinned, tests/flows/test_dag.py holds
this module to what `dvc repro` then does, and tests/flows/test_dvc_contract.py names what it uses;
with another version flows/dag_commands.py takes over. `dvc status` looks one stage deep; the plan
here is transitive: it carries the future hashes of stages that will be restored to those
downstream.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial, wraps
from pathlib import Path
from typing import Any

import networkx as nx
from dvc.dependency import Dependency
from dvc.dependency import param as dvc_param
from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.repo import Repo, lock_repo
from dvc.repo import graph as dvc_graph
from dvc.scm import SCMError
from dvc.stage import Stage as DvcStage
from dvc.stage.cache import _can_hash
from dvc.stage.loader import StageLoader
from dvc.stage.serialize import to_single_stage_lockfile
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.meta import Meta
from dvc_data.hashfile.tree import Tree

from flows import fast_lock
from flows.graph import (
    CHANGES_UPSTREAM,
    NEVER_RAN,
    STATES,
    DagError,
    Graph,
    Stage,
    Status,
    Step,
    overlap,
    select,
)
from flows.lock_text import sort_entries
from flows.nested import flatten

LOST_PARAMS = {Meta.PARAM_SIZE, Meta.PARAM_NFILES}
SHOWN_CHANGES = 4  # reasons of one dependency that are spelled out


class Future:
    """The hashes that files will have once stages upstream are restored, and their folders."""

    def __init__(self) -> None:
        """Begin with nothing that will be restored."""
        self.hashes: dict[str, HashInfo] = {}
        self.folders: set[str] = set()

    def add(self, hashes: dict[str, HashInfo]) -> None:
        """Add files by absolute path."""
        self.hashes.update(hashes)
        self.folders.update(str(folder) for path in hashes for folder in Path(path).parents)


def load_graph(root: Path, targets: list[str] | None = None) -> Graph:
    """Return the stages of dvc.yaml, or the targets with their upstream, in order of execution.

    Raises:
        DagError: `root` is no DVC project, or dvc.yaml or params.yaml cannot be read.
        ValueError: there is no such target.
    """
    with open_repo(root) as repo:
        graph, _ = read_graph(repo, root)
        return select(graph, targets)


def make_plan(root: Path, targets: list[str] | None = None) -> list[Step]:
    """Return what the next execution will do, stage by stage, without running anything.

    Raises:
        DagError: as for `load_graph`.
        ValueError: there is no such target.
    """
    with open_repo(root) as repo, lock_repo(repo), _ask_once():
        graph, originals = read_graph(repo, root)
        planned: dict[str, Step] = {}
        future = Future()
        for name, stage in select(graph, targets).items():
            planned[name] = _plan_stage(repo, originals[name], stage, planned, future)
        return list(planned.values())


def sort_lock(root: Path) -> None:
    """Put the stages of dvc.lock in the order of the graph, as one `dvc repro` writes them.

    Stages that run side by side are recorded in the order in which they happen to end.
    """
    with open_repo(root) as repo, lock_repo(repo):
        graph, _ = read_graph(repo, root)
        sort_entries(root / "dvc.lock", graph)


def share_cache(root: Path, folder: Path) -> None:
    """Give the project at `folder`, a worktree of that at `root`, its cache and local settings.

    Raises:
        DagError: one of them is no DVC project.
    """
    with (
        open_repo(root) as source,
        open_repo(folder) as repo,
        repo.config.edit("local") as settings,
    ):
        settings.update(source.config.load_one("local"))
        settings.setdefault("cache", {})["dir"] = source.cache.local_cache_dir
    for hidden in folder.glob("*/.dvcignore"):  # claims/.dvcignore says why
        hidden.unlink()


@contextmanager
def open_repo(root: Path) -> Iterator[Repo]:
    """Give DVC's own view of the project at `root`; waits for DVC's locks.

    Raises:
        DagError: `root` is no DVC project, or DVC fails within the block.
    """
    try:
        with Repo(str(root), _wait_for_lock=True) as repo:
            if Path(repo.root_dir).resolve() != root.resolve():
                raise DagError(f"{root}: run from the repository's root, {repo.root_dir}")
            yield repo
    except NotDvcRepoError as error:
        raise DagError(f"{root}: not a DVC project; `dvc init` makes one") from error
    except SCMError as error:
        hint = "`git init` makes one, or `dvc config --local core.no_scm true` does without"
        raise DagError(f"{root}: not a git repository; {hint}") from error
    except DvcException as error:
        raise DagError(_message(error)) from error


class _Once(threading.local):
    """What DVC has found within `_ask_once`, by question; None outside of it. Of this thread."""

    answers: dict[tuple, Any] | None = None

    def ask(self, question: tuple, find: Callable[[], Any]) -> Any:
        """Return the answer, found at most once."""
        if self.answers is None:
            return find()
        if question not in self.answers:
            self.answers[question] = find()
        return deepcopy(self.answers[question])


_once = _Once()
_find_hash, _find_params = Dependency._get_hash_meta, dvc_param.read_param_file
_name_cycle = dvc_graph.check_acyclic


@contextmanager
def _ask_once() -> Iterator[None]:
    """Within the block files must not change: DVC reads each params file and hash once only.

    It would read them for every stage, and with 256 shards a plan would take three times as long.
    """
    before, _once.answers = _once.answers, {}
    try:
        yield
    finally:
        _once.answers = before


@wraps(_find_params)
def _read_params(fs: Any, path: str, keys: list[str] | None = None, **kwargs: Any) -> Any:
    question = (path, *(keys or ()), *sorted(kwargs.items()))
    return _once.ask(question, lambda: _find_params(fs, path, keys, **kwargs))


@wraps(_find_hash)
def _read_hash(dep: Dependency) -> Any:
    return _once.ask((dep.fs_path,), lambda: _find_hash(dep))


@wraps(_name_cycle)
def _check_acyclic(graph: nx.DiGraph) -> None:
    """Raise as DVC does, whose search for the cycle to name is slow where there is none."""
    if not nx.is_directed_acyclic_graph(graph):
        _name_cycle(graph)


dvc_param.read_param_file, Dependency._get_hash_meta = _read_params, _read_hash
dvc_graph.check_acyclic = _check_acyclic
fast_lock.install()


def _message(error: BaseException) -> str:
    causes = [str(error)]
    while error.__cause__ is not None:
        error = error.__cause__
        causes.append(str(error))
    return ": ".join(dict.fromkeys(cause for cause in causes if cause))


def read_graph(repo: Repo, root: Path) -> tuple[Graph, dict[str, DvcStage]]:
    """Return the graph in the order in which `dvc repro` runs it, and DVC's own stages."""
    edges = repo.index.graph  # an edge goes from a stage to its dependency
    _refuse_lost_params(repo)
    originals = {_name(original): original for original in nx.dfs_postorder_nodes(edges)}
    graph = {
        name: _convert(original, root, sorted(map(_name, edges.successors(original))))
        for name, original in originals.items()
    }
    return graph, originals


def load_stage(repo: Repo, root: Path, name: str) -> DvcStage:
    """Return DVC's own stage of a name in the graph; the others are not looked at.

    Raises:
        DagError: there is none.
    """
    file, _, short = name.rpartition(":")
    place = (name, None) if name.endswith(".dvc") else (file or "dvc.yaml", short)
    try:
        return repo.stage.load_one(str(root / place[0]), place[1])
    except DvcException as error:
        raise DagError(f"{root}: there is no stage '{name}': {error}") from error


def _refuse_lost_params(repo: Repo) -> None:
    """Raise if a param has a name that DVC 3.67 leaves out of the run cache's key, at any depth.

    `_get_cache_hash` drops the size and number of files of data, and with them every param of that
    name: a changed `download.size` would bring the old result back.
    """
    deps = [dep for stage in repo.index.stages for dep in stage.deps if _is_params(dep)]
    for dep in {(dep.fs_path, *dep.params): dep for dep in deps}.values():
        for key, _ in flatten(dep.read_params(), "."):
            if LOST_PARAMS.intersection(key.split(".")):
                raise DagError(
                    f"{dep.def_path}: {key}: DVC's run cache does not see params called "
                    f"{' or '.join(sorted(LOST_PARAMS))}; give it another name"
                )


def _name(original: DvcStage) -> str:
    short = getattr(original, "name", None)  # absent in `dvc add` files
    if short is None:
        return original.path_in_repo
    in_root = original.path_in_repo == "dvc.yaml"
    return short if in_root else f"{original.path_in_repo}:{short}"


def _convert(original: DvcStage, root: Path, needs: list[str]) -> Stage:
    def relative(item: Any) -> str:
        return Path(os.path.relpath(item.fs_path, root)).as_posix()

    meta = original.meta or {}
    name = _name(original)
    return Stage(
        name=name,
        group=name.split("@")[0],
        command=str(original.cmd or ""),
        description=original.desc or "",
        needs=tuple(needs),
        inputs=tuple(relative(dep) for dep in original.deps if not _is_params(dep)),
        params=tuple(key for dep in original.deps if _is_params(dep) for key in dep.params),
        outputs=tuple(relative(out) for out in original.outs),
        metrics=tuple(relative(out) for out in original.outs if out.metric),
        plots=tuple(relative(out) for out in original.outs if out.plot),
        cores=int(meta.get("cores", 1)),
        pool=str(meta.get("pool", "cpu")),
        gpus=int(meta.get("gpus", 0)),
    )


def _is_params(dep: Any) -> bool:
    return hasattr(dep, "params")


def _plan_stage(
    repo: Repo,
    original: DvcStage,
    stage: Stage,
    planned: dict[str, Step],
    future: Future,
) -> Step:
    open_ends = [
        need for need in stage.needs if planned[need].status in (Status.MUST_RUN, Status.UNKNOWN)
    ]
    if open_ends:
        groups = dict.fromkeys(planned[need].stage.group for need in open_ends)
        return Step(stage, Status.UNKNOWN, (f"depends on what {', '.join(groups)} will make",))
    if not original.cmd:
        changed = tuple(_changes_of_outputs(original))
        return Step(stage, Status.MUST_RUN if changed else Status.UP_TO_DATE, changed)

    before = _changes_upstream(original, future)
    after = list(_changes_of_outputs(original))
    if not before and not after:
        return Step(stage, Status.UP_TO_DATE)
    restored = _find_restored(repo, original, future, unchanged=not before)
    if restored is None:
        return Step(stage, Status.MUST_RUN, tuple(before or after))
    future.add(restored)
    return Step(stage, Status.RESTORABLE, tuple(before or after))


def _future_hash(dep: Any, future: Future) -> HashInfo | None:
    """Return the hash that a dependency will have once stages upstream are restored.

    None if nothing that will be restored is part of it. A folder's hash is that of the list of its
    files, each an output of some stage.
    """
    if dep.fs_path in future.hashes:
        return future.hashes[dep.fs_path]
    if dep.fs_path not in future.folders:
        return None
    inside = dep.fs_path + os.sep
    files: dict[str, HashInfo] = {}
    for out in dep.repo.index.outs:
        if overlap(Path(out.fs_path).as_posix(), Path(dep.fs_path).as_posix()):
            files.update(files_of(out))
    tree = Tree()
    for path, hash_info in files.items():
        if path.startswith(inside):
            coming = future.hashes.get(path, hash_info)
            tree.add(tuple(path[len(inside) :].split(os.sep)), None, coming)
    tree.digest()
    return tree.hash_info


def files_of(out: Any) -> dict[str, HashInfo]:
    """Return the hash of the output, or of every file in it if it is a folder."""
    if not out.hash_info.isdir:
        return {out.fs_path: out.hash_info}
    return {os.path.join(out.fs_path, *key): hash_info for key, _, hash_info in out.get_obj() or ()}


def _changes_upstream(original: DvcStage, future: Future) -> list[str]:
    """Return in words how command, params and inputs differ from those in dvc.lock."""
    if not any(dep.hash_info for dep in original.deps):
        return [NEVER_RAN]
    changes = ["the command changed"] if original.changed_stage() else []
    for dep in original.deps:
        if _is_params(dep):
            changes += _changes_of_params(dep)
        elif (coming := _future_hash(dep, future)) is not None:
            if coming != dep.hash_info:
                changes.append(f"{dep.def_path} {CHANGES_UPSTREAM}")
        else:
            changes += [f"{dep.def_path} {_plain(state)}" for state in dep.status().values()]
    return changes


def _changes_of_params(dep: Any) -> list[str]:
    states = dep.status().get(str(dep), {})
    if not states:
        return []
    if isinstance(states, str):  # of the whole file
        return [f"{dep.def_path} {_plain(states)}"]
    recorded = dict(flatten(dep.hash_info.value or {}, "."))
    actual = dict(flatten(dep.read_params(), "."))
    keys = [key for key in {**recorded, **actual} if recorded.get(key) != actual.get(key)]
    words = [f"{key}: {recorded.get(key, '–')} → {actual.get(key, '–')}" for key in keys]
    words = words or [f"{key} {_plain(state)}" for key, state in states.items()]
    if len(words) > SHOWN_CHANGES:
        words[SHOWN_CHANGES:] = [f"{len(words) - SHOWN_CHANGES} more params"]
    return words


def _changes_of_outputs(original: DvcStage) -> Iterator[str]:
    for out in original.outs:
        for state in out.status().values():
            yield f"{out.def_path} {_plain(state)}"


def _plain(state: str) -> str:
    return STATES.get(state, f"is {state}")


def _find_restored(
    repo: Repo, original: DvcStage, future: Future, unchanged: bool
) -> dict[str, HashInfo] | None:
    """Return the hash of each file that DVC would restore instead of running; None if it would run.

    As `StageCache.restore`: an unchanged stage comes back by dvc.lock, another by the run cache.
    """
    for dep in original.deps:
        if (coming := _future_hash(dep, future)) is not None:
            dep.hash_info, dep.meta = coming, Meta()  # sizes are no part of the cache's key
            dep.get_hash = partial(getattr, dep, "hash_info")  # it need not be on the disk yet
        elif _is_params(dep) or dep.exists:
            dep.hash_info, dep.meta = dep.get_hash(), Meta()  # in memory only
        else:
            return None
    if not _can_hash(original):
        return None
    if unchanged and all(out.hash_info for out in original.outs):
        entry = to_single_stage_lockfile(original)
    else:
        entry = repo.stage_cache._load(original)
    if entry is None:
        return None
    StageLoader.fill_from_lock(original, entry)  # in memory only
    if not original.outs_cached():
        return None
    return {path: info for out in original.outs for path, info in files_of(out).items()}
