"""Seeds: high-scoring proposals that stand for objects and give the other proposals their targets.

Mask-free OVIS eq. 5 has pseudo-regression targets t̂(u_i) for low-scoring proposals. The paper does
not say how the high-scoring ones are chosen; `oicr` and `mist` are wetectron's two ways.

The product of WSDDN's two softmaxes peaks on the most discriminative part of an object. Callers
therefore first replace each score by the sum of its neighbours' flattened scores (`consensus`): a
box that many well-scored proposals overlap is likely an object, a box that few overlap is likely a
part (ours; similar to proposal clusters, PCL).

Shape legend: R proposals of one image, B columns of scores (one per class, or per refinement and
class), k candidates, S seeds. Boxes in pixels.
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torchvision.ops import nms

from stages.common.geometry.boxes import pairwise_iou
from stages.wspn.params import SeedParams


def select_seeds(
    scores: Float[torch.Tensor, "R B"], boxes_xyxy: Float[torch.Tensor, "R 4"], params: SeedParams
) -> list[Int64[torch.Tensor, " _"]]:
    """Return the seeds of each of B columns of scores, best first, as row numbers.

    oicr: the best proposal. mist: from the best `top_fraction`, greedily each proposal whose IoU
    with all earlier seeds is below `max_iou` and whose score is at least `min_relative_score` times
    the best score. The best proposal is always a seed.

    The greedy choice is non-maximum suppression of the candidates: one kernel launch instead of the
    hundreds of a loop. `nms` suppresses an IoU above its threshold, but here an IoU equal to
    `max_iou` counts too, so the threshold is the next smaller float32.

    Args:
        scores: R >= 1, after `consensus`.
        boxes_xyxy: the proposals.
        params: section `wspn.seeds`.
    """
    count = 1 if params.select == "oicr" else max(1, round(params.top_fraction * len(scores)))
    ranked, order = scores.sort(dim=0, descending=True, stable=True)
    ranked, order = ranked[:count].T, order[:count].T  # (B, k)
    # Scores are sorted, so the sufficient ones come first.
    numbers = (ranked >= params.min_relative_score * ranked[:, :1]).sum(1).tolist()
    below = float(np.nextafter(np.float32(params.max_iou), np.float32(0)))
    turns = torch.arange(count, 0, -1, device=scores.device, dtype=boxes_xyxy.dtype)
    seeds = []
    for rows, number in zip(order, numbers, strict=True):
        candidates = rows[:number]
        seeds.append(candidates[nms(boxes_xyxy[candidates], turns[:number], below)])
    return seeds


def match_seeds(
    boxes_xyxy: Float[np.ndarray, "R 4"], seeds_xyxy: Float[np.ndarray, "S 4"]
) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, "R 4"]]:
    """Return the largest IoU of each box with a seed, and that seed's box; S >= 1."""
    overlaps = pairwise_iou(boxes_xyxy, seeds_xyxy)
    return overlaps.max(axis=1), seeds_xyxy[overlaps.argmax(axis=1)]
