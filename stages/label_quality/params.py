"""Section `label_quality` of params.yaml, and the keys that the stage reads of two others."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator

from stages.common.runtime.params import Section


class LabelQualityParams(Section):
    """The K, thresholds, fractions and sides that are measured, and the size of the montage."""

    recall_at: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    activation_thresholds: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=1)]
    activation_fractions: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)]
    square_sides: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)]
    montage_rows: Annotated[int, Field(ge=1, le=50)]

    @field_validator("recall_at", "activation_thresholds", "activation_fractions", "square_sides")
    @classmethod
    def _ascending(cls, values: list) -> list:
        if values != sorted(set(values)):
            raise ValueError("values must be strictly increasing")
        return values


class MapParams(Section):
    """Which map a stage uses and its blur: keys of both `pseudo_boxes` and `pseudo_masks`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    activation_round: Literal["last", "first"]
    smoothing: float = Field(ge=0)
