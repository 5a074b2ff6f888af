"""The results as nested metrics, a table per class, and precision-recall curves.

Shape legend: T = 10 IoU thresholds, P = 101 recall points, K classes of a trial.
"""

from dataclasses import dataclass

import numpy as np

from stages.common.categories import Category
from stages.evaluation.average_precision import (
    KINDS,
    NO_OBJECTS,
    Kind,
    average_precision,
    group_precision,
    precision_table,
)
from stages.evaluation.protocols import Trial

GROUPS = ("base", "novel", "all")


@dataclass(frozen=True)
class Scores:
    """What one detector got: precision (T, P, K) of each kind, per trial."""

    trials: list[Trial]
    tables: list[dict[Kind, np.ndarray]]


def score(trials: list[Trial], detections: list[list[dict]], max_detections: int) -> Scores:
    """Compare a detector's results of each trial with the ground truth."""
    return Scores(
        trials,
        [
            {kind: precision_table(trial, found, kind, max_detections) for kind in KINDS}
            for trial, found in zip(trials, detections, strict=True)
        ],
    )


def make_metrics(scores: Scores) -> dict:
    """Return protocol → group → kind → AP and AP50 in percent, -1 for a group without objects."""
    metrics: dict = {}
    for trial, tables in zip(scores.trials, scores.tables, strict=True):
        for group in trial.groups:
            metrics.setdefault(trial.protocol, {})[group] = {
                kind: average_precision(group_precision(table, trial, group))
                for kind, table in tables.items()
            }
    return metrics


def per_class_rows(scores: dict[str, Scores], categories: list[Category]) -> list[dict]:
    """Return a row per class: AP50 in percent of each model, protocol and kind.

    A class without objects has empty fields.
    """
    (any_scores, *_) = scores.values()
    objects = [a["category_id"] for a in any_scores.trials[0].annotations if not a.get("iscrowd")]
    rows = {
        category.id: {
            "category": category.name,
            "split": category.split,
            "objects": objects.count(category.id),
        }
        for category in categories
    }
    for model, own in scores.items():
        for trial, tables in zip(own.trials, own.tables, strict=True):
            for kind, table in tables.items():
                column = f"{model}_{trial.protocol}_{kind}"
                for k, category in enumerate(trial.categories):
                    precision = table[0, :, k]
                    known = (precision > NO_OBJECTS).all()
                    rows[category.id][column] = 100 * float(precision.mean()) if known else ""
    return list(rows.values())


def precision_recall_rows(scores: dict[str, Scores], kind: Kind) -> list[dict]:
    """Return a row per recall point: precision at IoU .50, generalized, of each model and group.

    Columns are <model>_<group>, as DVC draws one curve per column; the mean is over classes.
    """
    recall = np.linspace(0, 1, 101)
    rows = [{"recall": float(point)} for point in recall]
    for model, own in scores.items():
        for group in GROUPS:
            table = group_precision(own.tables[0][kind], own.trials[0], group)
            curve = table[0].mean(axis=1).tolist() if table.size else [""] * len(recall)
            for row, precision in zip(rows, curve, strict=True):
                row[f"{model}_{group}"] = precision
    return rows
