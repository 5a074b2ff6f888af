"""The results without ground truth: only numbers of detections.

Files have the same columns as with ground truth, left empty, for plots and comparisons to find.
"""

from collections import Counter

from stages.common.formats.categories import Category
from stages.common.formats.ground_truth import SKIPPED
from stages.evaluation.average_precision import KINDS
from stages.evaluation.summary import GROUPS, RECALL_POINTS


def evaluation_metrics(detections: list[dict], num_images: int) -> dict:
    """Return the numbers of images and detections, and why nothing else is measured."""
    return {"skipped": SKIPPED, "images": num_images, "detections": len(detections)}


def per_class_rows(detections: dict[str, list[dict]], categories: list[Category]) -> list[dict]:
    """Return a row per class: the number of detections of each model."""
    counts = {
        model: Counter(result["category_id"] for result in found)
        for model, found in detections.items()
    }
    return [
        {
            "category": category.name,
            "split": category.split,
            "objects": "",
            **{f"{model}_generalized_{kind}": "" for model in counts for kind in KINDS},
            **{f"{model}_detections": own[category.id] for model, own in counts.items()},
        }
        for category in categories
    ]


def precision_recall_rows(models: list[str]) -> list[dict]:
    """Return a row per recall point, with empty fields for each model and group."""
    empty = {f"{model}_{group}": "" for model in models for group in GROUPS}
    return [{"recall": float(point), **empty} for point in RECALL_POINTS]
