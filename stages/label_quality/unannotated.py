"""Metrics of pseudo-labels without ground truth: only their number; the rest stays empty.

The files have the same columns as with ground truth, so that plots and comparisons work.
"""

from collections import Counter

from stages.common.formats.categories import Category
from stages.common.formats.ground_truth import SKIPPED
from stages.label_quality.params import LabelQualityParams
from stages.label_quality.summary import GROUPS, MEASURED_PER_CLASS, PROPOSALS


def quality_metrics(labels: list[dict], categories: list[Category]) -> dict:
    """Return the number of base, novel and all labels, and why nothing else was measured."""
    counts = Counter(label["category_id"] for label in labels)
    return {
        "skipped": SKIPPED,
        "labels": {
            group: {"count": sum(counts[c.id] for c in categories if group in (c.split, "all"))}
            for group in GROUPS
        },
    }


def per_class_rows(labels: list[dict], categories: list[Category]) -> list[dict]:
    """Return one row per class with its number of labels; measurements are empty."""
    counts = Counter(label["category_id"] for label in labels)
    empty = dict.fromkeys(MEASURED_PER_CLASS, "")
    return [
        {"category": c.name, "split": c.split, "labels": counts[c.id], **empty} for c in categories
    ]


def recall_rows(params: LabelQualityParams) -> list[dict]:
    """Return one empty row per K of recall@K."""
    empty = {f"{name}_{group}": "" for group in GROUPS for name in PROPOSALS}
    return [{"boxes": number, **empty} for number in params.recall_at]
