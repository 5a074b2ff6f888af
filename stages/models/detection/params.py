"""Settings of the detector: its network (stored with the weights), its training and inference.

The stages `detector`, `finetune` and `evaluation` and the comparator `rpn` use these models for
their sections of params.yaml. The settings of one architecture are the `NetworkParams` in its
module `params`, which is read without its network, so that a wrong key is reported before anything
else is imported or runs. What each key means, its unit and the paper's value stand beside it in
params.yaml.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, create_model, model_validator

from stages.common.runtime.params import Section
from stages.models.detection.mask_head_params import MaskHeadParams, check_width

PACKAGE = "stages.models.architectures"
# micro_batches: also several processes. proposals: `Detector.propose`. object_weights: objects
# whose class, box or mask has a weight other than 1. region_hooks: further losses of the regions,
# and another region head. partial_labels: images in which only some classes are labelled.
Feature = Literal["micro_batches", "proposals", "object_weights", "region_hooks", "partial_labels"]
Aspect = Literal["class", "box", "mask"]  # what can be learned from an object
UNSCORED = ("base_masks", "novel_boxes", "novel_masks", "phrases")  # sources made by people


class TrunkParams(Section):
    """The small VLM's trunk and a feature pyramid of three levels."""

    levels: ClassVar[int] = 3

    kind: Literal["trunk"]
    stem_width: int = Field(ge=4)
    width: int = Field(ge=8)
    residual_blocks: int = Field(ge=0)
    pyramid_width: int = Field(ge=8)


class Resnet50FpnParams(Section):
    """ResNet-50 and a feature pyramid of five or six levels."""

    kind: Literal["resnet50_fpn"]
    pyramid_width: int = Field(ge=8)
    frozen_stages: int = Field(ge=0, le=5)
    extra_levels: Literal["pool", "p6p7"]

    @property
    def levels(self) -> int:
        """How many levels the pyramid has."""
        return 5 if self.extra_levels == "pool" else 6


class Resnet50C4Params(Section):
    """ResNet-50 up to its fourth stage; the fifth runs on each region."""

    kind: Literal["resnet50_c4"]
    frozen_stages: int = Field(ge=0, le=4)


# `kind` picks the builder in stages/models/detection/backbones.py.
BackboneParams = Annotated[
    TrunkParams | Resnet50FpnParams | Resnet50C4Params, Field(discriminator="kind")
]


class ResizeParams(Section):
    """Sides of the resized images, in pixels."""

    shorter_side: int = Field(ge=32)
    longer_side: int = Field(ge=32)


class ProposalParams(Section):
    """Region proposal network."""

    anchor_sizes: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    aspect_ratios: list[float] = Field(min_length=1)
    positive_iou: float = Field(gt=0, le=1)
    negative_iou: float = Field(gt=0, le=1)
    anchors_per_image: int = Field(ge=2)
    positive_fraction: float = Field(gt=0, le=1)
    nms_iou: float = Field(gt=0, le=1)
    pre_nms_top_n: int = Field(ge=1)
    post_nms_top_n: int = Field(ge=1)


class BoxHeadParams(Section):
    """Class-agnostic box head."""

    pooler_resolution: int = Field(ge=1)
    canonical_side: float = Field(gt=0)
    hidden: int = Field(ge=8)
    positive_iou: float = Field(gt=0, le=1)
    regions_per_image: int = Field(ge=2)
    positive_fraction: float = Field(gt=0, le=1)
    smooth_l1_beta: float = Field(gt=0)


class ClassifierParams(Section):
    """Text-embedding classifier."""

    similarity: Literal["dot", "cosine"]
    temperature: float = Field(gt=0)
    background: Literal["zero", "learned"]


class ProposalLimits(Section):
    """How many region proposals of an image remain, before and after suppression."""

    pre_nms_top_n: int = Field(ge=1)
    post_nms_top_n: int = Field(ge=1)


class InferenceParams(ProposalLimits):
    """From scored regions or locations to detections.

    They belong to whoever detects, and not to the network: changing them needs no training.
    """

    score_threshold: float = Field(ge=0, lt=1)
    nms_iou: float = Field(gt=0, le=1)
    detections_per_image: int = Field(ge=1)


class NetworkParams(Section):
    """All that is needed to build a network again, apart from its weights.

    Every architecture has these fields. Its own `NetworkParams`, a subclass, also declares

    - `losses`: the names of the losses that `Detector.losses` returns;
    - `parts`: the names of the parts that `Detector.parts` returns and training may freeze;
    - `supports`: what it offers beyond training and detecting.
    """

    losses: ClassVar[tuple[str, ...]]
    parts: ClassVar[tuple[str, ...]]
    supports: ClassVar[frozenset[Feature]] = frozenset()

    backbone: BackboneParams
    classifier: ClassifierParams


class TwoStageParams(NetworkParams):
    """Mask R-CNN's network, built from any library's parts."""

    losses = ("objectness", "proposal_box", "classification", "box", "mask")
    parts = (
        "trunk",
        "pyramid",
        "proposals",
        "box_head",
        "classifier",
        "box_deltas",
        "mask_head",
    )

    resize: ResizeParams
    proposals: ProposalParams
    box_head: BoxHeadParams
    mask_head: MaskHeadParams

    @model_validator(mode="after")
    def _one_anchor_size_per_level(self) -> "TwoStageParams":
        sides = len(self.proposals.anchor_sizes)
        levels = getattr(self.backbone, "levels", sides)  # C4's single one may have all sides
        if sides != levels:
            raise ValueError(
                f"proposals.anchor_sizes: has {sides} sides, but backbone.kind"
                f" {self.backbone.kind} has {levels} levels; give one side per level"
            )
        return self

    @model_validator(mode="after")
    def _hourglass_fits_the_levels(self) -> "TwoStageParams":
        if self.mask_head.kind == "hourglass" and self.backbone.kind != "resnet50_c4":
            check_width(self.backbone.pyramid_width)
        return self


def architectures() -> list[str]:
    """Return the names of all architectures: the folders with a module `network`."""
    folders = map(Path, import_module(PACKAGE).__path__)
    return sorted(file.parent.name for folder in folders for file in folder.glob("*/network.py"))


def network_params(architecture: object) -> type[NetworkParams]:
    """Return the model of an architecture's network settings.

    Raises:
        ValueError: there is no such architecture.
    """
    if architecture not in architectures():
        raise ValueError(
            f"architecture: expected one of {', '.join(architectures())}, found {architecture!r}"
        )
    return import_module(f"{PACKAGE}.{architecture}.params").NetworkParams


class AdamWParams(Section):
    """Adam with decoupled weight decay."""

    kind: Literal["adamw"]


class SgdParams(Section):
    """Stochastic gradient descent."""

    kind: Literal["sgd"]
    momentum: float = Field(ge=0, lt=1)


class CosineParams(Section):
    """Half a cosine over all steps."""

    kind: Literal["cosine"]


class StepDecayParams(Section):
    """The rate is multiplied by `factor` at each step of `at`; warm-up begins at `warmup_from`."""

    kind: Literal["steps"]
    at: list[Annotated[int, Field(ge=1)]]
    factor: float = Field(gt=0, lt=1)
    warmup_from: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _rising(self) -> "StepDecayParams":
        if self.at != sorted(set(self.at)):
            raise ValueError(f"at: expected rising steps, found {self.at}")
        return self


class RegionLossParams(Section):
    """A further loss of the sampled regions: the function `region_loss` of a module."""

    name: str
    module: str
    weight: float = Field(ge=0)


class TrainingParams(Section):
    """One training run; each `kind` selects a function of stages/models/solver.py."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    optimizer: Annotated[AdamWParams | SgdParams, Field(discriminator="kind")]
    schedule: Annotated[CosineParams | StepDecayParams, Field(discriminator="kind")]
    learning_rate: float = Field(gt=0)
    bias_rate_factor: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    gradient_clip: float = Field(gt=0, allow_inf_nan=True)
    background_weight: float = Field(gt=0)
    frozen: list[str]
    flip: bool
    colour_jitter: float = Field(ge=0)
    precision: Literal["fp32", "bf16"]
    loss_weights: dict[str, Annotated[float, Field(ge=0)]]
    region_losses: list[RegionLossParams]


class ImagenetParams(Section):
    """A file with torchvision's ImageNet weights for ResNet-50."""

    weights: str | None
    sha256: str | None


class StartParams(Section):
    """The network, its initial weights, and its training."""

    architecture: str
    init: Literal["vlm", "random", "imagenet"]
    imagenet: ImagenetParams
    network: NetworkParams
    training: TrainingParams

    @classmethod
    def fitting(cls, content: Any) -> type["StartParams"]:
        """Return this model with the network of the architecture that `content` names.

        Raises:
            ValueError: there is no such architecture, or `content` has a key of an older version.
        """
        content = content if isinstance(content, dict) else {}
        if "engine" in content:
            raise ValueError(
                f"engine: {content['engine']}: the key is architecture now, with mask_rcnn for"
                " torchvision and mask_rcnn_detectron2 for detectron2"
            )
        network = network_params(content.get("architecture"))
        return create_model(cls.__name__, __base__=cls, network=(network, ...))

    def check_references(self, key: str, params: Mapping[str, Any], elsewhere: bool) -> None:
        """Check that ImageNet weights are there."""
        if self.init == "imagenet" and self.imagenet.weights is not None and not elsewhere:
            from stages.models.backbones.imagenet import find_imagenet_weights  # imports torch

            path = Path(self.imagenet.weights)
            find_imagenet_weights(path, self.imagenet.sha256, f"{key}.imagenet")

    @model_validator(mode="after")
    def _training_fits_the_network(self) -> "StartParams":
        check_training(self.training, self.network)
        return self

    @model_validator(mode="after")
    def _init_fits_the_backbone(self) -> "StartParams":
        backbone = self.network.backbone
        if self.init == "vlm" and backbone.kind != "trunk":
            raise ValueError(
                f"init: vlm has no weights for network.backbone.kind {backbone.kind}; set init to"
                " imagenet or random, or the kind to trunk"
            )
        if self.init == "imagenet" and backbone.kind == "trunk":
            raise ValueError(
                "init: there are no ImageNet weights for network.backbone.kind trunk; set init to"
                " vlm or random, or the kind to resnet50_fpn or resnet50_c4"
            )
        if self.init == "imagenet" and self.imagenet.weights is None:
            raise ValueError(
                "imagenet.weights: is null, but init asks for it; set the path of torchvision's"
                " resnet50-*.pth, or init to random"
            )
        if self.init == "random" and getattr(backbone, "frozen_stages", False):
            raise ValueError(
                "network.backbone.frozen_stages: would freeze random weights; set it to"
                " 0, or init to imagenet"
            )
        return self


class SourceParams(Section):
    """A source of labelled images, and what is learned from its objects."""

    name: str
    fraction: float = Field(gt=0, le=1)
    teaches: dict[Aspect, Annotated[float, Field(ge=0)]] = Field(min_length=1)
    weigh_by_score: bool
    box_grids: list[Annotated[int, Field(ge=0)]]
    negatives: Literal["all", "source", "batch", "image"]

    @model_validator(mode="after")
    def _has_the_scores_it_weighs_by(self) -> "SourceParams":
        if self.weigh_by_score and self.name in UNSCORED:
            raise ValueError(f"{self.name}: has no scores; set weigh_by_score to false")
        return self


class SupervisionParams(Section):
    """The sources from which a training draws its batches."""

    draw: Literal["together", "in_turn"]
    sources: Sequence[SourceParams] = Field(min_length=1)

    @model_validator(mode="after")
    def _fractions_of_one_whole(self) -> "SupervisionParams":
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"sources: expected each name once, found {names}")
        total = sum(source.fraction for source in self.sources)
        if self.draw == "together" and abs(total - 1) > 1e-6:
            raise ValueError(f"sources: expected fractions that add up to 1, found {total:g}")
        return self


def check_sources(params: SupervisionParams, network: NetworkParams | type[NetworkParams]) -> None:
    """Check that the architecture can learn from the sources of a training.

    Raises:
        ValueError: it cannot; the message names the source.
    """
    for source in params.sources:
        weights = {source.teaches.get(aspect) for aspect in get_args(Aspect)}
        if "object_weights" not in network.supports and (weights != {1.0} or source.weigh_by_score):
            raise ValueError(
                f"supervision.sources: {source.name}: this architecture cannot weigh objects; set"
                " class, box and mask of teaches to 1 and weigh_by_score to false"
            )
        if "partial_labels" not in network.supports and source.negatives != "all":
            raise ValueError(
                f"supervision.sources: {source.name}: this architecture has one softmax over all"
                " classes, which treats classes without a label in an image as absent; set"
                " negatives to all, or architecture to fcos_mo"
            )


def check_training(training: TrainingParams, network: NetworkParams | type[NetworkParams]) -> None:
    """Check that a training names the losses and parts that the architecture declares.

    Raises:
        ValueError: a loss has no weight, or a loss or part does not exist.
    """
    if set(training.loss_weights) != set(network.losses):
        raise ValueError(
            f"training.loss_weights: expected {', '.join(network.losses)},"
            f" found {list(training.loss_weights)}; give a weight to each of them and to no other"
        )
    names = [loss.name for loss in training.region_losses]
    if names and "region_hooks" not in network.supports:
        raise ValueError("training.region_losses: this architecture takes none; set it to []")
    if len({*names, *network.losses}) < len(names) + len(network.losses):
        raise ValueError(
            f"training.region_losses: expected names other than {', '.join(network.losses)}, each"
            f" once, found {names}"
        )
    if unknown := sorted(set(training.frozen) - set(network.parts)):
        raise ValueError(
            f"training.frozen: expected some of {', '.join(network.parts)},"
            f" found {unknown}; remove what is not one of them"
        )
