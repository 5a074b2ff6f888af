import json
from dataclasses import asdict, replace

import pytest

from flows.dvc.project import load_graph
from flows.dvc.remote import result_key
from flows.graph import DagError
from flows.workers.request import (
    UncommittedError,
    inputs_made_upstream,
    make_request,
    take_snapshot,
    versions_here,
)
from flows.workers.stage_flow import reproduce
from tests.support.fleet import make_fleet, request_for


def snapshot(toy):
    return take_snapshot(toy.root, load_graph(toy.root))


def test_results_records_params_and_strangers_are_no_uncommitted_changes(done_toy):
    done_toy.replace("by: 1", "by: 5")
    done_toy.mark("notes.txt")
    taken = snapshot(done_toy)
    assert taken.commit == done_toy.git("rev-parse", "HEAD").strip()
    assert "by: 5" in taken.params


@pytest.mark.parametrize(
    "path",
    ["stages/cut/__main__.py", "dvc.yaml", ".dvc/config", ".gitignore", "stages/__init__.py"],
)
def test_changed_files_are_refused(toy, path):
    with (toy.root / path).open("a") as file:
        file.write("\n# changed\n")
    with pytest.raises(UncommittedError, match=f"would not see: {path}; commit or stash"):
        snapshot(toy)


def test_untracked_inputs_are_refused(toy):
    toy.git("rm", "-q", "--cached", "stages/side/__main__.py")
    toy.git("commit", "-qm", "forgotten")
    with pytest.raises(UncommittedError, match=r"see: stages/side/__main__\.py; commit"):
        snapshot(toy)


def test_deleted_files_are_refused(toy):
    (toy.root / "stages/side/__main__.py").unlink()
    with pytest.raises(UncommittedError, match="side"):
        snapshot(toy)


def test_a_request_has_the_records_of_its_upstream_only_and_is_json(done_toy):
    graph = load_graph(done_toy.root)
    taken = take_snapshot(done_toy.root, graph)
    cut = make_request(done_toy.root, graph, graph["cut@1"], "key", taken)
    assert list(cut.records) == ["dvc.lock"]
    assert list(cut.records["dvc.lock"]) == ["download"]
    merge = make_request(done_toy.root, graph, graph["merge"], "key", taken)
    assert list(merge.records["dvc.lock"]) == ["cut@0", "cut@1"]
    assert json.loads(json.dumps(asdict(merge))) == asdict(merge)
    first = make_request(done_toy.root, graph, graph["download"], "key", taken)
    assert first.records == {}


def test_a_stage_whose_upstream_is_not_recorded_is_not_asked_for(done_toy):
    graph = load_graph(done_toy.root)
    taken = take_snapshot(done_toy.root, graph)
    done_toy.replace("  cut@1:\n", "  cut@2:\n", "dvc.lock")
    with pytest.raises(DagError, match=r"dvc\.lock: no entry of cut@1; run the same again"):
        make_request(done_toy.root, graph, graph["merge"], "key", taken)


def test_what_is_pulled_is_what_the_stage_reads_of_what_is_made_upstream(toy):
    graph = load_graph(toy.root)
    made = {name: inputs_made_upstream(graph, stage) for name, stage in graph.items()}
    assert made["cut@1"] == [
        "data/download/parts/a.txt"
    ]  # a file in the folder that download makes
    assert made["merge"] == ["data/cut/0.txt", "data/cut/1.txt"]  # outputs in the folder it reads
    assert made["download"] == []


def test_versions_are_those_of_the_numeric_packages_without_their_build(repository):
    versions = versions_here(repository)
    assert {"python", "numpy", "torch"} < set(versions)
    assert not any("+" in version for version in versions.values())
    assert "prefect" not in versions


def test_params_become_no_command(toy):
    """DVC puts them into the stage's command as they are, and a shell runs it."""
    toy.replace("-m stages download", "-m stages download ${download.lines}", "dvc.yaml")
    toy.git("commit", "-qam", "a command with params")
    clone = make_fleet(toy).clones[0]
    request, file = request_for(toy, "download"), toy.root.parent / "PWNED"
    toy.replace("lines: 3", f"lines: 3; touch {file}")
    params, key = (toy.root / "params.yaml").read_text(), result_key(toy.root, "download")
    with pytest.raises(DagError, match=r"params\.yaml: download\.lines: .* into a command"):
        reproduce(clone, replace(request, params=params, key=key), "run-1", print)
    assert not file.exists()
