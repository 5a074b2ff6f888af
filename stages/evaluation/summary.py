"""Scores detectors; returns nested metrics, a table per class, and precision-recall curves.

Shape legend: T = 10 IoU thresholds, P = 101 recall points, K classes of a trial.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from stages.common.formats.categories import Category
from stages.evaluation import open_images
from stages.evaluation.average_precision import (
    KINDS,
    NO_OBJECTS,
    Kind,
    average_precision,
    group_precision,
    precision_table,
)
from stages.evaluation.params import EvaluationParams
from stages.evaluation.protocols import Trial, in_group

GROUPS = ("base", "novel", "all")
RECALL_POINTS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Scores:
    """The scores of one detector, per trial.

    Attributes:
        trials: what the detector was measured on.
        tables: precision (T, P, K) of each kind; T is 1 by the rules of Open Images.
        areas: average precision (K,) in [0, 1] of each kind, by the rules of Open Images only.
    """

    trials: list[Trial]
    tables: list[dict[Kind, np.ndarray]]
    areas: list[dict[Kind, np.ndarray]] | None = None


def score(
    trials: list[Trial], detections: list[list[dict]], params: EvaluationParams, truth: dict
) -> Scores:
    """Compare a detector's results in each trial with the ground truth.

    Args:
        trials: vocabularies and ground truth.
        detections: COCO results per trial.
        params: whose rules count, and how many detections.
        truth: in COCO's instances format; its categories may have `ancestors`.
    """
    if params.metric == "open_images":
        return _score_by_hierarchy(trials, detections, params, truth)
    tables = [
        {kind: precision_table(trial, found, kind, params.max_detections) for kind in KINDS}
        for trial, found in zip(trials, detections, strict=True)
    ]
    return Scores(trials, tables)


def _score_by_hierarchy(
    trials: list[Trial], detections: list[list[dict]], params: EvaluationParams, truth: dict
) -> Scores:
    ancestors = {c["id"]: c["ancestors"] for c in truth["categories"] if "ancestors" in c}
    measured = []
    for trial, found in zip(trials, detections, strict=True):
        if params.expand_detections:
            found = open_images.expand(found, trial, ancestors)
        # Of all classes: an object of a class outside the vocabulary may be of one that is in it.
        annotations = open_images.expand(truth["annotations"], trial, ancestors)
        expanded = replace(trial, annotations=annotations)
        measured.append(
            {
                kind: open_images.measure(expanded, found, kind, params.max_detections)
                for kind in KINDS
            }
        )
    return Scores(
        trials,
        [{kind: own[kind].curve[None] for kind in KINDS} for own in measured],
        [{kind: own[kind].ap50 for kind in KINDS} for own in measured],
    )


def evaluation_metrics(scores: Scores) -> dict:
    """Return protocol → group → kind → AP and AP50 in percent, -1 for a group without objects.

    By the rules of Open Images there is only AP50.
    """
    metrics: dict = {}
    for number, (trial, tables) in enumerate(zip(scores.trials, scores.tables, strict=True)):
        for group in trial.groups:
            own = metrics.setdefault(trial.protocol, {}).setdefault(group, {})
            for kind, table in tables.items():
                if scores.areas is None:
                    own[kind] = average_precision(group_precision(table, trial, group))
                else:
                    own[kind] = {"AP50": mean_area(scores.areas[number][kind], trial, group)}
    return metrics


def mean_area(areas: Float[np.ndarray, " K"], trial: Trial, group: str) -> float:
    """Return the mean of areas over the group's classes with objects, in percent, or -1."""
    members = np.array([in_group(category, (group,)) for category in trial.categories], bool)
    known = areas[members & (areas > NO_OBJECTS)]
    return round(100 * float(known.mean()), 3) if len(known) else NO_OBJECTS


def per_class_rows(scores: dict[str, Scores], categories: list[Category]) -> list[dict]:
    """Return a row per class: AP50 in percent for each model, protocol and kind.

    The fields of a class without objects are empty.
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
        for number, (trial, tables) in enumerate(zip(own.trials, own.tables, strict=True)):
            for kind, table in tables.items():
                column = f"{model}_{trial.protocol}_{kind}"
                for k, category in enumerate(trial.categories):
                    precision = table[0, :, k]
                    known = (precision > NO_OBJECTS).all()
                    ap50 = precision.mean() if own.areas is None else own.areas[number][kind][k]
                    rows[category.id][column] = 100 * float(ap50) if known else ""
    return list(rows.values())


def precision_recall_rows(scores: dict[str, Scores], kind: Kind) -> list[dict]:
    """Return a row per recall point: precision at IoU .50, averaged over classes.

    It is that of the generalized trial. Columns are <model>_<group>: DVC draws a curve per column.
    """
    rows = [{"recall": float(point)} for point in RECALL_POINTS]
    for model, own in scores.items():
        for group in GROUPS:
            table = group_precision(own.tables[0][kind], own.trials[0], group)
            curve = table[0].mean(axis=1).tolist() if table.size else [""] * len(rows)
            for row, precision in zip(rows, curve, strict=True):
                row[f"{model}_{group}"] = precision
    return rows
