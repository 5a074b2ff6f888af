"""Section `wspn` of params.yaml: the weakly supervised proposal network and its training."""

from typing import Literal

from pydantic import Field

from stages.common.params import Section


class ModelParams(Section):
    """Sizes of the two trained parts; those of the trunk come with the vision-language model."""

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
    """Which proposals the others learn from."""

    select: Literal["mist", "oicr"]
    top_fraction: float = Field(gt=0, le=1)
    max_iou: float = Field(gt=0, le=1)
    min_relative_score: float = Field(ge=0, le=1)
    neighbour_iou: float = Field(gt=0, le=1)
    power: float = Field(gt=0, le=1)


class LocaliseParams(Section):
    """Training of the object part with seeds."""

    quality: Literal["overlap", "objectness"]
    quality_min_iou: float = Field(ge=0, lt=1)
    regression_min_iou: float = Field(gt=0, lt=1)
    regression_weight: float = Field(ge=0)
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)


class WspnParams(Section):
    """All of the stage."""

    image_labels: Literal["captions"]
    max_images: int = Field(ge=1)
    proposals_per_image: int = Field(ge=1)
    model: ModelParams
    classify: ClassifyParams
    seeds: SeedParams
    localise: LocaliseParams
