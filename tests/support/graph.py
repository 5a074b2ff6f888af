"""Stages that run nothing, and what a stage can read of a graph."""

from typing import Any

from flows.graph import Graph, Stage


def make_stage(
    name: str, needs: str = "", params: str = "", inputs: str = "", **changes: Any
) -> Stage:
    """Return a stage of one core; what it needs and reads are words."""
    fields = {
        "group": name.split("@")[0],
        "command": "true",
        "needs": tuple(needs.split()),
        "inputs": tuple(inputs.split()),
        "params": tuple(params.split()),
        "outputs": (),
        "metrics": (),
        "plots": (),
        "cores": 1,
        "pool": "cpu",
    }
    return Stage(name, **fields | changes)


def inputs_through(graph: Graph, name: str, source: str) -> set[str]:
    """Return the inputs of a stage and of all stages upstream of it, without looking into `source`.

    `source` is the group that makes the raw data. Of its files, only outputs that other stages read
    are counted.
    """
    inputs: set[str] = set()
    pending, seen = [name], set()
    while pending:
        current = graph[pending.pop()]
        if current.name in seen or current.group == source:
            continue
        seen.add(current.name)
        inputs.update(current.inputs)
        pending.extend(current.needs)
    return inputs
