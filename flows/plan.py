"""The graph and the plan, by DVC's insides where they are the known ones, else by its commands."""

import importlib.metadata
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from flows.graph import Graph, Step

KNOWN = "3.67."  # versions of DVC that flows/dag.py was written for; pyproject.toml pins them


def load_graph(root: Path, targets: list[str] | None = None) -> Graph:
    """Return the stages of dvc.yaml, or the targets with their upstream, in order of execution.

    Raises:
        DagError: `root` is no DVC project, or dvc.yaml or params.yaml cannot be read.
        ValueError: there is no such target.
    """
    return _reader().load_graph(root, targets)


def make_plan(root: Path, targets: list[str] | None = None) -> list[Step]:
    """Return what the next execution will do, stage by stage, without running anything.

    Raises:
        DagError: as for `load_graph`.
        ValueError: there is no such target.
    """
    return _reader().make_plan(root, targets)


def sort_lock(root: Path) -> None:
    """Put the stages of dvc.lock in the order of the graph, as one `dvc repro` writes them."""
    _reader().sort_lock(root)


@cache
def _reader() -> ModuleType:
    """Return flows.dag, or flows.dag_commands for another DVC or with OVIS_DVC=commands."""
    version = importlib.metadata.version("dvc")
    if version.startswith(KNOWN) and os.environ.get("OVIS_DVC") != "commands":
        from flows import dag

        return dag
    from flows import dag_commands

    print(
        f"flows: planning by DVC's commands (DVC {version}, known is {KNOWN}*): what the run cache"
        " has is not looked up, so such stages show as 'must run'",
        file=sys.stderr,
    )
    return dag_commands
