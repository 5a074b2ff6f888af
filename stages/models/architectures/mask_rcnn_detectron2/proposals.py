"""Backbone and proposal network built from detectron2's parts.

Shape legend: N images, A anchors per cell, H W cells of a level. Boxes are xyxy in pixels of the
resized image.
"""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY, Backbone
from detectron2.modeling.proposal_generator import RPN, RPN_HEAD_REGISTRY, StandardRPNHead
from detectron2.structures import Boxes, Instances, pairwise_iou

from stages.models.detection import backbones
from stages.models.detection.detector import IGNORED, lie_in


class LevelBackbone(Backbone):
    """A backbone of detection/backbones.py behind detectron2's interface: levels level0, …."""

    def __init__(self, network: backbones.Backbone, num_levels: int) -> None:
        """Take a network with `num_levels` maps, each of half the size of the one before."""
        super().__init__()
        self.network, self.num_levels = network, num_levels

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map normalised pixels (N, 3, H, W) to float32 levels from fine to coarse.

        They are float32 under autocast too: RoIAlign reads its boxes in the type of the map, and
        near 100 bfloat16 has steps of half a pixel.
        """
        levels = self.network(images).values()
        return {f"level{k}": level.float() for k, level in enumerate(levels)}

    @property
    def size_divisibility(self) -> int:
        """Return the number of which both sides of a batch must be multiples."""
        return self.network.strides[-1]

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each level."""
        finest = self.network.strides[0]
        return {
            f"level{k}": ShapeSpec(channels=self.network.out_channels, stride=finest << k)
            for k in range(self.num_levels)
        }

    @property
    def region_levels(self) -> list[str]:
        """Return the names of the levels from which regions are pooled."""
        return list(self.output_shape())[: len(self.network.strides)]


@RPN_HEAD_REGISTRY.register()
class Float32RPNHead(StandardRPNHead):
    """detectron2's head, with float32 results under autocast, because boxes are decoded in them."""

    def forward(self, features: list[torch.Tensor]) -> tuple[list[torch.Tensor], ...]:
        """Return objectness logits (N, A, H, W) and deltas (N, 4A, H, W) per level."""
        logits, deltas = super().forward(features)
        return [level.float() for level in logits], [level.float() for level in deltas]


@PROPOSAL_GENERATOR_REGISTRY.register()
class IgnoringRPN(RPN):
    """detectron2's region proposal network, with boxes to ignore (class -1)."""

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return labels (1, 0, or -1 to leave out) and matched boxes of the anchors per image."""
        all_anchors, labels, matched = Boxes.cat(anchors), [], []
        for instances in gt_instances:
            ignored = instances.gt_classes == IGNORED
            objects = instances.gt_boxes[~ignored]
            indices, image_labels = self.anchor_matcher(pairwise_iou(objects, all_anchors))
            left_out = lie_in(all_anchors.tensor, instances.gt_boxes[ignored].tensor)
            image_labels[left_out & (image_labels == 0)] = -1
            labels.append(self._subsample_labels(image_labels))
            matched.append(
                objects[indices].tensor if len(objects) else torch.zeros_like(all_anchors.tensor)
            )
        return labels, matched
