"""evaluation: the protocols, pycocotools' numbers, the predictions file, and the whole stage."""

import re
import shutil
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from stages.common.formats.coco import group_by_image
from stages.common.geometry.masks import decode_mask
from stages.common.runtime.storage import read_json, write_json
from stages.evaluation.average_precision import (
    average_precision,
    group_precision,
    precision_table,
)
from stages.evaluation.detections import detect, split_by_trial
from stages.evaluation.protocols import describe_trials, make_trials
from stages.evaluation.self_training import choose_images, measure_training_objects
from stages.evaluation.summary import (
    evaluation_metrics,
    per_class_rows,
    precision_recall_rows,
    score,
)
from tests.support.evaluation_inputs import (
    CAR,
    CATEGORIES,
    CUP,
    EVALUATION_PARAMS,
    FISH,
    HAT,
    HW,
    INDEX,
    ROCK,
    annotation,
    coco_result,
    image_of,
    make_prediction,
    mask_of,
    predictor,
    run_evaluation,
    small_world,
    truth_of,
    write_evaluation_inputs,
)


def test_protocols_take_images_and_objects_of_their_vocabulary():
    truth = truth_of(
        [
            annotation(1, CUP, (0, 0, 10, 10)),
            annotation(1, FISH, (20, 20, 30, 30)),
            annotation(1, ROCK, (0, 20, 5, 30)),
            annotation(2, ROCK, (0, 0, 10, 10)),
            annotation(3, HAT, (0, 0, 10, 10), 1),
        ]
    )
    generalized, base, novel = make_trials(truth, CATEGORIES)
    assert generalized.image_ids == {1, 3}  # image 2 has a rock only
    assert generalized.class_indices == [0, 1, 2, 3]
    assert [a["category_id"] for a in generalized.annotations] == [CUP, FISH, HAT]
    assert (base.protocol, base.groups, base.class_indices) == ("constrained", ("base",), [0, 1])
    assert base.image_ids == {1, 3}
    assert (novel.image_ids, novel.class_indices) == ({1}, [2, 3])
    assert [a["category_id"] for a in novel.annotations] == [FISH]
    report = describe_trials(truth, [generalized, base, novel])
    assert (report["images_left_out"], report["annotations_left_out"]) == (1, 2)
    assert report["categories_without_objects"] == ["car"]
    assert report["trials"][1] == {
        "protocol": "constrained",
        "groups": ["base"],
        "images": 2,
        "objects": 1,
        "crowds": 1,
    }


def test_nothing_to_measure_is_an_error():
    with pytest.raises(ValueError, match="no image has an object of a base or novel class"):
        make_trials(truth_of([annotation(1, ROCK, (0, 0, 9, 9))]), CATEGORIES)


def test_average_precision_of_a_case_worked_by_hand():
    """Two cups; the surest detection is wrong, the second right, the third cup is never found.

    Precision 1/2 up to recall 1/2, then 0: 51 of the 101 recall points, so AP50 is 51/101/2. The
    right box has IoU 90/110 = .82 with its cup, which passes 7 of the 10 thresholds.
    """
    truth = truth_of([annotation(1, CUP, (0, 0, 10, 10)), annotation(2, CUP, (0, 0, 10, 10))])
    trial = make_trials(truth, CATEGORIES)[0]
    found = [
        coco_result(1, CUP, (20, 20, 30, 30), score=0.9),
        coco_result(1, CUP, (0, 1, 10, 11), score=0.8),
    ]
    table = precision_table(trial, found, "bbox", 100)
    own = average_precision(group_precision(table, trial, "base"))
    assert own["AP50"] == pytest.approx(100 * 51 / 101 / 2, abs=1e-3)
    assert own["AP"] == pytest.approx(100 * 51 / 101 / 2 * 7 / 10, abs=1e-3)
    assert average_precision(group_precision(table, trial, "novel")) == {"AP": -1, "AP50": -1}


def test_class_without_objects_is_left_out_of_means():
    truth = truth_of([annotation(1, CUP, (0, 0, 10, 10))])
    trial = make_trials(truth, CATEGORIES)[0]
    found = [
        coco_result(1, CUP, (0, 0, 10, 10), score=0.9),
        coco_result(1, HAT, (0, 0, 10, 10), score=0.9),
    ]
    table = precision_table(trial, found, "segm", 100)
    assert average_precision(group_precision(table, trial, "all")) == {"AP": 100, "AP50": 100}


def test_crowds_are_neither_objects_nor_mistakes():
    truth = truth_of([annotation(1, CUP, (0, 0, 10, 10)), annotation(1, CUP, (20, 0, 40, 40), 1)])
    trial = make_trials(truth, CATEGORIES)[0]
    inside_crowd = coco_result(1, CUP, (22, 2, 30, 30), score=0.95)
    right, nowhere = (
        coco_result(1, CUP, (0, 0, 10, 10), score=0.9),
        coco_result(1, CUP, (0, 20, 10, 30), score=0.95),
    )

    def average(found):
        return average_precision(precision_table(trial, found, "segm", 100)[:, :, :1])["AP50"]

    assert average([inside_crowd, right]) == 100
    assert average([nowhere, right]) == 50


def test_no_detections_score_zero():
    trial = make_trials(truth_of([annotation(1, CUP, (0, 0, 10, 10))]), CATEGORIES)[0]
    table = precision_table(trial, [], "bbox", 100)
    assert average_precision(group_precision(table, trial, "base")) == {"AP": 0, "AP50": 0}


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_same_numbers_as_pycocotools_own_way(kind):
    random = np.random.default_rng(7)

    def random_box():
        x, y = random.integers(0, 25, 2)
        return x, y, x + random.integers(4, 15), y + random.integers(4, 15)

    ids = list(INDEX)[:3]  # no car
    objects = [
        annotation(i, int(random.choice(ids)), random_box(), int(random.random() < 0.2))
        for i in range(1, 9)
        for _ in range(4)
    ]
    truth = truth_of(objects, 8)
    found = []
    for made in truth["annotations"]:
        box = np.array(made["bbox"]) + random.integers(-2, 3, 4)
        x, y, w, h = box.clip(0, 20).astype(int).tolist()
        entry = (made["image_id"], int(random.choice([*ids, made["category_id"]])))
        sure = round(float(random.random()), 2)
        found.append(coco_result(*entry, (x, y, x + max(w, 1), y + max(h, 1)), score=sure))
    trial = make_trials(truth, CATEGORIES)[0]
    table = precision_table(trial, found, kind, 100)
    own = average_precision(group_precision(table, trial, "all"))
    with redirect_stdout(StringIO()):
        coco = COCO()
        coco.dataset = {**truth, "categories": [{"id": i} for i in INDEX]}
        coco.createIndex()
        reference = COCOeval(coco, coco.loadRes([dict(entry) for entry in found]), kind)
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    assert 1 < own["AP"] < 99
    assert own["AP"] == pytest.approx(100 * reference.stats[0], abs=1e-3)
    assert own["AP50"] == pytest.approx(100 * reference.stats[1], abs=1e-3)


def test_constrained_is_classified_again_not_filtered():
    truth = small_world()
    trials = make_trials(truth, CATEGORIES)

    def predict(images, vocabularies):
        """Take every fish for a cup, unless there are no cups to choose."""
        objects = {1: [(0, 0, 10, 10), (20, 20, 30, 30)], 2: [(5, 5, 15, 15)]}
        answers = []
        for allowed in vocabularies:
            name = CUP if INDEX[CUP] in allowed else FISH
            boxes = [objects[int(image[0, 0, 0])] for image in images]
            answers.append([make_prediction([(name, b, 0.9) for b in part]) for part in boxes])
        return answers

    found = detect(predict, map(image_of, (1, 2, 3)), trials, EVALUATION_PARAMS)
    metrics = evaluation_metrics(score(trials, found, EVALUATION_PARAMS, truth))
    assert metrics["generalized"]["novel"]["segm"]["AP50"] == 0
    # constrained: both fish are found, the box on image 1's cup is one mistake among three, of
    # the same score and first in order: precision 2/3 at every recall
    assert metrics["constrained"]["novel"]["segm"]["AP50"] == pytest.approx(66.667, abs=1e-3)
    assert metrics["constrained"]["base"]["bbox"]["AP50"] == 100
    assert set(metrics["generalized"]) == {"base", "novel", "all"}
    assert set(metrics["constrained"]) == {"base", "novel"}


def test_perfect_detections_score_hundred():
    truth = small_world()
    trials = make_trials(truth, CATEGORIES)
    known = {
        i: [
            (a["category_id"], [int(v) for v in (x, y, x + w, y + h)], 0.9)
            for a in truth["annotations"]
            if a["image_id"] == i and a["category_id"] != ROCK
            for x, y, w, h in [a["bbox"]]
        ]
        for i in (1, 2, 3)
    }
    found = detect(predictor(known), map(image_of, (1, 2, 3)), trials, EVALUATION_PARAMS)
    scores = {"detector": score(trials, found, EVALUATION_PARAMS, truth)}
    metrics = evaluation_metrics(scores["detector"])
    for groups in metrics.values():
        for kinds in groups.values():
            assert kinds == {k: {"AP": 100, "AP50": 100} for k in ("bbox", "segm")}
    rows = per_class_rows(scores, CATEGORIES)
    assert [(row["category"], row["objects"]) for row in rows] == [
        ("cup", 1),
        ("hat", 0),
        ("fish", 2),
        ("car", 0),
    ]
    assert rows[2]["detector_constrained_segm"] == 100
    assert rows[3]["detector_generalized_bbox"] == ""
    curve = precision_recall_rows(scores, "segm")
    perfect = {f"detector_{group}": 1.0 for group in ("base", "novel", "all")}
    assert curve[50] == pytest.approx({"recall": 0.5, **perfect})


def test_results_are_rounded_ordered_and_cut():
    truth = truth_of([annotation(1, CUP, (0, 0, 10, 10))], 1)
    prediction = make_prediction([(CUP, (0, 0, 9, 9), s) for s in (0.3, 0.123456, 0.7)])
    prediction.boxes_xyxy[:, 2] = 9.12345

    def predict(images, vocabularies):
        return [[prediction] for _ in vocabularies]

    trials = make_trials(truth, CATEGORIES)
    found = detect(predict, [image_of(1)], trials, EVALUATION_PARAMS)[0]
    assert [entry["score"] for entry in found] == [0.7, 0.3, 0.12346]
    assert found[0]["bbox"] == [0.0, 0.0, 9.12, 9.0]
    assert (decode_mask(found[0]["segmentation"], HW) == mask_of((0, 0, 9, 9))).all()
    one = EVALUATION_PARAMS.model_copy(update={"max_detections": 1})
    assert len(detect(predict, [image_of(1)], trials, one)[0]) == 1


def test_given_results_go_to_the_trials_they_belong_to():
    truth = truth_of([annotation(1, CUP, (0, 0, 10, 10)), annotation(2, FISH, (0, 0, 10, 10))])
    given = [
        coco_result(2, CUP, (0, 0, 9, 9), score=0.4),
        coco_result(1, CUP, (0, 0, 9, 9), score=0.3),
        coco_result(1, FISH, (0, 0, 9, 9), score=0.6),
        coco_result(7, FISH, (0, 0, 9, 9), score=0.6),
    ]
    trials = make_trials(truth, CATEGORIES)

    def told(max_detections: int) -> list:
        shared = split_by_trial(given, trials, max_detections)
        return [[(r["image_id"], r["category_id"]) for r in trial] for trial in shared]

    assert told(100) == [[(1, FISH), (1, CUP), (2, CUP)], [(1, CUP)], []]
    assert told(1) == [[(1, FISH), (2, CUP)], [(1, CUP)], []]  # the best of each image


def test_missing_image_is_an_error():
    trials = make_trials(small_world(), CATEGORIES)
    nothing = predictor({1: [], 2: []})
    with pytest.raises(ValueError, match=r"1 images of the ground truth are missing.*image_id 2"):
        detect(nothing, [image_of(1)], trials, EVALUATION_PARAMS)


def test_training_objects_compare_teacher_and_detector():
    truth = group_by_image(
        [
            annotation(1, CUP, (0, 0, 10, 10)),
            annotation(1, FISH, (20, 20, 30, 30)),
            annotation(2, FISH, (0, 0, 20, 20), 1),
        ]
    )
    labels = group_by_image(
        [
            annotation(1, CUP, (0, 0, 10, 5)),  # IoU .5
            annotation(1, FISH, (20, 20, 30, 28)),  # IoU .8
            annotation(1, CAR, (0, 0, 10, 10)),  # no car: not compared
            annotation(2, FISH, (0, 0, 10, 10)),  # a crowd only: not compared
        ]
    )
    known = {1: [(CUP, (0, 0, 10, 9), 0.6), (CUP, (0, 0, 10, 10), 0.5)], 2: []}
    images = [image_of(1), image_of(2)]
    groups = measure_training_objects(
        predictor(known), images, labels, truth, CATEGORIES, EVALUATION_PARAMS
    )
    assert groups["base"] == {
        "labels": 1,
        "pseudo_mask_iou": 0.5,
        "detector_mask_iou": 0.9,  # the surer of the two
        "found": 1,
        "found_pseudo_mask_iou": 0.5,
        "found_detector_mask_iou": 0.9,
    }
    assert groups["novel"] == {
        "labels": 1,
        "pseudo_mask_iou": 0.8,
        "detector_mask_iou": 0.0,
        "found": 0,
        "found_pseudo_mask_iou": -1,
        "found_detector_mask_iou": -1,
    }
    assert (groups["all"]["pseudo_mask_iou"], groups["all"]["detector_mask_iou"]) == (0.65, 0.45)


def test_sample_of_training_images_is_labelled_and_ignores_order():
    annotations = {i: [] for i in range(5, 50, 3)}
    backwards = dict(reversed(annotations.items()))
    chosen = choose_images(annotations, 4, np.random.default_rng(1))
    assert chosen == choose_images(backwards, 4, np.random.default_rng(1))
    assert len(chosen) == 4 and chosen < annotations.keys()
    assert choose_images(annotations, 99, np.random.default_rng(1)) == annotations.keys()


def test_a_split_without_images_is_told(tmp_path, monkeypatch):
    write_evaluation_inputs(tmp_path, monkeypatch)
    path = tmp_path / "data/download/ground_truth/test.json"
    write_json(path, read_json(path) | {"images": [], "annotations": []})
    with pytest.raises(ValueError, match=r"test\.json: no image .* evaluation\.split"):
        run_evaluation(monkeypatch, "detector=a")


def test_stage_writes_the_same_bytes_twice(tmp_path, monkeypatch, capsys):
    write_evaluation_inputs(tmp_path, monkeypatch)
    for output in ("data/evaluation", "elsewhere"):
        models = ("detector=a", "finetune=b", "--training-objects", "detector")
        run_evaluation(monkeypatch, *models, "--output", output)
    written = [
        {file.name: file.read_bytes() for file in sorted((tmp_path / output).iterdir())}
        for output in ("data/evaluation", "elsewhere")
    ]
    assert written[0] == written[1]
    assert list(written[0]) == [
        "metrics.json",
        "montage.png",
        "per_class.csv",
        "pr_bbox.csv",
        "pr_segm.csv",
        "predictions_detector.json",
        "predictions_finetune.json",
        "report.json",
    ]
    metrics = read_json(tmp_path / "data/evaluation/metrics.json")
    assert metrics["detector"]["generalized"]["novel"]["segm"] == {"AP": 90, "AP50": 100}
    assert metrics["detector"]["training_objects"]["novel"]["labels"] == 2
    assert "training_objects" not in metrics["finetune"]
    out = capsys.readouterr().out
    assert "detector: novel AP50 100.0 box, 100.0 mask" in out
    assert "Accumulating" not in out and "index created" not in out


def test_given_detections_are_scored_on_their_own_images_only(tmp_path, monkeypatch, capsys):
    write_evaluation_inputs(tmp_path, monkeypatch)
    run_evaluation(monkeypatch, "detector=a")
    given = "given=data/evaluation/predictions_detector.json"
    run_evaluation(monkeypatch, given, "--output", "again")
    own, again = (
        read_json(tmp_path / f"{name}/metrics.json") for name in ("data/evaluation", "again")
    )
    assert again["given"]["generalized"] == own["detector"]["generalized"]
    assert (tmp_path / "again/predictions_given.json").read_bytes() == (
        tmp_path / "data/evaluation/predictions_detector.json"
    ).read_bytes()
    # The other split has images of the same ids, as generated scenes have.
    download = tmp_path / "data/download"
    for path in ("images/{}.parquet", "ground_truth/{}.json"):
        shutil.copy(download / path.format("test"), download / path.format("val"))
    params = tmp_path / "params.yaml"
    params.write_text(params.read_text().replace("split: test", "split: val"))
    with pytest.raises(ValueError, match=r"detections on split 'test', but .* is 'val'"):
        run_evaluation(monkeypatch, given, "--output", "again")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["detector"], "'detector': expected name=weights"),
        (["a=x", "a=y"], "'a=y': expected name=weights, each name once"),
        (["a=x", "--training-objects", "b"], r"--training-objects b: one of \['a'\]"),
    ],
)
def test_command_line_says_what_it_wants(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run_evaluation(monkeypatch, *arguments)
    assert re.search(message, capsys.readouterr().err)
