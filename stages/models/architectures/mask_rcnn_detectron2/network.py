"""Mask R-CNN built from detectron2's parts: `detector.architecture: mask_rcnn_detectron2`.

Only this package imports detectron2. It resizes images and pastes masks by the same code as
`mask_rcnn`, so the two differ only in detectron2's parts. Frames and targets as in
stages.models.detection.detector.
"""

from collections.abc import Sequence
from importlib.util import find_spec

if find_spec("detectron2") is None:
    raise ModuleNotFoundError(
        "params.yaml: detector.architecture: detectron2 is not installed, and is in no package"
        " registry; https://detectron2.readthedocs.io/tutorials/install.html says how, or set"
        " detector.architecture to mask_rcnn",
        name="detectron2",
    )

import torch
from detectron2.modeling import build_proposal_generator
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from jaxtyping import Float
from torch import nn
from torchvision.models.detection.transform import resize_boxes

from stages.common.runtime.devices import own_kernels
from stages.models.architectures.mask_rcnn_detectron2.config import make_config
from stages.models.architectures.mask_rcnn_detectron2.heads import region_heads_class
from stages.models.architectures.mask_rcnn_detectron2.params import NetworkParams
from stages.models.architectures.mask_rcnn_detectron2.proposals import LevelBackbone
from stages.models.backbones.roi_align import first_centre
from stages.models.detection.backbones import build_backbone
from stages.models.detection.detector import IGNORED, Detector, LossSettings, Prediction, Targets
from stages.models.detection.global_batch import BatchContext
from stages.models.detection.params import InferenceParams, ProposalLimits
from stages.models.detection.paste_masks import in_image
from stages.models.detection.transform import ImageTransform


class Network(Detector):
    """The network; `losses` trains it, `detect` uses it."""

    classifier_name = "regions.box_predictor.classifier"
    backbone: LevelBackbone

    def __init__(self, params: NetworkParams, embeddings: Float[torch.Tensor, "C D"]) -> None:
        """Build with fresh weights for classes with text embeddings."""
        super().__init__(params)
        network, region_stage = build_backbone(params.backbone)
        num_levels = len(params.proposals.anchor_sizes) if region_stage is None else 1
        self.backbone = LevelBackbone(network, num_levels)
        levels = self.backbone.output_shape()
        config = make_config(params, self.backbone, *embeddings.shape)
        self.proposals = build_proposal_generator(config, levels)
        if not network.central:  # then detectron2 centres its first anchors on 0
            for anchors in self.proposals.anchor_generator.cell_anchors:
                anchors += first_centre(network.strides[0], network.central)
        last_stage = {} if region_stage is None else {"res5": region_stage}
        self.regions = region_heads_class(params.backbone)(config, levels, **last_stage)
        self.regions.box_predictor.classifier.begin_with(embeddings)
        self.transform = ImageTransform(
            config.INPUT.MIN_SIZE_TEST,
            config.INPUT.MAX_SIZE_TEST,
            config.MODEL.PIXEL_MEAN,
            config.MODEL.PIXEL_STD,
            size_divisible=self.backbone.size_divisibility,
        )

    @property
    def region_stage(self) -> nn.Module | None:
        """Return the last stage of C4, which runs on each region; pyramids have none."""
        return getattr(self.regions, "res5", None)

    def parts(self) -> dict[str, nn.Module]:
        """Return the parts that training may freeze, by name."""
        predictor = self.regions.box_predictor
        return {
            "trunk": self.backbone.network.trunk,
            "pyramid": self.backbone.network.pyramid,
            "proposals": self.proposals,
            "box_head": self.region_stage or self.regions.box_head,
            "classifier": predictor.classifier,
            "box_deltas": predictor.bbox_pred,
            "mask_head": self.regions.mask_head,
        }

    def losses(
        self,
        images: list[Float[torch.Tensor, "3 _ _"]],
        targets: Targets,
        settings: LossSettings,
        context: BatchContext | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the five losses; `context` is not used, as micro-batches are not supported."""
        batch, targets = self.transform(images, targets)
        seen = ImageList(batch.tensors, batch.image_sizes)
        features = self.backbone(seen.tensor)
        instances = [
            _as_instances(target, image_hw)
            for target, image_hw in zip(targets, batch.image_sizes, strict=True)
        ]
        with EventStorage():  # detectron2's losses fail without one to write statistics to
            boxes, losses = self.proposals(seen, features, instances)
            return {
                "objectness": losses["loss_rpn_cls"],
                "proposal_box": losses["loss_rpn_loc"],
                **self.regions.losses(features, boxes, instances, settings),
            }

    def detect(
        self,
        images: list[Float[torch.Tensor, "3 _ _"]],
        vocabularies: Sequence[Sequence[int]],
        inference: InferenceParams,
    ) -> list[list[Prediction]]:
        """Return predictions per vocabulary and image; images are RGB in [0, 1]."""
        original = [(image.shape[1], image.shape[2]) for image in images]
        seen, features, boxes = self._proposals_of(images, inference)
        return [
            [
                in_image(detections, seen_hw, image_hw)
                for detections, seen_hw, image_hw in zip(
                    per_image, seen.image_sizes, original, strict=True
                )
            ]
            for per_image in self.regions.detect(features, boxes, vocabularies, inference)
        ]

    @torch.no_grad()
    def propose(
        self, image: Float[torch.Tensor, "3 H W"], limits: ProposalLimits
    ) -> Float[torch.Tensor, "R 4"]:
        """Return region proposals xyxy in pixels of an image, best first."""
        seen, _, (boxes,) = self._proposals_of([image], limits)
        return resize_boxes(boxes.proposal_boxes.tensor, seen.image_sizes[0], image.shape[-2:])

    def _proposals_of(
        self, images: list[torch.Tensor], limits: ProposalLimits
    ) -> tuple[ImageList, dict[str, torch.Tensor], list[Instances]]:
        self.proposals.pre_nms_topk[False] = limits.pre_nms_top_n  # False: not in training
        self.proposals.post_nms_topk[False] = limits.post_nms_top_n
        batch, _ = self.transform(images)
        seen = ImageList(batch.tensors, batch.image_sizes)
        features = self.backbone(seen.tensor)
        return seen, features, self.proposals(seen, features)[0]


def _as_instances(target: dict[str, torch.Tensor], image_hw: tuple[int, int]) -> Instances:
    """Return an image's target in detectron2's form: classes from 0, -1 to ignore.

    Boxes to ignore come last and have no mask; they get an empty one, which no loss uses.
    """
    labels, masks = target["labels"], target["masks"]
    absent = masks.new_zeros((len(labels) - len(masks), *masks.shape[1:]))
    return Instances(
        image_hw,
        gt_boxes=Boxes(target["boxes"]),
        gt_classes=torch.where(labels == IGNORED, IGNORED, labels - 1),
        gt_masks=_TargetMasks(torch.cat([masks, absent])),
    )


class _TargetMasks(BitMasks):
    def __getitem__(self, item: int | slice | torch.Tensor) -> "_TargetMasks":
        return _TargetMasks(super().__getitem__(item).tensor)

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        with own_kernels():  # RoIAlign without a gradient
            return super().crop_and_resize(boxes, mask_size)
