"""Section `ranking` of params.yaml: from proposals to a picture's top-K boxes."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from stages.common.params import Section


class RankingParams(Section):
    """How boxes are refined, scored and kept apart."""

    top_k: int = Field(ge=1)
    score: Literal["quality", "classes"]
    refinements: int = Field(ge=0)
    keep_proposals: bool
    nms_iou: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)]

    @field_validator("nms_iou")
    @classmethod
    def _ascending(cls, values: list[float]) -> list[float]:
        if values != sorted(set(values)):
            raise ValueError("must rise from value to value")
        return values
