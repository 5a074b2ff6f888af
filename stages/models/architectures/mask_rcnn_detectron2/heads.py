"""Region heads built from detectron2's: class-agnostic boxes and masks, classes by their texts.

detectron2 counts classes from 0 and gives the background the number K of classes; -1 is ignored.
Its scores have the background in the last column, ours in the first.

Shape legend: R regions of all images, F features of a region, V classes of a vocabulary, M cells
per side of a mask.
"""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import (
    FastRCNNOutputLayers,
    Res5ROIHeads,
    ROIHeads,
    StandardROIHeads,
    build_box_head,
    select_foreground_proposals,
)
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import nn

from stages.models.backbones.roi_align import first_centre
from stages.models.detection.backbones import REGION_STAGE_CHANNELS
from stages.models.detection.detector import IGNORED, LossSettings, lie_in
from stages.models.detection.params import BackboneParams, InferenceParams
from stages.models.detection.text_classifier import TextClassifier, classification_loss

CANONICAL_LEVEL = 3  # of stride 8, from which regions of the canonical side are pooled
Predictions = tuple[torch.Tensor, torch.Tensor]


class TextBoxPredictor(FastRCNNOutputLayers):
    """detectron2's predictor with the text classifier in place of its linear one."""

    @configurable
    def __init__(self, *args: Any, classifier: TextClassifier, **settings: Any) -> None:
        """Take the classifier, and what the parent takes."""
        super().__init__(*args, **settings)
        del self.cls_score
        self.classifier = classifier

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Return the arguments for a configuration; the text embeddings are ones at first."""
        ours = cfg.MODEL.OPEN_VOCABULARY
        texts = torch.ones(cfg.MODEL.ROI_HEADS.NUM_CLASSES, ours.TEXT_WIDTH)
        classifier = TextClassifier(input_shape.channels, texts, **ours.CLASSIFIER)
        return {**super().from_config(cfg, input_shape), "classifier": classifier}

    def forward(
        self, regions: torch.Tensor, vocabulary: Sequence[int] | None = None
    ) -> Predictions:
        """Return logits (R, V + 1), background last, and deltas (R, 4) for features (R, F)."""
        logits = self.classifier(regions, vocabulary).roll(-1, dims=1)
        return logits, self.bbox_pred(regions).float()

    def losses(
        self, predictions: Predictions, proposals: list[Instances], background_weight: float
    ) -> dict[str, torch.Tensor]:
        """Return the "classification" and "box" losses of sampled proposals."""
        logits, deltas = predictions
        classes = torch.cat([p.gt_classes for p in proposals])
        labels = torch.where(classes == self.num_classes, 0, classes + 1)
        boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        fields = ["gt_boxes" if p.has("gt_boxes") else "proposal_boxes" for p in proposals]
        goals = torch.cat([p.get(field).tensor for p, field in zip(proposals, fields, strict=True)])
        return {
            "classification": classification_loss(
                logits.roll(1, dims=1), labels, background_weight
            ),
            "box": self.box_reg_loss(boxes, goals, deltas, classes),
        }


class OpenVocabularyHeads(ROIHeads):
    """Losses and detections of heads that take the vocabulary at each call."""

    def losses(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances],
        settings: LossSettings,
    ) -> dict[str, torch.Tensor]:
        """Return the "classification", "box" and "mask" losses of regions drawn from proposals."""
        pairs = [self.without_ignored(*own) for own in zip(proposals, targets, strict=True)]
        sampled = self.label_and_sample_proposals(*map(list, zip(*pairs, strict=True)))
        maps = self._pool(features, [p.proposal_boxes for p in sampled])
        predictions = self.box_predictor(self._describe(maps), settings.vocabulary)
        return {
            **self.box_predictor.losses(predictions, sampled, settings.background_weight),
            "mask": self._mask_losses(features, maps, sampled)["loss_mask"],
        }

    def without_ignored(
        self, proposals: Instances, target: Instances
    ) -> tuple[Instances, Instances]:
        """Return an image's objects, and the proposals that are of one or in no box to ignore."""
        ignored = target.gt_classes == IGNORED
        objects, regions = target[~ignored], proposals.proposal_boxes
        (_, least, _) = self.proposal_matcher.thresholds  # -inf, positive_iou, inf
        matches = (pairwise_iou(objects.gt_boxes, regions) >= least).any(0)
        left_out = lie_in(regions.tensor, target.gt_boxes[ignored].tensor) & ~matches
        return proposals[~left_out], objects

    def detect(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        vocabularies: Sequence[Sequence[int]],
        inference: InferenceParams,
    ) -> list[list[dict[str, torch.Tensor]]]:
        """Return detections per vocabulary and image, best score first.

        Each has "boxes" (n, 4), "labels" (class indices of the embeddings), "scores" in [0, 1] and
        "masks" (n, M, M), probabilities in the frame of the box.
        """
        self.box_predictor.test_score_thresh = inference.score_threshold
        self.box_predictor.test_nms_thresh = inference.nms_iou
        self.box_predictor.test_topk_per_image = inference.detections_per_image
        regions = self._describe(self._pool(features, [p.proposal_boxes for p in proposals]))
        found = []
        for vocabulary in vocabularies:
            predictions = self.box_predictor(regions, vocabulary)
            instances, _ = self.box_predictor.inference(predictions, proposals)
            instances = self.forward_with_given_boxes(features, instances)
            indices = torch.tensor(list(vocabulary), device=regions.device)
            found.append([_detections(image, indices) for image in instances])
        return found


@ROI_HEADS_REGISTRY.register()
class OpenVocabularyROIHeads(OpenVocabularyHeads, StandardROIHeads):
    """detectron2's heads for a pyramid."""

    @classmethod
    def _init_box_head(cls, config: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        levels, head = config.MODEL.ROI_HEADS.IN_FEATURES, config.MODEL.ROI_BOX_HEAD
        pooler = _make_pooler(config, head, [input_shape[name] for name in levels])
        side, channels = head.POOLER_RESOLUTION, input_shape[levels[0]].channels
        box_head = build_box_head(config, ShapeSpec(channels=channels, height=side, width=side))
        return {
            "box_in_features": levels,
            "box_pooler": pooler,
            "box_head": box_head,
            "box_predictor": TextBoxPredictor(config, box_head.output_shape),
        }

    @classmethod
    def _init_mask_head(cls, config: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        levels = [input_shape[name] for name in config.MODEL.ROI_HEADS.IN_FEATURES]
        pooler = _make_pooler(config, config.MODEL.ROI_MASK_HEAD, levels)
        return {**super()._init_mask_head(config, input_shape), "mask_pooler": pooler}

    def _pool(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        return self.box_pooler([features[name] for name in self.box_in_features], boxes)

    def _describe(self, maps: torch.Tensor) -> torch.Tensor:
        return self.box_head(maps)

    def _mask_losses(
        self, features: dict[str, torch.Tensor], maps: torch.Tensor, sampled: list[Instances]
    ) -> dict[str, torch.Tensor]:
        return self._forward_mask(features, sampled)


@ROI_HEADS_REGISTRY.register()
class OpenVocabularyRes5ROIHeads(OpenVocabularyHeads, Res5ROIHeads):
    """detectron2's heads for a C4 network; boxes and masks are predicted from the same maps."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Return the arguments for a configuration, except the stage `res5`."""
        described = ShapeSpec(channels=REGION_STAGE_CHANNELS, height=1, width=1)
        predictor = TextBoxPredictor(cfg, described)
        levels = [input_shape[name] for name in cfg.MODEL.ROI_HEADS.IN_FEATURES]
        pooler = _make_pooler(cfg, cfg.MODEL.ROI_BOX_HEAD, levels)
        settings = super().from_config(cfg, input_shape)
        return {**settings, "pooler": pooler, "box_predictor": predictor}

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Module, int]:
        return nn.Identity(), REGION_STAGE_CHANNELS  # the caller takes it from the trunk

    def _pool(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        return self._shared_roi_transform([features[name] for name in self.in_features], boxes)

    def _describe(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.mean((2, 3))

    def _mask_losses(
        self, features: dict[str, torch.Tensor], maps: torch.Tensor, sampled: list[Instances]
    ) -> dict[str, torch.Tensor]:
        objects, chosen = select_foreground_proposals(sampled, self.num_classes)
        return self.mask_head(maps[torch.cat(chosen)], objects)


def region_heads_class(params: BackboneParams) -> type[OpenVocabularyHeads]:
    """Return the class of the heads that fit a backbone."""
    return OpenVocabularyRes5ROIHeads if params.kind == "resnet50_c4" else OpenVocabularyROIHeads


class _ShiftedAlign(nn.Module):
    """RoIAlign of boxes shifted by some pixels, for cells that are not centred where it assumes."""

    def __init__(self, align: nn.Module, shift: float) -> None:
        super().__init__()
        self.align, self.shift = align, shift

    def forward(self, features: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        return self.align(features, rois + rois.new_tensor([0, *[self.shift] * 4]))


def _make_pooler(config: CfgNode, head: CfgNode, levels: list[ShapeSpec]) -> ROIPooler:
    """Return detectron2's pooler with our canonical side, for which it has no configuration key.

    ROIAlignV2 assumes that each cell is centred on the block of pixels that it stands for. For
    other grids, boxes are shifted.
    """
    ours = config.MODEL.OPEN_VOCABULARY
    pooler = ROIPooler(
        output_size=head.POOLER_RESOLUTION,
        scales=tuple(1 / level.stride for level in levels),
        sampling_ratio=head.POOLER_SAMPLING_RATIO,
        pooler_type=head.POOLER_TYPE,
        canonical_box_size=ours.CANONICAL_SIDE,
        canonical_level=CANONICAL_LEVEL,
    )
    for index, level in enumerate(levels):
        if shift := level.stride / 2 - first_centre(level.stride, ours.CENTRAL_CELLS):
            pooler.level_poolers[index] = _ShiftedAlign(pooler.level_poolers[index], shift)
    return pooler


def _detections(instances: Instances, indices: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "boxes": instances.pred_boxes.tensor,
        "labels": indices[instances.pred_classes],
        "scores": instances.scores,
        "masks": instances.pred_masks[:, 0],
    }
