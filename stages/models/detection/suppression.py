"""The last step of detecting, whatever scores the boxes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torchvision.ops import batched_nms

from stages.models.detection.params import InferenceParams


def suppress(
    boxes_xyxy: Float[torch.Tensor, "R 4"],
    scores: Float[torch.Tensor, " R"],
    position: Int[torch.Tensor, " R"],
    vocabulary: Sequence[int],
    inference: InferenceParams,
) -> dict[str, torch.Tensor]:
    """Return the "boxes", "labels" and "scores" that remain in an image, best score first.

    Args:
        boxes_xyxy: the candidates, in any frame.
        scores: of the candidates.
        position: of each candidate's class in the vocabulary; only boxes of one class suppress
            each other.
        vocabulary: class indices of the embeddings.
        inference: the IoU threshold, and how many boxes remain.
    """
    kept = batched_nms(boxes_xyxy, scores, position, inference.nms_iou)
    kept = kept[: inference.detections_per_image]
    labels = torch.tensor(list(vocabulary), device=boxes_xyxy.device)[position[kept]]
    return {"boxes": boxes_xyxy[kept], "labels": labels, "scores": scores[kept]}
