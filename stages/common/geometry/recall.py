"""Recall of class-agnostic proposals: the fraction of objects that one of the first K boxes finds.

Mask-free OVIS, figure 2 (WSPN against other proposals on novel classes).
Shape legend: R boxes of an image, S its objects.
"""

import numpy as np
from jaxtyping import Float, Int64

from stages.common.geometry.boxes import pairwise_iou

FOUND_IOU = 0.5
NEVER = np.iinfo(np.int64).max


def first_hits(
    boxes_xyxy: Float[np.ndarray, "R 4"], objects_xyxy: Float[np.ndarray, "S 4"]
) -> Int64[np.ndarray, " S"]:
    """Return how many of the ordered boxes it takes to find each object, or NEVER.

    Args:
        boxes_xyxy: best first.
        objects_xyxy: what to find.
    """
    if not len(boxes_xyxy):
        return np.full(len(objects_xyxy), NEVER)
    found = pairwise_iou(boxes_xyxy, objects_xyxy) >= FOUND_IOU
    return np.where(found.any(axis=0), found.argmax(axis=0) + 1, NEVER)
