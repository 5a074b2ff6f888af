"""Pseudo-labels as they would be if `pseudo_masks`, or also `pseudo_boxes`, were perfect.

Classes and order stay. Labels whose class is not in the image are kept unchanged: they are wrong
before they get a box. No labels are added for objects without one. Crowds do not count as objects.

Frame: pixels of the image; `bbox` is x, y, width, height.
"""

import numpy as np

from stages.common.formats.coco import Instances, make_instances
from stages.common.geometry.boxes import pairwise_iou
from stages.common.geometry.masks import decode_mask, encode_mask


def replace_masks(
    annotations: list[dict], objects: list[dict], image_hw: tuple[int, int]
) -> list[dict]:
    """Return the labels of one image with true masks in their own boxes.

    A label gets the mask of the object of its class with the highest box IoU, cut to the label's
    box. A label whose box holds no part of such an object is kept: its mask is not its only fault.

    Args:
        annotations: the image's pseudo-labels, in COCO's format.
        objects: its ground truth, in COCO's format.
        image_hw: its size in pixels.
    """
    objects = [each for each in objects if not each["iscrowd"]]
    labels = make_instances(annotations)
    replaced = []
    for annotation, box_xyxy, (best, iou) in zip(
        annotations, labels.boxes_xyxy, _fitting(labels, objects), strict=True
    ):
        if best is not None and iou > 0:
            left, top, right, bottom = np.rint(box_xyxy).astype(int).clip(0)
            inside = np.zeros(image_hw, bool)
            inside[top:bottom, left:right] = True
            mask = inside & decode_mask(objects[best]["segmentation"], image_hw)
            if mask.any():
                own = {"segmentation": encode_mask(mask), "area": int(mask.sum())}
                annotation = {**annotation, **own}
        replaced.append(annotation)
    return replaced


def replace_objects(
    annotations: list[dict], objects: list[dict], image_hw: tuple[int, int]
) -> list[dict]:
    """Return the labels of one image with the box and mask of an object of their class.

    It is the object with the highest box IoU or, if none overlaps, with the nearest centre. If it
    has no outline, the label keeps its own mask. Arguments as for `replace_masks`.
    """
    objects = [each for each in objects if not each["iscrowd"]]
    replaced = []
    for annotation, (best, _) in zip(
        annotations, _fitting(make_instances(annotations), objects), strict=True
    ):
        if best is not None:
            mask = decode_mask(objects[best]["segmentation"], image_hw)
            annotation = {**annotation, "bbox": objects[best]["bbox"]}
            if mask.any():
                annotation |= {"segmentation": encode_mask(mask), "area": int(mask.sum())}
        replaced.append(annotation)
    return replaced


def _fitting(labels: Instances, objects: list[dict]) -> list[tuple[int | None, float]]:
    """Return for each label the row of the best matching object of its class, and their box IoU.

    If no object of the class overlaps, it is the one with the nearest centre, and if there is no
    such object, the row is None.
    """
    if not objects or not len(labels):
        return [(None, 0.0)] * len(labels)
    truth = make_instances(objects)
    iou = pairwise_iou(labels.boxes_xyxy, truth.boxes_xyxy)
    centres, true_centres = (
        (boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in (labels.boxes_xyxy, truth.boxes_xyxy)
    )
    distance = np.linalg.norm(centres[:, None] - true_centres[None, :], axis=2)
    found: list[tuple[int | None, float]] = []
    for row, category_id in enumerate(labels.category_ids):
        own = np.flatnonzero(truth.category_ids == category_id)
        if not len(own):
            found.append((None, 0.0))
            continue
        overlaps = iou[row, own].max() > 0
        best = own[iou[row, own].argmax() if overlaps else distance[row, own].argmin()]
        found.append((int(best), float(iou[row, best])))
    return found
