"""Settings of `detector.architecture: fcos_mo`."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from stages.common.runtime.params import Section
from stages.models.detection.mask_head_params import HourglassParams, check_width
from stages.models.detection.params import NetworkParams as DetectorNetworkParams
from stages.models.detection.params import (
    ResizeParams,
    Resnet50FpnParams,
    TrunkParams,
)


class LocationParams(Section):
    """Which locations learn which objects."""

    finest_level: int = Field(ge=0)
    regressed_up_to: list[Annotated[float, Field(gt=0)]]
    centre_radius: float = Field(gt=0)


class FocalParams(Section):
    """Sigmoid focal loss, and the class probability with which training starts."""

    alpha: float = Field(ge=0, le=1)
    gamma: float = Field(ge=0)
    prior: float = Field(gt=0, lt=1)

    @field_validator("gamma")
    @classmethod
    def _has_a_gradient(cls, gamma: float) -> float:
        if 0 < gamma < 1:
            raise ValueError(
                "expected 0 or a number >= 1: between them the gradient of a certain prediction is"
                " infinite"
            )
        return gamma


class NetworkParams(DetectorNetworkParams):
    """FCOS with a deep mask head and an open vocabulary."""

    losses = ("classification", "box", "centerness", "mask")
    parts = ("trunk", "pyramid", "class_tower", "box_tower", "classifier", "mask_head")
    supports = frozenset({"micro_batches", "object_weights", "partial_labels"})

    backbone: Annotated[TrunkParams | Resnet50FpnParams, Field(discriminator="kind")]
    resize: ResizeParams
    tower_layers: int = Field(ge=1)
    locations: LocationParams
    focal: FocalParams
    mask_head: HourglassParams

    @model_validator(mode="after")
    def _one_limit_between_two_levels(self) -> "NetworkParams":
        limits, finest = self.locations.regressed_up_to, self.locations.finest_level
        wanted = self.backbone.levels - finest - 1
        if wanted < 0 or len(limits) != wanted or limits != sorted(set(limits)):
            raise ValueError(
                f"locations.regressed_up_to: expected {max(wanted, 0)} rising limits, one less than"
                f" the levels of backbone.kind {self.backbone.kind} from finest_level {finest} on,"
                f" found {limits}"
            )
        return self

    @model_validator(mode="after")
    def _widths_can_be_normalised(self) -> "NetworkParams":
        check_width(self.backbone.pyramid_width)
        return self
