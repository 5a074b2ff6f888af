"""The graph and a plan by DVC's commands alone, for a DVC that `flows.dag` was not written for.

Coarser than `flows.dag`, but it never calls a stage up to date that is not: it does not look into
the run cache, so a stage that may be restored counts as one that must run, and all downstream of it
as unknown. DVC has no command that prints stages as data, so dvc.yaml is read here; a list of
stages that differs from DVC's own is an error.
"""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML

from flows.environment import stage_environment
from flows.graph import STATES, DagError, Graph, Stage, Status, Step, select
from flows.lock_text import sort_entries

RUNNING = re.compile(r"^Running stage '(.+)':$", re.MULTILINE)
TEMPLATE = re.compile(r"\$\{\s*([\w.]+)\s*\}")


def load_graph(root: Path, targets: list[str] | None = None) -> Graph:
    """Return the stages as `flows.dag.load_graph` does.

    Raises:
        DagError: DVC cannot read the project, or reads other stages in it.
        ValueError: there is no such target.
    """
    order = RUNNING.findall(_dvc(root, "repro", "--dry", "--force", "--all-pipelines"))
    stages = dict(itertools.chain(*(_read(root, path) for path in _files(root))))
    if set(order) != set(stages):
        different = ", ".join(sorted(set(order) ^ set(stages)))
        raise DagError(f"dvc.yaml: DVC and flows/dag_commands.py do not agree on {different}")
    needs = _needs(stages)
    return select({name: replace(stages[name], needs=needs[name]) for name in order}, targets)


def make_plan(root: Path, targets: list[str] | None = None) -> list[Step]:
    """Return what the next execution will do, as far as `dvc status` can tell.

    Raises:
        DagError: as for `load_graph`.
        ValueError: there is no such target.
    """
    graph = load_graph(root, targets)
    changed = json.loads(_dvc(root, "status", "--json"))
    planned: dict[str, Step] = {}
    for name, stage in graph.items():
        open_ends = [n for n in stage.needs if planned[n].status is not Status.UP_TO_DATE]
        if open_ends:
            groups = ", ".join(dict.fromkeys(graph[need].group for need in open_ends))
            planned[name] = Step(stage, Status.UNKNOWN, (f"depends on what {groups} will make",))
        elif name in changed:
            planned[name] = Step(stage, Status.MUST_RUN, tuple(_reasons(changed[name])))
        else:
            planned[name] = Step(stage, Status.UP_TO_DATE)
    return list(planned.values())


def sort_lock(root: Path) -> None:
    """Put the stages of dvc.lock in the order of the graph, as one `dvc repro` writes them."""
    sort_entries(root / "dvc.lock", load_graph(root))


def _dvc(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments],
        cwd=root,
        env=stage_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise DagError(done.stderr.strip().removeprefix("ERROR: ") or f"dvc {arguments[0]} failed")
    return done.stdout


def _needs(stages: Graph) -> dict[str, tuple[str, ...]]:
    """Return the names of the stages right upstream of each: their outputs overlap its inputs."""
    makers: dict[str, str] = {}
    inside: dict[str, set[str]] = {}
    for name, stage in stages.items():
        for output in stage.outputs:
            makers[output] = name
            for folder in PurePosixPath(output).parents:
                inside.setdefault(str(folder), set()).add(name)
    needs = {}
    for name, stage in stages.items():
        found: set[str] = set()
        for path in stage.inputs:
            places = [path, *map(str, PurePosixPath(path).parents)]
            found |= {makers[place] for place in places if place in makers} | inside.get(
                path, set()
            )
        needs[name] = tuple(sorted(found - {name}))
    return needs


def _reasons(changes: list[str | dict]) -> Iterator[str]:
    """Yield in words what `dvc status --json` says of one stage."""
    for change in changes:
        if isinstance(change, str):
            yield f"the {change.removeprefix('changed ')} changed"
            continue
        for files in change.values():
            for path, states in files.items():
                keys = states if isinstance(states, dict) else {path: states}
                for key, state in keys.items():
                    yield f"{key} {STATES.get(state, f'is {state}')}"


def _files(root: Path) -> list[Path]:
    ignored = {".git", ".dvc", ".venv", "data"}
    found = [*root.glob("dvc.yaml"), *root.glob("*/dvc.yaml")]
    return [path for path in found if path.parent.name not in ignored]


def _read(root: Path, path: Path) -> Iterator[tuple[str, Stage]]:
    """Yield the stages of one dvc.yaml by name, matrix ones once per combination."""
    content = YAML(typ="safe").load(path)
    params = path.parent / "params.yaml"
    values = (YAML(typ="safe").load(params) if params.is_file() else None) or {}
    for entry in content.get("vars", []):
        values |= entry if isinstance(entry, dict) else YAML(typ="safe").load(path.parent / entry)
    place = path.parent.relative_to(root)
    prefix = "" if path.parent == root else f"{place.as_posix()}/dvc.yaml:"
    for name, stage in content["stages"].items():
        matrix = _fill(stage.get("matrix", {}), values)
        for combination in itertools.product(*matrix.values()):
            item = dict(zip(matrix, combination, strict=True))
            suffix = f"@{'-'.join(map(str, combination))}" if matrix else ""
            filled = _fill(stage, {**values, "item": item})
            yield f"{prefix}{name}{suffix}", _stage(f"{prefix}{name}", suffix, filled, place)


def _fill(node: Any, values: dict) -> Any:
    """Return a part of dvc.yaml with each ${key.of.params} replaced."""
    if isinstance(node, dict):
        return {key: _fill(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_fill(value, values) for value in node]
    if not isinstance(node, str):
        return node
    whole = TEMPLATE.fullmatch(node)
    if whole:
        return _look_up(whole[1], values)
    return TEMPLATE.sub(lambda match: str(_look_up(match[1], values)), node)


def _look_up(key: str, values: Any) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def _stage(name: str, suffix: str, content: dict, place: Path) -> Stage:
    wdir = place / content.get("wdir", ".")

    def paths(kind: str) -> tuple[str, ...]:
        entries = content.get(kind, [])
        names = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]
        return tuple(Path(os.path.normpath(wdir / name)).as_posix() for name in names)

    params = content.get("params", [])
    keys = [
        key
        for entry in params
        for key in (next(iter(entry.values())) if isinstance(entry, dict) else [entry])
    ]
    meta = content.get("meta", {})
    return Stage(
        name=f"{name}{suffix}",
        group=name,
        command=str(content["cmd"]),
        description=content.get("desc", ""),
        needs=(),
        inputs=paths("deps"),
        params=tuple(keys),
        outputs=(*paths("outs"), *paths("metrics"), *paths("plots")),
        metrics=paths("metrics"),
        plots=paths("plots"),
        cores=int(meta.get("cores", 1)),
        pool=str(meta.get("pool", "cpu")),
        gpus=int(meta.get("gpus", 0)),
    )
