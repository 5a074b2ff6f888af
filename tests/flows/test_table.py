import json
import re

from flows.graph import NEVER_RAN, Outcome, Status, Step
from flows.table import (
    OF_ANOTHER,
    align,
    describe_execution,
    name_execution,
    plan_table,
    read_results,
    read_supervision,
    results_table,
    stages_table,
    summarize_plan,
)
from tests.support.graph import make_stage
from tests.support.models_lock import write_lock

STEPS = [
    Step(make_stage("download"), Status.UP_TO_DATE),
    Step(make_stage("cut@0"), Status.MUST_RUN, ("cut.by: 1 → 2", "second", "third", "fourth")),
]


def test_align_pads_left_and_right():
    assert align([("a", "b"), ("ccc", "12")], right=[1]) == "a     b\nccc  12"


def test_plan_table_gives_the_first_reasons():
    lines = plan_table(STEPS).splitlines()
    assert lines[1].split() == ["download", "up", "to", "date"]
    assert lines[2].endswith("must run    cut.by: 1 → 2; second; third")
    assert summarize_plan(STEPS[:1]) == "1 stage: 1 up to date"
    assert summarize_plan(STEPS) == "2 stages and shards: 1 up to date, 1 must run"


def test_plan_table_folds_shards_into_a_line_per_stage():
    shards = [Step(make_stage(f"cut@{k}"), Status.MUST_RUN, ("by: 1 → 2",)) for k in range(64)]
    shards[5] = Step(make_stage("cut@5"), Status.UP_TO_DATE)
    lines = plan_table(
        [STEPS[0], *shards, Step(make_stage("merge"), Status.MAY_RUN, ("after cut",))]
    )
    assert [re.split("  +", line) for line in lines.splitlines()[2:]] == [
        ["cut (64 shards)", "63 must run, 1 up to date", "by: 1 → 2"],
        ["merge", "may run", "after cut"],
    ]


def test_stages_table_folds_shards_and_brackets_earlier_times():
    outcomes = [
        Outcome("download", "download", "unchanged"),
        Outcome("cut@0", "cut", "restored", 1.0),
        Outcome("cut@1", "cut", "executed", 2.0),
        Outcome("merge", "merge", "not run"),
    ]
    lines = stages_table(outcomes, {"download": 12.34}).splitlines()
    assert lines[1].split() == ["download", "unchanged", "(12.3)"]
    assert lines[2].split("  ")[0] == "cut"
    assert "1 executed, 1 restored" in lines[2]
    assert lines[2].endswith("3.0  2 shards, the longest 2.0")
    assert lines[3].split() == ["merge", "not", "run", "(–)"]


def test_results_table_has_every_model_group_protocol_and_kind():
    results = {
        "detector": {
            "generalized": {"novel": {"bbox": {"AP50": 54.32, "AP": 30.06}, "segm": {"AP50": 51}}},
            "constrained": {"base": {"bbox": {"AP50": None, "AP": 1.0}}},
        }
    }
    lines = results_table(results).splitlines()
    assert lines[0] == "Results on the test images: AP50 (AP), percent"
    assert lines[1].split()[-8:] == (
        "constrained box constrained mask generalized box generalized mask".split()
    )
    assert lines[2].split() == ["detector", "–", "base", "–", "–", "–", "–"]
    assert lines[3].split() == ["detector", "–", "novel", "–", "–", "54.3", "(30.1)", "51.0"]
    assert len(lines) == 4


def test_a_result_says_what_its_model_was_made_with_and_not_what_params_say_now(tmp_path):
    assert read_supervision(tmp_path) == {}
    (tmp_path / "params.yaml").write_text("detector: {supervision: {sources: [{name: other}]}}")
    write_lock(tmp_path, {"detector": "d2", "finetune": "f2"})
    told = read_supervision(tmp_path)
    assert told == {
        "detector": "masks and phrases",
        "finetune": "masks and phrases, then ground_truth",
    }
    results = {"detector": {"generalized": {"novel": {}}}}
    assert "detector  masks and phrases  novel" in results_table(results, told)


def test_results_older_than_a_model_do_not_say_what_the_new_one_was_made_with(tmp_path):
    write_lock(
        tmp_path, {"detector": "d1", "finetune": "f1"}
    )  # `run detector`, then `run finetune`
    told = read_supervision(tmp_path)
    assert told == {"detector": OF_ANOTHER, "finetune": OF_ANOTHER}
    table = results_table({"detector": {"generalized": {"novel": {}}}}, told)
    assert "detector  – (of another model)  novel" in table
    assert table.splitlines()[-1].startswith("– (of another model): `ovis-dag run evaluation`")
    write_lock(tmp_path, {"detector": "d2", "finetune": "f2"}, started_from="d1")
    assert read_supervision(tmp_path) == {"detector": "masks and phrases", "finetune": "–"}


def test_results_that_are_not_those_of_the_lock_say_nothing_of_their_models(tmp_path):
    results = tmp_path / "data/evaluation/metrics.json"
    results.parent.mkdir(parents=True)
    results.write_text("{}")
    evaluated = {"detector": "d2", "finetune": "f2"}
    write_lock(tmp_path, evaluated, md5="99914b932bd37a50b983c5e7c90ae93b")  # of {}
    assert read_supervision(tmp_path)["detector"] == "masks and phrases"
    results.write_text('{"detector": {}}')
    assert read_supervision(tmp_path) == {"detector": OF_ANOTHER, "finetune": OF_ANOTHER}


def test_without_results_it_says_so(tmp_path):
    assert read_results(tmp_path) is None
    assert results_table(None) == "No results yet: there is no data/evaluation/metrics.json"


def test_results_table_says_when_nothing_was_measured():
    results = {"detector": {"skipped": "no annotations: skipped", "images": 3}}
    table = results_table(results)
    assert table.startswith("Nothing was measured, says data/evaluation/metrics.json")
    assert "detector: no annotations: skipped" in table


def test_execution_is_named_by_what_changed():
    def step(status: Status, *reasons: str) -> Step:
        return Step(make_stage("cut@0"), status, reasons)

    upstream = step(Status.RESTORABLE, "data/a changes upstream")
    unknown = step(Status.MAY_RUN, "after cut")
    changed = step(Status.MUST_RUN, "cut.by: 1 → 2", "second")
    assert name_execution([changed, changed, upstream, unknown]) == "cut.by: 1 → 2; second"
    assert name_execution([*STEPS, upstream]) == "cut.by: 1 → 2; second; 2 more"
    assert name_execution([step(Status.MUST_RUN, NEVER_RAN), unknown]) == "first run"
    assert name_execution([step(Status.UP_TO_DATE)]) == "no change"
    # A new clone has dvc.lock and no results; a lost file is news, unless all are lost.
    absent = step(Status.MUST_RUN, "data/a is not in cache", "data/b is missing")
    assert name_execution([absent, unknown]) == "first run"
    assert name_execution([absent, changed]) == "cut.by: 1 → 2; second"
    lost = "data/a is not in cache; data/b is missing"
    assert name_execution([absent, step(Status.UP_TO_DATE)]) == lost
    long = name_execution([step(Status.MUST_RUN, "x" * 200)])
    assert (len(long), long[-1]) == (80, "…")


def test_description_has_results_as_markdown(tmp_path):
    outcomes = [Outcome("a", "a", "executed"), Outcome("b", "b", "failed", 0.0, "no space left")]
    assert describe_execution(tmp_path, outcomes).splitlines() == [
        "2 stages and shards: 1 executed, 1 failed.",
        "",
        "- `b` failed: no space left",
    ]
    results = tmp_path / "data/evaluation/metrics.json"
    results.parent.mkdir(parents=True)
    one = {"segm": {"AP50": 20.0, "AP": 1.0}}
    results.write_text(json.dumps({"detector": {"generalized": {"novel": one}}}))
    text = describe_execution(tmp_path, outcomes[:1])
    assert "detector  –            novel" in text and "20.0 (1.0)\n```" in text
