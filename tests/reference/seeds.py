"""Seeds and what they teach, class by class and seed by seed, as the account of MIST has it.

Source: Instance-aware, Context-focused, and Memory-efficient WSOD (MIST), algorithm 1; eq. 5 of
Mask-free OVIS for what a proposal learns from its seed.
"""

import numpy as np

from stages.common.geometry.boxes import pairwise_iou
from stages.wspn.params import SeedParams


def choose_seeds(scores: np.ndarray, overlaps: np.ndarray, params: SeedParams) -> list[int]:
    """Return the seeds of one class, best first, as row numbers.

    Args:
        scores: of one class, (R,), R >= 1.
        overlaps: IoU of the proposals, (R, R).
        params: section `wspn.seeds`.
    """
    order = np.argsort(-scores, kind="stable")
    if params.select == "oicr":
        return [int(order[0])]
    candidates = order[: max(1, round(params.top_fraction * len(order)))]
    candidates = candidates[scores[candidates] >= params.min_relative_score * scores[order[0]]]
    seeds = [int(order[0])]
    for row in candidates[1:]:
        if overlaps[row, seeds].max() < params.max_iou:
            seeds.append(int(row))
    return seeds


def teach(
    scores: np.ndarray,
    boxes_xyxy: np.ndarray,
    labels: np.ndarray,
    params: SeedParams,
    min_iou: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return classes (R,), weights (R,), target boxes (R, 4) and IoU with the seed (R,).

    Args:
        scores: (R, C) in [0, 1].
        boxes_xyxy: (R, 4).
        labels: (C,), 1 if the image shows the class, as it does one at least.
        params: section `wspn.seeds`.
        min_iou: a proposal that overlaps its seed less is background, class 0.
    """
    overlaps = pairwise_iou(boxes_xyxy, boxes_xyxy)
    near = np.where(overlaps >= params.neighbour_iou, overlaps, 0)
    agreed = near @ scores**params.power
    found = [
        (row, place)
        for place in np.flatnonzero(labels)
        for row in choose_seeds(agreed[:, place], overlaps, params)
    ]
    rows, places = np.array(found).T
    nearest = overlaps[:, rows].argmax(1)
    overlap = overlaps[np.arange(len(overlaps)), rows[nearest]]
    classes = np.where(overlap >= min_iou, 1 + places[nearest], 0)
    return classes, scores[rows, places][nearest], boxes_xyxy[rows[nearest]], overlap
