"""Recall of class-agnostic proposals: the share of objects that one of the first K boxes finds.

Mask-free OVIS, figure 2 (WSPN against other proposals on novel classes).
Shape legend: R boxes of a picture, S its objects.
"""

import numpy as np
import pyarrow as pa

from stages.common.boxes import pairwise_iou

FOUND_IOU = 0.5
NEVER = np.iinfo(np.int64).max


def first_hits(boxes_xyxy: np.ndarray, objects_xyxy: np.ndarray) -> np.ndarray:
    """Return int64 (S,): how many of the ordered boxes it takes to find each object, or NEVER.

    Args:
        boxes_xyxy: float (R, 4), best first.
        objects_xyxy: float (S, 4).
    """
    if not len(boxes_xyxy):
        return np.full(len(objects_xyxy), NEVER)
    found = pairwise_iou(boxes_xyxy, objects_xyxy) >= FOUND_IOU
    return np.where(found.any(axis=0), found.argmax(axis=0) + 1, NEVER)


def boxes_by_image(table: pa.Table) -> dict[int, np.ndarray]:
    """Return boxes_xyxy float32 (R, 4) per picture of a proposal table, rows in their order."""
    image_ids = table["image_id"].to_numpy()
    boxes_xyxy = np.stack([table[name].to_numpy() for name in ("x0", "y0", "x1", "y1")], axis=1)
    order = np.argsort(image_ids, kind="stable")
    ids, starts = np.unique(image_ids[order], return_index=True)
    parts = np.split(boxes_xyxy[order], starts[1:])
    return dict(zip(ids.tolist(), parts, strict=True)) if len(ids) else {}
