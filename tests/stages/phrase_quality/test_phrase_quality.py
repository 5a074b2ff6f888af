"""How well boxes of phrases fit, on objects whose overlap is known."""

import pytest

import stages.phrase_quality.__main__ as stage
from stages.common.runtime.storage import read_json, write_json
from tests.support.tiny_detector import CATEGORIES


def box(category_id: int, *xywh: float, image_id: int = 1, crowd: int = 0) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": xywh, "iscrowd": crowd}


TRUTH = [
    box(3, 0, 0, 10, 10),
    box(3, 50, 50, 10, 10),
    box(5, 20, 20, 10, 20),
    box(5, 0, 0, 9, 9, crowd=1),
]
PHRASES = [
    box(3, 0, 0, 10, 5),  # half of the first disc
    box(3, 50, 50, 10, 10),  # the second
    box(5, 0, 0, 9, 9),  # over a crowd alone
    box(5, 20, 20, 10, 20, image_id=2),  # in another image
    box(3, 0, 0, 60, 60, crowd=1),  # around several: does not count
]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "data/download/categories.json", CATEGORIES)
    return tmp_path / "data"


def measure(data, phrases: list[dict], truth: dict) -> dict:
    write_json(data / "phrase_labels/annotations.json", {"annotations": phrases})
    write_json(data / "download/ground_truth/train.json", truth, indent=None)
    stage.main()
    return read_json(data / "phrase_quality/metrics.json")


def test_each_box_is_compared_with_the_best_object_of_its_class_in_its_image(workplace):
    found = measure(workplace, PHRASES, {"annotations": TRUTH, "images": []})
    assert found["base"] == {"count": 2, "mean_iou": 0.75, "at_50": 1.0, "beside": 0.0}
    assert found["novel"] == {"count": 2, "mean_iou": 0.0, "at_50": 0.0, "beside": 1.0}
    assert found["all"] == {"count": 4, "mean_iou": 0.375, "at_50": 0.5, "beside": 0.5}


def test_where_nothing_can_be_measured_it_says_so(workplace):
    assert "no phrase" in measure(workplace, [], {"annotations": TRUTH, "images": []})["skipped"]
    truth = {"annotated": False, "annotations": []}
    assert measure(workplace, PHRASES, truth)["count"] == 4
    crowds = {"annotations": [{**own, "iscrowd": 1} for own in TRUTH], "images": []}
    assert measure(workplace, PHRASES, crowds) == {"skipped": "no objects to measure", "count": 4}


def test_in_open_images_a_class_is_found_in_those_that_it_includes(workplace):
    """Disc 3 is a kind of 5; of image 2 it is not known whether there is a 5."""
    truth = {
        "annotations": [box(3, 0, 0, 10, 10), box(3, 0, 0, 10, 10, image_id=2)],
        "images": [{"id": k, "verified_category_ids": [3]} for k in (1, 2, 4)],
        "categories": [{"id": 3, "ancestors": [5]}, {"id": 5}],
    }
    phrases = [
        box(5, 0, 0, 10, 10),
        box(3, 0, 0, 10, 5, image_id=2),
        box(5, 1, 1, 9, 9, image_id=4),
    ]
    found = measure(workplace, phrases, truth)
    assert found["novel"] == {"count": 1, "mean_iou": 1.0, "at_50": 1.0, "beside": 0.0}
    assert found["all"]["count"] == 2 and found["unverified"] == 1
