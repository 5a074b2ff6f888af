"""true_masks: the mask is the fitting object's in the box; what it cannot mend it leaves alone."""

import numpy as np
import pytest

from comparators.true_masks.replace import replace_masks, replace_objects
from stages.common.geometry.masks import decode_mask, encode_mask
from stages.common.runtime.storage import read_json, write_json
from tests.support.boxes import box_annotation, box_mask
from tests.support.run_module import run_module

IMAGE_HW = (20, 30)


def annotation(category_id: int, *box_xyxy: int, **more) -> dict:
    return box_annotation(category_id, box_xyxy, IMAGE_HW, **more)


def test_a_label_gets_the_mask_of_the_object_that_its_box_fits_best_cut_to_the_box():
    label = annotation(1, 4, 4, 14, 14, score=3.0)
    objects = [annotation(1, 6, 6, 18, 12), annotation(1, 0, 0, 5, 5), annotation(2, 4, 4, 14, 14)]
    (replaced,) = replace_masks([label], objects, IMAGE_HW)
    expected = box_mask((6, 6, 14, 12), IMAGE_HW)
    assert np.array_equal(decode_mask(replaced["segmentation"], IMAGE_HW), expected)
    assert replaced["area"] == 48
    assert {k: v for k, v in replaced.items() if k not in ("segmentation", "area")} == {
        k: v for k, v in label.items() if k not in ("segmentation", "area")
    }


def test_labels_of_absent_or_distant_objects_and_of_crowds_stay():
    labels = [annotation(1, 4, 4, 14, 14), annotation(3, 4, 4, 14, 14)]
    objects = [annotation(1, 20, 0, 30, 3), annotation(3, 4, 4, 12, 12, iscrowd=1)]
    assert replace_masks(labels, objects, IMAGE_HW) == labels
    assert replace_masks(labels, [], IMAGE_HW) == labels


def test_a_label_in_the_corner_that_an_object_leaves_free_keeps_its_mask():
    corner = np.ones(IMAGE_HW, bool)
    corner[:12, :12] = False
    around = annotation(1, 0, 0, 30, 20, segmentation=encode_mask(corner))
    label = annotation(1, 2, 2, 10, 10)
    assert replace_masks([label], [around], IMAGE_HW) == [label]


def test_with_its_box_a_label_becomes_the_object_that_it_fits_best():
    label = annotation(1, 4, 4, 14, 14, score=3.0)
    objects = [annotation(1, 0, 0, 5, 5), annotation(1, 6, 6, 18, 12), annotation(2, 4, 4, 14, 14)]
    (replaced,) = replace_objects([label], objects, IMAGE_HW)
    assert replaced == {**objects[1], "score": 3.0}


def test_with_its_box_a_label_that_overlaps_nothing_becomes_the_nearest_of_its_class():
    label = annotation(1, 0, 0, 4, 4)
    objects = [annotation(1, 20, 0, 30, 3), annotation(1, 0, 10, 4, 20), annotation(2, 4, 4, 6, 6)]
    assert replace_objects([label], objects, IMAGE_HW) == [objects[1]]


def test_with_the_box_of_an_object_without_outline_a_label_keeps_its_mask():
    label = annotation(1, 4, 4, 14, 14)
    truth = annotation(1, 6, 6, 18, 12, segmentation=encode_mask(np.zeros(IMAGE_HW, bool)))
    assert replace_objects([label], [truth], IMAGE_HW) == [{**label, "bbox": truth["bbox"]}]


def test_absent_classes_and_crowds_stay_with_their_boxes_too():
    labels = [annotation(1, 4, 4, 14, 14), annotation(3, 4, 4, 14, 14)]
    objects = [annotation(2, 20, 0, 30, 3), annotation(3, 4, 4, 12, 12, iscrowd=1)]
    assert replace_objects(labels, objects, IMAGE_HW) == labels
    assert replace_objects(labels, [], IMAGE_HW) == labels
    assert replace_objects([], objects, IMAGE_HW) == []


@pytest.mark.parametrize("boxes", [False, True])
def test_the_stage_writes_one_or_the_other(tmp_path, monkeypatch, boxes):
    monkeypatch.chdir(tmp_path)
    images = [{"id": 7, "height": IMAGE_HW[0], "width": IMAGE_HW[1]}]
    label, thing = annotation(1, 4, 4, 14, 14), annotation(1, 6, 6, 18, 12)
    for path, own in (
        ("pseudo_labels/pseudo_annotations", label),
        ("download/ground_truth/train", thing),
    ):
        content = {"images": images, "annotations": [{**own, "image_id": 7}]}
        write_json(tmp_path / f"data/{path}.json", content)
    options = ["--boxes", "--output", "data/true_boxes"] if boxes else []
    monkeypatch.setattr("sys.argv", ["true_masks", *options])
    run_module("comparators.true_masks")
    (written,) = tmp_path.glob("data/true_*/annotations.json")
    assert written.parent.name == ("true_boxes" if boxes else "true_masks")
    (only,) = read_json(written)["annotations"]
    assert only["bbox"] == (thing if boxes else label)["bbox"]
    assert only["area"] == (72 if boxes else 48)
