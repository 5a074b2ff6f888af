"""The `rpn` section of params.yaml: the supervised comparator of the proposal network."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stages.common.runtime.params import Section
from stages.models.detection.params import ProposalLimits, StartParams
from stages.models.proposals.params import AgreementSettings, RankingSettings


class RankingChange(Section):
    """Changes to section `ranking`: another way to rank the proposals."""

    score: Literal["quality", "classes"]
    agreement: AgreementSettings
    refinements: Annotated[int, Field(ge=0)]
    keep_proposals: bool
    nms_iou: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)]

    def apply_to(self, ranking: RankingSettings) -> RankingSettings:
        """Return the settings of `ranking` with these changes.

        Raises:
            ValueError: the settings do not fit together.
        """
        return RankingSettings.model_validate(ranking.model_dump() | self.model_dump())


class RpnParams(StartParams):
    """The detector whose proposals are compared, its training, and the K of recall@K."""

    by_classes: RankingChange
    by_agreement: RankingChange
    inference: ProposalLimits
    recall_at: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]

    def check_references(self, key: str, params: Mapping[str, Any], elsewhere: bool) -> None:
        """Check the modules of region losses too."""
        super().check_references(key, params, elsewhere)
        if self.training.region_losses:
            from stages.models.detection.region_hooks import check_hooks  # imports torch

            check_hooks(self, key)

    @model_validator(mode="after")
    def _the_architecture_proposes(self) -> "RpnParams":
        if "proposals" not in self.network.supports:
            raise ValueError(f"architecture: {self.architecture} has no region proposals")
        return self
