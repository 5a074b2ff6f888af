"""The `pseudo_masks` section of params.yaml."""

from typing import Literal

from pydantic import Field

from stages.common.runtime.params import Section


class SeedParams(Section):
    """Which pixels of a crop are labelled as object or background before training."""

    foreground: Literal["most_activated", "random_activated"]
    background: Literal["least_activated", "border"]
    foreground_fraction: float = Field(gt=0, lt=1)
    background_fraction: float = Field(gt=0, lt=1)


class PseudoMasksParams(Section):
    """How pseudo-masks are made: one weakly supervised segmentation network per object."""

    method: Literal["network", "box", "threshold"]
    activation_round: Literal["last", "first"]
    smoothing: float = Field(ge=0)
    threshold: float = Field(gt=0, lt=1)
    crop_size: int = Field(ge=8)
    context: float = Field(ge=0, le=2)
    channels: int = Field(ge=1)
    coordinates: bool
    steps: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    self_training: float = Field(ge=0)
    seeds: SeedParams
    largest_component: bool
    batch_size: int = Field(ge=1)
