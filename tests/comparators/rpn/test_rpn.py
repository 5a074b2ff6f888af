import shutil

import numpy as np
import pytest
import torch

from comparators.rpn.compare import (
    classes_won,
    find_objects,
    image_objects,
    ordered_boxes,
    recall_table,
)
from comparators.rpn.params import RankingChange
from flows.overlay import apply_overlay
from stages.common.formats.images import write_images
from stages.common.runtime.storage import read_json, write_json
from stages.models.detection.detector import to_unit_range
from stages.models.detection.params import ProposalLimits
from stages.models.proposals.file import save_wspn
from stages.models.proposals.params import RankingSettings, ViewSettings
from stages.models.proposals.selective_search import SearchSettings, selective_search
from tests.support.held_out import search_held_out
from tests.support.images import noise_image
from tests.support.run_module import run_module
from tests.support.tiny_detector import (
    CATEGORIES,
    NETWORK,
    TRAINING,
    annotate,
    make_image,
    tiny_detector,
)
from tests.support.tiny_wspn import tiny_wspn

SEARCH = SearchSettings(
    mode="fast", longer_side=320, min_side=10.0, max_area_fraction=0.6, max_aspect=5.0
)
ALONE = {"neighbour_iou": 1.0, "power": 1.0}
RANKING = RankingSettings(
    top_k=10,
    score="quality",
    agreement=ALONE,
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
    table = recall_table(find_objects(found, objects), {"base": {1}, "novel": {2}}, [1, 2])
    assert table["good"]["base"] == {"recall@1": 1.0, "recall@2": 1.0}
    assert table["good"]["novel"] == {"recall@1": 0.0, "recall@2": 0.5}
    assert table["bad"]["base"] == {"recall@1": 0.0, "recall@2": 0.5}


def test_a_group_without_objects_is_named():
    objects = [(np.array([NEAR], np.float32), np.array([1]))]
    found = [{"any": np.array([NEAR], np.float32)}]
    with pytest.raises(ValueError, match=r"no object of group \['novel'\]"):
        recall_table(find_objects(found, objects), {"base": {1}, "novel": {2}}, [1])


def test_a_class_is_won_by_who_finds_more_of_it_and_by_nobody_if_equal():
    objects = [(np.array([NEAR, FAR, NEAR], np.float32), np.array([1, 2, 4]))]
    found = [{"wspn": np.array([NEAR, FAR], np.float32), "rpn": np.array([FAR], np.float32)}]
    won = classes_won(find_objects(found, objects), [1, 2, 3], ["wspn"], [1, 2])
    # one box: class 1 for wspn, 2 for rpn; two: class 2 for both; 3 has no object, 4 is not asked
    assert won == {"wspn": {"rpn": {"recall@1": 1, "recall@2": 1}}}


def test_crowds_do_not_count_as_objects():
    annotations = [
        {"image_id": 2, "bbox": [1, 2, 3, 4], "category_id": 5, "iscrowd": 0},
        {"image_id": 2, "bbox": [0, 0, 9, 9], "category_id": 5, "iscrowd": 1},
    ]
    (none, _), (boxes, ids) = image_objects([noise_image(1), noise_image(2)], annotations)
    assert none.shape == (0, 4)
    assert boxes.tolist() == [[1, 2, 4, 6]] and ids.tolist() == [5]


def test_every_method_gives_boxes_inside_the_image():
    torch.manual_seed(0)
    detector = tiny_detector().eval()
    limits = ProposalLimits(pre_nms_top_n=50, post_nms_top_n=10)
    assert len(detector.propose(to_unit_range(noise_image(3).decode()), limits))
    own = {"keep_proposals": False, "nms_iou": [0.3], "agreement": ALONE}
    change = RankingChange(score="classes", refinements=1, **own)
    rankings = {"wspn": RANKING, "paper": change.apply_to(RANKING)}
    searched = selective_search(noise_image(3).decode(), SEARCH, 0, 3)
    boxes = ordered_boxes(noise_image(3), searched, detector, tiny_wspn(), rankings, limits, 0)
    own = {"wspn", "paper", "rpn_like_wspn", "rpn_like_paper"}
    assert set(boxes) == {"selective_search", "random_order", "rpn"} | own
    assert len(boxes["rpn_like_paper"]) < len(boxes["rpn_like_wspn"])
    assert not np.array_equal(boxes["paper"], boxes["wspn"])
    for ordered in boxes.values():
        assert ordered.shape[1] == 4 and ordered.min() >= 0 and ordered.max() <= 64.001
    as_set = [{tuple(box) for box in boxes[k]} for k in ("selective_search", "random_order")]
    assert as_set[0] == as_set[1]


def test_another_ranking_changes_its_own_keys_alone():
    own = {"keep_proposals": True, "nms_iou": [0.3], "agreement": ALONE}
    change = RankingChange(score="classes", refinements=0, **own)
    changed = change.apply_to(RANKING)
    assert (changed.score, changed.refinements, changed.nms_iou) == ("classes", 0, [0.3])
    assert (changed.top_k, changed.views) == (RANKING.top_k, RANKING.views)
    with pytest.raises(ValueError, match="must rise"):
        change.model_copy(update={"nms_iou": [0.5, 0.3]}).apply_to(RANKING)


@pytest.fixture
def project(tmp_path, monkeypatch, repository):
    """Give a project whose held-out splits have other images under the same ids."""
    shutil.copy(repository / "params.yaml", tmp_path)
    settings = {"init": "random", "network": NETWORK, "training": TRAINING | {"steps": 1}}
    changes = {"shards": [0], "rpn": settings, "proposals": {"min_side": 4.0}}
    apply_overlay(tmp_path / "params.yaml", changes, "test")
    download = tmp_path / "data/download"
    write_json(download / "categories.json", CATEGORIES)
    write_images(download / "images/train/0.parquet", map(make_image, (1, 2)))
    write_json(download / "ground_truth/train.json", annotate([1, 2]))
    save_wspn(tmp_path / "data/wspn/model.safetensors", tiny_wspn())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("split", "other"), [("test", "val"), ("val", "test")])
def test_recall_is_of_the_split_that_is_measured(project, monkeypatch, split, other):
    download = project / "data/download"
    apply_overlay(project / "params.yaml", {"evaluation": {"split": split}}, "test")
    write_images(download / f"images/{split}.parquet", map(make_image, (3, 4)))
    write_json(download / f"ground_truth/{split}.json", annotate([3, 4]))
    assert not (download / f"images/{other}.parquet").exists()
    search_held_out(monkeypatch, split)
    run_module("comparators.rpn")
    recall = read_json(project / "data/rpn/metrics.json")["recall"]
    assert 0 <= recall["wspn"]["novel"]["recall@100"] <= 1


def test_a_split_without_images_is_told(project, monkeypatch):
    apply_overlay(project / "params.yaml", {"evaluation": {"split": "val"}}, "test")
    write_images(project / "data/download/images/val.parquet", [])
    write_json(project / "data/download/ground_truth/val.json", annotate([]))
    search_held_out(monkeypatch, "val")
    with pytest.raises(ValueError, match=r"no object of group \['base', 'novel'\]"):
        run_module("comparators.rpn")
