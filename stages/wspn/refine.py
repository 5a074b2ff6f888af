"""Losses of a proposal network that is trained from end to end: eq. 5 and MIST's refinements.

Every refinement learns from seeds of the scores before it: the first from W of eq. 5, the next ones
from the refinement before. A proposal takes class, regression target and weight of the seed that it
overlaps most, and is background if it overlaps none enough. Source: wetectron (MIST).

Shape legend: R proposals of one image, C base classes, K refinements. Boxes in pixels of the
image; regression offsets do not depend on its scale.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional
from torchvision.ops import box_iou

from stages.common.geometry.box_coder import encode_boxes
from stages.common.runtime.devices import send
from stages.models.proposals.base import class_scores, consensus
from stages.models.proposals.imagenet import Outputs
from stages.wspn.classify import image_label_loss
from stages.wspn.localise import quality_targets
from stages.wspn.params import EndToEndParams, LocaliseParams, SeedParams
from stages.wspn.seeds import select_seeds

ROWS_AT_ONCE = 128  # of IoUs: what a processor's cache holds is 2.6 times as fast as 4000


class RefinementTargets(NamedTuple):
    """What the seeds of one scoring teach the proposals of an image."""

    classes: torch.Tensor  # int64 (R,), 0 is background, 1 + class index else
    weights: torch.Tensor  # float32 (R,), the score of the proposal's seed
    offsets: torch.Tensor  # float32 (R, 4), to that seed
    overlap: torch.Tensor  # float32 (R,), IoU with it


@torch.no_grad()
def make_targets(
    scorings: Sequence[torch.Tensor],
    boxes_xyxy: torch.Tensor,
    labels: np.ndarray,
    seeds: SeedParams,
    min_iou: float,
) -> list[RefinementTargets]:
    """Return what the seeds of each scoring teach; nothing of an image without labels.

    A scoring does not depend on what the one before it teaches, so the seeds of all are found at
    once.

    Args:
        scorings: K of scores (R, C) in [0, 1].
        boxes_xyxy: (R, 4), float32, on the device of the scores.
        labels: (C,), 1 if the image shows the class.
        seeds: how seeds are chosen.
        min_iou: a proposal that overlaps its seed less is background.
    """
    shown = np.flatnonzero(labels)
    if not len(shown):
        return []
    device, count = boxes_xyxy.device, len(shown)
    overlaps = torch.cat([box_iou(p, boxes_xyxy) for p in boxes_xyxy.split(ROWS_AT_ONCE)])
    named = send(torch.from_numpy(shown), device)
    scores = torch.cat([scoring[:, named] for scoring in scorings], dim=1)
    agreed = consensus(scores, overlaps, seeds.neighbour_iou, seeds.power)
    found = select_seeds(agreed, boxes_xyxy, seeds)
    targets = []
    for turn, scoring in enumerate(scorings):
        by_class = found[turn * count : (turn + 1) * count]
        rows = torch.cat(by_class)
        classes = send(torch.from_numpy(np.repeat(shown, [*map(len, by_class)])), device)
        overlap, nearest = overlaps[rows].max(0)
        row, place = rows[nearest], classes[nearest]
        target = RefinementTargets(
            torch.where(overlap >= min_iou, 1 + place, 0),
            scoring[row, place],
            encode_boxes(boxes_xyxy, boxes_xyxy[row]),
            overlap,
        )
        targets.append(target)
    return targets


def refinement_loss(
    logits: torch.Tensor, offsets: torch.Tensor, target: RefinementTargets, regression_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (classification, regression) of logits (R, 1 + C) and offsets (R, 4).

    Both are weighted by the seeds' scores and divided by R.
    Source: Mask-free OVIS eq. 5, second term; wetectron's weights and β = 1.
    """
    classes, weights, target_offsets, _ = target
    classification = functional.cross_entropy(logits, classes, reduction="none") * weights
    # Background has weight 0 here: picking the other rows would wait for the device.
    weights = weights * (classes > 0)
    regression = (
        functional.smooth_l1_loss(offsets, target_offsets, reduction="none").sum(1) * weights
    )
    return classification.mean(), regression_weight * regression.mean()


def image_losses(
    outputs: Outputs,
    boxes_xyxy: torch.Tensor,
    labels: np.ndarray,
    training: EndToEndParams,
    seeds: SeedParams,
    localise: LocaliseParams,
) -> dict[str, torch.Tensor]:
    """Return the weighted losses of one image, to be added.

    An image that is labelled with no class has no seeds, and so the first loss only.

    Args:
        outputs: of the image's proposals.
        boxes_xyxy: those, float32 (R, 4), on the same device.
        labels: (C,).
        training: the weights.
        seeds: how seeds are chosen.
        localise: what they teach.
    """
    scores = class_scores(outputs.class_logits, outputs.detection_logits)
    wanted = send(torch.from_numpy(labels), scores.device).to(scores.dtype)
    losses = {"image_labels": training.image_weight * image_label_loss(scores, wanted)}
    scorings = [scores, *(logits.softmax(1)[:, 1:] for logits in outputs.refined_logits[:-1])]
    targets = make_targets(scorings, boxes_xyxy, labels, seeds, localise.regression_min_iou)
    if not targets:
        return losses
    refinements = zip(
        training.refinement_weights, outputs.refined_logits, outputs.offsets, targets, strict=True
    )
    for index, (weight, logits, offsets, target) in enumerate(refinements):
        classification, regression = refinement_loss(
            logits, offsets, target, localise.regression_weight
        )
        losses[f"classes_{index}"] = weight * classification
        losses[f"regression_{index}"] = weight * regression
    quality, has_quality = quality_targets(targets[-1].overlap, localise)
    quality_loss = functional.binary_cross_entropy_with_logits(
        outputs.quality_logits, quality, weight=has_quality.float(), reduction="mean"
    )
    losses["quality"] = training.quality_weight * quality_loss
    return losses
