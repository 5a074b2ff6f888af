"""Means over base, novel and all classes: metrics.json, per_class.csv and recall.csv.

A mean over nothing is -1, as in pycocotools. "at_50" is the fraction of labels with IoU >= 0.5.
Means have five decimals; the rest is noise even on all of COCO.
"""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from jaxtyping import Float, Shaped

from stages.common.formats.categories import Category
from stages.label_quality.agreement import Columns
from stages.label_quality.params import LabelQualityParams
from stages.label_quality.shard import Tables

PROPOSALS = ("selective_search", "random_order", "ranking")
GROUPS = ("base", "novel", "all")
MEASURED_PER_CLASS = ("precision", "box_iou", "box_at_50", "mask_iou", "mask_at_50")
NOTHING = -1.0


def mean(values: Shaped[np.ndarray, " R"]) -> float:
    """Return the mean, rounded to five decimals; -1 if there are no values."""
    return round(float(np.mean(values)), 5) if len(values) else NOTHING


def iou_summary(iou: Float[np.ndarray, " R"]) -> dict[str, float]:
    """Return the mean of IoUs and the fraction of them that is at least 0.5."""
    return {"mean_iou": mean(iou), "at_50": mean(iou >= 0.5)}


def by_group(
    columns: Columns, categories: list[Category], summary: Callable[[Columns], dict]
) -> dict[str, dict]:
    """Return `summary` of the rows of the base, the novel and all classes."""
    groups = {}
    for group in GROUPS:
        ids = [category.id for category in categories if group in (category.split, "all")]
        rows = np.isin(columns["category_id"], ids)
        groups[group] = summary({name: values[rows] for name, values in columns.items()})
    return groups


def quality_metrics(tables: Tables, categories: list[Category], params: LabelQualityParams) -> dict:
    """Return nested metrics: labels, boxes and masks with the simple ones, pointing, recall."""
    compared = {name: values[~tables.labels["crowd"]] for name, values in tables.labels.items()}
    in_good_box = compared["box_iou"] >= 0.5
    good = {name: values[in_good_box] for name, values in compared.items()}

    def square(rows: Columns) -> dict[str, float]:
        return _best(rows["square_iou"], "side", params.square_sides)

    return {
        "labels": by_group(
            tables.labels,
            categories,
            lambda rows: {
                "count": len(rows["present"]),
                "crowd_only": int(np.count_nonzero(rows["crowd"])),
                "precision": mean(rows["present"]),
            },
        ),
        "boxes": by_group(compared, categories, _box_summary),
        "fixed_square": by_group(compared, categories, square),
        "masks": _mask_metrics(compared, categories, params),
        "masks_in_good_boxes": _mask_metrics(good, categories, params),
        "pointing": by_group(tables.pointing, categories, _pointing_summary),
        "recall": {
            name: by_group(
                tables.objects, categories, partial(_recall, name=name, at=params.recall_at)
            )
            for name in PROPOSALS
        },
    }


def _recall(rows: Columns, name: str, at: Iterable[int]) -> dict[str, float]:
    return {f"recall@{number}": mean(rows[name] <= number) for number in at}


def _mask_metrics(rows: Columns, categories: list[Category], params: LabelQualityParams) -> dict:
    """Return the IoU of pseudo-masks and of the simple masks in the same boxes."""

    def by_threshold(group: Columns) -> dict[str, float]:
        return _best(group["activation_iou"], "threshold", params.activation_thresholds)

    def by_fraction(group: Columns) -> dict[str, float]:
        return _best(group["fraction_iou"], "fraction", params.activation_fractions)

    return {
        "pseudo": by_group(rows, categories, lambda group: iou_summary(group["mask_iou"])),
        "box_filled": by_group(rows, categories, lambda group: iou_summary(group["filled_iou"])),
        "ellipse": by_group(rows, categories, lambda group: iou_summary(group["ellipse_iou"])),
        "thresholded_activation": by_group(rows, categories, by_threshold),
        "activation_fraction": by_group(rows, categories, by_fraction),
    }


def _best(iou: np.ndarray, name: str, values: list[float]) -> dict[str, float]:
    """Return the summary of the column of IoUs (R, K) with the highest mean, and its value.

    The column is chosen per group with the ground truth, which no method has: this favours the
    simple masks and boxes.
    """
    best = int(np.argmax([mean(column) for column in iou.T]))
    return {**iou_summary(iou[:, best]), name: values[best]}


def _box_summary(rows: Columns) -> dict[str, float]:
    """Return the IoU of the boxes, how many lie on another object, and how their sides agree.

    `side_correlation` is that of boxes' sides and objects' sides over the labels that overlap an
    object of their class. It is left out if there are fewer than two, or if all boxes or all
    objects have one size.
    """
    fits = ~np.isnan(rows["true_side"])
    pairs = np.stack([rows["side"][fits], rows["true_side"][fits]])
    summary = {**iou_summary(rows["box_iou"]), "on_another": mean(rows["on_another"])}
    if pairs.shape[1] > 1 and pairs.std(axis=1).all():
        summary["side_correlation"] = round(float(np.corrcoef(pairs)[0, 1]), 5)
    return summary


def _pointing_summary(rows: Columns) -> dict[str, float]:
    rounds = {f"round_{k}": mean(column) for k, column in enumerate(rows["hit"].T)}
    return {"count": len(rows["hit"]), **rounds}


def per_class_rows(tables: Tables, categories: list[Category]) -> list[dict]:
    """Return one row per class; the measurements of a class without labels are empty."""
    result = []
    for category in categories:
        own = tables.labels["category_id"] == category.id
        compared = own & ~tables.labels["crowd"]
        row = {"category": category.name, "split": category.split, "labels": int(own.sum())}
        box_iou, mask_iou = (tables.labels[name][compared] for name in ("box_iou", "mask_iou"))
        means = [mean(tables.labels["present"][own])]
        means += [mean(values) for iou in (box_iou, mask_iou) for values in (iou, iou >= 0.5)]
        for name, value in zip(MEASURED_PER_CLASS, means, strict=True):
            row[name] = "" if value == NOTHING else value
        result.append(row)
    return result


def recall_rows(metrics: dict, params: LabelQualityParams) -> list[dict]:
    """Return one row per K of recall@K, with a column per kind of proposals and group."""
    return [
        {
            "boxes": number,
            **{
                f"{name}_{group}": metrics["recall"][name][group][f"recall@{number}"]
                for group in GROUPS
                for name in PROPOSALS
            },
        }
        for number in params.recall_at
    ]
