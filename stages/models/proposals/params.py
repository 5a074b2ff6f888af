"""Settings of the proposal networks, read without a network: importing torch takes seconds."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from stages.common.runtime.params import PARAMS_FILE, Section


class ViewSettings(Section):
    """Views of an image for an ImageNet backbone; training draws one, ranking averages all of them.

    - `shorter_sides`: pixels of the shorter side, one view each.
    - `longer_side`: most pixels of the longer side; it takes precedence.
    - `flip`: add a mirrored view of each.
    """

    shorter_sides: list[Annotated[int, Field(ge=32)]] = Field(min_length=1)
    longer_side: int = Field(ge=32)
    flip: bool


class AgreementSettings(Section):
    """Which neighbours count towards a class score, and how much: see `consensus`."""

    neighbour_iou: float = Field(gt=0, le=1)
    power: float = Field(gt=0, le=1)


class RankingSettings(Section):
    """How boxes are refined, scored and suppressed: section `ranking` of params.yaml.

    - `top_k`: the most boxes per image.
    - `score`: quality: predicted IoU with an object of any class; classes: the class scores, by
      which boxes suppress each other within each class only (see `order_by_class`).
    - `agreement`: of class scores, among boxes that overlap; neighbour_iou 1 leaves them as they
      are.
    - `scored`: box: each candidate is scored itself; proposal: a regressed box has the score of the
      box that it was regressed from, so that one pass over the regions gives scores and regression.
    - `refinements`: how often the boxes are regressed; each result is a candidate too.
    - `keep_proposals`: whether proposals are candidates beside their refinements.
    - `nms_iou`: rising thresholds, see `order_in_layers`.
    - `views`: the views of an image that an ImageNet backbone averages over.
    """

    top_k: int = Field(ge=1)
    score: Literal["quality", "classes"]
    agreement: AgreementSettings
    scored: Literal["box", "proposal"]
    refinements: int = Field(ge=0)
    keep_proposals: bool
    nms_iou: list[Annotated[float, Field(gt=0, le=1)]] = Field(min_length=1)
    views: ViewSettings

    def check_references(self, key: str, params: Mapping[str, Any], elsewhere: bool) -> None:
        """Check that the quality is trained if it is the score."""
        match params:
            case {
                "wspn": {
                    "model": {"backbone": {"kind": "resnet50" | "vgg16"}},
                    "end_to_end": {"quality_weight": 0},
                }
            } if self.score == "quality":
                raise ValueError(
                    f"{PARAMS_FILE}: {key}.score: quality is not trained with"
                    " wspn.end_to_end.quality_weight = 0; set it to classes, or raise the weight"
                )

    @field_validator("nms_iou")
    @classmethod
    def _ascending(cls, values: list[float]) -> list[float]:
        if values != sorted(set(values)):
            raise ValueError("must rise from value to value")
        return values
