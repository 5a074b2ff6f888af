"""detectron2's configuration of our network.

Settings for which detectron2 has a key use that key, so `make_config(...).dump()` shows the
experiment in detectron2's own terms; the rest is in the node MODEL.OPEN_VOCABULARY. Both Mask
R-CNNs train the same model, so the losses are torchvision's: the smooth L1 loss of anchors is
linear beyond 1/9.
"""

from typing import Any

from detectron2.config import CfgNode, get_cfg

from stages.models.architectures.mask_rcnn_detectron2.heads import region_heads_class
from stages.models.architectures.mask_rcnn_detectron2.params import NetworkParams
from stages.models.architectures.mask_rcnn_detectron2.proposals import (
    Float32RPNHead,
    IgnoringRPN,
    LevelBackbone,
)

SMOOTH_L1_BETA = 1 / 9
SAMPLES = 2  # of RoIAlign, per pooled cell and axis


def make_config(
    params: NetworkParams, backbone: LevelBackbone, num_classes: int, text_width: int
) -> CfgNode:
    """Return the frozen configuration of a detector, apart from its backbone.

    Args:
        params: settings of the network.
        backbone: the one that `params.backbone` describes.
        num_classes: number of texts to classify by.
        text_width: width of their embeddings.

    Raises:
        KeyError: this version of detectron2 lacks a key.
    """
    config = get_cfg()
    config.MODEL.OPEN_VOCABULARY = CfgNode(
        {
            "CLASSIFIER": params.classifier.model_dump(),
            "TEXT_WIDTH": text_width,
            "CANONICAL_SIDE": params.box_head.canonical_side,
            "CENTRAL_CELLS": backbone.network.central,
        }
    )
    # Merged keys must exist; as attributes, detectron2 takes any name.
    config.merge_from_other_cfg(CfgNode(_image_keys(params, backbone)))
    config.merge_from_other_cfg(CfgNode({"MODEL": _proposal_keys(params, backbone)}))
    config.merge_from_other_cfg(CfgNode({"MODEL": _region_keys(params, backbone, num_classes)}))
    config.freeze()
    return config


def _image_keys(params: NetworkParams, backbone: LevelBackbone) -> dict[str, Any]:
    shorter, longer = params.resize.shorter_side, params.resize.longer_side
    return {
        "INPUT": {
            "FORMAT": "RGB",
            "MIN_SIZE_TRAIN": (shorter,),
            "MIN_SIZE_TEST": shorter,
            "MAX_SIZE_TRAIN": longer,
            "MAX_SIZE_TEST": longer,
        },
        "MODEL": {
            "PIXEL_MEAN": list(backbone.network.pixel_mean),
            "PIXEL_STD": list(backbone.network.pixel_std),
        },
    }


def _proposal_keys(params: NetworkParams, backbone: LevelBackbone) -> dict[str, Any]:
    proposals, levels = params.proposals, list(backbone.output_shape())
    each = [[side] for side in proposals.anchor_sizes]
    return {
        "ANCHOR_GENERATOR": {
            "OFFSET": 0.5 if backbone.network.central else 0.0,  # strides; see `Network`
            "SIZES": each if len(each) == len(levels) else [list(proposals.anchor_sizes)],
            "ASPECT_RATIOS": [list(proposals.aspect_ratios)],
        },
        "PROPOSAL_GENERATOR": {"NAME": IgnoringRPN.__name__},
        "RPN": {
            "HEAD_NAME": Float32RPNHead.__name__,
            "IN_FEATURES": levels,
            "IOU_THRESHOLDS": [proposals.negative_iou, proposals.positive_iou],
            "BATCH_SIZE_PER_IMAGE": proposals.anchors_per_image,
            "POSITIVE_FRACTION": proposals.positive_fraction,
            "NMS_THRESH": proposals.nms_iou,
            "PRE_NMS_TOPK_TRAIN": proposals.pre_nms_top_n,
            "POST_NMS_TOPK_TRAIN": proposals.post_nms_top_n,
            "SMOOTH_L1_BETA": SMOOTH_L1_BETA,
        },
    }


def _region_keys(
    params: NetworkParams, backbone: LevelBackbone, num_classes: int
) -> dict[str, Any]:
    head, mask = params.box_head, params.mask_head
    return {
        "MASK_ON": True,
        "ROI_HEADS": {
            "NAME": region_heads_class(params.backbone).__name__,
            "IN_FEATURES": backbone.region_levels,
            "NUM_CLASSES": num_classes,
            "IOU_THRESHOLDS": [head.positive_iou],
            "BATCH_SIZE_PER_IMAGE": head.regions_per_image,
            "POSITIVE_FRACTION": head.positive_fraction,
        },
        "ROI_BOX_HEAD": {
            "NAME": "FastRCNNConvFCHead",
            "NUM_FC": 2,
            "FC_DIM": head.hidden,
            "POOLER_RESOLUTION": head.pooler_resolution,
            "POOLER_SAMPLING_RATIO": SAMPLES,
            "CLS_AGNOSTIC_BBOX_REG": True,
            "SMOOTH_L1_BETA": head.smooth_l1_beta,
        },
        "ROI_MASK_HEAD": {
            "NAME": "MaskRCNNConvUpsampleHead",
            "NUM_CONV": mask.layers,
            "CONV_DIM": mask.channels,
            "POOLER_RESOLUTION": mask.pooler_resolution,
            "POOLER_SAMPLING_RATIO": SAMPLES,
            "CLS_AGNOSTIC_MASK": True,
        },
    }
