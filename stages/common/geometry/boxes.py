"""Boxes: corners (x0, y0, x1, y1) in pixels, origin top-left, x1 and y1 exclusive edges.

Shape legend: R, S boxes; H, W pixels.
"""

import numpy as np
from jaxtyping import Float, Num

SMALLEST_SIDE = 1.0  # pixels; a thinner box has no inside to learn from


def box_area(boxes_xyxy: Num[np.ndarray, "R 4"]) -> Num[np.ndarray, " R"]:
    """Return areas in square pixels; a box with x1 < x0 or y1 < y0 has area 0."""
    sides = np.clip(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 0, None)
    return sides[:, 0] * sides[:, 1]


def pairwise_iou(
    boxes_xyxy: Float[np.ndarray, "R 4"], others_xyxy: Float[np.ndarray, "S 4"]
) -> Float[np.ndarray, "R S"]:
    """Return intersection over union in [0, 1]; 0 where both boxes are empty."""
    # Coordinates are kept apart: arrays with a last axis of two take six times as long.
    x0, y0, x1, y1 = boxes_xyxy.T[:, :, None]
    others = others_xyxy.T
    width = np.minimum(x1, others[2]) - np.maximum(x0, others[0])
    height = np.minimum(y1, others[3]) - np.maximum(y0, others[1])
    inter = np.maximum(width, 0) * np.maximum(height, 0)
    union = box_area(boxes_xyxy)[:, None] + box_area(others_xyxy) - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def xywh_to_xyxy(boxes_xywh: Num[np.ndarray, "R 4"]) -> Num[np.ndarray, "R 4"]:
    """Return the corners of COCO boxes (x, y, width, height)."""
    return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)


def xyxy_to_xywh(boxes_xyxy: Num[np.ndarray, "R 4"]) -> Num[np.ndarray, "R 4"]:
    """Return boxes given by corners as COCO boxes (x, y, width, height)."""
    return np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)


def clip_boxes(
    boxes_xyxy: Num[np.ndarray, "R 4"], image_hw: tuple[int, int]
) -> Num[np.ndarray, "R 4"]:
    """Return the boxes clipped to the image: x to [0, W] and y to [0, H]."""
    height, width = image_hw
    return np.clip(boxes_xyxy, 0, np.array([width, height, width, height], boxes_xyxy.dtype))
