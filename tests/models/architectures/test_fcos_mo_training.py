"""What FCOS-MO finds after a training, and its profile."""

from pathlib import Path

import numpy as np
import pytest

from flows.overlay import apply_profile
from stages.common.formats.categories import Category
from stages.common.runtime.params import read_section
from stages.detector.params import DetectorParams
from stages.evaluation.average_precision import KINDS, average_precision, precision_table
from stages.evaluation.protocols import Trial
from stages.models.architectures.fcos_mo.params import FocalParams
from stages.models.detection.coco_results import to_results
from stages.models.detection.supervision import Supervision
from tests.support.tiny_detector import annotate, draw, predict
from tests.support.tiny_fcos_mo import tiny_fcos_mo
from tests.support.tiny_hourglass import FCOS_MO, IMAGE_IDS, labelled, train


def test_it_learns_three_scenes_by_heart():
    model = tiny_fcos_mo()
    exactly = {"flip": False, "colour_jitter": 0.0, "batch_size": 3, "warmup_steps": 10}
    train(FCOS_MO, model, Supervision.of(labelled()), steps=200, learning_rate=0.005, **exactly)
    found, only_boxes = predict(model, [draw(k)[0] for k in IMAGE_IDS], [[0, 1], [1]])
    assert {label for own in only_boxes for label in own.labels.tolist()} == {1}
    truth, every = annotate(IMAGE_IDS), [0, 1]
    categories = [Category(3, "disc", "base", ("disc",)), Category(5, "box", "novel", ("box",))]
    trial = Trial("generalized", ("all",), categories, every, truth["images"], truth["annotations"])
    pairs = zip(IMAGE_IDS, found, strict=True)
    results = [row for image_id, own in pairs for row in to_results(image_id, own, [3, 5], 0.05)]
    for kind in KINDS:
        assert average_precision(precision_table(trial, results, kind, 100))["AP50"] > 90, kind


def test_what_remains_is_chosen_in_inference():
    model, image = tiny_fcos_mo(), draw(1)[0]

    def count(**changes):
        usual = {"score_threshold": 0.0, "detections_per_image": 10000, "nms_iou": 1.0}
        return len(predict(model, [image], [[0, 1]], **usual | changes)[0][0].scores)

    assert (
        count() == 50 + 50 + 2 * 16
    )  # classes × locations of the coarsest level are fewer than 50
    assert count(pre_nms_top_n=3) == 3 * 3
    assert count(detections_per_image=3) == 3
    assert 0 < count(nms_iou=0.1) < count()


def test_an_image_does_not_depend_on_others_of_another_size():
    """A group norm would see the padding."""
    model, square, wide = tiny_fcos_mo(), draw(1)[0], draw(2)[0][:40]
    ((alone,),) = predict(model, [wide], [[0, 1]], score_threshold=0.0)
    ((_, beside, _),) = predict(model, [square, wide, square], [[0, 1]], score_threshold=0.0)
    assert np.array_equal(alone.scores, beside.scores)
    assert np.array_equal(alone.boxes_xyxy, beside.boxes_xyxy)


def test_a_gamma_without_a_gradient_is_refused():
    for gamma in (0.0, 1.0, 2.5):
        assert FocalParams(alpha=0.25, gamma=gamma, prior=0.01).gamma == gamma
    with pytest.raises(ValueError, match="expected 0 or a number >= 1"):
        FocalParams(alpha=0.25, gamma=0.5, prior=0.01)


def test_nothing_found_is_no_fault():
    model = tiny_fcos_mo()
    wide = np.zeros((40, 90, 3), np.uint8)
    ((small, large),) = predict(model, [draw(1)[0], wide], [[0, 1]], score_threshold=0.99)
    assert small.boxes_xyxy.shape == (0, 4) and large.masks.shape == (0, 40, 90)


def test_the_profile_fits(tmp_path):
    root = Path(__file__).parents[3]
    (tmp_path / "experiments").mkdir()
    for name in ("params.yaml", "experiments/fcos-mo.yaml"):
        (tmp_path / name).write_text((root / name).read_text())
    apply_profile(tmp_path, "fcos-mo")
    params = read_section("detector", DetectorParams, tmp_path / "params.yaml")
    assert params.network.mask_head.depth == 20
