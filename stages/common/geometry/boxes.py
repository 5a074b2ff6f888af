"""Boxes: corners (x0, y0, x1, y1) in pixels, origin top-left, x1 and y1 exclusive edges.

Shape legend: R, S boxes; H, W pixels.
"""

import numpy as np


def box_area(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Return areas (R,) in square pixels; an inverted box has area 0."""
    sides = np.clip(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 0, None)
    return sides[:, 0] * sides[:, 1]


def pairwise_iou(boxes_xyxy: np.ndarray, others_xyxy: np.ndarray) -> np.ndarray:
    """Return intersection over union (R, S) in [0, 1]; 0 where both boxes are empty."""
    top_left = np.maximum(boxes_xyxy[:, None, :2], others_xyxy[None, :, :2])
    bottom_right = np.minimum(boxes_xyxy[:, None, 2:], others_xyxy[None, :, 2:])
    inter = np.clip(bottom_right - top_left, 0, None).prod(axis=2)
    union = box_area(boxes_xyxy)[:, None] + box_area(others_xyxy)[None, :] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def xywh_to_xyxy(boxes_xywh: np.ndarray) -> np.ndarray:
    """Return corners (R, 4) of COCO boxes (x, y, width, height)."""
    return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)


def xyxy_to_xywh(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Return COCO boxes (R, 4) of corners."""
    return np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)


def clip_boxes(boxes_xyxy: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Return the boxes cut to the image, x to [0, W] and y to [0, H]."""
    height, width = image_hw
    return np.clip(boxes_xyxy, 0, np.array([width, height, width, height], boxes_xyxy.dtype))
