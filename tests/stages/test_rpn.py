import numpy as np
import pytest
import torch

from stages.common.selective_search import SearchSettings
from stages.models.wspn_input import ViewSettings
from stages.models.wspn_ranking import RankingSettings
from stages.rpn.compare import ordered_boxes, picture_objects, recall_table, region_proposals
from tests.stages.test_wspn import picture, small_model
from tests.stages.tiny_detector import tiny_detector

SEARCH = SearchSettings(
    mode="fast", longer_side=320, min_side=10.0, max_area_fraction=0.6, max_aspect=5.0
)
RANKING = RankingSettings(
    top_k=10,
    score="quality",
    scored="box",
    refinements=1,
    keep_proposals=True,
    nms_iou=[0.5],
    views=ViewSettings(shorter_sides=[64], longer_side=64, flip=False),
)
NEAR, FAR = [0, 0, 10, 10], [50, 50, 60, 60]


def test_recall_by_hand():
    found = [
        {"good": np.array([NEAR, FAR], np.float32), "bad": np.array([FAR, NEAR], np.float32)},
        {"good": np.array([NEAR], np.float32), "bad": np.array([FAR], np.float32)},
    ]
    objects = [(np.array([NEAR, FAR], np.float32), np.array([1, 2]))] * 2
    table = recall_table(found, objects, {"base": {1}, "novel": {2}}, [1, 2])
    assert table["good"]["base"] == {"recall@1": 1.0, "recall@2": 1.0}
    assert table["good"]["novel"] == {"recall@1": 0.0, "recall@2": 0.5}
    assert table["bad"]["base"] == {"recall@1": 0.0, "recall@2": 0.5}


def test_a_group_without_objects_is_named():
    objects = [(np.array([NEAR], np.float32), np.array([1]))]
    found = [{"any": np.array([NEAR], np.float32)}]
    with pytest.raises(ValueError, match=r"no object of group \['novel'\]"):
        recall_table(found, objects, {"base": {1}, "novel": {2}}, [1])


def test_crowds_do_not_count_as_objects():
    annotations = [
        {"image_id": 2, "bbox": [1, 2, 3, 4], "category_id": 5, "iscrowd": 0},
        {"image_id": 2, "bbox": [0, 0, 9, 9], "category_id": 5, "iscrowd": 1},
    ]
    (none, _), (boxes, ids) = picture_objects([picture(1), picture(2)], annotations)
    assert none.shape == (0, 4)
    assert boxes.tolist() == [[1, 2, 4, 6]] and ids.tolist() == [5]


def test_every_method_gives_boxes_inside_the_picture():
    torch.manual_seed(0)
    detector = tiny_detector().eval()
    assert len(region_proposals(detector, picture(3).decode()))
    boxes = ordered_boxes(picture(3), detector, small_model(), SEARCH, RANKING, 0)
    assert set(boxes) == {"selective_search", "random_order", "wspn", "rpn", "rpn_in_layers"}
    for ordered in boxes.values():
        assert ordered.shape[1] == 4 and ordered.min() >= 0 and ordered.max() <= 64.001
    as_set = [{tuple(box) for box in boxes[k]} for k in ("selective_search", "random_order")]
    assert as_set[0] == as_set[1]
