"""FCOS-MO: FCOS with a deep hourglass mask head and a text-embedding classifier.

Source: "Scaling up Instance Segmentation using Approximately Localized Phrases" (BMVC 2022). Its
poster names these three parts and the reason for FCOS: it learns from the centres of boxes, so
imprecise boxes harm it less than they harm Mask R-CNN. The poster does not describe the rest of the
network; what is ours, and why, is said where it is done. FCOS: sections 3.1 to 3.3 of the journal
version. torchvision provides the transform, the focal and GIoU losses and the suppression.

- A class is learned near the centre of a box, with the object's class weight.
- Box and centerness are learned from every object with a box weight, whatever its class.
- A mask is learned in the object's given box. Without a mask weight, the object does not train the
  mask head.
- Where an image's targets have "annotated", locations without an object are negatives of these
  classes only. A location of an object is a negative of all other classes.

There are no region proposals: all scores are of classes.
Frames and targets as in stages.models.detection.detector.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import nn
from torch.nn import functional
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss

from stages.models.architectures.fcos_mo.heads import DenseHead, SigmoidClassifier, focal_terms
from stages.models.architectures.fcos_mo.locations import (
    LEFT_OUT,
    Grid,
    Locations,
    centerness,
    edge_distances,
)
from stages.models.architectures.fcos_mo.params import NetworkParams
from stages.models.detection.backbones import Backbone, build_backbone
from stages.models.detection.detector import (
    Detector,
    LossSettings,
    Prediction,
    Targets,
    object_weights,
)
from stages.models.detection.global_batch import BatchContext, Counts, MicroBatchContext
from stages.models.detection.hourglass_head import HourglassHead
from stages.models.detection.params import InferenceParams
from stages.models.detection.paste_masks import in_image
from stages.models.detection.suppression import suppress
from stages.models.detection.text_classifier import TextClassifier
from stages.models.detection.transform import ImageTransform


class Network(Detector):
    """The network; `losses` trains it, `detect` uses it."""

    classifier_name = "classifier_head.texts"
    params: NetworkParams
    backbone: Backbone

    def __init__(self, params: NetworkParams, embeddings: Float[torch.Tensor, "C D"]) -> None:
        """Build with fresh weights for classes with text embeddings."""
        super().__init__(params)
        self.backbone, _ = build_backbone(params.backbone)
        width, finest = self.backbone.out_channels, self.backbone.strides[0]
        strides = self.backbone.level_strides[params.locations.finest_level :]
        self.transform = ImageTransform(
            params.resize.shorter_side,
            params.resize.longer_side,
            list(self.backbone.pixel_mean),
            list(self.backbone.pixel_std),
            size_divisible=strides[-1],
        )
        self.grid = Grid(strides, self.backbone.central, params.locations.regressed_up_to)
        self.dense = DenseHead(width, params.tower_layers, strides)
        texts = TextClassifier(width, embeddings, **params.classifier.model_dump())
        self.classifier_head = SigmoidClassifier(texts, params.focal.prior)
        self.mask_head = HourglassHead(
            params.mask_head, width, finest, self.backbone.central, self.grid.read_centres
        )

    def parts(self) -> dict[str, nn.Module]:
        """Return the parts that training may freeze, by name."""
        return {
            "trunk": self.backbone.trunk,
            "pyramid": self.backbone.pyramid,
            "class_tower": self.dense.class_tower,
            "box_tower": self.dense.box_part(),
            "classifier": self.classifier_head,
            "mask_head": self.mask_head,
        }

    def losses(
        self,
        images: list[Float[torch.Tensor, "3 _ _"]],
        targets: Targets,
        settings: LossSettings,
        context: BatchContext | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the four losses.

        Those of locations are sums over the batch, divided by the number of locations that learn an
        object, as in FCOS. That of masks is a mean over the objects drawn.
        """
        context = context or BatchContext()
        batch, targets = self.transform.batch(images, targets, context)
        levels = list(self.backbone(batch.tensors).values())
        predictions = self.dense(levels[-len(self.grid.strides) :])
        logits = self.classifier_head(predictions.features, settings.vocabulary)
        locations = self.grid.locations(batch.tensors.shape[-2:], logits.device)
        objects = self._assign(locations, targets)
        orders, batch_counts = context.orders(_counts(objects, targets))
        num_positive = max(1, sum(positives for positives, _ in batch_counts))
        image_sums = [
            self._location_losses(locations, *of_image, settings.background_weight)
            for of_image in zip(
                logits,
                predictions.distances,
                predictions.centerness_logits,
                objects,
                targets,
                strict=True,
            )
        ]
        classification, box, centering = (
            sum(image_terms) / num_positive for image_terms in zip(*image_sums, strict=True)
        )
        mask = self.mask_head.loss(
            levels,
            targets,
            [order for _, order in orders],
            [num_objects for _, num_objects in batch_counts],
        )
        return {"classification": classification, "box": box, "centerness": centering, "mask": mask}

    def _location_losses(
        self,
        locations: Locations,
        logits: torch.Tensor,
        distances: torch.Tensor,
        centerness_logits: torch.Tensor,
        objects: torch.Tensor,
        target: dict[str, torch.Tensor],
        background_weight: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the sums of an image's class, box and centerness terms.

        Args:
            locations: of the image.
            logits: float32 (L, V).
            distances: (L, 4).
            centerness_logits: (L,).
            objects: int64 (L,), as `Locations.assign` returns them.
            target: of the image.
            background_weight: of a location that learns no object.
        """
        positive = objects >= 0
        index = objects[positive]
        class_weight, box_weight, _ = object_weights(target)[index].unbind(1)
        weight = logits.new_full((len(objects),), background_weight)
        weight[positive], weight[objects == LEFT_OUT] = class_weight, 0.0
        labels = torch.zeros_like(objects)
        labels[positive] = target["labels"][index]
        terms = focal_terms(logits, labels, self.params.focal, target.get("annotated"))
        goals = target["boxes"][index]
        overlap = generalized_box_iou_loss(locations.boxes(distances)[positive], goals)
        centering = functional.binary_cross_entropy_with_logits(
            centerness_logits[positive],
            centerness(edge_distances(locations.centres[positive], goals)),
            reduction="none",
        )
        return (terms * weight).sum(), (overlap * box_weight).sum(), (centering * box_weight).sum()

    @torch.no_grad()
    def count_samples(
        self, images: list[torch.Tensor], targets: Targets, context: MicroBatchContext
    ) -> None:
        """Let `context` record how many locations learn an object, and how many masks there are."""
        batch, targets = self.transform.batch(images, targets, context)
        locations = self.grid.locations(batch.tensors.shape[-2:], self.device)
        context.orders(_counts(self._assign(locations, targets), targets))

    def padded_hw(self, images: list[torch.Tensor], context: BatchContext) -> tuple[int, int]:
        """Return the size to which these images are resized and padded."""
        with context.resizing(len(images)):
            return tuple(self.transform(images)[0].tensors.shape[-2:])

    def _assign(self, locations: Locations, targets: Targets) -> list[torch.Tensor]:
        radius = self.params.locations.centre_radius
        return [locations.assign(t["boxes"], t["labels"], radius) for t in targets]

    def detect(
        self,
        images: list[Float[torch.Tensor, "3 _ _"]],
        vocabularies: Sequence[Sequence[int]],
        inference: InferenceParams,
    ) -> list[list[Prediction]]:
        """Return predictions per vocabulary and image; images are RGB in [0, 1].

        The score is the geometric mean of the class's probability and the centerness, as in
        detectron2's and torchvision's FCOS.
        """
        original = [(image.shape[1], image.shape[2]) for image in images]
        batch, _ = self.transform(images)
        levels = list(self.backbone(batch.tensors).values())
        predictions = self.dense(levels[-len(self.grid.strides) :])
        locations = self.grid.locations(batch.tensors.shape[-2:], batch.tensors.device)
        boxes = locations.boxes(predictions.distances)
        centering = predictions.centerness_logits.sigmoid()[..., None]
        found = []
        for vocabulary in vocabularies:
            probabilities = self.classifier_head(predictions.features, vocabulary).sigmoid()
            scores = (probabilities * centering).sqrt()
            detections = [
                _detections(
                    clip_boxes_to_image(b, hw), s, locations.per_level, vocabulary, inference
                )
                for b, s, hw in zip(boxes, scores, batch.image_sizes, strict=True)
            ]
            detected = [d["boxes"] for d in detections]
            masks = self.mask_head(levels, detected).sigmoid().split([len(b) for b in detected])
            found.append(
                [
                    in_image({**d, "masks": mask}, resized_hw, image_hw)
                    for d, mask, resized_hw, image_hw in zip(
                        detections, masks, batch.image_sizes, original, strict=True
                    )
                ]
            )
        return found


def _detections(
    boxes_xyxy: torch.Tensor,
    scores: torch.Tensor,
    per_level: list[int],
    vocabulary: Sequence[int],
    inference: InferenceParams,
) -> dict[str, torch.Tensor]:
    """Turn boxes (L, 4) and scores (L, V) of an image into its detections, best score first."""
    usable = ((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) >= 1e-2).all(1)
    scores = torch.where(usable[:, None], scores, 0.0)
    chosen, first = [], 0
    for level in scores.split(per_level):
        best = level.flatten().topk(min(inference.pre_nms_top_n, level.numel()))
        chosen.append(best.indices[best.values > inference.score_threshold] + first)
        first += level.numel()
    best = torch.cat(chosen)
    location, position = best // len(vocabulary), best % len(vocabulary)
    return suppress(boxes_xyxy[location], scores.flatten()[best], position, vocabulary, inference)


def _counts(objects: list[torch.Tensor], targets: Targets) -> Counts:
    """Return, per image, how many locations learn an object, and how many objects have a mask."""
    return [
        (int((learned >= 0).sum()), len(target["masks"]))
        for learned, target in zip(objects, targets, strict=True)
    ]
