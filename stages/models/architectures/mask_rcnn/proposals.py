"""The proposal network of Mask R-CNN: torchvision's, with boxes to ignore and weighted boxes.

Shape legend: N images, A anchors per cell, H W cells of a level. Targets as in
stages.models.detection.detector.
"""

import torch
from jaxtyping import Float
from torch.nn import functional
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import box_iou

from stages.models.detection.detector import IGNORED, Targets, lie_in
from stages.models.detection.params import ProposalLimits


class ProposalHead(RPNHead):
    """torchvision's head, with float32 results under autocast.

    Boxes are decoded in the type of the deltas, and near 100 bfloat16 has steps of half a pixel.
    """

    def forward(self, x: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return objectness logits (N, A, H, W) and deltas (N, 4A, H, W) per level."""
        logits, deltas = super().forward(x)
        return [level.float() for level in logits], [level.float() for level in deltas]


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's region proposal network, with boxes to ignore and weighted boxes.

    An object whose box weight is 0 is ignored too, by anchors that overlap it.
    """

    _anchor_weights: torch.Tensor | None = None  # of all anchors, from the last targets
    _limits: ProposalLimits  # of the images in which `propose` is called

    def propose(
        self, images: ImageList, features: dict[str, torch.Tensor], limits: ProposalLimits
    ) -> list[Float[torch.Tensor, "_ 4"]]:
        """Return the proposals of each image, best first; the network is in inference mode."""
        self._limits = limits
        return self(images, features)[0]

    def pre_nms_top_n(self) -> int:
        """Return how many boxes of each level enter suppression."""
        return super().pre_nms_top_n() if self.training else self._limits.pre_nms_top_n

    def post_nms_top_n(self) -> int:
        """Return how many boxes of an image remain."""
        return super().post_nms_top_n() if self.training else self._limits.post_nms_top_n

    def assign_targets_to_anchors(
        self, anchors: list[torch.Tensor], targets: Targets
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return labels (1, 0, or -1 to leave out) and matched boxes of the anchors per image."""
        taught = [_teaches_boxes(target) for target in targets]
        pairs = list(zip(targets, taught, strict=True))
        known = [{"boxes": target["boxes"][kept]} for target, kept in pairs]
        labels, matched = super().assign_targets_to_anchors(anchors, known)
        self._anchor_weights = None
        if "weights" in targets[0]:
            box_weights = [target["weights"][kept, 1] for target, kept in pairs]
            self._anchor_weights = torch.cat(
                [
                    weights[box_iou(objects["boxes"], boxes).argmax(0)]
                    if len(weights)
                    else boxes.new_ones(len(boxes))
                    for weights, objects, boxes in zip(box_weights, known, anchors, strict=True)
                ]
            )
        for image_labels, boxes, (target, kept) in zip(labels, anchors, pairs, strict=True):
            ignored = target["labels"] == IGNORED
            left_out = lie_in(boxes, target["boxes"][ignored])
            untaught = box_iou(target["boxes"][~kept & ~ignored], boxes)
            left_out |= (untaught >= self.proposal_matcher.low_threshold).any(0)
            image_labels[left_out & (image_labels == 0)] = -1.0
        return labels, matched

    def compute_loss(
        self,
        objectness: torch.Tensor,
        pred_bbox_deltas: torch.Tensor,
        labels: list[torch.Tensor],
        regression_targets: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return torchvision's objectness and box losses.

        The terms of a positive anchor are multiplied by its object's box weight. If no anchor can
        be sampled, because all lie in boxes to ignore, the losses are 0.
        """
        if all((image_labels < 0).all() for image_labels in labels):
            self.fg_bg_sampler(labels)  # other parts of the batch count this one
            return objectness.sum() * 0, pred_bbox_deltas.sum() * 0
        if self._anchor_weights is None:
            return super().compute_loss(objectness, pred_bbox_deltas, labels, regression_targets)
        positive, negative = (
            torch.where(torch.cat(masks))[0] for masks in self.fg_bg_sampler(labels)
        )
        sampled = torch.cat([positive, negative])
        weights = torch.where(torch.cat(labels) > 0, self._anchor_weights, 1.0)
        box = functional.smooth_l1_loss(
            pred_bbox_deltas[positive],
            torch.cat(regression_targets)[positive],
            beta=1 / 9,
            reduction="none",
        )
        classification = functional.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled], torch.cat(labels)[sampled], weights[sampled]
        )
        return classification, (box.sum(1) * weights[positive]).sum() / len(sampled)


def _teaches_boxes(target: dict[str, torch.Tensor]) -> torch.Tensor:
    known = target["labels"] != IGNORED
    return known & (target["weights"][:, 1] > 0) if "weights" in target else known
