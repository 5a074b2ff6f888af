"""Objects that were annotated with a box but without an outline: their mask is empty."""

from collections.abc import Iterable

import numpy as np
from pycocotools import mask as coco_mask


def is_outlined(annotation: dict) -> bool:
    """Return whether a mask has any pixel; polygons and uncompressed RLE are taken to have some."""
    segmentation = annotation["segmentation"]
    is_rle = isinstance(segmentation, dict) and isinstance(segmentation["counts"], str)
    return not is_rle or bool(coco_mask.area(segmentation))


def ignore_unoutlined(annotations: Iterable[dict]) -> list[dict]:
    """Return the annotations; those without outline become crowds, which are ignored."""
    return [
        annotation
        if not annotation.get("segmentation") or is_outlined(annotation)
        else annotation | {"iscrowd": 1}
        for annotation in annotations
    ]


def fill_unoutlined(annotations: Iterable[dict]) -> list[dict]:
    """Return the annotations, with the filled box as mask of each crowd that has no outline.

    COCO ignores detections that lie in a crowd. None lies in an empty mask, so a detected mask
    would count as wrong where its box is ignored. Boxes are widened to whole pixels.
    """
    return [
        annotation | {"segmentation": _filled_box(annotation)}
        if annotation.get("iscrowd")
        and annotation.get("segmentation")
        and not is_outlined(annotation)
        else annotation
        for annotation in annotations
    ]


def _filled_box(annotation: dict) -> dict:
    """Return the box as COCO RLE, ready for JSON; the empty mask gives the image's size."""
    height, width = annotation["segmentation"]["size"]
    x, y, across, down = annotation["bbox"]
    x0, y0 = np.floor([x, y])
    x1, y1 = min(np.ceil(x + across), width), min(np.ceil(y + down), height)
    rle = coco_mask.frPyObjects(np.array([[x0, y0, x1 - x0, y1 - y0]]), height, width)[0]
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}
