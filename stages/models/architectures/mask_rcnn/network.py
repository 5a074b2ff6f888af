"""Mask R-CNN with class-agnostic box and mask heads and a text-embedding classifier.

The transform, anchors, proposal network and matching are torchvision's; the class below wires the
parts together. With `mask_head.kind: hourglass` it may be the Mask R-CNN* of the ALP poster, which
does not describe its mask head. Source: Mask-free OVIS §3.4. Its code is a C4 Faster R-CNN, which
`backbone.kind: resnet50_c4` builds, here with class-agnostic masks as in XPM.

Frames and targets as in stages.models.detection.detector.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import resize_boxes

from stages.models.architectures.mask_rcnn.heads import (
    HourglassRegionHeads,
    HourglassStageRegionHeads,
    MaskHead,
    RegionHeads,
    RegionMeans,
    StagePooling,
    StageRegionHeads,
)
from stages.models.architectures.mask_rcnn.params import NetworkParams
from stages.models.architectures.mask_rcnn.proposals import ProposalHead, ProposalNetwork
from stages.models.backbones.roi_align import PyramidPooling, first_centre
from stages.models.detection.backbones import REGION_STAGE_CHANNELS, Backbone, build_backbone
from stages.models.detection.detector import Detector, LossSettings, Prediction, Targets
from stages.models.detection.global_batch import BatchContext, MicroBatchContext, PartSampler
from stages.models.detection.hourglass_head import HourglassHead
from stages.models.detection.mask_head_params import HourglassKindParams
from stages.models.detection.params import InferenceParams, ProposalLimits
from stages.models.detection.paste_masks import in_image
from stages.models.detection.region_hooks import MakeRegionHead
from stages.models.detection.text_classifier import TextClassifier
from stages.models.detection.transform import ImageTransform


class Network(Detector):
    """The network; `losses` trains it, `detect` uses it."""

    classifier_name = "regions.box_predictor.classifier"
    params: NetworkParams
    backbone: Backbone

    def __init__(self, params: NetworkParams, embeddings: Float[torch.Tensor, "C D"]) -> None:
        """Build with fresh weights for classes with text embeddings."""
        super().__init__(params)
        self.backbone, region_stage = build_backbone(params.backbone)
        self.transform = ImageTransform(
            params.resize.shorter_side,
            params.resize.longer_side,
            list(self.backbone.pixel_mean),
            list(self.backbone.pixel_std),
            # torchvision spaces anchors by image side over cells, so every level's stride must fit.
            size_divisible=self.backbone.level_strides[-1],
        )
        self.proposals = _proposal_network(params, self.backbone)
        self.regions = _region_heads(params, embeddings, self.backbone, region_stage)
        self.regions.smooth_l1_beta = params.box_head.smooth_l1_beta

        for part in (self.proposals, self.regions):
            part.fg_bg_sampler = PartSampler.like(part.fg_bg_sampler)

    @property
    def region_stage(self) -> nn.Module | None:
        """Return the last stage of C4, which runs on each region; pyramids have none."""
        return getattr(self.regions.box_roi_pool, "stage", None)

    def parts(self) -> dict[str, nn.Module]:
        """Return the parts that training may freeze, by name."""
        predictor = self.regions.box_predictor
        return {
            "trunk": self.backbone.trunk,
            "pyramid": self.backbone.pyramid,
            "proposals": self.proposals,
            # C4's last stage is part of the pooling; a pyramid's pooling has no weights.
            "box_head": nn.ModuleList([self.regions.box_roi_pool, self.regions.box_head]),
            "classifier": predictor["classifier"],
            "box_deltas": predictor["deltas"],
            "mask_head": self.regions.mask_head,
        }

    def losses(
        self,
        images: list[Float[torch.Tensor, "3 _ _"]],
        targets: Targets,
        settings: LossSettings,
        context: BatchContext | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the five losses and the settings' `region_losses`.

        Each is multiplied by this part's fraction of the samples of the whole batch.
        """
        context = context or BatchContext()
        batch, targets, features, boxes, losses = self._propose(images, targets, context)
        losses = {
            "objectness": losses["loss_objectness"],
            "proposal_box": losses["loss_rpn_box_reg"],
            **self.regions.losses(features, boxes, batch, targets, settings),
        }
        anchors, regions = self.proposals.fg_bg_sampler, self.regions.fg_bg_sampler
        fractions = {
            "objectness": anchors.loss_fraction(),
            "proposal_box": anchors.loss_fraction(),
            "classification": regions.loss_fraction(1.0, settings.background_weight),
            "box": regions.loss_fraction(),
            "mask": self.regions.mask_loss_fraction(),
        }
        fractions |= dict.fromkeys(settings.region_losses, regions.loss_fraction())
        return {name: loss * fractions[name] for name, loss in losses.items()}

    def use_region_head(self, make: MakeRegionHead) -> None:
        """Replace the region head by one that `make` builds; see region_hooks."""
        head, channels = self.params.box_head, self.backbone.out_channels
        sizes = channels, head.pooler_resolution, head.hidden
        if self.region_stage is not None:  # which halves the maps
            sizes = REGION_STAGE_CHANNELS, -(-head.pooler_resolution // 2), REGION_STAGE_CHANNELS
        self.regions.box_head = make(*sizes)

    @torch.no_grad()
    def count_samples(
        self, images: list[torch.Tensor], targets: Targets, context: MicroBatchContext
    ) -> None:
        """Let `context` record how many samples the losses could be computed from."""
        _, targets, _, boxes, _ = self._propose(images, targets, context)
        self.regions.count_samples(boxes, targets)

    def padded_hw(self, images: list[torch.Tensor], context: BatchContext) -> tuple[int, int]:
        """Return the size to which these images are resized and padded."""
        with context.resizing(len(images)):
            return tuple(self.transform(images)[0].tensors.shape[-2:])

    @torch.no_grad()
    def propose(
        self, image: Float[torch.Tensor, "3 H W"], limits: ProposalLimits
    ) -> Float[torch.Tensor, "R 4"]:
        """Return region proposals xyxy in pixels of an image, best first."""
        batch, _ = self.transform([image])
        (boxes,) = self.proposals.propose(batch, self.backbone(batch.tensors), limits)
        return resize_boxes(boxes, batch.image_sizes[0], image.shape[-2:])

    def _propose(
        self, images: list[torch.Tensor], targets: Targets, context: BatchContext
    ) -> tuple[ImageList, Targets, dict, list[torch.Tensor], dict[str, torch.Tensor]]:
        """Return resized images and targets, features, proposals, and the proposals' losses."""
        for part in (self.proposals, self.regions):
            part.fg_bg_sampler.context = context
        batch, targets = self.transform.batch(images, targets, context)
        features = self.backbone(batch.tensors)
        return batch, targets, features, *self.proposals(batch, features, targets)

    def detect(
        self,
        images: list[Float[torch.Tensor, "3 _ _"]],
        vocabularies: Sequence[Sequence[int]],
        inference: InferenceParams,
    ) -> list[list[Prediction]]:
        """Return predictions per vocabulary and image; images are RGB in [0, 1]."""
        original = [(image.shape[1], image.shape[2]) for image in images]
        batch, _ = self.transform(images)
        features = self.backbone(batch.tensors)
        boxes = self.proposals.propose(batch, features, inference)
        found = self.regions.detect(features, boxes, batch.image_sizes, vocabularies, inference)
        return [
            [
                in_image(detections, resized_hw, image_hw)
                for detections, resized_hw, image_hw in zip(
                    per_image, batch.image_sizes, original, strict=True
                )
            ]
            for per_image in found
        ]


def _proposal_network(params: NetworkParams, backbone: Backbone) -> ProposalNetwork:
    proposals = params.proposals
    per_level: list[tuple[float, ...]] = [(side,) for side in proposals.anchor_sizes]
    if params.backbone.kind == "resnet50_c4":
        per_level = [tuple(proposals.anchor_sizes)]
    ratios = (tuple(proposals.aspect_ratios),) * len(per_level)
    anchors = AnchorGenerator(tuple(per_level), ratios)
    # torchvision centres its first anchors on 0.
    anchors.cell_anchors = [
        anchor + first_centre(stride, backbone.central)
        for stride, anchor in zip(backbone.level_strides, anchors.cell_anchors, strict=True)
    ]
    return ProposalNetwork(
        anchors,
        ProposalHead(backbone.out_channels, anchors.num_anchors_per_location()[0]),
        proposals.positive_iou,
        proposals.negative_iou,
        proposals.anchors_per_image,
        proposals.positive_fraction,
        {"training": proposals.pre_nms_top_n},
        {"training": proposals.post_nms_top_n},
        proposals.nms_iou,
    )


def _region_heads(
    params: NetworkParams,
    embeddings: torch.Tensor,
    backbone: Backbone,
    region_stage: nn.Module | None,
) -> RegionHeads:
    """Build the heads of a pyramid or, with a stage that runs on regions, those of C4."""
    head = params.box_head
    width, grids = backbone.out_channels, (backbone.strides, backbone.central)
    pool: nn.Module = PyramidPooling(*grids, head.pooler_resolution, head.canonical_side)
    hourglass = isinstance(params.mask_head, HourglassKindParams)
    if region_stage is None:
        heads, described = HourglassRegionHeads if hourglass else RegionHeads, head.hidden
        box_head: nn.Module = TwoMLPHead(width * head.pooler_resolution**2, head.hidden)
    else:
        heads = HourglassStageRegionHeads if hourglass else StageRegionHeads
        described = REGION_STAGE_CHANNELS
        pool = StagePooling(pool, region_stage)
        box_head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = TextClassifier(described, embeddings, **params.classifier.model_dump())
    deltas = nn.Linear(described, 4)
    mask_pool, mask_head = _mask_branch(params, backbone, region_stage)
    return heads(
        box_roi_pool=pool,
        box_head=box_head,
        box_predictor=nn.ModuleDict({"classifier": classifier, "deltas": deltas}),
        fg_iou_thresh=head.positive_iou,
        bg_iou_thresh=head.positive_iou,
        batch_size_per_image=head.regions_per_image,
        positive_fraction=head.positive_fraction,
        bbox_reg_weights=None,
        score_thresh=0.0,  # this and the next two are not used: `detect` is given its own
        nms_thresh=1.0,
        detections_per_img=0,
        mask_roi_pool=mask_pool,
        mask_head=mask_head,
    )


def _mask_branch(
    params: NetworkParams, backbone: Backbone, region_stage: nn.Module | None
) -> tuple[nn.Module | None, nn.Module]:
    """Build the pooling of mask features, None if they are not pooled for masks, and the head."""
    mask, head = params.mask_head, params.box_head
    grids, width = (backbone.strides, backbone.central), backbone.out_channels
    if isinstance(mask, HourglassKindParams):
        regions = PyramidPooling(*grids, head.pooler_resolution, head.canonical_side)
        finest = backbone.strides[0], backbone.central
        return None, HourglassHead(mask, width, *finest, RegionMeans(regions))
    if region_stage is not None:
        return None, MaskHead(REGION_STAGE_CHANNELS, mask.channels, mask.layers)
    pooling = PyramidPooling(*grids, mask.pooler_resolution, head.canonical_side)
    return pooling, MaskHead(width, mask.channels, mask.layers)
