import pytest

from claims.readme import reruns, reruns_table
from flows.graph import overlap, select
from tests.support.graph import inputs_through, make_stage

GRAPH = {
    stage.name: stage
    for stage in (
        make_stage("download", params="download seed", inputs="raw"),
        make_stage("cut@0", "download", "cut seed", "data/download/images data/extra"),
        make_stage("cut@1", "download", "cut seed"),
        make_stage("merge", "cut@0 cut@1", "merge.rate", "data/cut"),
        make_stage("score", "merge download", "score", "data/download/truth data/merge"),
    )
}


def test_select_takes_names_and_groups_with_upstream_in_order():
    assert list(select(GRAPH, ["cut"])) == ["download", "cut@0", "cut@1"]
    assert list(select(GRAPH, ["cut@1"])) == ["download", "cut@1"]
    assert list(select(GRAPH, ["score", "download"])) == list(GRAPH)
    assert select(GRAPH, None) == GRAPH
    with pytest.raises(ValueError, match="no stage 'train'; there are: download, cut, merge, sco"):
        select(GRAPH, ["train"])


@pytest.mark.parametrize(
    ("param", "groups"),
    [
        ("download", ["download", "cut", "merge", "score"]),
        ("download.size", ["download", "cut", "merge", "score"]),
        ("cut.by", ["cut", "merge", "score"]),
        ("merge", ["merge", "score"]),
        ("merge.rate", ["merge", "score"]),
        ("merge.rates", []),
        ("score", ["score"]),
        ("unknown", []),
    ],
)
def test_reruns_are_the_readers_and_all_downstream(param, groups):
    assert reruns(GRAPH, param) == groups


def test_reruns_table_names_all_or_the_groups():
    lines = reruns_table(GRAPH).splitlines()
    assert lines[0] == "| param | stages that rerun |"
    assert "| `seed` | all |" in lines
    assert "| `merge.rate` | `merge`, `score` |" in lines


def test_inputs_stop_at_the_source_of_the_raw_data():
    assert inputs_through(GRAPH, "merge", "download") == {
        "data/cut",
        "data/download/images",
        "data/extra",
    }
    assert "data/download/truth" in inputs_through(GRAPH, "score", "download")
    assert inputs_through(GRAPH, "download", "download") == set()


@pytest.mark.parametrize(
    ("path", "other", "expected"),
    [("a/b", "a/b", True), ("a", "a/b", True), ("a/b/c", "a/b", True), ("a/b", "a/bc", False)],
)
def test_overlap_of_paths(path, other, expected):
    assert overlap(path, other) is expected
