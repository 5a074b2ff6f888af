"""Top-K boxes of a picture by the proposal network.

Mask-free OVIS, pseudo bounding box generation, step 3: B = {b_1, …, b_K}.
Shape legend: R candidates of one picture, C base classes. Boxes x0, y0, x1, y1 in pixels.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torchvision.ops import nms

from stages.common.box_regression import decode_boxes
from stages.common.params import Section
from stages.models.wspn import FeatureMaps, Wspn, class_scores
from stages.models.wspn_input import network_input


class RankingSettings(Section):
    """How boxes are refined, scored and kept apart: section `ranking` of params.yaml.

    - `top_k`: most boxes of a picture.
    - `score`: quality: predicted IoU with the object; classes: the largest class score W.
    - `refinements`: how often the boxes are regressed; each result is a candidate as well.
    - `keep_proposals`: whether proposals are candidates too beside their refinements.
    - `nms_iou`: rising thresholds, see `order_in_layers`.
    """

    top_k: int = Field(ge=1)
    score: Literal["quality", "classes"]
    refinements: int = Field(ge=0)
    keep_proposals: bool
    nms_iou: list[Annotated[float, Field(gt=0, le=1)]] = Field(min_length=1)

    @field_validator("nms_iou")
    @classmethod
    def _ascending(cls, values: list[float]) -> list[float]:
        if values != sorted(set(values)):
            raise ValueError("must rise from value to value")
        return values


@torch.no_grad()
def rank_proposals(
    model: Wspn, image: np.ndarray, proposals_xyxy: np.ndarray, settings: RankingSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best boxes of a picture.

    Args:
        model: in evaluation mode.
        image: RGB uint8 (H, W, 3).
        proposals_xyxy: float32 (R, 4) in its pixels, R >= 1.
        settings: how to rank.

    Returns:
        (boxes float32 (K, 4), scores float32 (K,) in [0, 1], not rising)
    """
    pixels, scale = network_input(image, model.config.image_side)
    maps = model.feature_maps(pixels)
    boxes = torch.from_numpy(proposals_xyxy * scale).to(model.device)
    candidates, qualities = [], []
    for turn in range(settings.refinements + 1):
        logits, offsets = model.objects(model.evidence(maps, boxes))
        if turn > 0 or settings.keep_proposals or settings.refinements == 0:
            candidates.append(boxes)
            qualities.append(logits[:, 0].sigmoid())
        boxes = decode_boxes(boxes, offsets, maps.image_hw)
    pool = torch.cat(candidates)
    scores = torch.cat(qualities)
    if settings.score == "classes":
        scores = _best_class(model, maps, pool)
    rows, ranked = order_in_layers(pool, scores, settings.nms_iou)
    height, width = image.shape[:2]
    found = pool[rows[: settings.top_k]].cpu().numpy() / scale
    limits = np.array([width, height, width, height], np.float32)
    return np.clip(found, 0, limits), ranked[: settings.top_k].cpu().numpy()


def _best_class(model: Wspn, maps: FeatureMaps, boxes_xyxy: torch.Tensor) -> torch.Tensor:
    """Return (R,), the largest class score of each box."""
    return class_scores(*model.class_logits(model.appearance(maps, boxes_xyxy))).amax(1)


def order_in_layers(
    boxes_xyxy: torch.Tensor, scores: torch.Tensor, nms_iou: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Order boxes so that the first K are good and different, whatever K is.

    The first layer is what non-maximum suppression with the lowest threshold keeps, best first;
    the next one what the second threshold adds to it; and so on. What the last threshold
    suppresses is dropped. One threshold alone would serve one K: a low one finds more objects with
    ten boxes and a high one more with a hundred.

    Args:
        boxes_xyxy: (R, 4).
        scores: (R,) in [0, 1].
        nms_iou: rising thresholds of IoU.

    Returns:
        (rows (K,), scores (K,) in [0, 1], not rising: of L layers, the l-th from the end has
        scores in [(l - 1) / L, l / L])
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
