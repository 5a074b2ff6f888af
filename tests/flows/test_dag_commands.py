"""Without DVC's insides: the same graph, and a plan that never promises too much."""

import shutil

import pytest
from ruamel.yaml import YAML

from flows import dag, dag_commands
from flows.graph import DagError, Status

UP, BACK, RUN, OPEN = Status.UP_TO_DATE, Status.RESTORABLE, Status.MUST_RUN, Status.UNKNOWN
CAUTIOUS = {UP: {UP, OPEN}, BACK: {RUN, OPEN}, RUN: {RUN, OPEN}, OPEN: {OPEN}}


def check(toy) -> dict[str, Status]:
    """Compare both plans and return the one by commands."""
    exact = {step.stage.name: step.status for step in dag.make_plan(toy.root)}
    found = {step.stage.name: step.status for step in dag_commands.make_plan(toy.root)}
    assert {name: found[name] in CAUTIOUS[status] for name, status in exact.items()} == (
        dict.fromkeys(exact, True)
    )
    return found


def test_graph_is_the_same(toy, repository):
    for root in (toy.root, repository):
        expected, found = dag.load_graph(root), dag_commands.load_graph(root)
        assert list(found) == list(expected)
        assert found == expected
    assert list(dag_commands.load_graph(toy.root, ["cut"])) == ["download", "cut@0", "cut@1"]


def test_plan_is_cautious(done_toy):
    toy = done_toy
    assert set(check(toy).values()) == {UP}
    toy.replace("by: 1", "by: 2")
    found = check(toy)
    assert (found["cut@0"], found["merge"], found["side"]) == (RUN, OPEN, UP)
    reasons = {step.stage.name: step.reasons for step in dag_commands.make_plan(toy.root)}
    assert reasons["cut@0"] == ("cut changed",)
    toy.replace("by: 2", "by: 1")
    shutil.rmtree(toy.root / "data" / "cut")
    assert check(toy)["cut@0"] == RUN
    shutil.rmtree(toy.root / ".dvc" / "cache")
    check(toy)


def test_the_lock_is_sorted_to_the_same_bytes(done_toy):
    path = done_toy.root / "dvc.lock"
    expected = path.read_text()
    yaml = YAML()
    content = yaml.load(path)
    content["stages"] = dict(reversed(list(content["stages"].items())))
    yaml.dump(content, path)
    assert path.read_text() != expected
    dag_commands.sort_lock(done_toy.root)
    assert path.read_text() == expected


def test_what_dvc_says_is_the_error(toy):
    (toy.root / "dvc.yaml").write_text("stages: [\n")
    with pytest.raises(DagError, match=r"dvc\.yaml"):
        dag_commands.load_graph(toy.root)


def test_it_is_used_when_asked_for(done_toy):
    code, output = done_toy.call("-m", "flows", "plan", OVIS_DVC="commands")
    assert code == 0
    assert "planning by DVC's commands" in output
    assert "6 stages and shards: 6 up to date" in output
