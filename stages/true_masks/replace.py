"""Pseudo-labels with the masks that a perfect stage `masks` would have made in the same boxes."""

import numpy as np

from stages.common.boxes import pairwise_iou
from stages.common.coco import make_instances
from stages.common.masks import decode_mask, encode_mask


def replace_masks(
    annotations: list[dict], objects: list[dict], image_hw: tuple[int, int]
) -> list[dict]:
    """Return the labels of one picture with true masks: boxes, classes and order stay.

    A label's mask is that of the object of its class that its box fits best, cut to the box. A
    label that overlaps no object of its class is not wrong in its mask alone, and stays as it is.

    Args:
        annotations: pseudo-annotations of the picture in COCO's form.
        objects: its ground truth; crowds are no objects.
        image_hw: the picture's size, pixels.
    """
    objects = [each for each in objects if not each["iscrowd"]]
    labels, truth = make_instances(annotations), make_instances(objects)
    if not len(labels) or not len(truth):
        return annotations
    same_class = labels.category_ids[:, None] == truth.category_ids[None, :]
    iou = np.where(same_class, pairwise_iou(labels.boxes_xyxy, truth.boxes_xyxy), 0.0)
    replaced = []
    for annotation, row, box_xyxy in zip(annotations, iou, labels.boxes_xyxy, strict=True):
        if row.max() > 0:
            left, top, right, bottom = np.rint(box_xyxy).astype(int).clip(0)
            inside = np.zeros(image_hw, bool)
            inside[top:bottom, left:right] = True
            mask = inside & decode_mask(objects[row.argmax()]["segmentation"], image_hw)
            own = {"segmentation": encode_mask(mask), "area": int(mask.sum())}
            annotation = {**annotation, **own}
        replaced.append(annotation)
    return replaced
