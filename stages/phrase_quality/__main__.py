"""Stage `phrase_quality`: how well the boxes of phrases fit the objects that they name.

Run: python -m stages.phrase_quality. It only measures: no stage that trains reads what it writes. A
box is compared with the object of its class in its image that it fits best. Crowds, which are boxes
around several objects if `phrase_labels.several` says so, are left out, and in Open Images phrases
of classes that nobody verified in their image. There an object also counts for the classes that
include its own. Without phrases or annotations, metrics.json says why nothing was measured.

Shape legend: R boxes of phrases.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from stages.common.formats.categories import Category, read_categories
from stages.common.formats.coco import group_by_image
from stages.common.formats.ground_truth import SKIPPED, is_annotated
from stages.common.geometry.boxes import pairwise_iou, xywh_to_xyxy
from stages.common.runtime.storage import read_json, write_json

DATA = Path("data")
TRUTH = DATA / "download/ground_truth/train.json"
OUTPUT = DATA / "phrase_quality/metrics.json"
GROUPS = ("base", "novel", "all")


def best_iou(
    phrases: list[dict], truth: list[dict], ancestors: Mapping[int, Collection[int]]
) -> Float64[np.ndarray, " R"]:
    """Return each box's IoU with the best fitting object of its class; 0 if none.

    Args:
        phrases: COCO annotations of the phrases.
        truth: COCO annotations of the objects; crowds are ignored.
        ancestors: category id → ids of the classes that include it.
    """
    objects = group_by_image(own for own in truth if not own["iscrowd"])
    found = np.zeros(len(phrases))
    for row, phrase in enumerate(phrases):
        same = [
            own["bbox"]
            for own in objects.get(phrase["image_id"], [])
            if phrase["category_id"] in named(own["category_id"], ancestors)
        ]
        if same:
            boxes = xywh_to_xyxy(np.array([phrase["bbox"], *same], np.float64))
            found[row] = pairwise_iou(boxes[:1], boxes[1:]).max()
    return found


def named(category_id: int, ancestors: Mapping[int, Collection[int]]) -> set[int]:
    """Return the classes that an object of a class is of."""
    return {category_id, *ancestors.get(category_id, ())}


def verified(
    phrases: list[dict], truth: dict, ancestors: Mapping[int, Collection[int]]
) -> list[dict]:
    """Return the phrases of classes that are known to be in their image or not.

    Args:
        phrases: COCO annotations of the phrases.
        truth: a COCO file; in images with `verified_category_ids` other classes are not known.
        ancestors: category id → ids of the classes that include it.
    """
    known = {
        image["id"]: set(image["verified_category_ids"])
        for image in truth["images"]
        if "verified_category_ids" in image
    }
    for own in truth["annotations"]:
        if own["image_id"] in known:
            known[own["image_id"]] |= named(own["category_id"], ancestors)
    return [p for p in phrases if p["category_id"] in known.get(p["image_id"], {p["category_id"]})]


def make_metrics(
    phrases: list[dict],
    truth: list[dict],
    categories: list[Category],
    ancestors: Mapping[int, Collection[int]],
) -> dict:
    """Return, per group: count, mean IoU, and the fractions with IoU >= 0.5 and with IoU 0."""
    iou = best_iou(phrases, truth, ancestors)
    metrics: dict[str, dict[str, float]] = {}
    for group in GROUPS:
        ids = {category.id for category in categories if group in (category.split, "all")}
        own = iou[[phrase["category_id"] in ids for phrase in phrases]]
        means = {"mean_iou": own, "at_50": own >= 0.5, "beside": own == 0}
        metrics[group] = {"count": len(own)}
        if len(own):
            metrics[group] |= {name: round(float(np.mean(v)), 5) for name, v in means.items()}
    return metrics


def main() -> None:
    """Write metrics.json."""
    annotations = read_json(DATA / "phrase_labels/annotations.json")["annotations"]
    truth = read_json(TRUTH)
    ancestors = {c["id"]: c["ancestors"] for c in truth.get("categories", []) if "ancestors" in c}
    single = [own for own in annotations if not own["iscrowd"]]
    phrases = verified(single, truth, ancestors) if is_annotated(TRUTH) else single
    if not phrases or all(own["iscrowd"] for own in truth["annotations"]):
        none = "no objects to measure" if is_annotated(TRUTH) else SKIPPED
        reason = none if phrases else "there is no phrase of one object of a known class"
        write_json(OUTPUT, {"skipped": reason, "count": len(phrases)})
        print(f"phrase_quality: {reason}")
        return
    categories = read_categories(DATA / "download/categories.json")
    metrics = make_metrics(phrases, truth["annotations"], categories, ancestors)
    if len(phrases) < len(single):
        metrics["unverified"] = len(single) - len(phrases)
    write_json(OUTPUT, metrics)
    print(f"phrase_quality: mean IoU of {len(phrases)} boxes {metrics['all']['mean_iou']:.3f}")


if __name__ == "__main__":
    main()
