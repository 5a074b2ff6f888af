"""How well pseudo-labels and activation maps agree with the ground truth of one image.

Every label is compared with the object of its class that it fits best; a label whose class is not
in the image gets 0. Crowds are no objects: a label whose class is there as a crowd only is left
out of the comparisons, as COCO ignores it, and counts as right in the precision.

Shape legend: R labels or targets of an image, G + 1 rounds, h w cells of an activation map.
"""

import numpy as np

from stages.common.formats.coco import Instances, best_box_iou, best_mask_iou
from stages.common.geometry.masks import decode_mask

Columns = dict[str, np.ndarray]


def measure_labels(labels: Instances, truth: Instances) -> Columns:
    """Return one value per label and measurement.

    Args:
        labels: R pseudo-labels of one image.
        truth: its ground truth, crowds included.

    Returns:
        category_id int64; present bool, the class is there; crowd bool, as a crowd only; box_iou
        and mask_iou float64.
    """
    objects = truth.select(~truth.crowd)
    present = np.isin(labels.category_ids, truth.category_ids)
    return {
        "category_id": labels.category_ids,
        "present": present,
        "crowd": present & ~np.isin(labels.category_ids, objects.category_ids),
        "box_iou": best_box_iou(labels, objects),
        "mask_iou": best_mask_iou(labels, objects),
    }


def measure_pointing(
    maps: np.ndarray, category_ids: np.ndarray, truth: Instances, image_hw: tuple[int, int]
) -> Columns:
    """Say for each target and round whether the map's highest cell lies on an object of its class.

    Args:
        maps: float (R, G + 1, h, w) of the R targets of one image.
        category_ids: int64 (R,), the targets' classes.
        truth: the image's ground truth; a crowd of the class counts as the object here.
        image_hw: the image's size.

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
