"""The class part of the proposal network as a detector: what image labels alone can teach.

WSDDN, the first row of Mask-free OVIS's table 1. Shape legend: R proposals of a picture, C classes.
Boxes in pixels of the picture.
"""

import numpy as np
import torch
from torchvision.ops import batched_nms

from stages.models.wspn import Wspn, class_scores
from stages.models.wspn_input import network_input


@torch.no_grad()
def detect_classes(
    model: Wspn, image: np.ndarray, boxes_xyxy: np.ndarray, nms_iou: float, max_detections: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the picture's detections, best first: boxes (n, 4), class indices (n,), scores (n,).

    The score of box and class is W of eq. 5: softmax over classes times softmax over proposals.

    Args:
        model: trained with the labels of the classes wanted.
        image: uint8 (H, W, 3).
        boxes_xyxy: proposals float32 (R, 4).
        nms_iou: of the suppression within each class.
        max_detections: per picture.
    """
    pixels, scale = network_input(image, model.config.image_side)
    maps = model.feature_maps(pixels)
    scaled = torch.from_numpy(boxes_xyxy * scale).to(model.device)
    scores = class_scores(*model.class_logits(model.appearance(maps, scaled))).cpu()
    count, classes = scores.shape
    boxes = torch.from_numpy(boxes_xyxy).repeat_interleave(classes, dim=0)
    labels = torch.arange(classes).repeat(count)
    kept = batched_nms(boxes, scores.flatten(), labels, nms_iou)[:max_detections]
    return boxes[kept].numpy(), labels[kept].numpy(), scores.flatten()[kept].numpy()
