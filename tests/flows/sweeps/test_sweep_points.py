"""Points, what they have in common, and what is said of them; no stage runs."""

import pickle
import re
import subprocess
from collections import Counter
from dataclasses import replace

import pytest
from ruamel.yaml import YAML

from flows.graph import Status, Step
from flows.overlay import apply_overlay, nest
from flows.sweeps.plan import PlannedPoint, SweepPlan, recipes
from flows.sweeps.points import Point, make_points, point_name, sweep_name
from flows.sweeps.report import (
    Question,
    Result,
    check_question,
    choose_metrics,
    count_outcomes,
    find_best,
    group_seeds,
    write_report,
    write_results,
)
from tests.support.graph import make_stage

PARAMS = """\
seed: 0
activation: {rounds: 2, reach: 1.5}
pseudo_boxes: {binarise: none}
evaluation: {split: test}
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS)
    return tmp_path


def values(points: list[Point]) -> list[dict]:
    return [point.values for point in points]


def test_grid_is_every_combination_with_yaml_values(project):
    points = make_points(
        project, ["activation.rounds=0,1", "pseudo_boxes.binarise=otsu", "seed=0,1"]
    )
    assert [tuple(point.values.values()) for point in points] == [
        (0, "otsu", 0),
        (0, "otsu", 1),
        (1, "otsu", 0),
        (1, "otsu", 1),
    ]
    assert points[0].name == "activation.rounds=0,pseudo_boxes.binarise=otsu,seed=0"
    assert sweep_name(points) == "activation.rounds+pseudo_boxes.binarise+seed"
    assert values(make_points(project, ["activation.reach=1e-3,[0, 1]"])) == [
        {"activation.reach": 1e-3},
        {"activation.reach": [0, 1]},
    ]


def test_points_of_a_file_are_crossed_with_the_grid_and_completed(project):
    file = project / "points.yaml"
    file.write_text(
        "- {activation.rounds: 0}\n- activation: {reach: 0}\n- {activation.rounds: 0}\n"
    )
    points = make_points(project, ["seed=1,2"], file, ["pseudo_boxes"])
    assert values(points) == [
        {"activation.rounds": 0, "activation.reach": 1.5, "seed": 1},
        {"activation.rounds": 0, "activation.reach": 1.5, "seed": 2},
        {"activation.rounds": 2, "activation.reach": 0, "seed": 1},
        {"activation.rounds": 2, "activation.reach": 0, "seed": 2},
    ]
    assert {point.targets for point in points} == {("pseudo_boxes",)}


def test_a_point_of_a_file_may_extend_a_profile_and_replace_a_mapping(project):
    (project / "experiments").mkdir()
    (project / "experiments/other.yaml").write_text(
        "activation: {rounds: 7}\npseudo_boxes: !replace {kept: 3, by: {score: 1}}\n"
    )
    file = project / "points.yaml"
    file.write_text(
        "- {extends: other, activation.reach: 0, pseudo_boxes.by.score: 2}\n- {seed: 5}\n"
    )
    points = make_points(project, [], file)
    for point, found in zip(points, pickle.loads(pickle.dumps(points)), strict=True):
        path = project / "changed.yaml"
        path.write_text(PARAMS)
        apply_overlay(path, nest(found.values), "test")
        content = YAML(typ="safe").load(path)
        assert content["pseudo_boxes"] == (
            {"kept": 3, "by": {"score": 2}} if point is points[0] else {"binarise": "none"}
        )
    assert points[0].values["activation.rounds"] == 7
    assert (points[1].values["activation.rounds"], points[1].values["seed"]) == (2, 5)


def test_a_part_of_a_section_that_another_point_replaces_keeps_its_value(project):
    file = project / "points.yaml"
    whole = "{pseudo_boxes: !replace {kept: 3, by: {score: 1}}}"
    part = "{pseudo_boxes.binarise: otsu}"
    for text in (f"- {whole}\n- {part}\n- {{seed: 5}}\n", f"- {part}\n- {whole}\n- {{seed: 5}}\n"):
        file.write_text(text)
        sections = {}
        for name, point in zip(text.split("\n"), make_points(project, [], file), strict=False):
            path = project / "changed.yaml"
            path.write_text(PARAMS)
            apply_overlay(path, nest(point.values), "test")
            sections[name] = YAML(typ="safe").load(path)["pseudo_boxes"]
        assert sections == {
            f"- {whole}": {"kept": 3, "by": {"score": 1}},
            f"- {part}": {"binarise": "otsu"},
            "- {seed: 5}": {"binarise": "none"},
        }


def test_a_setting_changes_a_part_of_what_a_point_replaces(project):
    file = project / "points.yaml"
    file.write_text("- {pseudo_boxes: !replace {kept: 3, by: {score: 1}}}\n")
    found = make_points(project, ["pseudo_boxes.by.score=4,5"], file)
    assert values(found) == [{"pseudo_boxes": {"kept": 3, "by": {"score": n}}} for n in (4, 5)]


def test_two_values_of_one_key_are_refused():
    for both in ({"a": {"b": 1}, "a.b": 2}, {"a.b": 2, "a": {"b": 1}}):
        with pytest.raises(ValueError, match=r"^a\.b: a has a value too; leave out one of both$"):
            nest(both)


def test_a_name_stands_for_the_params_of_a_point(project):
    file = project / "points.yaml"
    file.write_text(
        "- {name: none, activation.rounds: 0}\n"
        "- {name: far, activation: {reach: 9.5}, pseudo_boxes.binarise: otsu}\n"
    )
    points = make_points(project, ["seed=1,2"], file)
    assert [point.name for point in points] == [
        f"{name},seed={seed}" for name in ("none", "far") for seed in (1, 2)
    ]
    assert points[0].shown == {"name": "none", "seed": 1}
    assert points[0].values == {
        "activation.rounds": 0,
        "activation.reach": 1.5,
        "pseudo_boxes.binarise": "none",
        "seed": 1,
    }
    assert [point.name for point in make_points(project, [], file)] == ["none", "far"]
    (one,) = make_points(project, ["seed=3"], file)[:1]  # another sweep's seed is another point
    assert one.name == "none,seed=3"
    file.write_text("- {name: one, seed: 1}\n- {seed: 2}\n")
    with pytest.raises(ValueError, match="some points have a name and some have none"):
        make_points(project, [], file)


def test_a_setting_of_several_params_changes_them_together(project):
    points = make_points(project, ["seed,activation.rounds=0,1"])
    assert [point.values for point in points] == [
        {"seed": k, "activation.rounds": k} for k in (0, 1)
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("activation.round=1", "activation.round: params.yaml has no such key; did you mean"),
        ("activation=1", "activation: params.yaml has a section here, found 1"),
        ("seed", "-S seed: expected key=value"),
        ("seed=", "-S seed=: expected key=value"),
        ("seed,=1", "-S seed,=1: expected key=value"),
        ("seed=[1", "-S seed=[1: not valid YAML: line"),
        ("seed=2020-01-01", "seed: no param is a date, found 2020-01-01; a text needs quotes"),
        ("seed=2020-99-99", "-S seed=2020-99-99: not valid YAML: month"),
    ],
)
def test_wrong_settings_are_named(project, setting, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        make_points(project, [setting])


def test_wrong_files_are_named(project):
    for text, message in {
        "{seed: 1}": "expected a list of points",
        "[1]": "expected a list of points",
        "[]": "points.yaml: no point has params",
        "[{}]": "points.yaml: no point has params",
        "[{1: 2}]": "1: params.yaml has no such key",
        "[{name: 2024-05-01, seed: 1}]": "points.yaml: name: expected a text, found .*2024",
        "[{name: [x], seed: 1}]": "points.yaml: name: expected a text, found",
        "[{seed: 1, seed.a: 2}]": "seed.a: seed has a value too",
    }.items():
        (project / "points.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            make_points(project, [], project / "points.yaml")
    with pytest.raises(ValueError, match="cannot be read"):
        make_points(project, [], project / "nowhere.yaml")
    with pytest.raises(ValueError, match="-S key=value"):
        make_points(project, [])


def test_names_are_legal_and_tell_points_apart():
    odd = [
        {"download.coco.folder": "../coco"},
        {"download.coco.folder": "__/coco"},
        {"a": "x" * 300},
        {"a": "x" * 301},
        {"a": "ends."},
        {"a": [1, {"b": None}]},
        {"a": "ä b"},
    ]
    names = [point_name(one) for one in odd]
    assert len(set(names)) == len(odd)
    for name in names:
        reference = f"refs/exps/ab/cd/{name}"
        assert subprocess.run(["git", "check-ref-format", reference]).returncode == 0, name
        assert len(name) <= 100


GRAPH = [
    make_stage("download", params="seed", outputs=("data/images",)),
    make_stage("activation@0", "download", "activation", "data/images", outputs=("data/maps/0",)),
    make_stage("activation@1", "download", "activation", "data/images", outputs=("data/maps/1",)),
    make_stage(
        "pseudo_boxes",
        "activation@0 activation@1",
        "pseudo_boxes.top_k",
        "data/maps",
        outputs=("b",),
    ),
]


def planned(tmp_path, rounds: int, top_k: int, seed: int, cached=()) -> PlannedPoint:
    params = {"seed": seed, "activation": {"rounds": rounds}, "pseudo_boxes": {"top_k": top_k}}
    steps = [
        Step(stage, Status.RESTORABLE if stage.group in cached else Status.MUST_RUN)
        for stage in GRAPH
    ]
    point = Point(f"{rounds} {top_k} {seed}", {})
    return PlannedPoint(point, tmp_path, steps, recipes(steps, params))


def test_two_params_and_two_seeds_share_what_is_upstream(tmp_path):
    points = [
        planned(tmp_path, rounds, top_k, seed, cached=("download",) if seed == 1 else ())
        for rounds in (0, 1)
        for top_k in (10, 50)
        for seed in (0, 1)
    ]
    plan = SweepPlan(points, "")
    # In all points, distinct, cached, to run.
    assert plan.counts() == {
        "download": (8, 2, 1, 1),
        "activation": (16, 8, 0, 8),
        "pseudo_boxes": (8, 8, 0, 8),
    }
    assert plan.summary() == (
        "8 points, 32 stage runs: 18 distinct, of these 1 cached and 17 to run"
    )
    assert "activation               16         8       0       8" in plan.table()


def test_recipes_follow_what_is_upstream(tmp_path):
    one, other = planned(tmp_path, 0, 10, 0).recipes, planned(tmp_path, 1, 10, 0).recipes
    assert [name for name in one if one[name] == other[name]] == ["download"]
    assert one["activation@0"] != one["activation@1"]


SEGM = "evaluation/detector/generalized/novel/segm/AP50"
BBOX = "evaluation/detector/generalized/novel/bbox/AP50"


def result(rounds: int, seed: int, segm: float, failed: bool = False, **more) -> Result:
    point_values = {"activation.rounds": rounds, "seed": seed, **more}
    metrics = {} if failed else {BBOX: 2 * segm, SEGM: segm}
    point = Point(point_name(point_values), point_values)
    return Result(point, failed, metrics, {"executed": 2, "failed": int(failed)})


RESULTS = [
    result(0, 0, 40.0),
    result(0, 1, 44.0),
    result(1, 0, 50.0),
    result(1, 1, 52.0),
    result(2, 0, 99.0),
    result(2, 1, 0.0, failed=True),
]


def test_best_is_by_the_mean_of_whole_rows():
    rows = group_seeds(RESULTS, ["seed"])
    assert [row.values for row in rows] == [{"activation.rounds": k} for k in (0, 1, 2)]
    assert find_best(rows, SEGM, "max") is rows[1]
    assert find_best(rows, SEGM, "min") is rows[0]
    assert find_best(rows[2:], SEGM, "max") is None


def test_metrics_are_chosen_by_pattern():
    assert choose_metrics(RESULTS, ["*/segm/*", "*"]) == [SEGM, BBOX]
    with pytest.raises(ValueError, match="no metric matches 'AP75'; there are 2: evaluation"):
        choose_metrics(RESULTS, ["AP75"])


def test_report_has_table_best_and_a_warning(project):
    folder = project / "sweep"
    write_results(folder, RESULTS)
    text = write_report(project, folder, RESULTS, Question())
    table = (folder / "table.txt").read_text()
    assert table in text + "\n"
    assert "mean ± standard deviation over seed" in table
    rows = [re.split("  +", line.strip()) for line in table.splitlines()[1:]]
    assert rows[0] == ["activation.rounds", "points", "bbox", "segm"]
    assert rows[1] == ["0", "2", "84.0 ± 5.7", "42.0 ± 2.8"]
    assert rows[3][1] == "1 of 2"
    assert f"Best: activation.rounds = 1, with {SEGM} 51.0 ± 1.4" in text
    assert "activation.rounds=1,seed=0, activation.rounds=1,seed=1" in text
    assert "choose with -S evaluation.split=val" in text
    assert (folder / "results.json").read_text().count(SEGM) == 5


def test_rows_are_compared_with_the_first_by_seed(project):
    results = [  # by seed: 2 and 4 points more; the third row has a seed of its own
        result(0, 0, 40.0),
        result(0, 1, 44.0),
        result(1, 0, 42.0),
        result(1, 1, 48.0),
        result(2, 7, 50.0),
    ]
    lines = write_report(project, project, results, Question(metrics=(SEGM,))).splitlines()
    start = lines.index("The same less the first row, paired by seed, with 95 % t intervals")
    cells = [re.split("  +", line.strip()) for line in lines[start + 1 : start + 4]]
    assert cells[0] == ["activation.rounds", "points", SEGM]
    assert cells[1] == ["1", "2", "+3.0 [-9.7, +15.7]"]  # ± 12.706 × √2 / √2
    assert cells[2] == ["2", "1", "–"]


def test_rows_are_compared_with_the_one_that_is_asked_for(project):
    results = [result(k, seed, 40.0 + k * k + seed * k) for k in range(3) for seed in (0, 1)]
    question = Question(metrics=(SEGM,), against="activation.rounds=1")
    lines = write_report(project, project, results, question).splitlines()
    start = lines.index("The same less activation.rounds=1, paired by seed, with 95 % t intervals")
    assert [line.split()[:3] for line in lines[start + 2 : start + 4]] == [
        ["0", "2", "-1.5"],
        ["2", "2", "+3.5"],
    ]


def test_a_row_to_compare_with_is_looked_for_before_anything_runs(project):
    points = make_points(project, ["activation.rounds=0,1", "seed=0,1"])
    check_question(points, Question(against="activation.rounds=1"))
    told = "--against rounds=1: expected one of activation.rounds=0 activation.rounds=1"
    with pytest.raises(ValueError, match=f"^{told}$"):
        check_question(points, Question(against="rounds=1"))
    seeds = make_points(project, ["seed=0,1"])
    with pytest.raises(ValueError, match=r"^--against seed=1: all points are one row; leave it"):
        check_question(seeds, Question(against="seed=1"))


def test_a_param_to_take_the_mean_over_is_looked_for_before_anything_runs(project):
    points = make_points(project, ["activation.rounds=0,1"])
    check_question(points, Question(over=("seed", "activation.rounds")))
    (project / "rows.yaml").write_text("[{name: plain}]")
    (one,) = make_points(project, ["activation.rounds=1"], project / "rows.yaml")
    check_question([one], Question(over=("seed", "activation.rounds")))
    told = "--over rounds: the points do not set it; they set activation.rounds"
    with pytest.raises(ValueError, match=f"^{told}$"):
        check_question(points, Question(over=("rounds",)))


def test_every_row_says_what_the_models_that_it_shows_learned_from(project):
    both = {"detector": "phrases", "finetune": "phrases, then ground_truth"}
    results = [
        replace(result(0, 0, 40.0), supervision={"detector": "base_masks"}),
        replace(result(1, 0, 50.0), supervision=both),
        replace(result(2, 0, 0.0, failed=True), supervision=both),  # has measured nothing
    ]
    lines = write_report(project, project, results, Question(metrics=(SEGM,))).splitlines()
    assert [re.split("  +", line.strip())[:2] for line in lines[1:5]] == [
        ["activation.rounds", "supervision"],
        ["0", "base_masks"],
        ["1", "phrases"],
        ["2", "–"],
    ]
    results[1].metrics["evaluation/finetune/generalized/novel/segm/AP50"] = 60.0
    text = write_report(project, project, results, Question())
    assert "phrases, then ground_truth" in text


def test_rows_of_named_points_show_their_names_alone(project):
    def named(name: str, seed: int, segm: float) -> Result:
        own = {"seed": seed, "shards": seed}
        values = {"activation.rounds": len(name), **own}
        label = {"name": name, **own}
        return Result(Point(f"{name},{seed}", values, label=label), False, {SEGM: segm})

    results = [named(name, seed, 40.0) for name in ("a", "bb") for seed in (0, 1)]
    rows = group_seeds(results, ["seed", "shards"])
    assert [row.values for row in rows] == [{"name": "a"}, {"name": "bb"}]
    assert rows[1].paired(rows[0], SEGM, ["seed", "shards"]) == [0.0, 0.0]


def test_chosen_on_validation_images_there_is_no_warning(project):
    results = [result(k, 0, 40.0 + k, **{"evaluation.split": "val"}) for k in (0, 1)]
    text = write_report(project, project, results, Question(direction="min"))
    assert "flatter" not in text
    assert "Best: activation.rounds = 0, with" in text
    assert text.splitlines()[1].split() == ["activation.rounds", "points", "bbox", "segm"]


def test_seeds_alone_give_their_mean_and_no_best(project):
    results = [result(0, seed, 40.0 + seed) for seed in (0, 1)]
    text = write_report(project, project, results, Question())
    assert text.splitlines()[2].split() == "2 81.0 ± 1.4 40.5 ± 0.7".split()
    assert "Best" not in text


def test_one_best_metric_and_something_to_compare(project):
    text = write_report(project, project, RESULTS, Question(best="*"))
    assert text.splitlines()[-1] == "--best *: matches 2 metrics; give one"
    text = write_report(project, project, RESULTS, Question(best="AP75"))
    assert text.splitlines()[1].split()[0] == "activation.rounds"
    assert text.splitlines()[-1].startswith("None is the best: no metric matches 'AP75'; there are")
    text = write_report(project, project, RESULTS, Question(metrics=("AP75",)))
    assert text.startswith("no metric matches 'AP75'; ") and text.endswith("--metric shows others")
    one_row = write_report(project, project, [result(0, 0, 40.0)], Question(best="AP75"))
    assert "AP75" not in one_row
    text = write_report(project, project, RESULTS[-1:], Question())
    assert text == "No point was finished, so there is nothing to compare"


def test_outcomes_are_counted_over_all_points():
    assert count_outcomes(RESULTS) == "5 of 6 points done; their stages: 12 executed, 1 failed"


def test_who_was_first_does_not_change_how_outcomes_are_told():
    def point(*outcomes: str) -> Result:
        return Result(RESULTS[0].point, False, {}, dict(Counter(outcomes)))

    results = [point("restored", "executed"), point("executed", "executed", "restored")]
    told = "2 of 2 points done; their stages: 3 executed, 2 restored"
    assert count_outcomes(results) == count_outcomes(results[::-1]) == told
