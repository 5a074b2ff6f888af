"""What a stage can see, for the tests that the method sees no ground truth."""

from flows.graph import Graph


def inputs_through(graph: Graph, name: str, source: str) -> set[str]:
    """Return the inputs of a stage and of all stages upstream of it, without looking into `source`.

    `source` is the group that makes the raw data: what it reads and the rest of what it writes is
    not counted, only which of its outputs the others take.
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
