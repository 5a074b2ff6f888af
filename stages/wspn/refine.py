"""Losses of a proposal network that is trained from end to end: eq. 5 and MIST's refinements.

Every refinement learns from seeds of the scores before it: the first from W of eq. 5, the next ones
from the refinement before. A proposal takes class, regression target and weight of the seed that it
overlaps most, and is background if it overlaps none enough. Source: wetectron (MIST).

Shape legend: R proposals of one picture, C base classes, K refinements. Boxes in pixels of the
picture; regression offsets do not depend on its scale.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from stages.common.box_regression import encode_boxes
from stages.common.boxes import pairwise_iou
from stages.models.wspn import class_scores
from stages.models.wspn_imagenet import Outputs
from stages.wspn.classify import image_label_loss
from stages.wspn.localise import quality_targets
from stages.wspn.params import EndToEndParams, LocaliseParams, SeedParams
from stages.wspn.seeds import class_seeds


class Lesson(NamedTuple):
    """What the seeds of one scoring teach the proposals of a picture."""

    classes: torch.Tensor  # int64 (R,), 0 is background, 1 + class index else
    weights: torch.Tensor  # float32 (R,), the score of the proposal's seed
    offsets: torch.Tensor  # float32 (R, 4), to that seed
    overlap: np.ndarray  # float32 (R,), IoU with it


def make_lesson(
    scores: np.ndarray,
    boxes_xyxy: np.ndarray,
    overlaps: np.ndarray,
    labels: np.ndarray,
    seeds: SeedParams,
    min_iou: float,
) -> Lesson | None:
    """Return what the scores' seeds teach, or None for a picture that is labelled with no class.

    Args:
        scores: (R, C) in [0, 1].
        boxes_xyxy: (R, 4).
        overlaps: their IoU (R, R).
        labels: (C,), 1 if the picture shows the class.
        seeds: how seeds are chosen.
        min_iou: a proposal that overlaps its seed less is background.
    """
    found = class_seeds(scores, overlaps, labels, seeds)
    if not found:
        return None
    rows, places = np.array(found).T
    nearest = overlaps[:, rows].argmax(1)
    overlap = overlaps[np.arange(len(overlaps)), rows[nearest]]
    classes = np.where(overlap >= min_iou, 1 + places[nearest], 0)
    return Lesson(
        torch.from_numpy(classes),
        torch.from_numpy(scores[rows, places][nearest].astype(np.float32)),
        encode_boxes(torch.from_numpy(boxes_xyxy), torch.from_numpy(boxes_xyxy[rows[nearest]])),
        overlap.astype(np.float32),
    )


def refinement_loss(
    logits: torch.Tensor, offsets: torch.Tensor, lesson: Lesson, regression_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (classification, regression) of logits (R, 1 + C) and offsets (R, 4).

    Both are weighted by the seeds' scores and divided by R.
    Source: Mask-free OVIS eq. 5, second term; wetectron's weights and β = 1.
    """
    classes, weights, targets = (x.to(logits.device) for x in lesson[:3])
    classification = functional.cross_entropy(logits, classes, reduction="none") * weights
    object_rows = classes > 0
    regression = functional.smooth_l1_loss(
        offsets[object_rows], targets[object_rows], reduction="none"
    )
    regression = (regression.sum(1) * weights[object_rows]).sum() / len(logits)
    return classification.mean(), regression_weight * regression


def picture_losses(
    outputs: Outputs,
    boxes_xyxy: np.ndarray,
    labels: np.ndarray,
    training: EndToEndParams,
    seeds: SeedParams,
    localise: LocaliseParams,
) -> dict[str, torch.Tensor]:
    """Return the weighted losses of one picture, to be added.

    A picture that is labelled with no class has no seeds, and so the first loss only.

    Args:
        outputs: of the picture's proposals.
        boxes_xyxy: those, float32 (R, 4).
        labels: (C,).
        training: the weights.
        seeds: how seeds are chosen.
        localise: what they teach.
    """
    outputs = Outputs(*(_float(part) for part in outputs))
    scores = class_scores(outputs.class_logits, outputs.detection_logits)
    wanted = torch.from_numpy(labels).to(scores)
    losses = {"image_labels": training.image_weight * image_label_loss(scores, wanted)}
    overlaps = pairwise_iou(boxes_xyxy, boxes_xyxy)
    refinements = zip(
        training.refinement_weights, outputs.refined_logits, outputs.offsets, strict=True
    )
    for index, (weight, logits, offsets) in enumerate(refinements):
        lesson = make_lesson(
            scores.detach().cpu().numpy(),
            boxes_xyxy,
            overlaps,
            labels,
            seeds,
            localise.regression_min_iou,
        )
        if lesson is None:
            return losses
        classification, regression = refinement_loss(
            logits, offsets, lesson, localise.regression_weight
        )
        losses[f"classes_{index}"] = weight * classification
        losses[f"regression_{index}"] = weight * regression
        scores = logits.softmax(1)[:, 1:]
    quality, judged = (
        torch.from_numpy(x).to(scores.device) for x in quality_targets(lesson.overlap, localise)
    )
    quality_loss = functional.binary_cross_entropy_with_logits(
        outputs.quality_logits[judged], quality[judged], reduction="sum"
    )
    losses["quality"] = training.quality_weight * quality_loss / len(quality)
    return losses


def _float(part: torch.Tensor | list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    """Return 16-bit outputs with 32 bits: losses and softmaxes are not taken in half precision."""
    return [x.float() for x in part] if isinstance(part, list) else part.float()
