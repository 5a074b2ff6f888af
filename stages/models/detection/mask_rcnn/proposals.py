"""Region proposals of Mask R-CNN: torchvision's network, which also knows boxes to ignore.

Shape legend: N images, A anchors a cell, H W cells of a level. Targets as in
stages.models.detection.detector.
"""

import torch
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import box_iou

from stages.models.detection.detector import IGNORED, Targets


class ProposalHead(RPNHead):
    """torchvision's head, whose results stay float32 under autocast.

    Boxes are decoded in the type of the deltas, and bfloat16 knows only every half pixel at 100.
    """

    def forward(self, x: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return objectness logits (N, A, H, W) and deltas (N, 4A, H, W) per level."""
        logits, deltas = super().forward(x)
        return [level.float() for level in logits], [level.float() for level in deltas]


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's region proposal network, which also knows boxes to ignore."""

    def assign_targets_to_anchors(
        self, anchors: list[torch.Tensor], targets: Targets
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return labels (1, 0, or -1 to leave out) and matched boxes of the anchors per picture."""
        known = [{"boxes": t["boxes"][t["labels"] != IGNORED]} for t in targets]
        labels, matched = super().assign_targets_to_anchors(anchors, known)
        for own, boxes, target in zip(labels, anchors, targets, strict=True):
            ignored = target["boxes"][target["labels"] == IGNORED]
            if len(ignored):
                near = box_iou(ignored, boxes).amax(0) >= self.proposal_matcher.low_threshold
                own[near & (own == 0)] = -1.0
        return labels, matched
