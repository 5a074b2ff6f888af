"""The class part of the proposal network as a detector that learns from image labels alone.

WSDDN, the first row of Mask-free OVIS's table 1. Shape legend: R proposals of an image, C classes.
Boxes in pixels of the image.
"""

import numpy as np
import torch
from torchvision.ops import batched_nms

from stages.models.proposals.base import Wspn
from stages.models.proposals.views import ViewSettings


@torch.no_grad()
def detect_classes(
    model: Wspn,
    image: np.ndarray,
    boxes_xyxy: np.ndarray,
    views: ViewSettings,
    nms_iou: float,
    max_detections: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the image's detections, best first: boxes (n, 4), class indices (n,), scores (n,).

    The score of a box for a class is the network's: W of eq. 5, or the mean of its refinements.

    Args:
        model: a proposal network trained with labels of the wanted classes.
        image: uint8 (H, W, 3).
        boxes_xyxy: proposals float32 (R, 4).
        views: the views for an ImageNet backbone.
        nms_iou: threshold of the suppression within each class.
        max_detections: per image.
    """
    features = model.extract_features(image, views)
    boxes = torch.from_numpy(boxes_xyxy * features.scale).to(model.device)
    scores = model.score_classes(features, boxes).cpu()
    count, classes = scores.shape
    boxes = torch.from_numpy(boxes_xyxy).repeat_interleave(classes, dim=0)
    labels = torch.arange(classes).repeat(count)
    kept = batched_nms(boxes, scores.flatten(), labels, nms_iou)[:max_detections]
    return boxes[kept].numpy(), labels[kept].numpy(), scores.flatten()[kept].numpy()
