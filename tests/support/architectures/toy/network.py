"""The shortest architecture: every cell of one map is a region, and a mask fills its box."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from stages.models.detection.backbones import build_backbone
from stages.models.detection.detector import Detector, Prediction
from stages.models.detection.global_batch import BatchContext
from stages.models.detection.text_classifier import TextClassifier


class Network(Detector):
    classifier_name = "texts"

    def __init__(self, params, embeddings):
        super().__init__(params)
        self.backbone, _ = build_backbone(params.backbone)
        self.deltas = nn.Linear(self.backbone.out_channels, 4)
        settings = params.classifier.model_dump()
        self.texts = TextClassifier(self.backbone.out_channels, embeddings, **settings)

    def parts(self):
        return {
            "trunk": self.backbone.trunk,
            "pyramid": self.backbone.pyramid,
            "heads": nn.ModuleList([self.texts, self.deltas]),
        }

    def losses(self, images, targets, settings, context=None):
        context = context or BatchContext()
        common_hw = context.common_hw(self.padded_hw(images, context))
        regions, centres = self._regions(images, common_hw)
        objects = [self._objects(centres, target) for target in targets]
        labels = torch.cat([labels for labels, _ in objects])
        _, batch_counts = context.orders([(int((own > 0).sum()), 0) for own, _ in objects])
        count = max(1, sum(positives for positives, _ in batch_counts))
        logits = self.texts(regions.flatten(0, 1), settings.vocabulary)
        boxes = self._boxes(regions, centres).flatten(0, 1)[labels > 0]
        goals = torch.cat([goals for _, goals in objects])[labels > 0]
        return {
            "classification": functional.cross_entropy(logits, labels, reduction="sum") / count,
            "box": (boxes - goals).abs().sum() / count,
        }

    def count_samples(self, images, targets, context):
        centres = self._centres(context.common_hw(self.padded_hw(images, context)))
        found = [self._objects(centres, target)[0] for target in targets]
        context.orders([(int((labels > 0).sum()), 0) for labels in found])

    def padded_hw(self, images, context):
        sizes = torch.tensor([image.shape[-2:] for image in images]).amax(0)
        coarsest = self.backbone.strides[-1]
        return tuple((-(-sizes // coarsest) * coarsest).tolist())

    def detect(self, images, vocabularies, inference):
        regions, centres = self._regions(images, self.padded_hw(images, BatchContext()))
        boxes = self._boxes(regions, centres)
        return [
            [
                self._prediction(
                    self.texts(own, vocabulary), xyxy, vocabulary, image.shape[-2:], inference
                )
                for own, xyxy, image in zip(regions, boxes, images, strict=True)
            ]
            for vocabulary in vocabularies
        ]

    def _regions(self, images, hw):
        batch = images[0].new_zeros(len(images), 3, *hw)
        for row, image in zip(batch, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image
        level = self.backbone(batch)["0"]
        return level.flatten(2).transpose(1, 2).float(), self._centres(hw)

    def _centres(self, hw):
        stride = self.backbone.strides[0]
        y, x = ((torch.arange(side // stride) + 0.5) * stride for side in hw)
        return torch.cartesian_prod(y, x).flip(1)

    def _objects(self, centres, target):
        """Return each cell's label and the box of its object: the first one that it lies in."""
        boxes = target["boxes"]
        inside = ((centres[:, None] > boxes[:, :2]) & (centres[:, None] < boxes[:, 2:])).all(2)
        first = inside.int().argmax(1)
        return target["labels"][first].clamp(0) * inside.any(1), boxes[first]

    def _boxes(self, regions, centres):
        sides = self.deltas(regions).exp() * self.backbone.strides[0]
        return torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], -1)

    def _prediction(self, logits, boxes, vocabulary, hw, inference):
        scores, position = logits.softmax(1)[:, 1:].max(1)
        best = scores.argsort(descending=True)[: inference.detections_per_image]
        boxes = boxes[best].clamp(0, max(hw)).numpy()
        masks = np.zeros((len(best), *hw), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.round().astype(int), strict=True):
            mask[y0:y1, x0:x1] = True
        labels = torch.tensor(list(vocabulary))[position[best]].numpy()
        return Prediction(boxes, labels, scores[best].numpy(), masks)
