"""Losses of a proposal network that is trained end to end: eq. 5 and the refinements of MIST.

Each refinement learns from seeds chosen by earlier scores: the first by W of eq. 5, every other one
by the refinement before it. A proposal takes the class, regression target and weight of the seed
that it overlaps most; it is background if that overlap is too small. Source: wetectron (MIST).

Shape legend: R proposals of one image, C labelled classes, K refinements.
Frame: boxes in pixels of the image; regression offsets do not depend on its scale.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Num
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

ROWS_AT_ONCE = 128  # of the IoU matrix; they fit a CPU's cache, 2.6 times as fast as 4000 rows


class RefinementTargets(NamedTuple):
    """The targets that the seeds of one scoring give the proposals of an image."""

    classes: torch.Tensor  # int64 (R,), 0 is background, k + 1 is class k
    weights: torch.Tensor  # float32 (R,), score of the nearest seed
    offsets: torch.Tensor  # float32 (R, 4), from the proposal to that seed
    overlap: torch.Tensor  # float32 (R,), IoU with that seed


@torch.no_grad()
def refinement_targets(
    scorings: Sequence[Float[torch.Tensor, "R C"]],
    boxes_xyxy: Float32[torch.Tensor, "R 4"],
    labels: Num[np.ndarray, " C"],
    seeds: SeedParams,
    min_iou: float,
) -> list[RefinementTargets]:
    """Return the targets of each scoring; an empty list for an image without labels.

    No scoring depends on the targets of another, so the seeds of all are found at once.

    Args:
        scorings: K class scores in [0, 1].
        boxes_xyxy: on the device of the scores.
        labels: 1 if the image shows the class.
        seeds: how seeds are chosen.
        min_iou: a proposal whose nearest seed overlaps less is background.
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
    logits: Float[torch.Tensor, "R _"],
    offsets: Float[torch.Tensor, "R 4"],
    target: RefinementTargets,
    regression_weight: float,
) -> tuple[Float[torch.Tensor, ""], Float[torch.Tensor, ""]]:
    """Return the classification and regression losses of logits (R, 1 + C) and offsets.

    Each is a mean over R, weighted by the seeds' scores; only the regression is also multiplied by
    `regression_weight`, and background adds nothing to it.

    Source: the regression is the second term of Mask-free OVIS eq. 5; the weights and smooth-L1's
    β = 1 follow wetectron.
    """
    classes, weights, target_offsets, _ = target
    classification = functional.cross_entropy(logits, classes, reduction="none") * weights
    # Weight 0 for background: selecting the other rows would have to wait for the device.
    weights = weights * (classes > 0)
    regression = (
        functional.smooth_l1_loss(offsets, target_offsets, reduction="none").sum(1) * weights
    )
    return classification.mean(), regression_weight * regression.mean()


def image_losses(
    outputs: Outputs,
    boxes_xyxy: Float32[torch.Tensor, "R 4"],
    labels: Num[np.ndarray, " C"],
    training: EndToEndParams,
    seeds: SeedParams,
    localise: LocaliseParams,
) -> dict[str, Float[torch.Tensor, ""]]:
    """Return the weighted losses of one image; their sum is the image's loss.

    An image without labels has no seeds, so it has the loss of the image labels only.

    Args:
        outputs: of the image's proposals.
        boxes_xyxy: the proposals, on the same device.
        labels: 1 if the image shows the class.
        training: weights of the losses.
        seeds: how seeds are chosen.
        localise: how targets are made from seeds.
    """
    scores = class_scores(outputs.class_logits, outputs.detection_logits)
    wanted = send(torch.from_numpy(labels), scores.device).to(scores.dtype)
    losses = {"image_labels": training.image_weight * image_label_loss(scores, wanted)}
    scorings = [scores, *(logits.softmax(1)[:, 1:] for logits in outputs.refined_logits[:-1])]
    targets = refinement_targets(scorings, boxes_xyxy, labels, seeds, localise.regression_min_iou)
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
