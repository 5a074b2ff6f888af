"""How well pseudo-labels and activation maps agree with the ground truth of one image.

Each label is compared with the object of its class that it fits best; a label whose class is not in
the image has IoU 0. A crowd is not an object. If the class of a label is present as a crowd only,
the label counts as correct in the precision and is left out of the IoUs, as COCO ignores it.

Shape legend: R labels or targets of an image, G + 1 rounds, h w cells of an activation map.
"""

import numpy as np
from jaxtyping import Float, Int64

from stages.common.formats.coco import Instances, best_box_iou, best_mask_iou
from stages.common.geometry.boxes import pairwise_iou
from stages.common.geometry.masks import decode_mask

Columns = dict[str, np.ndarray]


def measure_labels(labels: Instances, truth: Instances) -> Columns:
    """Return one column (R,) per measurement.

    Args:
        labels: R pseudo-labels of one image.
        truth: its ground truth, crowds included.

    Returns:
        category_id int64; present bool, whether the image shows the class; crowd bool, whether it
        shows it as a crowd only; box_iou and mask_iou float64 in [0, 1]; on_another bool, whether
        an object of another class fits the box better.
    """
    objects = truth.select(~truth.crowd)
    box_iou = best_box_iou(labels, objects)
    any_class = pairwise_iou(labels.boxes_xyxy, objects.boxes_xyxy).max(axis=1, initial=0.0)
    present = np.isin(labels.category_ids, truth.category_ids)
    return {
        "category_id": labels.category_ids,
        "present": present,
        "crowd": present & ~np.isin(labels.category_ids, objects.category_ids),
        "box_iou": box_iou,
        "mask_iou": best_mask_iou(labels, objects),
        "on_another": any_class > box_iou,
    }


def measure_pointing(
    maps: Float[np.ndarray, "R G h w"],
    category_ids: Int64[np.ndarray, " R"],
    truth: Instances,
    image_hw: tuple[int, int],
) -> Columns:
    """Return for each target and round whether the map peaks on an object of the target's class.

    Args:
        maps: of the R targets of one image, in G rounds.
        category_ids: the targets' classes.
        truth: the image's ground truth; here a crowd counts as an object.
        image_hw: the image's size.

    Returns:
        category_id int64 and hit bool (…, G), a row for each target whose class the image
        shows. The peak is the centre of the highest cell.
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
