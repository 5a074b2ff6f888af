"""Section `wspn` of params.yaml: the weakly supervised proposal network and its training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stages.common.runtime.params import Section
from stages.models.proposals.params import ViewSettings

NUM_STAGES = 5  # stem and layer1-4 of ResNet-50, conv1-conv5 of VGG16


class BackboneParams(Section):
    """The backbone: the trunk of the small vision-language model, or an ImageNet network."""

    kind: Literal["vlm", "resnet50", "vgg16"]
    weights: str | None
    sha256: str | None
    frozen_stages: int = Field(ge=0, le=NUM_STAGES)
    regions_at_once: int = Field(ge=1)

    @model_validator(mode="after")
    def _weights_are_used(self) -> "BackboneParams":
        if self.kind == "vlm" and (self.weights or self.sha256):
            raise ValueError(
                "kind vlm takes its weights from data/vlm; set weights and sha256 to null, or kind"
                " to resnet50 or vgg16"
            )
        if self.sha256 and not self.weights:
            raise ValueError("sha256 is given, but weights is null; set sha256 to null")
        return self


class ModelParams(Section):
    """Sizes of the trained parts; a trunk brings its own."""

    backbone: BackboneParams
    image_side: int = Field(ge=32)
    class_hidden: int = Field(ge=8)
    object_hidden: int = Field(ge=8)
    dropout: float = Field(ge=0, lt=1)


class ClassifyParams(Section):
    """Training of the class part with image labels."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    proposals_per_visit: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)


class SeedParams(Section):
    """How the seeds are chosen: the proposals that give the others their targets."""

    select: Literal["mist", "oicr"]
    top_fraction: float = Field(gt=0, le=1)
    max_iou: float = Field(gt=0, le=1)
    min_relative_score: float = Field(ge=0, le=1)
    neighbour_iou: float = Field(gt=0, le=1)
    power: float = Field(gt=0, le=1)


class LocaliseParams(Section):
    """Training of the object part with the targets of seeds."""

    quality: Literal["overlap", "objectness"]
    quality_min_iou: float = Field(ge=0, lt=1)
    regression_min_iou: float = Field(gt=0, lt=1)
    regression_weight: float = Field(ge=0)
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)


class EndToEndParams(Section):
    """Training of an ImageNet backbone with all heads, instead of training the two parts."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    milestones: list[Annotated[int, Field(ge=1)]]
    warmup_steps: int = Field(ge=0)
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    precision: Literal["fp32", "bf16"]
    views: ViewSettings
    image_weight: float = Field(gt=0)
    refinement_weights: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    quality_weight: float = Field(ge=0)


class WspnParams(Section):
    """The weakly supervised proposal network and its training."""

    image_labels: Literal["captions", "annotations"]
    max_images: int = Field(ge=1)
    proposals_per_image: int = Field(ge=1)
    model: ModelParams
    classify: ClassifyParams
    seeds: SeedParams
    localise: LocaliseParams
    end_to_end: EndToEndParams

    def check_references(self, key: str, params: Mapping[str, Any], elsewhere: bool) -> None:
        """Check that the weights of an ImageNet backbone are there."""
        backbone = self.model.backbone
        if backbone.weights is not None and not elsewhere:
            from stages.models.backbones.imagenet import find_imagenet_weights  # imports torch

            find_imagenet_weights(Path(backbone.weights), backbone.sha256, f"{key}.model.backbone")
