"""evaluation: numbers against literal computations on pixels, Open Images, no ground truth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.common.formats.categories import Category
from stages.common.formats.outlines import fill_unoutlined
from stages.common.geometry.masks import decode_mask, encode_mask, mask_box
from stages.common.runtime.storage import read_json, write_json
from stages.evaluation import open_images
from stages.evaluation.average_precision import precision_table
from stages.evaluation.protocols import Trial, check_truth, make_trials
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
    annotation,
    coco_result,
    mask_of,
    run_evaluation,
    truth_of,
    write_evaluation_inputs,
)

OPEN_IMAGES = EVALUATION_PARAMS.model_copy(update={"metric": "open_images"})
EMPTY = encode_mask(np.zeros(HW, bool))


def random_world(random, num_images=6, unoutlined=0.0, groups=0.2):
    """Return objects and detections near them, ragged masks, scores without ties."""
    objects, found = [], []
    for image_id in range(1, num_images + 1):
        for _ in range(random.integers(2, 6)):
            category_id = int(random.choice([CUP, HAT, FISH]))
            x, y = random.integers(0, 25, 2)
            box = (x, y, x + random.integers(4, 15), y + random.integers(4, 15))
            made = annotation(image_id, category_id, box, int(random.random() < groups))
            if random.random() < unoutlined:
                made["segmentation"] = EMPTY
            objects.append(made)
            for _ in range(random.integers(0, 4)):
                shift = random.integers(-3, 4, 4)
                x0, y0, x1, y1 = np.clip(np.array(box) + shift, 0, 40)
                if x1 - x0 < 2 or y1 - y0 < 2:
                    continue
                mask = mask_of((x0, y0, x1, y1)) & (random.random(HW) < 0.9)
                label = category_id if random.random() < 0.8 else int(random.choice([CUP, FISH]))
                entry = coco_result(image_id, label, (x0, y0, x1, y1), score=float(random.random()))
                found.append(entry | {"segmentation": encode_mask(mask)})
    return truth_of(objects, num_images), found


def pixels_of(entry, kind, box_of_mask=False):
    """Return the entry as pixels; a box at four times the resolution, as its sides are whole."""
    if kind == "segm":
        return decode_mask(entry["segmentation"], HW)
    x, y, w, h = (int(side) for side in entry["bbox"])
    if box_of_mask:
        left, top, right, bottom = (
            int(s) for s in mask_box(decode_mask(entry["segmentation"], HW))
        )
        x, y, w, h = left, top, right - left, bottom - top
    return mask_of((x, y, x + w, y + h))


def overlap(detection, entry, as_crowd):
    inter = (detection & entry).sum()
    return inter / (detection.sum() if as_crowd else (detection | entry).sum())


def literal_coco(trial, found, kind, category_id, threshold, most=100):
    """COCO's AP of one class at one threshold, step by step on pixels."""
    matched, num_objects = [], 0
    for image_id in sorted(trial.image_ids):
        objects = [
            a
            for a in trial.annotations
            if (a["image_id"], a["category_id"]) == (image_id, category_id)
        ]
        objects.sort(key=lambda a: a["iscrowd"])
        num_objects += sum(not a["iscrowd"] for a in objects)
        mine = [r for r in found if (r["image_id"], r["category_id"]) == (image_id, category_id)]
        taken = set()
        for detection in sorted(mine, key=lambda r: -r["score"])[:most]:
            best, choice = threshold, None
            for number, entry in enumerate(objects):
                if number in taken and not entry["iscrowd"]:
                    continue
                if choice is not None and not objects[choice]["iscrowd"] and entry["iscrowd"]:
                    break
                iou = overlap(pixels_of(detection, kind), pixels_of(entry, kind), entry["iscrowd"])
                if iou >= best:
                    best, choice = iou, number
            if choice is None:
                matched.append((detection["score"], False))
            elif not objects[choice]["iscrowd"]:
                taken.add(choice)
                matched.append((detection["score"], True))
    if not num_objects:
        return -1
    matched.sort(key=lambda pair: -pair[0])
    points, hits = [], 0
    for number, (_, right) in enumerate(matched, 1):
        hits += right
        points.append((hits / num_objects, hits / number))
    return np.mean(
        [max((p for r, p in points if r >= k / 100 - 1e-12), default=0) for k in range(101)]
    )


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_coco_numbers_equal_a_literal_computation(kind):
    random = np.random.default_rng(3)
    truth, found = random_world(random)
    for trial in make_trials(truth, CATEGORIES):
        ids = {category.id for category in trial.categories}
        own = [r for r in found if r["category_id"] in ids and r["image_id"] in trial.image_ids]
        for most in (100, 2):
            table = precision_table(trial, own, kind, most)
            for k, category in enumerate(trial.categories):
                for t, threshold in ((0, 0.5), (5, 0.75)):
                    expected = literal_coco(trial, own, kind, category.id, threshold, most)
                    assert table[t, :, k].mean() == pytest.approx(expected, abs=1e-9)


def literal_open_images(trial, found, kind, category_id):
    """AP of one class by the challenge's words, one detection at a time, on pixels."""
    matched, num_objects = [], 0
    for image in trial.images:
        mine, objects = (
            [e for e in entries if (e["image_id"], e["category_id"]) == (image["id"], category_id)]
            for entries in (found, trial.annotations)
        )
        known = image.get("verified_category_ids")
        if known is not None and category_id not in known and not objects:
            continue
        mine.sort(key=lambda r: -r["score"])
        outlined = [kind == "bbox" or decode_mask(a["segmentation"], HW).any() for a in objects]
        num_objects += sum(outlined)
        state = ["wrong"] * len(mine)
        best_of_group = {}
        for drawn in (True, False):
            singles = [
                n for n, a in enumerate(objects) if outlined[n] == drawn and not a["iscrowd"]
            ]
            groups = [n for n, a in enumerate(objects) if outlined[n] == drawn and a["iscrowd"]]
            by = kind if drawn else "bbox"
            found_already = set()
            for d, detection in enumerate(mine):
                shape = pixels_of(detection, by, box_of_mask=kind == "segm" and by == "bbox")
                ious = [overlap(shape, pixels_of(objects[n], by), False) for n in singles]
                if ious and state[d] == "wrong" and max(ious) >= 0.5:
                    nearest = singles[int(np.argmax(ious))]
                    if nearest not in found_already:
                        found_already.add(nearest)
                        state[d] = "right" if drawn else "ignored"
            for d, detection in enumerate(mine):
                shape = pixels_of(detection, by, box_of_mask=kind == "segm" and by == "bbox")
                parts = [overlap(shape, pixels_of(objects[n], by), True) for n in groups]
                if parts and state[d] == "wrong" and max(parts) >= 0.5:
                    state[d] = "ignored"
                    group = groups[int(np.argmax(parts))]
                    if drawn:
                        best_of_group.setdefault(group, detection["score"])
        matched += [
            (r["score"], s == "right") for r, s in zip(mine, state, strict=True) if s != "ignored"
        ]
        matched += [(s, True) for s in best_of_group.values()]
    if not num_objects:
        return -1
    matched.sort(key=lambda pair: -pair[0])
    area, hits, points = 0.0, 0, []
    for number, (_, right) in enumerate(matched, 1):
        hits += right
        points.append((right, hits / number))
    for number, (right, _) in enumerate(points):
        if right:
            area += max(p for _, p in points[number:]) / num_objects
    return area


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_open_images_numbers_equal_a_literal_computation(kind):
    random = np.random.default_rng(5)
    truth, found = random_world(random, unoutlined=0.25, groups=0.3)
    for image in truth["images"]:
        image["verified_category_ids"] = [int(random.choice([CUP, HAT, FISH]))]
    compared = 0
    for trial in make_trials(truth, CATEGORIES, "open_images"):
        ids = {category.id for category in trial.categories}
        own = [r for r in found if r["category_id"] in ids]
        measured = open_images.measure(trial, own, kind, 100)
        for k, category in enumerate(trial.categories):
            expected = literal_open_images(trial, own, kind, category.id)
            assert measured.ap50[k] == pytest.approx(expected, abs=1e-9)
            compared += 0.05 < expected < 0.95
    assert compared >= 4


def one_class(annotations, verified=None):
    image = {"id": 1} if verified is None else {"id": 1, "verified_category_ids": verified}
    return Trial("generalized", ("all",), CATEGORIES[:1], [0], [image], annotations)


def judge(annotations, found, kind="segm"):
    scores, right, num_objects = open_images.score_image(found, annotations, kind)
    return sorted(zip(scores.tolist(), right.tolist(), strict=True)), num_objects


def test_a_group_is_found_once_by_any_number_of_detections_inside_it():
    group = annotation(1, CUP, (0, 0, 40, 20), 1)
    inside = [coco_result(1, CUP, (x, 0, x + 9, 9), score=s) for x, s in ((0, 0.5), (10, 0.9))]
    outside = coco_result(1, CUP, (0, 30, 9, 39), score=0.7)
    assert judge([group], [inside[1], outside, inside[0]]) == ([(0.7, False), (0.9, True)], 1)


def test_an_object_without_outline_is_neither_missed_nor_found():
    boxed = annotation(1, CUP, (0, 0, 10, 10)) | {"segmentation": EMPTY}
    hits = [coco_result(1, CUP, (0, 0, 10, 10), score=s) for s in (0.9, 0.8)]
    assert judge([boxed], hits) == ([(0.8, False)], 0)  # the second one is a duplicate
    assert judge([boxed], hits, "bbox") == ([(0.8, False), (0.9, True)], 1)
    group = boxed | {"iscrowd": 1}
    assert judge([group], hits) == ([], 0)


def test_by_cocos_rules_a_mask_of_an_object_without_outline_is_ignored_like_its_box():
    outlined = annotation(1, CUP, (0, 0, 10, 10))
    boxed = annotation(1, CUP, (20, 20, 36, 36)) | {"segmentation": EMPTY}
    boxed["bbox"] = [20.1, 20.0, 15.9, 15.8]  # of published boxes, which are no whole pixels
    group = annotation(1, CUP, (0, 20, 10, 40), crowd=1) | {"segmentation": EMPTY}
    truth = truth_of([outlined, boxed, group], 1)
    truth["images"][0]["verified_category_ids"] = [CUP]
    found = [
        coco_result(1, CUP, (20, 20, 36, 36), score=0.9),  # the object, all of its box
        coco_result(1, CUP, (24, 21, 30, 35), score=0.85),  # and a part of it
        coco_result(1, CUP, (0, 22, 9, 30), score=0.83),  # one of the group
        coco_result(1, CUP, (0, 0, 10, 10), score=0.8),
    ]
    trial = make_trials(truth, CATEGORIES, "coco")[0]
    assert [a["iscrowd"] for a in trial.annotations] == [0, 1, 1]
    assert decode_mask(trial.annotations[1]["segmentation"], HW).sum() == 16 * 16
    for kind in ("bbox", "segm"):
        assert precision_table(trial, found, kind, 100)[:, :, 0].min() == pytest.approx(1)
        beside = [coco_result(1, CUP, (14, 0, 20, 20), score=0.95), *found]
        assert precision_table(trial, beside, kind, 100)[:, :, 0].max() == pytest.approx(0.5)
    assert truth["annotations"][1]["segmentation"] == EMPTY  # the challenge's rules need it so


@settings(deadline=None)
@given(st.data())
def test_filled_boxes_are_whole_pixels_in_the_image(data):
    height, width = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    x = data.draw(st.floats(0, width - 0.02).map(lambda side: round(side, 2)))
    y = data.draw(st.floats(0, height - 0.02).map(lambda side: round(side, 2)))
    across = round(data.draw(st.floats(0.01, width - x)), 2)
    down = round(data.draw(st.floats(0.01, height - y)), 2)
    boxed = {"iscrowd": 1, "bbox": [x, y, across, down]}
    empty = encode_mask(np.zeros((height, width), bool))
    (filled,) = fill_unoutlined([boxed | {"segmentation": empty}])
    expected = np.zeros((height, width), bool)
    expected[int(y) : math.ceil(y + down), int(x) : math.ceil(x + across)] = True
    assert filled["segmentation"] == encode_mask(expected)
    assert expected.any()


def test_unverified_classes_do_not_count_in_an_image():
    there = annotation(1, CUP, (0, 0, 10, 10))
    wrong = coco_result(1, CUP, (20, 20, 30, 30), score=0.9)
    right = coco_result(1, CUP, (0, 0, 10, 10), score=0.5)
    elsewhere = [
        {"id": 2, "verified_category_ids": [FISH]},
        {"id": 3, "verified_category_ids": [CUP]},
    ]
    trial = one_class([there])
    trial.images.extend(elsewhere)
    in_two, in_three = ([right, wrong | {"image_id": i}] for i in (2, 3))
    assert open_images.measure(trial, in_two, "segm", 100).ap50[0] == 1
    assert open_images.measure(trial, in_three, "segm", 100).ap50[0] == 0.5


def test_area_under_the_curve_worked_by_hand():
    """Right, wrong, right of four objects: 1/4 at precision 1, 1/4 at 2/3, the rest at 0."""
    area, curve = open_images.average_precision(
        np.array([0.7, 0.9, 0.8]), np.array([True, True, False]), 4
    )
    assert area == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)
    assert curve[[0, 25, 26, 50, 51]] == pytest.approx([1, 1, 2 / 3, 2 / 3, 0])
    assert open_images.average_precision(np.zeros(0), np.zeros(0, bool), 0)[0] == -1


def hierarchy_world():
    """A hat is a cup, a fish is a car, to the hierarchy; image 3 is known to have no cup."""
    truth = truth_of([annotation(1, HAT, (0, 0, 10, 10)), annotation(2, FISH, (0, 0, 10, 10))])
    for category in truth["categories"]:
        if category["id"] in (HAT, FISH):
            category["ancestors"] = [CUP if category["id"] == HAT else CAR]
    for image, known in zip(truth["images"], ([CUP, HAT], [FISH, CAR], [CUP]), strict=True):
        image["verified_category_ids"] = known
    return truth


def test_hierarchy_counts_objects_for_all_that_includes_them():
    truth = hierarchy_world()
    trials = make_trials(truth, CATEGORIES, "open_images")
    assert [sorted(trial.image_ids) for trial in trials] == [[1, 2, 3], [1, 3], [2]]
    found = [
        coco_result(1, HAT, (0, 0, 10, 10), score=0.9),
        coco_result(2, CAR, (0, 0, 10, 10), score=0.9),
        coco_result(3, CUP, (0, 0, 10, 10), score=0.95),
    ]
    parts = [[r for r in found if r["image_id"] in trial.image_ids] for trial in trials]
    plain = score(trials, parts, OPEN_IMAGES.model_copy(update={"expand_detections": False}), truth)
    expanded = score(trials, parts, OPEN_IMAGES, truth)
    rows = [per_class_rows({"m": own}, CATEGORIES) for own in (plain, expanded)]
    ap50 = [[row["m_generalized_segm"] for row in table] for table in rows]
    # the hat is no cup unless detections are expanded; then the surer cup of image 3 is wrong
    assert ap50 == [[0, 100, 0, 100], [50, 100, 0, 100]]
    metrics = evaluation_metrics(expanded)
    assert metrics["generalized"]["all"]["bbox"] == {"AP50": 62.5}
    assert metrics["constrained"]["novel"]["segm"] == {"AP50": 50}
    curve = precision_recall_rows({"m": expanded}, "segm")
    assert curve[50]["m_base"] == pytest.approx(0.75)


def test_an_object_of_a_base_class_counts_for_the_novel_one_that_includes_it():
    truth = truth_of([annotation(1, HAT, (0, 0, 10, 10))], 1)
    (hat,) = (category for category in truth["categories"] if category["id"] == HAT)
    hat["ancestors"] = [CAR]
    truth["images"][0]["verified_category_ids"] = [HAT, CAR]
    trials = make_trials(truth, CATEGORIES, "open_images")
    perfect = [coco_result(1, CAR, (0, 0, 10, 10), score=0.9)]
    parts = [perfect if trial.groups == ("novel",) else [] for trial in trials]
    metrics = evaluation_metrics(score(trials, parts, OPEN_IMAGES, truth))
    assert metrics["constrained"]["novel"] == {"bbox": {"AP50": 100}, "segm": {"AP50": 100}}


def test_coco_rules_ignore_what_open_images_did_not_outline():
    truth = truth_of([annotation(1, CUP, (0, 0, 10, 10)), annotation(1, CUP, (20, 0, 30, 10))])
    truth["annotations"][1]["segmentation"] = EMPTY
    assert [a["iscrowd"] for a in make_trials(truth, CATEGORIES)[0].annotations] == [0, 0]
    truth["images"][0]["verified_category_ids"] = [CUP]
    assert [a["iscrowd"] for a in make_trials(truth, CATEGORIES)[0].annotations] == [0, 1]


def test_ground_truth_and_classes_must_be_of_one_data_set():
    truth = truth_of([annotation(1, CUP, (0, 0, 10, 10))])
    every = [*CATEGORIES, Category(9, "rock", "excluded", ("rock",))]
    check_truth(truth, every, "test.json")
    moved = [*every[:3], Category(CAR, "car", "base", ("car",)), every[4]]
    with pytest.raises(ValueError, match=r"test\.json: category 5 is \('car', 'novel'\) there and"):
        check_truth(truth, moved, "test.json")
    with pytest.raises(ValueError, match=r"category 9 is \('rock', 'excluded'\) there and None"):
        check_truth(truth, CATEGORIES, "test.json")
    for key in ("category_id", "image_id"):
        stray = truth | {"annotations": [truth["annotations"][0] | {key: 77}]}
        with pytest.raises(ValueError, match=rf"unlisted {key} \[77\]; run `dvc repro download`"):
            check_truth(stray, every, "test.json")


def test_stage_without_annotations_predicts_and_says_so(tmp_path, monkeypatch, capsys):
    write_evaluation_inputs(tmp_path, monkeypatch)
    for part in ("test", "train"):
        path = tmp_path / f"data/download/ground_truth/{part}.json"
        write_json(path, read_json(path) | {"annotated": False, "annotations": []}, indent=None)
    run_evaluation(monkeypatch, "detector=a", "finetune=b", "--training-objects", "detector")
    output = tmp_path / "data/evaluation"
    metrics = read_json(output / "metrics.json")
    skipped = {"skipped": "no annotations: skipped", "images": 3, "detections": 4}
    assert metrics == {"detector": skipped, "finetune": skipped}
    found = read_json(output / "predictions_detector.json")
    assert found["image_ids"] == [1, 2, 3]
    assert [(r["image_id"], r["category_id"]) for r in found["results"]] == [
        (1, CUP),
        (1, FISH),
        (1, CAR),
        (2, FISH),
    ]
    rows = (output / "per_class.csv").read_text().splitlines()
    assert rows[1] == "cup,base,,,,,,1,1"
    assert (output / "pr_segm.csv").read_text().splitlines()[1] == "0,,,,,,"
    assert (output / "montage.png").is_file() and (output / "report.json").is_file()
    assert "detector: no annotations: skipped; 4 detections on 3 images" in capsys.readouterr().out
