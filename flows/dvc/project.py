"""A project as DVC sees it: its graph, its stages, its cache.

Only flows/dvc imports DVC. Nothing under `dvc.repo` is a public API, so pyproject.toml pins the
version, and tests/flows/dvc/test_dvc_contract.py lists what we use of it.

Functions here raise DagError if the folder is not a DVC project, dvc.yaml or params.yaml cannot be
read, or DVC fails; they raise ValueError if there is no such target.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import networkx as nx
from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo
from dvc.scm import SCMError
from dvc.stage import Stage as DvcStage

from flows.graph import DagError, Graph, Stage, select
from flows.params_file import check_params, check_values

logging.getLogger("dvc").setLevel(logging.WARNING)  # not a line per change of dvc.lock
ONE_BY_ONE = threading.RLock()  # within this process: DVC polls its own lock only twice a second
SECONDS_FOR_A_RECORD = 30.0  # in which DVC hashes outputs and writes dvc.lock
DAMAGED_LOCK = re.compile(r"(unable to read: |^)'(\./)?(?P<path>[^']*dvc\.lock)'")
IGNORING = ".dvcignore"  # in a folder: comparators/.dvcignore says what for


def load_graph(root: Path, targets: list[str] | None = None) -> Graph:
    """Return the stages of dvc.yaml, or the targets with their upstream, in order of execution."""
    return select(load_whole_graph(root), targets)


def load_whole_graph(root: Path) -> Graph:
    """Return the stages of every dvc.yaml that DVC does not ignore, in order of execution."""
    with locked_repo(root) as repo:
        graph, _ = read_graph(repo, root)
        return graph


def share_cache(root: Path, folder: Path) -> None:
    """Let the project at `folder`, a worktree of `root`, use root's cache and local settings."""
    with (
        open_repo(root) as source,
        open_repo(folder) as repo,
        repo.config.edit("local") as settings,
    ):
        settings.update(source.config.load_one("local"))
        settings.setdefault("cache", {})["dir"] = source.cache.local_cache_dir
    for path in folder.glob(f"*/{IGNORING}"):
        path.unlink()


@contextmanager
def open_repo(root: Path) -> Iterator[Repo]:
    """Yield DVC's own view of the project at `root`; wait for DVC's locks."""
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


@contextmanager
def locked_repo(root: Path) -> Iterator[Repo]:
    """Like `open_repo`, but no DVC command writes dvc.lock within the block."""
    with open_repo(root) as repo, lock(repo):
        yield repo


@contextmanager
def lock(repo: Repo) -> Iterator[None]:
    """Keep DVC's commands and other threads from writing dvc.lock within the block."""
    with ONE_BY_ONE, lock_repo(repo):
        yield


@contextmanager
def between_writes(root: Path, seconds: float = SECONDS_FOR_A_RECORD) -> Iterator[None]:
    """Run the block while no DVC command writes dvc.lock, so that it may end such commands.

    DVC writes the file in place, so a command that is ended meanwhile leaves half of it. If others
    keep DVC's lock for longer than `seconds`, as `dvc push` does, the block runs without it.
    """
    deadline = time.monotonic() + seconds
    with ExitStack() as held:
        repo = held.enter_context(Repo(str(root)))
        while True:
            try:
                held.enter_context(lock(repo))  # DVC tries for three seconds
            except LockError:
                if time.monotonic() < deadline:
                    continue
            break
        yield


def _message(error: BaseException | None) -> str:
    causes: dict[str, None] = {}
    while error is not None:
        causes[str(error)] = None
        error = error.__cause__
    message = " ".join(": ".join(filter(None, causes)).split())
    if lock := DAMAGED_LOCK.search(message):
        message += (
            f"; `git restore {lock['path']}` takes back the committed file, or delete it: what was"
            " made since is found in the cache"
        )
    return message


def read_graph(repo: Repo, root: Path) -> tuple[Graph, dict[str, DvcStage]]:
    """Return the graph in the order in which `dvc repro` runs it, and DVC's own stages."""
    check_params(root)
    try:
        edges = repo.index.graph  # an edge goes from a stage to its dependency
    except (DvcException, TypeError, AssertionError):  # DVC asserts what templates are filled with
        check_values(root)
        raise
    originals = {_name(original): original for original in nx.dfs_postorder_nodes(edges)}
    graph = {
        name: _convert(original, root, sorted(map(_name, edges.successors(original))))
        for name, original in originals.items()
    }
    return graph, originals


def load_stage(repo: Repo, root: Path, name: str) -> DvcStage:
    """Return DVC's own stage of this name in the graph, without loading the others."""
    file, short = split_name(name)
    try:
        return repo.stage.load_one(str(root / file), short or None)
    except DvcException as error:
        raise DagError(f"{root}: there is no stage '{name}': {error}") from error


def split_name(name: str) -> tuple[str, str]:
    """Return the stage's file relative to the root, and its name there; a .dvc file has none."""
    file, _, short = name.rpartition(":")
    return (name, "") if name.endswith(".dvc") else (file or "dvc.yaml", short)


def is_params(dep: Any) -> bool:
    """Say whether a dependency consists of keys of a params file."""
    return hasattr(dep, "params")


def _name(original: DvcStage) -> str:
    short = getattr(original, "name", None)  # absent in `dvc add` files
    if short is None:
        return original.path_in_repo
    in_root = original.path_in_repo == "dvc.yaml"
    return short if in_root else f"{original.path_in_repo}:{short}"


def _convert(original: DvcStage, root: Path, needs: list[str]) -> Stage:
    def relative(item: Any) -> str:
        return Path(os.path.relpath(item.fs_path, root)).as_posix()

    def count(key: str, least: int) -> int:
        text = str(meta.get(key, least))
        if not text.isdecimal() or int(text) < least:
            expected = f"expected a whole number >= {least}, found {text}"
            raise DagError(f"dvc.yaml: {name}: meta.{key}: {expected}")
        return int(text)

    name, meta = _name(original), original.meta or {}
    if not isinstance(meta, dict):
        raise DagError(f"dvc.yaml: {name}: meta: expected a mapping, found {meta!r}")
    return Stage(
        name=name,
        group=name.split("@")[0],
        command=str(original.cmd or ""),
        needs=tuple(needs),
        inputs=tuple(relative(dep) for dep in original.deps if not is_params(dep)),
        params=tuple(key for dep in original.deps if is_params(dep) for key in dep.params),
        outputs=tuple(relative(out) for out in original.outs),
        metrics=tuple(relative(out) for out in original.outs if out.metric),
        plots=tuple(relative(out) for out in original.outs if out.plot),
        cores=count("cores", 1),
        pool=str(meta.get("pool", "cpu")),
        gpus=count("gpus", 0),
    )
