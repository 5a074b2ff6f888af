"""The best K boxes of an image, by the proposal network.

Mask-free OVIS, pseudo bounding box generation, step 3: B = {b_1, …, b_K}.
Shape legend: R boxes of one image, P candidates (proposals and their refinements), C base classes,
K ranked boxes. Boxes: x0, y0, x1, y1 in pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from torchvision.ops import box_iou, nms

from stages.common.geometry.box_coder import decode_boxes
from stages.models.proposals.base import ImageFeatures, Wspn, consensus
from stages.models.proposals.params import AgreementSettings, RankingSettings

NOT_KEPT = -1.0  # below every score


@torch.no_grad()
def rank_proposals(
    model: Wspn,
    image: UInt8[np.ndarray, "H W 3"],
    proposals_xyxy: Float32[np.ndarray, "R 4"],
    settings: RankingSettings,
) -> tuple[Float32[np.ndarray, "K 4"], Float32[np.ndarray, " K"]]:
    """Return the best boxes of an image, at most `top_k`.

    Args:
        model: in evaluation mode.
        image: RGB.
        proposals_xyxy: in pixels of the image, R >= 1.
        settings: how to rank.

    Returns:
        (boxes xyxy, clipped to the image; scores in [0, 1], best first)
    """
    features = model.extract_features(image, settings.views)
    boxes = torch.from_numpy(proposals_xyxy * features.scale).to(model.device)
    before = settings.scored == "proposal" and settings.refinements > 0
    score = _score_before_regression if before else _score_after_regression
    pool, scores = score(model, features, boxes, settings)
    if settings.score == "classes":
        scores = _agree(scores, pool, settings.agreement)
        rows, ranked = order_by_class(pool, scores, settings.nms_iou, settings.top_k)
    else:
        rows, ranked = order_in_layers(pool, scores, settings.nms_iou)
    height, width = image.shape[:2]
    found = pool[rows[: settings.top_k]].cpu().numpy() / features.scale
    limits = np.array([width, height, width, height], np.float32)
    return np.clip(found, 0, limits), ranked[: settings.top_k].cpu().numpy()


def _agree(
    scores: torch.Tensor, boxes_xyxy: torch.Tensor, settings: AgreementSettings
) -> torch.Tensor:
    """Return class scores (R, C) on which neighbours agree, scaled to a maximum of 1.

    With `neighbour_iou` 1 the scores are returned as they are.
    """
    if settings.neighbour_iou == 1:
        return scores
    overlaps = box_iou(boxes_xyxy, boxes_xyxy)
    agreed = consensus(scores, overlaps, settings.neighbour_iou, settings.power)
    return agreed / agreed.amax().clamp(min=torch.finfo(agreed.dtype).tiny)


def _score_after_regression(
    model: Wspn,
    features: ImageFeatures,
    boxes: Float[torch.Tensor, "R 4"],
    settings: RankingSettings,
) -> tuple[Float[torch.Tensor, "P 4"], Float[torch.Tensor, "P ..."]]:
    """Return the candidates, and the class scores (P, C) or qualities (P,) of these boxes."""
    candidates, qualities = [], []
    for turn in range(settings.refinements + 1):
        kept = turn > 0 or settings.keep_proposals or settings.refinements == 0
        if kept:
            candidates.append(boxes)
        if turn == settings.refinements and settings.score == "classes":
            break  # neither quality nor regression is needed
        quality, offsets = model.score_objects(features, boxes)
        if kept:
            qualities.append(quality)
        boxes = decode_boxes(boxes, offsets, features.image_hw)
    pool = torch.cat(candidates)
    if settings.score == "classes":
        return pool, model.score_classes(features, pool)
    return pool, torch.cat(qualities)


def _score_before_regression(
    model: Wspn,
    features: ImageFeatures,
    boxes: Float[torch.Tensor, "R 4"],
    settings: RankingSettings,
) -> tuple[Float[torch.Tensor, "P 4"], Float[torch.Tensor, "P ..."]]:
    """Return the candidates, and class scores (P, C) or qualities (P,).

    A regressed box has the scores of the box that it was regressed from.
    """
    candidates, scores = [], []
    for turn in range(settings.refinements):
        classes, quality, offsets = model.assess(features, boxes)
        own = classes if settings.score == "classes" else quality
        if turn == 0 and settings.keep_proposals:
            candidates.append(boxes)
            scores.append(own)
        boxes = decode_boxes(boxes, offsets, features.image_hw)
        candidates.append(boxes)
        scores.append(own)
    return torch.cat(candidates), torch.cat(scores)


def order_in_layers(
    boxes_xyxy: Float[torch.Tensor, "R 4"],
    scores: Float[torch.Tensor, " R"],
    nms_iou: Sequence[float],
) -> tuple[Int[torch.Tensor, " K"], Float[torch.Tensor, " K"]]:
    """Order boxes so that the first K are good and different, for any K.

    The first layer is what non-maximum suppression keeps at the lowest threshold, best first. The
    next layer is what the second threshold adds to it, and so on. Boxes that the last threshold
    suppresses are dropped. A single threshold would suit a single K: a low one finds more objects
    with ten boxes, a high one more with a hundred.

    Args:
        boxes_xyxy: of one image.
        scores: in [0, 1].
        nms_iou: rising IoU thresholds.

    Returns:
        (rows, scores in [0, 1], best first). Of L layers, the l-th from the end has scores in [(l -
        1) / L, l / L].
    """
    layers = len(nms_iou)
    taken = torch.zeros(0, dtype=torch.int64, device=scores.device)
    ranked = scores.new_zeros(0)
    for layer, threshold in enumerate(nms_iou):
        priority = scores.clone()
        turn = torch.arange(len(taken), dtype=scores.dtype, device=scores.device)
        priority[taken] += 2 + (len(taken) - turn)
        kept = nms(boxes_xyxy, priority, threshold)
        new = kept[~torch.isin(kept, taken)]
        taken = torch.cat([taken, new])
        ranked = torch.cat([ranked, (scores[new] + layers - 1 - layer) / layers])
    return taken, ranked


def order_by_class(
    boxes_xyxy: Float[torch.Tensor, "R 4"],
    scores: Float[torch.Tensor, "R C"],
    nms_iou: Sequence[float],
    top_k: int,
) -> tuple[Int[torch.Tensor, " K"], Float[torch.Tensor, " K"]]:
    """Order boxes by the class scores; boxes suppress each other only within a class.

    `order_in_layers` orders each class by itself, and the lists are merged. A box that several
    classes keep appears once, with its best score. Source: wetectron, which suppresses within each
    class, joins the lists and keeps the best 100. Ours: a box counts once, not once per class.

    Keeping `top_k` of each class loses nothing: whatever precedes a box in the list of its best
    class also precedes it in the merged list. So memory grows with R + C · top_k, not with R · C,
    and no threshold on scores is needed (wetectron's is 0).

    Args:
        boxes_xyxy: of one image.
        scores: in [0, 1].
        nms_iou: rising IoU thresholds.
        top_k: the most boxes to return.

    Returns:
        (rows, scores in [0, 1], best first), K <= top_k. Scores are those of `order_in_layers`;
        with one threshold these are the class scores.
    """
    best = scores.new_full((len(boxes_xyxy),), NOT_KEPT)
    for own_scores in scores.unbind(1):
        rows, ranked = order_in_layers(boxes_xyxy, own_scores, nms_iou)
        rows, ranked = rows[:top_k], ranked[:top_k]
        best[rows] = torch.maximum(best[rows], ranked)
    ranked, rows = best.sort(descending=True, stable=True)
    kept = (ranked > NOT_KEPT)[:top_k]
    return rows[:top_k][kept], ranked[:top_k][kept]
