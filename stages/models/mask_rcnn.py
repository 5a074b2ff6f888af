"""Mask R-CNN with class-agnostic box and mask heads and a text-embedding classifier.

The parts are torchvision's (transform, anchors, proposal network, RoIAlign, matching); the class
below is the wiring. Source: Mask-free OVIS, section 3.3; its code is a C4 Faster R-CNN, which
`backbone.kind: resnet50_c4` is, with class-agnostic masks as in XPM.

Pictures are uint8 RGB (H, W, 3) of any size. Boxes are corners in pixels of the picture given.
Class index k is row k of the text embeddings: `read_categories` of base and novel classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from stages.common.devices import own_kernels
from stages.common.storage import read_tensors, write_tensors
from stages.models.backbones import REGION_STAGE_CHANNELS, build_backbone
from stages.models.detector_settings import NetworkParams, Part
from stages.models.engines.dispatch import network_class
from stages.models.global_batch import Draws, MicroDraws, SharedSampler
from stages.models.mask_pasting import paste_masks
from stages.models.region_heads import (
    MaskHead,
    ProposalHead,
    ProposalNetwork,
    RegionHeads,
    StagePooling,
    StageRegionHeads,
    Targets,
)
from stages.models.region_pooling import PyramidPooling, first_centre
from stages.models.text_classifier import TextClassifier

DEFAULT_ENGINE = "torchvision"  # of weights whose header names none
PREDICTED_AT_ONCE = 16  # pictures; changes no result where all have one size


@dataclass(frozen=True)
class Prediction:
    """Detections of one picture, best score first."""

    boxes_xyxy: np.ndarray  # float32 (n, 4)
    labels: np.ndarray  # int64 (n,), class indices
    scores: np.ndarray  # float32 (n,) in [0, 1]
    masks: np.ndarray  # bool (n, H, W)


class MaskRcnn(nn.Module):
    """The network; `losses` trains it, `detect` uses it."""

    engine = "torchvision"

    def __init__(self, params: NetworkParams, embeddings: torch.Tensor) -> None:
        """Build with fresh weights for classes with text embeddings float32 (C, D)."""
        super().__init__()
        self.params = params
        self.backbone, region_stage = build_backbone(params.backbone)
        self.transform = GeneralizedRCNNTransform(
            params.resize.shorter_side,
            params.resize.longer_side,
            list(self.backbone.pixel_mean),
            list(self.backbone.pixel_std),
            size_divisible=self.backbone.strides[-1],
        )
        self.proposals = _proposal_network(params, self.backbone)
        self.regions = _region_heads(params, embeddings, self.backbone, region_stage)
        self.regions.smooth_l1_beta = params.box_head.smooth_l1_beta

        for part in (self.proposals, self.regions):
            part.fg_bg_sampler = SharedSampler.like(part.fg_bg_sampler)

    @property
    def region_stage(self) -> nn.Module | None:
        """Return the last stage of C4, which sees each region by itself; pyramids have none."""
        return getattr(self.regions.box_roi_pool, "stage", None)

    def parts(self) -> dict[Part, nn.Module]:
        """Return the parts that training may freeze, by name."""
        predictor = self.regions.box_predictor
        return {
            "trunk": self.backbone.trunk,
            "pyramid": self.backbone.pyramid,
            "proposals": self.proposals,
            # C4's last stage is part of the pooling, a pyramid's pooling has no weights.
            "box_head": nn.ModuleList([self.regions.box_roi_pool, self.regions.box_head]),
            "classifier": predictor["classifier"],
            "box_deltas": predictor["deltas"],
            "mask_head": self.regions.mask_head,
        }

    def losses(
        self,
        images: list[torch.Tensor],
        targets: Targets,
        vocabulary: Sequence[int] | None,
        background_weight: float,
        draws: Draws | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the five losses, named as in `LossWeights`; of a share its part of the batch's.

        Args:
            images: float (3, H, W) in [0, 1] each.
            targets: as stages.models.region_heads describes them.
            vocabulary: class indices that the softmax runs over; all if None.
            background_weight: of background regions in the classification loss.
            draws: what the pictures need to know of the others, if they are a share of a batch.
        """
        batch, targets, features, boxes, losses = self._propose(images, targets, draws or Draws())
        losses = {
            "objectness": losses["loss_objectness"],
            "proposal_box": losses["loss_rpn_box_reg"],
            **self.regions.losses(
                features, boxes, batch.image_sizes, targets, vocabulary, background_weight
            ),
        }
        anchors, regions = self.proposals.fg_bg_sampler, self.regions.fg_bg_sampler
        parts = {
            "objectness": anchors.part(),
            "proposal_box": anchors.part(),
            "classification": regions.part(1.0, background_weight),
            "box": regions.part(),
            "mask": regions.part(1.0, 0.0),
        }
        return {name: loss * parts[name] for name, loss in losses.items()}

    @torch.no_grad()
    def count_samples(
        self, images: list[torch.Tensor], targets: Targets, draws: MicroDraws
    ) -> None:
        """Let `draws` take down what anchors and regions the losses could be computed from."""
        _, targets, _, boxes, _ = self._propose(images, targets, draws)
        self.regions.select_training_samples(boxes, targets)

    def padded_hw(self, images: list[torch.Tensor], draws: Draws) -> tuple[int, int]:
        """Return the size that these pictures are resized and padded to."""
        with draws.resizing(len(images)):
            return tuple(self.transform(images)[0].tensors.shape[-2:])

    def _propose(
        self, images: list[torch.Tensor], targets: Targets, draws: Draws
    ) -> tuple[ImageList, Targets, dict, list[torch.Tensor], dict[str, torch.Tensor]]:
        """Return resized pictures and targets, features, proposals, and their losses."""
        for part in (self.proposals, self.regions):
            part.fg_bg_sampler.draws = draws
        with draws.resizing(len(images)):
            batch, targets = self.transform(images, targets)
        height, width = batch.tensors.shape[-2:]
        rows, columns = draws.common_hw((height, width))
        if (rows, columns) != (height, width):
            batch.tensors = functional.pad(batch.tensors, (0, columns - width, 0, rows - height))
        features = self.backbone(batch.tensors)
        return batch, targets, features, *self.proposals(batch, features, targets)

    def detect(
        self, images: list[torch.Tensor], vocabularies: Sequence[Sequence[int]]
    ) -> list[list[Prediction]]:
        """Return predictions per vocabulary and picture; images are float (3, H, W) in [0, 1]."""
        original = [tuple(image.shape[-2:]) for image in images]
        batch, _ = self.transform(images)
        features = self.backbone(batch.tensors)
        boxes, _ = self.proposals(batch, features)
        found = self.regions.detect(features, boxes, batch.image_sizes, vocabularies)
        return [
            [
                in_picture(detections, seen, image_hw)
                for detections, seen, image_hw in zip(
                    per_image, batch.image_sizes, original, strict=True
                )
            ]
            for per_image in found
        ]


def _proposal_network(params: NetworkParams, backbone: nn.Module) -> ProposalNetwork:
    proposals = params.proposals
    per_level = [(side,) for side in proposals.anchor_sides]
    if params.backbone.kind == "resnet50_c4":
        per_level = [tuple(proposals.anchor_sides)]
    ratios = (tuple(proposals.aspect_ratios),) * len(per_level)
    anchors = AnchorGenerator(tuple(per_level), ratios)
    # torchvision's first anchors have their centres at 0.
    anchors.cell_anchors = [
        anchor + first_centre(backbone.strides[0] << level, backbone.central)
        for level, anchor in enumerate(anchors.cell_anchors)
    ]
    return ProposalNetwork(
        anchors,
        ProposalHead(backbone.out_channels, anchors.num_anchors_per_location()[0]),
        proposals.positive_iou,
        proposals.negative_iou,
        proposals.anchors_per_image,
        proposals.positive_fraction,
        {"training": proposals.before_nms, "testing": proposals.before_nms_in_inference},
        {"training": proposals.kept_in_training, "testing": proposals.kept_in_inference},
        proposals.nms_iou,
    )


def _region_heads(
    params: NetworkParams,
    embeddings: torch.Tensor,
    backbone: nn.Module,
    region_stage: nn.Module | None,
) -> RegionHeads:
    """Build the heads of a pyramid or, with a stage that is left to the regions, those of C4."""
    head, mask, inference = params.box_head, params.mask_head, params.inference
    strides, width = backbone.strides, backbone.out_channels
    grids = strides, backbone.central
    pool: nn.Module = PyramidPooling(*grids, head.pooled_side, head.canonical_side)
    if region_stage is None:
        heads, mask_pool = (
            RegionHeads,
            PyramidPooling(*grids, mask.pooled_side, head.canonical_side),
        )
        described, box_head = head.hidden, TwoMLPHead(width * head.pooled_side**2, head.hidden)
    else:
        heads, mask_pool, described = StageRegionHeads, None, REGION_STAGE_CHANNELS
        pool, width = StagePooling(pool, region_stage), described
        box_head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = TextClassifier(described, embeddings, **params.classifier.model_dump())
    return heads(
        box_roi_pool=pool,
        box_head=box_head,
        box_predictor=nn.ModuleDict({"classifier": classifier, "deltas": nn.Linear(described, 4)}),
        fg_iou_thresh=head.positive_iou,
        bg_iou_thresh=head.positive_iou,
        batch_size_per_image=head.regions_per_image,
        positive_fraction=head.positive_fraction,
        bbox_reg_weights=None,
        score_thresh=inference.score_threshold,
        nms_thresh=inference.nms_iou,
        detections_per_img=inference.detections_per_image,
        mask_roi_pool=mask_pool,
        mask_head=MaskHead(width, mask.channels, mask.layers),
    )


def in_picture(
    detections: dict[str, torch.Tensor], seen_hw: tuple[int, int], image_hw: tuple[int, int]
) -> Prediction:
    """Map boxes and masks of the resized picture to the frame of the original."""
    boxes = resize_boxes(detections["boxes"], seen_hw, image_hw)
    return Prediction(
        boxes.cpu().numpy(),
        detections["labels"].cpu().numpy(),
        detections["scores"].cpu().numpy(),
        paste_masks(detections["masks"], boxes, image_hw).numpy(),
    )


def to_unit_range(image: np.ndarray) -> torch.Tensor:
    """Return float32 (3, H, W) in [0, 1] of a picture uint8 (H, W, 3)."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255


@torch.no_grad()
def predict(
    model: MaskRcnn, images: Sequence[np.ndarray], vocabularies: Sequence[Sequence[int]]
) -> list[list[Prediction]]:
    """Return predictions per vocabulary and picture.

    Features and proposals are computed once for all vocabularies.

    Args:
        model: a detector; is put into inference mode.
        images: uint8 (H, W, 3) each, of any size.
        vocabularies: class indices to choose from, e.g. all for the generalized protocol and the
            novel ones for the constrained.
    """
    model.eval()
    device = next(model.parameters()).device
    found: list[list[Prediction]] = [[] for _ in vocabularies]
    for start in range(0, len(images), PREDICTED_AT_ONCE):
        pixels = [to_unit_range(x).to(device) for x in images[start : start + PREDICTED_AT_ONCE]]
        with own_kernels():
            batches = model.detect(pixels, vocabularies)
        for all_found, batch in zip(found, batches, strict=True):
            all_found.extend(batch)
    return found


def save_detector(path: Path, model: MaskRcnn) -> None:
    """Write weights and text embeddings, with the network's settings and engine in the header."""
    facts = {"network": model.params.model_dump()}
    if model.engine != DEFAULT_ENGINE:
        facts["engine"] = model.engine
    write_tensors(path, model.state_dict(), facts)


def load_detector(path: Path) -> MaskRcnn:
    """Return the detector that `save_detector` wrote, in inference mode.

    Raises:
        ModuleNotFoundError: it was trained with an engine that is not installed.
        ValueError: the file is no detector, or one of another version of this code.
    """
    tensors, facts = read_tensors(path)
    embeddings = tensors.get("regions.box_predictor.classifier.embeddings")
    if embeddings is None or not isinstance(facts, dict) or "network" not in facts:
        raise ValueError(f"{path}: not a detector; run `dvc repro detector` to make one")
    network = network_class(facts.get("engine", DEFAULT_ENGINE))
    model = network(NetworkParams.model_validate(facts["network"]), embeddings)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path}: weights do not fit the network of its header: {error}") from None
    return model.eval()
