"""Settings of the detector: its network (stored beside the weights) and one run of its training.

The stages `detector` and `finetune` put these models into their sections of params.yaml.
"""

from typing import Literal

from pydantic import Field

from stages.common.params import Section

Part = Literal["trunk", "pyramid", "proposals", "box_head", "classifier", "box_deltas", "mask_head"]


class BackboneParams(Section):
    """The pyramid's bottom-up network; `kind` picks its builder in stages/models/pyramid.py."""

    kind: Literal["trunk"]
    stem_width: int = Field(ge=4)
    width: int = Field(ge=8)
    residual_blocks: int = Field(ge=0)
    pyramid_width: int = Field(ge=8)


class ResizeParams(Section):
    """Sides of the pictures the network sees, in pixels."""

    shorter_side: int = Field(ge=32)
    longer_side: int = Field(ge=32)


class ProposalParams(Section):
    """Region proposal network."""

    anchor_sides: list[float] = Field(min_length=3, max_length=3)
    aspect_ratios: list[float] = Field(min_length=1)
    positive_iou: float = Field(gt=0, le=1)
    negative_iou: float = Field(gt=0, le=1)
    anchors_per_image: int = Field(ge=2)
    positive_fraction: float = Field(gt=0, le=1)
    nms_iou: float = Field(gt=0, le=1)
    before_nms: int = Field(ge=1)
    kept_in_training: int = Field(ge=1)
    kept_in_inference: int = Field(ge=1)


class BoxHeadParams(Section):
    """Class-agnostic box head."""

    pooled_side: int = Field(ge=1)
    canonical_side: float = Field(gt=0)
    hidden: int = Field(ge=8)
    positive_iou: float = Field(gt=0, le=1)
    regions_per_image: int = Field(ge=2)
    positive_fraction: float = Field(gt=0, le=1)


class ClassifierParams(Section):
    """Text-embedding classifier."""

    similarity: Literal["dot", "cosine"]
    temperature: float = Field(gt=0)
    background: Literal["zero", "learned"]


class MaskHeadParams(Section):
    """Class-agnostic mask head."""

    pooled_side: int = Field(ge=1)
    channels: int = Field(ge=4)
    layers: int = Field(ge=1)


class InferenceParams(Section):
    """From scored regions to detections."""

    score_threshold: float = Field(ge=0, lt=1)
    nms_iou: float = Field(gt=0, le=1)
    detections_per_image: int = Field(ge=1)


class NetworkParams(Section):
    """All that is needed to build the network again, apart from its weights."""

    backbone: BackboneParams
    resize: ResizeParams
    proposals: ProposalParams
    box_head: BoxHeadParams
    classifier: ClassifierParams
    mask_head: MaskHeadParams
    inference: InferenceParams


class LossWeights(Section):
    """Factors of the five losses in the sum."""

    objectness: float = Field(ge=0)
    proposal_box: float = Field(ge=0)
    classification: float = Field(ge=0)
    box: float = Field(ge=0)
    mask: float = Field(ge=0)


class TrainingParams(Section):
    """One run of training."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    gradient_clip: float = Field(gt=0)
    background_weight: float = Field(gt=0)
    frozen: list[Part]
    flip: bool
    colour_jitter: float = Field(ge=0)
    precision: Literal["fp32", "bf16"]
    loss_weights: LossWeights
