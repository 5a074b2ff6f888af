"""Objects that somebody has put a box around, but no outline: their mask is empty."""

from collections.abc import Iterable

import numpy as np
from pycocotools import mask as coco_mask


def is_outlined(annotation: dict) -> bool:
    """Return whether an annotation has a mask with any pixel; other forms than RLE always do."""
    segmentation = annotation["segmentation"]
    is_rle = isinstance(segmentation, dict) and isinstance(segmentation["counts"], str)
    return not is_rle or bool(coco_mask.area(segmentation))


def ignore_unoutlined(annotations: Iterable[dict]) -> list[dict]:
    """Return the annotations, those without outline as crowds: not learned from, not missed."""
    return [
        annotation
        if not annotation.get("segmentation") or is_outlined(annotation)
        else annotation | {"iscrowd": 1}
        for annotation in annotations
    ]


def fill_unoutlined(annotations: Iterable[dict]) -> list[dict]:
    """Return the annotations, crowds without outline with their filled box as mask.

    An empty mask holds no detection, so a mask of the object would count as wrong where a box of it
    is ignored. The box is widened to whole pixels.
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
    """Return COCO RLE, JSON-ready; the empty mask tells the image's size."""
    height, width = annotation["segmentation"]["size"]
    x, y, across, down = annotation["bbox"]
    x0, y0 = np.floor([x, y])
    x1, y1 = min(np.ceil(x + across), width), min(np.ceil(y + down), height)
    rle = coco_mask.frPyObjects(np.array([[x0, y0, x1 - x0, y1 - y0]]), height, width)[0]
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}
