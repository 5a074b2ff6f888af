"""Objects that somebody has put a box around, but no outline: their mask is empty."""

from collections.abc import Iterable

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
