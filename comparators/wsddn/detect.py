"""The proposal network's class scores as a detector that is trained on image labels alone.

Source: WSDDN, the first row of Mask-free OVIS's table 1. Shape legend: R proposals and n detections
of an image, C classes. Frame: pixels of the image; boxes x0, y0, x1, y1.
"""

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torchvision.ops import batched_nms

from stages.models.proposals.base import Wspn
from stages.models.proposals.params import ViewSettings


@torch.no_grad()
def detect_classes(
    model: Wspn,
    image: UInt8[np.ndarray, "H W 3"],
    boxes_xyxy: Float32[np.ndarray, "R 4"],
    views: ViewSettings,
    nms_iou: float,
    max_detections: int,
) -> tuple[Float32[np.ndarray, "n 4"], Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """Return the image's detections, best first.

    The score of a box for a class is W of eq. 5 of Mask-free OVIS, or the mean of the network's
    refinements.

    Args:
        model: a proposal network trained with image labels of the C classes.
        image: RGB.
        boxes_xyxy: proposals.
        views: used by networks with an ImageNet backbone.
        nms_iou: IoU threshold of the suppression within each class.
        max_detections: largest n.

    Returns:
        Boxes, class indices, and scores in [0, 1].
    """
    features = model.extract_features(image, views)
    boxes = torch.from_numpy(boxes_xyxy * features.scale).to(model.device)
    scores = model.score_classes(features, boxes).cpu()
    count, classes = scores.shape
    boxes = torch.from_numpy(boxes_xyxy).repeat_interleave(classes, dim=0)
    labels = torch.arange(classes).repeat(count)
    kept = batched_nms(boxes, scores.flatten(), labels, nms_iou)[:max_detections]
    return boxes[kept].numpy(), labels[kept].numpy(), scores.flatten()[kept].numpy()
