"""A wrong shape is caught where it is given, by name, in every package that has shapes."""

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from stages.activation.rounds import Targets
from stages.common.geometry.boxes import pairwise_iou
from stages.models.detection.mask_targets import mask_targets
from stages.models.proposals.base import class_scores
from stages.pseudo_boxes.select import box_scores
from stages.pseudo_masks.crops import cut_maps


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("others_xyxy", lambda: pairwise_iou(np.zeros((2, 4)), np.zeros((3, 5)))),
        ("detection_logits", lambda: class_scores(torch.zeros(2, 3), torch.zeros(2, 4))),
        (
            "objects",
            lambda: mask_targets(
                [torch.zeros(1, 4)],
                [torch.zeros(1, 8, 8, dtype=torch.uint8)],
                [torch.zeros(1)],  # no indices
                7,
            ),
        ),
        ("maps", lambda: box_scores(np.zeros((6, 6)), np.zeros((2, 4)), (8, 8), 0.5)),
        ("widened_xyxy", lambda: cut_maps(torch.zeros(2, 6, 6), torch.zeros(3, 4), (8, 8), 4)),
        (
            "weights",
            lambda: Targets(
                torch.zeros(1, 2, 5, dtype=torch.int64),
                torch.zeros(3, dtype=torch.int64),
                torch.zeros(3, 2, 4),
            ),
        ),
    ],
)
def test_a_wrong_shape_is_caught_with_the_name_of_the_argument(name, call):
    with pytest.raises(TypeCheckError, match=f"typechecking parameter '{name}'"):
        call()
