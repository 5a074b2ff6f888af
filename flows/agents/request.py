"""What the coordinator asks an agent: one stage, at one commit, with these params and inputs.

A request is small, text, and whole: with it and the DVC remote any clone makes the same bytes.
"""

import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from flows.dvc.project import recorded
from flows.graph import Graph, Stage, overlap

PARAMS = "params.yaml"
SHIPPED = {PARAMS}  # travels with each request, so it may differ from the commit
THREADS = "OVIS_THREADS"  # changes the bytes (stages/common/seeding.py)
RECORD = "dvc.lock"  # what finished stages change; a request has the part that its stage needs


class UncommittedError(ValueError):
    """The working tree has changes that no agent would see."""


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
    key: str  # the hash of command, params and inputs, which the agent must arrive at too
    commit: str
    params: str
    versions: dict[str, str]
    inputs: list[str]  # paths to pull: outputs of stages upstream, or files in them
    records: dict[str, dict[str, Any]]  # dvc.lock → stage upstream → its entry


def take_snapshot(root: Path, graph: Graph) -> Snapshot:
    """Return commit, params and package versions, if agents can see all that matters.

    Raises:
        UncommittedError: a tracked file other than params.yaml and dvc.lock differs from the
            commit, or an untracked file is an input of a stage.
        ValueError: git cannot say.
    """
    inputs = [path for stage in graph.values() for path in stage.inputs]
    made = [path for stage in graph.values() for path in stage.outputs]
    unseen = []
    for state, path in _git_status(root):
        if path in SHIPPED or Path(path).name == RECORD:
            continue
        read = any(overlap(path, given) for given in inputs)
        output = any(overlap(path, given) for given in made)
        if state != "??" or (read and not output) or path.endswith((".dvc", "dvc.yaml")):
            unseen.append(path)
    if unseen:
        more = f" and {len(unseen) - 5} more" if len(unseen) > 5 else ""
        raise UncommittedError(
            f"uncommitted changes, which agents would not see: {', '.join(unseen[:5])}{more}; "
            f"commit or stash them (only {PARAMS} and {RECORD} travel with the stages)"
        )
    commit = _git(root, "rev-parse", "HEAD").strip()
    return Snapshot(commit, (root / PARAMS).read_text(encoding="utf-8"), versions_here(root))


def make_request(root: Path, graph: Graph, stage: Stage, key: str, snapshot: Snapshot) -> Request:
    """Return the request for a stage whose upstream is up to date in the project at `root`."""
    outputs = [path for need in stage.needs for path in graph[need].outputs]
    inputs = {
        given if given.startswith(output + "/") else output
        for given in stage.inputs
        for output in outputs
        if overlap(given, output)
    }
    return Request(
        stage=stage.name,
        key=key,
        commit=snapshot.commit,
        params=snapshot.params,
        versions=snapshot.versions,
        inputs=sorted(inputs),
        records=_records(root, stage.needs),
    )


def versions_here(root: Path) -> dict[str, str]:
    """Return what results depend on beside the commit, for comparison between machines.

    The versions of Python and of the packages that pyproject.toml lets stages import, and the
    number of threads if it is not the default. Builds of one version (`2.9.0+cpu`, `2.9.0+cu128`)
    count as equal: a fleet has both.
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


def _records(root: Path, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return the outputs of stages as dvc.lock has them, by the file and stage's short name."""
    records: dict[str, dict[str, Any]] = {}
    made = [name for name in names if not name.endswith(".dvc")]  # the hash of those is in git
    for name, entry in recorded(root, made).items():
        folder, _, short = name.rpartition(":")
        path = (Path(folder).parent if folder else Path()) / RECORD
        own = {key: entry[key] for key in ("cmd", "outs")}
        records.setdefault(path.as_posix(), {})[short] = own
    return records


def _git_status(root: Path) -> list[tuple[str, str]]:
    text = _git(root, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all")
    return [(entry[:2], entry[3:]) for entry in text.split("\0") if entry]


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"git {arguments[0]} in {root}: {done.stderr.strip()}")
    return done.stdout
