"""Seeds: the proposals that a class score trusts, which the other proposals learn from.

Mask-free OVIS eq. 5: pseudo-regression targets t̂(u_i) for low-scoring proposals. The paper does
not say how its high-scoring ones are chosen; `oicr` and `mist` are the two choices of wetectron.

The product of WSDDN's two softmaxes peaks on the most telling part of an object. Each score is
therefore first replaced by the sum of its neighbours' flattened scores: a box that many
well-scored proposals agree on is an object, one that few share is a part (ours; it takes
after proposal clusters, PCL).

Shape legend: R proposals of one picture, C base classes, S seeds. Boxes in pixels.
"""

from typing import Literal

import numpy as np

from stages.common.boxes import pairwise_iou
from stages.wspn.params import SeedParams


def consensus(
    scores: np.ndarray, overlaps: np.ndarray, neighbour_iou: float, power: float
) -> np.ndarray:
    """Return agreed scores (R, C): Σ_j IoU_ij · s_j^power over proposals j near proposal i.

    Args:
        scores: W of one picture, (R, C) >= 0.
        overlaps: IoU of its proposals, (R, R).
        neighbour_iou: proposals that overlap less do not count; 1 keeps the order of `scores`.
        power: below 1 it flattens the scores before they are added.
    """
    return np.where(overlaps >= neighbour_iou, overlaps, 0) @ scores**power


def select_seeds(
    scores: np.ndarray,
    overlaps: np.ndarray,
    select: Literal["oicr", "mist"],
    top_fraction: float,
    max_iou: float,
    min_relative_score: float,
) -> list[int]:
    """Return the seeds of one class, best first, as row numbers; R >= 1.

    Args:
        scores: of one class, (R,).
        overlaps: IoU of the proposals, (R, R).
        select: oicr: the best proposal; mist: of the best `top_fraction`, greedily each one that
            overlaps the seeds so far by less than `max_iou` and scores at least
            `min_relative_score` of the best (wetectron: 0). The best is always a seed.
        top_fraction: 0..1, rounded to whole proposals.
        max_iou: 0..1.
        min_relative_score: 0..1.
    """
    order = np.argsort(-scores, kind="stable")
    if select == "oicr":
        return [int(order[0])]
    candidates = order[: max(1, round(top_fraction * len(order)))]
    candidates = candidates[scores[candidates] >= min_relative_score * scores[order[0]]]
    seeds = [int(order[0])]
    for row in candidates[1:]:
        if overlaps[row, seeds].max() < max_iou:
            seeds.append(int(row))
    return seeds


def class_seeds(
    scores: np.ndarray, overlaps: np.ndarray, labels: np.ndarray, params: SeedParams
) -> list[tuple[int, int]]:
    """Return (row, class index) of the seeds of every class that a picture's labels (C,) name.

    Args:
        scores: (R, C) >= 0.
        overlaps: IoU of the proposals, (R, R).
        labels: 1 where the class is named.
        params: section `wspn.seeds`.
    """
    agreed = consensus(scores, overlaps, params.neighbour_iou, params.power)
    return [
        (row, int(place))
        for place in np.flatnonzero(labels)
        for row in select_seeds(
            agreed[:, place],
            overlaps,
            params.select,
            params.top_fraction,
            params.max_iou,
            params.min_relative_score,
        )
    ]


def match_seeds(boxes_xyxy: np.ndarray, seeds_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (IoU with the nearest seed (R,), that seed's box (R, 4)); S >= 1."""
    overlaps = pairwise_iou(boxes_xyxy, seeds_xyxy)
    return overlaps.max(axis=1), seeds_xyxy[overlaps.argmax(axis=1)]
