"""Seeds: the proposals that a class score trusts, which the other proposals learn from.

Mask-free OVIS eq. 5: pseudo-regression targets t̂(u_i) for low-scoring proposals. The paper does
not say how its high-scoring ones are chosen; `oicr` and `mist` are the two choices of wetectron.

The product of WSDDN's two softmaxes peaks on the most telling part of an object. Each score is
therefore first replaced by the sum of its neighbours' flattened scores: a box that many
well-scored proposals agree on is an object, one that few share is a part (ours; it takes
after proposal clusters, PCL).

Shape legend: R proposals of one image, B rows of scores (one per class, or per refinement and
class), k candidates, S seeds. Boxes in pixels.
"""

import numpy as np
import torch
from torchvision.ops import nms

from stages.common.geometry.boxes import pairwise_iou
from stages.wspn.params import SeedParams


def select_seeds(
    scores: torch.Tensor, boxes_xyxy: torch.Tensor, params: SeedParams
) -> list[torch.Tensor]:
    """Return the seeds of each of B columns of scores, best first, as row numbers int64 (S,).

    oicr: the best proposal. mist: of the best `top_fraction`, greedily each one that overlaps the
    seeds so far by less than `max_iou` and scores at least `min_relative_score` of the best, which
    is always a seed.

    The greedy choice is non-maximum suppression of the candidates, whose kernel takes one launch
    where a loop over them takes hundreds. It suppresses what overlaps by more than its threshold,
    here by as much as `max_iou`: the threshold is the next smaller number.

    Args:
        scores: agreed scores (R, B), R >= 1.
        boxes_xyxy: the proposals, float32 (R, 4).
        params: section `wspn.seeds`.
    """
    count = 1 if params.select == "oicr" else max(1, round(params.top_fraction * len(scores)))
    ranked, order = scores.sort(dim=0, descending=True, stable=True)
    ranked, order = ranked[:count].T, order[:count].T  # (B, k)
    # Ranked scores fall, so those that are good enough come first.
    numbers = (ranked >= params.min_relative_score * ranked[:, :1]).sum(1).tolist()
    below = float(np.nextafter(np.float32(params.max_iou), np.float32(0)))
    turns = torch.arange(count, 0, -1, device=scores.device, dtype=boxes_xyxy.dtype)
    seeds = []
    for rows, number in zip(order, numbers, strict=True):
        candidates = rows[:number]
        seeds.append(candidates[nms(boxes_xyxy[candidates], turns[:number], below)])
    return seeds


def match_seeds(boxes_xyxy: np.ndarray, seeds_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (IoU with the nearest seed (R,), that seed's box (R, 4)); S >= 1."""
    overlaps = pairwise_iou(boxes_xyxy, seeds_xyxy)
    return overlaps.max(axis=1), seeds_xyxy[overlaps.argmax(axis=1)]
