"""The graph and the plan, by DVC's insides where they are the known ones, else by its commands."""

import importlib.metadata
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from flows.graph import Graph, Step

# DVC that the modules which know its insides were written for; pyproject.toml pins it
KNOWN = "3.67."


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


def knows_dvc() -> bool:
    """Say whether DVC's insides may be used: not of another version, nor with OVIS_DVC=commands."""
    known = importlib.metadata.version("dvc").startswith(KNOWN)
    return known and os.environ.get("OVIS_DVC") != "commands"


@cache
def _reader() -> ModuleType:
    if knows_dvc():
        from flows import dag

        return dag
    from flows import dag_commands

    print(
        f"flows: planning by DVC's commands (known is DVC {KNOWN}*): what the run cache"
        " has is not looked up, so such stages show as 'must run'",
        file=sys.stderr,
    )
    return dag_commands
