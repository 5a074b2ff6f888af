"""How well pseudo-labels and activation maps agree with the ground truth of one picture.

Every label is compared with the object of its class that it fits best; a label whose class is not
in the picture gets 0. Crowds are no objects: a label whose class is there as a crowd only is left
out of the comparisons, as COCO ignores it, and counts as right in the precision.

Shape legend: R labels of a picture, S its objects, T thresholds, G + 1 rounds, h w cells of an
activation map, H W pixels of the picture.
"""

import numpy as np
import torch
from torch.nn import functional

from stages.common.coco import Instances, best_box_iou, best_mask_iou
from stages.common.masks import decode_mask

Columns = dict[str, np.ndarray]


def measure_labels(
    labels: Instances,
    truth: Instances,
    maps: np.ndarray,
    image_hw: tuple[int, int],
    thresholds: list[float],
) -> Columns:
    """Return one value per label and measurement.

    Args:
        labels: R pseudo-labels of one picture.
        truth: its ground truth, crowds included.
        maps: float (R, h, w) in [0, 1], the last activation map of each label.
        image_hw: the picture's size.
        thresholds: T rising thresholds of the activation.

    Returns:
        category_id int64; present bool, the class is there; crowd bool, as a crowd only; box_iou
        and mask_iou; filled_iou, of the box as a mask; activation_iou (R, T), of the activation
        above each threshold inside the box.
    """
    objects = truth.select(~truth.crowd)
    present = np.isin(labels.category_ids, truth.category_ids)
    filled_and_above = _activation_masks_iou(labels, objects, maps, image_hw, thresholds)
    return {
        "category_id": labels.category_ids,
        "present": present,
        "crowd": present & ~np.isin(labels.category_ids, objects.category_ids),
        "box_iou": best_box_iou(labels, objects),
        "mask_iou": best_mask_iou(labels, objects),
        "filled_iou": filled_and_above[:, 0],
        "activation_iou": filled_and_above[:, 1:],
    }


def _activation_masks_iou(
    labels: Instances,
    objects: Instances,
    maps: np.ndarray,
    image_hw: tuple[int, int],
    thresholds: list[float],
) -> np.ndarray:
    """Return (R, 1 + T): IoU of the filled box, and of the activation in it above each threshold.

    Nothing of these masks is outside the box, so pixels are counted there alone.
    """
    height, width = image_hw
    upsampled = functional.interpolate(
        torch.from_numpy(np.asarray(maps, np.float32))[None], image_hw, mode="bilinear"
    )[0].numpy()
    columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
    boxes = labels.boxes_xyxy
    left, right = columns.searchsorted(boxes[:, 0]), columns.searchsorted(boxes[:, 2], "right")
    top, bottom = rows.searchsorted(boxes[:, 1]), rows.searchsorted(boxes[:, 3], "right")
    shown = objects.select(np.isin(objects.category_ids, labels.category_ids))
    pixels = [decode_mask(segmentation, image_hw) for segmentation in shown.segmentations]
    best = np.zeros((len(labels), 1 + len(thresholds)))
    for row, category_id in enumerate(labels.category_ids):
        window = np.s_[top[row] : bottom[row], left[row] : right[row]]
        heat = upsampled[row][window]
        masks = [
            np.ones(heat.shape, bool),
            *(heat > threshold for threshold in np.float32(thresholds)),
        ]
        area = _areas(masks)
        for index in np.flatnonzero(shown.category_ids == category_id):
            inside = np.ascontiguousarray(pixels[index][window])  # they come column by column
            inter = _areas([mask & inside for mask in masks])
            union = area + np.count_nonzero(pixels[index]) - inter
            best[row] = np.maximum(best[row], inter / np.maximum(union, 1))
    return best


def _areas(masks: list[np.ndarray]) -> np.ndarray:
    return np.array([np.count_nonzero(mask) for mask in masks])


def measure_pointing(
    maps: np.ndarray, category_ids: np.ndarray, truth: Instances, image_hw: tuple[int, int]
) -> Columns:
    """Say for each target and round whether the map's highest cell lies on an object of its class.

    Args:
        maps: float (R, G + 1, h, w) of the R targets of one picture.
        category_ids: int64 (R,), the targets' classes.
        truth: the picture's ground truth; a crowd of the class counts as the object here.
        image_hw: the picture's size.

    Returns:
        category_id int64 (R,) and hit bool (R, G + 1) of those targets whose class is there.
    """
    height, width = image_hw
    present = np.isin(category_ids, truth.category_ids)
    maps, category_ids = maps[present], category_ids[present]
    num_targets, num_rounds, *cells = maps.shape
    peak = maps.reshape(num_targets, num_rounds, cells[0] * cells[1]).argmax(axis=2)
    row, column = np.unravel_index(peak, cells)
    y = ((row + 0.5) * height / cells[0]).astype(int)
    x = ((column + 0.5) * width / cells[1]).astype(int)
    hit = np.zeros((num_targets, num_rounds), bool)
    for category_id, segmentation in zip(truth.category_ids, truth.segmentations, strict=True):
        same_class = category_ids == category_id
        if same_class.any():
            hit |= same_class[:, None] & decode_mask(segmentation, image_hw)[y, x]
    return {"category_id": category_ids, "hit": hit}
