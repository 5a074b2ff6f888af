"""Recall@K of class-agnostic proposals: the fraction of objects that the first K boxes cover.

An object is covered if its IoU with one of the boxes is at least 0.5. Used as in Mask-free OVIS,
figure 2, which compares the recall of WSPN and of a region proposal network on novel classes.
Shape legend: R boxes of an image, S its objects. Frame: corners x0, y0, x1, y1 in pixels.
"""

import numpy as np
from jaxtyping import Float, Int64

from stages.common.geometry.boxes import pairwise_iou

FOUND_IOU = 0.5
NEVER = np.iinfo(np.int64).max


def first_hits(
    boxes_xyxy: Float[np.ndarray, "R 4"], objects_xyxy: Float[np.ndarray, "S 4"]
) -> Int64[np.ndarray, " S"]:
    """Return the smallest K with which the first K boxes cover each object, or NEVER.

    Args:
        boxes_xyxy: best first.
        objects_xyxy: the boxes of the objects.
    """
    if not len(boxes_xyxy):
        return np.full(len(objects_xyxy), NEVER)
    found = pairwise_iou(boxes_xyxy, objects_xyxy) >= FOUND_IOU
    return np.where(found.any(axis=0), found.argmax(axis=0) + 1, NEVER)
