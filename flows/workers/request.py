"""What the coordinator asks of a worker: one stage, at one commit, with these params and inputs.

A request is a small but complete text: with it and the DVC remote, any clone makes the same bytes.
"""

import os
import re
import sys
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from flows.dvc.project import IGNORING, split_name
from flows.dvc.records import recorded
from flows.git import git
from flows.graph import DagError, Graph, Stage, overlap
from flows.overlay import PARAMS

THREADS = "OVIS_THREADS"  # changes the bytes (stages/common/runtime/seeding.py)
RECORD = "dvc.lock"  # finished stages change it; a request has the part that its stage needs
KEY = re.compile("[0-9a-f]{64}")  # a folder on the remote, and in a worker's clone
HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")  # a path in the cache and on the remote


class UncommittedError(ValueError):
    """The working tree has changes that no worker would see."""


class RefusedError(ValueError):
    """Every worker would refuse this request; the message says why."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a project that all requests of one execution share."""

    commit: str
    params: str  # text of params.yaml, which need not be committed
    versions: dict[str, str]  # of Python and the numeric packages, which results depend on


@dataclass(frozen=True)
class Request:
    """One stage or shard to make; all values are JSON."""

    stage: str
    key: str  # the hash of command, params and inputs, which the worker must compute too
    commit: str
    params: str
    versions: dict[str, str]
    records: dict[str, dict[str, Any]]  # dvc.lock → stage upstream → its entry


def take_snapshot(root: Path, graph: Graph) -> Snapshot:
    """Return commit, params and package versions, if workers can see all that matters.

    Raises:
        UncommittedError: a tracked file other than params.yaml and dvc.lock differs from the
            commit, or an untracked file is an input of a stage.
        GitError: git failed.
    """
    inputs = [path for stage in graph.values() for path in stage.inputs]
    made = [path for stage in graph.values() for path in stage.outputs]
    unseen = []
    told = git(root, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all")
    for state, path in ((entry[:2], entry[3:]) for entry in told.split("\0") if entry):
        # No worktree has the ignoring files of folders, a worker's neither.
        ignoring = Path(path).name == IGNORING and "/" in path
        if path == PARAMS or Path(path).name == RECORD or ignoring:
            continue
        read = any(overlap(path, given) for given in inputs)
        output = any(overlap(path, given) for given in made)
        if state != "??" or (read and not output) or path.endswith((".dvc", "dvc.yaml")):
            unseen.append(path)
    if unseen:
        more = f" and {len(unseen) - 5} more" if len(unseen) > 5 else ""
        raise UncommittedError(
            f"uncommitted changes, which workers would not see: {', '.join(unseen[:5])}{more}; "
            f"commit or stash them (only {PARAMS} and {RECORD} travel with the stages)"
        )
    commit = git(root, "rev-parse", "HEAD")
    return Snapshot(commit, (root / PARAMS).read_text(encoding="utf-8"), versions_here(root))


def make_request(root: Path, graph: Graph, stage: Stage, key: str, snapshot: Snapshot) -> Request:
    """Return the request for a stage whose upstream is up to date in the project at `root`."""
    entries = recorded(root, _made_upstream(stage))
    records: dict[str, dict[str, Any]] = {}
    for name in _made_upstream(stage):
        path, short = _place(name)
        if name not in entries:
            raise DagError(f"{root / path}: no entry of {short}; run the same again")
        outputs = {part: entries[name][part] for part in ("cmd", "outs")}
        records.setdefault(path, {})[short] = outputs
    return Request(stage.name, key, snapshot.commit, snapshot.params, snapshot.versions, records)


def check_stage(request: Request, graph: Graph) -> Stage:
    """Return the requested stage, if the records are only those of its upstream stages.

    Raises:
        RefusedError: there is no such stage, there are other records, or the key is not a hash.
    """
    stage = graph.get(request.stage)
    if stage is None:
        raise RefusedError(f"there is no stage {request.stage!r} at {request.commit[:12]}")
    given = sorted((path, short) for path, entries in request.records.items() for short in entries)
    expected = sorted(map(_place, _made_upstream(stage)))
    if given != expected:
        raise RefusedError(f"it has records of {given}; {stage.name} needs {expected}")
    for stages in request.records.values():
        for out in (out for entry in stages.values() for out in entry["outs"]):
            if not HASH.fullmatch(str(out.get("md5"))):
                raise RefusedError(f"the record of {out.get('path')!r} has no MD5 hash")
    if not KEY.fullmatch(request.key):
        raise RefusedError(f"key {request.key!r} is not 64 hexadecimal digits")
    return stage


def inputs_made_upstream(graph: Graph, stage: Stage) -> list[str]:
    """Return the paths to pull: outputs of upstream stages, or files in them."""
    outputs = [path for need in stage.needs for path in graph[need].outputs]
    return sorted(
        {
            given if given.startswith(output + "/") else output
            for given in stage.inputs
            for output in outputs
            if overlap(given, output)
        }
    )


def versions_here(root: Path) -> dict[str, str]:
    """Return what results depend on besides the commit, to compare machines.

    These are the versions of Python and of the packages that pyproject.toml lets stages import, and
    the number of threads if it is not the default. Builds of one version (`2.9.0+cpu`,
    `2.9.0+cu128`) count as equal, because machines of a cluster have both.
    """
    path = root / "pyproject.toml"
    content = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    names = [Requirement(line).name for line in content.get("project", {}).get("dependencies", [])]
    return {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        THREADS: os.environ.get(THREADS, "default"),
        **{name: _version(name) for name in names},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "missing"


def _place(name: str) -> tuple[str, str]:
    """Return the dvc.lock that records a stage, relative to the root, and its name there."""
    file, short = split_name(name)
    return Path(file).with_name(RECORD).as_posix(), short


def _made_upstream(stage: Stage) -> list[str]:
    return [name for name in stage.needs if not name.endswith(".dvc")]  # whose hash is in git
