"""Merge the pseudo-masks of all shards into one COCO file of pseudo-annotations.

Mask-free OVIS keeps every mask. Here masks that are too small to be objects are dropped, and so are
the lowest-scoring ones of each class if `keep_fraction` is below 1. No ground truth is used.
Frame: pixels of the stored image, boxes as (x, y, width, height).
"""

import math
from collections import Counter

from pycocotools import mask as coco_mask

from stages.common.formats.categories import Category
from stages.pseudo_labels.params import PseudoLabelsParams

SMALL, UNSURE = "area below pseudo_labels.min_area", "score outside pseudo_labels.keep_fraction"
CONSTANT = "activation map is the same everywhere"  # stage `activation` leaves such targets out


def check_masks(masks: list[dict], images: list[dict], categories: list[Category]) -> None:
    """Check that each mask fits a listed image and class, with at most one mask for each pair.

    Raises:
        ValueError: a mask does not; the message names its image and class.
    """
    sizes = {image["id"]: [image["height"], image["width"]] for image in images}
    known = {category.id for category in categories}
    seen = set()
    for mask in masks:
        image_id, category_id = key = (mask["image_id"], mask["category_id"])
        where = f"data/pseudo_masks: image_id {image_id}, category_id {category_id}"
        if image_id not in sizes:
            raise ValueError(f"{where}: no such image in data/download/images/train")
        if category_id not in known:
            raise ValueError(f"{where}: not a base or novel class of data/download/categories.json")
        if list(mask["segmentation"]["size"]) != sizes[image_id]:
            found = mask["segmentation"]["size"]
            raise ValueError(f"{where}: mask of size {found}, image of size {sizes[image_id]}")
        if key in seen:
            raise ValueError(f"{where}: two masks; an image has at most one per class")
        seen.add(key)


def split_masks(masks: list[dict], params: PseudoLabelsParams) -> tuple[list[dict], list[dict]]:
    """Return the kept and the dropped masks; both get their `area`, dropped ones also a `reason`.

    Of the masks that are large enough, the highest-scoring `keep_fraction` of each class is kept,
    rounded up. The fraction is per class because scores of different words are not comparable; it
    is rounded up so that no rare class is lost.
    """
    # One call per mask: pycocotools refuses lists of more than 255 with NumPy 2.
    measured = [{**mask, "area": int(coco_mask.area(mask["segmentation"]))} for mask in masks]
    measured.sort(key=lambda mask: (mask["category_id"], -mask["score"], mask["image_id"]))
    large = Counter(m["category_id"] for m in measured if m["area"] >= params.min_area)
    rank: Counter[int] = Counter()
    kept, dropped = [], []
    for mask in measured:
        category_id = mask["category_id"]
        if mask["area"] < params.min_area:
            dropped.append({**mask, "reason": SMALL})
            continue
        rank[category_id] += 1
        if rank[category_id] <= math.ceil(params.keep_fraction * large[category_id]):
            kept.append(mask)
        else:
            dropped.append({**mask, "reason": UNSURE})

    def by_image(mask: dict) -> tuple[int, int]:
        return mask["image_id"], mask["category_id"]

    return sorted(kept, key=by_image), sorted(dropped, key=by_image)


def make_dataset(kept: list[dict], images: list[dict], categories: list[Category]) -> dict:
    """Return a COCO instances dataset; annotations also have a `score`, categories a `split`."""
    fields = ("image_id", "category_id", "bbox", "area", "segmentation", "score")
    return {
        "images": images,
        "annotations": [
            {"id": number, "iscrowd": 0, **{field: mask[field] for field in fields}}
            for number, mask in enumerate(kept, 1)
        ],
        "categories": [{"id": c.id, "name": c.name, "split": c.split} for c in categories],
    }
