"""What a stage can read, for the tests that the method reads no ground truth."""

from flows.graph import Graph


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
