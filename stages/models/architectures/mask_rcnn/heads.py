"""Region heads of Mask R-CNN: torchvision's, made class-agnostic and open-vocabulary.

Shape legend: N images, R regions, D channels of a level, F features of a region, C classes, V
classes of a vocabulary, S cells per side of a region, M cells per side of a mask. Boxes are xyxy in
pixels of the resized image. Targets as in stages.models.detection.detector.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch import nn
from torch.nn import functional
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import clip_boxes_to_image

from stages.models.backbones.roi_align import PyramidPooling
from stages.models.detection.detector import IGNORED, LossSettings, Targets, lie_in
from stages.models.detection.hourglass_head import HourglassHead, Levels
from stages.models.detection.mask_targets import mask_targets
from stages.models.detection.params import InferenceParams
from stages.models.detection.region_hooks import SampledRegions
from stages.models.detection.suppression import suppress
from stages.models.detection.text_classifier import TextClassifier, classification_loss


class MaskHead(nn.Sequential):
    """Convolutions, upsampling by two, and one class-agnostic mask per region."""

    def __init__(self, inputs: int, channels: int, layers: int) -> None:
        """Take maps of `inputs` channels; C4 has no `layers` before the upsampling."""
        convolutions = [
            module
            for k in range(layers)
            for module in (
                nn.Conv2d(channels if k else inputs, channels, 3, 1, 1),
                nn.ReLU(inplace=True),
            )
        ]
        super().__init__(
            *convolutions,
            # A transposed 2×2 convolution of stride 2, in a form ten times as fast on a CPU.
            nn.Conv2d(channels if layers else inputs, 4 * channels, 1),
            nn.PixelShuffle(2),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, 1, 1),
        )


class RegionMeans(nn.Module):
    """Reads one vector per box for the instance embedding of an hourglass.

    It is the mean over the cells of the box's region, pooled as for the box head. Ours, because
    Mask R-CNN has no locations: the poster does not say what its Mask R-CNN* takes.
    """

    def __init__(self, pooling: PyramidPooling) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(
        self, levels: Levels, boxes_xyxy: list[Float[torch.Tensor, "_ 4"]]
    ) -> Float[torch.Tensor, "R D"]:
        """Return the vectors of all boxes, in order."""
        named = {str(number): level for number, level in enumerate(levels)}
        return self.pooling(named, boxes_xyxy, []).mean((2, 3))


class PositiveRegions(NamedTuple):
    """The sampled regions that lie on an object.

    Attributes:
        boxes: of each image, xyxy (n, 4).
        objects: the index of each region's object among those of its image, (n,).
        maps: pooled for the box head, of the R regions of all images.
        weights: of their mask losses, (R,); all 1 if None.
    """

    boxes: list[torch.Tensor]
    objects: list[torch.Tensor]
    maps: torch.Tensor
    weights: torch.Tensor | None


class RegionHeads(RoIHeads):
    """Class-agnostic box and mask heads, and the text classifier beside them.

    Matching, sampling and box coding are the parent's. Its losses and post-processing expect deltas
    and masks per class; here each region has one of each. Without a `mask_roi_pool`, masks are
    predicted from the maps that are pooled for boxes.
    """

    box_predictor: nn.ModuleDict  # {"classifier": TextClassifier, "deltas": nn.Linear}
    smooth_l1_beta: float

    def assign_targets_to_proposals(
        self,
        proposals: list[torch.Tensor],
        gt_boxes: list[torch.Tensor],
        gt_labels: list[torch.Tensor],
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return objects and labels of the regions; -1 for what lies in a box to ignore."""
        known = [labels != IGNORED for labels in gt_labels]
        objects, classes = (
            [own[kept] for own, kept in zip(values, known, strict=True)]
            for values in (gt_boxes, gt_labels)
        )
        matched, labels = super().assign_targets_to_proposals(proposals, objects, classes)
        for own, regions, boxes, kept in zip(labels, proposals, gt_boxes, known, strict=True):
            own[lie_in(regions, boxes[~kept]) & (own == 0)] = IGNORED
        return matched, labels

    def describe(
        self,
        features: dict,
        proposals: list[Float[torch.Tensor, "_ 4"]],
        image_sizes: list[tuple[int, int]],
    ) -> tuple[Float[torch.Tensor, "R F"], Float32[torch.Tensor, "R 4"]]:
        """Return features of the regions (R, F) and box deltas (R, 4)."""
        return self._describe(self.box_roi_pool(features, proposals, image_sizes))

    def _describe(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        regions = self.box_head(maps)
        return regions, self.box_predictor["deltas"](regions).float()

    def losses(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[torch.Tensor],
        batch: ImageList,
        targets: Targets,
        settings: LossSettings,
    ) -> dict[str, torch.Tensor]:
        """Return the losses of regions sampled from the proposals.

        They are "classification", "box", "mask", and the settings' `region_losses` by their names.
        """
        image_sizes = batch.image_sizes
        proposals, matched, labels, goals = self.select_training_samples(proposals, targets)
        maps = self.box_roi_pool(features, proposals, image_sizes)
        regions, deltas = self._describe(maps)
        classifier = self.box_predictor["classifier"]
        assert isinstance(classifier, TextClassifier)
        all_labels = torch.cat(labels)
        positive = all_labels > 0
        weights = _region_weights(targets, matched, positive)
        # As torchvision's fastrcnn_loss, but there are no deltas per class to select from.
        box = functional.smooth_l1_loss(
            deltas[positive],
            torch.cat(goals)[positive],
            beta=self.smooth_l1_beta,
            reduction="sum" if weights is None else "none",
        )
        if weights is not None:
            box = (box.sum(1) * weights[positive, 1]).sum()
        inside = [boxes[label > 0] for boxes, label in zip(proposals, labels, strict=True)]
        objects = [index[label > 0] for index, label in zip(matched, labels, strict=True)]
        mask_weights = None if weights is None else weights[positive, 2]
        positives = PositiveRegions(inside, objects, maps[positive], mask_weights)
        mask_loss = self._mask_loss(features, image_sizes, targets, positives)
        class_logits = classifier(regions, settings.vocabulary)
        sampled = SampledRegions(
            batch.tensors, proposals, all_labels, regions, class_logits, classifier
        )
        return {
            **{name: loss(sampled) for name, loss in settings.region_losses.items()},
            "classification": classification_loss(
                class_logits,
                all_labels,
                settings.background_weight,
                None if weights is None else weights[:, 0],
            ),
            "box": box / max(1, len(all_labels)),
            "mask": mask_loss,
        }

    def _mask_loss(
        self,
        features: dict[str, torch.Tensor],
        image_sizes: list[tuple[int, int]],
        targets: Targets,
        positives: PositiveRegions,
    ) -> torch.Tensor:
        if self.mask_roi_pool is None:
            logits = self.mask_head(positives.maps)
        else:
            logits = self.mask_head(self.mask_roi_pool(features, positives.boxes, image_sizes))
        masks = [target["masks"] for target in targets]
        return mask_head_loss(
            logits[:, 0].float(), positives.boxes, masks, positives.objects, positives.weights
        )

    def count_samples(self, proposals: list[torch.Tensor], targets: Targets) -> None:
        """Draw what `losses` draws, so that the sampler's context counts it."""
        self.select_training_samples(proposals, targets)

    def mask_loss_fraction(self) -> float:
        """Return the fraction of the batch's mask loss that `losses` is yet to be multiplied by."""
        return self.fg_bg_sampler.loss_fraction(1.0, 0.0)

    def detect(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[torch.Tensor],
        image_sizes: list[tuple[int, int]],
        vocabularies: Sequence[Sequence[int]],
        inference: InferenceParams,
    ) -> list[Targets]:
        """Return detections per vocabulary and image, best score first.

        Each has "boxes" (n, 4), "labels" (class indices of the embeddings), "scores" in [0, 1] and
        "masks" (n, M, M), probabilities in the frame of the box. Proposals are pooled once for all
        vocabularies; only softmax, suppression per class and masks are computed for each.
        """
        regions, deltas = self.describe(features, proposals, image_sizes)
        counts = [len(boxes) for boxes in proposals]
        boxes = self.box_coder.decode(deltas, proposals)[:, 0].split(counts)
        found = []
        for vocabulary in vocabularies:
            logits = self.box_predictor["classifier"](regions, vocabulary)
            scores = logits.softmax(1)[:, 1:].split(counts)
            detections = [
                _detections(clip_boxes_to_image(b, size), s, vocabulary, inference)
                for b, s, size in zip(boxes, scores, image_sizes, strict=True)
            ]
            detected = [d["boxes"] for d in detections]
            masks = self._outline(features, detected, image_sizes).sigmoid()
            per_image = masks.split([len(boxes) for boxes in detected])
            found.append(
                [{**d, "masks": mask} for d, mask in zip(detections, per_image, strict=True)]
            )
        return found

    def _outline(
        self,
        features: dict[str, torch.Tensor],
        boxes_xyxy: list[torch.Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> torch.Tensor:
        """Return mask logits (R, M, M) in the frame of the boxes."""
        pool = self.box_roi_pool if self.mask_roi_pool is None else self.mask_roi_pool
        return self.mask_head(pool(features, boxes_xyxy, image_sizes))[:, 0]


class HourglassRegionHeads(RegionHeads):
    """Region heads with an hourglass for masks.

    It crops the maps itself, and learns in the objects' given boxes instead of sampled regions.
    Source: Deep-MAC's Mask R-CNN, which also learns masks in given boxes.
    """

    mask_head: HourglassHead

    def _mask_loss(
        self,
        features: dict[str, torch.Tensor],
        image_sizes: list[tuple[int, int]],
        targets: Targets,
        positives: PositiveRegions,
    ) -> torch.Tensor:
        levels = list(features.values())
        return self.mask_head.loss(levels, targets, *self._order_objects(targets))

    def _order_objects(self, targets: Targets) -> tuple[list[torch.Tensor], list[int]]:
        """Return a random order of each image's objects, and their numbers in the whole batch."""
        context = self.fg_bg_sampler.context
        orders, batch_counts = context.orders([(len(target["masks"]), 0) for target in targets])
        return [order for order, _ in orders], [objects for objects, _ in batch_counts]

    def count_samples(self, proposals: list[torch.Tensor], targets: Targets) -> None:
        """As the parent, with the objects that learn masks."""
        super().count_samples(proposals, targets)
        self._order_objects(targets)

    def mask_loss_fraction(self) -> float:
        """Return 1: the loss is already divided by the number of the whole batch's objects."""
        return 1.0

    def _outline(
        self,
        features: dict[str, torch.Tensor],
        boxes_xyxy: list[torch.Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> torch.Tensor:
        return self.mask_head(list(features.values()), boxes_xyxy)


def mask_head_loss(
    logits: Float[torch.Tensor, "R M M"],
    boxes_xyxy: list[Float[torch.Tensor, "_ 4"]],
    masks: list[UInt8[torch.Tensor, "_ _ _"]],
    objects: list[Int[torch.Tensor, " _"]],
    weights: Float[torch.Tensor, " R"] | None = None,
) -> Float[torch.Tensor, ""]:
    """Return the mean binary cross-entropy of mask logits in the frame of the boxes; 0 for none.

    Args:
        logits: of the regions of all images.
        boxes_xyxy: the regions of each image.
        masks: 0 or 1, (m, H, W) of each image.
        objects: the index of each region's object among the masks of its image.
        weights: factors of the regions' terms; all 1 if None.
    """
    goals = mask_targets(boxes_xyxy, masks, objects, logits.shape[-1])
    if not len(goals):
        return logits.new_zeros(())  # no gradient passes through a PixelShuffle of no regions
    if weights is not None:
        weights = weights[:, None, None]
    return functional.binary_cross_entropy_with_logits(logits, goals, weights)


def _region_weights(
    targets: Targets, matched: list[torch.Tensor], positive: torch.Tensor
) -> torch.Tensor | None:
    """Return (R, 3): the class, box and mask weights of each region's object; 1 for background."""
    if "weights" not in targets[0]:
        return None
    pairs = zip(targets, matched, strict=True)
    weights = torch.cat([target["weights"][index] for target, index in pairs])
    return torch.where(positive[:, None], weights, 1.0)


class StagePooling(nn.Module):
    """Pools regions, then runs the last stage of a residual network on each."""

    def __init__(self, pool: nn.Module, stage: nn.Module) -> None:
        """Chain `pool`, with the signature that RoIHeads calls, and `stage`, from maps to maps."""
        super().__init__()
        self.pool, self.stage = pool, stage

    def forward(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[Float[torch.Tensor, "_ 4"]],
        image_sizes: list[tuple[int, int]],
    ) -> Float[torch.Tensor, "R F S S"]:
        """Return the maps of all regions."""
        return self.stage(self.pool(features, proposals, image_sizes))


class StageRegionHeads(RegionHeads):
    """Region heads on `StagePooling`, as in a C4 Faster R-CNN."""

    def describe(
        self,
        features: dict,
        proposals: list[Float[torch.Tensor, "_ 4"]],
        image_sizes: list[tuple[int, int]],
    ) -> tuple[Float[torch.Tensor, "R F"], Float32[torch.Tensor, "R 4"]]:
        """As the parent, but one image at a time: the maps of 1000 regions take 1.6 GB."""
        each = [
            super(StageRegionHeads, self).describe(
                {name: level[n : n + 1] for name, level in features.items()}, [boxes], [size]
            )
            for n, (boxes, size) in enumerate(zip(proposals, image_sizes, strict=True))
        ]
        return torch.cat([regions for regions, _ in each]), torch.cat(
            [deltas for _, deltas in each]
        )


class HourglassStageRegionHeads(HourglassRegionHeads, StageRegionHeads):
    """Region heads on `StagePooling`, with an hourglass for masks."""


def _detections(
    boxes_xyxy: torch.Tensor,
    scores: torch.Tensor,
    vocabulary: Sequence[int],
    inference: InferenceParams,
) -> dict[str, torch.Tensor]:
    """Turn boxes (R, 4) and scores (R, V) of one image into its detections."""
    usable = ((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) >= 1e-2).all(1)
    region, position = torch.where((scores > inference.score_threshold) & usable[:, None])
    scores = scores[region, position]
    return suppress(boxes_xyxy[region], scores, position, vocabulary, inference)
