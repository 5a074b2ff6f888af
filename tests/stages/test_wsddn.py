"""Stage wsddn: class scores of proposals as detections."""

import numpy as np
import torch

from stages.models.wspn import class_scores
from stages.models.wspn_input import ViewSettings
from stages.models.wspn_language import LanguageWspn, LanguageWspnConfig
from stages.wsddn.detect import detect_classes

VIEWS = ViewSettings(shorter_sides=[64], longer_side=64, flip=False)


def small_network(classes: int = 3) -> LanguageWspn:
    torch.manual_seed(0)
    config = LanguageWspnConfig(
        category_ids=list(range(1, classes + 1)),
        image_side=64,
        stem_width=4,
        width=8,
        residual_blocks=0,
        num_words=5,
        class_hidden=8,
        object_hidden=8,
        dropout=0.0,
    )
    return LanguageWspn(config).eval()


def test_scores_sum_to_at_most_one_per_class():
    scores = class_scores(torch.randn(7, 3), torch.randn(7, 3))
    assert (scores.sum(0) <= 1).all()
    assert (scores >= 0).all()


def test_overlapping_boxes_of_a_class_are_suppressed_and_the_best_come_first():
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    boxes = np.array([[4, 4, 30, 30], [4, 4, 30, 31], [36, 36, 60, 60]], np.float32)
    found, labels, scores = detect_classes(small_network(), image, boxes, VIEWS, 0.3, 100)
    assert (np.diff(scores) <= 0).all()
    for label in range(3):
        own = found[labels == label]
        assert len(own) == 2  # one of the first two, and the third
        assert (own[:, 0] == 36).sum() == 1
    assert len(detect_classes(small_network(), image, boxes, VIEWS, 0.3, 4)[0]) == 4
